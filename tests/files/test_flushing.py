"""Large files reach the disk while they are written: what it refuses is told, and the old file stands."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import polyak
from polyak.errors import FileError
from polyak.files import flushing
from polyak.files.flushing import LEAST, flushed_meanwhile

LARGE = {"w": np.arange(LEAST // 4 + 1, dtype=np.float32)}


def flushers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "polyak-flush"]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of the file at each time it was given to the disk."""
    sizes, real = [], flushing._given_to_disk

    def noted(handle: int) -> None:
        real(handle)
        sizes.append(os.fstat(handle).st_size)

    monkeypatch.setattr(flushing, "_given_to_disk", noted)
    return sizes


def test_a_file_is_given_to_the_disk_piece_by_piece(tmp_path: Path, given: list[int]) -> None:
    with (tmp_path / "a").open("wb") as file, flushed_meanwhile(file.fileno(), LEAST):
        assert len(flushers()) == 1
        for _ in range(3):
            before = len(given)
            file.write(bytes(flushing._STEP))
            file.flush()
            deadline = time.monotonic() + 60
            while len(given) == before and time.monotonic() < deadline:
                time.sleep(0.001)
    assert given == [flushing._STEP * n for n in (1, 2, 3)]
    assert not flushers()


def test_a_small_file_needs_no_thread(tmp_path: Path, given: list[int]) -> None:
    with (tmp_path / "a").open("wb") as file, flushed_meanwhile(file.fileno(), LEAST - 1):
        assert not flushers()
        file.write(bytes(3 * flushing._STEP))
        time.sleep(20 * flushing._PAUSE)
    assert given == []


def closed_meanwhile(path: Path, then: Callable[[], object]) -> None:
    """A file that the thread cannot look at any more."""
    handle = os.open(path, os.O_CREAT | os.O_WRONLY)
    with flushed_meanwhile(handle, LEAST):
        os.close(handle)
        time.sleep(20 * flushing._PAUSE)
        then()


def test_what_the_system_refuses_is_raised_at_the_end(tmp_path: Path) -> None:
    reached: list[bool] = []
    with pytest.raises(OSError, match="Bad file descriptor"):
        closed_meanwhile(tmp_path / "a", lambda: reached.append(True))
    assert reached
    assert not flushers()


def test_an_exception_of_the_writer_is_the_one_that_is_raised(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        closed_meanwhile(tmp_path / "a", lambda: 1 // 0)
    assert not flushers()


@pytest.mark.parametrize("name", ["m.safetensors", "m.npz", "m.pt"])
def test_a_disk_that_refuses_once_leaves_the_old_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells such a failure once: at the end it would say that all is well."""
    polyak.save(polyak.Snapshot.from_arrays({"w": np.ones(3, np.float32)}), tmp_path / name)
    refusals = []

    def refuse(handle: int) -> None:
        refusals.append(handle)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(flushing, "_given_to_disk", refuse)
    monkeypatch.setattr(flushing, "_PAUSE", 0.0001)
    monkeypatch.setattr(flushing, "_STEP", 1)
    with pytest.raises(FileError, match=rf"{name}'.*Input/output error"):
        polyak.save(polyak.Snapshot.from_arrays(LARGE), tmp_path / name)
    assert len(refusals) == 1
    assert polyak.open(tmp_path / name)["w"].tolist() == [1.0, 1.0, 1.0]
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["m.safetensors", "m.npz", "m.pt"])
def test_a_large_file_is_whole(name: str, tmp_path: Path, given: list[int]) -> None:
    polyak.save(polyak.Snapshot.from_arrays(LARGE), tmp_path / name)
    assert polyak.open(tmp_path / name)["w"].tobytes() == LARGE["w"].tobytes()
    assert not flushers()
