"""The verbs: track, plan, transfer, save, open. They bind live models, files and rules; each is a few lines."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, cast

from polyak import dialects, files
from polyak.averaging.parse import decay_from
from polyak.averaging.parts import Parts, as_rule
from polyak.averaging.rules import EMA as EMARule
from polyak.averaging.rules import Mean, Rule
from polyak.averaging.rules import PowerEMA as PowerRule
from polyak.averaging.wrappers import Delayed, Every
from polyak.errors import FileError, RuleError
from polyak.files import safetensors
from polyak.frameworks import Average, framework_of, snapshot_of
from polyak.frameworks.hand_over import model_target, plan_into_model
from polyak.manifest import AVERAGE, RAW, choose_role
from polyak.snapshot import Snapshot
from polyak.transfer.plan import Asked, Plan, make_plan
from polyak.transfer.receipt import Moved, Receipt
from polyak.transfer.target import Target
from polyak.weights import Kind

RuleLike = Rule | str | Parts | Mapping[str, Rule | str | None]
PathLike = str | os.PathLike[str]


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
    """Write a model, an average or a snapshot into one self-describing safetensors file, read it back and compare.

    Args:
        weights: "raw", "average", or "both" of an average and its model; all that the source has by default,
            which for a live average is the average.

    Raises:
        FileError: the path cannot be written.
    """
    if weights == "both":
        held = _both(source)
    else:
        held = (source if isinstance(source, Snapshot) and weights is None else _source(source, weights)).copy()
    written = safetensors.write(held, path)
    read_back = open(path)
    moved = tuple(
        Moved(s.name, s.name, s.weight.dtype, read_back[s.name].dtype.name, s.weight.nbytes, s.digest)
        for s in written.weights
    )
    count = held.state.count if held.state else None
    return Receipt(held.origin, f"file {str(path)!r}", "+".join(held.roles), moved, count=count)


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
    asked = cast(Asked, {"by": "position", **asking} if _numbered(held) else asking)
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


def _numbered(source: Snapshot) -> bool:
    """Whether the source tells its weights apart by number alone, as Keras' exported models do."""
    return bool(source.weights) and all(w.path.startswith("#") for w in source.weights)


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
