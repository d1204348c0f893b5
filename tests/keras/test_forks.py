"""A process that is forked while a lock is held: other threads' locks are free there, the forking thread's its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

unix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")

# Each in a process of its own: pytest's may hold threads of a framework by then.
HEAD = """
import os, signal, threading, warnings
from concurrent.futures import ThreadPoolExecutor
import keras
import numpy as np
import polyak
from polyak.frameworks import locks
from polyak.frameworks.exchange import EXCHANGING

warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of a fork beside threads
model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
average = polyak.track(model, "ema:0.5,start=copy")
average.update()

def held_by_another(context):
    taken, enough = threading.Event(), threading.Event()
    def hold():
        with context:
            taken.set()
            enough.wait(60)
    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    assert taken.wait(10)
    return enough, thread

def forked(work):
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # it ends where it would wait for ever
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def step():
    with average.moment():
        model.set_weights([np.full((1, 1), 3.0)])
        average.update()
    with average.applied():
        assert model.get_weights()[0].item() == 2.0
    assert read() == (2, 2.0)

def in_another_thread(work):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(10)

def read():
    with average.moment():
        return average.count, next(iter(average.values().values())).item()

def use():
    assert read() == in_another_thread(read) == (1, 1.0)
    if keras.backend.backend() != "jax":  # which computes in threads that a fork has not got
        step()
        assert in_another_thread(lambda: average.update() or average.count) == 3
"""

OTHERS_HOLD = """
others = [held_by_another(each) for each in (average.moment(), EXCHANGING, locks._LOOKING)]
print(forked(use), average.locks[0]._holder == others[0][1].ident)
for enough, thread in others:
    enough.set()
    thread.join()
step()
"""

THE_FORKING_THREAD_HOLDS = """
lock = average.locks[0]

def held():
    return lock.is_mine, EXCHANGING._is_owned(), in_another_thread(lambda: lock.take(None, 0.0))

with average.moment(), EXCHANGING:
    child = os.fork()
    within = held()
if child == 0:
    signal.alarm(20)
    assert (within, held()) == ((True, True, False), (False, False, True))
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), within)
use()
"""


def said(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


@unix
def test_a_forked_process_reads_and_moves_an_average_that_another_thread_held() -> None:
    assert said(HEAD + OTHERS_HOLD) == "0 True"


@unix
def test_a_process_that_is_forked_within_a_moment_is_within_it_and_leaves_it() -> None:
    assert said(HEAD + THE_FORKING_THREAD_HOLDS) == "7 (True, True, False)"


def test_locks_are_made_where_there_is_no_fork() -> None:
    forget = "[vars(os).pop(name, None) for name in ('fork', 'register_at_fork')]"
    assert said(f"import os; {forget}; import polyak.frameworks.exchange; print('made')") == "made"
