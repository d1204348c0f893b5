"""A plan in a file: made by ``Plan.to_json``, edited by hand, and checked anew against both ends before it is used."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from polyak.errors import (
    AmbiguousMatch,
    AmbiguousRole,
    DamagedFile,
    DtypeMismatch,
    FileError,
    MissingWeight,
    ShapeMismatch,
    UnexpectedWeight,
    UnknownFormat,
)
from polyak.snapshot import Snapshot, nearest_name
from polyak.transfer.layout_asked import refuse_two_layouts
from polyak.transfer.like import Like
from polyak.transfer.plan import VERSION, Move, Plan, same_sort, structure
from polyak.transfer.shared import without_twins
from polyak.transfer.target import Target
from polyak.weights import Kind, Weight, numpy_dtype

_LARGEST = 1 << 28


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One weight of a stored plan; the fields are those of ``polyak.transfer.plan.Move``."""

    source: str
    target: str
    shape: tuple[int, ...]
    source_dtype: str
    dtype: str
    kind: Kind


class StoredPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A plan as data. It may be edited: leave a move out, give it another source, state another dtype.

    Attributes:
        source, target: what the plan was made for; told, not checked: it may be used for others of the same structure.
        role: which set of the source is moved.
        moves: what goes where.
        skipped, left: weights of either side that stay alone, and random seeds that only one side has.
        finite: NaN and infinity are refused.
        structure: digests of the two structures that the plan was made for, "source" and "target". Where one differs,
            every weight of that side must be named by the plan.
        version: of this form.
    """

    role: str
    moves: tuple[Line, ...]
    skipped: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    finite: bool = True
    source: str = ""
    target: str = ""
    structure: dict[str, str] = {}
    version: int = VERSION

    @classmethod
    def from_json(cls, text: str | bytes, origin: str = "the plan") -> StoredPlan:
        """Read what ``Plan.to_json`` made; ``origin`` names it in errors.

        Raises:
            DamagedFile: it is no plan, or has a field that plans do not have.
            UnknownFormat: it was written by a newer version.
        """
        try:
            version = msgspec.json.decode(text, type=dict[str, Any]).get("version", VERSION)
            if version != VERSION:
                raise UnknownFormat(f"{origin}: expected a plan of version {VERSION}, received version {version!r}")
            return msgspec.json.decode(text, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise DamagedFile(
                f"{origin}: it is no plan: {error}", hint="make one with polyak plan SRC LIKE -o plan.json"
            ) from error

    def checked(self, source: Snapshot, target: Target) -> Plan:
        """The plan for these two ends; nothing is read or written.

        Args:
            source: one set of weights.

        Raises:
            AmbiguousRole: the source is of another role.
            MissingWeight: a name that the source or target does not have, or a weight that the plan does not name.
            ShapeMismatch, DtypeMismatch: a weight is not as planned, or does not fit.
            AmbiguousMatch: one target weight is written twice.
        """
        source = without_twins(source.named_as(line.source for line in self.moves), target)
        refuse_two_layouts(source, target)
        sources, targets = ({w.path: w for w in side} for side in (source.weights, target.weights))
        if source.roles != (self.role,):
            raise AmbiguousRole(
                f"{source.origin}: expected {self.role!r}, as planned, received {', '.join(source.roles)}",
                hint="make the plan anew, or choose the other set",
            )
        self._refuse_twice()
        for line in self.moves:
            _refuse_misfit(line, _held(sources, line.source, source.origin), _held(targets, line.target, target.label))
            if target.fixed and line.dtype != targets[line.target].dtype:
                raise _not_as_planned(line, "dtype", targets[line.target].dtype, line.dtype, target.label)
        self._refuse_unknown(sources, targets, f"{source.origin} nor {target.label}")
        self._refuse_unnamed("source", source.weights, {m.source for m in self.moves}, source.origin)
        self._refuse_unnamed("target", target.weights, {m.target for m in self.moves}, target.label)
        moves = tuple(Move(**msgspec.structs.asdict(line)) for line in self.moves)
        return Plan(source, target, moves, self._alone(targets), self.left, self.finite)

    def like(self, label: str) -> Like:
        """The target's structure as the plan has it, for a file that is to be written."""
        return Like([Weight(m.target, m.shape, m.dtype, m.kind) for m in self.moves], label)

    def _refuse_twice(self) -> None:
        if not self.moves:
            raise MissingWeight("the plan: expected at least one move, received none", hint="make the plan anew")
        name, times = Counter(m.target for m in self.moves).most_common(1)[0]
        if times > 1:
            sources = " and ".join(repr(m.source) for m in self.moves if m.target == name)
            raise AmbiguousMatch(
                f"weight {name!r}: expected one move, received {times}, from {sources}", hint="leave all out but one"
            )

    def _refuse_unknown(self, sources: Mapping[str, Weight], targets: Mapping[str, Weight], where: str) -> None:
        """Names of weights that are left alone must be names of something."""
        for name in (*self.skipped, *self.left):
            if name not in sources and name not in targets:
                near = nearest_name(name, [*targets, *sources])
                raise MissingWeight(
                    f"weight {name!r}: the plan leaves it alone, and neither {where} has it{near}",
                    hint="correct the name, or take it out of the plan",
                )

    def _refuse_unnamed(self, side: str, weights: tuple[Weight, ...], moved: set[str], where: str) -> None:
        """What is in none of the plan's lists was left out by hand, or is new: the structure's digest tells."""
        if self.structure.get(side) == structure(weights):
            return
        for w in weights:
            if w.path not in moved.union(self.skipped, self.left):
                raise UnexpectedWeight(
                    f"weight {w.path!r}: {where} has it, the plan does not name it, and the plan was made for another "
                    f"structure of the {side}",
                    hint='make the plan anew, or name the weight under "skipped"',
                )

    def _alone(self, targets: Iterable[str]) -> tuple[str, ...]:
        """Weights left alone: as listed, and those whose move was left out."""
        moved = {m.target for m in self.moves}
        dropped = (path for path in targets if path not in moved and path not in self.left)
        return tuple(dict.fromkeys((*self.skipped, *dropped)))


def read_plan(path: Path) -> StoredPlan:
    """A plan from a JSON file. Raises FileError, DamagedFile, UnknownFormat."""
    if path.is_file() and path.stat().st_size > _LARGEST:
        raise FileError(f"file {str(path)!r}: expected a plan of at most {_LARGEST:,} bytes, received a larger file")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise FileError(f"file {str(path)!r}: there is nothing at this path") from None
    except OSError as error:
        raise FileError(f"file {str(path)!r}: cannot be read: {error.strerror or error}") from error
    return StoredPlan.from_json(raw.removeprefix(BOM_UTF8), f"file {str(path)!r}")


def _held(weights: Mapping[str, Weight], name: str, where: str) -> Weight:
    if name not in weights:
        raise MissingWeight(
            f"weight {name!r}: the plan names it, {where} does not have it{nearest_name(name, weights)}",
            hint="correct the name in the plan, or make the plan anew",
        )
    return weights[name]


def _refuse_misfit(line: Line, source: Weight, target: Weight) -> None:
    if line.shape != target.shape:
        raise _not_as_planned(line, "shape", target.shape, line.shape, "the target")
    if source.shape != target.shape:
        raise ShapeMismatch(
            f"weight {line.target!r}: expected {target.shape}, received {source.shape} of {line.source!r}",
            hint="give it another source in the plan, or leave the move out",
        )
    if line.source_dtype != source.dtype:
        raise _not_as_planned(line, "source_dtype", source.dtype, line.source_dtype, f"source {line.source!r}")
    if line.kind != target.kind:
        raise _not_as_planned(line, "kind", target.kind.value, line.kind.value, "the target")
    if not _is_dtype(line.dtype):
        raise DtypeMismatch(
            f"weight {line.target!r}: expected the name of a dtype in the plan, received {line.dtype!r}",
            hint="such as float32, float16, bfloat16",
        )
    if line.dtype != source.dtype and not same_sort(source.dtype, line.dtype):
        raise DtypeMismatch(
            f"weight {line.target!r}: the plan makes {line.dtype} of {source.dtype}, which would change what it means",
            hint="cast floating-point to floating-point, integers to integers",
        )


def _is_dtype(name: str) -> bool:
    try:
        return numpy_dtype(name).name == name
    except TypeError:
        return False


def _not_as_planned(line: Line, what: str, real: object, planned: object, where: str) -> ShapeMismatch | DtypeMismatch:
    sort = ShapeMismatch if what == "shape" else DtypeMismatch
    return sort(
        f"weight {line.target!r}: expected {what} {planned}, as planned, received {real} of {where}",
        hint=f'set "{what}" in the plan to what is there, or make the plan anew',
    )
