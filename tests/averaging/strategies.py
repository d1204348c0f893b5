"""Any rule, for hypothesis; and a list of each of them, for tables."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from polyak.averaging.base import Rule
from polyak.averaging.rules import (
    EMA,
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
)

STARTS = ("copy", "initial", "debiased", "zero", "warm")
COPYING = [
    EMA(0.9),
    EMA(0.9, "copy"),
    EMA(0.9, "debiased"),
    DiffusersEMA(0.9),
    InverseGamma(),
    InverseGamma(0.99, min_decay=0.5),
    LinearRamp(0.99, 20),
    Mean(),
    PowerEMA(6.94),
    PolynomialDecay(3),
    PolynomialDecay(0.5),
]
PAST = [
    EMA(0.9, "initial"),
    EMA(0.9, "zero"),
    TensorFlowEMA(0.9),
    TFModels(0.9),
    CosineRamp(0.9, 30),
    CosineRamp(0.9, 30, 0.99),
    LinearRamp(1.0, 30, 0.9),
    InversePower(freq=1),
    InversePower(freq=7, lag=0.0),
]
WRAPPED = [
    Every(EMA(0.9, "initial"), 7),
    Every(InverseGamma(), 4),
    Every(PolynomialDecay(2), 3),
    Delayed(EMA(0.9), 5),
    Every(Delayed(Mean(), 5), 3),
    Delayed(Every(PowerEMA(2), 3), 5),
    Every(Every(EMA(0.99, "warm"), 2), 3),
    Delayed(Delayed(TensorFlowEMA(0.9), 2), 3),
    Scaled(InverseGamma(), 4),
    Scaled(CosineRamp(0.9, 30), 2.5),
    Scaled(LinearRamp(0.9, 5), 0.3),
    Splice(((0, EMA(0.9, "initial")), (10, EMA(0.99, "initial")))),
    Splice(((0, EMA(0.9)), (10, Delayed(Mean(), 10)), (20, PowerEMA(3)))),
    Every(Splice(((0, Mean()), (7, EMA(0.9, "copy")))), 3),
]
RULES: list[Rule] = [*COPYING, *PAST, Copy(), *WRAPPED]

decays = st.floats(0.0, 1.0, exclude_max=True)


def _inverse_gamma(decay: float) -> st.SearchStrategy[InverseGamma]:
    least = st.floats(0, decay, allow_subnormal=False)
    return st.builds(InverseGamma, st.just(decay), st.floats(1e-9, 1e9), st.floats(1e-3, 10), least)


def _cosine(decay: float) -> st.SearchStrategy[CosineRamp]:
    return st.builds(CosineRamp, st.just(decay), st.integers(1, 200), st.floats(decay, 1))


def _linear(decay: float) -> st.SearchStrategy[LinearRamp]:
    initial = st.floats(0, decay, allow_subnormal=False).filter(lambda x: x < 1)
    return st.builds(LinearRamp, st.just(decay), st.integers(1, 200), initial)


plain_rules: st.SearchStrategy[Rule] = st.one_of(
    st.builds(EMA, decays, st.sampled_from(STARTS)),
    st.builds(TensorFlowEMA, decays),
    st.builds(TFModels, decays),
    st.builds(DiffusersEMA, decays),
    decays.flatmap(_inverse_gamma),
    decays.flatmap(_cosine),
    st.floats(0.0, 1.0).flatmap(_linear),
    st.builds(InversePower, st.floats(1e-3, 10), st.floats(0, 100), st.floats(1e-3, 10), st.integers(1, 9)),
    st.just(Mean()),
    st.builds(PowerEMA, st.floats(-1, 1e4, exclude_min=True)),
    st.builds(PolynomialDecay, st.floats(0, 1e4, allow_subnormal=False)),
    st.just(Copy()),
)


def _around(inner: st.SearchStrategy[Rule]) -> st.SearchStrategy[Rule]:
    return st.one_of(
        st.builds(Every, inner, st.integers(1, 9)),
        st.builds(Delayed, inner, st.integers(0, 9)),
        st.builds(Scaled, inner, st.integers(1, 5) | st.floats(0.1, 8)),
        _spliced(inner.filter(lambda rule: not isinstance(rule, Splice))),
    )


@st.composite
def _spliced(draw: Any, inner: st.SearchStrategy[Rule]) -> Rule:
    ends = sorted(draw(st.sets(st.integers(1, 40), min_size=1, max_size=3)))
    return Splice(tuple((after, draw(inner)) for after in (0, *ends)))


rules = st.recursive(plain_rules, _around, max_leaves=4)
