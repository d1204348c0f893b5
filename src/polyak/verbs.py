"""The verbs of live models: track, snapshot, save. They bind models, files and rules; each is a few lines."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal, TypedDict, Unpack

from polyak.averaging.parse import decay_from
from polyak.averaging.parts import Parts, as_rule
from polyak.averaging.rules import EMA as EMARule
from polyak.averaging.rules import Mean, Rule
from polyak.averaging.rules import PowerEMA as PowerRule
from polyak.averaging.wrappers import Delayed, Every
from polyak.combine.average import common_layout
from polyak.combine.convert import format_of
from polyak.errors import FileError, RuleError, UnknownFormat
from polyak.file_verbs import PathLike, Writer, held_by, moment_of, refuse_parts, shared, source_of, writer, written
from polyak.frameworks import Average, framework_of
from polyak.frameworks.base import Placement, Tracking
from polyak.frameworks.hand_over import model_target, warn_if_biased
from polyak.manifest import AVERAGE, RAW, Manifest
from polyak.snapshot import Snapshot, tool, versions
from polyak.transfer.receipt import Receipt
from polyak.weights import Kind

RuleLike = Rule | str | Parts | Mapping[str, Rule | str | None]
_NOT_WRITTEN = (".h5", ".keras", ".ckpt", ".bin", ".index", ".json", ".npy")


class Following(TypedDict, total=False):
    """How to follow a model.

    Attributes:
        every: move at every k-th update only; the decay is corrected for the interval.
        after: be a plain copy of the weights for so many updates first.
        kinds: kinds of weights by glob, where the default is not meant: ``{"*/moving_*": "trainable"}``
            averages the moving statistics too.
        compensated: lose nothing to rounding, also at a decay of 0.999999 over a million updates: the average is kept
            in float64, 8 bytes for each weight, and rounded to the weight's own dtype where it goes into a model.
        placement: "device", beside the weights, or "host": an accelerator's memory and time are spared. An update then
            copies the weights to the host and moves the average there; on JAX the accelerator goes on meanwhile.
    """

    every: int
    after: int
    kinds: Mapping[str, str]
    compensated: bool
    placement: Placement


def track(model: Any, rule: RuleLike, **following: Unpack[Following]) -> Average:
    """Follow a model's weights with an average.

    Args:
        model: a Keras 3 model or layer, a tf.Module, or a tf_keras model. It may be unbuilt if the rule's first
            update copies.
        rule: a rule, its text ("ema:0.999"), or a mapping of globs to those; None leaves a part out.

    Raises:
        ModelError: the object is no model, or has no weights; ``placement="host"`` for weights that are spread over
            devices.
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
    tracking = Tracking(kinds, following.get("compensated", False), following.get("placement", "device"))
    return framework_of(model).track(model, _timed(as_rule(rule), following), tracking)


def EMA(
    model: Any,
    decay: float | None = None,
    *,
    half_life: float | None = None,
    horizon: float | None = None,
    tau: float | None = None,
    start: Literal["warm", "debiased", "copy", "initial", "zero"] = "warm",
    **following: Unpack[Following],
) -> Average:
    """Follow a model with an exponential moving average.

    Args:
        decay, half_life, horizon, tau: exactly one: the share kept at each update, the updates after which half is
            forgotten, those that the average is about, or 1 - decay.
        start: how the average begins; the default is right at any run length (see docs/decisions).

    Raises:
        ModelError: the object is no model.
        RuleError: not exactly one was given, or the value probably means another.
    """
    framework_of(model)  # a decay in its place is no lack of a decay
    kept = decay_from(decay=decay, half_life=half_life, horizon=horizon, tau=tau)
    return track(model, EMARule(kept, start), **following)


def SWA(model: Any, **following: Unpack[Following]) -> Average:
    """Follow a model with the equal mean of its weights (stochastic weight averaging, arXiv 1803.05407)."""
    return track(model, Mean(), **following)


def PowerEMA(model: Any, sigma_rel: float, **following: Unpack[Following]) -> Average:
    """Follow a model with a power-function average of relative width ``sigma_rel`` (EDM2, arXiv 2312.02696)."""
    return track(model, PowerRule.from_sigma_rel(sigma_rel), **following)


def snapshot(source: Any, weights: str | None = None) -> Snapshot:
    """An independent copy of what a model, an average or a file holds."""
    held = source_of(source, weights)
    warn_if_biased(held)
    return held.copy()


def save(source: Any, path: PathLike, weights: str | None = None) -> Receipt:
    """Write a model, an average or a snapshot into one self-describing file, read it back and compare.

    The file is a safetensors file; a name that ends in ``.weights.h5`` makes one that plain Keras loads, too,
    ``.npz`` one that NumPy loads, ``.pt`` one that PyTorch loads, ``.orbax`` a checkpoint that Orbax restores, and
    ``.safetensors.index.json`` several files beside an index.

    All that is written is of one moment, also while another thread trains in ``fit`` with ``polyak.keras.Averaging``,
    or in a loop whose steps are within ``ema.moment()``. Where several processes train one model together (workers of
    TensorFlow, ``torch.distributed``, ``jax.distributed``) and all of them save, the first one writes, and the others
    wait until the file is there and has their own averaged weights, bit for bit: so all of them give one path. Where
    each is to write a file of its own, ``save(snapshot(source), path)`` waits for nobody.

    Args:
        weights: "raw", "average", or "both" of an average and its model; all that the source has by default,
            which for a live average is the average.

    Raises:
        FileError: the path cannot be written, or its name promises a format that polyak does not write; or the first
            process has not written in ten minutes what this one has.
    """
    refuse_parts(path, [source])
    return written(held_now(source, weights), path, shared(saver(os.fspath(path)), source))


def held_now(source: Any, weights: str | None) -> Snapshot:
    """What ``save`` writes of a source: a copy of one moment, or the arrays of a file, which does not change."""
    if weights == "both":
        return both_of(source)
    if isinstance(source, (str, os.PathLike, Snapshot)):
        return held_by(source, weights)
    return source_of(source, weights).copy()


def label(source: Any) -> str:
    """What receipts call a source."""
    if isinstance(source, Snapshot):
        return source.origin
    if isinstance(source, Average):
        return source.label
    return model_target(source).label


def saver(path: str) -> Writer:
    """What writes a file of this name."""
    return writer(path, saved_as(path))


def saved_as(path: str) -> str:
    """The format of a file of this name. A name that promises the format of another tool is refused."""
    try:
        return format_of(path)
    except UnknownFormat:
        for end in _NOT_WRITTEN:
            if path.endswith(end):
                raise FileError(
                    f"file {path!r}: polyak does not write {end} files", hint="end the name in .safetensors"
                ) from None
        return "safetensors"


def both_of(source: Any) -> Snapshot:
    """Copies of the raw and the averaged weights, in one snapshot."""
    with moment_of(source):
        sets = [source_of(source, RAW).copy(), source_of(source, AVERAGE).copy()]
    states = {s.roles[0]: s.state for s in sets}
    origin = sets[1].origin
    written = Manifest(
        tool(), {}, (), source=origin, versions=versions(), layout=common_layout(sets), note=sets[1].manifest.note
    )
    return Snapshot((i for s in sets for i in s.items_by_path.values()), states, origin, written=written)


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
