"""How polyak divides arrays for HDF5, and where it says that their bytes lie: HDF5 itself is the oracle."""

from __future__ import annotations

import math
import random
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import polyak
from polyak.errors import DamagedFile, FileError
from polyak.files import keras_h5, keras_write
from polyak.files.hdf5_chunks import chunk_of, runs
from polyak.files.hdf5_stored import BLOCK, Packer, spans, stored_size
from polyak.manifest import digest
from polyak.snapshot import Item, Snapshot
from polyak.weights import Evidence, Kind, Weight

VALUES = np.arange(120, dtype=np.float32).reshape(6, 20)


def test_chunks_are_runs_of_576_kib_at_most_and_fill_little() -> None:
    dice = random.Random(0)
    for _ in range(3000):
        shape = tuple(int(10 ** dice.uniform(0, 3.5)) for _ in range(dice.randint(1, 4)))
        wide = dice.choice([1, 2, 4, 8, 16])
        chunk = chunk_of(shape, wide)
        assert math.prod(chunk) * wide <= 9 * BLOCK
        stored = math.prod(-(-n // c) * c for n, c in zip(shape, chunk, strict=True))
        assert stored <= math.prod(shape) * 65 / 64
        split = next((i for i, n in enumerate(chunk) if n > 1), len(chunk) - 1)
        assert chunk[split + 1 :] == shape[split + 1 :]
        if math.prod(shape) * wide <= 9 * BLOCK:
            assert chunk == shape


LARGE = {
    "even": np.random.default_rng(0).standard_normal((8, 131_072), np.float32),
    "long": np.random.default_rng(1).standard_normal(400_003),
    "odd": np.random.default_rng(2).standard_normal((3, 2, 300_001), np.float32),
    "small": np.random.default_rng(3).standard_normal((7, 5), np.float32),
    "none": np.zeros((0, 5), np.float32),
    "one": np.array(3.5, np.float32),
    "flags": np.arange(1_200_000) % 3 == 0,
}


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "a.weights.h5"
    keras_write.write(Snapshot([_item(i, name) for i, name in enumerate(LARGE)], {"average": None}), path)
    return path


def _item(number: int, name: str) -> Item:
    value = LARGE[name]
    place = Evidence(name, name, name, "Dense", "kernel", number, value.dtype.name, f"layers/{name}/vars/0")
    return Item("average", Weight(name, value.shape, value.dtype.name, Kind.TRAINABLE, place), lambda: value)


def test_large_arrays_come_back_past_hdf5_and_through_it(large: Path) -> None:
    held, again = polyak.open(large), keras_h5.read(large)
    with h5py.File(large) as h5:
        for name, value in LARGE.items():
            dataset = h5[f"layers/{name}/vars/0"]
            assert dataset[()].tobytes() == value.tobytes()
            assert held[name].tobytes() == value.tobytes()
            tensor = again.tensors[f"layers/{name}/vars/0"]
            assert tensor.measure is not None
            assert tensor.measure() == digest(value)
            lie = runs(dataset, large.stat().st_size)
            assert (lie is not None) == bool(value.ndim and value.size), name
            assert sum(count for _, count in lie or []) == (value.nbytes if lie else 0)


def test_what_fills_the_last_chunk_is_zero(large: Path) -> None:
    with h5py.File(large) as h5:
        dataset = h5["layers/long/vars/0"]
        chunk = dataset.chunks[0]
        _, raw = dataset.id.read_direct_chunk((400_003 // chunk * chunk,))
    whole = zlib.decompress(raw)
    used = 400_003 % chunk * 8
    assert 0 < used < len(whole) == chunk * 8
    assert not any(whole[used:])


@pytest.mark.parametrize("count", [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 5])
def test_zlib_unpacks_what_is_stored_and_it_lies_where_it_is_said_to_lie(count: int) -> None:
    dice, packer = random.Random(count), Packer(count)
    for given in (count, max(1, count // 2), count):
        data = dice.randbytes(given)
        raw = bytes(packer.packed(memoryview(data)))
        assert len(raw) == stored_size(count)
        assert zlib.decompress(raw) == data.ljust(count, b"\0")
        assert b"".join(raw[at : at + length] for at, length in spans(given)) == data


def test_files_of_polyak_with_fletcher_32_are_read_past_hdf5_too(large: Path) -> None:
    with h5py.File(large, "r+") as h5:
        for name in ("even", "long", "odd"):
            del h5[f"layers/{name}/vars/0"]
            chunk = (*(1,) * (LARGE[name].ndim - 1), 30_000)
            h5.create_dataset(f"layers/{name}/vars/0", data=LARGE[name], fletcher32=True, chunks=chunk)
            lie = runs(h5[f"layers/{name}/vars/0"], large.stat().st_size + LARGE[name].nbytes * 2)
            assert sum(count for _, count in lie or []) == LARGE[name].nbytes
    held = polyak.open(large)
    for name in ("even", "long", "odd"):
        held.verify(name)
        assert held[name].tobytes() == LARGE[name].tobytes()


def test_a_flipped_bit_of_first_last_and_other_chunks_is_noticed_by_polyak_and_by_hdf5(large: Path) -> None:
    dice, content = random.Random(0), large.read_bytes()
    with h5py.File(large) as h5:
        lie = {name: runs(h5[f"layers/{name}/vars/0"], len(content)) or [] for name in LARGE}
    for name, start, count in [(n, *run) for n, found in lie.items() for run in (*found[::9], *found[-1:])]:
        at = start + dice.randrange(count)
        with large.open("r+b") as file:
            file.seek(at)
            file.write(bytes([content[at] ^ 1 << dice.randrange(8)]))
        for ask in (Snapshot.verify, Snapshot.__getitem__):
            with pytest.raises(DamagedFile, match=f"weight '{name}': expected bytes with digest"):
                ask(polyak.open(large), name)
        with h5py.File(large) as h5, pytest.raises(OSError, match="filter returned failure"):
            h5[f"layers/{name}/vars/0"][()]
        with large.open("r+b") as file:
            file.seek(at)
            file.write(content[at : at + 1])
    polyak.open(large).verify("odd")


def test_a_cut_file_is_told(large: Path) -> None:
    held = polyak.open(large)
    with large.open("r+b") as file:
        file.truncate(100_000)
    with pytest.raises(FileError, match="written again after it was opened"):
        held.verify("long")


CHECKED = {"fletcher32": True}


@pytest.mark.parametrize(
    ("value", "options"),
    [
        (VALUES, {}),
        (VALUES, {**CHECKED, "chunks": (6, 10)}),
        (VALUES, {**CHECKED, "chunks": (2, 19)}),
        (VALUES, {**CHECKED, "chunks": (6, 20), "compression": "gzip"}),
        (VALUES, {"chunks": (6, 20), "compression": "gzip"}),
        (VALUES, {"chunks": (6, 10), "compression": "gzip", "compression_opts": 0}),
        (VALUES, {**CHECKED, "chunks": (6, 20), "shuffle": True}),
        (VALUES, {"chunks": (6, 20)}),
        (VALUES.astype(">f4"), {**CHECKED, "chunks": (6, 20)}),
    ],
)
def test_hdf5_reads_what_does_not_lie_as_in_memory(value: Any, options: dict[str, Any], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        assert runs(file.create_dataset("a", data=value, **options), 1 << 20) is None


def test_hdf5_reads_chunks_that_have_no_checksum(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        held = file.create_dataset("a", VALUES.shape, "f4", chunks=(6, 20), **CHECKED)
        held.id.write_direct_chunk((0, 0), VALUES.tobytes() + bytes(4), filter_mask=1)
    with h5py.File(tmp_path / "a.h5") as file:
        assert runs(file["a"], 1 << 20) is None


def test_hdf5_reads_chunks_that_are_missing_or_beyond_the_end(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        held = file.create_dataset("a", data=VALUES, chunks=(4, 20), **CHECKED)
        lie = runs(held, 1 << 20)
        assert lie is not None
        assert [count for _, count in lie] == [320, 160]
        assert runs(held, lie[-1][0] + 160) is None
        assert runs(file.create_dataset("b", VALUES.shape, "f4", chunks=(4, 20), **CHECKED), 1 << 20) is None
