"""Windows, double averages and bias corrections against their formulas; their memory, their manifest, their journey."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tensorflow as tf

import polyak
from polyak.averaging.base import Ops, Rule
from polyak.derived import BEMA, DEMA, LastK
from polyak.errors import ModelError, RuleError, WeightError

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


def test_dema_needs_one_rule() -> None:
    with pytest.raises(RuleError, match="rules by part"):
        DEMA(polyak.track(Net(), {"kernel": "ema:0.9", "*": "mean"}))


@pytest.mark.parametrize("freq", [1, 4])
def test_bema_is_the_paper_s_algorithm(freq: int, tmp_path: Path) -> None:
    """mu <- (1 - beta) mu + beta theta at every freq-th step; mu + alpha (theta - theta_0)."""
    net = Net()
    ema = polyak.track(net, f"inverse-power:freq={freq}")
    bema = BEMA(ema)
    assert bema.nbytes == 24 + 8 + 8
    mu = start = np.full((3, 2), 0.5)
    for t, value in enumerate(walk(), 1):
        go(net, t, value)
        ema.update()
        if t % freq == 0:
            beta = (10 + t) ** -0.5
            mu = (1 - beta) * mu + beta * value
    alpha = (10 + STEPS) ** -0.2
    assert bema.strength == pytest.approx(alpha)
    arrives(bema, mu + alpha * (walk()[-1] - start), tmp_path)


def test_bema_after_a_burn_in_counts_the_whole_run_or_from_its_start() -> None:
    net = Net()
    ema = polyak.track(net, "copy until 20 then inverse-power:freq=1")
    mu = start = walk()[19].astype(np.float64)
    made: list[BEMA] = []
    for t, value in enumerate(walk(), 1):
        go(net, t, value)
        ema.update()
        if t == 20:
            made = [BEMA(ema), BEMA(ema, restarted=True)]
        if t > 20:
            mu = mu + (10 + t) ** -0.5 * (value - mu)
    for bema, age in zip(made, (60, 40), strict=True):
        expected = mu + (10 + age) ** -0.2 * (walk()[-1] - start)
        assert bema.snapshot()["kernel"] == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("asked", [{"power": 0}, {"lag": -1}, {"multiplier": 0}, {"power": "x"}])
def test_numbers_of_bema_that_are_out_of_range_are_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(RuleError, match="BEMA: "):
        BEMA(polyak.track(Net(), "mean"), **asked)


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
