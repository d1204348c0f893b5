"""Averages whose decay changes along a schedule: by a cosine, by a straight line, by a power of the update's number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from polyak.averaging.base import Numbers, Ops, Rule, kept_smoothly, last_multiple, set_count, set_real

# Up to so many updates are multiplied one by one; longer stretches are summed in blocks.
_ONE_BY_ONE = 1 << 20
_BLOCKS = 100_000


def _ramp_kept(rule: CosineRamp | LinearRamp, first: int, last: int, final_decay: float) -> float:
    """What a rule keeps whose weight changes up to update ``steps`` and is constant after it."""
    if last < first:
        return 1.0
    turn = min(last, max(rule.steps, first - 1))
    rest = float(final_decay ** (last - turn))
    if turn - first < _ONE_BY_ONE:
        return Rule.kept(rule, first, turn) * rest
    return kept_smoothly(rule, first, turn, np.linspace(1.0, rule.steps + 1.0, _BLOCKS)) * rest


@final
@dataclass(frozen=True, slots=True)
class CosineRamp(Rule):
    """The decay rises from ``decay`` to ``final`` along half a cosine: 1 - w(n) = final - (final - decay) c(n).

    c(n) = (cos(pi (n - 1) / steps) + 1) / 2 falls from 1 to 0. With ``final=1`` the average stands still at the end.
    It starts at the initial weights.

    Args:
        decay: the decay of the first update, in [0, 1).
        steps: updates until ``final`` is reached, at least 1.
        final: the decay from then on, in [decay, 1].

    Source: Grill et al., BYOL, arXiv 2006.07733, section 3.2; the teachers of DINO and its successors.

    Example:
        >>> [round(float(CosineRamp(0.9, 4).weight(n)), 6) for n in (1, 3, 5)]
        [0.1, 0.05, 0.0]
        >>> print(CosineRamp(0.996, 100_000))
        cosine:0.996,steps=100000
    """

    name: ClassVar[str] = "cosine"
    decay: float
    steps: int
    final: float = 1.0

    def __post_init__(self) -> None:
        set_real(self, "decay", "[0, 1)", lambda decay: 0.0 <= decay < 1.0)
        set_count(self, "steps", 1)
        set_real(self, "final", f"[decay={self.decay}, 1]", lambda x: self.decay <= x <= 1.0)

    def _at(self, n: Numbers, ops: Ops) -> Numbers:
        # (cos x + 1) / 2 as a square: close to its end the sum would cancel.
        root = ops.cos(ops.minimum((n - 1.0) / float(self.steps), 1.0) * (math.pi / 2.0))
        left = ops.where(n > self.steps, 0.0, root * root)
        return (1.0 - self.final) + (self.final - self.decay) * left

    def kept(self, first: int, last: int) -> float:
        return _ramp_kept(self, first, last, self.final)


@final
@dataclass(frozen=True, slots=True)
class LinearRamp(Rule):
    """The decay moves in a straight line from ``initial`` to ``decay`` within ``steps`` updates, and stays there.

    1 - w(n) = decay - (decay - initial) max(0, 1 - (n - 1) / steps). With ``initial=0`` the first update copies.

    Args:
        decay: the decay at the end of the ramp, in [0, 1].
        steps: updates until it is reached, at least 1.
        initial: the decay of the first update, in [0, decay] and below 1.

    Source: the linear warm-up of many training loops; the teachers of I-JEPA (arXiv 2301.08243) rise from 0.996 to 1.

    Example:
        >>> [round(float(LinearRamp(0.8, 4).weight(n)), 6) for n in (1, 2, 5, 9)]
        [1.0, 0.8, 0.2, 0.2]
        >>> print(LinearRamp(0.999, 1000, initial=0.9))
        linear:0.999,steps=1000,initial=0.9
    """

    name: ClassVar[str] = "linear"
    decay: float
    steps: int
    initial: float = 0.0

    def __post_init__(self) -> None:
        set_real(self, "decay", "[0, 1]", lambda decay: 0.0 <= decay <= 1.0)
        set_count(self, "steps", 1)
        set_real(self, "initial", f"[0, decay={self.decay}] and below 1", lambda x: 0 <= x <= self.decay and x < 1.0)

    @property
    def anchor(self) -> int:
        return 0 if self.initial else 1

    def _at(self, n: Numbers, ops: Ops) -> Numbers:
        left = ops.maximum(1.0 - (n - 1.0) / float(self.steps), 0.0)
        ramp = (1.0 - self.decay) + (self.decay - self.initial) * left
        return ops.minimum(ramp, 1.0) if self.initial else ops.where(n > 1, ops.minimum(ramp, 1.0), 1.0)

    def kept(self, first: int, last: int) -> float:
        return _ramp_kept(self, first, last, self.decay)


@final
@dataclass(frozen=True, slots=True)
class InversePower(Rule):
    """The newest value gets (lag + multiplier n)**-power, at every ``freq``-th update: the average inside BEMA.

    Unlike with ``every``, the weight of an update is not made larger for those between two of them: that is how BEMA
    is defined. The average starts at the initial weights.

    Args:
        power: in (0, inf); 0.5 is the paper's.
        lag: at least 0; together with ``multiplier`` it keeps every weight at 1 or below, or the weight is cut to 1.
        multiplier: in (0, inf).
        freq: updates between two moves, at least 1; the paper takes 400.

    Source: Block & Zhang, EMA without the lag, arXiv 2508.00180, algorithm 1 (beta_t).

    Example:
        >>> rule = InversePower(freq=1)
        >>> [round(float(rule.weight(n)), 6) for n in (6, 90)]
        [0.25, 0.1]
    """

    name: ClassVar[str] = "inverse-power"
    power: float = 0.5
    lag: float = 10.0
    multiplier: float = 1.0
    freq: int = 400

    def __post_init__(self) -> None:
        set_real(self, "power", "(0, inf)", lambda x: x > 0)
        set_real(self, "lag", "[0, inf)", lambda x: x >= 0)
        set_real(self, "multiplier", "(0, inf)", lambda x: x > 0)
        set_count(self, "freq", 1)

    @property
    def rests(self) -> bool:
        return self.freq > 1

    def _at(self, n: Numbers, ops: Ops) -> Numbers:
        newest = ops.minimum(ops.power(self.lag + self.multiplier * n, -self.power), 1.0)
        if self.freq == 1:
            return newest
        return ops.where(n == last_multiple(n, self.freq, ops), newest, 0.0)

    def kept(self, first: int, last: int) -> float:
        """As for every rule; over more than 2**20 moves by the midpoint of short blocks, to a relative 1e-6."""
        low, high = -(-first // self.freq), last // self.freq
        if high < low:
            return 1.0
        each = InversePower(self.power, self.lag, self.multiplier * self.freq, 1)
        if high - low < _ONE_BY_ONE:
            return Rule.kept(each, low, high)
        count = math.ceil(1e4 * math.log((high + 1) / low)) + 1
        return kept_smoothly(each, low, high, np.geomspace(low, high + 1, count))
