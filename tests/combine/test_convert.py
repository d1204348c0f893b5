"""Another format, naming, selection and dtype: what arrives, what the receipt says, what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import polyak
from polyak.errors import DamagedFile, DtypeMismatch, MissingWeight, UnexpectedWeight, UnknownFormat, WeightError
from polyak.manifest import State
from polyak.snapshot import Item, Snapshot

STATE = State({"rule": "mean"}, 4)
ENDS = [".safetensors", ".npz", ".safetensors.index.json"]


@pytest.fixture
def arrays() -> dict[str, Any]:
    return {
        "net/head/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
        "net/head/bias": np.ones(3, ml_dtypes.bfloat16) / 3,
        "steps": np.array(7, np.int64),
    }


@pytest.fixture
def two(arrays: dict[str, Any]) -> Snapshot:
    raw, average = (Snapshot.from_arrays(arrays, role) for role in ("raw", "average"))
    return Snapshot([*raw.items_by_path.values(), *average.items_by_path.values()], {"average": STATE})


@pytest.mark.parametrize("last", ENDS)
@pytest.mark.parametrize("end", ENDS)
def test_every_format_into_every_format_and_back_loses_nothing(
    end: str, last: str, two: Snapshot, tmp_path: Path
) -> None:
    polyak.save(two, tmp_path / "a.safetensors")
    polyak.convert(tmp_path / "a.safetensors", tmp_path / f"b{end}")
    polyak.convert(tmp_path / f"b{end}", tmp_path / f"c{last}")
    found = polyak.open(tmp_path / f"c{last}")
    assert polyak.diff(two, found).equal
    assert (found.roles, found.manifest.roles["average"], found.integrity) == (("raw", "average"), STATE, "xxh3-128")
    assert [w.kind for w in found.weights] == [w.kind for w in two.weights]


def test_selection_renaming_and_cast_are_in_the_receipt(two: Snapshot, tmp_path: Path) -> None:
    receipt = polyak.convert(
        two,
        tmp_path / "x.npz",
        "average",
        exclude="steps",
        rename={re.compile("^net/"): "", re.compile("/"): "."},
        cast="float16",
    )
    assert [(m.source, m.target, m.source_dtype, m.dtype) for m in receipt.moved] == [
        ("net/head/kernel", "head.kernel", "float32", "float16"),
        ("net/head/bias", "head.bias", "bfloat16", "float16"),
    ]
    assert (receipt.skipped, receipt.count, receipt.role) == (("steps",), 4, "average")
    assert polyak.open(tmp_path / "x.npz")["head.kernel"].dtype == np.float16


def test_both_sets_are_renamed_alike(two: Snapshot, tmp_path: Path) -> None:
    polyak.convert(two, tmp_path / "x.safetensors", include="*kernel", rename={"net/*": "n/*"})
    assert list(polyak.open(tmp_path / "x.safetensors")) == ["raw/n/head/kernel", "average/n/head/kernel"]


def test_the_format_may_be_asked_for(two: Snapshot, tmp_path: Path) -> None:
    polyak.convert(two, tmp_path / "weights", format="npz")
    assert (tmp_path / "weights").read_bytes()[:2] == b"PK"
    for target, asked in (("weights", None), ("x.h5", None), ("x.npz", "hdf5")):
        with pytest.raises(UnknownFormat, match="expected the name or format of something that polyak writes"):
            polyak.convert(two, tmp_path / target, format=asked)


@pytest.mark.parametrize(
    ("choosing", "error", "message"),
    [
        ({"include": "nat/*"}, MissingWeight, "include='nat/\\*'"),
        ({"rename": {"nat": ""}}, WeightError, "rename='nat': expected a weight of arrays, received a name of none"),
        ({"rename": {re.compile("nat"): ""}}, WeightError, "rename='nat': expected a pattern of weights"),
        ({"rename": {re.compile("net"): r"\3"}}, WeightError, "rename='net': .* is no replacement"),
        ({"rename": lambda path: "one"}, UnexpectedWeight, "two weights of arrays would have this name"),
        ({"rename": lambda path: path if "net" in path else ""}, UnexpectedWeight, "expected a name, received none"),
        ({"cast": "int8"}, DtypeMismatch, "cast='int8': expected a floating-point dtype"),
        ({"cast": "flat32"}, DtypeMismatch, "cast='flat32'"),
        ({"includ": "*"}, TypeError, "a conversion has no argument 'includ'; it has cast, exclude, include"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    choosing: Any, error: type[Exception], message: str, arrays: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        polyak.convert(Snapshot.from_arrays(arrays), tmp_path / "x.npz", **choosing)
    assert list(tmp_path.iterdir()) == []


def test_a_cast_rounds_and_never_overflows(tmp_path: Path) -> None:
    fine = Snapshot.from_arrays({"w": np.float32([1 / 3, np.inf])})
    polyak.convert(fine, tmp_path / "x.npz", cast="float16")
    assert polyak.open(tmp_path / "x.npz")["w"].tolist() == [float(np.float16(1 / 3)), np.inf]
    with pytest.raises(DtypeMismatch, match="weight 'w': expected values in the range of float16"):
        polyak.convert(Snapshot.from_arrays({"w": np.float32([70000])}), tmp_path / "y.npz", cast="float16")
    assert not (tmp_path / "y.npz").exists()


@pytest.mark.parametrize(("alias", "dtype"), [("half", "float16"), ("f4", "float32"), ("float", "float64")])
def test_a_dtype_goes_by_its_own_name(alias: str, dtype: str, tmp_path: Path) -> None:
    """NumPy has other words for it, which no file has."""
    polyak.convert(Snapshot.from_arrays({"w": np.float32([1])}), tmp_path / "x.safetensors", cast=alias)
    assert polyak.open(tmp_path / "x.safetensors")["w"].dtype == dtype


def test_bytes_are_compared_with_their_digest_before_a_cast(tmp_path: Path) -> None:
    items = Snapshot.from_arrays({"w": np.float32([1])}).items_by_path.values()
    damaged = Snapshot(Item("raw", i.weight, i.read, "0" * 32) for i in items)
    for cast in (None, "float64"):
        with pytest.raises(DamagedFile, match="expected bytes with digest"):
            polyak.convert(damaged, tmp_path / "x.npz", cast=cast)


def test_a_conversion_that_leaves_all_out_is_refused(tmp_path: Path) -> None:
    held = Snapshot.from_arrays({"w": np.float32([1])})
    for move in (polyak.convert, polyak.transfer):
        with pytest.raises(MissingWeight, match="expected at least one weight to take, received none of 1"):
            move(held, tmp_path / "x.npz", exclude="*")
    assert list(tmp_path.iterdir()) == []
