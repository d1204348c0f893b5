"""Windows, double averages and bias corrections against their formulas; their memory, their manifest, their journey."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf

import polyak
from polyak.averaging.base import Ops, Rule
from polyak.derived import BEMA, DEMA, AuthorsBEMA, CheckpointBEMA, FigureBEMA, LastK, PaperBEMA
from polyak.errors import ModelError, RuleError, ShapeMismatch, WeightError

STEPS = 60


class Net(tf.Module):
    """Two trainable weights and a counter, built at once."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = tf.Variable(np.full((3, 2), 0.5, np.float32))
        self.bias = tf.Variable(np.zeros(2, np.float32))
        self.seen = tf.Variable(0, dtype=tf.int64, trainable=False)


def walk() -> np.ndarray:
    return np.cumsum(np.random.default_rng(5).normal(0.05, 0.1, (STEPS, 3, 2)), axis=0).astype(np.float32)


def go(net: Net, n: int, value: np.ndarray) -> None:
    net.kernel.assign(value)
    net.bias.assign(value[0])
    net.seen.assign(n)


def arrives(derived: Any, expected: np.ndarray, tmp_path: Path) -> None:
    """The values are those of the formula, in a snapshot that is saved, opened and transferred like any other."""
    snap = derived.snapshot()
    assert snap["kernel"].dtype == np.float32
    assert snap["kernel"] == pytest.approx(expected, abs=2e-6)
    assert snap["seen"] == STEPS
    other = Net()
    assert polyak.transfer(snap, other).role == "average"
    assert other.kernel.numpy().tobytes() == snap["kernel"].tobytes()
    polyak.save(snap, tmp_path / "derived.safetensors")
    read = polyak.open(tmp_path / "derived.safetensors")
    assert (read.roles, read.state) == (("average",), None)
    assert read.manifest.evidence == snap.manifest.evidence
    assert read["bias"].tobytes() == snap["bias"].tobytes()


def test_the_window_is_the_mean_of_the_last_k(tmp_path: Path) -> None:
    net = Net()
    window = LastK(net, 7)
    assert window.nbytes == 7 * (24 + 8 + 8)
    for n, value in enumerate(walk(), 1):
        go(net, n, value)
        window.update()
    arrives(window, walk()[-7:].astype(np.float64).mean(0), tmp_path)
    assert window.snapshot().manifest.evidence == ("the equal mean of 7 sets of weights, the newest of 60 (LAWA)",)
    assert repr(window) == "<mean of the last 7 of 60 sets: 280 bytes of host memory>"


def test_a_window_that_is_not_full_is_the_mean_of_what_it_saw() -> None:
    net, window = Net(), LastK(Net(), 9)
    with pytest.raises(WeightError):
        window.snapshot()
    window = LastK(net, 9)
    for n in (1, 3):
        net.kernel.assign(np.full((3, 2), n))
        window.update()
    assert window.snapshot()["kernel"].tolist() == [[2.0, 2.0]] * 3


def test_a_snapshot_of_a_window_stays_when_the_window_moves_on() -> None:
    net = Net()
    window = LastK(net, 1)
    window.update()
    held = window.snapshot()
    net.kernel.assign(np.zeros((3, 2)))
    window.update()
    assert held["kernel"].tolist() == [[0.5, 0.5]] * 3


@pytest.mark.parametrize("k", [0, -1, 2.0, None])
def test_a_window_needs_a_size(k: Any) -> None:
    with pytest.raises(RuleError, match="LastK: k="):
        LastK(Net(), k)


@pytest.mark.parametrize("rule", ["ema:0.9,start=copy", "ema:0.9,start=initial", "ema:0.9", "ema:0.9,every=5"])
def test_dema_is_twice_the_average_less_the_average_of_the_average(rule: str, tmp_path: Path) -> None:
    net = Net()
    ema = polyak.track(net, rule)
    dema = DEMA(ema)
    made = polyak.parse(rule)
    first = second = np.full((3, 2), 0.5)
    for n, value in enumerate(walk(), 1):
        go(net, n, value)
        ema.update()
        dema.update()
        w = float(made.weight(n))
        first = first + w * (value - first)
        second = second + w * (first - second)
    expected = 2 * first - second
    snap = dema.snapshot()
    assert snap["kernel"] == pytest.approx(expected, abs=2e-6)
    if "every" not in rule:
        arrives(dema, expected, tmp_path)
    assert dema.nbytes == ema.nbytes


def test_dema_follows_a_straight_line_without_lag() -> None:
    net = Net()
    ema = polyak.track(net, "ema:0.9,start=initial")
    dema = DEMA(ema)
    for n in range(1, 301):
        net.kernel.assign(np.full((3, 2), n))
        ema.update()
        dema.update()
    assert ema.values()["kernel"][0, 0] == pytest.approx(300 - 9, abs=1e-3)
    assert dema.snapshot()["kernel"][0, 0] == pytest.approx(300, abs=2e-3)


def test_dema_counts_each_update_once_and_refuses_a_gap() -> None:
    net = Net()
    ema = polyak.track(net, "ema:0.9,start=copy")
    dema = DEMA(ema)
    ema.update()
    dema.update()
    before = dema.snapshot()["kernel"].tobytes()
    dema.update()
    assert dema.snapshot()["kernel"].tobytes() == before
    ema.update()
    ema.update()
    with pytest.raises(ModelError, match="of which it saw 1; received one after 3"):
        dema.update()


@pytest.mark.parametrize("again", ["reset", "hard_sync"])
def test_dema_of_an_average_that_began_again_is_refused(again: str) -> None:
    net = Net()
    ema = polyak.track(net, "ema:0.9,start=copy")
    dema = DEMA(ema)
    for _ in range(5):
        ema.update()
        dema.update()
    getattr(ema, again)()
    for now in (0, 1, 2):
        refused = f"expected an average that goes on from 5 updates, received one after {now}"
        with pytest.raises(ModelError, match=refused):
            dema.update()
        with pytest.raises(ModelError, match=refused):
            dema.snapshot()
        ema.update()


def test_dema_of_an_average_that_began_again_and_has_come_as_far_is_refused() -> None:
    net = Net()
    ema = polyak.track(net, "ema:0.5,start=copy")
    dema = DEMA(ema)
    for _ in range(5):
        net.kernel.assign_add(np.ones((3, 2)))
        ema.update()
        dema.update()
    net.kernel.assign(np.zeros((3, 2)))
    ema.reset()
    for _ in range(5):
        ema.update()
    for verb in (dema.update, dema.snapshot):
        with pytest.raises(ModelError, match="weight 'kernel': expected the average that it saw after 5 updates"):
            verb()


def taken_back(ema: Any, net: Net, tmp_path: Path) -> None:
    values, state = ema.values(), ema.state
    checkpoint = tf.train.Checkpoint(net=net, ema=ema)
    path = checkpoint.write(str(tmp_path / "early"))
    net.kernel.assign_add(np.ones((3, 2)))
    ema.update()
    checkpoint.restore(path)
    assert (ema.state, ema.values()["kernel"].tobytes()) == (state, values["kernel"].tobytes())


def grown(ema: Any, net: Net, tmp_path: Path) -> None:
    net.head = tf.Variable(np.ones(2, np.float32))
    assert "'head' new" in ema.refresh()


AGAIN: dict[str, Any] = {
    "reset": lambda ema, net, path: ema.reset(),
    "hard_sync": lambda ema, net, path: ema.hard_sync(),
    "set_values": lambda ema, net, path: ema.set_values({name: 0 * v for name, v in ema.values().items()}),
    "transfer": lambda ema, net, path: polyak.transfer(polyak.track(Net(), ema.rule), ema),
    "refresh": grown,
}


@pytest.mark.parametrize("again", AGAIN)
def test_dema_of_an_average_that_began_again_and_made_one_more_update_is_refused(again: str, tmp_path: Path) -> None:
    net = Net()
    ema = polyak.track(net, "ema:0.5,start=initial")
    dema = DEMA(ema)
    net.kernel.assign(np.ones((3, 2)))
    AGAIN[again](ema, net, tmp_path)
    ema.update()
    assert ema.count == 1
    with pytest.raises(ModelError, match="expected the average that it saw after 0 updates, received one that has"):
        dema.update()


def test_dema_goes_on_where_the_average_was_put_back_to_what_it_saw(tmp_path: Path) -> None:
    net = Net()
    ema = polyak.track(net, "ema:0.5,start=initial")
    dema, other = DEMA(ema), DEMA(ema)
    net.kernel.assign(np.ones((3, 2)))
    ema.update()
    dema.update()
    other.update()
    taken_back(ema, net, tmp_path)
    dema.update()
    ema.update()
    dema.update()
    assert dema.snapshot()["kernel"].tolist() == (2 * ema.values()["kernel"] - 0.75).tolist()
    with pytest.raises(ModelError, match="expected the average that it saw after 1 updates"):
        other.update()


def test_dema_goes_on_by_another_rule() -> None:
    net = Net()
    ema = polyak.track(net, "ema:0.5,start=initial")
    dema = DEMA(ema)
    net.kernel.assign(np.ones((3, 2)))
    ema.update()
    dema.update()
    ema.change_rule("ema:0.75,start=initial")
    ema.update()
    dema.update()
    first, second = 0.5, 0.5
    for w in (0.5, 0.25):
        first += w * (1 - first)
        second += w * (first - second)
    assert dema.snapshot()["kernel"][0, 0] == 2 * first - second


def test_dema_has_no_snapshot_of_two_counts() -> None:
    net = Net()
    ema = polyak.track(net, "ema:0.9,every=2,start=copy")
    dema = DEMA(ema)
    for _ in range(4):
        ema.update()
        dema.update()
    before = dema.snapshot()["kernel"].tobytes()
    ema.update()  # moves nothing
    assert dema.snapshot()["kernel"].tobytes() == before
    ema.update()
    with pytest.raises(ModelError, match=r"of which it saw 4; received snapshot\(\) after 6"):
        dema.snapshot()


def test_dema_needs_one_rule() -> None:
    with pytest.raises(RuleError, match="rules by part"):
        DEMA(polyak.track(Net(), {"kernel": "ema:0.9", "*": "mean"}))


# --- BEMA: each published form, written down again step by step ---


def paper(values: np.ndarray, every: int, tau: int, kappa: float, eta: float, rho: float, gamma: float) -> np.ndarray:
    """Algorithm 1: until the burn-in is over everything is the weights; then t counts the whole run."""
    start = mu = made = values[0]
    for t in range(1, len(values)):
        if t <= tau:
            start = mu = made = values[t]
        elif (t - tau) % every == 0:
            age = rho + gamma * t
            mu = mu - age**-kappa * (mu - values[t])
            made = age**-eta * (values[t] - start) + mu
    return made


def trl(values: np.ndarray, every: int, tau: int, kappa: float, eta: float, rho: float, gamma: float) -> np.ndarray:
    """TRL's callback at the ends of steps: it acts from step tau on, and takes w0 there."""
    start = mu = made = values[0]
    for step in range(max(tau, 1), len(values)):
        if step == tau:
            start, mu = values[step], values[step]
        elif (step - tau) % every == 0:
            beta, alpha = (rho + gamma * step) ** -kappa, (rho + gamma * step) ** -eta
            mu = (1 - beta) * mu + beta * values[step]
            made = mu + alpha * (values[step] - start)
    return made


def authors(values: np.ndarray, every: int, tau: int, kappa: float, eta: float, rho: float, gamma: float) -> np.ndarray:
    """The authors' callback: w0 at the end of the first step that is not before tau; moves at multiples of every."""
    start: np.ndarray | None = None
    mu = made = values[0]
    for step in range(1, len(values)):
        if start is None and step >= tau:
            start, mu = values[step], values[step]
        if start is not None and step % every == 0:
            age = 1 + gamma * max(step - tau + rho, 1)
            mu = mu * (1 - age**-kappa) + age**-kappa * values[step]
            made = (values[step] - start) * age**-eta + mu
    return made


def checkpoints(values: np.ndarray, every: int, kappa: float, eta: float, rho: float, gamma: float) -> np.ndarray:
    """The authors' program for checkpoints: each one moves the average, gamma is in its factor alone."""
    mu = made = values[0]
    for step in range(every, len(values), every):
        time = max(step + rho, 1)
        beta = (1 + gamma * time) ** -kappa
        mu = (1 - beta) * mu + beta * values[step]
        made = (1 + time) ** -eta * (values[step] - values[0]) + mu
    return made


def figure(values: np.ndarray, beta: float, ratio: float) -> np.ndarray:
    """The four lines in figure 1."""
    mu = made = values[0]
    for value in values[1:]:
        mu = (1.0 - beta) * mu + beta * value
        made = beta**ratio * (value - values[0]) + mu
    return made


def run(form: Any) -> tuple[Net, BEMA, np.ndarray]:
    """A run with a BEMA that is made when its form says; and what it saw, in float64, the initial values first."""
    net = Net()
    ema = polyak.track(net, form.rule)
    bema = BEMA(ema, form) if form.start == 0 else None
    for n, value in enumerate(walk(), 1):
        go(net, n, value)
        ema.update()
        if n == form.start:
            bema = BEMA(ema, form)
    assert bema is not None
    return net, bema, np.concatenate([np.full((1, 3, 2), 0.5), walk().astype(np.float64)])


SETTINGS = [
    (1, 0, 0.5, 0.2, 10.0, 1.0),
    (4, 0, 0.5, 0.2, 10.0, 1.0),
    (10, 20, 0.7, 0.3, 2.0, 0.5),
    (1, 7, 0.4, 0.4, 0.0, 2.0),
]


@pytest.mark.parametrize(
    "settings",
    [
        *SETTINGS,
        (5, 20, 0.5, 0.2, 10.0, 1.0),
        (3, 6, 1.0, 0.1, 1.0, 3.0),
        (4, 24, 0.5, 0.2, 10.0, 1.0),
        (19, 22, 0.5, 0.2, 10.0, 1.0),
    ],
)
def test_bema_of_the_paper_is_algorithm_1_and_trl_s_callback(settings: Any, tmp_path: Path) -> None:
    """Also where the burn-in is no multiple of the interval: 22 + 2 * 19 is the last step."""
    assert (STEPS - settings[1]) % settings[0] == 0
    _, bema, values = run(PaperBEMA(*settings))
    expected = paper(values, *settings)
    np.testing.assert_allclose(expected, trl(values, *settings), rtol=1e-12)
    arrives(bema, expected, tmp_path)


@pytest.mark.parametrize("settings", [*SETTINGS, (20, 40, 0.5, 0.2, 0.0, 1.0), (60, 0, 0.5, 0.2, 10.0, 1.0)])
def test_bema_of_the_authors_is_their_callback(settings: Any, tmp_path: Path) -> None:
    assert STEPS % settings[0] == 0
    _, bema, values = run(AuthorsBEMA(*settings))
    arrives(bema, authors(values, *settings), tmp_path)


@pytest.mark.parametrize("settings", [(1, 0.5, 0.2, 10.0, 1.0), (12, 0.5, 0.2, 0.0, 1.0), (6, 0.7, 0.3, 2.0, 0.5)])
def test_bema_of_checkpoints_is_the_authors_program_for_them(settings: Any, tmp_path: Path) -> None:
    _, bema, values = run(CheckpointBEMA(*settings))
    arrives(bema, checkpoints(values, *settings), tmp_path)


@pytest.mark.parametrize(("decay", "ratio"), [(0.9, 0.4), (0.5, 1.0)])
def test_bema_of_the_figure_takes_a_power_of_the_average_s_weight(decay: float, ratio: float, tmp_path: Path) -> None:
    _, bema, values = run(FigureBEMA(polyak.parse(f"ema:{decay},start=initial"), ratio))
    arrives(bema, figure(values, 1 - decay, ratio), tmp_path)


def test_the_forms_of_bema_differ() -> None:
    """On a straight line from 0, where every difference in counting is seen."""
    values = np.arange(STEPS + 1.0)
    settings = (10, 20, 0.5, 0.2, 10.0, 1.0)
    made = [f(values, *settings) for f in (paper, authors)] + [checkpoints(values, 10, *settings[2:])]
    assert np.min(np.abs(np.subtract.outer(made, made))[~np.eye(3, dtype=bool)]) > 0.1


def test_bema_says_its_memory_and_how_it_was_made() -> None:
    form = PaperBEMA(every=4)
    bema = BEMA(polyak.track(Net(), form.rule), form)
    assert bema.nbytes == 24 + 8
    assert repr(bema) == "<PaperBEMA of inverse-power:freq=4 of Net: 32 bytes of host memory>"
    assert "PaperBEMA(every=4, burn_in=0" in bema.snapshot().manifest.evidence[0]


def test_bema_goes_on_from_a_file_of_where_it_started(tmp_path: Path) -> None:
    form = PaperBEMA(every=1)
    net, whole = Net(), Net()
    polyak.save(net, tmp_path / "start.safetensors")
    _, unbroken, _ = run(form)
    ema = polyak.track(net, form.rule)
    for n, value in enumerate(walk()[:30], 1):
        go(net, n, value)
        ema.update()
    polyak.save(ema, tmp_path / "ema.safetensors")
    again = polyak.track(whole, form.rule)
    polyak.transfer(tmp_path / "ema.safetensors", again)
    bema = BEMA(again, form, start=tmp_path / "start.safetensors")
    for n, value in enumerate(walk()[30:], 31):
        go(whole, n, value)
        again.update()
    assert bema.snapshot()["kernel"].tobytes() == unbroken.snapshot()["kernel"].tobytes()


def test_a_bema_whose_average_or_start_does_not_fit_is_refused() -> None:
    form = PaperBEMA(every=1, burn_in=2)
    with pytest.raises(
        RuleError, match="PaperBEMA: expected an average by inverse-power:lag=12,freq=1,after=2, received one by mean"
    ):
        BEMA(polyak.track(Net(), "mean"), form)
    with pytest.raises(
        ModelError, match="expected an average after 2 updates, whose weights are w0; received one after 0"
    ):
        BEMA(polyak.track(Net(), form.rule), form)
    other = polyak.snapshot(Net()).copy()
    wrong = {path: np.zeros(5) if path == "kernel" else other[path] for path in other}
    with pytest.raises(ShapeMismatch, match=r"weight 'kernel': expected \(3, 2\), received \(5,\)"):
        BEMA(polyak.track(Net(), form.rule), form, start=polyak.Snapshot.from_arrays(wrong))


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("again", ["reset", "hard_sync", "transfer", "values"])
def test_bema_of_an_average_that_began_again_is_refused_until_it_is_made_anew(again: str, given: bool) -> None:
    form, net = PaperBEMA(every=1), Net()
    ema = polyak.track(net, form.rule)
    bema = BEMA(ema, form, start=polyak.snapshot(net) if given else None)
    go(net, 1, walk()[0])
    ema.update()
    assert bema.snapshot()["seen"] == 1
    go(net, 2, walk()[40])
    other = polyak.track(net, form.rule)
    {
        "reset": ema.reset,
        "hard_sync": ema.hard_sync,
        "transfer": lambda: polyak.transfer(other, ema),
        "values": lambda: ema.set_values(other.values()),
    }[again]()
    go(net, 3, walk()[41])
    ema.update()
    with pytest.raises(ModelError, match=r"PaperBEMA of .*: expected the average to go on from the weights w0, rec"):
        bema.snapshot()
    ema.reset()
    assert BEMA(ema, form).snapshot()["kernel"].tobytes() == walk()[41].tobytes()


def test_bema_of_an_average_whose_rule_was_changed_is_refused() -> None:
    form = FigureBEMA(polyak.parse("ema:0.9,start=initial"))
    ema = polyak.track(Net(), form.rule)
    bema = BEMA(ema, form)
    ema.update()
    ema.change_rule("ema:0.99,start=initial")
    with pytest.raises(RuleError, match=r"FigureBEMA: expected an average by ema:0.9,.*, received one by ema:0.9,.*"):
        bema.snapshot()


def test_bema_goes_on_with_statistics_that_were_made_anew() -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization(name="bn")])
    form = PaperBEMA(every=1)
    ema = polyak.track(model, form.rule)
    bema = BEMA(ema, form)
    ema.update()
    polyak.recalibrate(ema, np.float32([[1.0, 2.0], [3.0, 6.0]]))
    assert bema.snapshot()["bn/moving_mean"].tolist() == [2.0, 4.0]


@pytest.mark.parametrize("form", [PaperBEMA, AuthorsBEMA, CheckpointBEMA])
@pytest.mark.parametrize(
    "asked", [{"power": 0}, {"bias_power": -1}, {"lag": -1}, {"multiplier": 0}, {"power": "x"}, {"every": 0}]
)
def test_numbers_of_bema_that_are_out_of_range_are_refused(form: Any, asked: dict[str, Any]) -> None:
    with pytest.raises(RuleError, match=f"{form.__name__}: {next(iter(asked))}"):
        form(**asked)


def test_a_burn_in_that_no_rule_can_follow_is_refused() -> None:
    with pytest.raises(RuleError, match="burn_in=150: expected a multiple of every=100"):
        AuthorsBEMA(burn_in=150)
    with pytest.raises(RuleError, match=r"rule 'FigureBEMA': expected a Rule inside, received 'ema:0\.9'"):
        FigureBEMA("ema:0.9")  # type: ignore[arg-type]
    with pytest.raises(RuleError, match="FigureBEMA: ratio"):
        FigureBEMA(polyak.parse("mean"), 0)


# --- averages themselves: their memory before the first step, and rules of one's own ---


def test_each_of_several_averages_says_its_memory_before_the_first_step() -> None:
    net = Net()
    one, two = polyak.track(net, "ema:0.9"), polyak.track(net, {"kernel": "mean", "*": None})
    assert "0 updates" in repr(one)
    assert f"{24 + 8 + 8} bytes" in repr(one)
    assert "1 weights averaged, 0 copied, 24 bytes" in repr(two)
    assert (one.nbytes, two.nbytes) == (40, 24)


@dataclass(frozen=True, slots=True)
class Harmonic(Rule):
    """Not known to polyak by name."""

    name: ClassVar[str] = "harmonic"
    lag: float = 2.0

    def _at(self, n: Any, ops: Ops) -> Any:
        return self.lag / (n + self.lag)


def test_an_average_by_a_rule_of_one_s_own_goes_on_from_a_file(tmp_path: Path) -> None:
    net, fresh = Net(), Net()
    ema = polyak.track(net, Harmonic(3.0))
    for n, value in enumerate(walk(), 1):
        go(net, n, value)
        ema.update()
    polyak.save(ema, tmp_path / "own.safetensors")
    again = polyak.track(fresh, Harmonic(3.0))
    polyak.transfer(tmp_path / "own.safetensors", again)
    assert (again.count, again.rule) == (STEPS, Harmonic(3.0))
    for average, model in ((ema, net), (again, fresh)):
        model.kernel.assign(np.ones((3, 2)))
        average.update()
    assert ema.values()["kernel"].tobytes() == again.values()["kernel"].tobytes()
    with pytest.raises(RuleError, match="unknown rule 'harmonic'"):
        polyak.transfer(tmp_path / "own.safetensors", polyak.track(Net(), Harmonic(4.0)))


def test_a_tf_checkpoint_restores_an_average_by_a_rule_of_one_s_own(tmp_path: Path) -> None:
    net = Net()
    ema = polyak.track(net, Harmonic())
    ema.update()
    path = tf.train.Checkpoint(model=net, ema=ema).write(str(tmp_path / "ckpt"))
    fresh = Net()
    again = polyak.track(fresh, Harmonic())
    tf.train.Checkpoint(model=fresh, ema=again).read(path).assert_consumed()
    assert again.count == 1


def test_rules_by_part_that_change_go_on_part_by_part() -> None:
    net = Net()
    ema = polyak.track(net, {"kernel": "ema:0.9,start=copy", "*": "mean"})
    ema.update()
    ema.change_rule({"kernel": "ema:0.99,start=copy", "*": "mean"})
    assert str(ema.rule) == "{kernel: ema:0.9,start=copy until 1 then ema:0.99,start=copy, *: mean}"
    ema.change_rule("mean")
    assert "kernel: ema:0.9,start=copy until 1 then mean" in str(ema.rule)
    ema.update()
    assert ema.immaturity == pytest.approx(0.5)


def test_what_is_derived_lies_as_its_average_does() -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    ema = polyak.EMA(model, 0.5)
    window = LastK(model, 2)
    window.update()
    for made in (window, DEMA(ema), BEMA(ema, FigureBEMA(ema.rule))):
        assert made.snapshot().manifest.layout == "keras"
