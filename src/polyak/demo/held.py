"""What an instance holds, and the comparison that finds one bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import polyak
from polyak.manifest import digest
from polyak.snapshot import Array
from polyak.weights import glob_match

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

    def without(self, glob: str) -> Held:
        """Less the weights that match."""
        return Held({p: v for p, v in self.values.items() if not glob_match(p, glob)}, self.count)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One set of weights that a fresh instance received.

    Attributes:
        role: "raw", "fast" or "slow".
        got: what the instance holds.
        wanted: what the trained model or its average held.
        accuracy: of the instance with these weights, on the test images, in [0, 1].
        receipt: where polyak wrote one.
        outputs: where a model is served: what it answers, and what it should answer.
    """

    role: str
    got: Held
    wanted: Held
    accuracy: float
    receipt: polyak.Receipt | None = None
    outputs: tuple[Array, Array] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that arrived; another process sends fingerprints, so those are the bytes of what they stand for."""
        return sum(v.nbytes for p, v in self.wanted.values.items() if p in self.got.values and not isinstance(v, str))

    def without(self, glob: str) -> Arrival:
        """The same arrival, less the weights that match, on both sides."""
        return replace(self, got=self.got.without(glob), wanted=self.wanted.without(glob))

    @property
    def differences(self) -> tuple[str, ...]:
        """A line for everything that is not the same bit for bit."""
        paths = dict.fromkeys([*self.wanted.values, *self.got.values])
        found = [line for path in paths if (line := self._difference(path))]
        if self.got.count != self.wanted.count:
            found.append(f"{self.role} count: expected {self.wanted.count}, received {self.got.count}")
        if self.outputs and not same(*self.outputs):
            got, wanted = map(fingerprint, self.outputs)
            found.append(f"{self.role} outputs: expected {wanted}, received {got}")
        return tuple(found)

    def _difference(self, path: str) -> str:
        wanted, got = self.wanted.values.get(path), self.got.values.get(path)
        if same(wanted, got):
            return ""
        return f"{self.role} weight {path!r}: expected {fingerprint(wanted)}, received {fingerprint(got)}"


def same(a: Value | None, b: Value | None) -> bool:
    """Whether dtype, shape and every bit are equal; by fingerprint where one side is in another process.

    Example:
        >>> import numpy as np
        >>> same(np.zeros(2), np.zeros(2)), same(np.zeros(2), -np.zeros(2))
        (True, False)
    """
    if a is None or b is None or isinstance(a, str) or isinstance(b, str):
        return fingerprint(a) == fingerprint(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def fingerprint(value: Value | None) -> str:
    """Dtype, shape and digest of the bytes, as one line.

    Example:
        >>> import numpy as np
        >>> fingerprint(np.zeros(2, np.float32))
        'float32 (2,) 2c0a8a99dc147d5445c3b49d035665b2'
        >>> fingerprint(None)
        'nothing'
    """
    if value is None:
        return "nothing"
    return value if isinstance(value, str) else f"{value.dtype.name} {value.shape} {digest(value)}"
