"""Averages in the host's memory: the same bits, and nothing of them beside the weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from tests.keras.zoo import BACKEND, ZOO, assert_same_bits, scramble, values

import polyak
from polyak.errors import ModelError, NonFiniteWarning


@pytest.mark.parametrize("name", ["sequential", "pure_bfloat16", "partly_frozen"])
def test_an_average_on_the_host_has_the_bits_of_one_beside_the_weights(name: str) -> None:
    model = ZOO[name].built()
    host, beside = (polyak.track(model, "ema:0.9", placement=place) for place in ("host", "device"))
    together = polyak.Averages(model, {"host": host, "beside": beside})
    for seed in range(4):
        scramble(model, seed)
        together.update()
    scramble(model, 4)
    host.update()
    beside.update()
    assert host.count == beside.count == 5
    assert_same_bits(host.values(), beside.values())


def test_it_is_applied_saved_and_handed_over_like_any_other(tmp_path: Path) -> None:
    model, other = ZOO["sequential"].built(), ZOO["sequential"].built()
    host = polyak.EMA(model, 0.9, placement="host")
    scramble(model, 1)
    host.update()
    raw = values(model)
    with host.applied():
        assert_same_bits(values(model), host.values())
    assert_same_bits(values(model), raw)
    polyak.save(host, tmp_path / "a.safetensors")
    again = polyak.EMA(other, 0.9, placement="host")
    polyak.transfer(tmp_path / "a.safetensors", again)
    assert_same_bits(again.values(), host.values())
    scramble(model, 2)
    polyak.transfer(model, other)
    host.update()
    again.update()
    assert_same_bits(again.values(), host.values())


def test_a_step_that_is_not_finite_is_skipped_there_too() -> None:
    model = ZOO["sequential"].built()
    host = polyak.EMA(model, 0.9, placement="host")
    before = host.values()
    model.weights[0].assign(np.full(model.weights[0].shape, np.nan, np.float32))
    with pytest.warns(NonFiniteWarning):
        host.update()
    assert (host.count, host.skipped) == (0, 1)
    assert_same_bits(host.values(), before)


def test_another_place_is_refused_by_name() -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(ModelError, match="placement='gpu': expected one of 'device', 'host'"):
        polyak.EMA(model, 0.9, placement="gpu")  # type: ignore[arg-type]


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch has one device on the host")
def test_shadows_lie_on_the_host_and_weights_on_their_device() -> None:
    program = Path(__file__).with_name("on_host.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(program)],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert (found["shadows"], found["weights"]) == (["0"], ["1"])
    assert (found["count"], found["same"]) == (9, True)
    assert found["called"] == found["applied"] == found["predicted"]
