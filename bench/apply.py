"""Averaged weights in the model and out again, and a forward pass with them, beside SwapEMAWeights and torch-ema.

``python -m bench.apply [--quick] [--backends tensorflow jax torch]``

A round enters and leaves; its limit is two plain copies of the weights' bytes on all cores, one in and one out, in the
same turns. ``ema(x)`` stands beside ``model(x)``, both after their first call. Peak memory is that of a process of its
own, beyond what it held before a round, in multiples of the weights' bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from bench import children, limit
from bench.measure import keep, peak_beyond, restart_peak, table
from bench.turns import Manner, in_turns

BACKENDS = ("tensorflow", "jax", "torch")
SIZES = {"small": (64, 4), "large": (2048, 8)}  # width and layers: 17 thousand and 34 million weights
ROUNDS = ("polyak", "SwapEMAWeights", "torch-ema")
BATCH = 32


def main() -> None:
    """Measure, print one table, keep the figures."""
    asked = _arguments()
    if asked.child:
        children.answer(measured, asked.child)
        return
    for tool in children.missing():
        print(f"{tool}: not installed, so not measured (make bench installs it)")
    sizes = ["small"] if asked.quick else list(SIZES)
    results: dict[str, Any] = {}
    for backend in asked.backends:
        for size in sizes:
            ask = partial(_asked, backend, size, asked.turns)
            results[f"{backend} {size}"] = ask("times")
            memory = {name: ask(name) for name in ROUNDS if name != "torch-ema" or backend == "torch"}
            results[f"{backend} {size} memory"] = memory
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    path = keep("apply" + "-quick" * asked.quick, results)
    print(table(["backend, model, what", "ms", "x limit", "x polyak", "peak memory"], list(rows(results))))
    print(f"kept in {path}")


def _asked(backend: str, size: str, turns: int, what: str) -> dict[str, Any] | str:
    return children.measured("bench.apply", {"size": size, "turns": turns, "what": what}, backend)


def measured(size: str, turns: int, what: str) -> dict[str, Any]:
    """In the child: times of all manners, or the memory of one."""
    model, bytes_ = _model(*SIZES[size])
    if what == "times":
        return _times(model, bytes_, turns)
    round_ = _rounds(model)[what]()
    before = restart_peak()
    round_()
    return {"memory": peak_beyond(before) / bytes_}


def _times(model: Any, bytes_: int, turns: int) -> dict[str, Any]:
    manners: dict[str, Manner] = {"limit": limit.flat_copy(2 * bytes_)}
    for name, make in _rounds(model).items():
        try:
            manners[name] = make()
        except ImportError:
            continue  # said by the parent
    manners |= _calls(model)
    times = in_turns(manners, turns)
    found = {name: {"seconds": times.median(name)} for name in manners}
    for name in ROUNDS:
        if name in found:
            found[name] |= {"limit": times.ratio(name, "limit"), "polyak": times.ratio(name, "polyak")}
    for name in (n for n in found if n.startswith("ema")):
        found[name] |= {"limit": times.ratio(name, name.replace("ema", "model"))}
    return found


def _model(width: int, layers: int) -> tuple[Any, int]:
    import keras

    body = [keras.layers.Dense(width, "relu") for _ in range(layers)]
    model = keras.Sequential([keras.Input((width,)), *body])
    model.compile(keras.optimizers.SGD(0.0, use_ema=True, ema_momentum=0.999), "mse")
    model.optimizer.build(model.trainable_variables)
    return model, 4 * model.count_params()


def _rounds(model: Any) -> dict[str, Callable[[], Manner]]:
    import keras

    made = {"polyak": lambda: _polyak(model), "SwapEMAWeights": lambda: _swap(model)}
    if keras.backend.backend() == "torch":
        made["torch-ema"] = lambda: _torch_ema(model)
    return made


def _polyak(model: Any) -> Manner:
    from bench.manners import together

    average = together(model, 1)
    average.update()

    def round_() -> None:
        with average.applied():
            _wait(model)
        _wait(model)

    return round_


def _swap(model: Any) -> Manner:
    import keras

    callback = keras.callbacks.SwapEMAWeights()
    callback.set_model(model)

    def round_() -> None:
        callback.on_test_begin()
        _wait(model)
        callback.on_test_end()
        _wait(model)

    return round_


def _torch_ema(model: Any) -> Manner:
    from torch_ema import ExponentialMovingAverage

    tool = ExponentialMovingAverage([v.value for v in model.trainable_variables], 0.999)

    def round_() -> None:
        tool.store()
        tool.copy_to()
        tool.restore()

    return round_


def _calls(model: Any) -> dict[str, Manner]:
    """A forward pass, called and in a function that TensorFlow traces."""
    import keras

    from bench.manners import together

    average, x = together(model, 1), keras.ops.ones((BATCH, model.input_shape[1]))
    made: dict[str, Manner] = {"model(x)": lambda: _ready(model(x)), "ema(x)": lambda: _ready(average(x))}
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        made |= {"model(x) graph": partial(tf.function(model), x), "ema(x) graph": partial(tf.function(average), x)}
    return made


def _wait(model: Any) -> None:
    _ready([v.value for v in model.trainable_variables])


def _ready(values: Any) -> None:
    if "jax" in sys.modules:
        sys.modules["jax"].block_until_ready(values)
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        sys.modules["torch"].cuda.synchronize()


def rows(results: dict[str, Any]) -> Iterator[list[str]]:
    """Rounds beside the limit and polyak, calls of the average beside those of the model."""
    for key in (k for k in results if not k.endswith("memory")):
        one, memory = results[key], results[f"{key} memory"]
        if isinstance(one, str):
            yield [f"{key}: {one}", *["-"] * 4]
            continue
        for name, figures in one.items():
            if name == "peak":
                continue
            ratios = [f"{figures[base]:.2f}" if base in figures else "-" for base in ("limit", "polyak")]
            used = memory.get(name)
            held = f"{used['memory']:.2f}" if isinstance(used, dict) and "memory" in used else "-"
            yield [f"{key}, {name}", f"{1e3 * figures['seconds']:.3g}", *ratios, held]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=BACKENDS)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="the small model alone: whether it runs, not how fast")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
