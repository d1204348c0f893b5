"""Values that need more than one weight a step: windows, double averages, bias corrections.

A rule is one weight in [0, 1], so an average is one shadow and never leaves the range of what it saw. What stands here
is made of several such sets, held in host memory beside the training, and may leave that range. Each says what memory
it takes, and gives a snapshot that is transferred and saved like any other; its manifest says how it was made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from polyak.averaging.base import count, real
from polyak.averaging.kernel import lerp
from polyak.averaging.parts import Parts
from polyak.averaging.rules import Rule
from polyak.combine import average as many
from polyak.errors import ModelError, RuleError
from polyak.file_verbs import source_of
from polyak.frameworks import Average
from polyak.manifest import AVERAGE, Manifest
from polyak.snapshot import Array, Item, Snapshot, tool, versions
from polyak.weights import Kind, Weight


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
        return _made(mean.weights, {w.path: partial(mean.__getitem__, w.path) for w in mean.weights}, held, self.label)


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
        self.count = average.count
        self._second: dict[str, Array] = average.values()

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
            ModelError: the first average has made updates in between that moved it.
        """
        now, rule = self._average.count, self._rule()
        if now == self.count:
            return
        if rule.kept(self.count + 1, now - 1) < 1.0:
            raise ModelError(
                f"{self.label}: expected update() after each update of the average, of which it saw {self.count}; "
                f"received one after {now}",
                hint="call dema.update() beside ema.update()",
            )
        w = float(rule.weight(now))
        for weight in self._average.target.weights:
            first = self._average.target.read(weight.path)
            self._second[weight.path] = (
                lerp(self._second[weight.path], first, w) if weight.kind is Kind.TRAINABLE else np.array(first)
            )
        self.count = now

    def snapshot(self) -> Snapshot:
        first, second = self._average.values(), dict(self._second)

        def value(weight: Weight) -> Array:
            a, b = first[weight.path], second[weight.path]
            return _wide(a, lambda x: 2.0 * x - b) if weight.kind is Kind.TRAINABLE else a

        weights = self._average.target.weights
        held = f"2 EMA - EMA(EMA) after {self.count} updates by the rule {self._average.rule} (DEMA)"
        return _made(weights, {w.path: partial(value, w) for w in weights}, held, self.label)

    def _rule(self) -> Rule:
        rule = self._average.rule
        if isinstance(rule, Parts):
            raise RuleError(f"{self._average.label}: expected one rule for a double average, received rules by part")
        return rule


class BEMA(Derived):
    """Bias-corrected average: EMA + a (w - w0), where a = (lag + multiplier t)**-power after t updates.

    The variant is algorithm 1 of the paper with all of its steps counted, as in TRL's ``BEMACallback``: track the model
    with "inverse-power" (which moves at every 400th update) and take snapshots at multiples of 400. After a burn-in of
    n steps, "copy until n then inverse-power", with the BEMA made at step n, is TRL's ``update_after``: t still counts
    from the beginning of the run. ``restarted`` counts t from where the BEMA was made. The correction needs no average
    of this kind: any one does.

    Memory: one copy of the weights, those at the start.

    Args:
        average: an average; w0 are its model's weights now, so make the BEMA before training, or at the burn-in's end.
        power: in (0, inf); the paper's eta, 0.2.
        lag: at least 0; the paper's rho.
        multiplier: in (0, inf); the paper's gamma.
        restarted: count t from now.

    Raises:
        RuleError: a number is out of range.

    Source: Block & Zhang, EMA without the lag, arXiv 2508.00180.

    Example:
        >>> import polyak, tensorflow as tf
        >>> module = tf.Module(); module.w = tf.Variable([0.0])
        >>> ema = polyak.track(module, "inverse-power:freq=1")
        >>> bema = BEMA(ema, power=1.0)
        >>> _ = module.w.assign([11.0]); ema.update()
        >>> round(float(bema.snapshot()["w"][0] - ema.values()["w"][0]), 6)
        1.0
    """

    def __init__(
        self,
        average: Average,
        power: float = 0.2,
        lag: float = 10.0,
        multiplier: float = 1.0,
        *,
        restarted: bool = False,
    ) -> None:
        self.power = real("BEMA: power", power, "(0, inf)", lambda x: x > 0)
        self.lag = real("BEMA: lag", lag, "[0, inf)", lambda x: x >= 0)
        self.multiplier = real("BEMA: multiplier", multiplier, "(0, inf)", lambda x: x > 0)
        self._average = average
        self._from = average.count if restarted else 0
        self._start = {w.path: np.array(average.source.read(w.path)) for w in average.target.weights}

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"BEMA of {self._average.label}"

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self._start.values())

    @property
    def strength(self) -> float:
        """The factor a of the correction now."""
        return float((self.lag + self.multiplier * max(self._average.count - self._from, 1)) ** -self.power)

    def snapshot(self) -> Snapshot:
        strength, average = self.strength, self._average
        raw = {path: np.array(average.source.read(path)) for path in self._start}
        values = average.values()

        def value(weight: Weight) -> Array:
            shift = raw[weight.path].astype(np.float64) - self._start[weight.path].astype(np.float64)
            return _wide(values[weight.path], lambda x: x + strength * shift)

        weights = average.target.weights
        reads = {
            w.path: partial(value, w) if w.kind is Kind.TRAINABLE else partial(values.get, w.path) for w in weights
        }
        held = f"the average by {average.rule} after {average.count} updates + {strength:.6g} (weights - start) (BEMA)"
        return _made(weights, reads, held, self.label)


def _wide(average: Array, value: Callable[[Array], Any]) -> Array:
    """A value computed in float64 and rounded once to the average's dtype."""
    return np.asarray(value(average.astype(np.float64))).astype(average.dtype)


def _made(weights: tuple[Weight, ...], reads: Mapping[str, Callable[[], Any]], evidence: str, origin: str) -> Snapshot:
    written = Manifest(tool(), {}, (), source=origin, versions=versions(), evidence=(evidence,))
    items = (Item(AVERAGE, w, reads[w.path]) for w in weights)
    return Snapshot(items, {AVERAGE: None}, origin, written=written).copy()
