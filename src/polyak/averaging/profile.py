"""What an average remembers: the share of each past value, and the figures that follow from the shares."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from polyak.averaging.base import Float64, Rule, count
from polyak.averaging.parse import parse


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """What an average holds after n updates.

    The ages and sizes weigh the updates alone, their shares normalised to 1. Before the first update that moves the
    average, ``mean_age`` and ``half_life`` are NaN and ``effective_samples`` is 0.

    Attributes:
        shares: float64, shape (n + 1,), read-only. ``shares[0]`` is the share of the initial value (weights or zeros),
            ``shares[i]`` that of the value at update i. They sum to 1.
        mean_age: average age in updates; the newest value has age 0.
        half_life: how many of the newest updates hold half of the weight; between whole updates, linearly.
        effective_samples: 1 / sum(share**2), the number of equally weighted values with the same variance.
        immaturity: share of the value the average started from, ``rule.immaturity(n)``.
    """

    shares: Float64
    mean_age: float
    half_life: float
    effective_samples: float
    immaturity: float


def profile(rule: Rule | str, n: int) -> Profile:
    """The shares after ``n`` updates and what follows from them, in O(n).

    The share of update i is w_i (1 - w_{i+1}) ... (1 - w_n), taken from products that run backwards from n, so that
    a weight of 1 needs no division.

    Args:
        rule: a rule or its text.
        n: number of updates, at least 0.

    Raises:
        RuleError: the text is no rule, or n is no whole number of at least 0.

    Example:
        >>> made = profile("ema:0.5,start=initial", 3)
        >>> made.shares
        array([0.125, 0.125, 0.25 , 0.5  ])
        >>> made.half_life, round(made.mean_age, 3), made.immaturity
        (0.875, 0.571, 0.125)
    """
    rule = parse(rule)
    n = count("profile: n", n, 0)
    shares = _shares(rule, n)
    shares.setflags(write=False)
    mean_age, half_life, samples = _figures(shares[:0:-1])
    return Profile(shares, mean_age, half_life, samples, rule.immaturity(n))


def _shares(rule: Rule, n: int) -> Float64:
    weights = np.concatenate([[1.0], rule.span(1, n)])
    after = np.cumprod(1.0 - weights[:0:-1])[::-1]
    weights[:-1] *= after
    return weights


def _figures(by_age: Float64) -> tuple[float, float, float]:
    """Mean age, half-life and effective samples of the updates' shares, the newest first."""
    total = float(np.sum(by_age))
    if not total:
        return math.nan, math.nan, 0.0
    part = by_age / total
    return float(part @ np.arange(part.size)), _half(part), float(1.0 / (part @ part))


def _half(part: Float64) -> float:
    covered = np.cumsum(part)
    index = int(np.searchsorted(covered, 0.5 * covered[-1]))
    return float(index + 1 - (covered[index] - 0.5 * covered[-1]) / part[index])
