"""Signals wait while something is done that must not be cut in two."""

from __future__ import annotations

import signal
import threading

import pytest

from polyak.transfer.unbroken import surely, unbroken


def test_an_interrupt_comes_after_the_block() -> None:
    done = []

    def work() -> None:
        with unbroken():
            signal.raise_signal(signal.SIGINT)
            done.append(1)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_of_ones_own_run_once_for_each_signal() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        with unbroken():
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGUSR1)
            assert seen == []
        assert seen == [signal.SIGUSR1] * 2
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_an_error_of_the_block_is_not_lost_beside_an_interrupt() -> None:
    def work() -> None:
        with unbroken():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("of the block")

    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert isinstance(caught.value.__context__, ValueError)


def test_other_threads_need_nothing() -> None:
    held = []

    def work() -> None:
        with unbroken():
            held.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert held == [signal.default_int_handler]


def test_work_that_failed_is_done_again_and_its_error_is_raised() -> None:
    calls = []

    def work() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("the first time")

    with pytest.raises(RuntimeError, match="the first time"):
        surely(work)
    assert calls == [1, 1]


def test_work_that_is_done_is_not_done_again_for_an_interrupt() -> None:
    calls = []

    def work() -> None:
        calls.append(1)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        surely(work)
    assert calls == [1]


def test_an_interrupt_while_it_is_done_again_waits_too() -> None:
    ended = []

    def work() -> None:
        signal.raise_signal(signal.SIGINT)
        if not ended:
            ended.append("failed")
            raise RuntimeError("the first time")
        ended.append("whole")

    with pytest.raises(KeyboardInterrupt):
        surely(work)
    assert ended == ["failed", "whole"]


def test_a_signal_without_a_name_waits_too() -> None:
    seen: list[int] = []
    number = signal.SIGRTMIN + 3
    before = signal.signal(number, lambda number, frame: seen.append(number))
    try:
        with unbroken():
            signal.raise_signal(number)
            assert seen == []
        assert seen == [number]
    finally:
        signal.signal(number, before)
