"""The verbs: track, plan, transfer, save, open. They bind live models, files and rules; each is a few lines."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, cast

from polyak import dialects, files
from polyak.averaging.parse import decay_from
from polyak.averaging.parts import Parts, as_rule, rule_from_json
from polyak.averaging.rules import EMA as EMARule
from polyak.averaging.rules import Mean, Rule
from polyak.averaging.rules import PowerEMA as PowerRule
from polyak.averaging.wrappers import Delayed, Every
from polyak.combine import average as many
from polyak.combine.average import Member, Watch
from polyak.combine.convert import Choosing, Converted, converted, format_of
from polyak.combine.difference import Difference, comparable, difference
from polyak.combine.doctor import Finding, examine
from polyak.combine.soup import greedy
from polyak.errors import AmbiguousRole, FileError, RuleError
from polyak.frameworks import Average, framework_of, snapshot_of
from polyak.frameworks.hand_over import model_target, plan_into_model
from polyak.manifest import AVERAGE, RAW, Manifest, State, choose_role
from polyak.snapshot import Snapshot
from polyak.transfer.plan import Asked, Plan, make_plan
from polyak.transfer.receipt import Moved, Receipt
from polyak.transfer.target import Target
from polyak.weights import Kind

RuleLike = Rule | str | Parts | Mapping[str, Rule | str | None]
PathLike = str | os.PathLike[str]
Write = Callable[[Snapshot, PathLike], Manifest]
_NOT_WRITTEN = (".h5", ".keras", ".pt", ".pth", ".ckpt", ".bin", ".index", ".json", ".npy")


class Following(TypedDict, total=False):
    """How to follow a model.

    Attributes:
        every: move at every k-th update only; the decay is corrected for the interval.
        after: be a plain copy of the weights for so many updates first.
        kinds: kinds of weights by glob, where the default is not meant: ``{"*/moving_*": "trainable"}``
            averages the moving statistics too.
    """

    every: int
    after: int
    kinds: Mapping[str, str]


class Asking(Asked, total=False):
    """What a caller may ask of a transfer; see ``polyak.transfer.plan.Asked``.

    Attributes:
        weights: which set of the source to move: "raw", "average" or "average:NAME".
        sample: for a target that is not built yet: its input shape as a tuple, or a sample input.
    """

    weights: str | None
    sample: Any


def track(model: Any, rule: RuleLike, **following: Unpack[Following]) -> Average:
    """Follow a model's weights with an average.

    Args:
        model: a Keras 3 model or layer, a tf.Module, or a tf_keras model. It may be unbuilt if the rule's first
            update copies.
        rule: a rule, its text ("ema:0.999"), or a mapping of globs to those; None leaves a part out.

    Raises:
        ModelError: the object is no model, or has no weights.
        RuleError: the rule is not valid, or a glob matches nothing.

    Example:
        >>> import tensorflow as tf
        >>> module = tf.Module(); module.w = tf.Variable([1.0])
        >>> ema = track(module, "ema:0.5,start=copy")
        >>> for value in (0.8, 0.6):
        ...     _ = module.w.assign([value]); ema.update()
        >>> ema.values()["w"].round(6).tolist(), ema.count
        ([0.699999988079071], 2)
    """
    _refuse_unknown(following)
    kinds = {glob: _kind(glob, kind) for glob, kind in following.get("kinds", {}).items()}
    return framework_of(model).track(model, _timed(as_rule(rule), following), kinds)


def EMA(
    model: Any,
    decay: float | None = None,
    *,
    half_life: float | None = None,
    tau: float | None = None,
    start: Literal["warm", "debiased", "copy", "initial", "zero"] = "warm",
    **following: Unpack[Following],
) -> Average:
    """Follow a model with an exponential moving average.

    Args:
        decay, half_life, tau: exactly one: the share kept at each update, the updates after which half is forgotten,
            or 1 - decay.
        start: how the average begins; the default is right at any run length (see docs/decisions).

    Raises:
        RuleError: not exactly one was given, or the value probably means another.
    """
    return track(model, EMARule(decay_from(decay=decay, half_life=half_life, tau=tau), start), **following)


def SWA(model: Any, **following: Unpack[Following]) -> Average:
    """Follow a model with the equal mean of its weights (stochastic weight averaging, arXiv 1803.05407)."""
    return track(model, Mean(), **following)


def PowerEMA(model: Any, sigma_rel: float, **following: Unpack[Following]) -> Average:
    """Follow a model with a power-function average of relative width ``sigma_rel`` (EDM2, arXiv 2312.02696)."""
    return track(model, PowerRule.from_sigma_rel(sigma_rel), **following)


def snapshot(source: Any, weights: str | None = None) -> Snapshot:
    """An independent copy of what a model, an average or a file holds."""
    return _source(source, weights).copy()


def open(path: PathLike) -> Snapshot:
    """Open a file or directory of weights, whatever wrote it. Arrays are read when asked for.

    Raises:
        FileError, UnknownFormat, DamagedFile.
    """
    return dialects.interpret(files.read(Path(path)))


def save(source: Any, path: PathLike, weights: str | None = None) -> Receipt:
    """Write a model, an average or a snapshot into one self-describing file, read it back and compare.

    The file is a safetensors file; a name that ends in ``.weights.h5`` makes one that plain Keras loads, too, and
    ``.npz`` one that NumPy loads.

    Args:
        weights: "raw", "average", or "both" of an average and its model; all that the source has by default,
            which for a live average is the average.

    Raises:
        FileError: the path cannot be written, or its name promises a format that polyak does not write.
    """
    if weights == "both":
        held = _both(source)
    else:
        held = (source if isinstance(source, Snapshot) and weights is None else _source(source, weights)).copy()
    return _written(held, path, _saver(os.fspath(path)))


def plan(source: Any, target: Any, **asking: Unpack[Asking]) -> Plan:
    """Pair and check everything between any source and a live model or average; nothing is written.

    Args:
        source: a model, an average, a snapshot, or the path of a file.
        target: a model or an average.

    Raises:
        AmbiguousRole: the source holds several sets; say ``weights=``.
        MissingWeight, UnexpectedWeight, ShapeMismatch, DtypeMismatch, AmbiguousMatch: the two do not fit.
        UnbuiltModel: the target has no weights yet; give ``sample=``.
    """
    weights, sample = asking.pop("weights", None), asking.pop("sample", None)
    held = _source(source, weights)
    asked = cast(Asked, asking)
    if isinstance(target, Average):
        return make_plan(held, target.target, asked)
    return plan_into_model(held, target, asked, sample)


def transfer(source: Any, target: Any, **asking: Unpack[Asking]) -> Receipt:
    """Move weights between any two of model, average and file, all or nothing, and prove that they arrived.

    Averaged weights go into a model; the whole state (values, counts, rule) goes into another average.
    Takes what ``plan`` takes; a path as target is written as a safetensors file.
    """
    if isinstance(target, (str, os.PathLike)):
        if asking.keys() - {"weights"}:
            raise FileError(
                f"file {str(target)!r}: expected weights= alone, received {sorted(asking)}",
                hint="choose with polyak.snapshot(source).select(include=..., exclude=...), then save that",
            )
        return save(source, target, asking.get("weights"))
    return plan(source, target, **asking).apply()


def diff(a: Any, b: Any, weights: str | None = None, atol: float = 0.0) -> Difference:
    """What differs between two sources, leaf by leaf; see ``polyak.combine.difference``. ``weights`` picks the sets."""
    return difference(*comparable(_held(a, weights), _held(b, weights)), atol)


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
        out: written there; the end of the name says in which format. Without it the answer is a lazy snapshot.
    """
    mean = many.mean(_members(sources, role), weights, watch)
    return mean if out is None else _written(mean, out, _writer(out))


def distances(
    sources: Sequence[Any], mean: Any, weights: Sequence[float] | None = None, role: str | None = None
) -> tuple[Member, ...]:
    """How far each member lies from the mean that ``average`` made of them with these weights."""
    return many.distances(_members(sources, role), _source(mean, None), weights)


def greedy_soup(
    sources: Sequence[Any], score: Callable[[Snapshot], float], role: str | None = None
) -> tuple[Snapshot, tuple[int, ...]]:
    """The mean of those members that help, and their indices; see ``polyak.combine.soup``."""
    return greedy(_members(sources, role), score)


def convert(
    source: Any, target: PathLike, weights: str | None = None, format: str | None = None, **choosing: Unpack[Choosing]
) -> Receipt:
    """Write a source in a format that polyak writes, read it back and compare; see ``polyak.combine.convert``."""
    write, made = _writer(target, format), view(source, weights, **choosing)
    return _written(made.snapshot, target, write, made)


def view(source: Any, weights: str | None = None, **choosing: Unpack[Choosing]) -> Converted:
    """What ``convert`` would write; nothing is read."""
    return converted(_held(source, weights), choosing)


def doctor(source: Any) -> tuple[Finding, ...]:
    """What may be wrong with a file or snapshot, with the evidence and what mends it."""
    return examine(_held(source, None), str(source) if isinstance(source, (str, os.PathLike)) else "FILE", _immaturity)


def label(source: Any) -> str:
    """What receipts call a source."""
    if isinstance(source, Snapshot):
        return source.origin
    if isinstance(source, Average):
        return source.label
    return model_target(source).label


def _source(source: Any, weights: str | None) -> Snapshot:
    if isinstance(source, (str, os.PathLike)):
        source = open(source)
    if isinstance(source, Snapshot):
        return source.select(role=weights)
    if isinstance(source, Average):
        role = choose_role((AVERAGE,) if weights is None else (RAW, AVERAGE), weights, source.label)
        return source.snapshot() if role == AVERAGE else snapshot_of(source.source, RAW)
    target = model_target(source)
    role, state = framework_of(source).role(source)
    choose_role((role,), weights, target.label)
    return snapshot_of(target, role, state)


def _held(source: Any, weights: str | None) -> Snapshot:
    """A source with all of its sets, or with the one that was asked for."""
    held = open(source) if isinstance(source, (str, os.PathLike)) else source
    return held if isinstance(held, Snapshot) and weights is None else _source(held, weights)


def _members(sources: Sequence[Any], role: str | None) -> list[Snapshot]:
    one = isinstance(sources, (str, os.PathLike, Snapshot))  # these are sequences or mappings, too
    try:
        return [_source(s, role) for s in ([sources] if one else sources)]
    except AmbiguousRole as error:
        raise AmbiguousRole(error.message, hint=error.hint and error.hint.replace("weights=", "role=")) from None


def _saver(path: str) -> Write:
    """What writes a file of this name. A name that promises the format of another tool is refused."""
    for end in _NOT_WRITTEN:
        if path.endswith(end) and not path.endswith(".weights.h5"):
            raise FileError(f"file {path!r}: polyak does not write {end} files", hint="end the name in .safetensors")
    name = "keras_write" if path.endswith(".weights.h5") else "npz" if path.endswith(".npz") else "safetensors"
    write: Write = import_module(f"polyak.files.{name}").write
    return write


def _writer(path: PathLike, format: str | None = None) -> Write:
    name = format_of(os.fspath(path), format).replace("-", "_")
    write: Write = import_module(f"polyak.files.{name}").write
    return write


def _written(held: Snapshot, path: PathLike, write: Write, view: Converted | None = None) -> Receipt:
    """Write, and prove by what is read back. ``view`` knows what was renamed, cast and left out."""
    written, read_back = write(held, path), open(path)
    sources = {s.name: (s.name, s.weight.dtype) for s in written.weights} if view is None else view.sources
    found = {s.name: read_back[s.name if s.name in read_back else s.weight.path] for s in written.weights}
    moved = tuple(
        Moved(sources[s.name][0], s.name, sources[s.name][1], found[s.name].dtype.name, s.weight.nbytes, s.digest)
        for s in written.weights
    )
    count = held.state.count if held.state else None
    skipped = () if view is None else view.skipped
    return Receipt(held.origin, f"file {str(path)!r}", "+".join(held.roles), moved, skipped, count=count)


def _immaturity(state: State) -> float | None:
    rule = rule_from_json(state.rule)
    # The equal mean starts with a value like all others; several rules have no one share.
    return None if isinstance(rule, (Parts, Mean)) else rule.immaturity(state.count)


def _both(source: Any) -> Snapshot:
    sets = [_source(source, RAW).copy(), _source(source, AVERAGE).copy()]
    states = {s.roles[0]: s.state for s in sets}
    return Snapshot((i for s in sets for i in s.items_by_path.values()), states, sets[1].origin)


def _refuse_unknown(following: Following) -> None:
    known = sorted(Following.__optional_keys__)
    for name in following:
        if name not in known:
            raise TypeError(f"an average has no argument {name!r}; it has {', '.join(known)}")


def _kind(glob: str, kind: str) -> Kind:
    if kind not in {k.value for k in Kind}:
        raise RuleError(f"kinds={{{glob!r}: {kind!r}}}: expected one of {', '.join(k.value for k in Kind)}")
    return Kind(kind)


def _timed(rule: Rule | Parts, following: Following) -> Rule | Parts:
    every, after = following.get("every", 1), following.get("after", 0)
    if isinstance(rule, Parts):
        return Parts(tuple((g, None if r is None else _timed_one(r, every, after)) for g, r in rule.entries))
    return _timed_one(rule, every, after)


def _timed_one(rule: Rule, every: int, after: int) -> Rule:
    paced = rule if every == 1 else Every(rule, every)
    return paced if after == 0 else Delayed(paced, after)


__all__ = ["EMA", "SWA", "PowerEMA", "Target", "open", "plan", "save", "snapshot", "track", "transfer"]
