"""What an average adds to a step of ``fit`` and of a compiled loop of one's own, on each backend of Keras.

``python -m bench.fit [--models small large] [--backends tensorflow jax torch] [--steps N]``

In one process per backend the same model is trained without an average, with polyak, and with Keras' ``use_ema``, in
turns, so that all see the same machine. A row's figure is the median over the turns of the time of a step; "added" is
against the step without an average in the same turn. The limit is what an update must read and write (12 bytes for
each float32 weight) at the speed of a plain in-place loop over one flat array, measured in the same turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from typing import Any

from bench.measure import keep, table

BACKENDS = ("tensorflow", "jax", "torch")
SIZES = {"small": (64, 2, 32), "large": (3500, 4, 32)}  # width, layers, batch: 50 million weights in the large one
MANNERS = ("none", "polyak", "use_ema")
TURNS = {"small": 15, "large": 3}


def main() -> None:
    """Measure on each backend, print one table, keep the figures."""
    asked = _arguments()
    if asked.child:
        print(json.dumps(measured(asked.models, asked.steps)))
        return
    results: dict[str, Any] = {}
    for backend in asked.backends:
        command = [sys.executable, "-W", "ignore", "-m", "bench.fit", "--child", "--steps", str(asked.steps)]
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(
            [*command, "--models", *asked.models], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(f"{backend}: not measured: {done.stderr.strip().splitlines()[-1]}")
            continue
        results |= {f"{backend} {name}": found for name, found in json.loads(done.stdout.splitlines()[-1]).items()}
    print(table(["backend, model, loop", "ms a step", "polyak", "use_ema", "limit"], list(_rows(results))))
    print(f"\nadded to a step, in percent of it; kept in {keep('fit' + '-quick' * asked.quick, results)}")


def measured(models: list[str], steps: int) -> dict[str, Any]:
    """Milliseconds a step, by model and loop: without an average, and what each manner adds."""
    found: dict[str, Any] = {}
    for name in models:
        width, layers, batch = SIZES[name]
        for loop, made in (("fit", _fitted), ("own loop", _looped)):
            runs = {manner: made(_model(manner, width, layers), manner, batch, steps) for manner in MANNERS}
            found[f"{name} {loop}"] = _compared(runs, width * width * layers, TURNS[name])
    return found


def _compared(runs: dict[str, Callable[[], float]], weights: int, turns: int) -> dict[str, float]:
    for run in runs.values():
        run()  # traces and compiles
    seen = [{manner: run() for manner, run in runs.items()} | {"limit": _limit(weights)} for _ in range(turns)]
    base = statistics.median(turn["none"] for turn in seen)
    added = {m: statistics.median(turn[m] - turn["none"] for turn in seen) for m in ("polyak", "use_ema")}
    return {"step": 1e3 * base, **{m: 1e3 * s for m, s in added.items()}} | {
        "limit": 1e3 * statistics.median(turn["limit"] for turn in seen)
    }


def _model(manner: str, width: int, layers: int) -> Any:
    import keras

    keras.utils.set_random_seed(0)
    body = [keras.layers.Dense(width, "relu") for _ in range(layers)]
    model = keras.Sequential([keras.Input((width,)), *body, keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(1e-4, use_ema=manner == "use_ema", ema_momentum=0.999), "mse")
    return model


def _data(model: Any, rows: int) -> tuple[Any, Any]:
    import numpy as np

    x = np.random.default_rng(0).standard_normal((rows, model.input_shape[1])).astype(np.float32)
    return x, x[:, :1].copy()


def _fitted(model: Any, manner: str, batch: int, steps: int) -> Callable[[], float]:
    """A function that trains for so many steps in ``fit`` and answers with the seconds of one."""
    import keras

    import polyak.keras

    callbacks = [polyak.keras.Averaging("ema:0.999")] if manner == "polyak" else []
    x, y = _data(model, batch * steps)

    def run() -> float:
        clock = _clock(keras)
        model.fit(x, y, batch, 1, verbose=0, shuffle=False, callbacks=[*callbacks, clock])
        return statistics.median(b - a for a, b in pairwise(clock.times))

    return run


def _looped(model: Any, manner: str, batch: int, steps: int) -> Callable[[], float]:
    """The same in a loop of one's own, compiled where the backend compiles."""
    import keras

    import polyak

    model.optimizer.build(model.trainable_variables)
    average = polyak.track(model, "ema:0.999") if manner == "polyak" else None
    x, y = _data(model, batch)
    step = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[keras.backend.backend()](model, average, x, y)

    def run() -> float:
        times = []
        for _ in range(steps + 1):
            step()
            times.append(time.perf_counter())
        return statistics.median(b - a for a, b in pairwise(times))

    return run


def _tensorflow(model: Any, average: Any, x: Any, y: Any) -> Callable[[], Any]:
    import tensorflow as tf

    weights = model.trainable_variables
    given, wanted = tf.constant(x), tf.constant(y)

    @tf.function
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(given, training=True) - wanted) ** 2)
        model.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        if average is not None:
            average.update()
        return loss

    return lambda: float(step())


def _jax(model: Any, average: Any, x: Any, y: Any) -> Callable[[], Any]:
    import jax

    def loss(trained: Any, others: Any) -> Any:
        found, others = model.stateless_call(trained, others, x, training=True)
        return ((found - y) ** 2).mean(), others

    def pure(trained: Any, others: Any, optimizer: Any, tree: Any) -> Any:
        (value, others), slopes = jax.value_and_grad(loss, has_aux=True)(trained, others)
        trained, optimizer = model.optimizer.stateless_apply(optimizer, slopes, trained)
        tree = tree if average is None else average.stateless_update(tree, trained, others)
        return value, (trained, others, optimizer, tree)

    compiled = jax.jit(pure, donate_argnums=(0, 1, 2, 3))
    lists = (model.trainable_variables, model.non_trainable_variables, model.optimizer.variables)
    state = [*([v.value for v in held] for held in lists), {} if average is None else average.tree()]

    def step() -> float:
        value, state[:] = compiled(*state)
        return float(value)

    return step


def _torch(model: Any, average: Any, x: Any, y: Any) -> Callable[[], Any]:
    import torch

    given, wanted, weights = torch.from_numpy(x), torch.from_numpy(y), model.trainable_variables

    def step() -> float:
        model.zero_grad()
        loss = ((model(given, training=True) - wanted) ** 2).mean()
        loss.backward()
        with torch.no_grad():
            model.optimizer.apply([v.value.grad for v in weights], weights)
        if average is not None:
            average.update()
        return float(loss)

    return step


def _clock(keras: Any) -> Any:
    """The times at which steps end. What begins and ends an epoch is no step's."""

    class Clock(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            float(logs["loss"])  # the step has been done, not only asked for
            self.times.append(time.perf_counter())

        def on_train_end(self, logs: Any = None) -> None:
            # On JAX a second fit fails after use_ema: it leaves one array in two places, and a step gives both away.
            if keras.backend.backend() == "jax":
                self.model.set_weights([w.copy() for w in self.model.get_weights()])

    return Clock()


@cache
def _flat(weights: int) -> tuple[Any, Any]:
    """Two flat arrays whose pages are there already."""
    import numpy as np

    return np.full(weights, 1, np.float32), np.full(weights, 2, np.float32)


def _limit(weights: int) -> float:
    """Seconds of one in-place pass of the same size over a flat array, on one core."""
    import numpy as np

    average, value = _flat(weights)
    chunk = 2**16
    start = time.perf_counter()
    for i in range(0, weights, chunk):
        a, x = average[i : i + chunk], value[i : i + chunk]
        a -= np.float32(0.001) * (a - x)
    return time.perf_counter() - start


def _rows(results: dict[str, Any]) -> Iterator[list[str]]:
    for name, r in results.items():
        shares = [f"{100 * r[m] / r['step']:+.1f}%" for m in ("polyak", "use_ema", "limit")]
        yield [name, f"{r['step']:.2f}", *shares]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=BACKENDS)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="the small model, a few steps: whether it runs")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.quick:
        asked.models, asked.steps = ["small"], 5
    return asked


if __name__ == "__main__":
    main()
