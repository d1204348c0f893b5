"""Difference: two snapshots compared leaf by leaf, one pair of arrays in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from polyak.combine.blocks import Array, blocks, same_bits, wide
from polyak.errors import WeightError
from polyak.manifest import State, told_json
from polyak.snapshot import Snapshot
from polyak.weights import Weight, is_floating

_ZERO = np.uint64(1 << 63)


@dataclass(frozen=True, slots=True)
class Gap:
    """How far the values of two arrays lie apart.

    Attributes:
        max_abs: largest absolute difference; None where one side is NaN or infinite and the other is not the same.
        max_rel: largest ``|a - b| / max(|a|, |b|)``, from 0 to 2; None likewise.
        max_ulp: largest distance in representable numbers of the dtype; None for two dtypes, integers and NaN.
        differing: elements that are not the same.
    """

    max_abs: float | None
    max_rel: float | None
    max_ulp: int | None
    differing: int


@dataclass(frozen=True, slots=True)
class Change:
    """A leaf that both have and that differs. ``gap`` is None where the shapes differ."""

    name: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    dtypes: tuple[str, str]
    gap: Gap | None


@dataclass(frozen=True, slots=True)
class StateChange:
    """The rule or counts of an average that differ: of ``a`` and of ``b``."""

    role: str
    states: tuple[State, State]


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between two snapshots.

    Attributes:
        a, b: labels of both.
        roles: which sets were compared, of ``a`` and of ``b``.
        only_in_a, only_in_b: leaves without a partner.
        changed: leaves that differ in shape, dtype or bits.
        same: number of leaves that are the same.
        states: averages whose rule or counts both sides know and do not agree on.
    """

    a: str
    b: str
    roles: tuple[tuple[str, ...], tuple[str, ...]]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    changed: tuple[Change, ...]
    same: int
    states: tuple[StateChange, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether nothing differs. Role names need not agree: most files do not say what they hold."""
        return not (self.only_in_a or self.only_in_b or self.changed or self.states)

    def to_json(self) -> str:
        return told_json(asdict(self) | {"equal": self.equal})


def comparable(a: Snapshot, b: Snapshot) -> tuple[Snapshot, Snapshot]:
    """Both as they are where they hold the same sets, or one set each; the names of leaves tell sets apart.

    Raises:
        AmbiguousRole: one holds several sets, and the other has not the same.
    """
    return (a, b) if set(a.roles) == set(b.roles) else (a.select(), b.select())


def difference(a: Snapshot, b: Snapshot, atol: float = 0.0) -> Difference:
    """Compare leaf by leaf. Memory: one leaf of each side.

    Args:
        atol: leaves of one dtype whose largest absolute difference is at most this are the same; 0 compares bits.

    Raises:
        WeightError: ``atol`` is negative or no number.

    Example:
        >>> a = Snapshot.from_arrays({"w": np.float32([1, 2]), "b": np.float32([0])})
        >>> b = Snapshot.from_arrays({"w": np.float32([1, 2.5])})
        >>> found = difference(a, b)
        >>> found.equal, found.only_in_a, found.changed[0].gap
        (False, ('b',), Gap(max_abs=0.5, max_rel=0.2, max_ulp=2097152, differing=1))
    """
    if not 0 <= atol < np.inf:
        raise WeightError(f"atol={atol!r}: expected a finite number of at least 0")
    shared = [name for name in a if name in b]
    changed = tuple(c for name in shared if (c := _change(name, a, b, atol)) is not None)
    return Difference(
        a.origin,
        b.origin,
        (a.roles, b.roles),
        tuple(name for name in a if name not in b),
        tuple(name for name in b if name not in a),
        changed,
        len(shared) - len(changed),
        tuple(_states(a, b)),
    )


def _change(name: str, a: Snapshot, b: Snapshot, atol: float) -> Change | None:
    ours, theirs = (s.items_by_path[name].weight for s in (a, b))
    gap = None
    if ours.shape == theirs.shape:
        x, y = a[name], b[name]
        if ours.dtype == theirs.dtype and same_bits(x, y):
            return None
        gap = measure(x, y)
        if ours.dtype == theirs.dtype and atol > 0 and gap.max_abs is not None and gap.max_abs <= atol:
            return None
    return _described(name, ours, theirs, gap)


def _described(name: str, ours: Weight, theirs: Weight, gap: Gap | None) -> Change:
    return Change(name, (ours.shape, theirs.shape), (ours.dtype, theirs.dtype), gap)


def _states(a: Snapshot, b: Snapshot) -> Iterator[StateChange]:
    """Sets are compared by role, and by themselves where each side holds one."""
    ours, theirs = a.manifest.roles, b.manifest.roles
    if len(ours) == len(theirs) == 1:
        theirs = dict(zip(ours, theirs.values(), strict=True))
    for role, state in ours.items():
        other = theirs.get(role)
        if state is not None and other is not None and state != other:
            yield StateChange(role, (state, other))


def measure(a: Array, b: Array) -> Gap:
    """How far two arrays of one shape lie apart.

    Example:
        >>> measure(np.float32([1.0]), np.nextafter(np.float32([1.0]), np.float32(2))).max_ulp
        1
    """
    parts = [_gap(x, y) for x, y in blocks(a, b)]
    ulps = [p.max_ulp for p in parts]
    return Gap(
        _most([p.max_abs for p in parts]),
        _most([p.max_rel for p in parts]),
        None if None in ulps else max((u for u in ulps if u is not None), default=None),
        sum(p.differing for p in parts),
    )


def _most(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return max(known, default=0.0) if len(known) == len(values) else None


def _gap(x: Array, y: Array) -> Gap:
    differing = _differing(x, y)
    a, b = wide(x), wide(y)
    with np.errstate(all="ignore"):
        apart = _exact(x, y) if _integers(x, y) else np.abs(a - b)
        apart = np.where(differing, apart, 0.0)
        largest = np.maximum(np.abs(a), np.abs(b))
        relative = np.divide(apart, largest, out=np.zeros_like(apart), where=largest > 0)
    if not np.isfinite(apart).all():
        return Gap(None, None, None, int(differing.sum()))
    return Gap(float(apart.max()), float(relative.max()), _ulp(x, y), int(differing.sum()))


def _differing(x: Array, y: Array) -> Array:
    """By bits in one dtype, by value in two."""
    if x.dtype != y.dtype:
        unequal: Array = wide(x) != wide(y)
        return unequal
    size = x.dtype.itemsize
    if size <= 8:
        bits: Array = x.view(f"u{size}") != y.view(f"u{size}")
        return bits
    parts: Array = np.any(x.view(np.uint64).reshape(x.size, -1) != y.view(np.uint64).reshape(x.size, -1), axis=1)
    return parts


def _integers(x: Array, y: Array) -> bool:
    return x.dtype == y.dtype and x.dtype.kind in "iu"


def _exact(x: Array, y: Array) -> Array:
    """Distances of integers; float64 alone would not tell 2**60 from 2**60 + 1."""
    apart = np.maximum(x, y).astype(np.uint64) - np.minimum(x, y).astype(np.uint64)
    return apart.astype(np.float64)


def _ulp(x: Array, y: Array) -> int | None:
    if x.dtype != y.dtype or not is_floating(x.dtype.name) or x.dtype.itemsize > 8:
        return None
    a, b = _ordered(x), _ordered(y)
    return int((np.maximum(a, b) - np.minimum(a, b)).max())


def _ordered(x: Array) -> Array:
    """Sign and magnitude as numbers that rise with the value, by one from each to the next; both zeros are one."""
    bits = x.view(f"u{x.dtype.itemsize}").astype(np.uint64)
    sign = np.uint64(1 << (8 * x.dtype.itemsize - 1))
    magnitude = bits & (sign - np.uint64(1))
    return np.where(bits & sign, _ZERO - magnitude, _ZERO + magnitude)
