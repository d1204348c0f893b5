"""What an instance holds, and the comparison that finds one bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import polyak
from polyak.manifest import digest
from polyak.snapshot import Array

# An array, or in a report from another process its fingerprint.
Value = Array | str


@dataclass(frozen=True, slots=True)
class Held:
    """Weights under their paths, and the number of updates behind them where they are an average."""

    values: Mapping[str, Value]
    count: int | None = None

    @classmethod
    def of(cls, source: Any) -> Held:
        """A copy of what a model or an average holds now."""
        held = polyak.snapshot(source)
        return cls(dict(held), None if held.state is None else held.state.count)

    def only(self, paths: Mapping[str, Any]) -> Held:
        """The weights that are in ``paths``, too: formats keep no random seeds."""
        return Held({path: value for path, value in self.values.items() if path in paths}, self.count)

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self.values.values() if not isinstance(value, str))


@dataclass(frozen=True, slots=True)
class Arrival:
    """One set of weights that a fresh instance received.

    Attributes:
        role: "raw", "fast" or "slow".
        got: what the instance holds.
        wanted: what the trained model or its average held.
        accuracy: of the instance with these weights, on the test images, in [0, 1].
        receipt: where polyak wrote one.
    """

    role: str
    got: Held
    wanted: Held
    accuracy: float
    receipt: polyak.Receipt | None = None

    @property
    def differences(self) -> tuple[str, ...]:
        """A line for everything that is not the same bit for bit."""
        paths = dict.fromkeys([*self.wanted.values, *self.got.values])
        found = [line for path in paths if (line := self._difference(path))]
        if self.got.count != self.wanted.count:
            found.append(f"{self.role} count: expected {self.wanted.count}, received {self.got.count}")
        return tuple(found)

    def _difference(self, path: str) -> str:
        wanted, got = (fingerprint(held.values.get(path)) for held in (self.wanted, self.got))
        return "" if wanted == got else f"{self.role} weight {path!r}: expected {wanted}, received {got}"


def fingerprint(value: Value | None) -> str:
    """Dtype, shape and digest of the bytes, as one line.

    Example:
        >>> fingerprint(np.zeros(2, np.float32))
        'float32 (2,) 7f2b6c8a3e8d3a1b...'
    """
    if value is None:
        return "nothing"
    return value if isinstance(value, str) else f"{value.dtype.name} {value.shape} {digest(value)}"
