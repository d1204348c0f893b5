"""Files read at given places: right bytes from any thread, errors instead of signals, nothing left open."""

from __future__ import annotations

import gc
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import polyak
from polyak.errors import DamagedFile, FileError
from polyak.files import safetensors
from polyak.files.positioned import PositionedFile, flat_bytes
from polyak.snapshot import Snapshot


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "numbers").write_bytes(np.arange(100_000, dtype="<u4").tobytes())
    return tmp_path / "numbers"


@pytest.mark.parametrize(("start", "shape"), [(0, ()), (8, (3,)), (4, (2, 5)), (400_000, (0, 7)), (399_996, (1,))])
def test_an_array_of_any_place_and_shape(path: Path, start: int, shape: tuple[int, ...]) -> None:
    found = PositionedFile(path).array(start, shape, "uint32")
    assert found.shape == shape
    assert found.flags.owndata
    assert found.flags.writeable
    assert found.reshape(-1).tolist() == list(range(start // 4, start // 4 + found.size))


def test_many_threads_read_from_one_file(path: Path) -> None:
    file = PositionedFile(path)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: file.array(4 * i, (50,), "uint32")[0], range(0, 99_000, 7)))
    assert found == list(range(0, 99_000, 7))


def test_a_file_that_became_shorter_is_an_error_and_no_signal(path: Path) -> None:
    """A memory map would end the process here."""
    file = PositionedFile(path)
    with path.open("r+b") as other:
        other.truncate(1000)
    with pytest.raises(DamagedFile, match=r"numbers'.*expected 400 bytes at byte 800, received 200"):
        file.array(800, (100,), "uint32")


def test_a_safetensors_file_that_is_overwritten_while_it_is_open_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.write(Snapshot.from_arrays({"w": np.ones(100_000, np.float32)}), path)
    held = polyak.open(path)
    path.write_bytes(b"")
    with pytest.raises(DamagedFile, match="it became shorter after it was opened"):
        _ = held["w"]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc lists what is open")
def test_a_file_is_closed_when_nothing_refers_to_it(path: Path) -> None:
    def opened() -> int:
        gc.collect()
        return sum(str(path) in str(p.readlink()) for p in Path("/proc/self/fd").iterdir() if p.is_symlink())

    file = PositionedFile(path)
    array = file.array(0, (4,), "uint32")
    assert opened() == 1
    del file
    assert opened() == 0
    assert array.tolist() == [0, 1, 2, 3]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"nothing'.*cannot be read"):
        PositionedFile(tmp_path / "nothing")


def test_flat_bytes_are_the_arrays_own() -> None:
    array = np.zeros((2, 3), np.float32)
    flat_bytes(array)[3] = 0x3F
    assert array[0, 0] == 0.5
