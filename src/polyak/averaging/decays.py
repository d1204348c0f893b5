"""Decays as people give them: decay, half-life, horizon or tau; what probably means something else is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

from polyak.averaging.base import LEAST_USUAL_DECAY, plain, real
from polyak.averaging.units import Pace, Quantity
from polyak.errors import RuleError

USUAL = {"decay": "[0.5, 1)", "half_life": "[1, inf)", "horizon": "[2, inf)", "tau": "(0, 0.5]"}
# What to write to have a decay nevertheless.
Insist: TypeAlias = Callable[[float], str]
_ONE_OF = "decay, half_life, horizon and tau"


def decay_from(
    *,
    decay: float | None = None,
    half_life: float | None = None,
    horizon: float | None = None,
    tau: float | None = None,
) -> float:
    """The decay from exactly one of four ways to give it; values that probably mean something else are refused.

    Args:
        decay: share of the average kept at each update, in [0.5, 1). Keras calls it ``ema_momentum``.
        half_life: number of updates after which half is left, at least 1: decay = 2**(-1 / half_life).
        horizon: number of updates that the average is about, at least 2: decay = 1 - 1 / horizon. It is the mean age
            of the values, counted from 1.
        tau: share of the newest value, in (0, 0.5]: decay = 1 - tau. mmcv calls it ``momentum``.

    Raises:
        RuleError: none or several are given, or the value is out of range, or suspicious; the hint says its likely
            meaning and how to insist.

    Example:
        >>> decay_from(decay=0.999), decay_from(tau=0.25), round(decay_from(half_life=500), 9)
        (0.999, 0.75, 0.998614666)
        >>> decay_from(decay=99.9)
        Traceback (most recent call last):
        polyak.errors.RuleError: decay=99.9 is above 1
        hint: if you mean 99.9 percent write decay=0.999
    """
    pairs = {"decay": decay, "half_life": half_life, "horizon": horizon, "tau": tau}
    return usual(*single({key: value for key, value in pairs.items() if value is not None}), _insist)


def usual(key: str, value: object, insist: Insist) -> float:
    """The decay that one of the four ways means.

    Args:
        insist: what to write to have a decay nevertheless.

    Raises:
        RuleError: the value is out of range, or suspicious.

    Example:
        >>> usual("horizon", 100, str)
        0.99
    """
    number = real(key, value, USUAL[key], lambda x: x > 0 or (key == "decay" and x == 0))
    check = {"decay": _check_decay, "half_life": _check_half_life, "horizon": _check_horizon, "tau": _check_tau}[key]
    check(number, insist)
    return converted(key, number)


def single(given: dict[str, Any]) -> tuple[str, Any]:
    """The one setting that is given. Raises RuleError for none or several."""
    if len(given) != 1:
        received = " and ".join(given) or "none of them"
        raise RuleError(f"expected exactly one of {_ONE_OF}; received {received}")
    return next(iter(given.items()))


def converted(key: str, number: float) -> float:
    """The decay that one of the four ways means. Raises RuleError where that is 1 in float64."""
    if key == "horizon" and number < 1.0:
        raise RuleError(f"horizon={plain(number)}: expected a number in [1, inf)")
    decay = {
        "decay": number,
        "half_life": 2.0 ** (-1.0 / number) if number else 0.0,
        "horizon": 1.0 - 1.0 / (number or 1.0),
        "tau": 1.0 - number,
    }[key]
    if decay == 1.0 and key != "decay":
        raise RuleError(f"{key}={plain(number)} is a decay of 1 in float64: the average would never move")
    return decay


def _insist(decay: float) -> str:
    return f"to insist, construct polyak.rules.EMA({plain(decay)}) directly or write 'ema:{plain(decay)},check=off'"


def _forgets(key: str, number: float, decay: float) -> str:
    return f"{key}={plain(number)} would forget {100 * (1 - decay):.10g}% of the average at each update"


def _check_decay(decay: float, insist: Insist) -> None:
    if decay == 0.0:
        raise RuleError("decay=0 is a copy of the newest weights", hint=f"write the rule 'copy'; {insist(decay)}")
    if decay < LEAST_USUAL_DECAY:
        meant = f"if you mean tau={plain(decay)} write tau={plain(decay)}, i.e. decay={1 - decay:.12g}"
        raise RuleError(_forgets("decay", decay, decay), hint=f"{meant}; {insist(decay)}")
    if decay == 1.0:
        raise RuleError("decay=1 would never move the average", hint="write a decay below 1, such as decay=0.999")
    if decay > 1.0:
        percent = f"if you mean {plain(decay)} percent write decay={decay / 100:.12g}"
        updates = f"if you mean {plain(decay)} updates write half_life={plain(decay)}"
        raise RuleError(f"decay={plain(decay)} is above 1", hint=percent if 50 <= decay < 100 else updates)


def _check_tau(tau: float, insist: Insist) -> None:
    if tau > 1.0:
        raise RuleError(f"tau={plain(tau)} is above 1", hint="tau is the share of the newest value, such as tau=0.001")
    if tau == 1.0:
        raise RuleError("tau=1 is a copy of the newest weights", hint=f"write the rule 'copy'; {insist(0.0)}")
    if tau > 1.0 - LEAST_USUAL_DECAY:
        meant = f"if you mean decay={plain(tau)} write decay={plain(tau)}, i.e. tau={1 - tau:.12g}"
        raise RuleError(_forgets("tau", tau, 1 - tau), hint=f"{meant}; {insist(1 - tau)}")


def _check_half_life(half_life: float, insist: Insist) -> None:
    if half_life < 1.0:
        meant = f"if you mean decay={plain(half_life)} write decay={plain(half_life)}"
        anyway = insist(converted("half_life", half_life))
        raise RuleError(f"half_life={plain(half_life)} is less than one update", hint=f"{meant}; {anyway}")


def _check_horizon(horizon: float, insist: Insist) -> None:
    if horizon < 2.0:
        meant = f"if you mean decay={plain(horizon)} write decay={plain(horizon)}"
        hint = meant if horizon < 1.0 else insist(converted("horizon", horizon))
        raise RuleError(f"horizon={plain(horizon)} is less than two updates", hint=hint)


def paced(key: str, given: Quantity, pace: Pace) -> tuple[str, float]:
    """A decay in a unit of the run as one of the four ways, for each update.

    A share that is kept for each unit is kept as often as an update has units: decay ** units. A half-life is a number
    of units; so is a horizon, which means a decay of 1 - 1 / horizon for each of them.

    Raises:
        RuleError: the pace does not know the unit; a number stands where a rate is expected, or the other way round.

    Example:
        >>> paced("half_life", Quantity(2000.0, "samples"), Pace(batch=64))
        ('half_life', 31.25)
        >>> key, decay = paced("decay", Quantity(0.9999, "samples", rate=True), Pace(batch=8))
        >>> key, round(decay, 10)
        ('decay', 0.9992002799)
    """
    if key == "half_life":
        return key, pace.updates(given)
    is_share = key != "horizon"
    if given.rate != is_share:
        shown = f"{plain(given.number)}/{given.unit.removesuffix('s')}"
        expected = f"a share for each, {key}={shown}" if is_share else f"a number of {given.unit}"
        raise RuleError(f"{key}={given}: expected {expected}")
    number = real(f"{key}={given}", given.number, "(0, 1)" if is_share else "(1, inf)", lambda x: x > 0)
    lost = {"decay": 1.0 - number, "tau": number, "horizon": 1.0 / number}[key]
    if not 0.0 < lost < 1.0:
        raise RuleError(f"{key}={given}: expected a number in {'(0, 1)' if is_share else '(1, inf)'}")
    kept = math.log(number) if key == "decay" else math.log1p(-lost)
    return "decay", math.exp(pace.per_update(given.unit) * kept)
