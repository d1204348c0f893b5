"""Saves in a thread: of one moment, in order, waited for, and never silent when they fail."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import polyak
from polyak import saving as saving_module
from polyak.errors import AmbiguousRole, FileError
from polyak.saving import Saving
from polyak.snapshot import Item, Snapshot
from polyak.weights import Kind, Weight

tf = pytest.importorskip("tensorflow")


def held(value: float, gate: threading.Event | None = None) -> Snapshot:
    """One weight, which can be read once the gate is open."""

    def read() -> np.ndarray:
        assert gate is None or gate.wait(20)
        return np.full(4, value, np.float32)

    return Snapshot([Item("raw", Weight("w", (4,), "float32", Kind.TRAINABLE), read)])


def failing(gate: threading.Event) -> Snapshot:
    """One weight that cannot be read any more once the gate is open."""

    def read() -> np.ndarray:
        assert gate.wait(20)
        raise FileError("the weights are gone")

    return Snapshot([Item("raw", Weight("w", (4,), "float32", Kind.TRAINABLE), read)])


def test_what_is_saved_is_of_the_moment_of_the_call(tmp_path: Path) -> None:
    module = tf.Module()
    module.w = tf.Variable([1.0, 2.0])
    gate = threading.Event()
    with polyak.Saver() as background:
        background.save(held(0.0, gate), tmp_path / "first.safetensors")
        saving = background.save(module, tmp_path / "a.safetensors")
        module.w.assign([5.0, 6.0])
        assert not saving.done
        gate.set()
    assert polyak.open(tmp_path / "a.safetensors")["w"].tolist() == [1.0, 2.0]


def test_saves_to_one_path_keep_the_order_of_the_calls(tmp_path: Path) -> None:
    with polyak.Saver() as background:
        for value in range(20):
            background.save(held(float(value)), tmp_path / "a.safetensors")
    assert polyak.open(tmp_path / "a.safetensors")["w"].tolist() == [19.0] * 4


def test_a_third_save_waits_for_the_first(tmp_path: Path) -> None:
    gate, third = threading.Event(), threading.Event()
    with polyak.Saver() as background:
        for number in range(2):
            background.save(held(1.0, gate), tmp_path / f"{number}.safetensors")
        thread = threading.Thread(target=lambda: (background.save(held(1.0), tmp_path / "2.safetensors"), third.set()))
        thread.start()
        assert not third.wait(0.2)
        gate.set()
        assert third.wait(20)
        thread.join()


def test_threads_that_save_at_once_lose_no_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    background, gate, threads = polyak.Saver(), threading.Event(), []
    plain = Saving.has_failed_unheard.fget

    def slowly(saving: Saving) -> bool:
        """Another thread has the time to save while this one looks through the list."""
        if not threads:
            threads.append(threading.Thread(target=lambda: background.save(held(3.0), tmp_path / "2.safetensors")))
            threads[0].start()
            threads[0].join(0.5)
        return bool(plain(saving))

    background.save(held(1.0), tmp_path / "0.safetensors").result()
    monkeypatch.setattr(Saving, "has_failed_unheard", property(slowly))
    background.save(held(2.0, gate), tmp_path / "1.safetensors")
    threads[0].join()
    gate.set()
    assert len(background.wait()) == 2
    background.close()


def test_saves_that_cannot_begin_take_no_room(tmp_path: Path) -> None:
    done = threading.Event()

    def save() -> None:
        with polyak.Saver() as background:
            for _ in range(3):
                with pytest.raises(AmbiguousRole):
                    background.save(held(1.0), tmp_path / "a.safetensors", weights="average")
            done.set()

    threading.Thread(target=save, daemon=True).start()
    assert done.wait(120)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_raised_where_its_result_is_asked_for_and_not_again(tmp_path: Path) -> None:
    with polyak.Saver() as background:
        saving = background.save(held(1.0), tmp_path / "missing" / "a.safetensors")
        with pytest.raises(FileError, match="its directory does not exist"):
            saving.result()
        background.save(held(2.0), tmp_path / "a.safetensors")
    assert polyak.open(tmp_path / "a.safetensors")["w"].tolist() == [2.0] * 4


def test_a_failure_is_raised_by_the_next_save(tmp_path: Path) -> None:
    background = polyak.Saver()
    failing = background.save(held(1.0), tmp_path / "missing" / "a.safetensors")
    while not failing.done:
        threading.Event().wait(0.01)
    with pytest.raises(FileError, match="its directory does not exist"):
        background.save(held(2.0), tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()
    background.save(held(2.0), tmp_path / "a.safetensors")
    background.close()
    assert (tmp_path / "a.safetensors").exists()


def test_a_failure_is_raised_at_the_end_of_the_block(tmp_path: Path) -> None:
    def block() -> None:
        with polyak.Saver() as background:
            background.save(held(1.0), tmp_path / "missing" / "a.safetensors")

    with pytest.raises(FileError, match="its directory does not exist"):
        block()


def test_of_several_failures_the_first_is_raised_and_names_the_others(tmp_path: Path) -> None:
    background, gate = polyak.Saver(), threading.Event()
    for name in "ab":
        background.save(failing(gate), tmp_path / f"{name}.safetensors")
    gate.set()
    with pytest.raises(FileError, match="the weights are gone") as caught:
        background.close()
    assert [str(tmp_path / "b.safetensors") in note for note in caught.value.__notes__] == [True]
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_the_next_save_waits_is_not_forgotten(tmp_path: Path) -> None:
    background, gate = polyak.Saver(), threading.Event()
    background.save(failing(gate), tmp_path / "a.safetensors")
    background.save(held(1.0), tmp_path / "b.safetensors")
    opener = threading.Timer(0.2, gate.set)  # the third save has begun to wait by then
    opener.start()
    background.save(held(1.0), tmp_path / "c.safetensors")
    with pytest.raises(FileError, match="the weights are gone"):
        background.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.safetensors", "c.safetensors"]


def test_the_exception_of_a_block_comes_first_and_names_the_failed_save(tmp_path: Path) -> None:
    def block() -> None:
        with polyak.Saver() as background:
            background.save(held(1.0), tmp_path / "missing" / "a.safetensors")
            raise ValueError("of the training")

    with pytest.raises(ValueError, match="of the training") as caught:
        block()
    assert "its directory does not exist" in caught.value.__notes__[0]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer that interrupts")
@pytest.mark.parametrize("verb", ["wait", "close"])
def test_a_wait_that_is_interrupted_forgets_no_failure(tmp_path: Path, verb: str) -> None:
    background, gate = polyak.Saver(), threading.Event()
    background.save(failing(gate), tmp_path / "a.safetensors")
    opener = threading.Timer(1.0, gate.set)
    opener.start()
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            getattr(background, verb)()
    finally:
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(FileError, match="the weights are gone"):
        background.close()
    assert background.wait() == ()


def test_a_relative_path_is_meant_from_where_the_program_was_at_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with polyak.Saver() as background:
        background.save(held(1.0, gate), tmp_path / "first.safetensors")
        saving = background.save(held(1.0), "a.safetensors")
        monkeypatch.chdir(tmp_path / "there")
        gate.set()
    assert saving.path == "a.safetensors"
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["a.safetensors"]
    assert list((tmp_path / "there").iterdir()) == []


PROGRAM = """
import sys, time
import numpy as np
import polyak
from polyak.snapshot import Item, Snapshot
from polyak.weights import Kind, Weight

def read():
    time.sleep(0.5)
    return np.full(4, 3.0, np.float32)

held = Snapshot([Item("raw", Weight("w", (4,), "float32", Kind.TRAINABLE), read)])
background = polyak.Saver()
for path in sys.argv[1:]:
    background.save(held, path)
"""
FAILING = PROGRAM.replace("return np.full(4, 3.0, np.float32)", 'raise polyak.errors.FileError("the weights are gone")')


def ended(*paths: Path, program: str = PROGRAM) -> str:
    given = [sys.executable, "-c", program, *map(str, paths)]
    done = subprocess.run(given, capture_output=True, text=True, check=True)
    return done.stderr


def test_the_end_of_the_program_waits_for_a_save(tmp_path: Path) -> None:
    assert ended(tmp_path / "a.safetensors") == ""
    assert polyak.open(tmp_path / "a.safetensors")["w"].tolist() == [3.0] * 4


def test_the_end_of_the_program_tells_of_a_save_that_failed(tmp_path: Path) -> None:
    assert "its directory does not exist" in ended(tmp_path / "missing" / "a.safetensors")


def test_the_end_of_the_program_tells_of_all_saves_that_failed(tmp_path: Path) -> None:
    told = ended(tmp_path / "a.safetensors", tmp_path / "b.safetensors", program=FAILING)
    expected = "; ".join(f"{tmp_path / name}.safetensors: the weights are gone" for name in "ab")
    assert f"FileError: 2 saves failed: {expected}" in told


FORKED = """
import os, sys, time, warnings
import numpy as np
import polyak
from polyak.errors import FileError
from polyak.snapshot import Item, Snapshot
from polyak.weights import Kind, Weight

def read():
    time.sleep(1)
    return np.ones(2, np.float32)

slow = Snapshot([Item("raw", Weight("w", (2,), "float32", Kind.TRAINABLE), read)])
warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of a fork beside threads
saver = polyak.Saver()
saving = saver.save(slow, sys.argv[1])
child = os.fork()
if child == 0:
    for verb in (saver.wait, lambda: saver.save(slow, sys.argv[1]), saving.result):
        try:
            verb()
        except FileError as error:
            print(str(error).splitlines()[-1], file=sys.stderr)
    sys.exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), saving.done, file=sys.stderr)
saver.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_a_forked_process_ends_and_leaves_the_saves_to_the_one_that_began_them(tmp_path: Path) -> None:
    told = ended(tmp_path / "w.safetensors", program=FORKED)
    assert told.splitlines() == ["hint: make a Saver in each process"] * 3 + ["3 False"]
    assert polyak.open(tmp_path / "w.safetensors")["w"].tolist() == [1.0, 1.0]


def test_another_process_is_told_and_the_end_of_it_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it would be in a fork, which has no thread that writes."""
    gate = threading.Event()
    background = polyak.Saver()
    saving = background.save(held(0.0, gate), tmp_path / "a.safetensors")
    failed = background.save(failing(gate), tmp_path / "b.safetensors")
    with monkeypatch.context() as forked:
        forked.setattr(saving_module.os, "getpid", lambda: -1)
        for call in (saving.result, background.wait, lambda: background.save(held(1.0), tmp_path / "c.safetensors")):
            with pytest.raises(FileError, match="expected to be used in process"):
                call()
        gate.set()
        failed._future.exception(20)
        background._raise_at_end()
    with pytest.raises(FileError, match="the weights are gone"):
        background._raise_at_end()


def test_the_end_of_the_program_tells_of_all_failures_in_one_message(tmp_path: Path) -> None:
    gate = threading.Event()
    background = polyak.Saver()
    savings = [background.save(failing(gate), tmp_path / f"{name}.safetensors") for name in "ab"]
    gate.set()
    for saving in savings:
        saving._future.exception(20)
    with pytest.raises(FileError, match=r"2 saves failed: .*a\.safetensors: the weights are gone; .*b\.safetensors"):
        background._raise_at_end()
    with pytest.raises(FileError):
        background.wait()


@pytest.mark.parametrize("verb", ["save", "wait"])
def test_the_list_of_saves_is_changed_by_one_thread_at_a_time(tmp_path: Path, verb: str) -> None:
    background, done = polyak.Saver(), list[object]()
    verbs = {"save": lambda: background.save(held(1.0), tmp_path / "a.safetensors"), "wait": background.wait}
    thread = threading.Thread(target=lambda: done.append(verbs[verb]()))
    with background._turn:
        thread.start()
        thread.join(0.3)
        assert done == []
    thread.join(20)
    assert len(done) == 1
    background.close()


@pytest.mark.parametrize("verb", ["save", "wait"])
def test_an_interrupt_waits_until_the_list_of_saves_is_free_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """One that came between the taking of the lock and its block would leave it taken for ever."""
    background, seen = polyak.Saver(), list[bool]()

    class Turn:
        def __enter__(self) -> None:
            signal.raise_signal(signal.SIGINT)
            seen.append(True)

        def __exit__(self, *error: object) -> None:
            seen.append(False)

    monkeypatch.setattr(background, "_turn", Turn())
    verbs = {"save": lambda: background.save(held(1.0), tmp_path / "a.safetensors"), "wait": background.wait}
    with pytest.raises(KeyboardInterrupt):
        verbs[verb]()
    assert seen == [True, False]


def test_a_saver_that_is_closed_says_so(tmp_path: Path) -> None:
    saver = polyak.Saver()
    saver.close()
    with pytest.raises(FileError, match=r"w.safetensors': the saver is closed"):
        saver.save(held(1), tmp_path / "w.safetensors")


def test_a_part_of_the_source_is_refused_at_the_call(tmp_path: Path) -> None:
    source = tmp_path / "a.safetensors.index.json"
    polyak.save(Snapshot.from_arrays({"w": np.ones(4, np.float32)}), source)
    shard = next(tmp_path.glob("*/*.safetensors"))
    held = shard.read_bytes()
    with polyak.Saver() as saver, pytest.raises(FileError, match=r"is a part of .*, which is one of the sources"):
        saver.save(source, shard)
    assert shard.read_bytes() == held
