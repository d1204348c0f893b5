"""Values that need more than one weight a step: windows, double averages, bias corrections.

A rule is one weight in [0, 1], so an average is one shadow and never leaves the range of what it saw. What stands here
is made of several such sets, held in host memory beside the training, and may leave that range. Each says what memory
it takes, and gives a snapshot that is transferred and saved like any other; its manifest says how it was made.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from polyak.averaging.base import count
from polyak.averaging.bema import AuthorsBEMA, CheckpointBEMA, FigureBEMA, Form, PaperBEMA
from polyak.averaging.kernel import lerp
from polyak.averaging.parts import Parts
from polyak.averaging.rules import Rule
from polyak.combine import average as many
from polyak.errors import ModelError, RuleError, ShapeMismatch
from polyak.file_verbs import source_of
from polyak.frameworks import Average, snapshot_of
from polyak.frameworks.hand_over import warn_if_biased
from polyak.manifest import AVERAGE, RAW, Manifest
from polyak.snapshot import Array, Item, Snapshot, tool, versions
from polyak.weights import Kind, Weight

__all__ = [
    "BEMA",
    "DEMA",
    "AuthorsBEMA",
    "CheckpointBEMA",
    "Derived",
    "FigureBEMA",
    "LastK",
    "PaperBEMA",
]


class Derived(ABC):
    """A set of values that is computed from averages or weights, and what it holds for that."""

    label: str

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Host memory in bytes, beside the average and the model; known before the first step."""

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """The values now, of role "average": a copy that later updates do not change."""

    def __repr__(self) -> str:
        return f"<{self.label}: {self.nbytes:,} bytes of host memory>"


class LastK(Derived):
    """The equal mean of the last k sets of weights that it was shown (LAWA).

    Memory: k copies of the weights.

    Args:
        source: a model, an average, or anything that ``polyak.snapshot`` takes.
        k: sets in the window, at least 1. Call ``update`` once an epoch, or every so many steps.

    Raises:
        RuleError: k is no whole number of at least 1.

    Source: Kaddour, Stop wasting my time!, arXiv 2209.14981.

    Example:
        >>> import tensorflow as tf
        >>> module = tf.Module(); module.w = tf.Variable([0.0])
        >>> window = LastK(module, 2)
        >>> for value in (1.0, 2.0, 4.0):
        ...     _ = module.w.assign([value]); window.update()
        >>> window, window.snapshot()["w"].tolist()
        (<mean of the last 2 of 3 sets: 8 bytes of host memory>, [3.0])
    """

    def __init__(self, source: Any, k: int) -> None:
        self.k = count("LastK: k", k, 1)
        self.seen = 0
        self._source = source
        self._ring: deque[Snapshot] = deque(maxlen=self.k)

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"mean of the last {self.k} of {self.seen} sets"

    @property
    def nbytes(self) -> int:
        return self.k * sum(w.nbytes for w in source_of(self._source, None).weights)

    def update(self) -> None:
        """Take the weights as they are now into the window; the oldest set leaves it."""
        self._ring.append(source_of(self._source, None).copy())
        self.seen += 1

    def snapshot(self) -> Snapshot:
        """The mean. Raises WeightError before the first ``update``."""
        mean = many.mean(list(self._ring))
        held = f"the equal mean of {len(self._ring)} sets of weights, the newest of {self.seen} (LAWA)"
        reads = {w.path: partial(mean.__getitem__, w.path) for w in mean.weights}
        return _made(mean.weights, reads, held, self.label, mean.manifest.layout)


class DEMA(Derived):
    """Double exponential moving average: 2 EMA - EMA(EMA). It follows a trend without lag, and overshoots a turn.

    Memory: one copy of the average, the EMA of the EMA, in the shadow's dtype.

    Args:
        average: an average of one rule. Call ``update`` after each of its updates.

    Raises:
        RuleError: the average has different rules for different parts.
        UnbuiltModel: the model has no weights yet.

    Source: Mulloy, Smoothing data with faster moving averages, 1994.

    Example:
        >>> import polyak, tensorflow as tf
        >>> module = tf.Module(); module.w = tf.Variable([0.0])
        >>> ema = polyak.track(module, "ema:0.5,start=copy")
        >>> dema = DEMA(ema)
        >>> for value in (1.0, 2.0, 3.0):
        ...     _ = module.w.assign([value]); ema.update(); dema.update()
        >>> ema.values()["w"].tolist(), dema.snapshot()["w"].tolist()
        ([2.25], [2.75])
    """

    def __init__(self, average: Average) -> None:
        self._average = average
        self._rule()
        self.count, self._begun = average.count, average.beginnings
        self._second: dict[str, Array] = average.values()
        self._seen = {w.path: _mark(self._second[w.path]) for w in self._moving()}

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"DEMA of {self._average.label}"

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self._second.values())

    def update(self) -> None:
        """Move the second average towards the first, by the weight of the update that the first one just made.

        Without a new update of the first nothing happens.

        Raises:
            ModelError: the first average has made updates in between that moved it, has begun again, or was taken back.
        """
        with self._average.target.moment():
            self._follow()

    def _follow(self) -> None:
        now, rule = self._average.count, self._rule()
        self._refuse_out_of_step(now, now - 1, "one")
        if now == self.count:
            self._refuse_other(self._average.target.read)
            self._begun = self._average.beginnings
            return
        if self._begun != self._average.beginnings:
            raise self._other("update()", "one that has begun again, was written, or follows other weights")
        w = float(rule.weight(now))
        for weight in self._average.target.weights:
            first = self._average.target.read(weight.path)
            if weight.kind is Kind.TRAINABLE:
                self._second[weight.path] = lerp(self._second[weight.path], first, w)
                self._seen[weight.path] = _mark(first)
            else:
                self._second[weight.path] = np.array(first)
        self.count = now

    def snapshot(self) -> Snapshot:
        """The values now. Raises ModelError where ``update`` was not called after the average's last update."""
        with self._average.target.moment():
            now = self._average.count
            self._refuse_out_of_step(now, now, "snapshot()")
            first, second, seen = self._average.values(), dict(self._second), self.count
            self._refuse_other(first.__getitem__)

        def value(weight: Weight) -> Array:
            a, b = first[weight.path], second[weight.path]
            return _wide(a, lambda x: 2.0 * x - b) if weight.kind is Kind.TRAINABLE else a

        weights = self._average.target.weights
        held = f"2 EMA - EMA(EMA) after {seen} updates by the rule {self._average.rule} (DEMA)"
        return _made(
            weights, {w.path: partial(value, w) for w in weights}, held, self.label, self._average.target.layout
        )

    def _refuse_out_of_step(self, now: int, last: int, received: str) -> None:
        """Raise ModelError unless the average, after ``now`` updates, is where the updates up to ``last`` left it."""
        if now < self.count:
            raise ModelError(
                f"{self.label}: expected an average that goes on from {self.count:,} updates, received one after "
                f"{now:,}, which has begun again or was taken back",
                hint="make it anew: DEMA(ema)",
            )
        if self._rule().kept(self.count + 1, last) < 1.0:
            raise ModelError(
                f"{self.label}: expected update() after each update of the average, of which it saw {self.count:,}; "
                f"received {received} after {now:,}",
                hint="call dema.update() beside ema.update()",
            )

    def _refuse_other(self, read: Callable[[str], Array]) -> None:
        """Raise ModelError where the average holds other values than those that moved the second one."""
        for weight in self._moving():
            if _mark(read(weight.path)) != self._seen.get(weight.path):
                raise self._other(f"weight {weight.path!r}", "other values: it has begun again, or was written")

    def _other(self, subject: str, received: str) -> ModelError:
        return ModelError(
            f"{self.label}: {subject}: expected the average that it saw after {self.count:,} updates, received "
            f"{received}",
            hint="make it anew: DEMA(ema)",
        )

    def _moving(self) -> list[Weight]:
        return [w for w in self._average.target.weights if w.kind is Kind.TRAINABLE]

    def _rule(self) -> Rule:
        rule = self._average.rule
        if isinstance(rule, Parts):
            raise RuleError(f"{self._average.label}: expected one rule for a double average, received rules by part")
        return rule


class BEMA(Derived):
    """Bias-corrected average: EMA + a (w - w0), where the factor a falls with the number of updates.

    Published programs differ in how they count, so a form is named: ``PaperBEMA`` (algorithm 1; TRL), ``AuthorsBEMA``,
    ``CheckpointBEMA``, ``FigureBEMA`` (any average). Track the model with ``form.rule``, and take snapshots where that
    moves: those programs keep their values from one move to the next, a snapshot takes the weights as they are.

    Memory: one copy of the weights, those of w0.

    Args:
        average: an average by ``form.rule``.
        form: how to count.
        start: w0, as anything that ``polyak.snapshot`` or ``polyak.open`` gives, or a path: to go on with a run. By
            default the model's weights now, when the average has seen just ``form.start`` updates.

    Raises:
        RuleError: the average moves by another rule.
        ModelError: ``start`` is not given, and the average has seen another number of updates.
        MissingWeight, ShapeMismatch: ``start`` is of another structure.

    ``snapshot`` raises ModelError where the average has begun again, was written or follows other weights since then:
    w0 may be another one by now. It raises RuleError where the average moves by another rule.

    Source: Block & Zhang, EMA without the lag, arXiv 2508.00180.

    Example:
        >>> import polyak, tensorflow as tf
        >>> module = tf.Module(); module.w = tf.Variable([0.0])
        >>> form = PaperBEMA(every=1, bias_power=1.0)
        >>> ema = polyak.track(module, form.rule)
        >>> bema = BEMA(ema, form)
        >>> _ = module.w.assign([11.0]); ema.update()
        >>> round(float(bema.snapshot()["w"][0] - ema.values()["w"][0]), 6)
        1.0
    """

    def __init__(self, average: Average, form: Form | None = None, start: Any = None) -> None:
        self.form = PaperBEMA() if form is None else form
        self._average = average
        _refuse_other_rule(average, self.form)
        if start is None:
            _refuse_other_count(average, self.form)
        self._begun = average.beginnings
        held = snapshot_of(average.source, RAW) if start is None else source_of(start, None)
        warn_if_biased(held)
        self._start = {w.path: _same_shape(held, w) for w in average.target.weights if w.kind is Kind.TRAINABLE}

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"{type(self.form).__name__} of {self._average.label}"

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self._start.values())

    @property
    def strength(self) -> float:
        """The factor a of the correction now."""
        return self.form.strength(self._average.count)

    def snapshot(self) -> Snapshot:
        average = self._average
        with average.target.moment():
            self._refuse_other()
            strength, seen = self.strength, average.count
            values, raw = average.values(), {path: np.array(average.source.read(path)) for path in self._start}

        def value(weight: Weight) -> Array:
            held = values[weight.path]
            if weight.path not in self._start:
                return held
            shift = raw[weight.path].astype(np.float64) - self._start[weight.path].astype(np.float64)
            return _wide(held, lambda x: x + strength * shift)

        weights = average.target.weights
        held = (
            f"the average by {average.rule} after {seen} updates + {strength:.6g} (weights - weights after "
            f"{self.form.start}) ({self.form})"
        )
        return _made(
            weights, {w.path: partial(value, w) for w in weights}, held, self.label, self._average.target.layout
        )

    def _refuse_other(self) -> None:
        """Raise where the average does not go on from what w0 belongs to."""
        _refuse_other_rule(self._average, self.form)
        if self._average.beginnings != self._begun:
            raise ModelError(
                f"{self.label}: expected the average to go on from the weights w0, received one that has begun again, "
                "was written, or follows other weights",
                hint="make it anew: BEMA(ema, form) where the average begins, BEMA(ema, form, start=w0) later",
            )


def _refuse_other_rule(average: Average, form: Form) -> None:
    if average.rule != form.rule:
        raise RuleError(
            f"{type(form).__name__}: expected an average by {form.rule}, received one by {average.rule}",
            hint="polyak.track(model, form.rule); polyak.derived.FigureBEMA(rule) takes any",
        )


def _refuse_other_count(average: Average, form: Form) -> None:
    if average.count != form.start:
        raise ModelError(
            f"{type(form).__name__}: expected an average after {form.start:,} updates, whose weights are w0; received "
            f"one after {average.count:,}",
            hint="make it then, or give those weights: start=",
        )


def _same_shape(held: Snapshot, weight: Weight) -> Array:
    value = np.array(held[weight.path])
    if value.shape != weight.shape:
        raise ShapeMismatch(
            f"weight {weight.path!r}: expected {weight.shape}, received {value.shape} from {held.origin}"
        )
    return value


def _mark(value: Array) -> int:
    """Tells one value of a weight from another one, without holding it."""
    return zlib.crc32(value.tobytes())


def _wide(average: Array, value: Callable[[Array], Any]) -> Array:
    """A value computed in float64 and rounded once to the average's dtype."""
    return np.asarray(value(average.astype(np.float64))).astype(average.dtype)


def _made(
    weights: tuple[Weight, ...], reads: Mapping[str, Callable[[], Any]], evidence: str, origin: str, layout: str
) -> Snapshot:
    written = Manifest(tool(), {}, (), source=origin, versions=versions(), evidence=(evidence,), layout=layout)
    items = (Item(AVERAGE, w, reads[w.path]) for w in weights)
    return Snapshot(items, {AVERAGE: None}, origin, written=written).copy()
