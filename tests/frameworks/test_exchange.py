"""What holds while averages are applied or read: values over values, and locks that no other thread gets past."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from polyak.errors import ModelError
from polyak.frameworks import exchange, locks
from polyak.frameworks.exchange import (
    Hands,
    enter,
    holds_average,
    leave,
    moment,
    moment_of,
    raw_value,
    together,
    watch,
    watchers,
)
from polyak.frameworks.locks import Lock


class Watcher:
    """An average, as far as its locks go."""

    def __init__(self) -> None:
        self.locks: tuple[Lock, ...] = (Lock(),)

    def look(self) -> None:
        """There is nothing to see."""


@contextmanager
def held_elsewhere(watcher: Watcher) -> Iterator[Callable[[], None]]:
    """Another thread holds the lock until the function is called, or the block ends."""
    taken, enough = threading.Event(), threading.Event()

    def hold() -> None:
        lock = watcher.locks[0]
        lock.take(enough, -1.0)
        taken.set()
        enough.wait(20)
        lock.let_go(enough)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    assert taken.wait(10), "the lock is not free"
    try:
        yield enough.set
    finally:
        enough.set()
        thread.join()


@pytest.mark.parametrize("kind", [together, moment])
def test_nobody_else_changes_any_of_the_averages_meanwhile(kind: Callable[[Any], AbstractContextManager[None]]) -> None:
    averages, inside = [Watcher(), Watcher()], threading.Event()

    def enter_it() -> None:
        with kind(averages):
            inside.set()

    for average in averages:
        inside.clear()
        with held_elsewhere(average) as let_go:
            thread = threading.Thread(target=enter_it)
            thread.start()
            assert not inside.wait(0.1)
            let_go()
            assert inside.wait(20)
            thread.join()


@pytest.mark.parametrize("kind", [together, moment])
def test_afterwards_all_are_free(kind: Callable[[Any], AbstractContextManager[None]]) -> None:
    averages = [Watcher(), Watcher()]
    with pytest.raises(KeyError), kind(averages):
        raise KeyError
    for average in averages:
        with held_elsewhere(average):
            assert not average.locks[0].take(average, 0.0)


def test_who_only_reads_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "PATIENCE", 0.05)
    free, busy = Watcher(), Watcher()
    with (
        held_elsewhere(busy),
        pytest.raises(ModelError, match=r"expected a moment between two updates, received none in 0\.05 seconds"),
        moment([free, busy]),
    ):
        raise AssertionError("the block began")
    with held_elsewhere(free), held_elsewhere(busy):
        assert not free.locks[0].take(free, 0.0)


def waits(
    own: Watcher, both: Watcher, kind: Callable[[Any], AbstractContextManager[None]], told: list[object]
) -> threading.Thread:
    """Another thread that is within a moment of one average, and waits for one of two models."""

    def step() -> None:
        try:
            with together([own]), kind([both]):
                told.append("it came about")
        except ModelError as error:
            told.append(error)

    thread = threading.Thread(target=step, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not locks._WAITING and time.monotonic() < end:
        time.sleep(0.01)
    return thread


def of_two_models() -> tuple[Watcher, Watcher, Watcher]:
    one, other, both = Watcher(), Watcher(), Watcher()
    both.locks = (*one.locks, *other.locks)
    return one, other, both


@pytest.mark.parametrize("kind", [together, moment])
def test_threads_that_would_wait_for_each_other_for_ever_are_told(
    kind: Callable[[Any], AbstractContextManager[None]],
) -> None:
    one, other, both = of_two_models()
    told: list[object] = []
    with together([other]):
        thread = waits(one, both, together, told)
        with pytest.raises(ModelError, match="received one that waits for this thread"), kind([both]):
            raise AssertionError("the block began")
    thread.join(20)
    assert told == ["it came about"]


def test_a_step_waits_for_a_reader_that_waits_for_it_and_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "PATIENCE", 0.2)
    one, other, both = of_two_models()
    told: list[object] = []
    with together([other]):
        waits(one, both, moment, told)
        with together([both]):
            assert isinstance(told[0], ModelError)


def test_a_thread_that_would_wait_looks_while_no_other_does() -> None:
    """Two that looked at once would each see the other one free, and both would wait for ever."""
    lock, told = Lock(), list[bool]()
    lock.take("block", 0.0)
    thread = threading.Thread(target=lambda: told.append(lock.take("other block", 0.0)))
    with locks._LOOKING:
        thread.start()
        thread.join(0.3)
        assert told == []
    thread.join(20)
    assert told == [False]


def follow(*variables: Any) -> Watcher:
    watcher = Watcher()
    watcher.locks = watch(variables, watcher)
    return watcher


def test_averages_of_the_same_weights_have_one_lock_and_a_later_one_of_two_models_has_those_of_both() -> None:
    a, b, c, d = (SimpleNamespace(value=1) for _ in range(4))
    one, other = follow(a), follow(c)
    assert follow(a, b).locks == one.locks != other.locks
    assert follow(b).locks == one.locks
    assert set(follow(b, c, d).locks) == {*one.locks, *other.locks}
    assert set(follow(d).locks) < {*one.locks, *other.locks}
    assert set(follow(copy.deepcopy(a)).locks).isdisjoint(one.locks)


def test_who_reads_a_part_of_a_model_does_not_wait_for_the_other_part() -> None:
    a, b, c = (SimpleNamespace(value=1) for _ in range(3))
    one, other = follow(a), follow(b)
    follow(a, b)
    with held_elsewhere(other), moment_of([a, c]):
        assert one.locks[0].is_mine


@pytest.mark.parametrize("kind", [together, moment])
def test_who_waits_for_an_average_gets_the_lock_that_it_has_by_then(
    kind: Callable[[Any], AbstractContextManager[None]],
) -> None:
    variable, late, inside = SimpleNamespace(value=1), Watcher(), threading.Event()
    early = follow(variable)

    def enter_it() -> None:
        with kind([late]):
            inside.set()

    thread = threading.Thread(target=enter_it)
    with held_elsewhere(late) as let_go, held_elsewhere(early) as let_go_too:
        thread.start()
        late.locks = watch([variable], late)
        let_go()
        assert not inside.wait(0.1)
        let_go_too()
        assert inside.wait(20)
    thread.join()


def put(variable: Any, value: Any) -> None:
    variable.value = value


def take(variable: Any) -> Any:
    return variable.value


PLAIN = Hands(take, put, mark=take, same=lambda over, found: over.mark == found)


def test_values_are_taken_away_in_any_order_and_the_raw_one_comes_back() -> None:
    variable, one, other = SimpleNamespace(value=1), object(), object()
    enter(variable, one, lambda: 2, PLAIN)
    enter(variable, other, lambda: 3, PLAIN)
    leave(variable, one, PLAIN)
    assert (variable.value, raw_value(variable, PLAIN)) == (3, 1)
    leave(variable, one, PLAIN)
    leave(variable, other, PLAIN)
    assert vars(variable) == {"value": 1}


def test_what_was_written_over_a_value_is_found_when_its_owner_leaves() -> None:
    variable, one, other = SimpleNamespace(value=1), object(), object()
    enter(variable, one, lambda: 2, PLAIN)
    enter(variable, other, lambda: 3, PLAIN)
    put(variable, 4)
    assert [_as_put(variable, owner) for owner in (other, one, one)] == [False, True, None]
    assert vars(variable) == {"value": 1}


def _as_put(variable: Any, owner: object) -> bool | None:
    left = leave(variable, owner, PLAIN)
    return left and PLAIN.same(*left)


class Meanwhile:
    """Hands that give another thread the time to do something, once, in the middle of an exchange."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.thread = threading.Thread(target=work)
        self.hands = replace(PLAIN, take=self.take, put=self.put)

    def take(self, variable: Any) -> Any:
        self._wait()
        return variable.value

    def put(self, variable: Any, value: Any) -> None:
        self._wait()
        variable.value = value

    def _wait(self) -> None:
        if self.thread.ident is None:
            self.thread.start()
            self.thread.join(0.2)


def test_what_another_thread_puts_there_meanwhile_is_not_taken_for_the_raw_value() -> None:
    variable, one, other = SimpleNamespace(value=1), object(), object()
    meanwhile = Meanwhile(lambda: enter(variable, other, lambda: 3, PLAIN))
    enter(variable, one, lambda: 2, meanwhile.hands)
    meanwhile.thread.join()
    assert raw_value(variable, PLAIN) == 1
    leave(variable, one, PLAIN)
    leave(variable, other, PLAIN)
    assert vars(variable) == {"value": 1}


def test_the_raw_value_comes_back_after_another_thread_that_entered_while_the_last_one_left() -> None:
    variable, one, other = SimpleNamespace(value=1), object(), object()
    enter(variable, one, lambda: 2, PLAIN)
    meanwhile = Meanwhile(lambda: enter(variable, other, lambda: 3, PLAIN))
    leave(variable, one, meanwhile.hands)
    meanwhile.thread.join()
    assert (variable.value, raw_value(variable, PLAIN)) == (3, 1)
    leave(variable, other, PLAIN)
    assert vars(variable) == {"value": 1}


def test_the_raw_value_is_raw_where_another_thread_puts_an_average_there_meanwhile() -> None:
    variable = SimpleNamespace(value=1)
    meanwhile = Meanwhile(lambda: enter(variable, meanwhile, lambda: 3, PLAIN))
    assert raw_value(variable, meanwhile.hands) == 1
    meanwhile.thread.join()
    assert variable.value == 3


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda held: pickle.loads(pickle.dumps(held))])
def test_a_copy_of_a_variable_is_followed_by_nobody_and_what_it_holds_is_its_own(copied: Callable[[Any], Any]) -> None:
    variable, watcher = SimpleNamespace(value=1), Watcher()
    watch([variable], watcher)
    enter(variable, watcher, lambda: 2, PLAIN)
    twin = copied(variable)
    leave(variable, watcher, PLAIN)
    assert watchers([variable]) == [watcher]
    assert (variable.value, twin.value, raw_value(twin, PLAIN)) == (1, 2, 2)
    assert not holds_average(twin)
    if copied is not copy.copy:  # which shares what the variable's attributes are
        assert watchers([twin]) == []
