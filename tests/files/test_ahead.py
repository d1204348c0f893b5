"""Reading ahead: what is begun when, whose failure is told where, and what threads get."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from polyak.errors import DamagedFile
from polyak.files.ahead import Ahead

NAMES = [f"w{i}" for i in range(12)]


class Begun:
    """Notes what is begun; a name that is broken cannot be."""

    def __init__(self, broken: str = "") -> None:
        self.names: list[str] = []
        self._broken = broken

    def __call__(self, name: str) -> str:
        self.names.append(name)
        if name == self._broken:
            raise DamagedFile(f"weight {name!r}: damaged")
        return name.upper()


def test_each_is_begun_once_in_order_and_nothing_ahead_of_a_first_one() -> None:
    begun = Begun()
    readings = Ahead(begun, NAMES)
    assert readings.of("w3") == "W3"
    assert begun.names == ["w3"]
    assert [readings.of(n) for n in NAMES[4:]] == [n.upper() for n in NAMES[4:]]
    assert begun.names == NAMES[3:]


def test_any_order_gives_each_its_own() -> None:
    dice = random.Random(0)
    readings = Ahead(Begun(), NAMES)
    for _ in range(500):
        name = dice.choice(NAMES)
        assert readings.of(name) == name.upper()


def test_a_failure_is_told_where_its_name_is_asked_for() -> None:
    readings = Ahead(Begun("w2"), NAMES)
    assert [readings.of(n) for n in NAMES[:2]] == ["W0", "W1"]
    with pytest.raises(DamagedFile, match="weight 'w2'"):
        readings.of("w2")
    assert readings.of("w3") == "W3"


def test_a_name_that_is_not_in_the_order_is_read_as_any_other() -> None:
    begun = Begun()
    readings = Ahead(begun, NAMES)
    assert [readings.of(n) for n in ("w0", "large", "w1")] == ["W0", "LARGE", "W1"]
    assert begun.names == ["w0", "large", "w1"]


def test_threads_get_what_each_has_asked_for() -> None:
    readings = Ahead(Begun(), NAMES)
    asked = [random.Random(i).choice(NAMES) for i in range(2000)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(readings.of, asked)) == [n.upper() for n in asked]


def beside(do: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join(0.2)
    return thread


def test_one_thread_at_a_time_takes_what_was_begun() -> None:
    readings = Ahead(Begun(), NAMES)
    with readings._turn:
        waiting = beside(lambda: readings.of("w0"))
        assert waiting.is_alive()
    waiting.join(10)
    assert not waiting.is_alive()


def test_one_thread_at_a_time_leaves_what_it_has_begun() -> None:
    """The lock is taken by this thread while the other one begins the third name ahead."""
    begun, go_on = threading.Event(), threading.Event()

    def begin(name: str) -> str:
        if name == "w2":
            begun.set()
            go_on.wait(10)
        return name

    readings = Ahead(begin, NAMES)
    readings.of("w0")
    waiting = threading.Thread(target=lambda: readings.of("w1"), daemon=True)
    waiting.start()
    begun.wait(10)
    with readings._turn:
        go_on.set()
        waiting.join(0.2)
        assert waiting.is_alive()
    waiting.join(10)
    assert not waiting.is_alive()
