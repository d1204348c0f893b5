"""New names: what a glob, an expression and a function make of a path, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import polyak
from polyak.errors import MissingWeight, PolyakError, WeightError
from polyak.manifest import Manifest
from polyak.renaming import apply_rename, refuse_unused_renames
from polyak.snapshot import Snapshot


@pytest.mark.parametrize(
    ("path", "rename", "expected"),
    [
        ("a/x", {"a/*": "b/*"}, "b/x"),
        ("a/x", {re.compile("^a"): "b"}, "b/x"),
        ("a.b.c", {re.compile("[.]"): "/"}, "a/b/c"),
        ("a.b.c", {re.compile("^a"): "x", re.compile("^x[.]"): ""}, "b.c"),
        ("l1/w", {re.compile(r"l(\d)"): r"layers/\1"}, "layers/1/w"),
        ("a", {re.compile("a"): "b", "a": "c"}, "c"),
        ("a", {"a": "b", "b": "a"}, "b"),
        ("a", {re.compile("z"): "b"}, "a"),
    ],
)
def test_a_path_under_its_new_name(path: str, rename: Any, expected: str) -> None:
    assert apply_rename(path, rename) == expected


@pytest.mark.parametrize(
    ("rename", "received"),
    [
        ({"w": 3}, "3"),
        ({3: "w"}, "3"),
        ({"w": None}, "None"),
        ({re.compile(b"w"): "v"}, "b'w'"),
        ("w=v", "str"),
        ([("w", "v")], "list"),
    ],
)
def test_what_renames_nothing_is_refused_by_all_verbs(rename: Any, received: str, tmp_path: Path) -> None:
    held = Snapshot.from_arrays({"w": np.float32([1])})
    keras = Snapshot.from_arrays({"a/kernel": np.zeros((2, 3), np.float32)})
    plain = Snapshot.from_arrays({"b.weight": np.zeros((3, 2), np.float32)})
    torch = Snapshot(plain.items_by_path.values(), written=Manifest("a tool", {}, (), layout="torch"))
    for verb in (
        lambda: polyak.convert(held, tmp_path / "x.npz", rename=rename),
        lambda: polyak.plan(held, held, rename=rename),
        lambda: polyak.plan(keras, torch, rename=rename, layout="keras", layers={"a": "Dense"}),
    ):
        with pytest.raises(WeightError, match=f"expected .*, received {received}\n"):
            verb()


def test_an_entry_that_matches_nothing_is_refused() -> None:
    refuse_unused_renames(["a/x"], {re.compile("^a/"): "b/", re.compile("^b/"): ""}, "x")
    with pytest.raises(MissingWeight, match="rename='c': expected a pattern of weights, received one that"):
        refuse_unused_renames(["a/x"], {re.compile("c"): ""}, "x")


def test_a_replacement_that_does_not_fit_is_refused() -> None:
    with pytest.raises(WeightError, match=r"rename='a': .* is no replacement for it: invalid group"):
        apply_rename("a", {re.compile("a"): r"\3"})


@pytest.mark.parametrize(
    ("rename", "error", "message"),
    [
        ({"enc/k": "k"}, MissingWeight, "rename='enc/k': expected a weight of arrays, received a name of none"),
        ({"enc/*": "b/*", "dec/*": "d/*"}, MissingWeight, r"rename='dec/\*': expected a weight of arrays"),
        ({"enc/*": "b"}, WeightError, r"rename=\{'enc/\*': 'b'\}: expected 1 star in the new name, received 0"),
        ({"enc/w": "b/*"}, WeightError, "expected 0 stars in the new name, received 1"),
        (lambda path: None, WeightError, "weight 'enc/w': expected a name from the rename function, received None"),
        (lambda path: b"w", WeightError, "weight 'enc/w': expected a name from the rename function, received b'w'"),
    ],
)
def test_a_rename_that_cannot_be_meant_is_refused_and_no_file_is_written(
    tmp_path: Any, rename: Any, error: type[PolyakError], message: str
) -> None:
    source = Snapshot.from_arrays({"enc/w": np.float32([1])})
    with pytest.raises(error, match=message):
        polyak.convert(source, tmp_path / "x.npz", rename=rename)
    assert not list(tmp_path.iterdir())


def test_the_same_renames_serve_models_and_files(tmp_path: Any) -> None:
    source = Snapshot.from_arrays({"net.enc.w": np.float32([1])})
    rename = {re.compile(r"^net\."): "", re.compile(r"\."): "/"}
    polyak.convert(source, tmp_path / "x.npz", rename=rename)
    polyak.transfer(source, tmp_path / "y.safetensors", rename=rename)
    module, module.enc = tf.Module(), tf.Module()
    module.enc.w = tf.Variable([0.0])
    polyak.transfer(source, module, rename=rename)
    assert list(polyak.open(tmp_path / "x.npz")) == list(polyak.open(tmp_path / "y.safetensors")) == ["enc/w"]
    assert module.enc.w.numpy().tolist() == [1.0]
