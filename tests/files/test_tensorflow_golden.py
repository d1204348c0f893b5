"""Files of TensorFlow 2.21 that are kept: every later polyak reads the same bits from them, without TensorFlow.

See tests/golden/make_tensorflow.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import polyak
from polyak import files
from polyak.snapshot import Snapshot
from polyak.weights import numpy_dtype

HERE = Path(__file__).resolve().parents[1] / "golden" / "tensorflow"
NAMES = ("tf1_v2", "tf1_v1", "kinds", "module", "keras3", "keras2", "saved_model", "managed")
SETS = ("tf1_v2", "tf1_v1", "module", "saved_model", "managed")


def kept(name: str) -> dict[str, np.ndarray]:
    """What TensorFlow held; extended dtypes are stored as integers under ``NAME|dtype``."""
    with np.load(HERE / f"{name}.npz") as stored:
        pairs = [(key.partition("|"), stored[key]) for key in stored.files]
    return {key: array.view(numpy_dtype(dtype)) if dtype else array for (key, _, dtype), array in pairs}


def assert_same(received: np.ndarray, wanted: np.ndarray) -> None:
    assert (received.dtype, received.shape) == (wanted.dtype, wanted.shape)
    assert received.tobytes() == wanted.tobytes()


def test_each_kept_file_has_a_test() -> None:
    assert {p.name.partition(".")[0] for p in HERE.glob("*.npz")} == set(NAMES)
    assert {p.name.partition(".")[0] for p in HERE.glob("*.sets.npz")} == set(SETS)


@pytest.mark.parametrize("name", NAMES)
def test_each_key_has_the_bits_that_tensorflow_read(name: str) -> None:
    held, wanted = files.read(HERE / name).tensors, kept(name)
    assert set(held) == set(wanted)
    for key, array in wanted.items():
        assert (held[key].shape, held[key].dtype) == (array.shape, array.dtype.name)
        assert_same(held[key].read(), array)


@pytest.mark.parametrize("name", SETS)
def test_raw_and_averaged_weights_are_those_of_the_live_variables(name: str) -> None:
    snap = polyak.open(HERE / name)
    for key, array in kept(f"{name}.sets").items():
        role, _, path = key.partition(":")
        assert_same(held_as(snap, role)[path], array)


def held_as(snap: Snapshot, role: str) -> Snapshot:
    """The set of a role; an optimizer's slot of this name counts."""
    return snap.select(role=next(r for r in snap.roles if r in (role, f"slot:{role}")))


@pytest.mark.parametrize("name", ["keras3", "keras2"])
def test_layers_of_keras_are_weights_and_its_optimizer_is_none(name: str) -> None:
    raw = polyak.open(HERE / name).select(role="raw")
    assert sorted(w.shape for w in raw.weights) == sorted([(3, 2), (2,), (2,), (2,), (2,), (2,), (2, 2), (2,)])
    assert not [path for path in raw if "optimizer" in path]


def test_the_latest_of_a_managed_directory_is_meant_and_the_older_one_has_other_weights() -> None:
    latest, older = (polyak.open(HERE / "managed" / n).select(role="raw") for n in ("ckpt-1000", "ckpt-900"))
    found = polyak.open(HERE / "managed").select(role="raw")
    assert_same(found["net/head"], latest["net/head"])
    assert not np.array_equal(older["net/head"], latest["net/head"])


def test_reading_all_of_them_loads_no_framework() -> None:
    script = (
        "import sys, polyak, pathlib\n"
        f"for name in {NAMES!r}: polyak.open(pathlib.Path({str(HERE)!r}) / name).copy()\n"
        "assert not {'tensorflow', 'keras', 'tf_keras', 'torch', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_no_kept_file_names_the_place_that_it_was_made_in() -> None:
    names = [p for p in HERE.rglob("*") if p.is_file()]
    assert not [p for p in names if str(Path.home()).encode() in p.read_bytes() or b"/tmp/" in p.read_bytes()]
