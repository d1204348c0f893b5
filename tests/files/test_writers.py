"""What all writers refuse: arrays that are not what their descriptions say when it comes to writing them."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyak
from polyak.errors import FileError, PolyakError, UnexpectedWeight, UnknownFormat
from polyak.file_verbs import writer
from polyak.files.safetensors_sharded import write
from polyak.snapshot import Item, Snapshot
from polyak.weights import Evidence, Kind, Weight

NAMES = ["m.safetensors", "m.safetensors.index.json", "m.npz", "m.pt", "m.orbax"]


def described(value: Any) -> Snapshot:
    """A weight of four float32 numbers, as its description has it."""
    return Snapshot([Item("raw", Weight("w", (4,), "float32", Kind.TRAINABLE), lambda: value)])


@pytest.mark.parametrize("value", [np.zeros(3, np.float32), np.zeros(4, np.float64)], ids=["shape", "dtype"])
@pytest.mark.parametrize("name", NAMES)
def test_an_array_that_is_not_as_it_was_described_is_not_written(name: str, value: Any, tmp_path: Path) -> None:
    polyak.save(described(np.ones(4, np.float32)), tmp_path / name)
    with pytest.raises(PolyakError, match=r"weight 'w': expected .*float32.*, received .*\nhint: it changed while it"):
        polyak.save(described(value), tmp_path / name)
    assert polyak.open(tmp_path / name)["w"].tolist() == [1.0] * 4


@pytest.mark.parametrize("name", [*NAMES, "m.weights.h5"])
def test_a_name_with_half_a_character_is_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    half = Snapshot.from_arrays({"a\udc80": np.ones(2, np.float32)})
    with pytest.raises(UnexpectedWeight, match=r"weight 'a\\udc80'"):
        polyak.save(half, tmp_path / name)
    with pytest.raises(UnexpectedWeight, match=r"weight 'a\\udc80'"):
        writer(name).refuse(half, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [*NAMES, "m.weights.h5"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(name: str, tmp_path: Path) -> None:
    item = described(np.ones(4, np.float32)).items_by_path["w"]
    evidence = Evidence("w", "w", "w", "Dense", "kernel", 0, "float32", "layers/w/vars/0")
    weight = replace(item.weight, evidence=evidence)
    held = Snapshot([replace(item, weight=weight, read=lambda: pytest.fail("was read"))])
    writer(name).refuse(held, tmp_path / name)
    place = tmp_path / "other" / name
    place.parent.mkdir()
    place.write_bytes(b"") if name == "m.orbax" else place.mkdir()
    with pytest.raises(FileError, match=re.escape(name)):
        writer(name).refuse(held, place)
    assert list(tmp_path.iterdir()) == [place.parent]


@pytest.mark.parametrize(
    ("name", "weight", "message"),
    [
        ("m.npz", "a\0b", "expected a name that a zip can hold"),
        ("m.pt", "", "expected a name of 1 to"),
        ("m.safetensors.index.json", "__metadata__", "safetensors keeps this name for itself"),
        ("m.safetensors", "__metadata__", "safetensors keeps this name for itself"),
    ],
)
def test_a_name_that_a_format_does_not_hold_is_refused_before_anything_is_read(
    name: str, weight: str, message: str, tmp_path: Path
) -> None:
    item = Item("raw", Weight(weight, (4,), "float32", Kind.TRAINABLE), lambda: pytest.fail("was read"))
    with pytest.raises(PolyakError, match=message):
        writer(name).refuse(Snapshot([item]), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_shards_are_refused_under_another_name_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormat, match="expected a name that ends in"):
        writer("m.safetensors.index.json").refuse(described(np.ones(4, np.float32)), tmp_path / "m.json")
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_no_file_can_have_is_an_error_of_polyak_s(tmp_path: Path) -> None:
    for path in (tmp_path / "a\0b", tmp_path / ("x" * 300)):
        with pytest.raises(FileError):
            polyak.open(path)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has no such users")
def test_a_directory_that_may_not_be_entered_is_an_error_of_polyak_s(tmp_path: Path) -> None:
    polyak.save(Snapshot.from_arrays({"w": np.ones(2)}), tmp_path / "m.safetensors")
    tmp_path.chmod(0)
    was_root = os.geteuid() == 0
    try:
        if was_root:
            os.seteuid(65534)
        with pytest.raises(FileError, match="Permission denied"):
            polyak.open(tmp_path / "m.safetensors")
    finally:
        if was_root:
            os.seteuid(0)
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("name", NAMES)
def test_more_weights_than_would_be_read_again_are_refused_before_anything_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyak.file_verbs.MOST_TENSORS", 3)
    item = described(np.ones(4, np.float32)).items_by_path["w"]
    weights = [replace(item.weight, path=path) for path in "abcd"]
    held = Snapshot([replace(item, weight=weight, read=lambda: pytest.fail("was read")) for weight in weights])
    for verb in (writer(name).refuse, polyak.save):
        args = (held, tmp_path / name)
        with pytest.raises(FileError, match="expected at most 3 weights in all its roles, received 4\nhint: write a "):
            verb(*args)
    assert list(tmp_path.iterdir()) == []


def test_an_index_that_no_reader_takes_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyak.files.safetensors.MOST_HEADER", 700)
    held = Snapshot.from_arrays({f"w{i}": np.ones(4, np.float32) for i in range(2)})
    said = r"expected weights that 700 bytes can describe, received 2, whose names and shapes take \d+\nhint: write a"
    with pytest.raises(FileError, match=said):
        write(held, tmp_path / "m.safetensors.index.json", shard_bytes=16)
    assert list(tmp_path.iterdir()) == []
