"""An interrupt from the keyboard at any line of polyak leaves an average as it was or as it is after the update."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import Any

import keras
import numpy as np
import pytest
from tests.keras.peers import BACKEND, X, Y, adam, network

import polyak
from polyak.errors import NonFinite
from polyak.frameworks.exchange import EXCHANGING
from polyak.keras import Averaging

HERE = str(Path(polyak.__file__).parent)


@contextmanager
def interrupted_at(line: int, within: str, first: bool) -> Iterator[Callable[[], bool]]:
    """Ctrl-C at a line of polyak, counted as they are run; the result says whether so many were run.

    Args:
        first: whether the first lines of functions count.
    """
    left = line

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(within):
            return None
        if event == "line" and (first or frame.f_lineno > frame.f_code.co_firstlineno + 1):
            left -= 1
            if left == 0:
                signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lambda: left <= 0
    finally:
        sys.settrace(before)


def interrupts(work: Callable[[], object], within: str = HERE, first: bool = True) -> Iterator[int]:
    """Do work with an interrupt at its first line, then at its second, and so on; after each look at what is left."""
    line, reached = 1, True
    while reached:
        with interrupted_at(line, within, first) as was_reached:
            try:
                work()
            except KeyboardInterrupt:
                assert was_reached()
            reached = was_reached()
        _free()
        yield line
        line += 1


def _free() -> None:
    """A trace comes between the end of a block and the release of its lock, where Python lets no signal in: what has
    been left taken there would hang the threads of other tests.
    """
    while EXCHANGING._is_owned():
        EXCHANGING.release()


def small() -> Any:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="a"), keras.layers.BatchNormalization()])
    fill(model, 1.0)
    return model


def fill(model: Any, value: float) -> None:
    for variable in model.weights:
        variable.assign(np.full(variable.shape, value, np.float32))


def found(average: Any) -> tuple[set[float], set[float], int]:
    """All numbers of what is averaged, all of what is copied, and the count."""
    averaged = {w.path for w in average.target.weights if w.kind.value == "trainable"}
    values = average.values()
    moved = {float(x) for path in averaged for x in values[path].ravel()}
    return moved, {float(x) for path in values.keys() - averaged for x in values[path].ravel()}, average.count


@pytest.mark.parametrize("rule", ["ema:0.75,start=initial", "ema:0.25,check=off,start=initial"])
@pytest.mark.parametrize("placement", ["device", "host"])
def test_an_update_is_whole_or_has_not_begun(rule: str, placement: Any) -> None:
    model = small()
    average = polyak.track(model, rule, placement=placement)
    fill(model, 2.0)
    average.update()
    fill(model, 3.0)
    held, before = average.snapshot().copy(), found(average)
    average.update()
    after = found(average)
    polyak.transfer(held, average)
    seen = []
    for line in interrupts(average.update):
        seen.append(found(average))
        assert seen[-1] in (before, after), f"line {line}"
        polyak.transfer(held, average)
    assert seen[0] == before
    assert seen[-1] == after


def test_a_reset_is_whole_or_has_not_begun() -> None:
    model = small()
    average = polyak.track(model, "ema:0.75,start=initial")
    average.update()
    fill(model, 2.0)
    held, before, seen = average.snapshot().copy(), found(average), []
    for line in interrupts(average.reset):
        seen.append(found(average))
        assert seen[-1] in (before, ({2.0}, {2.0}, 0)), f"line {line}"
        polyak.transfer(held, average)
    assert seen[0] == before
    assert seen[-1] == ({2.0}, {2.0}, 0)


def test_averages_that_move_together_have_all_moved_or_none() -> None:
    model = small()
    near = polyak.track(model, "ema:0.25,check=off,start=initial")
    far = polyak.track(model, "ema:0.75,start=initial", placement="host")
    averages = polyak.Averages(model, {"near": near, "far": far})
    averages.update()
    for line in interrupts(averages.update):
        assert near.count == far.count, f"line {line}"


@pytest.mark.parametrize("error", [None, KeyError])
def test_an_interrupt_at_any_line_that_takes_an_average_away_leaves_raw_weights(error: type[Exception] | None) -> None:
    model = small()
    average = polyak.track(model, "ema:0.75,start=initial")
    fill(model, 2.0)

    def work() -> None:
        with suppress(KeyError), average.applied():
            if error is not None:
                raise error

    for line in interrupts(work, f"{HERE}/transfer/unbroken"):
        assert {float(x) for value in model.get_weights() for x in value.ravel()} == {2.0}, f"line {line}"
        average.update()


def test_an_interrupt_of_a_transfer_that_fails_leaves_the_target_as_it_was() -> None:
    source, target = small(), small()
    fill(source, 2.0)
    last = source.layers[-1].weights[-1]
    last.assign(np.full(last.shape, np.nan, np.float32))
    held = polyak.snapshot(source)

    def work() -> None:
        with suppress(NonFinite):
            polyak.transfer(held, target)

    before = [value.copy() for value in target.get_weights()]
    for line in interrupts(work, f"{HERE}/transfer/commit"):
        same = [np.array_equal(a, b) for a, b in zip(target.get_weights(), before, strict=True)]
        assert all(same), f"line {line}"


@pytest.mark.parametrize("place", ["exchange", "locks"])
def test_an_interrupt_leaves_no_average_taken(place: str) -> None:
    average = polyak.track(small(), "ema:0.75,start=initial")
    for line in interrupts(average.values, f"{HERE}/frameworks/{place}"):
        thread = Thread(target=average.update, daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive(), f"line {line}"


def test_an_interrupt_of_a_save_in_a_thread_takes_no_room(tmp_path: Path) -> None:
    average = polyak.track(small(), "ema:0.75,start=initial")
    with polyak.Saver() as background:
        save = lambda: background.save(average, tmp_path / "a.safetensors")  # noqa: E731
        for line in interrupts(save, f"{HERE}/saving"):
            thread = Thread(target=save, daemon=True)
            thread.start()
            thread.join(20)
            assert not thread.is_alive(), f"line {line}"


def test_an_interrupt_of_fit_loses_neither_the_average_nor_the_model() -> None:
    model, averaging = network(adam()), Averaging("ema:0.75,start=initial")
    model.compile(adam(), "mse", jit_compile=BACKEND == "jax")
    fit = lambda: model.fit(X, Y, batch_size=len(X) // 2, verbose=0, callbacks=[averaging])  # noqa: E731
    fit()
    averaging.average.update()
    # Before the first line of a train function Keras alone has the weights, in a frame of its own.
    for line in interrupts(fit, f"{HERE}/keras/fitting", first=False):
        for values in (averaging.average.values().values(), model.get_weights()):
            assert all(np.isfinite(value).all() for value in values), f"line {line}"
        assert averaging.average.count > 0


def test_an_interrupt_within_a_step_of_fit_leaves_no_update_that_the_average_has_not_seen() -> None:
    averaging, calls = Averaging("ema:0.75,start=initial"), list[int]()

    class Pressed(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            calls.append(1)
            if len(calls) == at:
                signal.raise_signal(signal.SIGINT)
            return x

    at = 0
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), Pressed()])
    optimizer = keras.optimizers.SGD(0.1)
    model.compile(optimizer, "mse", run_eagerly=True)
    model.fit(np.ones((2, 2)), np.ones((2, 3)), verbose=0, callbacks=[averaging])
    calls, at = [], 2
    with pytest.raises(KeyboardInterrupt):
        model.fit(np.ones((6, 2)), np.ones((6, 3)), 2, verbose=0, callbacks=[averaging])
    # On TensorFlow the step is given up; where the average moves after the step or beside it, it is brought to its end.
    assert averaging.average.count == int(optimizer.iterations) == (2 if BACKEND == "tensorflow" else 3)
