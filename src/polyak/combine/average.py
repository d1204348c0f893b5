"""The mean of checkpoints, one array at a time: uniform or weighted, and how far each member lies from it.

What is averaged: every floating-point weight, statistics such as BatchNorm's moving mean included. The members'
statistics belong to the members' weights, not to the mean's; their mean is nearer to what the averaged model needs
than any one member's, and where it matters a pass over data sets them right. Counters and random seeds have no mean:
they are those of the last member with a share, from which training may go on. Other integers, which may be packed
weights, masks or tables, and complex numbers must be equal in all members, and so must be what another array is
multiplied by: scales of float8 weights, masks of pruned layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import msgspec
import numpy as np

from polyak.combine.blocks import Array, blocks, count_nonfinite, wide
from polyak.combine.codes import Refusal, averaged, must_agree, without
from polyak.combine.streams import of_streams
from polyak.combine.telling import EVIDENCE, LABEL, fitting, unread
from polyak.errors import (
    AmbiguousMatch,
    AmbiguousRole,
    DtypeMismatch,
    MissingWeight,
    NonFinite,
    ShapeMismatch,
    WeightError,
)
from polyak.manifest import AVERAGE, OF_MEMBER, RAW, Manifest, State
from polyak.numbers import rounded
from polyak.snapshot import Item, Snapshot, nearest_name, tool, versions
from polyak.weights import Weight, numpy_dtype, transposed_convolution

_INTO_TORCH = 'make them alike first: polyak.convert(member, path, layout="torch")'
_INTO_ONE_MODEL = "transfer each into a model of one framework first, and average what polyak.save writes of that"

ROOM = 1 << 27  # bytes of float64 that one read may take whatever the array's own size

Watch = Callable[[str, int, int], None]
Read = Callable[[], Array]


@dataclass(frozen=True, slots=True)
class Member:
    """One of the averaged sources.

    Attributes:
        source: its label.
        share: its part of the mean; the shares sum to 1.
        distance: ``||member - mean|| / ||mean||`` over all averaged values, as one vector.
    """

    source: str
    share: float
    distance: float


def mean(members: Sequence[Snapshot], weights: Sequence[float] | None = None, watch: Watch | None = None) -> Snapshot:
    """The mean as a lazy snapshot of role "average"; an array is computed when it is read.

    Memory of one read: at most three times the array, or the array twice and 128 MiB. For that, large arrays of 16
    bits and less are made in parts, and the members are read once for each part. Equal members give their own bits.
    The equal mean of raw weights is an average by the rule "mean" that has seen every member; other means have no rule
    of their own, and the manifest's evidence says how they were made.

    Args:
        members: snapshots of one role each, raw weights or averages, of one structure.
        weights: a share for each, of any positive sum; equal ones by default. Nothing is taken of one whose share is 0.
        watch: told of each array before it is computed: name, how many are done, of how many.

    Raises:
        WeightError: no members, or weights that are negative, not finite, sum to 0, or are not one for each.
        AmbiguousRole: the members hold several or mixed roles, or neither raw weights nor averages.
        MissingWeight, ShapeMismatch, DtypeMismatch: the structures differ; the first difference is named.
        DtypeMismatch: when an array is read that is no counter or seed, has no mean, and differs between the members.
        WeightError: when a scale of float8 weights or a mask is read that differs between the members.
        NonFinite: when an array is read that has NaN or infinity in one member.

    Example:
        >>> a, b = (Snapshot.from_arrays({"w": np.float32([v])}) for v in (1, 4))
        >>> mean([a, b])["w"].tolist(), mean([a, b], [2, 1])["w"].tolist()
        ([2.5], [2.0])
    """
    shares = normalised(weights, len(members))
    refuse_mixed(members)
    parts = [(member, share) for member, share in zip(members, shares, strict=True) if share]
    last = parts[-1][0]
    agreed = must_agree(last.weights, of_streams(last.weights))
    reads = [_reader(parts, w, agreed.get(w.path)) for w in last.weights]
    names = list(last)
    turn = count()
    watched = [watched_read(read, watch, name, turn, len(names)) for name, read in zip(names, reads, strict=True)]
    items = (Item(AVERAGE, w, read) for w, read in zip(last.weights, watched, strict=True))
    written = Manifest(tool(), {}, (), versions=versions(), evidence=_provenance(members, shares))
    written = msgspec.structs.replace(
        written, layout=common_layout(members), unread=unread(members), note=_note(members, shares)
    )
    origin = f"mean of {', '.join(fitting([m.origin for m in members], LABEL))}"
    return Snapshot(items, {AVERAGE: _state(members, weights)}, origin, written=written)


def normalised(weights: Sequence[float] | None, members: int) -> tuple[float, ...]:
    """Shares that sum to 1.

    Example:
        >>> normalised([1, 2, 1], 3)
        (0.25, 0.5, 0.25)
    """
    if members == 0:
        raise WeightError("an average needs members, received none", hint="give at least one path or snapshot")
    given = (1.0,) * members if weights is None else _numbers(weights)
    if len(given) != members:
        raise WeightError(
            f"expected {members} shares, one for each member, received {len(given)}",
            hint="without any they are equal; a share of 0 leaves a member out",
        )
    try:
        total = math.fsum(given)
    except OverflowError:
        total = math.inf
    if any(w < 0 for w in given) or not 0 < total < math.inf:
        raise WeightError(
            f"expected shares of at least 0 with a positive sum, received {', '.join(f'{w:g}' for w in given)}",
            hint="without any they are equal; with a negative one the mean would leave the range of the members",
        )
    return tuple(w / total for w in given)


def _numbers(weights: Any) -> tuple[float, ...]:
    if isinstance(weights, str):
        raise WeightError(
            f"weights={weights!r}: expected a number for each member, received text",
            hint="role= says which set of the members to average",
        )
    try:
        if not isinstance(weights, Mapping):
            return tuple(float(w) for w in weights)
    except (TypeError, ValueError):
        pass
    raise WeightError(
        f"weights={weights!r:.80}: expected a list of numbers, one for each member in their order",
        hint="without any they are equal",
    )


def refuse_mixed(members: Sequence[Snapshot]) -> None:
    """Of one role, whatever an average is called, and the same names, shapes and dtypes in each; the error names the
    first difference.
    """
    first = members[0]
    for member in members:
        if len(member.roles) != 1 or _sort(member) != _sort(first):
            raise AmbiguousRole(
                f"expected members of one role, received {', '.join(member.roles)} from {member.origin} "
                f"beside {', '.join(first.roles)} from {first.origin}",
                hint="average raw weights with raw ones, averages with averages",
            )
        if _sort(member) not in (RAW, AVERAGE):
            raise AmbiguousRole(
                f"{member.origin}: expected raw weights or an average, received {member.roles[0]!r}, which is neither",
                hint='choose a set of weights: role="raw" or role="average"',
            )
        _refuse_other_structure(first, member)


def _sort(member: Snapshot) -> str:
    """The role without the name of an average, which one tool calls "avs/slow" and another one "model/avs/slow"."""
    return next(iter(member.roles), "").partition(":")[0]


def common_layout(members: Sequence[Snapshot]) -> str:
    """How the arrays of all members lie. Raises AmbiguousMatch where two say different things.

    Trees of JAX lie as in Keras, but for transposed convolutions.
    """
    said = {m.manifest.layout: m for m in members if m.manifest.layout}
    if said.keys() == {"jax", "keras"}:
        _refuse_transposed(said["jax"], said["keras"])
        return "keras"
    if len(said) > 1:
        (one, first), (other, second) = list(said.items())[:2]
        raise AmbiguousMatch(
            f"expected members of one layout, received {other!r} from {second.origin} beside {one!r} from "
            f"{first.origin}",
            hint=_INTO_ONE_MODEL if "jax" in said else _INTO_TORCH,
        )
    return next(iter(said), "")


def _refuse_transposed(tree: Snapshot, keras: Snapshot) -> None:
    for name, item in keras.items_by_path.items():
        layer = transposed_convolution(item.weight, tree.items_by_path[name].weight)
        if layer:
            raise AmbiguousMatch(
                f"weight {name!r} {item.weight.shape}: expected members of one layout, received a tree of JAX, "
                f"{tree.origin}, beside the kernel of {layer} from {keras.origin}, and the shape does not show how the "
                "tree has it",
                hint=_INTO_ONE_MODEL,
            )


def _refuse_other_structure(first: Snapshot, member: Snapshot) -> None:
    for one, other in ((first, member), (member, first)):
        for name in one:
            if name not in other:
                raise MissingWeight(
                    f"weight {name!r}: in {one.origin}, not in {other.origin}{nearest_name(name, other)}",
                    hint="members must have one structure",
                )
    for name, item in first.items_by_path.items():
        _refuse_other_weight(item.weight, member.items_by_path[name].weight, first.origin, member.origin)


def _refuse_other_weight(a: Weight, b: Weight, origin: str, other: str) -> None:
    if a.shape != b.shape:
        raise ShapeMismatch(f"weight {a.path!r}: expected {a.shape} as in {origin}, received {b.shape} from {other}")
    if a.dtype != b.dtype:
        cast = f'make it {a.dtype} first: polyak.convert(member, path, cast="{a.dtype}")'
        raise DtypeMismatch(
            f"weight {a.path!r}: expected {a.dtype} as in {origin}, received {b.dtype} from {other}",
            hint=cast if a.floating and b.floating else without(a),
        )


def _reader(parts: Sequence[tuple[Snapshot, float]], w: Weight, refusal: Refusal | None) -> Read:
    """The mean; of what has none the last member's values, refused where they must agree and do not."""
    if averaged(w) and refusal is None:
        return lambda: in_parts(w, lambda part: _wide_mean(parts, w, part))
    *others, last = (member for member, _ in parts)

    def same() -> Array:
        found = last[w.path]
        if refusal and any(not np.array_equal(member[w.path], found) for member in others):
            raise refusal()
        return found

    return same


def watched_read(
    read: Callable[[], Array], watch: Watch | None, name: str, turn: count[int], total: int
) -> Callable[[], Array]:
    """A read that tells its watch before it begins."""
    if watch is None:
        return read
    told = watch

    def watched() -> Array:
        told(name, min(next(turn), total), total)
        return read()

    return watched


def in_parts(w: Weight, wide: Callable[[slice], Array]) -> Array:
    """An array in its dtype from parts in float64, which ``wide`` computes.

    It is made at once, in place of its float64 form, where that is at most twice as large or small by itself.
    """
    if 8 * w.size <= max(2 * w.nbytes, ROOM):
        return _narrowed(wide(slice(None)), numpy_dtype(w.dtype)).reshape(w.shape)
    made = np.empty(w.size, numpy_dtype(w.dtype))
    step = max(w.nbytes, ROOM) // 8
    for start in range(0, w.size, step):
        part = slice(start, start + step)
        made[part] = _narrowed(wide(part), made.dtype)
    return made.reshape(w.shape)


def _wide_mean(parts: Sequence[tuple[Snapshot, float]], w: Weight, part: slice) -> Array:
    """A running mean in float64: it never leaves the members' range, and equal values stay as they are."""
    total, mean = 0.0, np.empty(len(range(*part.indices(w.size))), np.float64)
    for member, share in parts:
        before, total = total, total + share
        _move(mean, finite(member, w).reshape(-1)[part], share / total, before / total)
    return mean


def _move(mean: Array, value: Array, share: float, rest: float) -> None:
    """From the nearer end, as ``polyak.averaging.kernel.lerp`` does: no large number hides a small one there."""
    for m, x in blocks(mean, value):
        if rest == 0:
            m[...] = x
        elif share <= 0.5:
            _add(m, _step(m, wide(x), share))
        else:
            newest = wide(x)
            _add(newest, _step(newest, m, rest))
            m[...] = newest


def _step(near: Array, far: Array, part: float) -> Array:
    """Up to half of the way. Between float64 values of opposite signs lies more than float64 holds."""
    with np.errstate(over="ignore"):
        step = (far - near) * part
    return step if np.isfinite(step).all() else far * part - near * part


def _add(values: Array, step: Array) -> None:
    np.add(values, step, out=values, where=step != 0)  # adding nothing would turn -0.0 into 0.0


def finite(member: Snapshot, w: Weight) -> Array:
    """A member's array. Raises NonFinite."""
    value = member[w.path]
    if bad := count_nonfinite(value):
        raise NonFinite(
            f"weight {w.path!r}: expected finite values, received {bad} non-finite of {value.size} from "
            f"{member.origin}",
            hint="leave this member out",
        )
    return value


def _narrowed(mean: Array, dtype: np.dtype[Any]) -> Array:
    """The same memory in another dtype: block by block, forward, so that nothing is overwritten unread."""
    if dtype.itemsize > 8:
        return rounded(mean, dtype)
    narrow = mean.view(np.uint8)[: mean.size * dtype.itemsize].view(dtype)
    for out, x in blocks(narrow, mean):
        out[...] = rounded(x, dtype)
    return narrow


def _state(members: Sequence[Snapshot], weights: Sequence[float] | None) -> State | None:
    """The rule "mean" (``averaging.rules.Mean``) where it is true: equal shares of raw weights."""
    return State({"rule": "mean"}, len(members)) if weights is None and members[0].roles == (RAW,) else None


def _provenance(members: Sequence[Snapshot], shares: Sequence[float]) -> tuple[str, ...]:
    said = [f"{OF_MEMBER}{m.origin}: {m.roles[0]} weights, share {s:.6g}" for m, s in zip(members, shares, strict=True)]
    return fitting(said, EVIDENCE)


def _note(members: Sequence[Snapshot], shares: Sequence[float]) -> str:
    """What a reader must know of averages: once where it holds for all that have a part in the mean, else of whom.

    The file of raw weights may speak of the averages in it, which have no part in the mean.
    """
    if members[0].roles == (RAW,):
        return ""
    said: dict[str, str] = {}
    for member in (m for m, share in zip(members, shares, strict=True) if share):
        said.setdefault(member.manifest.note, member.origin)
    if len(said) == 1:
        return next(iter(said))
    return "; ".join(fitting([f"{OF_MEMBER}{origin}: {note}" for note, origin in said.items() if note], EVIDENCE))


def distances(
    members: Sequence[Snapshot], average: Snapshot, weights: Sequence[float] | None = None
) -> tuple[Member, ...]:
    """How far each member lies from the average: one more pass over everything, one array of each at a time.

    Args:
        average: what ``mean`` gave, or the file that it was written to.
        weights: as they were given to ``mean``.

    Example:
        >>> a, b = (Snapshot.from_arrays({"w": np.float32([v])}) for v in (1, 3))
        >>> [m.distance for m in distances([a, b], mean([a, b]))]
        [0.5, 0.5]
    """
    squares, norm = [0.0] * len(members), 0.0
    for w in filter(averaged, average.weights):
        centre = average[w.path]
        norm += _square(centre, None)
        squares = [s + _square(centre, m[w.path]) for s, m in zip(squares, members, strict=True)]
    shares = normalised(weights, len(members))
    return tuple(
        Member(m.origin, share, math.sqrt(s / norm) if norm else 0.0)
        for m, share, s in zip(members, shares, squares, strict=True)
    )


def _square(centre: Array, value: Array | None) -> float:
    """Squared Euclidean distance from the centre, or the centre's own squared norm."""
    if value is None:
        return math.fsum(float(np.sum(np.square(wide(c)))) for (c,) in blocks(centre))
    return math.fsum(float(np.sum(np.square(wide(v) - wide(c)))) for c, v in blocks(centre, value))
