"""The verbs of files: open, diff, average, convert, doctor. They take any source, live models and averages included."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Unpack, cast

from polyak import dialects, files
from polyak.averaging.parts import Parts, rule_from_json
from polyak.averaging.rules import Mean
from polyak.combine import average as many
from polyak.combine.average import Member, Watch
from polyak.combine.convert import Choosing, Converted, converted, format_of, writer_of
from polyak.combine.difference import Difference, comparable, difference
from polyak.combine.doctor import examine
from polyak.combine.doctor_averages import Start
from polyak.combine.finding import Finding
from polyak.combine.soup import greedy
from polyak.combine.watching import watched
from polyak.contents import Contents
from polyak.errors import AmbiguousRole, FileError, ModelError, RuleError, WeightError
from polyak.files.atomic import Check
from polyak.files.limits import MOST_TENSORS
from polyak.files.naming import path_text
from polyak.files.used import refuse_part
from polyak.frameworks import Average, framework_of, snapshot_of
from polyak.frameworks.finished import raw_of
from polyak.frameworks.growth import tell_left_out
from polyak.frameworks.hand_over import model_target, warn_if_biased
from polyak.manifest import AVERAGE, RAW, Manifest, State, Stored, choose_role
from polyak.snapshot import Snapshot
from polyak.transfer.layout_whole import refuse_lost
from polyak.transfer.layouts import in_layout, layout_of
from polyak.transfer.receipt import Moved, Receipt
from polyak.weights import as_globs, select

PathLike = str | os.PathLike[str]
_READERS = {"keras": "keras_h5", "torch": "torch_pt"}  # of formats whose module only writes


@dataclass(frozen=True, slots=True)
class Writer:
    """How a format is written, and how what was written is read.

    Attributes:
        write: writes a snapshot to a path, and calls the check before the path holds it.
        read: opens what was written, whatever its name is.
        refuse: raises what ``write`` would raise before it reads an array, and writes nothing.
    """

    write: Callable[[Snapshot, PathLike, Check], Manifest]
    read: Callable[[Path], Contents]
    refuse: Callable[[Snapshot, PathLike], None] = lambda snapshot, path: None


def open(path: PathLike) -> Snapshot:
    """Open a file or directory of weights, whatever wrote it. Arrays are read when asked for.

    Raises:
        FileError, UnknownFormat, DamagedFile.
    """
    return dialects.interpret(files.read(Path(path_text(path, "read"))))


def diff(a: Any, b: Any, weights: str | None = None, atol: float = 0.0) -> Difference:
    """What differs between two sources, leaf by leaf; see ``polyak.combine.difference``.

    ``weights`` picks the sets. One file of one set that does not say what it holds is compared with any of the other's.
    """
    a, b = (open(source) if isinstance(source, (str, os.PathLike)) else source for source in (a, b))
    return difference(*comparable(_compared(a, b, weights), _compared(b, a, weights)), atol)


def _compared(source: Any, other: Any, weights: str | None) -> Snapshot:
    """The set that was asked for. Or the only one, where its role is an assumption of polyak's alone, and the other
    source has the set.
    """
    is_role = weights is not None and weights.partition(":")[0] in (RAW, AVERAGE)
    if is_role and _says_nothing(source) and not _says_nothing(other):
        return cast(Snapshot, source)
    return held_by(source, weights)


def _says_nothing(source: Any) -> bool:
    return isinstance(source, Snapshot) and len(source.roles) == 1 and source.manifest.confidence == "unknown"


def average(
    sources: Sequence[Any],
    weights: Sequence[float] | None = None,
    out: PathLike | None = None,
    role: str | None = None,
    watch: Watch | None = None,
) -> Snapshot | Receipt:
    """The mean of checkpoints, computed array by array; see ``polyak.combine.average`` for what has a mean.

    Args:
        sources: paths, snapshots, models or averages of one structure.
        weights: a share for each; equal ones by default. ``role`` says which set of each source is meant.
        out: written there; the end of the name says in which format. Without it the answer is a snapshot: a lazy one
            of files, one that is computed at once where members are live. These are copied first, each in one moment.
    """
    sources = _listed(sources)
    if out is not None:
        refuse_parts(out, sources)
    members = _members(sources, role)
    mean = many.mean([member.still() for member in members], weights, watch)
    if out is not None:
        return written(mean, out, writer(out))
    warn_if_biased(mean)
    return mean.copy() if any(member.live for member in members) else mean


def distances(
    sources: Sequence[Any], mean: Any, weights: Sequence[float] | None = None, role: str | None = None
) -> tuple[Member, ...]:
    """How far each member lies from the mean that ``average`` made of them with these weights."""
    return many.distances(_members(sources, role), source_of(mean, None), weights)


def greedy_soup(
    sources: Sequence[Any], score: Callable[[Snapshot], float], role: str | None = None
) -> tuple[Snapshot, tuple[int, ...]]:
    """The mean of those members that help, and their indices; see ``polyak.combine.soup``.

    Members that are live are copied first: ``score`` may write into them.
    """
    return greedy([member.still() for member in _members(sources, role)], score)


def shared(writer: Writer, source: Any) -> Writer:
    """A live source's writer in this process: of those that train it together the first writes, the others wait.

    Which weights the model of an average has got since, for that no file of the average has them, is said.
    """
    if isinstance(source, (str, os.PathLike, Snapshot)):
        return writer
    model = source.followed() if isinstance(source, Average) else source
    if isinstance(source, Average):
        with suppress(ModelError):  # it has no weights yet
            now = framework_of(model).target(model).weights
            tell_left_out(source.source.weights, now, source.rule, source.label)
    company = framework_of(model).company(model)
    if company.writes:
        return writer

    def wait(held: Snapshot, path: PathLike, check: Check) -> Manifest:
        manifest = company.awaited(held, Path(path), open)
        check(Path(path))
        return manifest

    return Writer(wait, writer.read)


def moment_of(source: Any) -> AbstractContextManager[Any]:
    """A context in which nobody else changes a live source."""
    if isinstance(source, (str, os.PathLike)):
        return nullcontext()
    if isinstance(source, Snapshot):
        return source.moment()
    return (source if isinstance(source, Average) else model_target(source)).moment()


def convert(
    source: Any, target: PathLike, weights: str | None = None, format: str | None = None, **choosing: Unpack[Choosing]
) -> Receipt:
    """Write a source in a format that polyak writes, read it back and compare; see ``polyak.combine.convert``."""
    refuse_parts(target, [source])
    with moment_of(source):
        made = view(source, weights, **choosing)
        return written(made.snapshot, target, shared(writer(target, format), source), made)


def view(source: Any, weights: str | None = None, **choosing: Unpack[Choosing]) -> Converted:
    """What ``convert`` would write; nothing is read."""
    layout, layers = choosing.pop("layout", None), choosing.pop("layers", {})
    held = held_by(source, weights)
    if layout == "torch" and layout_of(held) == "keras":
        include, exclude = choosing.get("include", "*"), choosing.get("exclude", ())
        served = refuse_lost(held, layers, include, exclude)
        held = in_layout(held, layout, layers)
        paths = [w.path for w in held.weights]
        choosing["exclude"] = [g for g in as_globs(exclude) if g not in served or select(paths, g)]
        return converted(held, choosing)
    return converted(in_layout(held, layout, layers), choosing)


def doctor(source: Any, watch: Watch | None = None, called: str | None = None) -> tuple[Finding, ...]:
    """What may be wrong with a file or snapshot, with the evidence and what mends it.

    Args:
        watch: told of each array before it is read: name, how many are done, of how many.
        called: what commands should call the file; its path, where that is given.
    """
    held = held_by(source, None)
    path = called or (str(source) if isinstance(source, (str, os.PathLike)) else "FILE")
    return examine(held if watch is None else watched(held, watch), _argument(path), _start)


def _argument(path: str) -> str:
    """A path as a shell takes it for one: no option, and one word."""
    return shlex.quote(f"./{path}" if path.startswith("-") else path)


def source_of(source: Any, weights: str | None) -> Snapshot:
    """One set of a source: a path, a snapshot, an average or a model."""
    if isinstance(source, (str, os.PathLike)):
        source = open(source)
    if isinstance(source, Snapshot):
        return source.select(role=weights)
    if isinstance(source, Average):
        role = choose_role((AVERAGE,) if weights is None else (RAW, AVERAGE), weights, source.label)
        return source.snapshot() if role == AVERAGE else raw_of(source)
    target = model_target(source)
    role, state = framework_of(source).role(source)
    choose_role((role,), weights, target.label)
    return snapshot_of(target, role, state)


def held_by(source: Any, weights: str | None) -> Snapshot:
    """A source with all of its sets, or with the one that was asked for."""
    held = open(source) if isinstance(source, (str, os.PathLike)) else source
    return held if isinstance(held, Snapshot) and weights is None else source_of(held, weights)


def written(held: Snapshot, path: PathLike, writer: Writer, view: Converted | None = None) -> Receipt:
    """Write, and prove by what is read back before the path holds it: a failure leaves the old file as it was.

    ``view`` knows what was renamed, cast and left out. Says so if a biased average is written.
    """
    _refuse_many(held, path)
    warn_if_biased(held)
    found: dict[str, str] = {}

    def read_back(fresh: Path) -> None:
        """The bytes are read again and compared with their digest."""
        again = dialects.interpret(writer.read(fresh))
        for name, weight in zip(again, again.weights, strict=True):
            again.verify(name)
            found[name] = weight.dtype

    done = writer.write(held, path, read_back)
    sources = {s.name: (s.name, s.weight.dtype) for s in done.weights} if view is None else view.sources
    moved = tuple(_moved(s, sources, found) for s in done.weights)
    count = held.state.count if held.state else None
    skipped = () if view is None else view.skipped
    target, unread = f"file {str(path)!r}", held.manifest.unread
    return Receipt(held.origin, target, "+".join(held.roles), moved, skipped, count=count, unread=unread)


def _moved(stored: Stored, sources: Mapping[str, tuple[str, str]], found: Mapping[str, str]) -> Moved:
    """A weight of a receipt. Keras' files call it by its place, the source and what is read back by its path."""
    name, dtype = sources[stored.name if stored.name in sources else stored.weight.path]
    read = found[stored.name if stored.name in found else stored.weight.path]
    return Moved(name, stored.name, dtype, read, stored.weight.nbytes, stored.digest)


def _members(sources: Sequence[Any], role: str | None) -> list[Snapshot]:
    listed = _listed(sources)
    try:
        return [source_of(s, role) for s in listed]
    except AmbiguousRole as error:
        hint = error.hint and error.hint.replace("weights=", "role=")
        if hint and role is not None and len(listed) > 1:
            hint += "; where members call it otherwise, write it of each: polyak.convert(member, path, weights=...)"
        raise AmbiguousRole(error.message, hint=hint) from None


def _listed(sources: Any) -> list[Any]:
    """One source is a list of one; paths and snapshots are sequences or mappings, too."""
    if isinstance(sources, (str, os.PathLike, Snapshot)):
        return [sources]
    try:
        return list(sources)
    except TypeError:
        raise WeightError(
            f"an average needs members, received {type(sources).__name__}", hint="give a list of paths or snapshots"
        ) from None


def refuse_parts(path: PathLike, sources: Sequence[Any]) -> None:
    """Keep what is read for the sources that are paths. In place of a whole source its result may go.

    Raises:
        FileError: the path is a part of a source, such as one of its shards, or a source of it.
    """
    target = path_text(path)
    for source in (path_text(s, "read") for s in sources if isinstance(s, (str, os.PathLike))):
        if os.path.realpath(target) != os.path.realpath(source):
            refuse_part(target, source)


def writer(path: PathLike, format: str | None = None) -> Writer:
    """What writes a format, or a file of this name."""
    chosen = format_of(path_text(path), format)
    writing = import_module(f"polyak.files.{writer_of(chosen)}")
    reading = import_module(f"polyak.files.{_READERS.get(chosen, writer_of(chosen))}")

    def refuse(snapshot: Snapshot, target: PathLike) -> None:
        _refuse_many(snapshot, target)
        snapshot.manifest.to_json()  # which not every name can be in
        writing.refuse(snapshot, target)

    return Writer(lambda snapshot, target, check: writing.write(snapshot, target, check=check), reading.read, refuse)


def _refuse_many(snapshot: Snapshot, path: PathLike) -> None:
    """Raise FileError for more arrays than polyak would read again."""
    if (count := len(snapshot.manifest.weights)) > MOST_TENSORS:
        raise FileError(
            f"file {str(path)!r}: expected at most {MOST_TENSORS:,} weights in all its roles, received {count:,}",
            hint='write a role at a time, with weights="average"; or some of them at a time, by polyak.convert(source, '
            'path, include="encoder/*")',
        )


def _start(state: State) -> Start | None:
    """What an average still has of its start; the equal mean starts with a value like all others."""
    try:
        rule = rule_from_json(state.rule)
    except RuleError:
        return None
    return None if isinstance(rule, (Parts, Mean)) else Start(rule.immaturity(state.count), rule.origin == "zeros")
