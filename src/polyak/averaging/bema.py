"""The published forms of BEMA: the average inside it, the step whose weights it starts from, its correction's factor.

BEMA is mu_t + a_t (w_t - w_0): an average that is slow, plus a share of the way that the weights have gone. The paper,
its authors' programs and the libraries that took it over agree in that and differ in how they count. Each form here is
named after what it follows; ``polyak.derived.BEMA`` computes the values.

Source: Block & Zhang, EMA without the lag: bias-corrected iterate averaging schemes, arXiv 2508.00180.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

from polyak.averaging.base import Rule, count, real
from polyak.averaging.means import Copy
from polyak.averaging.ramps import InversePower
from polyak.averaging.splice import Splice
from polyak.averaging.wrappers import Delayed, check_inner
from polyak.errors import RuleError


class Form(ABC):
    """One way to count in BEMA."""

    @property
    @abstractmethod
    def rule(self) -> Rule:
        """The rule of the average mu: track the model with it."""

    @property
    @abstractmethod
    def start(self) -> int:
        """The update whose weights are w_0; 0 are the initial ones."""

    @abstractmethod
    def strength(self, n: int) -> float:
        """The factor a of the correction after ``n`` updates."""


def _settled(form: Any) -> None:
    """Numbers that are numbers. Raises RuleError."""
    name = type(form).__name__
    for field in ("every", "burn_in"):
        if field in form.__dataclass_fields__:
            object.__setattr__(form, field, count(f"{name}: {field}", getattr(form, field), int(field == "every")))
    for field, least in (("power", "(0, inf)"), ("bias_power", "(0, inf)"), ("multiplier", "(0, inf)")):
        object.__setattr__(form, field, real(f"{name}: {field}", getattr(form, field), least, lambda x: x > 0))
    object.__setattr__(form, "lag", real(f"{name}: lag", form.lag, "[0, inf)", lambda x: x >= 0))


@final
@dataclass(frozen=True, slots=True)
class PaperBEMA(Form):
    """Algorithm 1 of the paper, and TRL's ``BEMACallback``: t counts all steps of the run.

    mu moves at each ``every``-th step after the burn-in by b_t = (lag + multiplier t)**-power; the correction's factor
    is a_t = (lag + multiplier t)**-bias_power. During the burn-in both are the weights themselves. In the paper the
    arguments are phi, tau, kappa, eta, rho and gamma; TRL's ``min_ema_multiplier`` is 0 here, as there by default.

    Args:
        every: steps between two moves, at least 1. TRL: ``update_freq``.
        burn_in: steps before w_0, at least 0. TRL: ``update_after``.
        power, bias_power: in (0, inf).
        lag: at least 0.
        multiplier: in (0, inf).

    Raises:
        RuleError: a number is out of range.

    Example:
        >>> print(PaperBEMA(every=10).rule, PaperBEMA(every=10, burn_in=25).rule)
        inverse-power:freq=10 inverse-power:lag=35,freq=10,after=25
        >>> round(PaperBEMA().strength(990), 6)
        0.251189
    """

    every: int = 400
    burn_in: int = 0
    power: float = 0.5
    bias_power: float = 0.2
    lag: float = 10.0
    multiplier: float = 1.0

    def __post_init__(self) -> None:
        _settled(self)

    @property
    def rule(self) -> Rule:
        late = self.lag + self.multiplier * self.burn_in
        return _after(self.burn_in, InversePower(self.power, late, self.multiplier, self.every))

    @property
    def start(self) -> int:
        return self.burn_in

    def strength(self, n: int) -> float:
        return float((self.lag + self.multiplier * max(n, 1)) ** -self.bias_power)


@final
@dataclass(frozen=True, slots=True)
class AuthorsBEMA(Form):
    """The callback of the authors' repository (abblock/bema, ``src/core_online.py``): t counts from the burn-in's end.

    With t = step - burn_in + lag, b_t = (1 + multiplier t)**-power and a_t = (1 + multiplier t)**-bias_power. It moves
    at the multiples of ``every``, and takes w_0 at the end of a step: without a burn-in that is after the first one.

    Args:
        every: steps between two moves, at least 1.
        burn_in: steps before w_0, a multiple of ``every``: between two multiples no rule of polyak begins as it does.
        power, bias_power: in (0, inf).
        lag: at least 0.
        multiplier: in (0, inf).

    Raises:
        RuleError: a number is out of range.

    Example:
        >>> print(AuthorsBEMA().rule)
        copy until 1 then inverse-power:lag=11,freq=100
        >>> AuthorsBEMA().start, round(AuthorsBEMA(burn_in=200).strength(300), 6)
        (1, 0.389884)
    """

    every: int = 100
    burn_in: int = 0
    power: float = 0.5
    bias_power: float = 0.2
    lag: float = 10.0
    multiplier: float = 1.0

    def __post_init__(self) -> None:
        _settled(self)
        if self.burn_in % self.every:
            raise RuleError(
                f"AuthorsBEMA: burn_in={self.burn_in}: expected a multiple of every={self.every}",
                hint=f"take burn_in={self.burn_in // self.every * self.every + self.every}",
            )

    @property
    def rule(self) -> Rule:
        moving = InversePower(self.power, 1.0 + self.multiplier * self.lag, self.multiplier, self.every)
        return _after(self.burn_in, moving) if self.burn_in else Splice(((0, Copy()), (1, moving)))

    @property
    def start(self) -> int:
        return max(self.burn_in, 1)

    def strength(self, n: int) -> float:
        return float((1.0 + self.multiplier * (n - self.burn_in + self.lag)) ** -self.bias_power)


@final
@dataclass(frozen=True, slots=True)
class CheckpointBEMA(Form):
    """The authors' program for saved checkpoints (``src/core_offline.py``), without its burn-in.

    w_0 are the initial weights. At each checkpoint, with t = step + lag: b_t = (1 + multiplier t)**-power and
    a_t = (1 + t)**-bias_power.

    Args:
        every: steps between two checkpoints, at least 1.
        power, bias_power: in (0, inf).
        lag: at least 0; 0 in the program, 10 in the settings that it comes with.
        multiplier: in (0, inf).

    Raises:
        RuleError: a number is out of range.

    Example:
        >>> print(CheckpointBEMA().rule)
        inverse-power:lag=11
    """

    every: int = 400
    power: float = 0.5
    bias_power: float = 0.2
    lag: float = 10.0
    multiplier: float = 1.0

    def __post_init__(self) -> None:
        _settled(self)

    @property
    def rule(self) -> Rule:
        return InversePower(self.power, 1.0 + self.multiplier * self.lag, self.multiplier, self.every)

    @property
    def start(self) -> int:
        return 0

    def strength(self, n: int) -> float:
        return float((1.0 + max(n + self.lag, 1.0)) ** -self.bias_power)


@final
@dataclass(frozen=True, slots=True)
class FigureBEMA(Form):
    """The program in the paper's figure 1, for any average: a_t = b_t**ratio, with b_t the weight of the newest value.

    Args:
        of: the rule of the average.
        ratio: in (0, inf): the correction's power in shares of the average's.

    Raises:
        RuleError: the ratio is out of range.

    Example:
        >>> from polyak.averaging.emas import EMA
        >>> round(FigureBEMA(EMA(0.99, "initial")).strength(1000), 6)
        0.158489
    """

    of: Rule
    ratio: float = 0.4

    def __post_init__(self) -> None:
        check_inner("FigureBEMA", self.of)
        object.__setattr__(self, "ratio", real("FigureBEMA: ratio", self.ratio, "(0, inf)", lambda x: x > 0))

    @property
    def rule(self) -> Rule:
        return self.of

    @property
    def start(self) -> int:
        return 0

    def strength(self, n: int) -> float:
        return float(self.of.weight(max(n, 1)) ** self.ratio)


def _after(burn_in: int, rule: Rule) -> Rule:
    return Delayed(rule, burn_in) if burn_in else rule
