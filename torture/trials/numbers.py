"""Averages against float64, against each other, and against those of the frameworks themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

import polyak
from polyak.averaging.kernel import lerp
from torture.trials.models import BACKEND, Array, drive, error, modes, put, reference, vectors, walk


def precision(steps: int, decay: float, compensated: bool = False) -> dict[str, float]:
    """Relative errors after a walk: of polyak, of the NumPy kernel, and of this backend's own averages."""
    values = walk(steps, 64, seed=1)
    values[1] = values[0]  # so that it is all one whether the initial value or the first one counts
    rule = polyak.parse(f"ema:{decay},start=initial")
    expected = reference(values, rule)
    found = {"polyak": _averaged(values, rule, compensated)}
    if not compensated:
        found.update(PEERS[BACKEND](values, decay))
    if BACKEND == "tensorflow" and not compensated:
        found["NumPy kernel"] = numpy_average(values, rule)
    return {name: error(average, expected) for name, average in found.items()}


def _averaged(values: Array, rule: Any, compensated: bool) -> Array:
    model = vectors(values[0])
    asked = {"compensated": True} if compensated else {}
    average = polyak.track(model, rule, **asked)
    drive(model, [average], values, modes()[-1])
    assert average.count == len(values)
    return average.values()["w0"]


def numpy_average(values: Array, rule: Any) -> Array:
    """The average by the kernel on NumPy."""
    average = values[0]
    for n, value in enumerate(values, 1):
        average = lerp(average, value, float(rule.weight(n)))
    return average


def narrow(steps: int, dtype: str) -> dict[str, tuple[float, float]]:
    """Of a narrow model that goes from 1 to 1.25: (share of the movement that an average makes, its relative error)."""
    path = np.linspace(1.0, 1.25, steps)[:, None].repeat(8, 1).astype(np.float32)
    path[1] = path[0]
    stored = np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(keras.ops.cast(path, dtype), "float32")))
    rule = polyak.parse("ema:0.9999,start=initial")
    expected = reference(stored, rule)
    model = vectors(path[0], dtype)
    average = polyak.track(model, rule)
    drive(model, [average], path, modes()[-1])
    found = {"polyak": average.values()["w0"], **NARROW_PEERS[BACKEND](path, 0.9999, dtype)}
    return {name: (_moved(a, expected), error(a, expected)) for name, a in found.items()}


def _moved(found: Array, expected: Array) -> float:
    return float(np.mean((found.astype(np.float64) - 1.0) / (expected - 1.0)))


def narrow_average_dtype(dtype: str) -> str:
    """The dtype of the average of a narrow model, whatever of its dtype was given to it."""
    model = vectors(np.ones(4, np.float32), dtype)
    average = polyak.track(model, "ema:0.9")
    values = {"w0": np.asarray(keras.ops.convert_to_numpy(model.variables[0].value))}
    average.set_values(values, cast="target")
    return str(average.values()["w0"].dtype.name)


def still(steps: int, rules: Sequence[str], mode: str) -> list[str]:
    """Rules and dtypes by which the average of constant weights differs from them in a bit after so many steps."""
    dtypes = [d for d in ("float32", "float64", "float16", "bfloat16") if BACKEND != "jax" or d != "float64"]
    start = np.float32([0.0, -0.0, 1.0, -1 / 3, 1e-7, 6e-8, -1.5e-5, 65504.0, 3.14159265, -2.7182818])
    model = vectors(start, *dtypes)
    averages = [polyak.track(model, rule) for rule in rules]
    drive(model, averages, np.repeat(start[None], steps, 0), mode)
    raw = polyak.snapshot(model)
    return [
        f"{rule} of {dtype}"
        for rule, average in zip(rules, averages, strict=True)
        for dtype, (path, value) in zip(dtypes, average.values().items(), strict=True)
        if average.count != steps or value.tobytes() != raw[path].astype(value.dtype).tobytes()
    ]


def beside_numpy(steps: int, rule: str) -> dict[str, int]:
    """By mode, the largest distance between an average and that of the NumPy kernel, in units in the last place.

    Larger weights, which move in other ways, make fewer of the steps.
    """
    found = dict.fromkeys(modes(), 0)
    for size, length in ((48, steps), (5_000, min(steps, 200)), (1 << 20, min(steps, 4))):
        values = walk(length, size, seed=2)
        expected = numpy_average(values, polyak.parse(rule))
        for mode in found:
            model = vectors(values[0])
            average = polyak.track(model, rule)
            drive(model, [average], values, mode)
            found[mode] = max(found[mode], ulps(average.values()["w0"], expected))
    return found


def ulps(one: Array, other: Array) -> int:
    """How many float32 numbers lie between two arrays, at most."""
    a, b = (np.abs(x).view(np.int32).astype(np.int64) * np.where(np.signbit(x), -1, 1) for x in (one, other))
    return int(np.abs(a - b).max())


def drifting_peers(steps: int, decay: float) -> dict[str, float]:
    """How far averages of this backend's own leave constant weights, relative."""
    values = np.repeat(np.random.default_rng(0).uniform(0.5, 1.5, 64).astype(np.float32)[None], steps, 0)
    return {name: error(a, values[0].astype(np.float64)) for name, a in PEERS[BACKEND](values, decay).items()}


# --- what the frameworks offer ---------------------------------------------------------------------------------------


def _tensorflow_peers(values: Array, decay: float, dtype: str = "float32") -> dict[str, Array]:
    import tensorflow as tf

    mine = tf.Variable(tf.cast(values[0], dtype))
    ema = tf.train.ExponentialMovingAverage(decay)
    ema.apply([mine])
    model = vectors(values[0], dtype)
    optimizer = keras.optimizers.SGD(use_ema=True, ema_momentum=decay)
    optimizer.build(model.trainable_variables)
    optimizer.iterations.assign(1)
    put(model, values[0])
    shadow = optimizer._model_variables_moving_average[0]
    shadow.assign(model.trainable_variables[0])
    rows = tf.cast(tf.constant(values), dtype)

    @tf.function
    def run() -> None:
        for i in tf.range(len(values)):
            mine.assign(rows[i])
            model.trainable_variables[0].assign(rows[i])
            ema.apply([mine])
            optimizer._update_model_variables_moving_average(model.trainable_variables)

    run()
    found = {"tf.train.EMA": ema.average(mine), "Keras use_ema": shadow.value}
    return {name: tf.cast(a, tf.float32).numpy() for name, a in found.items()}


def _jax_peers(values: Array, decay: float, dtype: str = "float32") -> dict[str, Array]:
    import jax
    import jax.numpy as jnp
    import optax

    def step(held: Any, row: Any) -> Any:
        average, state = held
        _, state = ema.update(row, state)
        return (optax.incremental_update(row, average, 1 - decay), state), None

    ema = optax.ema(decay, debias=False)
    rows = jnp.asarray(values, dtype)
    state = ema.init(rows[0])._replace(ema=rows[0])
    (average, state), _ = jax.jit(lambda held: jax.lax.scan(step, held, rows))((rows[0], state))
    found = {"optax.ema": state.ema, "optax.incremental_update": average}
    return {name: np.asarray(a.astype(jnp.float32)) for name, a in found.items()}


def _torch_peers(values: Array, decay: float, dtype: str = "float32") -> dict[str, Array]:
    import torch
    from torch.optim import swa_utils

    module = torch.nn.Module()
    module.w = torch.nn.Parameter(torch.tensor(values[0]).to(getattr(torch, dtype)))
    fast = swa_utils.AveragedModel(module, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(decay))
    plain = swa_utils.AveragedModel(module, avg_fn=swa_utils.get_ema_avg_fn(decay))
    for row in torch.tensor(values):
        module.w.data.copy_(row)
        fast.update_parameters(module)
        plain.update_parameters(module)
    found = {"torch multi_avg_fn (lerp)": fast, "torch avg_fn": plain}
    return {name: a.module.w.detach().float().numpy().copy() for name, a in found.items()}


PEERS = {"tensorflow": _tensorflow_peers, "jax": _jax_peers, "torch": _torch_peers}
NARROW_PEERS = PEERS
