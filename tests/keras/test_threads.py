"""What another thread does to an average comes before an action or after it."""

from __future__ import annotations

import contextlib
import copy
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from tests.keras.peers import BACKEND

import polyak
from polyak.derived import BEMA, DEMA, FigureBEMA
from polyak.keras import Averaging

RULE = "ema:0.75,start=initial"


def small() -> Any:
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="a")])


def fill(model: Any, value: float) -> None:
    for variable in model.weights:
        variable.assign(np.full(variable.shape, value, np.float32))


def apart(work: Callable[[], object]) -> threading.Thread:
    """Another thread that has had the time to do work, unless something holds it up."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(0.5)
    return thread


ACTIONS: dict[str, Callable[[Any], Any]] = {
    "update": lambda average: average.update(),
    "reset": lambda average: average.reset(),
    "hard_sync": lambda average: average.hard_sync(),
    "refresh": lambda average: average.refresh(),
    "change_rule": lambda average: average.change_rule("ema:0.9,start=initial"),
}
OF_ARRAYS: dict[str, Callable[[Any], Any]] = {
    "tree": lambda average: average.tree(),
    "count": lambda average: average.count,
    "skipped": lambda average: average.skipped,
}


@pytest.mark.parametrize("action", ACTIONS if BACKEND == "tensorflow" else ACTIONS | OF_ARRAYS)
def test_an_action_waits_while_another_thread_is_within_a_moment(action: str) -> None:
    average = polyak.track(small(), RULE)
    average.update()
    with average.moment():
        thread = apart(lambda: (ACTIONS | OF_ARRAYS)[action](average))
        waits, state = thread.is_alive(), average.state
    thread.join()
    assert waits
    assert (state.rule, state.count) == (polyak.parse(RULE).to_json(), 1)


@pytest.mark.skipif(BACKEND != "jax", reason="only a step of JAX takes memory away")
def test_no_array_that_a_step_has_taken_away_is_needed_to_say_whether_a_function_is_compiled() -> None:
    average = polyak.track(small(), RULE)
    average.update()
    count = average.held.count
    average.update()
    assert count.is_deleted()
    average.engine.refuse_traced(count)


def a_step(model: Any, average: Any, value: float) -> None:
    with average.moment():
        fill(model, value)
        average.update()


def between(monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, work: Callable[[], object]) -> list[Any]:
    """After the method's first call another thread does the work, if nothing holds it up; the thread is in the list."""
    plain, threads = getattr(owner, method), []

    def instead(*args: Any) -> Any:
        found = plain(*args)
        if not threads:
            threads.append(None)
            threads[0] = apart(work)
        return found

    monkeypatch.setattr(owner, method, instead)
    return threads


def bits(snapshot: Any) -> dict[str, bytes]:
    return {path: snapshot[path].tobytes() for path in snapshot}


@pytest.mark.parametrize("kind", ["BEMA", "DEMA"])
def test_a_snapshot_of_a_derived_average_is_of_one_moment(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    fill(model, 1.0)
    form = FigureBEMA(polyak.parse(RULE))
    average = polyak.track(model, form.rule)
    derived = DEMA(average) if kind == "DEMA" else BEMA(average, form)
    a_step(model, average, 2.0)

    def step() -> None:
        with average.moment():
            a_step(model, average, 3.0)
            if isinstance(derived, DEMA):
                derived.update()

    if isinstance(derived, DEMA):
        derived.update()
    before = bits(derived.snapshot())
    threads = between(monkeypatch, average, "values", step)
    assert bits(derived.snapshot()) == before
    threads[0].join()
    assert bits(derived.snapshot()) != before


def test_a_double_average_moves_within_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    fill(model, 1.0)
    average = polyak.track(model, RULE)
    dema, other = DEMA(average), DEMA(average)
    a_step(model, average, 2.0)
    other.update()
    threads = between(monkeypatch, dema, "_rule", lambda: a_step(model, average, 3.0))
    dema.update()
    threads[0].join()
    for double in (dema, other):
        double.update()
    assert bits(dema.snapshot()) == bits(other.snapshot())


def test_values_are_of_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    fill(model, 1.0)
    average = polyak.track(model, RULE)
    before = average.values()
    threads = between(monkeypatch, type(average.target), "read", lambda: a_step(model, average, 3.0))
    assert bits(average.values()) == bits(before)
    threads[0].join(20)
    assert all((value == 1.5).all() for value in average.values().values())


def test_a_call_is_of_one_moment() -> None:
    started: list[threading.Thread] = []

    def meanwhile(x: Any) -> Any:
        if average and not started:
            started.append(apart(lambda: a_step(model, average[0], 3.0)))
        return x

    average: list[Any] = []
    layers = [keras.Input((2,)), keras.layers.Lambda(meanwhile, output_shape=(2,)), keras.layers.Dense(3, name="a")]
    model = keras.Sequential(layers)
    fill(model, 1.0)
    average.append(polyak.track(model, RULE))
    found = keras.ops.convert_to_numpy(average[0](np.ones((1, 2), np.float32)))
    started[0].join(20)
    assert (found == 3.0).all()
    assert average[0].count == 1


def test_a_hard_sync_is_of_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    fill(model, 2.0)
    average = polyak.track(model, RULE)
    threads = between(monkeypatch, average, "reset", lambda: a_step(model, average, 3.0))
    average.hard_sync()
    threads[0].join(20)
    assert average.count == 1
    assert all((value == 2.25).all() for value in average.values().values())


WRITES: dict[str, Callable[[Any, str], object]] = {
    "save": polyak.save,
    "save both": lambda average, path: polyak.save(average, path, "both"),
    "convert": polyak.convert,
    "transfer": lambda average, path: polyak.transfer(average, path, like=average.followed()),
}


@pytest.mark.parametrize("verb", WRITES)
def test_what_is_written_of_a_live_average_is_of_one_moment(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = small(), str(tmp_path / "a.safetensors")
    fill(model, 1.0)
    average = polyak.track(model, RULE)
    a_step(model, average, 2.0)
    held = {"raw": bits(polyak.snapshot(model)), "average": bits(polyak.snapshot(average))}
    shadows, step = type(average.target), lambda: a_step(model, average, 3.0)
    moments = [(shadows, "read"), (shadows, "view"), (polyak.Snapshot, "copy")]
    started = [between(monkeypatch, *moment, step) for moment in moments]
    WRITES[verb](average, path)
    for threads in started:
        for thread in threads:
            thread.join(20)
    file = polyak.open(path)
    assert {role: bits(file.select(role=role)) for role in file.roles} == {role: held[role] for role in file.roles}
    assert bits(polyak.snapshot(average)) != held["average"]


@pytest.mark.parametrize("when", ["refuse_applied", "_fresh"])
def test_an_update_never_takes_what_another_average_puts_into_the_model_for_raw(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two averages of one model in two threads: one is updated while the other begins to be applied."""
    model = small()
    fill(model, 1.0)
    average, other = polyak.track(model, "copy"), polyak.track(model, RULE)
    fill(model, 5.0)  # the other one still holds 1
    enough, begun = threading.Event(), threading.Event()

    def apply() -> None:
        with other.applied():
            begun.set()
            enough.wait(20)

    def update() -> None:
        with contextlib.suppress(polyak.errors.Applied):
            average.update()

    if when == "refuse_applied":
        threads = between(monkeypatch, average, "refuse_applied", apply)
        average.update()
    else:
        threads = between(monkeypatch, other, "_fresh", update)
        apply_thread = threading.Thread(target=apply)
        apply_thread.start()
        assert begun.wait(20)
        with pytest.raises(polyak.errors.Applied):
            average.update()
        threads.append(apply_thread)
    enough.set()
    for thread in threads:
        thread.join(20)
    assert average.count == 1
    assert all((value == 5.0).all() for value in [*average.values().values(), *model.get_weights()])


def test_an_average_is_not_applied_when_another_thread_has_just_begun_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    average, other = polyak.track(model, RULE), polyak.track(model, "copy")
    within, ended, plain = threading.Event(), list[bool](), average.report_skips

    def hold() -> None:
        with other.moment():
            within.set()
            time.sleep(0.5)
            ended.append(True)

    def report() -> None:
        plain()
        thread.start()
        assert within.wait(60)

    thread = threading.Thread(target=hold)
    monkeypatch.setattr(average, "report_skips", report)
    with average.applied():
        assert ended
    thread.join()


def test_an_average_is_not_applied_within_another_one_s_moment_in_another_thread() -> None:
    model = small()
    average, other = polyak.track(model, "copy"), polyak.track(model, RULE)
    fill(model, 5.0)

    def apply() -> None:
        with other.applied():
            pass

    with average.moment():
        thread = apart(apply)
        waits, held = thread.is_alive(), model.get_weights()
        with other.applied():  # in one thread nothing waits
            assert all((value != 5.0).any() for value in model.get_weights()[:1])
        average.update()
    thread.join(20)
    assert waits
    assert not thread.is_alive()
    assert all((value == 5.0).all() for value in [*held, *average.values().values(), *model.get_weights()])


def test_two_threads_that_apply_their_own_averages_within_moments_of_them_never_wait_for_each_other() -> None:
    model = small()
    averages = [polyak.track(model, RULE), polyak.track(model, RULE)]
    met = threading.Barrier(2)

    def work(average: Any) -> None:
        met.wait(20)
        for _ in range(20):
            with average.moment(), average.applied():
                pass

    threads = [threading.Thread(target=work, args=(average,), daemon=True) for average in averages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("applied", [False, True])
def test_a_copy_of_followed_variables_holds_plain_weights(applied: bool) -> None:
    model = small()
    average = polyak.track(model, RULE)
    fill(model, 2.0)
    if applied:
        with average.applied():
            twins, held = copy.deepcopy(model.trainable_variables), model.get_weights()
    else:
        twins, held = copy.deepcopy(model.trainable_variables), model.get_weights()
    for twin, value in zip(twins, held, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(twin), value)
        twin.assign(np.zeros(twin.shape, np.float32))
    average.update()
    assert average.count == 1
    assert all((value == 2.0).all() for value in model.get_weights())


def test_a_copy_of_a_model_with_an_average_applied_is_a_model_of_its_own() -> None:
    model = small()
    average = polyak.track(model, RULE)
    fill(model, 2.0)
    with average.applied():
        twin = copy.deepcopy(model)
        held = model.get_weights()
    assert polyak.snapshot(twin).roles == ("raw",)
    own = polyak.track(twin, "copy")
    own.update()
    assert [value.tobytes() for value in own.values().values()] == [value.tobytes() for value in held]
    assert all((value == 2.0).all() for value in model.get_weights())


def test_what_another_thread_reads_during_a_step_of_fit_waits_for_its_end() -> None:
    averaging, seen, waiting = Averaging(RULE), dict[int, int](), list[threading.Thread]()

    def read(step: int) -> None:
        seen[step] = averaging.average.snapshot().copy().state.count

    class Watched(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            if begun:
                waiting.append(apart(partial(read, begun.pop() + 1)))
            return x

    begun: list[int] = []
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), Watched()])
    model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    begin = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda batch, logs: begun.append(batch))
    model.fit(np.ones((6, 2)), np.ones((6, 3)), 2, verbose=0, callbacks=[averaging, begin])
    for thread in waiting:
        thread.join()
    assert seen.keys() == {1, 2, 3}
    assert all(count >= step for step, count in seen.items())
