"""Averages without a decay: the equal mean, the power-function average, and the plain copy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from polyak.averaging.base import Numbers, Ops, Rule, real, set_real


@final
@dataclass(frozen=True, slots=True)
class Mean(Rule):
    """Equal mean of all values since the first update: the newest gets 1 / n. Also known as SWA.

    Source: Polyak & Juditsky, Acceleration of stochastic approximation by averaging, SIAM J. Control Optim. 30, 1992;
    for late, periodic values of a network: Izmailov et al., SWA, arXiv 1803.05407.

    Example:
        >>> float(Mean().weight(4))
        0.25
        >>> from polyak.averaging.wrappers import Delayed, Every
        >>> print(Every(Delayed(Mean(), 1000), 10))
        mean,after=1000,every=10
    """

    name: ClassVar[str] = "mean"

    @property
    def anchor(self) -> int:
        return 1

    def _at(self, n: Numbers, ops: Ops) -> Numbers:
        return 1.0 / n

    def _merge(self, n: Numbers, k: int, ops: Ops) -> Numbers:
        return float(k) / n

    def kept(self, first: int, last: int) -> float:
        return max(first - 1, 0) / last if last >= first else 1.0

    def _scale(self, kappa: float) -> Rule:
        return self


def _sigma_rel(gamma: float) -> float:
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


_WIDEST = (math.sqrt(5) - 3) / 2


@final
@dataclass(frozen=True, slots=True)
class PowerEMA(Rule):
    """Power-function average: the value at time t has density t**gamma; the newest gets 1 - (1 - 1/n)**(gamma + 1).

    Its window is a fixed fraction of the run, however long. gamma = 0 is the equal mean.

    Args:
        gamma: exponent of the profile, above -1 and at most 1e15.

    Source: Karras et al., arXiv 2312.02696, section 3 and appendix C (from the paper alone).

    Example:
        >>> round(PowerEMA.from_sigma_rel(0.1).gamma, 6)
        6.937204
        >>> round(float(PowerEMA(1).weight(2)), 12)
        0.75
    """

    name: ClassVar[str] = "power"
    gamma: float

    def __post_init__(self) -> None:
        set_real(self, "gamma", "(-1, 1e15]", lambda gamma: -1 < gamma <= 1e15)

    @classmethod
    def from_sigma_rel(cls, sigma_rel: float) -> PowerEMA:
        """The rule whose profile has the standard deviation ``sigma_rel``, as a fraction of the run's length.

        Raises:
            RuleError: it is not in [1e-15, 0.3002831]; no profile of this family is wider.

        Example:
            >>> round(PowerEMA.from_sigma_rel(0.25).gamma, 6)
            0.719824
        """
        what, interval = "rule 'power': sigma_rel", "[1e-15, 0.3002831]"
        width = real(what, sigma_rel, interval, lambda x: 1e-15 <= x <= _sigma_rel(_WIDEST))
        low, high = _WIDEST, 1.0 / width
        while low < (middle := low + (high - low) / 2) < high:
            low, high = (middle, high) if _sigma_rel(middle) > width else (low, middle)
        return cls(high)

    @property
    def sigma_rel(self) -> float:
        """Standard deviation of the profile as a fraction of the run's length."""
        return _sigma_rel(self.gamma)

    @property
    def anchor(self) -> int:
        return 1

    def _at(self, n: Numbers, ops: Ops) -> Numbers:
        return self._merge(n, 1, ops)

    def _merge(self, n: Numbers, k: int, ops: Ops) -> Numbers:
        part = ops.where(n > k, float(k) / n, 0.5)
        return ops.where(n > k, -ops.expm1((self.gamma + 1.0) * ops.log1p(-part)), 1.0)

    def kept(self, first: int, last: int) -> float:
        return float((max(first - 1, 0) / last) ** (self.gamma + 1.0)) if last >= first else 1.0

    def _scale(self, kappa: float) -> Rule:
        return self


def _fallen(x: float, s: float) -> float:
    """Ln gamma(x + s) - ln gamma(x), for x of at least 64, by Stirling's series: no difference of large numbers."""

    def rest(z: float) -> float:
        return (1.0 / 12.0 - (1.0 / 360.0 - 1.0 / (1260.0 * z * z)) / (z * z)) / z

    return (x + s - 0.5) * math.log1p(s / x) + s * (math.log(x) - 1.0) + rest(x + s) - rest(x)


_FEW = 64


@final
@dataclass(frozen=True, slots=True)
class PolynomialDecay(Rule):
    """Polynomial-decay averaging: the newest gets (eta + 1) / (n + eta). eta = 0 is the equal mean.

    Args:
        eta: how fast old values fade, in [0, 1e4]; the value at time t has about the density t**eta.

    Source: Shamir & Zhang, Stochastic gradient descent for non-smooth optimization, ICML 2013, arXiv 1212.1824,
    section 4.

    Example:
        >>> [round(float(PolynomialDecay(3).weight(n)), 6) for n in (1, 2, 3)]
        [1.0, 0.8, 0.666667]
        >>> print(PolynomialDecay(3))
        polynomial:eta=3
    """

    name: ClassVar[str] = "polynomial"
    eta: float

    def __post_init__(self) -> None:
        set_real(self, "eta", "[0, 1e4]", lambda eta: 0 <= eta <= 1e4)

    @property
    def anchor(self) -> int:
        return 1

    def _at(self, n: Numbers, ops: Ops) -> Numbers:
        # The quotient of n = 1 is exactly 1.
        return (self.eta + 1.0) / (n + self.eta)

    def kept(self, first: int, last: int) -> float:
        if first <= 1 or last < first:
            return 1.0 if last < first else 0.0
        # The product of (i - 1) / (i + eta): one by one where Stirling's series is coarse, then as gammas.
        turn = min(last, max(first - 1, _FEW))
        share = Rule.kept(self, first, turn)
        if turn < last:
            share *= math.exp(_fallen(turn, self.eta + 1.0) - _fallen(last, self.eta + 1.0))
        return share

    def _scale(self, kappa: float) -> Rule:
        return self


@final
@dataclass(frozen=True, slots=True)
class Copy(Rule):
    """The average is the newest value: weight 1. With ``every``, a target network that is copied now and then.

    Example:
        >>> from polyak.averaging.wrappers import Every
        >>> print(Every(Copy(), 1000))
        copy,every=1000
    """

    name: ClassVar[str] = "copy"

    def _at(self, n: Numbers, ops: Ops) -> Numbers:
        return 0.0 * n + 1.0

    def _merge(self, n: Numbers, k: int, ops: Ops) -> Numbers:
        return self._at(n, ops)

    def kept(self, first: int, last: int) -> float:
        return 0.0 if last >= first else 1.0

    def _scale(self, kappa: float) -> Rule:
        return self
