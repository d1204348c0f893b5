"""Counts of updates far beyond any run, and the weights of rules there."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

import polyak
from polyak.errors import NonFiniteWarning, RuleError
from polyak.manifest import AVERAGE, State
from polyak.snapshot import Snapshot
from torture.trials.models import BACKEND, put, vectors

STEPS = 3


def across(turns: Sequence[int]) -> list[str]:
    """What is wrong with counts that go over each of these numbers, or begin beyond the last."""
    return [fault for turn in turns for fault in _across(turn)] + _beyond(turns[-1])


def _across(turn: int) -> list[str]:
    average = _at(turn - 1)
    for _ in range(STEPS):
        average.update()
    put(average.followed(), np.float32([np.nan, 1]))
    average.patience = STEPS
    for _ in range(STEPS):
        _skip(average)
    expected = (turn - 1 + STEPS, turn - 1 + STEPS)
    held = {"in memory": (average.count, average.skipped)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "average.safetensors"
        polyak.save(average, path)
        state = polyak.open(path).state
        assert state is not None
        held["in a file"] = (state.count, state.skipped)
    return [
        f"{where} on {BACKEND}: expected {expected}, received {now}" for where, now in held.items() if now != expected
    ]


def _at(count: int) -> Any:
    average = polyak.track(vectors(np.float32([1, 2])), "ema:0.999,start=debiased")
    state = State(average.rule.to_json(), count, count)
    polyak.transfer(Snapshot.from_arrays(average.values(), AVERAGE, state), average)
    return average


def _skip(average: Any) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NonFiniteWarning)
        average.update()


def _beyond(last: int) -> list[str]:
    try:
        _at(last + 1)
    except RuleError:
        return []
    return [f"a count of {last + 1:,} was taken over on {BACKEND}"]


def weights(rules: Sequence[str], at: Sequence[int]) -> dict[str, list[float]]:
    """The weights of rules at these updates, as an update on this backend has them."""
    return {rule: [_WEIGHT[BACKEND](polyak.parse(rule), n) for n in at] for rule in rules}


def _on_tensorflow(rule: Any, n: int) -> float:
    import tensorflow as tf

    from polyak.frameworks.tensorflow_kernel import OPS

    return float(rule.weight(tf.cast(tf.constant(n, tf.int64), tf.float64), OPS))


def _on_jax(rule: Any, n: int) -> float:
    from polyak.frameworks.jax_kernel import OPS, in_float64

    with in_float64():
        return float(rule.weight(OPS.asarray(np.int64(n)), OPS))


def _on_torch(rule: Any, n: int) -> float:
    return float(rule.weight(float(n)))


_WEIGHT = {"tensorflow": _on_tensorflow, "jax": _on_jax, "torch": _on_torch}


def peers() -> dict[str, str]:
    """What the optimizer's own count, which Keras' average goes by, becomes after 2^31 - 1."""
    optimizer = keras.optimizers.SGD(use_ema=True)
    optimizer.build([])
    optimizer.iterations.assign(2**31 - 1)
    optimizer.iterations.assign(optimizer.iterations + 1)
    found = int(keras.ops.convert_to_numpy(optimizer.iterations))
    return {f"Keras on {BACKEND}": "exact at 2^31" if found == 2**31 else f"{found:,} after 2^31 - 1"}
