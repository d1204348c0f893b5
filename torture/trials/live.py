"""Averages that are read, saved and applied while another thread trains, and interrupts from the keyboard."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import keras
import numpy as np

import polyak
import polyak.keras
from torture.trials.models import BACKEND, Array, Weights, put

COUNT, SIZE = 8, 2048
HALF = "ema:0.7,start=initial"  # its average of 1, 2, 3 ... is never a whole number


@keras.saving.register_keras_serializable(package="torture")
class Rising(Weights):
    """Weights that gradient descent with a rate of one moves from n to n + 1: the output is their sum."""

    def __init__(self, **settings: Any) -> None:
        del settings
        super().__init__(SIZE, ["float32"] * COUNT)

    def call(self, x: Any) -> Any:
        return keras.ops.zeros_like(x) + sum(keras.ops.sum(w) for w in self.held)


def rising() -> Any:
    """A model all of whose weights are n after step n of ``fit``."""
    model = keras.Sequential([keras.Input((1,)), Rising()])
    model.compile(keras.optimizers.SGD(1.0), _negative, jit_compile=False)
    return model


@keras.saving.register_keras_serializable(package="torture")
def _negative(target: Any, output: Any) -> Any:
    return -output


# --- trains ----------------------------------------------------------------------------------------------------------

Train = Callable[[threading.Event], None]


def _looped(locked: bool) -> tuple[Any, Any, Train]:
    """A loop of one's own whose steps, if ``locked``, are within ``moment()``."""
    model = Weights(SIZE, ["float32"] * COUNT)
    average = polyak.track(model, "copy")

    def train(stop: threading.Event) -> None:
        while not stop.is_set():
            with average.moment() if locked else nullcontext():
                put(model, np.full(SIZE, average.count + 1, np.float32))
                average.update()

    return model, average, train


def _fitted() -> tuple[Any, Any, Train]:
    model = rising()
    averaging = polyak.keras.Averaging("copy")
    averaging.set_model(model)
    data = np.zeros((32, 1), np.float32)

    def train(stop: threading.Event) -> None:
        ends = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: _end(model, stop))
        while not stop.is_set():
            model.fit(data, data, 1, 100, verbose=0, callbacks=[averaging, ends])

    return model, averaging.average, train


def _end(model: Any, stop: threading.Event) -> None:
    model.stop_training = stop.is_set()


@contextmanager
def _beside(train: Train) -> Iterator[None]:
    stop, failed = threading.Event(), []

    def run() -> None:
        try:
            train(stop)
        except BaseException as error:  # raised in the thread that reads
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]


# --- reads -----------------------------------------------------------------------------------------------------------


def _values(model: Any, average: Any, folder: Path) -> list[Mapping[str, Array]]:
    return [average.values()]


def _copied(model: Any, average: Any, folder: Path) -> list[Mapping[str, Array]]:
    held = average.snapshot().copy()
    assert held.state is not None
    return [held, {"count": np.float32(held.state.count)}]


def _handed_over(model: Any, average: Any, folder: Path) -> list[Mapping[str, Array]]:
    other = polyak.track(_another(model), "copy")
    polyak.transfer(average, other)
    return [other.values(), {"count": np.float32(other.count)}]


def _another(model: Any) -> Any:
    return rising() if isinstance(model, keras.Sequential) else Weights(SIZE, ["float32"] * COUNT)


def _saved(model: Any, average: Any, folder: Path) -> list[Mapping[str, Array]]:
    both = BACKEND != "jax" or not isinstance(model, keras.Sequential)  # in fit on JAX raw weights cannot be read
    polyak.save(average, folder / "run.safetensors", weights="both" if both else None)
    held = polyak.open(folder / "run.safetensors")
    (state,) = (s for s in held.manifest.roles.values() if s is not None)
    return [held, {"count": np.float32(state.count)}]


def _checkpointed(model: Any, average: Any, folder: Path) -> list[Mapping[str, Array]]:
    import tensorflow as tf

    with average.moment():
        path = tf.train.Checkpoint(average=average).write(str(folder / "run"))
    kept = ("average/shadows", "average/count", "average/raw")
    names = [name for name, _ in tf.train.list_variables(path) if name.startswith(kept)]
    return [{name: np.asarray(tf.train.load_variable(path, name), np.float32) for name in names}]


def _predicted(model: Any, average: Any, folder: Path) -> list[Mapping[str, Array]]:
    total = average.predict(np.zeros((1, 1), np.float32), verbose=0)
    return [{"n": np.asarray(total, np.float64) / (COUNT * SIZE)}]


def _called(model: Any, average: Any, folder: Path) -> list[Mapping[str, Array]]:
    total = keras.ops.convert_to_numpy(average(np.zeros((1, 1), np.float32)))
    return [{"n": np.asarray(total, np.float64) / (COUNT * SIZE)}]


WAYS = {"values()": _values, "snapshot().copy()": _copied, "transfer": _handed_over, "save": _saved}
FIT_WAYS = {**WAYS, "predict": _predicted, "ema(x)": _called}
LONGER = 10.0  # seconds
DEAR = 10  # of the ways that write files or run a model, one in so many


def ways() -> dict[str, Any]:
    """The ways to read an average beside a loop of one's own."""
    return {**WAYS, "tf.train.Checkpoint": _checkpointed} if BACKEND == "tensorflow" else WAYS


def snapshots(count: int, inside: str) -> tuple[int, list[str], float]:
    """About so many snapshots beside a loop or ``fit``: (how many, what was torn or went back, steps meanwhile)."""
    model, average, train = _fitted() if inside == "fit" else _looped(locked=True)
    offered = FIT_WAYS if inside == "fit" else ways()
    done, broken = 0, []
    with tempfile.TemporaryDirectory() as folder, _beside(train), warnings.catch_warnings():
        warnings.simplefilter("ignore", polyak.errors.ImmatureWarning)
        _await(average, 2)
        began = average.count
        for name, way in offered.items():
            last = 0.0
            for _ in range(max(2, count // len(offered) // (1 if name in ("values()", "snapshot().copy()") else DEAR))):
                seen = _numbers(way(model, average, Path(folder)))
                done += 1
                if len(seen) != 1:
                    broken.append(f"{name}: of steps {sorted(seen)[:3]} at once")
                elif min(seen) < last:
                    broken.append(f"{name}: step {min(seen)} after step {last}")
                last = max(seen)
        steps = average.count - began
    return done, broken, steps


def _await(average: Any, count: int) -> None:
    end = time.monotonic() + 120
    while average.count < count and time.monotonic() < end:
        time.sleep(0.001)


def _numbers(read: list[Mapping[str, Array]]) -> set[float]:
    return {float(n) for held in read for value in held.values() for n in np.unique(value)}


def torn_peers(count: int) -> dict[str, str]:
    """The share of torn ones among snapshots of the frameworks' own beside the same loop."""
    model, average, train = _looped(locked=False)
    with tempfile.TemporaryDirectory() as folder, _beside(train):
        _await(average, 2)
        return {name: f"{100 * _torn(read, Path(folder), count):.2g}% torn" for name, read in _peers(model).items()}


def _torn(read: Callable[[Path], Any], folder: Path, count: int) -> float:
    """The share of torn ones among so many; where none is, among as many as some seconds more allow."""
    found, end = [], time.monotonic() + LONGER
    while len(found) < count or (not any(found) and time.monotonic() < end):
        found.append(len({float(n) for a in read(folder) for n in np.unique(a)}) > 1)
    return float(np.mean(found))


def _peers(model: Any) -> dict[str, Callable[[Path], Any]]:
    found: dict[str, Callable[[Path], Any]] = {f"get_weights on {BACKEND}": lambda folder: model.get_weights()}
    if BACKEND == "torch":
        found["state_dict"] = lambda folder: [t.clone().numpy() for t in model.state_dict().values()]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        def saved(folder: Path) -> list[Array]:
            path = tf.train.Checkpoint(model=model).write(str(folder / "peer"))
            names = [name for name, _ in tf.train.list_variables(path) if "held" in name]
            return [tf.train.load_variable(path, name) for name in names]

        found["tf.train.Checkpoint"] = saved
    return found


# --- interrupts ------------------------------------------------------------------------------------------------------


def interrupts(count: int, seed: int) -> tuple[int, list[str]]:
    """A real SIGINT at a random moment while the average is applied: (how many came in it, what broke)."""
    draw = np.random.default_rng(seed)
    model = rising()
    put(model, np.full(SIZE, 1.0, np.float32))
    average = polyak.track(model, HALF)
    put(model, np.float32(draw.standard_normal(SIZE)))
    average.update()
    raw, held = _bits(polyak.snapshot(model)), _bits(average.values())
    length = max(_seconds(model, average) for _ in range(3))
    hits, broken = 0, []
    for i in range(count):
        hits += _interrupted(lambda: _apply(model, average), draw.uniform(0, length))
        if _bits(polyak.snapshot(model)) != raw or average.in_use or average.is_applied:
            broken.append(f"interrupt {i}: the model does not hold its raw weights")
            break
        if _bits(average.values()) != held:
            broken.append(f"interrupt {i}: the average is another one")
    return hits, broken


def _apply(model: Any, average: Any) -> None:
    with average.applied():
        model.get_weights()


def _seconds(model: Any, average: Any) -> float:
    began = time.perf_counter()
    _apply(model, average)
    return time.perf_counter() - began


def _bits(values: Mapping[str, Array]) -> list[bytes]:
    return [value.tobytes() for value in values.values()]


def _interrupted(work: Callable[[], Any], delay: float) -> bool:
    """Whether the interrupt came before the work was done."""
    done = False

    def fire() -> None:
        end = time.perf_counter() + delay
        while time.perf_counter() < end:  # a sleep is too coarse
            time.sleep(0)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=fire)
    try:
        thread.start()
        work()
        done = True
        thread.join()
        time.sleep(60)
    except KeyboardInterrupt:
        pass
    thread.join()
    return not done


def interrupted_fits(count: int, seed: int) -> tuple[int, list[str]]:
    """A real SIGINT at a random moment of a fit that evaluates both sets: (how many, what broke)."""
    draw = np.random.default_rng(seed)
    model = rising()
    data = np.zeros((8, 1), np.float32)
    averaging = polyak.keras.Averaging(HALF, evaluate="both")

    def fit(epochs: int) -> None:
        model.fit(data, data, 1, epochs, verbose=0, validation_data=(data, data), callbacks=[averaging])

    fit(1)
    began = time.perf_counter()
    fit(1)
    length, hits, broken = time.perf_counter() - began, 0, []
    for i in range(count):
        hits += _interrupted(lambda: fit(50), draw.uniform(0, length))
        seen = _numbers([polyak.snapshot(model)])
        if any(n != round(n) for n in seen) or averaging.average.in_use:
            broken.append(f"interrupt {i}: the model holds {sorted(seen)[:3]}, which are not raw weights")
            break
        _numbers([averaging.average.values()])
    return hits, broken
