"""Heaps of texts in HDF5 files, damaged in each way that would stop HDF5 or send it round for ever."""

from __future__ import annotations

import io
import os
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from polyak.errors import DamagedFile
from polyak.files import hdf5_stream
from polyak.files.hdf5_stream import Watched


def heap(*objects: tuple[int, int], size: int = 96) -> bytes:
    """A heap of objects with an index and a claimed size each."""
    body = b"".join(struct.pack("<HHIQ", index, 1, 0, length) + bytes(-(-length // 8) * 8) for index, length in objects)
    return (b"GCOL\x01\0\0\0" + struct.pack("<Q", size) + body).ljust(size, b"\0")


def read(content: bytes, at: int = 0, count: int = 4096) -> bytes:
    held = Watched(io.BytesIO(content), "file 'x'")
    held.seek(at)
    return held.read(count)


def test_it_is_what_python_calls_a_file_to_read() -> None:
    content = bytes(range(256)) * 40
    held = io.BufferedReader(Watched(io.BytesIO(content), "file 'x'"))
    assert held.seek(10) == 10
    assert held.read() == content[10:]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no preadv")
def test_bytes_that_the_system_gives_in_pieces_all_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux gives two gibibytes at a time, and HDF5 takes an array of more for read when it has those."""
    path, values, whole = tmp_path / "x.h5", np.arange(10_000.0), os.preadv

    def a_piece(number: int, views: Sequence[memoryview], start: int) -> int:
        return whole(number, [views[0][:1000]], start)

    with h5py.File(path, "w") as file:
        file["w"] = values
    monkeypatch.setattr(os, "preadv", a_piece)
    with path.open("rb") as raw, h5py.File(Watched(raw, "file 'x'"), "r") as file:
        assert file["w"][()].tobytes() == values.tobytes()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no preadv")
def test_no_more_is_asked_for_at_once_than_any_system_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(bytes(range(250)))
    monkeypatch.setattr(hdf5_stream, "_PIECE", 99)
    asked: list[int] = []

    def noted(number: int, views: Sequence[memoryview], start: int) -> int:
        asked.append(len(views[0]))
        return whole(number, views, start)

    whole = os.preadv
    monkeypatch.setattr(os, "preadv", noted)
    with (tmp_path / "x").open("rb") as raw:
        held = Watched(raw, "file 'x'")
        with held.values():
            assert held.read(300) == bytes(range(250))
    assert asked == [99, 99, 99, 50]  # 250 bytes are there, and the last call is told that no more are


def free(size: int) -> tuple[int, int]:
    return 0, size


def test_a_good_heap_passes() -> None:
    good = b"GCOL\x01\0\0\0" + struct.pack("<Q", 64) + struct.pack("<HHIQ", 1, 1, 0, 5) + b"hello\0\0\0"
    good += struct.pack("<HHIQ", 0, 0, 0, 24) + bytes(8)
    assert read(good) == good


@pytest.mark.parametrize(
    "content",
    [
        heap(free(0)),  # no step forward
        heap((1, 5), free(0)),
        heap((1, 10_000))[:96],  # beyond the heap
        heap(free(10_000))[:96],
        heap(free(80), size=96)[:60],  # beyond the file
        b"GCOL\x01\0\0\0" + struct.pack("<Q", 2**40) + bytes(80),
        b"GCOL\x01\0\0\0" + struct.pack("<Q", 2**40) + struct.pack("<HHIQ", 0, 0, 0, 80) + bytes(64),
    ],
)
def test_a_damaged_heap_is_refused(content: bytes) -> None:
    with pytest.raises(DamagedFile, match="the heap of texts at byte 0 is not readable"):
        read(content)


def test_a_heap_whose_mark_is_read_in_two_pieces_is_found() -> None:
    content = bytes(100) + heap(free(0))
    held = Watched(io.BytesIO(content), "file 'x'")
    held.seek(0)
    held.read(102)
    with pytest.raises(DamagedFile, match="at byte 100"):
        held.read(50)


def test_a_text_that_is_too_long_for_a_list_is_refused_whether_it_is_read_before_or_after() -> None:
    held = Watched(io.BytesIO(heap((1, 30), free(32))), "file 'x'")
    held.refuse_longer(29)
    with pytest.raises(DamagedFile, match="texts of up to 30 bytes in a list of many"):
        held.read(96)
    held = Watched(io.BytesIO(heap((1, 30), free(32))), "file 'x'")
    held.refuse_longer(30)
    held.read(96)
    with pytest.raises(DamagedFile, match="texts of up to 30 bytes in a list of many"):
        held.refuse_longer(29)


def test_values_may_hold_any_bytes() -> None:
    held = Watched(io.BytesIO(heap(free(0))), "file 'x'")
    with held.values():
        held.seek(0)
        assert held.read(96) == heap(free(0))


def test_texts_of_hdf5_pass(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        for i in range(300):
            file.attrs[f"a{i}"] = f"text {i} " * i
    with path.open("rb") as raw, h5py.File(Watched(raw, "file 'x'"), "r") as file:
        assert file.attrs["a299"] == "text 299 " * 299
