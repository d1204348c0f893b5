"""Exponential moving averages: one decay, the ways in which tools begin, and their warm-ups."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, final, get_args

import numpy as np

from polyak.averaging.base import Numbers, Ops, Origin, Rule, kept_smoothly, set_real
from polyak.errors import RuleError

Start: TypeAlias = Literal["copy", "initial", "debiased", "zero", "warm"]

# Rule counts below this are multiplied one by one; longer stretches of InverseGamma are summed in blocks.
_ONE_BY_ONE = 1 << 20


def _set_decay(rule: Rule) -> None:
    set_real(rule, "decay", "[0, 1)", lambda decay: 0.0 <= decay < 1.0)


def _ramp(n: Numbers, c: int, decay: float, ops: Ops) -> Numbers:
    """1 - min(decay, (n + c - 9) / (n + c)), without the cancellation."""
    return ops.maximum(9.0 / (n + float(c)), 1.0 - decay)


def _ramp_kept(first: int, last: int, c: int, decay: float) -> float:
    """Product of the decays of ``_ramp`` over first ... last: the ramp telescopes, the rest is a power."""
    turn = min(last, max(first - 1, math.floor(9.0 / (1.0 - decay) - c)))
    rest = decay ** (last - turn) if last > turn else 1.0
    if turn < first:
        return rest
    return rest * math.prod((first + c - 9 + j) / (turn + c - 8 + j) for j in range(9))


def scaled_decay(decay: float, kappa: float) -> float:
    """decay**kappa.

    Example:
        >>> scaled_decay(0.81, 0.5)
        0.9
    """
    return float(decay**kappa)


def _forgotten(decay: float, k: int) -> float:
    """1 - decay**k, exact also for a decay close to 1 or a large k."""
    return -math.expm1(k * math.log(decay)) if decay else 1.0


@final
@dataclass(frozen=True, slots=True)
class EMA(Rule):
    """Exponential moving average: the newest value gets 1 - decay, older ones decay away. ``start`` says how it begins.

    ========  =======================  ========================================================================
    start     weight of the newest     meaning
    ========  =======================  ========================================================================
    warm      max(1 - d, 9 / (n + 8))  the window grows with a tenth of the run until the decay is reached
    copy      1, then 1 - d            the first value counts as the past (Keras ``use_ema``, torch AveragedModel)
    initial   1 - d                    the initial weights count as the past (tf.train.ExponentialMovingAverage)
    debiased  (1 - d) / (1 - d**n)     no past: weights d**age, normalised (optax.ema)
    zero      1 - d, from zeros        biased towards zero (optax.ema with debias=False)
    ========  =======================  ========================================================================

    Args:
        decay: share of the average kept at each update, in [0, 1).
        start: one of the above. "warm" is TensorFlow's ``num_updates`` ramp (1 + t) / (10 + t), moved by two updates
            so that the first one copies and no share of the initial weights remains.

    Raises:
        RuleError: the decay is out of range, or the start unknown.

    Source: debiased is the correction of Kingma & Ba, Adam, arXiv 1412.6980, section 3.

    Example:
        >>> [round(float(EMA(0.5, start="debiased").weight(n)), 6) for n in (1, 2, 3)]
        [1.0, 0.666667, 0.571429]
        >>> EMA(0.999)
        EMA(decay=0.999, start='warm')
        >>> print(EMA(0.999, start="copy"))
        ema:0.999,start=copy
    """

    name: ClassVar[str] = "ema"
    decay: float
    start: Start = "warm"

    def __post_init__(self) -> None:
        _set_decay(self)
        if self.start not in get_args(Start):
            raise RuleError(f"rule 'ema': start={self.start}: expected one of {', '.join(get_args(Start))}")
        object.__setattr__(self, "start", str(self.start))  # NumPy has texts of its own, which no JSON takes

    @property
    def origin(self) -> Origin:
        return "zeros" if self.start == "zero" else "weights"

    @property
    def anchor(self) -> int:
        return 0 if self.start in ("initial", "zero") else 1

    def _at(self, n: Numbers, ops: Ops) -> Numbers:
        if self.start == "warm":
            return _ramp(n, 8, self.decay, ops)
        if self.start == "debiased":
            return self._merge(n, 1, ops)
        newest = 0.0 * n + (1.0 - self.decay)
        return ops.where(n > 1, newest, 1.0) if self.start == "copy" else newest

    def _merge(self, n: Numbers, k: int, ops: Ops) -> Numbers:
        if self.start == "warm":
            return Rule._merge(self, n, k, ops)
        newest = 0.0 * n + _forgotten(self.decay, k)
        if self.start == "debiased" and self.decay:
            newest = ops.minimum(-newest / ops.expm1(n * math.log(self.decay)), 1.0)
        return ops.where(n > k, newest, 1.0) if self.anchor else newest

    def kept(self, first: int, last: int) -> float:
        if last < first:
            return 1.0
        if self.start == "warm":
            return _ramp_kept(first, last, 8, self.decay)
        if self.anchor and first <= 1:
            return 0.0
        share = float(self.decay ** (last - first + 1))
        if self.start == "debiased":
            share *= _forgotten(self.decay, first - 1) / _forgotten(self.decay, last)
        return share

    def _scale(self, kappa: float) -> Rule:
        return EMA(scaled_decay(self.decay, kappa), self.start)


@final
@dataclass(frozen=True, slots=True)
class TensorFlowEMA(Rule):
    """tf.train.ExponentialMovingAverage with ``num_updates`` = n: decay min(decay, (1 + n) / (10 + n)).

    It starts at the initial weights and keeps a share of them. torch-ema's default is the same.

    Args:
        decay: the decay that the ramp ends at, in [0, 1).

    Example:
        >>> round(float(TensorFlowEMA(0.999).weight(1)), 6)
        0.818182
    """

    name: ClassVar[str] = "tf"
    decay: float

    def __post_init__(self) -> None:
        _set_decay(self)

    def _at(self, n: Numbers, ops: Ops) -> Numbers:
        return _ramp(n, 10, self.decay, ops)

    def kept(self, first: int, last: int) -> float:
        return _ramp_kept(first, last, 10, self.decay) if last >= first else 1.0

    def _scale(self, kappa: float) -> Rule:
        return TensorFlowEMA(scaled_decay(self.decay, kappa))


@final
@dataclass(frozen=True, slots=True)
class TFModels(Rule):
    """TensorFlow Models' optimizer average with a dynamic decay: min(decay, (1 + n) / (10 + n)), from zeros.

    Args:
        decay: the decay that the ramp ends at, in [0, 1).

    Example:
        >>> TFModels(0.5).origin
        'zeros'
    """

    name: ClassVar[str] = "tf-models"
    decay: float

    def __post_init__(self) -> None:
        _set_decay(self)

    @property
    def origin(self) -> Origin:
        return "zeros"

    def _at(self, n: Numbers, ops: Ops) -> Numbers:
        return _ramp(n, 10, self.decay, ops)

    def kept(self, first: int, last: int) -> float:
        return _ramp_kept(first, last, 10, self.decay) if last >= first else 1.0

    def _scale(self, kappa: float) -> Rule:
        return TFModels(scaled_decay(self.decay, kappa))


@final
@dataclass(frozen=True, slots=True)
class DiffusersEMA(Rule):
    """The default of diffusers' EMAModel: the first update copies, then decay min(decay, n / (n + 9)).

    Args:
        decay: the decay that the ramp ends at, in [0, 1).

    Example:
        >>> [round(float(DiffusersEMA(0.9999).weight(n)), 6) for n in (1, 2, 3)]
        [1.0, 0.818182, 0.75]
    """

    name: ClassVar[str] = "diffusers"
    decay: float

    def __post_init__(self) -> None:
        _set_decay(self)

    @property
    def anchor(self) -> int:
        return 1

    def _at(self, n: Numbers, ops: Ops) -> Numbers:
        return ops.where(n > 1, _ramp(n, 9, self.decay, ops), 1.0)

    def kept(self, first: int, last: int) -> float:
        if last < first:
            return 1.0
        return _ramp_kept(first, last, 9, self.decay) if first > 1 else 0.0

    def _scale(self, kappa: float) -> Rule:
        return DiffusersEMA(scaled_decay(self.decay, kappa))


@final
@dataclass(frozen=True, slots=True)
class InverseGamma(Rule):
    """Warm-up by 1 - (1 + (n - 1) / inv_gamma)**-power, of diffusers ``use_ema_warmup``, ema-pytorch and timm.

    The first update copies; later decays are clipped to [min_decay, decay].

    Args:
        decay: the largest decay, in [0, 1).
        inv_gamma: updates over which the ramp starts, at least 1e-9.
        power: 2/3 suits runs of a million updates and more, 3/4 shorter ones (ema-pytorch's advice).
        min_decay: the least decay from the second update on, in [0, decay].

    Example:
        >>> [round(float(InverseGamma().weight(n)), 6) for n in (1, 2, 3)]
        [1.0, 0.629961, 0.48075]
        >>> print(InverseGamma(0.999, power=0.75))
        inverse-gamma:0.999,power=0.75
    """

    name: ClassVar[str] = "inverse-gamma"
    decay: float = 0.9999
    inv_gamma: float = 1.0
    power: float = 2 / 3
    min_decay: float = 0.0

    def __post_init__(self) -> None:
        _set_decay(self)
        set_real(self, "inv_gamma", "[1e-9, inf)", lambda x: x >= 1e-9)
        set_real(self, "power", "(0, inf)", lambda x: x > 0)
        set_real(self, "min_decay", f"[0, decay={self.decay}]", lambda x: 0 <= x <= self.decay)

    @property
    def anchor(self) -> int:
        return 1

    def _at(self, n: Numbers, ops: Ops) -> Numbers:
        newest = ops.power(1.0 + (n - 1.0) / self.inv_gamma, -self.power)
        return ops.where(n > 1, ops.maximum(ops.minimum(newest, 1.0 - self.min_decay), 1.0 - self.decay), 1.0)

    def kept(self, first: int, last: int) -> float:
        """As for every rule; over more than 2**20 updates by the midpoint of short blocks, to a relative 1e-6."""
        if last - first < _ONE_BY_ONE or first <= 1:
            return Rule.kept(self, first, last) if first > 1 or last < first else 0.0
        # Blocks of 1e-4 of the update's number: the weight is smooth enough that its midpoint stands for the block.
        count = math.ceil(1e4 * math.log((last + 1) / first)) + 1
        return kept_smoothly(self, first, last, np.geomspace(first, last + 1, count))
