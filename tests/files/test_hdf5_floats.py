"""Floating-point types of HDF5 that NumPy has no name for, as HDF5 itself writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import polyak
from polyak.errors import DamagedFile, UnknownFormat

FIELDS: dict[str, tuple[int, tuple[int, int, int, int, int], int]] = {
    "bfloat16": (2, (15, 7, 8, 0, 7), 127),
    "float8_e5m2": (1, (7, 2, 5, 0, 2), 15),
    "float8_e4m3fn": (1, (7, 3, 4, 0, 3), 7),
}


def written(path: Path, name: str, start: Any = h5py.h5t.IEEE_F32LE, packed: bool = False) -> np.ndarray:
    """Every number that the type has."""
    size, fields, bias = FIELDS[name]
    kind = start.copy()
    kind.set_fields(*fields)
    kind.set_size(size)
    kind.set_ebias(bias)
    bits = np.arange(1 << 8 * size, dtype=f"u{size}").reshape(2, -1)
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    if packed:
        plan.set_chunk((1, 64))
        plan.set_deflate(3)
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/dense/vars")
        space = h5py.h5s.create_simple(bits.shape)
        made = h5py.h5d.create(group.id, b"0", kind, space, plan)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, bits, mtype=kind)
        h5py.h5d.create(group.id, b"1", kind, h5py.h5s.create_simple((0, 3)))
        h5py.h5d.create(group.id, b"2", kind, h5py.h5s.create(h5py.h5s.SCALAR)).write(
            h5py.h5s.ALL, h5py.h5s.ALL, np.array(3, bits.dtype), mtype=kind
        )
    return bits


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["bfloat16", "float8_e5m2"])
def test_every_number_arrives_bit_for_bit(tmp_path: Path, name: str, packed: bool) -> None:
    bits = written(tmp_path / "a.h5", name, packed=packed)
    held = polyak.open(tmp_path / "a.h5")
    first, none, one = held.values()
    assert [w.dtype for w in held.weights] == [name] * 3
    assert np.array_equal(first.view(bits.dtype), bits)
    assert (none.shape, one.shape, one.view(bits.dtype).item()) == ((0, 3), (), 3)
    with h5py.File(tmp_path / "a.h5") as file:  # HDF5's own reader
        theirs = file["layers/dense/vars/0"][()].astype(np.float32)
    assert np.array_equal(first.astype(np.float32), theirs, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "start", "said"),
    [
        (
            "float8_e4m3fn",
            h5py.h5t.IEEE_F32LE,
            r"numbers of 1 bytes with 4 bits of exponent \(bias 7\) and 3",
        ),
        ("bfloat16", h5py.h5t.IEEE_F32BE, "big-endian numbers of 2 bytes with 8 bits of exponent"),
    ],
)
def test_a_type_that_is_not_known_is_said_to_be_one(tmp_path: Path, name: str, start: Any, said: str) -> None:
    written(tmp_path / "a.h5", name, start)
    with pytest.raises(UnknownFormat, match=f"weight 'layers/dense/vars/0': .* {said}") as refused:
        polyak.open(tmp_path / "a.h5")
    assert refused.value.hint == "write it again as float32"


def test_one_that_was_never_filled_is_refused_as_others_are(tmp_path: Path) -> None:
    size, fields, bias = FIELDS["bfloat16"]
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(*fields)
    kind.set_size(size)
    kind.set_ebias(bias)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        h5py.h5d.create(file.create_group("vars").id, b"0", kind, h5py.h5s.create_simple((1000,)))
    with pytest.raises(DamagedFile, match="expected 2,000 bytes by its shape, received 0 bytes"):
        polyak.open(tmp_path / "a.h5")
