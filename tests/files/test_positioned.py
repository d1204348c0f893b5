"""Files read at given places: right bytes from any thread, errors instead of signals, nothing left open."""

from __future__ import annotations

import gc
import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from safetensors.numpy import save

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


_DICE = random.Random(0)
RUNS = {
    "one": [(7, 1000)],
    "none": [],
    "empty ones": [(3, 0), (9, 0), (5, 2)],
    "near each other": [(5 + 105 * i, 100) for i in range(300)],
    "long and near": [(10, 600_000), (600_020, 900_000), (1_500_100, 7)],
    "further apart than is read along": [(i * 70_000, 60_000) for i in range(20)],
    "backwards": [(1_500_000 - 3000 * i, 2990) for i in range(400)],
    "over each other": [(i * 10, 50) for i in range(100)],
    "any": [(_DICE.randrange(1_400_000), _DICE.choice([0, 1, 40, 9000, 590_000])) for _ in range(60)],
}


@pytest.mark.parametrize("runs", RUNS.values(), ids=RUNS)
def test_runs_come_together_in_their_order(tmp_path: Path, runs: list[tuple[int, int]]) -> None:
    content = random.Random(1).randbytes(2_000_000)
    (tmp_path / "a").write_bytes(content)
    file, expected = PositionedFile(tmp_path / "a"), b"".join(content[at : at + count] for at, count in runs)
    assert file.gathered(runs, (len(expected),), "uint8").tobytes() == expected
    assert file.digest(runs) == xxhash.xxh3_128_hexdigest(expected)


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


# Written again


def _safetensors(path: Path, arrays: dict[str, np.ndarray]) -> None:
    path.write_bytes(save(arrays))


def _zipped(path: Path, arrays: dict[str, np.ndarray]) -> None:
    torch = pytest.importorskip("torch")
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)


def _legacy(path: Path, arrays: dict[str, np.ndarray]) -> None:
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def _flax(path: Path, arrays: dict[str, np.ndarray]) -> None:
    path.write_bytes(pytest.importorskip("flax.serialization").to_bytes(arrays))


WRITERS = [("a.safetensors", _safetensors), ("a.pt", _zipped), ("old.pt", _legacy), ("a.msgpack", _flax)]


@pytest.mark.parametrize(("name", "write"), WRITERS, ids=[name for name, _ in WRITERS])
def test_a_file_written_again_in_its_place_is_refused(tmp_path: Path, name: str, write: Any) -> None:
    """Its head was read before; what lies at the same places now are parts of other arrays."""
    path = tmp_path / name
    write(path, {"a": np.ones(4, np.float32), "b": np.ones(4, np.float32)})
    held = polyak.open(path)
    assert held["a"].tolist() == [1] * 4
    write(path, {"a": np.full((2, 4), 5, np.float32), "b": np.full(4, 7, np.float32)})
    later = path.stat().st_mtime_ns + 10**9  # within one tick of the clock no time tells the two apart
    os.utime(path, ns=(later, later))
    for weight in "ab":
        with pytest.raises(DamagedFile, match="was written again after it was opened"):
            _ = held[weight]


def test_a_file_that_another_one_replaced_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    _safetensors(path, {"a": np.ones(4, np.float32)})
    held = polyak.open(path)
    _safetensors(tmp_path / "b", {"a": np.full(4, 7, np.float32)})
    (tmp_path / "b").replace(path)
    path.chmod(0o600)
    assert held["a"].tolist() == [1] * 4


def test_a_part_and_a_stream_have_places_of_their_own(path: Path) -> None:
    file = PositionedFile(path)
    part = file.part(4000, 400)
    assert part.array(4, (1,), "uint32").tolist() == [1001]
    assert part.piece(396, 10**6) == file.piece(4396, 4400)
    one, other = part.stream(), part.stream(8)
    assert one.read(4) == other.read(4) == file.piece(4000, 4004)
    assert other.read() == file.piece(4004, 4008)
    assert one.seek(-4, os.SEEK_END) == 396
    assert one.read() == file.piece(4396, 4400)
    assert one.seek(8) == one.tell() == 8
    del file
    gc.collect()
    assert part.array(0, (1,), "uint32").tolist() == [1000]
