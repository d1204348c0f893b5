"""Plan: which source weight goes to which target weight. A value to read and edit; ``apply`` commits it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal, TypedDict

import msgspec

from polyak.errors import DtypeMismatch, MissingWeight, ShapeMismatch
from polyak.snapshot import Snapshot
from polyak.transfer.commit import commit
from polyak.transfer.match import Key, Pair, Pairing, Rename, apply_rename, nearest, pair, refuse_conflicts, require_complete
from polyak.transfer.receipt import Receipt
from polyak.transfer.target import Target
from polyak.weights import Globs, Kind, Weight, glob_match, numpy_dtype, unmatched_globs


class Asked(TypedDict, total=False):
    """What a caller may ask of a transfer; everything else is refused.

    Attributes:
        rename: source name to target name: a mapping with globs (``{"enc/*": "encoder/*"}``) or a function.
        include: globs of the target weights to move.
        exclude: globs of weights to leave alone, on either side.
        cast: "target" allows a narrower dtype where the target has one.
        by: the evidence to pair by, where the kinds disagree.
        nonfinite: "allow" moves NaN and infinity, too.
    """

    rename: Rename | None
    include: Globs
    exclude: Globs
    cast: Literal["target"] | None
    by: Key | None
    nonfinite: Literal["refuse", "allow"]


@dataclass(frozen=True, slots=True)
class Move:
    """One weight of a plan."""

    source: str
    target: str
    shape: tuple[int, ...]
    source_dtype: str
    dtype: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked transfer that has not been done yet.

    Attributes:
        moves: what goes where.
        skipped: target weights that the caller asked to leave alone.
        left: random seeds that only one side has.
    """

    source: Snapshot
    target: Target
    moves: tuple[Move, ...]
    skipped: tuple[str, ...]
    left: tuple[str, ...]
    finite: bool

    @property
    def role(self) -> str:
        return self.source.roles[0]

    def apply(self) -> Receipt:
        """Write, read back, compare. All or nothing.

        Raises:
            TransferError: a write failed or did not arrive; the target is as it was.
        """
        moved = commit(self.source, self.target, [(m.source, m.target, m.dtype) for m in self.moves], self.finite)
        state = self.source.state
        return Receipt(
            source=self.source.origin,
            target=self.target.label,
            role=self.role,
            moved=moved,
            skipped=self.skipped,
            left=self.left,
            count=None if state is None else state.count,
        )

    def without(self, globs: Globs) -> Plan:
        """The plan less the moves whose target matches."""
        dropped = [m.target for m in self.moves if glob_match(m.target, globs)]
        return replace(
            self,
            moves=tuple(m for m in self.moves if m.target not in set(dropped)),
            skipped=(*self.skipped, *dropped),
        )

    def to_json(self) -> str:
        """The plan as data: source, target, role, moves, skipped, left."""
        body = {
            "source": self.source.origin,
            "target": self.target.label,
            "role": self.role,
            "moves": [asdict(m) for m in self.moves],
            "skipped": self.skipped,
            "left": self.left,
        }
        return msgspec.json.encode(body).decode()

    def __str__(self) -> str:
        head = f"{self.role} weights: {self.source.origin} -> {self.target.label}"
        lines = [f"  {m.source} -> {m.target}  {m.shape} {_dtypes(m)}" for m in self.moves]
        return "\n".join([head, *lines, *(f"  skipped: {path}" for path in self.skipped)])


def make_plan(source: Snapshot, target: Target, asked: Asked) -> Plan:
    """Pair all weights and check shapes and dtypes; nothing is read or written.

    ``source`` holds one role.

    Raises:
        MissingWeight, UnexpectedWeight: a weight without partner.
        ShapeMismatch, DtypeMismatch: partners that do not fit.
        AmbiguousMatch: two kinds of evidence disagree.
    """
    include, exclude = asked.get("include", "*"), asked.get("exclude", ())
    rename = asked.get("rename")
    _refuse_unmatched((include, exclude), source.weights, target.weights, rename)
    wanted = [w for w in target.weights if glob_match(w.path, include) and not glob_match(w.path, exclude)]
    offered = [w for w in source.weights if _offered(w, include, exclude, rename)]
    pairing = pair(offered, wanted, asked.get("by") or "path", rename)
    require_complete(pairing, source.origin, target.label)
    if asked.get("by") is None:
        refuse_conflicts(pairing, source.weights, target.weights, source.origin)
    for p in pairing.pairs:
        _refuse_shape(p, source, target)
        _refuse_dtype(p, source, asked.get("cast"))
    return Plan(
        source,
        target,
        tuple(_move(p) for p in pairing.pairs),
        tuple(w.path for w in target.weights if w not in wanted),
        _left(pairing),
        finite=asked.get("nonfinite", "refuse") == "refuse",
    )


def _offered(w: Weight, include: Globs, exclude: Globs, rename: Rename | None) -> bool:
    names = (w.path, apply_rename(w.path, rename))
    return any(glob_match(n, include) for n in names) and not any(glob_match(n, exclude) for n in names)


def _move(p: Pair) -> Move:
    return Move(p.source.path, p.target.path, p.target.shape, p.source.dtype, p.target.dtype, p.target.kind)


def _left(pairing: Pairing) -> tuple[str, ...]:
    return tuple(w.path for w in (*pairing.missing, *pairing.unexpected))


def _refuse_unmatched(globs: tuple[Globs, Globs], source: tuple[Weight, ...], target: tuple[Weight, ...], rename: Rename | None) -> None:
    paths = [w.path for w in target] + [w.path for w in source] + [apply_rename(w.path, rename) for w in source]
    for name, given in zip(("include", "exclude"), globs, strict=True):
        for glob in unmatched_globs(paths, given):
            if paths:
                raise MissingWeight(f"{name}={glob!r} matches no weight", hint=f"the paths look like {paths[0]!r}")


def _refuse_shape(p: Pair, source: Snapshot, target: Target) -> None:
    if p.source.shape == p.target.shape:
        return
    others = [w for w in source.weights if w.shape == p.target.shape and w.path != p.source.path]
    near = nearest(p.target, others)
    tail = f"; nearest: {near.path!r}" if near else ""
    raise ShapeMismatch(
        f"weight {p.target.path!r}: expected {p.target.shape}, received {p.source.shape} from {source.origin}{tail}",
        hint=f'skip it with exclude="{p.target.path}"',
    )


def _refuse_dtype(p: Pair, source: Snapshot, cast: str | None) -> None:
    native = p.source.evidence.dtype if p.source.evidence else p.source.dtype
    if p.target.dtype in (p.source.dtype, native) or _widens(p.source.dtype, p.target.dtype):
        return
    both_floating = p.source.floating and p.target.floating
    if cast == "target" and both_floating:
        return
    raise DtypeMismatch(
        f"weight {p.target.path!r}: expected {p.target.dtype}, received {p.source.dtype} from {source.origin}",
        hint='allow the narrower dtype with cast="target"' if both_floating else f'skip it with exclude="{p.target.path}"',
    )


def _widens(source: str, target: str) -> bool:
    """Whether every value of one floating dtype, or one integer dtype, exists in the other."""
    a, b = numpy_dtype(source), numpy_dtype(target)
    if a.kind in "iu" and b.kind in "iu":
        return bool(b.type is not a.type and _can_cast_ints(a.itemsize, a.kind, b.itemsize, b.kind))
    exact = {("float16", "float32"), ("bfloat16", "float32"), ("float16", "float64"), ("bfloat16", "float64"), ("float32", "float64")}
    return (source, target) in exact


def _can_cast_ints(a_size: int, a_kind: str, b_size: int, b_kind: str) -> bool:
    return (a_kind == b_kind and b_size >= a_size) or (a_kind == "u" and b_kind == "i" and b_size > a_size)


def _dtypes(m: Move) -> str:
    return m.dtype if m.source_dtype == m.dtype else f"{m.source_dtype} -> {m.dtype}"
