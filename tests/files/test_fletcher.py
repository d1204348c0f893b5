"""The checksum of a chunk as polyak computes it, against HDF5's own filter."""

from __future__ import annotations

import io
import random

import h5py
import numpy as np
import pytest

from polyak.files.fletcher import MOST, ROW, Fletcher32

LENGTHS = [1, 2, 3, 4, 7, 8, 9, ROW - 1, ROW, ROW + 1, 3 * ROW + 6, 100_003, MOST - ROW, MOST - 1, MOST]
FILLS = {
    "random": lambda n: np.frombuffer(random.Random(n).randbytes(n), np.uint8),
    "nothing": lambda n: np.zeros(n, np.uint8),
    "ones, the largest sums": lambda n: np.full(n, 255, np.uint8),
    "an order": lambda n: np.arange(n).astype(np.uint8),
}


def of_hdf5(data: np.ndarray) -> bytes:
    """The chunk as HDF5 writes it."""
    with h5py.File(io.BytesIO(), "w") as file:
        made = file.create_dataset("a", data=data, chunks=data.shape, fletcher32=True)
        return bytes(made.id.read_direct_chunk((0,))[1])


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("length", LENGTHS)
def test_a_sealed_chunk_is_that_of_hdf5(length: int, fill: str) -> None:
    data = FILLS[fill](length)
    assert Fletcher32(length).sealed(data).tobytes() == of_hdf5(data)


def test_lengths_and_values_by_chance() -> None:
    dice = np.random.default_rng(0)
    for _ in range(200):
        data = dice.integers(0, dice.integers(2, 257), dice.integers(1, 5000)).astype(np.uint8)
        assert Fletcher32(len(data)).sealed(data).tobytes() == of_hdf5(data)


def test_a_shorter_chunk_after_a_longer_one_has_zeros_behind_it() -> None:
    fletcher, long = Fletcher32(5000), FILLS["random"](5000)
    fletcher.sealed(long)
    short = np.concatenate([long[:1001], np.zeros(3999, np.uint8)])
    assert fletcher.sealed(long[:1001]).tobytes() == of_hdf5(short)
