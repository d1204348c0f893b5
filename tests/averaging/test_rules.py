"""Every rule against the tools' own figures, independent closed forms, the real tools, and the laws that all share."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.averaging.strategies import COPYING, RULES, STARTS, rules

from polyak.averaging.base import Ops, Rule
from polyak.averaging.kernel import lerp
from polyak.averaging.parse import parse
from polyak.averaging.parts import Parts, as_rule, continued, rule_from_json
from polyak.averaging.profile import profile
from polyak.averaging.rules import (
    EMA,
    NUMPY,
    Copy,
    CosineRamp,
    Delayed,
    DiffusersEMA,
    Every,
    InverseGamma,
    InversePower,
    LinearRamp,
    Mean,
    PolynomialDecay,
    PowerEMA,
    Scaled,
    Splice,
    TensorFlowEMA,
    TFModels,
    from_json,
)
from polyak.averaging.splice import begun, spliced
from polyak.errors import RuleError


def replay(rule: Rule, initial: float, values: list[float]) -> list[float]:
    average = np.float64(initial if rule.origin == "weights" else 0.0)
    averages = []
    for n, value in enumerate(values, 1):
        average = lerp(average, np.float64(value), float(rule.weight(n)))[()]
        averages.append(float(average))
    return averages


# FACTS: "EMA 0.5" means many things. Weights 1.0, then .8, .6, .4, .2.
CONVENTIONS = [
    (EMA(0.5, "copy"), (0.8, 0.7, 0.55, 0.375)),
    (EMA(0.5, "initial"), (0.9, 0.75, 0.575, 0.3875)),
    (EMA(0.5, "debiased"), (0.8, 0.666667, 0.514286, 0.346667)),
    (EMA(0.5, "zero"), (0.4, 0.5, 0.45, 0.325)),
    (TensorFlowEMA(0.999), (0.836364, 0.659091, 0.47972, 0.2999)),
    (TFModels(0.5), (0.654545, 0.613636, 0.465734, 0.294905)),
    (DiffusersEMA(0.5), (0.8, 0.636364, 0.459091, 0.27972)),
    (InverseGamma(), (0.8, 0.674008, 0.542279, 0.406445)),
    (Mean(), (0.8, 0.7, 0.6, 0.5)),
    (PowerEMA.from_sigma_rel(0.10), (0.8, 0.600816, 0.408038, 0.221207)),
    (Copy(), (0.8, 0.6, 0.4, 0.2)),
]


@pytest.mark.parametrize(("rule", "expected"), CONVENTIONS, ids=lambda x: str(x) if isinstance(x, Rule) else "")
def test_conventions_give_the_tools_figures(rule: Rule, expected: tuple[float, ...]) -> None:
    assert replay(rule, 1.0, [0.8, 0.6, 0.4, 0.2]) == pytest.approx(expected, abs=6e-7)


def ramp(n: np.ndarray, decay: float, shift: int) -> np.ndarray:
    t = n + shift
    return 1 - np.minimum(np.longdouble(decay), (1 + t) / (10 + t))


def inverse_gamma(n: np.ndarray, cap: float, gamma: float, power: float, least: float) -> np.ndarray:
    decay = np.clip(1 - (1 + (n - 1) / gamma) ** -power, least, cap)
    return 1 - np.where(n == 1, 0, decay)


def cosine(n: np.ndarray, decay: Any, steps: int, final: Any) -> np.ndarray:
    """As BYOL writes it: tau = final - (final - base) (cos(pi k / K) + 1) / 2, where k counts from 0."""
    done = np.minimum((n - 1) / steps, 1)
    return 1 - (final - (final - decay) * (np.cos(L(math.pi) * done) + 1) / 2)


L = np.longdouble
CLOSED: list[tuple[Rule, Callable[[np.ndarray], np.ndarray]]] = [
    (EMA(0.99, "copy"), lambda n: np.where(n == 1, 1, 1 - L(0.99))),
    (EMA(0.99, "initial"), lambda n: 1 - L(0.99) + 0 * n),
    (EMA(0.99, "zero"), lambda n: 1 - L(0.99) + 0 * n),
    (EMA(0.99, "debiased"), lambda n: (1 - L(0.99)) / (1 - L(0.99) ** n)),
    (EMA(0.999999, "debiased"), lambda n: (1 - L(0.999999)) / (1 - L(0.999999) ** n)),
    (EMA(0.0, "debiased"), lambda n: 1 + 0 * n),
    (EMA(0.99, "warm"), lambda n: ramp(n, 0.99, -2)),
    (TensorFlowEMA(0.99), lambda n: ramp(n, 0.99, 0)),
    (TFModels(0.99), lambda n: ramp(n, 0.99, 0)),
    (DiffusersEMA(0.99), lambda n: np.where(n == 1, 1, ramp(n, 0.99, -1))),
    (InverseGamma(), lambda n: inverse_gamma(n, 0.9999, 1.0, L(2 / 3), 0.0)),
    (InverseGamma(0.99, 5, 1.0, 0.3), lambda n: inverse_gamma(n, 0.99, 5.0, 1.0, 0.3)),
    (Mean(), lambda n: 1 / n),
    (PowerEMA(6.94), lambda n: 1 - (1 - 1 / n) ** L(7.94)),
    (PowerEMA(-0.5), lambda n: 1 - (1 - 1 / n) ** L(0.5)),
    (Copy(), lambda n: 1 + 0 * n),
    (Every(EMA(0.99, "initial"), 10), lambda n: np.where(n % 10 == 0, 1 - L(0.99) ** 10, 0)),
    (Every(EMA(0.99, "copy"), 10), lambda n: np.where(n % 10, 0, np.where(n == 10, 1, 1 - L(0.99) ** 10))),
    (Every(EMA(0.9, "debiased"), 4), lambda n: np.where(n % 4, 0, (1 - L(0.9) ** 4) / (1 - L(0.9) ** n))),
    (Every(Mean(), 10), lambda n: np.where(n % 10 == 0, 10 / n, 0)),
    (Every(PowerEMA(6.94), 10), lambda n: np.where(n % 10, 0, 1 - (1 - 10 / np.maximum(n, 10)) ** L(7.94))),
    (Delayed(Mean(), 100), lambda n: np.where(n <= 100, 1, 1 / np.maximum(n - 100, 1))),
    (
        Delayed(Every(Mean(), 10), 100),
        lambda n: np.where(n <= 100, 1, np.where(n % 10, 0, 10 / np.maximum(n - 100, 1))),
    ),
    (Every(Copy(), 50), lambda n: np.where(n % 50, 0, 1)),
    (PolynomialDecay(3), lambda n: 4 / (n + 3)),
    (CosineRamp(0.99, 1500), lambda n: cosine(n, L(0.99), 1500, 1)),
    (CosineRamp(0.99, 1500, 0.999), lambda n: cosine(n, L(0.99), 1500, L(0.999))),
    (LinearRamp(0.999, 700), lambda n: 1 - L(0.999) * np.minimum((n - 1) / 700, 1)),
    (LinearRamp(1.0, 700, 0.9), lambda n: (1 - L(0.9)) * np.maximum(1 - (n - 1) / 700, 0)),
    (InversePower(freq=1), lambda n: (10 + n) ** L(-0.5)),
    (InversePower(0.2, 0.0, 2.0, 400), lambda n: np.where(n % 400, 0, np.maximum(2 * n, 1) ** L(-0.2))),
    (Scaled(InverseGamma(), 1), lambda n: inverse_gamma(n, 0.9999, 1.0, L(2 / 3), 0.0)),
    (
        Splice(((0, EMA(0.9, "initial")), (1000, Delayed(Mean(), 1000)))),
        lambda n: np.where(n <= 1000, 1 - L(0.9), 1 / np.maximum(n - 1000, 1)),
    ),
]


@pytest.mark.parametrize(("rule", "closed"), CLOSED, ids=lambda x: str(x) if isinstance(x, Rule) else "")
def test_weights_follow_the_closed_form_over_2000_updates(rule: Rule, closed: Callable[..., np.ndarray]) -> None:
    n = np.arange(1, 2001)
    expected = closed(n.astype(np.longdouble)).astype(np.float64)
    weights = rule.weight(n)
    assert weights.dtype == np.float64
    # The written-out cosine cancels near its end, where 1e-19 is the rounding of the reference itself.
    assert weights == pytest.approx(expected, rel=2e-14, abs=1e-18 if "cosine" in str(rule) else 1e-300)
    assert [float(rule.weight(int(i))) for i in n[:60]] == pytest.approx(list(weights[:60]), rel=1e-15)
    assert rule.span(1, 2000) == pytest.approx(weights, rel=1e-12, abs=0)
    assert rule.span(37, 61) == pytest.approx(weights[36:61], rel=1e-12)


@pytest.mark.parametrize("n", [10**3, 10**6, 10**9, 10**12])
def test_large_updates_lose_no_precision(n: int) -> None:
    x = L(1) / n
    assert float(PowerEMA(6.94).weight(n)) == pytest.approx(float(-np.expm1(L(7.94) * np.log1p(-x))), rel=1e-14, abs=0)
    assert float(EMA(1 - 1e-12, "debiased").weight(n)) == pytest.approx(
        float(np.expm1(np.log1p(-L(1) * (1 - L(1 - 1e-12)))) / np.expm1(n * np.log1p(-(1 - L(1 - 1e-12))))),
        rel=1e-12,
        abs=0,
    )


@pytest.mark.parametrize("start", ["initial", "copy", "zero"])
def test_a_merged_weight_of_a_decay_close_to_one_loses_no_precision(start: Any) -> None:
    decay = 1 - 1e-12
    expected = float(-np.expm1(3 * np.log1p(-(1 - L(decay)))))
    assert float(EMA(decay, start).merged(9, 3)) == pytest.approx(expected, rel=1e-14, abs=0)


@pytest.mark.parametrize("rule", COPYING, ids=str)
def test_a_copying_rule_gives_exactly_one_at_the_first_update(rule: Rule) -> None:
    assert float(rule.weight(1)) == 1.0
    assert float(rule.merged(5, 5)) == 1.0
    assert float(rule.weight(2)) < 1.0


@pytest.mark.parametrize(
    ("rule", "origin"), [(r, "weights") for r in [*COPYING, EMA(0.9, "initial"), TensorFlowEMA(0.9)]]
)
def test_most_rules_start_from_the_weights(rule: Rule, origin: str) -> None:
    assert rule.origin == Every(rule, 2).origin == Delayed(rule, 2).origin == origin


@pytest.mark.parametrize("rule", [EMA(0.9, "zero"), TFModels(0.9)], ids=str)
def test_zero_initialised_rules_start_from_zeros(rule: Rule) -> None:
    assert rule.origin == Every(rule, 2).origin == Delayed(rule, 0).origin == "zeros"
    assert Splice(((0, rule), (9, Mean()))).origin == "zeros"
    assert Splice(((0, Mean()), (9, rule))).origin == "weights"


@pytest.mark.parametrize(
    ("rule", "rests"),
    [
        (InversePower(freq=1), False),
        (InversePower(freq=2), True),
        (Every(Mean(), 1), False),
        (Delayed(Every(Mean(), 2), 5), True),
        (Splice(((0, Mean()), (9, InversePower(freq=7)))), True),
        (Splice(((0, Mean()), (9, Copy()))), False),
    ],
    ids=str,
)
def test_a_rule_that_leaves_the_average_alone_at_most_updates_says_so(rule: Rule, rests: bool) -> None:
    assert rule.rests == rests
    assert (np.mean(rule.weight(np.arange(100, 200)) == 0) >= 0.5) == rests


# --- laws of all rules ---


@given(rules, st.integers(1, 10**12))
def test_weights_lie_in_the_unit_interval(rule: Rule, n: int) -> None:
    for weight in [*np.atleast_1d(rule.weight(np.arange(1, 50))), rule.weight(n)]:
        assert 0.0 <= weight <= 1.0


@given(rules)
def test_json_and_text_give_the_rule_back(rule: Rule) -> None:
    assert from_json(json.loads(json.dumps(rule.to_json()))) == rule
    assert parse(str(rule)) == rule


@given(rules, st.integers(1, 300))
def test_merging_one_update_changes_no_bit(rule: Rule, n: int) -> None:
    assert rule.merged(n, 1) == rule.weight(n)
    assert Every(rule, 1).weight(n) == rule.weight(n)


@given(rules, st.integers(1, 40), st.integers(0, 200), st.floats(-10, 10), st.floats(-10, 10))
def test_k_updates_towards_one_value_equal_one_merged_update(
    rule: Rule, k: int, before: int, a: float, x: float
) -> None:
    n = before + k
    stepped = np.float64(a)
    for i in range(before + 1, n + 1):
        stepped = lerp(stepped, np.float64(x), float(rule.weight(i)))[()]
    assert float(stepped) == pytest.approx(float(lerp(a, x, float(rule.merged(n, k)))), abs=1e-12)


@given(rules, st.integers(1, 12), st.integers(1, 12))
def test_every_moves_at_its_multiples_only_by_the_merged_weight(rule: Rule, k: int, m: int) -> None:
    wrapped = Every(rule, k)
    assert wrapped.weight(m * k) == rule.merged(m * k, k)
    for n in range((m - 1) * k + 1, m * k):
        assert wrapped.weight(n) == 0.0


@given(rules, st.integers(0, 20), st.integers(1, 60))
def test_delayed_copies_and_then_counts_from_one(rule: Rule, after: int, n: int) -> None:
    assert Delayed(rule, after).weight(n) == (1.0 if n <= after else rule.weight(n - after))


@given(rules, st.integers(1, 150), st.integers(0, 150))
def test_kept_is_the_product_of_what_each_update_leaves(rule: Rule, first: int, length: int) -> None:
    last = first + length - 1
    product = math.prod(1.0 - float(rule.weight(i)) for i in range(first, last + 1))
    # A weight of 1 - 1e-17 rounds to 1, so the product may lose what the closed form still sees.
    assert rule.kept(first, last) == pytest.approx(product, rel=1e-9, abs=1e-15 * (length > 0))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_kept_is_the_product_from_the_first_updates_on(rule: Rule) -> None:
    left = 1.0 - rule.weight(np.arange(1, 31))
    for first in range(1, 31):
        for last in range(first - 1, 31):
            assert rule.kept(first, last) == pytest.approx(float(np.prod(left[first - 1 : last])), rel=1e-12, abs=0)


@given(rules, st.integers(0, 120))
def test_immaturity_falls_from_one(rule: Rule, n: int) -> None:
    assert rule.immaturity(0) == 1.0
    assert 0.0 <= rule.immaturity(n + 1) <= rule.immaturity(n) * (1 + 1e-9) <= 1 + 1e-9


# --- immaturity ---


@pytest.mark.parametrize(
    ("rule", "n", "expected"),
    [
        (EMA(0.999, "initial"), 1000, 0.999**1000),
        (EMA(0.999, "zero"), 1000, 0.999**1000),
        (EMA(0.999, "copy"), 1000, 0.999**999),
        (EMA(0.999, "copy"), 1, 1.0),
        (EMA(0.5, "debiased"), 3, 1 / 7),
        (EMA(0.999), 2, 0.1),
        (EMA(0.999), 3, 0.1 * 2 / 11),
        (TensorFlowEMA(0.999), 2, 2 / 11 * 3 / 12),
        (TFModels(0.999), 2, 2 / 11 * 3 / 12),
        (DiffusersEMA(0.999), 3, 2 / 11 * 3 / 12),
        (InverseGamma(), 3, (1 - 2 ** (-2 / 3)) * (1 - 3 ** (-2 / 3))),
        (Mean(), 8, 1 / 8),
        (PowerEMA(2), 10, 1e-3),
        (Copy(), 0, 1.0),
        (Copy(), 1, 0.0),
        (Every(Copy(), 10), 9, 1.0),
        (Every(Copy(), 10), 10, 0.0),
        (Every(EMA(0.999, "initial"), 10), 1009, 0.999**1000),
        (Every(EMA(0.999, "copy"), 10), 9, 1.0),
        (Every(EMA(0.999, "copy"), 10), 19, 1.0),
        (Every(EMA(0.999, "copy"), 10), 1009, 0.999**990),
        (Every(Mean(), 10), 50, 1 / 5),
        (Delayed(EMA(0.999, "initial"), 100), 100, 1.0),
        (Delayed(EMA(0.999, "initial"), 100), 1100, 0.999**1000),
        (Delayed(Mean(), 100), 108, 1 / 8),
        (PolynomialDecay(3), 8, 1 / math.comb(11, 4)),
        (CosineRamp(0.9, 2), 5, 0.9 * 0.95),
        (LinearRamp(0.9, 2), 4, 0.45 * 0.9 * 0.9),
        (LinearRamp(1.0, 2, 0.9), 4, 0.9 * 0.95),
        (InversePower(1.0, 0.0, 1.0, 10), 39, 0.9 * 0.95 * (1 - 1 / 30)),
        (Scaled(InverseGamma(), 2), 3, InverseGamma().kept(3, 6)),
        (Splice(((0, EMA(0.9, "initial")), (10, EMA(0.99, "initial")))), 30, 0.9**10 * 0.99**20),
        (Splice(((0, EMA(0.9, "copy")), (10, EMA(0.99, "copy")))), 30, 0.9**9 * 0.99**20),
        (Splice(((0, EMA(0.9)), (10, Delayed(Mean(), 10)))), 18, 1 / 8),
        (Splice(((0, Mean()), (10, Delayed(Mean(), 99)), (50, EMA(0.9, "initial")))), 60, 0.9**10),
        (Splice(((0, Mean()), (10, Delayed(Mean(), 99)), (50, EMA(0.9, "initial")), (60, Mean()))), 80, 0.75 * 0.9**10),
        (Splice(((0, EMA(0.9, "initial")), (10, Delayed(Mean(), 10)))), 8, 0.9**8),
        (Splice(((0, EMA(0.9, "initial")), (10, Delayed(Mean(), 10)))), 10, 0.9**10),
        (Splice(((0, EMA(0.9, "initial")), (10, Delayed(Mean(), 20)))), 15, 1.0),
        (Every(Splice(((0, EMA(0.9, "initial")), (40, Delayed(Mean(), 40)))), 5), 23, 0.9**20),
        (Delayed(Splice(((0, EMA(0.9, "initial")), (40, Delayed(Mean(), 40)))), 5), 25, 0.9**20),
        (Scaled(Splice(((0, EMA(0.9, "initial")), (40, Delayed(Mean(), 40)))), 4.0), 5, 0.9**20),
        (Every(Delayed(EMA(0.9, "initial"), 25), 10), 30, 1.0),
        (Every(Delayed(EMA(0.9, "initial"), 25), 10), 50, 0.9**20),
    ],
    ids=str,
)
def test_immaturity_is_the_share_of_the_start(rule: Rule, n: int, expected: float) -> None:
    assert rule.immaturity(n) == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize(
    "rule",
    [
        EMA(0.9999, "warm"),
        EMA(0.5, "warm"),
        TensorFlowEMA(0.9999),
        DiffusersEMA(0.999),
        EMA(0.99999, "debiased"),
        Mean(),
    ],
    ids=str,
)
def test_closed_forms_of_kept_agree_with_the_plain_product(rule: Rule) -> None:
    for first, last in [(1, 3), (2, 2), (2, 5000), (300, 120_000), (89_950, 90_050), (7, 6)]:
        assert rule.kept(first, last) == pytest.approx(Rule.kept(rule, first, last), rel=1e-9, abs=1e-17)


@pytest.mark.parametrize(
    "rule",
    [
        InverseGamma(1 - 1e-9, power=1.0),
        InverseGamma(1 - 1e-9, 10, 1.0),
        InverseGamma(1 - 2e-6),
        CosineRamp(1 - 1e-6, 10**7),
        CosineRamp(1 - 1e-6, 2 * 10**6, 1 - 1e-7),
        LinearRamp(1.0, 4 * 10**6, 1 - 1e-6),
        InversePower(1.0, freq=1),
        PolynomialDecay(1.5),
    ],
    ids=str,
)
def test_long_stretches_agree_with_the_plain_product(rule: Rule) -> None:
    product = math.exp(math.fsum(np.log1p(-rule.weight(np.arange(2, 3_000_001)))))
    assert product > 0
    assert rule.kept(2, 3_000_000) == pytest.approx(product, rel=1e-6, abs=0)


def test_immaturity_is_cheap_after_a_billion_updates() -> None:
    slow: list[Rule] = [EMA(1 - 1e-10, start) for start in STARTS]
    slow += [TensorFlowEMA(1 - 1e-10), InverseGamma(1 - 1e-12, power=1.0), PolynomialDecay(0.5)]
    slow += [CosineRamp(1 - 1e-9, 10**10), LinearRamp(1 - 1e-9, 10**10, 0.999999), InversePower(1.1, freq=1)]
    began = time.process_time()
    for rule in [*slow, *RULES, *(Every(Delayed(rule, 1000), 10) for rule in slow)]:
        assert 0.0 <= rule.immaturity(10**9) < 1.0
    assert time.process_time() - began < 3.0
    assert EMA(1 - 1e-10, "initial").immaturity(10**9) == pytest.approx(math.exp(-0.1), rel=1e-6)
    assert InverseGamma(1 - 1e-12, power=1.0).immaturity(10**9) == pytest.approx(1e-9, rel=1e-6, abs=0)


class Alternating(Rule):
    """A rule outside polyak that gives only its formula."""

    name = "alternating"

    def _at(self, n: Any, ops: Ops) -> Any:
        return ops.where(n / 2 == ops.floor(n / 2), 0.25, 0.0 * n)


def test_a_rule_needs_no_more_than_its_formula() -> None:
    rule = Alternating()
    assert rule.immaturity(4) == 0.75**2
    began = time.process_time()
    assert rule.immaturity(10**9) < 1e-18
    assert time.process_time() - began < 0.5
    assert float(rule.merged(4, 4)) == 1 - 0.75**2
    assert Every(rule, 4).weight(np.arange(1, 9)).tolist() == [0, 0, 0, 1 - 0.75**2] * 2


# --- the power average ---


@pytest.mark.parametrize(
    ("sigma_rel", "gamma"),
    [(0.05, 16.972198602), (0.10, 6.937203938), (0.15, 3.557868775), (0.20, 1.826213780), (0.25, 0.719823958)],
)
def test_gamma_of_sigma_rel(sigma_rel: float, gamma: float) -> None:
    assert PowerEMA.from_sigma_rel(sigma_rel).gamma == pytest.approx(gamma, abs=1e-9)


@given(st.floats(1e-12, 0.3))
def test_sigma_rel_comes_back(sigma_rel: float) -> None:
    assert PowerEMA.from_sigma_rel(sigma_rel).sigma_rel == pytest.approx(sigma_rel, rel=1e-12, abs=0)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.10, 0.20])
@pytest.mark.parametrize("interval", [1, 7, 10, 100])
def test_power_average_of_time_is_the_same_for_every_interval(sigma_rel: float, interval: int) -> None:
    rule = PowerEMA.from_sigma_rel(sigma_rel)
    total = 21_000
    average = np.float64(0.0)
    for t in range(interval, total + 1, interval):
        average = lerp(average, np.float64(t), float(Every(rule, interval).weight(t)))[()]
    expected = (rule.gamma + 1) / (rule.gamma + 2)
    assert float(average) / total == pytest.approx(expected, abs=interval / total)
    if sigma_rel == 0.10:
        assert expected == pytest.approx(0.8881082, abs=1e-7)


# --- TensorFlow: the same formulas, and the real tools ---


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def tensorflow_ops(tf: Any) -> Ops:
    from polyak.frameworks.tensorflow_kernel import OPS

    return OPS


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_tensorflow_evaluates_the_same_formula_in_a_graph(rule: Rule, tf: Any, tensorflow_ops: Ops) -> None:
    count = tf.Variable(0, dtype=tf.int64)

    @tf.function
    def step() -> Any:
        count.assign_add(1)
        return rule.weight(count, tensorflow_ops)

    weights = [step() for _ in range(40)]
    expected = rule.weight(np.arange(1, 41))
    assert {weight.dtype for weight in weights} == {tf.float64}
    assert np.array(weights) == pytest.approx(expected, rel=1e-14)
    assert np.array_equal(np.array(weights) == 1.0, expected == 1.0)
    assert np.array(rule.weight(np.arange(1.0, 41.0), tensorflow_ops)) == pytest.approx(expected, rel=1e-14)


def weights_of_a_run(steps: int) -> np.ndarray:
    rng = np.random.default_rng(7)
    return np.cumsum(rng.normal(0.02, 0.1, (steps + 1, 5)), axis=0)


def worst_gap_to_tensorflow(tf: Any, rule: Rule, dtype: str, decay: float, count_updates: bool) -> float:
    """Largest difference over a run, relative to the largest value."""
    values = weights_of_a_run(300).astype(dtype)
    variable, count = tf.Variable(values[0]), tf.Variable(0, dtype=tf.int64)
    tool = tf.train.ExponentialMovingAverage(decay, num_updates=count if count_updates else None)
    tool.apply([variable])  # its first call makes the average, of the initial weights
    ours, worst = values[0], 0.0
    for n, value in enumerate(values[1:], 1):
        count.assign(n)
        variable.assign(value)
        tool.apply([variable])
        ours = lerp(ours, value, float(rule.weight(n)))
        worst = max(worst, float(np.max(np.abs(tool.average(variable).numpy() - ours))))
    assert ours.dtype == dtype
    return worst / float(np.max(np.abs(values)))


@pytest.mark.parametrize(
    ("dtype", "decay", "tolerance"),
    # TensorFlow holds 1 - decay in float32; 1 - 0.96875 is exact there.
    [("float64", 0.96875, 1e-14), ("float32", 0.96875, 2e-6), ("float32", 0.99, 2e-6), ("float64", 0.99, 2e-6)],
)
def test_initial_start_is_tf_train_exponential_moving_average(
    tf: Any, dtype: str, decay: float, tolerance: float
) -> None:
    assert worst_gap_to_tensorflow(tf, EMA(decay, "initial"), dtype, decay, count_updates=False) < tolerance


@pytest.mark.parametrize(("dtype", "decay"), [("float32", 0.9), ("float64", 0.9), ("float64", 0.9999)])
def test_tf_rule_is_tf_train_exponential_moving_average_with_num_updates(tf: Any, dtype: str, decay: float) -> None:
    assert worst_gap_to_tensorflow(tf, TensorFlowEMA(decay), dtype, decay, count_updates=True) < 2e-6


# --- errors ---


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EMA(1.0), "rule 'ema': decay=1: expected a number in [0, 1)"),
        (lambda: EMA(-0.1), "rule 'ema': decay=-0.1: expected a number in [0, 1)"),
        (lambda: EMA(math.nan), "rule 'ema': decay=nan: expected a number in [0, 1)"),
        (lambda: EMA("0.9"), "rule 'ema': decay=0.9: expected a number in [0, 1)"),  # type: ignore[arg-type]
        (lambda: EMA(None), "rule 'ema': decay=None: expected a number in [0, 1)"),  # type: ignore[arg-type]
        (lambda: EMA(False), "rule 'ema': decay=False: expected a number in [0, 1)"),
        (
            lambda: EMA(0.9, "cold"),  # type: ignore[arg-type]
            "rule 'ema': start=cold: expected one of copy, initial, debiased, zero, warm",
        ),
        (lambda: TensorFlowEMA(2), "rule 'tf': decay=2: expected a number in [0, 1)"),
        (lambda: TFModels(math.inf), "rule 'tf-models': decay=inf: expected a number in [0, 1)"),
        (lambda: DiffusersEMA(-1), "rule 'diffusers': decay=-1: expected a number in [0, 1)"),
        (lambda: InverseGamma(power=0), "rule 'inverse-gamma': power=0: expected a number in (0, inf)"),
        (lambda: InverseGamma(inv_gamma=0), "rule 'inverse-gamma': inv_gamma=0: expected a number in [1e-9, inf)"),
        (
            lambda: InverseGamma(0.5, min_decay=0.6),
            "rule 'inverse-gamma': min_decay=0.6: expected a number in [0, decay=0.5]",
        ),
        (lambda: PowerEMA(-1), "rule 'power': gamma=-1: expected a number in (-1, 1e15]"),
        (lambda: PowerEMA(10**400), "rule 'power': gamma=1000000"),
        (
            lambda: PowerEMA.from_sigma_rel(0.31),
            "rule 'power': sigma_rel=0.31: expected a number in [1e-15, 0.3002831]",
        ),
        (lambda: PowerEMA.from_sigma_rel(0), "rule 'power': sigma_rel=0: expected a number in [1e-15, 0.3002831]"),
        (lambda: Every(Mean(), 0), "rule 'every': k=0: expected a whole number of updates, at least 1"),
        (lambda: Every(Mean(), 2.0), "rule 'every': k=2.0: expected a whole number of updates, at least 1"),  # type: ignore[arg-type]
        (lambda: Every(Mean(), True), "rule 'every': k=True: expected a whole number of updates, at least 1"),
        (lambda: Every(Mean(), 2**54), "rule 'every': k=18014398509481984: expected a whole number"),
        (lambda: Delayed(Mean(), -1), "rule 'after': after=-1: expected a whole number of updates, at least 0"),
        (lambda: Every("mean", 2), "rule 'every': expected a Rule inside, received 'mean'"),  # type: ignore[arg-type]
    ],
)
def test_out_of_range_is_refused_with_the_field_and_the_range(make: Callable[[], Rule], message: str) -> None:
    with pytest.raises(RuleError) as caught:
        make()
    assert caught.value.message.startswith(message)
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"rule": "ema"}, "rule 'ema': missing setting 'decay'"),
        ({"rule": "every", "k": 2}, "rule 'every': missing setting 'rule'"),
        ({"rule": "emma", "decay": 0.9}, "unknown rule 'emma'"),
        ({"rule": "mean", "decay": 0.9}, "rule 'mean': unknown setting 'decay'"),
        ({"rule": "mean", "of": {"rule": "mean"}}, "rule 'mean': unknown setting 'rule'"),
        ({"rule": "ema", "decay": "0.9"}, "rule 'ema': decay=0.9: expected a number in [0, 1)"),
        ({"rule": "ema", "decay": 0.9, "start": ["copy"]}, "rule 'ema': start=['copy']: expected one of"),
        ({"rule": "every", "k": 2, "of": "mean"}, "expected a rule as JSON, like {'rule': 'mean'}; received 'mean'"),
        ({"rule": ["mean"]}, "expected a rule as JSON, like {'rule': 'mean'}; received {'rule': ['mean']}"),
        ([], "expected a rule as JSON, like {'rule': 'mean'}; received []"),
        (None, "expected a rule as JSON, like {'rule': 'mean'}; received None"),
    ],
)
def test_json_of_no_rule_is_refused(data: Any, message: str) -> None:
    with pytest.raises(RuleError) as caught:
        from_json(data)
    assert caught.value.message.startswith(message)


def test_deeply_wrapped_json_is_refused() -> None:
    data: dict[str, Any] = {"rule": "mean"}
    for _ in range(100_000):
        data = {"rule": "every", "k": 2, "of": data}
    with pytest.raises(RuleError, match="more than 8 wrappers"):
        from_json(data)
    while data:  # freeing a deep dict recursively is Python's problem, not ours
        data = data.pop("of", {})


def test_numpy_numbers_become_plain_ones() -> None:
    rule = Every(EMA(np.float32(0.5)), np.int64(3))  # type: ignore[arg-type]
    assert (
        json.dumps(rule.to_json()) == '{"rule": "every", "of": {"rule": "ema", "decay": 0.5, "start": "warm"}, "k": 3}'
    )


@given(st.integers(1, 10**6))
def test_numpy_results_are_float64_scalars_for_scalars(n: int) -> None:
    assume(n > 1)
    for rule in RULES:
        assert isinstance(rule.weight(n, NUMPY), np.float64)


# --- another batch size ---

EXACT = [EMA(0.99, "initial"), EMA(0.99, "zero"), EMA(0.99, "debiased"), Mean(), PowerEMA(6.94), Copy()]


@pytest.mark.parametrize("kappa", [2, 8])
@pytest.mark.parametrize(
    "rule", [*EXACT, InverseGamma(), CosineRamp(0.9, 400), Splice(((0, Mean()), (16, Copy())))], ids=str
)
def test_an_update_of_the_scaled_rule_is_kappa_updates_of_the_rule(rule: Rule, kappa: int) -> None:
    for m in (1, 2, 5, 40):
        expected = float(rule.merged(m * kappa, kappa))
        assert float(rule.scaled(kappa).weight(m)) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("rule", [EMA(0.99, "initial"), EMA(0.99, "zero"), EMA(0.99, "debiased")], ids=str)
@pytest.mark.parametrize("kappa", [0.25, 0.5])
def test_kappa_updates_at_a_smaller_batch_are_one_of_the_rule(rule: Rule, kappa: float) -> None:
    smaller, k = rule.scaled(kappa), round(1 / kappa)
    for m in (1, 2, 5, 40):
        assert float(smaller.merged(m * k, k)) == pytest.approx(float(rule.weight(m)), rel=1e-12)


def test_a_decay_is_scaled_as_busbridge_et_al_say() -> None:
    assert EMA(0.9999).scaled(8) == EMA(0.9999**8)
    assert EMA(0.9999).scaled(8).scaled(1 / 8).decay == pytest.approx(0.9999, rel=1e-15)  # type: ignore[attr-defined]
    assert round(0.9999**8, 10) == 0.9992002799


@pytest.mark.parametrize("rule", [EMA(0.999), TensorFlowEMA(0.999), DiffusersEMA(0.999), PolynomialDecay(3)], ids=str)
def test_what_is_relative_to_the_run_stays_so_at_another_batch_size(rule: Rule) -> None:
    samples = 40_000
    plain = profile(rule, samples)
    larger = profile(rule.scaled(4), samples // 4)
    assert larger.mean_age * 4 == pytest.approx(plain.mean_age, rel=0.01)
    assert larger.effective_samples * 4 == pytest.approx(plain.effective_samples, rel=0.01)


def test_intervals_and_delays_are_those_of_the_nearest_update() -> None:
    rule = Delayed(Every(EMA(0.999, "initial"), 100), 1000)
    assert rule.scaled(8) == Delayed(Every(EMA(0.999**8, "initial"), 12), 125)
    assert rule.scaled(0.5) == Delayed(Every(EMA(0.999**0.5, "initial"), 200), 2000)
    assert Every(Mean(), 2).scaled(8) == Every(Mean(), 1)
    assert Splice(((0, EMA(0.9)), (6, Mean()), (80, Copy()))).scaled(8) == Splice(
        ((0, EMA(0.9**8)), (1, Mean()), (10, Copy()))
    )
    assert Splice(((0, EMA(0.9)), (3, Mean()))).scaled(8) == Mean()


def test_a_scaled_rule_is_scaled_once() -> None:
    assert Scaled(InverseGamma(), 4).scaled(2) == InverseGamma().scaled(8)
    assert TFModels(0.999).scaled(8) == TFModels(0.999**8)


@given(rules, st.integers(1, 6), st.integers(1, 40))
def test_scaling_by_a_whole_number_merges(rule: Rule, kappa: int, m: int) -> None:
    assert float(Scaled(rule, kappa).weight(m)) == pytest.approx(float(rule.merged(m * kappa, kappa)), abs=1e-12)


@pytest.mark.parametrize("kappa", [1 / 3, 0.1, 0.7])
def test_a_part_of_an_update_keeps_the_part_th_power(kappa: float) -> None:
    rule = EMA(0.9, "initial")
    assert Scaled(rule, kappa).weight(np.arange(1, 50)) == pytest.approx(np.full(49, 1 - 0.9**kappa), rel=1e-9)


@pytest.mark.parametrize("kappa", [0, -1, 1e7, float("nan"), "8"])
def test_no_batch_size_is_refused(kappa: Any) -> None:
    with pytest.raises(RuleError, match="kappa="):
        EMA(0.9).scaled(kappa)


# --- one after another ---


def test_shares_of_a_changed_rule_are_those_of_what_happened() -> None:
    rule = spliced(EMA(0.9, "copy"), 100, EMA(0.999, "copy"))
    shares = profile(rule, 300).shares
    weights = [*EMA(0.9, "copy").span(1, 100), *EMA(0.999, "copy").span(101, 300)]
    left = 1.0
    for n in range(300, 0, -1):
        assert shares[n] == pytest.approx(weights[n - 1] * left, rel=1e-12, abs=1e-300)
        left *= 1 - weights[n - 1]


def test_rules_that_hold_for_no_update_are_left_out() -> None:
    assert spliced(Mean(), 0, Copy()) == Copy()
    assert spliced(spliced(Mean(), 10, Copy()), 10, EMA(0.9)) == Splice(((0, Mean()), (10, EMA(0.9))))
    assert spliced(Mean(), 10, Mean()) == Mean()
    assert spliced(Mean(), 30, spliced(Copy(), 20, EMA(0.9))) == Splice(((0, Mean()), (30, EMA(0.9))))


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (((0, Mean()),), "2 to 256"),
        (((0, Mean()), (0, Copy())), "ascending"),
        (((5, Mean()), (9, Copy())), "begin with 0"),
        (((0, Mean()), (-1, Copy())), "until=-1"),
        (((0, Mean()), (4, "copy")), "expected a Rule inside"),
        (((0, Mean()), (4, Splice(((0, Mean()), (2, Copy()))))), "one after another"),
        (tuple((i, EMA(0.9)) for i in range(300)), "2 to 256"),
    ],
)
def test_what_does_not_follow_one_another_is_refused(pieces: Any, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        Splice(pieces)


@pytest.mark.parametrize(
    "data",
    [
        {"rule": "splice"},
        {"rule": "splice", "pieces": 3},
        {"rule": "splice", "pieces": [[0, {"rule": "mean"}], 7]},
        {"rule": "splice", "pieces": [[0, {"rule": "mean"}], [5, "copy"]]},
        {"rule": "splice", "pieces": [[0, {"rule": "mean"}], [5, {"rule": "copy"}]], "at": 3},
    ],
)
def test_json_of_no_splice_is_refused(data: Any) -> None:
    with pytest.raises(RuleError):
        from_json(data)


def test_deeply_spliced_json_is_refused() -> None:
    data: Any = {"rule": "mean"}
    for _ in range(2000):
        data = {"rule": "every", "k": 2, "of": {"rule": "splice", "pieces": [[0, data], [5, {"rule": "copy"}]]}}
    with pytest.raises(RuleError, match="eight deep"):
        from_json(data)


def test_a_rule_that_follows_another_is_spliced_for_all_weights_or_by_part() -> None:
    assert str(continued(parse("mean"), 10, parse("ema:0.9"), [])) == "mean until 10 then ema:0.9"
    by_part = Parts.of({"head/*": "mean", "*": None})
    assert str(continued(by_part, 10, Parts.of({"head/*": "copy", "*": "mean"}), [])) == (
        "{head/*: mean until 10 then copy, *: left out}"
    )


@pytest.mark.parametrize(
    ("rule", "then", "expected"),
    [
        ("mean", {"head/*": None, "*": "copy"}, "{head/*: left out, *: mean until 10 then copy}"),
        ({"head/*": "copy", "*": "mean"}, "mean", "{head/*: copy until 10 then mean, *: mean}"),
        (
            {"head/*": "copy", "body/*": "mean"},
            "ema:0.9",
            "{head/*: copy until 10 then ema:0.9, body/*: mean until 10 then ema:0.9, *: mean until 10 then ema:0.9}",
        ),
        (
            {"head/*": "copy", "*": "mean"},
            {"body/*": "mean", "*": "copy"},
            "{body/kernel: mean, head/bias: copy, body/*: mean, *: mean until 10 then copy}",
        ),
    ],
)
def test_parts_that_follow_others_have_a_rule_for_weights_to_come(rule: Any, then: Any, expected: str) -> None:
    changed = continued(as_rule(rule), 10, as_rule(then), ["body/kernel", "head/bias"])
    assert str(changed) == expected
    assert changed.immaturity(11) <= 1 / 11


def test_a_copy_after_very_many_updates_takes_no_memory_for_each_of_them() -> None:
    rule = Every(Copy(), 10**12)
    assert [float(rule.weight(n)) for n in (1, 10**12 - 1, 10**12, 2 * 10**12)] == [0.0, 0.0, 1.0, 1.0]
    assert Copy().merged(np.arange(4.0, 6.0), 3).tolist() == [1.0, 1.0]


def test_a_new_weight_begins_a_delay_within_an_interval_where_the_others_are() -> None:
    rule = spliced(EMA(0.5), 10, Every(Delayed(Mean(), 10), 2))
    assert begun(rule, 6) == Splice(((0, EMA(0.5)), (4, Every(Delayed(Mean(), 4), 2))))
    assert begun(rule, 12) == Every(Mean(), 2)


@pytest.mark.parametrize("parts", [5, None, "ab", [5], [["a"]], [["a", {"rule": "mean"}, 3]], [[3, {"rule": "mean"}]]])
def test_what_describes_no_rules_by_part_is_refused(parts: object) -> None:
    with pytest.raises(RuleError, match="expected rules by part as JSON"):
        rule_from_json({"parts": parts})
    with pytest.raises(RuleError, match="expected globs as the keys"):
        as_rule({3: "mean"})  # type: ignore[dict-item]


def test_numbers_and_texts_of_numpy_become_those_of_python_or_are_refused() -> None:
    rule = EMA(np.float32(0.5), np.str_("copy"))  # type: ignore[arg-type]
    assert rule == EMA(0.5, "copy")
    assert {key: type(value) for key, value in rule.to_json().items()} == {"rule": str, "decay": float, "start": str}
    for value in (np.True_, b"0.5"):
        with pytest.raises(RuleError, match="expected a number in"):
            PowerEMA(value)  # type: ignore[arg-type]
