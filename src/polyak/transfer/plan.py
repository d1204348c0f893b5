"""Plan: which source weight goes to which target weight. A value to read and edit; ``apply`` commits it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypedDict, cast, get_args

import msgspec
import xxhash

from polyak.errors import DtypeMismatch, ShapeMismatch, WeightError, argument
from polyak.manifest import refuse_halves
from polyak.renaming import Rename, apply_rename, refuse_unused_renames
from polyak.snapshot import Snapshot, refuse_unmatched
from polyak.transfer import match, names, places
from polyak.transfer.commit import commit
from polyak.transfer.complete import require_complete
from polyak.transfer.layout_asked import change, refuse_unsaid
from polyak.transfer.match import Key, Pair, Pairing
from polyak.transfer.nearest import nearest
from polyak.transfer.receipt import Receipt
from polyak.transfer.shared import without_twins
from polyak.transfer.target import Target
from polyak.weights import Globs, Kind, Weight, as_globs, glob_match, is_floating, numpy_dtype, widens


class Asked(TypedDict, total=False):
    """What a caller may ask of a transfer; everything else is refused.

    Attributes:
        rename: source name to target name: a mapping of globs (``{"enc/*": "encoder/*"}``) or of compiled regular
            expressions, or a function; see ``polyak.renaming``.
        include: globs of the target weights to move.
        exclude: globs of weights to leave alone, by the target's names, which are the new ones of the source; a glob of
            none of these is of the source's own names.
        cast: "target" allows a narrower dtype where the target has one and the values are within its range.
        by: the evidence to pair by, where the kinds disagree; renamed weights are paired by their new name.
        nonfinite: "allow" moves NaN and infinity, too.
        layout: the layout that the source is in, "keras" or "torch", where it does not say so itself.
        layers: between the two layouts, the Keras class of layers by glob where it is not known, or "same" for arrays
            that lie alike on both sides; ``rename`` and ``by="position"`` are of layers there.
    """

    rename: Rename | None
    include: Globs
    exclude: Globs
    cast: Literal["target"] | None
    by: Key | None
    nonfinite: Literal["refuse", "allow"]
    layout: Literal["torch", "keras"] | None
    layers: Mapping[str, str]


VERSION = 1  # of a plan as data

_CHOICES: dict[str, tuple[Any, ...]] = {
    "cast": ("target", None),
    "by": (*get_args(Key), None),
    "nonfinite": ("refuse", "allow"),
    "layout": ("torch", "keras", None),
}


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
        source: the weights of one role; their values are read by ``apply``.
        target: what is written.
        moves: what goes where.
        skipped: weights of either side that the caller asked to leave alone.
        left: random seeds, and counters of PyTorch, that only one side has.
        finite: NaN and infinity are refused.
        turned: whether the source is a view of one that lies in another layout than the target.
    """

    source: Snapshot
    target: Target
    moves: tuple[Move, ...]
    skipped: tuple[str, ...]
    left: tuple[str, ...]
    finite: bool
    turned: bool = False

    @property
    def role(self) -> str:
        return self.source.roles[0]

    def apply(self) -> Receipt:
        """Write, read back, compare. All or nothing: whatever is raised, the target is as it was.

        An average takes over the rule and counts of the average that it gets values of, and starts to count anew
        when it gets raw weights.

        Raises:
            NonFinite, DtypeMismatch: a value must not be written.
            TransferError: a weight did not arrive; or it could not be put back, and the message says which.
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
        """The plan less the moves whose target matches. Raises MissingWeight if a glob matches none."""
        refuse_unmatched([m.target for m in self.moves], (), globs, f"the plan for {self.target.label}")
        kept = tuple(m for m in self.moves if not glob_match(m.target, globs))
        dropped = (m.target for m in self.moves if glob_match(m.target, globs))
        return replace(self, moves=kept, skipped=(*self.skipped, *dropped))

    def to_json(self) -> str:
        """The plan as data, to be edited and applied later: see ``polyak.read_plan``.

        Raises:
            WeightError: the two sides lie in different layouts; data says which array goes where, not how it is turned.
            UnexpectedWeight: a name is none in Unicode.
        """
        if self.turned:
            raise _not_data(self)
        refuse_halves([*(name for m in self.moves for name in (m.source, m.target)), *self.skipped, *self.left])
        body = {
            "version": VERSION,
            "source": self.source.origin,
            "target": self.target.label,
            "role": self.role,
            "moves": [asdict(m) for m in self.moves],
            "skipped": self.skipped,
            "left": self.left,
            "finite": self.finite,
            "structure": {"source": structure(self.source.weights), "target": structure(self.target.weights)},
        }
        return msgspec.json.encode(body).decode()

    def __str__(self) -> str:
        head = f"{self.role} weights: {self.source.origin} -> {self.target.label}"
        moves = (f"  {_names(m)}  {m.shape} {_dtypes(m)}" for m in self.moves)
        skipped = (f"  skipped as asked: {path}" for path in self.skipped)
        left = (f"  only on one side: {path}" for path in self.left)
        return "\n".join([head, *moves, *skipped, *left])


def make_plan(source: Snapshot, target: Target, asked: Asked) -> Plan:
    """Pair all weights and check shapes and dtypes; no value is read or written.

    ``source`` holds one role.

    Raises:
        MissingWeight, UnexpectedWeight: a weight without partner, or a name or glob that none has.
        ShapeMismatch, DtypeMismatch: partners that do not fit.
        AmbiguousMatch: two kinds of evidence disagree, or two sources have one name; between the layouts of Keras and
            PyTorch, layers whose rule is not known.
    """
    _refuse_unknown(asked)
    source = without_twins(_named_as(source, target, asked), target, asked.get("exclude", ()))
    changed = change(source, target, asked)
    if changed is None:
        plan = _paired(source, target, asked)
        moves = [(m.source, m.target) for m in plan.moves]
        refuse_unsaid(moves, source, target, asked.get("layout"))
        return plan
    plan = _paired(changed.source, target, cast(Asked, changed.asked))
    skipped = tuple(path for path in plan.skipped if path not in changed.alone)
    return replace(plan, skipped=skipped, left=(*plan.left, *changed.alone), turned=True)


def _named_as(source: Snapshot, target: Target, asked: Asked) -> Snapshot:
    """The source under the target's own names, where its writer wraps the model as the target does."""
    if asked.get("rename") is not None or asked.get("by") is not None:
        return source
    wanted = (w for w in target.weights if w.kind is not Kind.SEED)
    return source.named_as(w.path for w in wanted if _asked_for(w.path, asked))


def _paired(source: Snapshot, target: Target, asked: Asked) -> Plan:
    """The plan within one layout."""
    _refuse_typos(source, target, asked)
    offered = _offered(source, target, asked)
    natural = match.natural_key(offered)
    # Where numbers are given names, those without one are nobody's.
    by = asked.get("by") or ("path" if natural == "position" and asked.get("rename") else natural)
    numbers = by == natural == "position"
    wanted = match.numbered(source.weights, target.weights, source.origin) if numbers else target.weights
    if not asked.get("rename"):
        match.refuse_untold(offered, by, source.origin)
        match.refuse_untold(wanted, by, target.label)
    found = match.pair(offered, wanted, by, asked.get("rename"))
    pairing = _wanted(found, asked)
    if by == "path" and not asked.get("by") and not asked.get("rename") and _lacks(pairing):
        found = _by_other_names(found, offered, target, source, asked)
        pairing = _wanted(found, asked)
    if asked.get("by") is None:
        match.refuse_conflicts(pairing, source.weights, target.weights, source.origin)
    if asked.get("by") is None and by in ("saved", "position"):
        match.refuse_other_names(pairing, source.weights, source.origin, by)
    require_complete(_without_spares(pairing, source), source.origin, target.label, source.manifest.note)
    for p in pairing.pairs:
        if by == "position":
            match.refuse_other_local(p, source.origin)
        _refuse_shape(p, source)
        _refuse_dtype(p, source, asked.get("cast"))
    return Plan(
        source,
        target,
        tuple(_move(p) for p in pairing.pairs),
        _skipped(source, target, found, pairing),
        tuple(dict.fromkeys(w.path for w in (*pairing.missing, *pairing.unexpected))),
        finite=asked.get("nonfinite", "refuse") == "refuse",
    )


def _offered(source: Snapshot, target: Target, asked: Asked) -> list[Weight]:
    """What ``exclude`` leaves of the source. Its globs mean names of the target, which are the new ones here; a glob
    of none of these means the names that the source itself has.
    """
    paths = [t.path for t in target.weights]
    own = [glob for glob in as_globs(asked.get("exclude", ())) if not any(glob_match(path, glob) for path in paths)]
    return [w for w in source.weights if not _excluded(_new_name(w, asked), asked) and not glob_match(w.path, own)]


def _lacks(pairing: Pairing) -> bool:
    return any(w.kind is not Kind.SEED for w in (*pairing.missing, *pairing.unexpected))


def _by_other_names(found: Pairing, offered: list[Weight], target: Target, source: Snapshot, asked: Asked) -> Pairing:
    """The pairs by places in TensorFlow's graph, or by names that another tool gave, where they are a model's in one
    way only; else what was found.
    """
    wanted = [w for w in target.weights if _asked_for(w.path, asked)]
    if not names.foreign(offered):
        return found
    items = [source.items_by_path[w.path] for w in offered]
    placed = any(i.places for i in items)
    pairs = places.renamed(items, wanted, target.places(), source.origin) if placed else None
    renamed = pairs or names.renamed(offered, wanted, source.origin)
    if renamed is None:
        return found
    return match.pair(offered, target.weights, "path", _function(renamed))


def _function(renamed: Mapping[str, str]) -> Callable[[str], str]:
    """Names of many weights as a function: a mapping would be gone through for each, as one of globs."""

    def new_name(path: str) -> str:
        return renamed.get(path, path)

    return new_name


def _refuse_unknown(asked: Asked) -> None:
    for name, value in asked.items():
        if name not in Asked.__optional_keys__:
            raise TypeError(f"a transfer has no argument {name!r}; it has {', '.join(sorted(Asked.__optional_keys__))}")
        if name in _CHOICES and value not in _CHOICES[name]:
            listed = ", ".join(repr(choice) for choice in _CHOICES[name])
            raise WeightError(f"{name}={value!r}: expected one of {listed}")


def _refuse_typos(source: Snapshot, target: Target, asked: Asked) -> None:
    refuse_unused_renames((w.path for w in source.weights), asked.get("rename"), source.origin)
    paths = [w.path for w in target.weights] + [name for w in source.weights for name in (_new_name(w, asked), w.path)]
    where = f"{target.label} and {source.origin}"
    refuse_unmatched(paths, asked.get("include", "*"), asked.get("exclude", ()), where)


def _new_name(w: Weight, asked: Asked) -> str:
    return apply_rename(w.path, asked.get("rename"))


def _excluded(path: str, asked: Asked) -> bool:
    return glob_match(path, asked.get("exclude", ()))


def _asked_for(path: str, asked: Asked) -> bool:
    return glob_match(path, asked.get("include", "*")) and not _excluded(path, asked)


def _wanted(found: Pairing, asked: Asked) -> Pairing:
    """What the caller asks for. Targets decide where there is a pair, names of the source where there is none."""
    return replace(
        found,
        pairs=tuple(p for p in found.pairs if _asked_for(p.target.path, asked)),
        missing=tuple(t for t in found.missing if _asked_for(t.path, asked)),
        unexpected=tuple(
            s for s in found.unexpected if _asked_for(s.path, asked) or _asked_for(_new_name(s, asked), asked)
        ),
    )


def _without_spares(pairing: Pairing, source: Snapshot) -> Pairing:
    """What an optimizer updates beside the model that is asked for is nobody's, where nothing is missing."""
    if pairing.missing:
        return pairing
    kept = [w for w in pairing.unexpected if not places.is_spare(source.items_by_path[w.path])]
    return replace(pairing, unexpected=tuple(kept))


def _skipped(source: Snapshot, target: Target, found: Pairing, pairing: Pairing) -> tuple[str, ...]:
    """Target weights that are not moved, then source weights that no target weight stands for."""
    done = {p.target.path for p in pairing.pairs} | {t.path for t in pairing.missing}
    ours = [t.path for t in target.weights if t.path not in done]
    used = {p.source.path for p in found.pairs} | {s.path for s in pairing.unexpected}
    theirs = [s.path for s in source.weights if s.path not in used]
    return tuple(dict.fromkeys((*ours, *theirs)))


def _move(p: Pair) -> Move:
    return Move(p.source.path, p.target.path, p.target.shape, p.source.dtype, p.target.dtype, p.target.kind)


def _refuse_shape(p: Pair, source: Snapshot) -> None:
    if p.source.shape == p.target.shape:
        return
    others = [w for w in source.weights if w.shape == p.target.shape and w.path != p.source.path]
    near = nearest(p.target, others)
    tail = f"; nearest: {near.path!r}" if near else ""
    raise ShapeMismatch(
        f"weight {p.target.path!r}: expected {p.target.shape}, received {p.source.shape} from {source.origin}{tail}",
        hint=_skip(p),
    )


def _skip(p: Pair) -> str:
    return f"skip it with {argument('exclude', p.target.path)}"


def _refuse_dtype(p: Pair, source: Snapshot, cast: str | None) -> None:
    """A shadow is wider than the weight that it follows; it goes back into that weight's own dtype unasked."""
    native = p.source.evidence.dtype if p.source.evidence else p.source.dtype
    if p.target.dtype in (p.source.dtype, native) or widens(p.source.dtype, p.target.dtype):
        return
    castable = same_sort(p.source.dtype, p.target.dtype)
    # Each backend of Keras keeps seeds in integers of its own; what does not fit is refused when it is written.
    if castable and (cast == "target" or p.source.kind is p.target.kind is Kind.SEED):
        return
    raise DtypeMismatch(
        f"weight {p.target.path!r}: expected {p.target.dtype}, received {p.source.dtype} from {source.origin}",
        hint='allow the narrower dtype with cast="target"' if castable else _skip(p),
    )


def same_sort(a: str, b: str) -> bool:
    """Whether a cast from one dtype to the other keeps what values mean: both floating-point, or both integers."""
    return _sort(a) == _sort(b) != "other"


def _sort(dtype: str) -> str:
    if is_floating(dtype):
        return "floating"
    return "integer" if numpy_dtype(dtype).kind in "iu" else "other"


def structure(weights: Iterable[Weight]) -> str:
    """A digest of paths, shapes and dtypes, in order of the paths.

    Example:
        >>> a, b = (Weight(path, (2,), "float32", Kind.TRAINABLE) for path in "ab")
        >>> structure([a, b]) == structure([b, a]) != structure([a])
        True
    """
    lines = sorted(f"{w.path}\0{w.shape}\0{w.dtype}" for w in weights)
    return xxhash.xxh3_128_hexdigest("\n".join(lines).encode(errors="surrogatepass"))


def _not_data(plan: Plan) -> WeightError:
    return WeightError(
        f"the plan: expected two sides in one layout to store it, received {plan.source.origin} and "
        f"{plan.target.label}",
        hint="apply it as it is; or write the source in the target's layout first, with polyak.transfer(source, "
        '"as_target.safetensors", like=target), and plan from that file',
    )


def _names(m: Move) -> str:
    return m.target if m.source == m.target else f"{m.source} -> {m.target}"


def _dtypes(m: Move) -> str:
    return m.dtype if m.source_dtype == m.dtype else f"{m.source_dtype} -> {m.dtype}"
