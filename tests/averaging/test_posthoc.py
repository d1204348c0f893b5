"""Mixtures of profiles: against brute force, the closed form of the paper, and whole trajectories in float64."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyak.averaging import posthoc
from polyak.averaging.base import Rule
from polyak.averaging.parse import parse
from polyak.averaging.posthoc import Kept, inner_product, mixture
from polyak.averaging.profile import profile
from polyak.averaging.rules import EMA, Copy, Delayed, Every, Mean, PowerEMA
from polyak.errors import RuleError

POWER = PowerEMA.from_sigma_rel
rules: st.SearchStrategy[Rule] = st.one_of(
    st.builds(EMA, st.floats(0.5, 0.999), st.sampled_from(["copy", "initial", "debiased", "zero", "warm"])),
    st.builds(PowerEMA, st.floats(-0.5, 30)),
    st.just(Mean()),
    st.builds(Every, st.builds(PowerEMA, st.floats(0.5, 20)), st.integers(2, 7)),
    st.builds(Delayed, st.just(Mean()), st.integers(1, 20)),
)


def shares(kept: Kept, length: int) -> np.ndarray:
    """The shares of the values; that of zeros, which are no value, is left out."""
    made = np.zeros(length + 1)
    made[: kept.count + 1] = profile(kept.rule, kept.count).shares
    if kept.rule.origin == "zeros":
        made[0] = 0.0
    return made


def columns(kept: Sequence[Kept]) -> np.ndarray:
    return np.stack([shares(k, max(k.count for k in kept)) for k in kept], axis=1)


def every(period: int, count: int, widths: Sequence[float] = (0.05, 0.10), k: int = 1) -> list[Kept]:
    """Snapshots of two power-function averages, as the paper keeps them."""
    counts = sorted({*range(period, count + 1, period), count})
    return [Kept(Every(POWER(s), k) if k > 1 else POWER(s), n) for n in counts for s in widths]


@given(st.lists(st.tuples(rules, st.integers(1, 150)), min_size=1, max_size=8), rules)
def test_the_mixture_is_the_least_squares_solution_over_all_updates(pairs: list[tuple[Rule, int]], rule: Rule) -> None:
    kept = [Kept(r, n) for r, n in pairs]
    wanted = Kept(rule, max(n for _, n in pairs))
    design = columns([*kept, wanted])
    if not np.all(np.linalg.norm(design, axis=0)):
        with pytest.raises(RuleError, match="it still is zero"):
            mixture(kept, wanted)
        return
    made = mixture(kept, wanted)
    mixed, want = design[:, :-1] @ made.coefficients, design[:, -1]
    scale = np.linalg.norm(want)
    assert made.error == pytest.approx(np.linalg.norm(mixed - want) / scale, abs=1e-7)
    assert made.norm == pytest.approx(np.linalg.norm(made.coefficients))
    assert math.fsum(mixed) == pytest.approx(math.fsum(want), abs=1e-7)
    # No other mixture of the same total is nearer. Steps along which the total stays:
    totals = design[:, :-1].sum(axis=0)
    for step in np.eye(len(kept)):
        along = design[:, :-1] @ (step - totals * (step @ totals) / (totals @ totals))
        if np.linalg.norm(along) > 1e-6:
            assert abs(along @ (mixed - want)) / np.linalg.norm(along) <= 1e-6 * max(scale, made.norm)


@given(rules, st.integers(1, 200), rules, st.integers(1, 200))
def test_inner_products_are_sums_over_all_updates(a: Rule, m: int, b: Rule, n: int) -> None:
    length = max(m, n)
    expected = shares(Kept(a, m), length) @ shares(Kept(b, n), length)
    assert inner_product(Kept(a, m), Kept(b, n)) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("stretch", [1, 3, 7, 64])
def test_where_the_time_is_cut_does_not_matter(stretch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, wanted = every(30, 200), Kept(EMA(0.99), 190)
    whole = mixture(kept, wanted)
    monkeypatch.setattr(posthoc, "_STRETCH", stretch)
    parts = mixture(kept, wanted)
    np.testing.assert_allclose(parts.coefficients, whole.coefficients, rtol=1e-7, atol=1e-9)
    assert parts.error == pytest.approx(whole.error, rel=1e-7)


@pytest.mark.parametrize(("g", "h"), [(16.97, 6.94), (6.94, 16.97), (1.0, 2.0), (6.94, 6.94)])
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_long_power_functions_have_the_inner_product_of_the_paper(g: float, h: float, share: float) -> None:
    """Of densities (g + 1) t^g / T^(g + 1) on [0, T]; the sums tend to it as 1 / n."""
    n = 200_000
    m = int(share * n)
    closed = (g + 1) * (h + 1) / (g + h + 1) * share**h
    assert n * inner_product(Kept(PowerEMA(g), m), Kept(PowerEMA(h), n)) == pytest.approx(closed, rel=3e-4)


def test_a_kept_average_is_found_again() -> None:
    kept = every(50, 400)
    made = mixture(kept, kept[5])
    assert made.error < 1e-12
    np.testing.assert_allclose(made.coefficients, np.eye(len(kept))[5], atol=1e-9)


def test_the_paper_s_two_widths_make_those_between_and_beside_them() -> None:
    kept = every(100, 10_000)
    found = {s: mixture(kept, Kept(POWER(s), 10_000)) for s in (0.03, 0.06, 0.075, 0.09, 0.15, 0.2)}
    assert {s: made.error < 0.0015 for s, made in found.items()} == dict.fromkeys(found, True)
    assert all(made.norm < 7 for made in found.values())


@pytest.mark.parametrize(("period", "k"), [(1, 1), (7, 1), (50, 1), (333, 1), (64, 4), (100, 10), (99, 33), (250, 125)])
@pytest.mark.parametrize("sigma", [0.07, 0.12])
def test_the_clock_is_followed_at_every_interval(period: int, k: int, sigma: float) -> None:
    """theta(t) = t: the average of the updates of a wanted profile is T (gamma + 1) / (gamma + 2), up to its error.

    The kept averages move at every k-th update only, and are kept after every ``period`` updates.
    """
    count, wanted = 2000, POWER(sigma)
    kept = every(period, count, k=k) if period > 1 else every(1, 2000)[-200:]
    made = mixture(kept, Kept(Every(wanted, k) if k > 1 else wanted, count))
    clock = sum(c * replayed(m, np.arange(count + 1.0)) for c, m in zip(made.coefficients, kept, strict=True))
    exact = replayed(Kept(Every(wanted, k) if k > 1 else wanted, count), np.arange(count + 1.0))
    # By Cauchy and Schwarz the clock cannot be further away than the error of the shares lets it.
    size = np.linalg.norm(np.arange(count + 1.0) - count) * np.linalg.norm(shares(Kept(wanted, count), count)[1:])
    assert abs(clock - exact) <= 1.01 * made.error * size * math.sqrt(k) + 1e-9 * count
    limit = count * (wanted.gamma + 1) / (wanted.gamma + 2)
    assert exact == pytest.approx(limit, rel=1.1 * (wanted.gamma + 2) * k / count)
    assert clock == pytest.approx(exact, rel=0.03)


def replayed(kept: Kept, values: np.ndarray) -> float:
    """The average, update by update, in float64; values[0] is the initial one."""
    average = 0.0 if kept.rule.origin == "zeros" else float(values[0])
    for n in range(1, kept.count + 1):
        w = float(kept.rule.weight(n))
        average = average + w * (float(values[n]) - average) if w < 0.5 else values[n] - (1 - w) * (values[n] - average)
    return float(average)


@pytest.mark.parametrize(
    ("kept", "wanted"),
    [
        (every(40, 800), "power:sigma_rel=0.08"),
        (every(40, 800, k=5), "power:sigma_rel=0.08,every=5"),
        (every(25, 800), "ema:0.99"),
        ([Kept(Mean(), n) for n in range(100, 801, 100)], "mean,after=300"),
        ([Kept(EMA(d, "initial"), n) for d in (0.9, 0.99) for n in range(20, 801, 20)], "ema:0.97,start=initial"),
        ([Kept(EMA(0.99, "zero"), n) for n in range(20, 801, 20)], "ema:0.985,start=debiased"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_trajectory_gives_what_the_rule_would_have_given(kept: list[Kept], wanted: str) -> None:
    """A random walk: values that wander, so that every wrong share is seen."""
    values = np.cumsum(np.random.default_rng(3).normal(size=801))
    rule = Kept(parse(wanted), 800)
    made = mixture(kept, rule)
    mixed = sum(c * replayed(m, values) for c, m in zip(made.coefficients, kept, strict=True))
    gap = np.linalg.norm(values - values[-1]) * made.error * np.linalg.norm(shares(rule, 800))
    assert abs(mixed - replayed(rule, values)) <= gap * (1 + 1e-6) + 1e-8
    assert made.error < 0.06


def test_a_mixture_of_what_is_there_twice_shares_it() -> None:
    kept = [Kept(Mean(), 10), Kept(Mean(), 10), Kept(Copy(), 10)]
    np.testing.assert_allclose(mixture(kept, Kept(Mean(), 10)).coefficients, [0.5, 0.5, 0.0], atol=1e-12)


def test_the_total_is_that_of_the_wanted_rule_also_where_the_fit_is_poor() -> None:
    made = mixture([Kept(POWER(0.05), 100)], Kept(Mean(), 100))
    assert made.coefficients.tolist() == pytest.approx([1.0])
    assert made.error > 0.5


@pytest.mark.parametrize(
    ("kept", "wanted", "message"),
    [
        ([], Kept(Mean(), 1), "expected kept averages to mix, received none"),
        ([Kept(Mean(), 0)], Kept(Mean(), 1), "rule mean after 0 updates: expected from 1 to 100,000,000 updates"),
        ([Kept(Mean(), 10**8 + 1)], Kept(Mean(), 1), "rule mean after 100,000,001 updates: expected from 1"),
        ([Kept(Mean(), 5)], Kept(Mean(), 6), "rule mean after 6 updates: the kept averages end after 5"),
        ([Kept(Every(EMA(0.9, "zero"), 9), 5)], Kept(Mean(), 5), "after 5 updates: expected an average of values"),
    ],
)
def test_what_cannot_be_mixed_is_refused(kept: list[Kept], wanted: Kept, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        mixture(kept, wanted)


def test_a_million_updates_take_seconds_and_little_memory() -> None:
    import tracemalloc

    began = time.process_time()
    tracemalloc.start()
    made = mixture(every(10_000, 1_000_000), Kept(POWER(0.08), 1_000_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made.error < 1e-3
    assert peak < 60 << 20
    assert time.process_time() - began < 10
