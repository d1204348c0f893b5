"""What an average remembers, against brute force and the formulas of each family."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.averaging.strategies import rules

from polyak.averaging.base import Rule
from polyak.averaging.profile import profile
from polyak.averaging.rules import (
    EMA,
    Copy,
    Delayed,
    Mean,
    PowerEMA,
)
from polyak.errors import RuleError


def replayed_shares(rule: Rule, n: int) -> np.ndarray:
    """Shares by moving a vector of shares, update by update."""
    shares = np.zeros(n + 1)
    shares[0] = 1.0
    for i in range(1, n + 1):
        w = float(rule.weight(i))
        shares *= 1.0 - w
        shares[i] += w
    return shares


@given(rules, st.integers(0, 100))
def test_shares_are_those_of_a_replay_and_sum_to_one(rule: Rule, n: int) -> None:
    made = profile(rule, n)
    assert made.shares.shape == (n + 1,)
    assert made.shares.dtype == np.float64
    assert made.shares == pytest.approx(replayed_shares(rule, n), abs=1e-13)
    assert math.fsum(made.shares) == pytest.approx(1.0, abs=1e-13)
    assert made.immaturity == rule.immaturity(n)


@given(rules, st.integers(1, 100))
def test_figures_follow_from_the_shares(rule: Rule, n: int) -> None:
    made = profile(rule, n)
    shares = replayed_shares(rule, n)[1:]
    if shares.sum() < 1e-6:
        return
    part = shares / shares.sum()
    ages = n - np.arange(1, n + 1)
    assert made.mean_age == pytest.approx(math.fsum(part * ages), rel=1e-7, abs=1e-12)
    assert made.effective_samples == pytest.approx(1 / math.fsum(part**2), rel=1e-7)
    newest = part[::-1]
    whole = math.floor(made.half_life)
    assert math.fsum(newest[:whole]) <= 0.5 + 1e-7
    covered = math.fsum(newest[:whole]) + (made.half_life - whole) * (newest[whole] if whole < n else 0.0)
    assert covered == pytest.approx(0.5, abs=1e-7)


def power(n: int, gamma: float) -> np.ndarray:
    i = np.arange(1, n + 1, dtype=np.float64)
    return np.concatenate([[0.0], (i ** (gamma + 1) - (i - 1) ** (gamma + 1)) / n ** (gamma + 1)])


def ema(n: int, d: float, first: float, initial: float) -> np.ndarray:
    shares = np.concatenate([[initial * d**n], (1 - d) * d ** np.arange(n - 1, -1.0, -1.0)])
    shares[1] = first
    return shares


SHARES: list[tuple[Rule, Callable[[int], np.ndarray]]] = [
    (Mean(), lambda n: np.concatenate([[0.0], np.full(n, 1 / n)])),
    (PowerEMA(0.0), lambda n: np.concatenate([[0.0], np.full(n, 1 / n)])),
    (PowerEMA(6.94), lambda n: power(n, 6.94)),
    (PowerEMA(-0.5), lambda n: power(n, -0.5)),
    (EMA(0.99, "initial"), lambda n: ema(n, 0.99, 0.01 * 0.99 ** (n - 1), 1.0)),
    (EMA(0.99, "zero"), lambda n: ema(n, 0.99, 0.01 * 0.99 ** (n - 1), 1.0)),
    (EMA(0.99, "copy"), lambda n: ema(n, 0.99, 0.99 ** (n - 1), 0.0)),
    (EMA(0.99, "debiased"), lambda n: ema(n, 0.99, 0.01 * 0.99 ** (n - 1), 0.0) / (1 - 0.99**n)),
    (Copy(), lambda n: np.eye(n + 1)[n]),
    (
        Delayed(Mean(), 10),
        lambda n: np.where(np.arange(n + 1) > 10, 1 / max(n - 10, 1), 0) if n > 10 else np.eye(n + 1)[n],
    ),
]


@pytest.mark.parametrize(("rule", "expected"), SHARES, ids=lambda x: str(x) if isinstance(x, Rule) else "")
@pytest.mark.parametrize("n", [1, 2, 11, 500])
def test_shares_have_their_family_s_formula(rule: Rule, expected: Callable[[int], np.ndarray], n: int) -> None:
    assert profile(rule, n).shares == pytest.approx(expected(n), rel=1e-10, abs=1e-15)


def test_a_mean_of_every_tenth_value_remembers_those_alone() -> None:
    shares = profile("mean,every=10", 100).shares
    assert shares[10::10] == pytest.approx(np.full(10, 0.1), rel=1e-12)
    assert math.fsum(shares) == pytest.approx(1.0, abs=1e-14)
    assert np.count_nonzero(shares) == 10


@pytest.mark.parametrize("half_life", [100, 500, 2000])
def test_the_half_life_of_an_ema_is_the_one_asked_for(half_life: int) -> None:
    made = profile(f"ema:half_life={half_life},start=initial", 40 * half_life)
    decay = 2 ** (-1 / half_life)
    assert made.half_life == pytest.approx(half_life, rel=1e-5)
    assert made.mean_age == pytest.approx(decay / (1 - decay), rel=1e-6)
    assert made.effective_samples == pytest.approx((1 + decay) / (1 - decay), rel=1e-6)


def test_figures_of_a_mean() -> None:
    made = profile(Mean(), 1001)
    assert made.mean_age == pytest.approx(500)
    assert made.half_life == pytest.approx(500.5)
    assert made.effective_samples == pytest.approx(1001)
    assert made.immaturity == 1 / 1001


def test_sigma_rel_is_the_deviation_of_the_profile() -> None:
    n = 100_000
    shares = profile("power:sigma_rel=0.15", n).shares
    times = np.arange(n + 1) / n
    mean = shares @ times
    assert math.sqrt(shares @ (times - mean) ** 2) == pytest.approx(0.15, rel=1e-4)


def test_before_the_first_move_there_are_no_ages() -> None:
    for made in (profile("ema:0.9", 0), profile("ema:0.9,every=10", 9)):
        assert made.shares[0] == 1.0
        assert math.isnan(made.mean_age)
        assert math.isnan(made.half_life)
        assert made.effective_samples == 0.0
        assert made.immaturity == 1.0


@pytest.mark.parametrize(
    "rule", ["ema:0.9999", "mean", "power:sigma_rel=0.1", "inverse-gamma,every=1000,every=2", "ema:0.5"]
)
def test_a_million_updates_take_less_than_a_second(rule: str) -> None:
    began = time.process_time()
    made = profile(rule, 10**6)
    assert time.process_time() - began < 1.0
    assert math.fsum(made.shares) == pytest.approx(1.0, abs=1e-11)


def test_a_profile_is_a_value() -> None:
    made = profile("mean", 3)
    with pytest.raises(ValueError, match="read-only"):
        made.shares[0] = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.half_life = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("n", [-1, 1.5, True, "3", None])
def test_what_is_no_count_is_refused(n: object) -> None:
    with pytest.raises(RuleError) as caught:
        profile("mean", n)  # type: ignore[arg-type]
    assert caught.value.message == f"profile: n={n}: expected a whole number of updates, at least 0"


def test_what_is_no_rule_is_refused() -> None:
    with pytest.raises(RuleError, match="unknown rule 'meen'"):
        profile("meen", 3)
