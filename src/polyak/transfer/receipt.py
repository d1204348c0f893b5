"""Receipt: what a transfer did, weight by weight, with the digests that prove it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import xxhash

from polyak.manifest import told_json


@dataclass(frozen=True, slots=True)
class Moved:
    """One weight that arrived. ``nbytes`` and ``digest`` are of the bytes read back from the target."""

    source: str
    target: str
    source_dtype: str
    dtype: str
    nbytes: int
    digest: str

    @property
    def cast(self) -> bool:
        return self.source_dtype != self.dtype

    @property
    def renamed(self) -> bool:
        return self.source != self.target


@dataclass(frozen=True, slots=True)
class Receipt:
    """The result of a transfer: every byte was read back from the target and compared.

    Attributes:
        source, target: labels of both ends.
        role: which of the source's sets was moved.
        moved: the weights that arrived.
        skipped: weights of either side left alone because the caller asked.
        left: random seeds, and counters of PyTorch, that only one side has.
        count: updates behind the average that was moved, or None for raw weights.
        unread: what else is in the source's file, by its path there, and was not moved.
    """

    source: str
    target: str
    role: str
    moved: tuple[Moved, ...]
    skipped: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    count: int | None = None
    unread: Mapping[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes written to the target."""
        return sum(m.nbytes for m in self.moved)

    @property
    def cast(self) -> tuple[Moved, ...]:
        return tuple(m for m in self.moved if m.cast)

    @property
    def renamed(self) -> tuple[Moved, ...]:
        return tuple(m for m in self.moved if m.renamed)

    @property
    def digest(self) -> str:
        """One digest over all target names, dtypes and bytes, in order of name: equal for equal contents."""
        lines = sorted(f"{m.target}\0{m.dtype}\0{m.digest}" for m in self.moved)
        return xxhash.xxh3_128_hexdigest("\n".join(lines).encode())

    def to_json(self) -> str:
        body: dict[str, Any] = asdict(self) | {"nbytes": self.nbytes, "digest": self.digest}
        return told_json(body)

    def __str__(self) -> str:
        count = "" if self.count is None else f" after {counted(self.count, 'update')}"
        parts = [
            f"{counted(len(self.moved), 'weight')} ({self.nbytes:,} bytes) moved and verified",
            f"{len(self.cast)} cast",
            f"{len(self.renamed)} renamed",
            f"{len(self.skipped)} skipped as asked",
        ]
        if self.left:
            parts.append(f"{len(self.left):,} only on one side")
        head = f"{self.role} weights{count}: {self.source} -> {self.target}"
        return f"{head}\n  {', '.join(parts)}\n  digest {self.digest}"


def counted(n: int, what: str) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "weight"), counted(1200, "weight")
        ('1 weight', '1,200 weights')
    """
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"
