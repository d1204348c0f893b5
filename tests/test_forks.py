"""Locks that a forked process finds free, of averages, files and savers alike."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from polyak.forks import new_lock

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")


def succeeds_in_a_fork(lock: threading.RLock) -> bool:  # type: ignore[valid-type]
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # it ends where it would wait for ever
        try:
            taken = lock.acquire(timeout=1)  # type: ignore[attr-defined]
            lock.release()  # type: ignore[attr-defined]
        finally:
            os._exit(not taken)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(("make", "free"), [(new_lock, True), (threading.RLock, False)])
def test_a_lock_that_another_thread_holds_is_free_in_a_fork(make, free) -> None:  # type: ignore[no-untyped-def]
    lock, held, enough = make(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            enough.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    assert succeeds_in_a_fork(lock) == free
    assert not lock.acquire(blocking=False)  # here it still is the other thread's
    enough.set()
    thread.join()


def test_the_thread_that_forks_keeps_what_it_holds() -> None:
    with (lock := new_lock()):
        assert succeeds_in_a_fork(lock)
