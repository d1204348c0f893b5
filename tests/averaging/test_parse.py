"""Rules as text, decays in three forms, and the words of the refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyak.averaging.base import Rule
from polyak.averaging.parse import decay_from, parse
from polyak.averaging.parts import as_rule
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
from polyak.errors import RuleError

TEXTS: list[tuple[str, Rule]] = [
    ("ema:0.999", EMA(0.999)),
    ("ema,0.999", EMA(0.999)),
    ("ema:decay=0.999", EMA(0.999)),
    (" EMA : 0.999 , start = copy ", EMA(0.999, "copy")),
    ("ema:start=debiased,0.999", EMA(0.999, "debiased")),
    ("ema:half_life=500", EMA(2 ** (-1 / 500))),
    ("ema:half_life=1", EMA(0.5)),
    ("ema:tau=0.001", EMA(0.999)),
    ("ema:tau=0.5", EMA(0.5)),
    ("ema:0.3,check=off", EMA(0.3)),
    ("ema:0,check=off", EMA(0.0)),
    ("ema:tau=0.75,check=off", EMA(0.25)),
    ("ema:half_life=0.5,check=off", EMA(0.25)),
    ("ema:0.9,check=on", EMA(0.9)),
    ("tf:0.999", TensorFlowEMA(0.999)),
    ("tf-models:0.999", TFModels(0.999)),
    ("tf_models:0.999", TFModels(0.999)),
    ("diffusers:0.9999", DiffusersEMA(0.9999)),
    ("inverse-gamma", InverseGamma()),
    ("inverse-gamma:0.999,inv_gamma=5,power=0.75,min_decay=0.1", InverseGamma(0.999, 5.0, 0.75, 0.1)),
    ("inverse-gamma,every=3", Every(InverseGamma(), 3)),
    ("mean", Mean()),
    ("swa", Mean()),
    ("SWA,every=10", Every(Mean(), 10)),
    ("mean:after=1000", Delayed(Mean(), 1000)),
    ("copy", Copy()),
    ("copy,every=1000", Every(Copy(), 1000)),
    ("power:sigma_rel=0.1", PowerEMA.from_sigma_rel(0.1)),
    ("power:gamma=6.94", PowerEMA(6.94)),
    ("ema:0.999,every=10,after=1000", Delayed(Every(EMA(0.999), 10), 1000)),
    ("ema:0.999,after=1000,every=10", Every(Delayed(EMA(0.999), 1000), 10)),
    ("cosine:0.996,steps=1000", CosineRamp(0.996, 1000)),
    ("cosine:0.996,steps=5epochs,steps_per_epoch=200,final=0.999", CosineRamp(0.996, 1000, 0.999)),
    ("linear:0.999,steps=1e3", LinearRamp(0.999, 1000)),
    ("linear:1,steps=1000,initial=0.996,check=off", LinearRamp(1.0, 1000, 0.996)),
    ("linear:1,steps=1000,initial=0.996", LinearRamp(1.0, 1000, 0.996)),
    ("mean,after=1e3,every=10.0", Every(Delayed(Mean(), 1000), 10)),
    ("mean until 1e3 then copy", Splice(((0, Mean()), (1000, Copy())))),
    ("polynomial:eta=3", PolynomialDecay(3)),
    ("inverse-power", InversePower()),
    ("inverse_power:power=0.5,lag=10,freq=400", InversePower()),
    ("edm2:sigma_rel=0.1", PowerEMA.from_sigma_rel(0.1)),
    ("tail:last=0.25,steps=10000", Delayed(Mean(), 7500)),
    ("tail:last=1,steps=10", Delayed(Mean(), 0)),
    ("tail:last=0.5,steps=10epochs,steps_per_epoch=7,every=7", Every(Delayed(Mean(), 35), 7)),
    ("inverse-gamma,scaled=8", Scaled(InverseGamma(), 8)),
    ("ema:0.9 until 1000 then ema:0.99", Splice(((0, EMA(0.9)), (1000, EMA(0.99))))),
    ("ema:0.9,every=2  until 10 then mean,after=10", Splice(((0, Every(EMA(0.9), 2)), (10, Delayed(Mean(), 10))))),
    ("(mean until 10 then copy),every=5", Every(Splice(((0, Mean()), (10, Copy()))), 5)),
    (
        "((mean until 10 then copy),every=5) until 20 then mean",
        Splice(((0, Every(Splice(((0, Mean()), (10, Copy()))), 5)), (20, Mean()))),
    ),
    ("ema:horizon=100", EMA(0.99)),
    ("ema:half_life=500updates", EMA(2 ** (-1 / 500))),
    ("ema:half_life=500 steps", EMA(2 ** (-1 / 500))),
    ("ema:half_life=2000steps,accumulate=4", EMA(2 ** (-1 / 500))),
    ("ema:half_life=2000samples,batch=64", EMA(2 ** (-64 / 2000))),
    ("ema:half_life=2000samples,batch=16,accumulate=4", EMA(2 ** (-64 / 2000))),
    ("ema:half_life=0.5epochs,steps_per_epoch=100", EMA(2 ** (-1 / 50))),
    ("ema:half_life=1e6tokens,tokens_per_step=4e3", EMA(2 ** (-4e3 / 1e6))),
    ("mean,after=2epochs,every=1epoch,steps_per_epoch=50", Every(Delayed(Mean(), 100), 50)),
    ("mean,every=8steps,accumulate=4", Every(Mean(), 2)),
    ("ema:0.999,every=10,start=zero,every=2", Every(Every(EMA(0.999, "zero"), 10), 2)),
]


@pytest.mark.parametrize(("text", "rule"), TEXTS, ids=[text for text, _ in TEXTS])
def test_texts(text: str, rule: Rule) -> None:
    assert parse(text) == rule
    assert parse(str(rule)) == rule
    assert parse(rule) is rule


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (EMA(0.999), "ema:0.999"),
        (EMA(0.999, "copy"), "ema:0.999,start=copy"),
        (EMA(0.3), "ema:0.3,check=off"),
        (EMA(0.3, "zero"), "ema:0.3,start=zero,check=off"),
        (InverseGamma(), "inverse-gamma"),
        (InverseGamma(inv_gamma=5), "inverse-gamma:inv_gamma=5"),
        (InverseGamma(0.2), "inverse-gamma:0.2,check=off"),
        (PowerEMA(6.94), "power:gamma=6.94"),
        (Every(Copy(), 1000), "copy,every=1000"),
        (Delayed(Every(EMA(0.999), 10), 1000), "ema:0.999,every=10,after=1000"),
    ],
)
def test_a_rule_prints_its_shortest_text(rule: Rule, text: str) -> None:
    assert str(rule) == text


INSIST = "to insist, construct polyak.rules.EMA({0}) directly or write 'ema:{0},check=off'"
REFUSED: list[tuple[dict[str, Any], str, str | None]] = [
    ({}, "expected exactly one of decay, half_life, horizon and tau; received none of them", None),
    (
        {"decay": 0.9, "tau": 0.1},
        "expected exactly one of decay, half_life, horizon and tau; received decay and tau",
        None,
    ),
    (
        {"decay": 0.001},
        "decay=0.001 would forget 99.9% of the average at each update",
        "if you mean tau=0.001 write tau=0.001, i.e. decay=0.999; " + INSIST.format("0.001"),
    ),
    ({"decay": 0}, "decay=0 is a copy of the newest weights", "write the rule 'copy'; " + INSIST.format("0")),
    ({"decay": 1}, "decay=1 would never move the average", "write a decay below 1, such as decay=0.999"),
    ({"decay": 99.9}, "decay=99.9 is above 1", "if you mean 99.9 percent write decay=0.999"),
    ({"decay": 500}, "decay=500 is above 1", "if you mean 500 updates write half_life=500"),
    ({"decay": -0.1}, "decay=-0.1: expected a number in [0.5, 1)", None),
    ({"decay": float("nan")}, "decay=nan: expected a number in [0.5, 1)", None),
    ({"decay": "0.9"}, "decay=0.9: expected a number in [0.5, 1)", None),
    ({"decay": True}, "decay=True: expected a number in [0.5, 1)", None),
    (
        {"tau": 0.999},
        "tau=0.999 would forget 99.9% of the average at each update",
        "if you mean decay=0.999 write decay=0.999, i.e. tau=0.001; " + INSIST.format("0.0010000000000000009"),
    ),
    ({"tau": 1}, "tau=1 is a copy of the newest weights", "write the rule 'copy'; " + INSIST.format("0")),
    ({"tau": 500}, "tau=500 is above 1", "tau is the share of the newest value, such as tau=0.001"),
    ({"tau": 0}, "tau=0: expected a number in (0, 0.5]", None),
    ({"tau": -1}, "tau=-1: expected a number in (0, 0.5]", None),
    ({"tau": 1e-17}, "tau=1e-17 is a decay of 1 in float64: the average would never move", None),
    (
        {"half_life": 0.999},
        "half_life=0.999 is less than one update",
        "if you mean decay=0.999 write decay=0.999; " + INSIST.format(repr(2 ** (-1 / 0.999))),
    ),
    ({"horizon": 0.9}, "horizon=0.9 is less than two updates", "if you mean decay=0.9 write decay=0.9"),
    ({"horizon": 1}, "horizon=1 is less than two updates", INSIST.format("0")),
    ({"half_life": 0}, "half_life=0: expected a number in [1, inf)", None),
    ({"half_life": float("inf")}, "half_life=inf: expected a number in [1, inf)", None),
    ({"half_life": 1e17}, "half_life=1e+17 is a decay of 1 in float64: the average would never move", None),
]


@pytest.mark.parametrize(("given_as", "message", "hint"), REFUSED, ids=[str(case[0]) for case in REFUSED])
def test_suspicious_decays_are_refused_with_the_likely_meaning(
    given_as: dict[str, Any], message: str, hint: str | None
) -> None:
    with pytest.raises(RuleError) as caught:
        decay_from(**given_as)
    assert (caught.value.message, caught.value.hint) == (message, hint)


@given(st.floats(0.5, 1.0, exclude_max=True))
def test_the_three_forms_agree(decay: float) -> None:
    assert decay_from(decay=decay) == decay
    assert decay_from(tau=1 - decay) == decay


@given(st.floats(1.0, 1e9))
def test_half_of_the_average_is_left_after_a_half_life(half_life: float) -> None:
    assert decay_from(half_life=half_life) ** half_life == pytest.approx(0.5, rel=1e-6)


KNOWN = (
    "known rules: copy, cosine, diffusers, edm2, ema, inverse-gamma, inverse-power, linear, mean, polynomial, power, "
    "swa, tail, tf, tf-models"
)
OF_ALL = "those of every rule: every, after, scaled"
EMA_SETTINGS = f"its settings: decay, start, half_life, horizon, tau, check; {OF_ALL}"
LINEAR = "for example 'linear:0.999,steps=1000'"
INSIST_IN_A_TEXT = "to insist, write check=off beside it"
BAD_TEXTS = [
    ("emaa:0.9", "unknown rule 'emaa'", f"did you mean 'ema'? {KNOWN}"),
    ("inverse_gama", "unknown rule 'inverse_gama'", f"did you mean 'inverse-gamma'? {KNOWN}"),
    ("xyz", "unknown rule 'xyz'", KNOWN),
    ("", "unknown rule ''", KNOWN),
    ("0.999", "unknown rule '0.999'", "did you mean 'ema:0.999'?"),
    ("ema", "rule 'ema': missing setting 'decay'", "for example 'ema:0.999'"),
    ("tf", "rule 'tf': missing setting 'decay'", "for example 'tf:0.999'"),
    ("power", "rule 'power': missing setting 'gamma'", "for example 'power:sigma_rel=0.1'"),
    ("power:0.1", "expected settings as key=value; received '0.1'", "for example 'power:sigma_rel=0.1'"),
    ("mean:3", "expected settings as key=value; received '3'", "for example 'mean,every=100'"),
    ("ema:", "expected settings as key=value; received ''", "for example 'ema:0.999'"),
    ("ema:0.9,,start=copy", "expected settings as key=value; received ''", "for example 'ema:0.999'"),
    ("power:gamma=1,sigma_rel=0.1", "expected sigma_rel or gamma alone", "for example 'power:sigma_rel=0.1'"),
    (
        "power:sigma_rel=0.4",
        "rule 'power': sigma_rel=0.4: expected a number in [1e-15, 0.3002831]",
        None,
    ),
    ("ema:0.9,0.99", "setting 'decay' is given twice", None),
    (
        "ema:0.9,tau=0.1",
        "expected exactly one of decay, half_life, horizon and tau; received decay and tau",
        None,
    ),
    (
        "ema:0.9,tau=0.1,check=off",
        "expected exactly one of decay, half_life, horizon and tau; received decay and tau",
        None,
    ),
    ("ema:0.9,speed=3", "rule 'ema': unknown setting 'speed'", EMA_SETTINGS),
    ("mean,tau=0.1", "rule 'mean': unknown setting 'tau'", f"its settings: none; {OF_ALL}"),
    ("mean,check=off", "rule 'mean': unknown setting 'check'", f"its settings: none; {OF_ALL}"),
    ("mean,evry=10", "rule 'mean': unknown setting 'evry'", f"did you mean 'every'? its settings: none; {OF_ALL}"),
    ("ema:0.9,Start=copy", "rule 'ema': unknown setting 'Start'", f"did you mean 'start'? {EMA_SETTINGS}"),
    ("ema:halflife=9", "rule 'ema': unknown setting 'halflife'", f"did you mean 'half_life'? {EMA_SETTINGS}"),
    (
        "power:sigma=0.1",
        "rule 'power': unknown setting 'sigma'",
        f"did you mean 'sigma_rel'? its settings: gamma, sigma_rel; {OF_ALL}",
    ),
    (
        "cosine:1,steps=9",
        "decay=1 would never move the average",
        "write a decay below 1, such as decay=0.999",
    ),
    ("linear:1,steps=9,initial=1", "rule 'linear': initial=1: expected a number in [0, decay=1.0] and below 1", LINEAR),
    ("ema:0.9,check=maybe", "check=maybe: expected on or off", None),
    (
        "ema:0.9,start=cold",
        "rule 'ema': start=cold: expected one of copy, initial, debiased, zero, warm",
        "for example 'ema:0.999'",
    ),
    ("ema:fast", "decay=fast: expected a number in [0.5, 1)", None),
    (
        "tf:0.1",
        "decay=0.1 would forget 90% of the average at each update",
        "if you mean tau=0.1 write tau=0.1, i.e. decay=0.9; " + INSIST_IN_A_TEXT,
    ),
    ("ema:1.5,check=off", "rule 'ema': decay=1.5: expected a number in [0, 1)", "for example 'ema:0.999'"),
    ("ema:-1,check=off", "decay=-1: expected a number in [0, inf)", None),
    ("mean,every=ten", "every=ten: expected a whole number of updates", None),
    ("mean,every=1.5", "every=1.5: expected a whole number of updates", None),
    ("mean,every=0", "rule 'every': k=0: expected a whole number of updates, at least 1", None),
    ("mean,after=-1", "rule 'after': after=-1: expected a whole number of updates, at least 0", None),
    ("ema:half_life=2000samples", "samples: expected batch= beside it, received none", "add for example batch=64"),
    ("ema:half_life=3days", "3days: unknown unit 'days'", "units: updates, steps, epochs, samples, tokens"),
    (
        "ema:0.999,batch=64",
        "batch=64: expected a quantity in samples beside it, received none",
        "write the unit behind the number, as in half_life=2000samples; a bare number counts updates",
    ),
    (
        "ema:half_life=20updates,accumulate=4",
        "accumulate=4: expected a quantity in steps beside it, received none",
        "write the unit behind the number, as in half_life=2000steps; a bare number counts updates",
    ),
    ("ema:half_life=20samples,batch=0", "batch=0: expected a number in (0, inf)", None),
    (
        "ema:half_life=20samples,batch=64",
        "half_life=0.3125 is less than one update",
        "if you mean decay=0.3125 write decay=0.3125; " + INSIST_IN_A_TEXT,
    ),
    (
        "mean,after=0.3epochs,steps_per_epoch=111",
        "after=0.3epochs: expected a whole number of updates, received 33.3",
        "write after=33, in updates",
    ),
    ("ema:0.99samples,batch=2", "decay=0.99samples: expected a share for each, decay=0.99/sample", None),
    ("ema:half_life=20/sample,batch=2", "20/samples: expected a number of samples, received a rate", None),
    ("ema:decay=1.5/sample,batch=2", "decay=1.5/samples: expected a number in (0, 1)", None),
    ("mean,after=1e999epochs,steps_per_epoch=2", "1e999epochs=inf: expected a number in (-inf, inf)", None),
    (
        "ema:half_life=2samples,batch=1e-300,accumulate=1e-300",
        "samples in an update=0: expected a number in (0, inf)",
        None,
    ),
    (
        "power:gamma=2epochs,steps_per_epoch=3",
        "rule 'power': gamma=2epochs: expected a number in (-1, 1e15]",
        "for example 'power:sigma_rel=0.1'",
    ),
    ("mean,scaled=2epochs,steps_per_epoch=3", "rule 'scaled': kappa=2epochs: expected a number in [1e-6, 1e6]", None),
    ("ema:horizon=1.5", "horizon=1.5 is less than two updates", INSIST_IN_A_TEXT),
    ("ema:horizon=0,check=off", "horizon=0: expected a number in [1, inf)", None),
    ("ema:horizon=0.9,check=off", "horizon=0.9: expected a number in [1, inf)", None),
    ("tail:last=0.5", "expected last= and steps=, received last", "for example 'tail:last=0.25,steps=10000'"),
    ("tail:last=0.5,steps=0", "steps=0: expected a whole number of updates, at least 1", None),
    ("tail:last=0.5,steps=9.5", "steps=9.5: expected a whole number of updates, at least 1", None),
    ("tail:last=0.5,steps=many", "steps=many: expected a whole number of updates, at least 1", None),
    ("tail:last=2,steps=10", "last=2: expected a number in (0, 1]", None),
    ("(mean", "expected balanced parentheses, at most eight deep", None),
    ("mean)", "expected balanced parentheses, at most eight deep", None),
    ("(" * 900 + "mean" + ")" * 900, "expected balanced parentheses, at most eight deep", None),
    ("(mean),start=3", "expected every, after or scaled after parentheses, received 'start'", None),
    ("mean until soon then copy", "until=soon: expected a whole number of updates", None),
    (
        "mean until 10 then",
        "expected RULE until NUMBER then RULE",
        "for example 'ema:0.9 until 1000 then mean'",
    ),
    ("mean until 0 then copy", "rule 'splice': expected ascending updates that begin with 0, received [0, 0]", None),
    ("mean" + ",every=2" * 9, "rule 'every': more than 8 wrappers of one rule", None),
]


@pytest.mark.parametrize(("text", "message", "hint"), BAD_TEXTS, ids=[case[0] for case in BAD_TEXTS])
def test_bad_texts_are_refused_with_the_text_and_a_way_out(text: str, message: str, hint: str | None) -> None:
    with pytest.raises(RuleError) as caught:
        parse(text)
    assert caught.value.message == f"{text if len(text) <= 80 else text[:77] + '...'!r}: {message}"
    assert caught.value.hint == hint


@pytest.mark.parametrize("value", [None, {"rule": "mean"}, b"mean"])
def test_what_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(RuleError) as caught:
        parse(value)
    assert caught.value.message == f"expected a rule or its text, like 'ema:0.999'; received {value!r}"


@pytest.mark.parametrize("read", [parse, as_rule])
def test_a_number_is_no_rule_and_the_text_that_it_may_mean_is_named(read: Any) -> None:
    with pytest.raises(RuleError, match=r"expected a rule or its text, like 'ema:0\.999'; received 0\.99") as caught:
        read(0.99)
    assert caught.value.hint == "did you mean 'ema:0.99'?"


@pytest.mark.parametrize("value", [None, 3, ["ema:0.9"], EMA])
def test_what_is_neither_a_rule_nor_rules_by_part_is_refused(value: Any) -> None:
    with pytest.raises(RuleError, match=r"expected a rule or its text, like 'ema:0\.999'; received"):
        as_rule(value)


@given(st.text(max_size=30) | st.text("ema:,=.0159eryvtux- ()/", max_size=30).map("ema:".__add__))
def test_any_text_gives_a_rule_or_a_rule_error(text: str) -> None:
    try:
        rule = parse(text)
    except RuleError as refusal:
        shown = refusal.message
    else:
        shown = repr(text)
        assert parse(str(rule)) == rule
    assert shown.startswith(repr(text))


def test_a_long_text_is_shown_short() -> None:
    with pytest.raises(RuleError) as caught:
        parse("x" * 10_000)
    assert len(str(caught.value)) < 400


# A share that is kept for each sample is kept 64 times in a batch of 64: the closed forms of each way to say it.
@pytest.mark.parametrize(
    ("text", "decay"),
    [
        ("ema:decay=0.9999/sample,batch=8", 0.9999**8),
        ("ema:0.9999/sample,batch=4,accumulate=2", 0.9999**8),
        ("ema:tau=0.0001/sample,batch=8", 0.9999**8),
        ("ema:horizon=10000samples,batch=8", 0.9999**8),
        ("ema:decay=0.5/epoch,steps_per_epoch=100", 0.5 ** (1 / 100)),
        ("ema:decay=0.999/step,accumulate=4", 0.999**4),
        ("ema:half_life=1epoch,steps_per_epoch=100,accumulate=2", 0.5 ** (2 / 100)),
        ("tf:horizon=1e9tokens,tokens_per_step=1e6", math.exp(1e6 * math.log1p(-1e-9))),
        ("ema:0.01/sample,batch=4,check=off", 0.01**4),
    ],
)
def test_a_decay_in_a_unit_is_kept_as_often_as_an_update_has_units(text: str, decay: float) -> None:
    assert parse(text).decay == pytest.approx(decay, rel=1e-12)  # type: ignore[attr-defined]


@given(st.floats(10, 1e6), st.integers(1, 64))
def test_a_changed_batch_size_and_scaled_agree(samples: float, kappa: int) -> None:
    small = parse(f"ema:half_life={samples!r}samples,batch=1,start=initial,check=off")
    large = parse(f"ema:half_life={samples!r}samples,batch={kappa},start=initial,check=off")
    assert small.scaled(kappa).decay == pytest.approx(large.decay, rel=1e-12)  # type: ignore[attr-defined]


@given(
    st.sampled_from(["samples", "tokens", "epochs", "steps"]),
    st.floats(0.5, 5000),
    st.integers(1, 512),
    st.integers(1, 16),
    st.integers(1, 50),
    st.integers(1, 8),
)
def test_half_is_left_after_a_half_life_whatever_the_interval_and_the_accumulation(
    unit: str, lives: float, size: int, accumulate: int, every: int, kappa: int
) -> None:
    """2^(-units / half-life) of the start is left, at every move; and at another batch size after as many units."""
    pace = {"samples": f"batch={size}", "tokens": f"tokens_per_step={size}", "epochs": f"steps_per_epoch={size}"}
    per_step = {"samples": size, "tokens": size, "epochs": 1 / size, "steps": 1}[unit]
    an_update = per_step * accumulate
    half_life = lives * an_update
    beside = f"{pace[unit]}," if unit in pace else ""
    text = f"ema:half_life={half_life!r}{unit},start=initial,check=off,{beside}accumulate={accumulate},every={every}"
    rule = parse(text)
    for moves in (1, 2, 7):
        updates = moves * every
        assert rule.immaturity(updates) == pytest.approx(2.0 ** (-updates * an_update / half_life), rel=1e-9)
        larger = Every(rule.rule.scaled(kappa), every)  # type: ignore[attr-defined]
        assert larger.immaturity(updates) == pytest.approx(2.0 ** (-updates * an_update * kappa / half_life), rel=1e-8)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("every", [1, 5])
def test_a_horizon_in_samples_is_the_mean_age_of_the_samples(accumulate: int, every: int) -> None:
    """theta(t) = t in samples: an average of horizon H lags by about H samples."""
    batch, horizon = 8, 40_000
    rule = parse(f"ema:horizon={horizon}samples,start=initial,batch={batch},accumulate={accumulate},every={every}")
    seen = batch * accumulate
    updates = 40 * horizon // seen // every * every
    left = 1 - float(rule.weight(every))
    # In closed form: of a move m moves ago, left**m (1 - left); each is every * seen samples older.
    lag = every * seen * left / (1 - left)
    average = 0.0
    for n in range(every, updates + 1, every):
        average += float(rule.weight(n)) * (n * seen - average)
    assert updates * seen - average == pytest.approx(lag, rel=1e-9)
    assert lag == pytest.approx(horizon, rel=0.01)
