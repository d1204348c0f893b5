"""A plan that was stored and edited: it is checked against both ends as they are, and then it does what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import polyak
from polyak.averaging import rules
from polyak.errors import (
    AmbiguousMatch,
    AmbiguousRole,
    DamagedFile,
    DtypeMismatch,
    FileError,
    MissingWeight,
    NonFinite,
    PolyakError,
    ShapeMismatch,
    TransferError,
    UnexpectedWeight,
    UnknownFormat,
    WeightError,
)
from polyak.manifest import State
from polyak.plan_verbs import structure_of
from polyak.snapshot import Snapshot
from polyak.transfer.target import Target

STATE = State(rules.EMA(0.9).to_json(), 500)
Arrays = dict[str, Any]


def source() -> Snapshot:
    arrays = {"a": np.float32([1, 2]), "b": np.float32([3, 4]), "wide": np.float64([5]), "steps": np.int64(7)}
    return Snapshot.from_arrays(arrays, "average", STATE)


class Net(tf.Module):
    def __init__(self) -> None:
        super().__init__(name="net")
        self.a = tf.Variable([0.0, 0.0])
        self.b = tf.Variable([0.0, 0.0])
        self.wide = tf.Variable([0.0])
        self.steps = tf.Variable(tf.constant(0, tf.int64), trainable=False)


def stored(tmp_path: Path, **changes: Any) -> Path:
    """The plan for a Net, with some of its fields or of its first move changed."""
    data = json.loads(polyak.plan(source(), Net(), cast="target").to_json())
    for name, value in changes.items():
        (data["moves"][0] if name in data["moves"][0] else data)[name] = value
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    return path


def moves(tmp_path: Path) -> list[Arrays]:
    made: list[Arrays] = json.loads(stored(tmp_path).read_text())["moves"]
    return made


def test_a_stored_plan_is_the_plan(tmp_path: Path) -> None:
    net, twin = Net(), Net()
    direct = polyak.transfer(source(), net, cast="target")
    receipt = polyak.transfer(source(), twin, plan=stored(tmp_path))
    assert receipt.moved == direct.moved
    assert (twin.a.numpy().tolist(), int(twin.steps)) == ([1.0, 2.0], 7)
    assert polyak.plan(source(), twin, plan=polyak.read_plan(stored(tmp_path))).to_json() == (
        polyak.plan(source(), twin, cast="target").to_json()
    )


def test_a_directory_is_no_plan(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be read: Is a directory"):
        polyak.read_plan(tmp_path)


def test_a_plan_that_an_editor_has_marked_as_unicode_is_read(tmp_path: Path) -> None:
    path = stored(tmp_path)
    plain = path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + plain)
    assert polyak.transfer(source(), Net(), plan=path).moved == polyak.transfer(source(), Net(), cast="target").moved


def test_a_move_can_be_left_out_or_get_another_source(tmp_path: Path) -> None:
    lines = moves(tmp_path)
    net = Net()
    receipt = polyak.transfer(source(), net, plan=stored(tmp_path, moves=[{**lines[0], "source": "b"}, *lines[2:]]))
    assert (net.a.numpy().tolist(), net.b.numpy().tolist()) == ([3.0, 4.0], [0.0, 0.0])
    assert receipt.skipped == ("b",)


def test_an_average_takes_a_stored_plan_too(tmp_path: Path) -> None:
    ema = polyak.EMA(Net(), 0.5)
    made = polyak.plan(source(), ema, exclude="wide")
    path = tmp_path / "plan.json"
    path.write_text(made.to_json())
    assert polyak.transfer(source(), ema, plan=path).count == 500
    assert ema.count == 500


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"source": "aa"}, MissingWeight, "weight 'aa': the plan names it, arrays does not have it; nearest: 'a'"),
        ({"target": "aa"}, MissingWeight, "weight 'aa': the plan names it, Net 'net' does not have it; nearest: 'a'"),
        ({"target": "b"}, AmbiguousMatch, "weight 'b': expected one move, received 2, from 'a' and 'b'"),
        ({"source": "wide"}, ShapeMismatch, r"weight 'a': expected \(2,\), received \(1,\) of 'wide'"),
        ({"shape": [3]}, ShapeMismatch, r"weight 'a': expected shape \(3,\), as planned, received \(2,\)"),
        ({"source_dtype": "float16"}, DtypeMismatch, "expected source_dtype float16, as planned, received float32"),
        ({"dtype": "float16"}, DtypeMismatch, "expected dtype float16, as planned, received float32 of Net 'net'"),
        ({"dtype": "flaot32"}, DtypeMismatch, "expected the name of a dtype in the plan, received 'flaot32'"),
        ({"dtype": "f4"}, DtypeMismatch, "expected the name of a dtype in the plan, received 'f4'"),
        ({"kind": "statistic"}, DtypeMismatch, "expected kind statistic, as planned, received trainable"),
        ({"role": "raw"}, AmbiguousRole, "expected weights of role 'raw', received 'average'"),
        ({"skipped": ["bb"]}, MissingWeight, "weight 'bb': the plan leaves it alone, and neither arrays nor Net"),
        ({"moves": []}, MissingWeight, "expected at least one move, received none"),
        ({"version": 2}, UnknownFormat, "expected a plan of version 1, received version 2"),
        ({"shape": "wide"}, DamagedFile, "it is no plan: Expected `array`, got `str`"),
    ],
)
def test_what_is_not_so_is_refused_before_anything_is_written(
    tmp_path: Path, changes: Arrays, error: type[PolyakError], message: str
) -> None:
    net = Net()
    with pytest.raises(error, match=message):
        polyak.transfer(source(), net, plan=stored(tmp_path, **changes))
    assert net.a.numpy().tolist() == net.b.numpy().tolist() == [0.0, 0.0]


def test_another_set_of_weights_than_planned_is_refused(tmp_path: Path) -> None:
    net, raw = Net(), Snapshot.from_arrays({**source()})
    with pytest.raises(AmbiguousRole, match="arrays: expected 'average', as planned, received raw"):
        polyak.transfer(raw, net, plan=stored(tmp_path), weights="raw")
    assert net.a.numpy().tolist() == [0.0, 0.0]


def test_a_file_too_large_for_a_plan_is_not_read(tmp_path: Path) -> None:
    path = stored(tmp_path)
    with path.open("r+b") as file:
        file.truncate((1 << 28) + 1)
    with pytest.raises(FileError, match="expected a plan of at most 268,435,456 bytes, received a larger file"):
        polyak.read_plan(path)


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    lines = moves(tmp_path)
    with pytest.raises(DamagedFile, match="unknown field `tagret`"):
        polyak.read_plan(stored(tmp_path, moves=[{**lines[0], "tagret": "b"}]))
    with pytest.raises(DamagedFile, match="it is no plan"):
        polyak.StoredPlan.from_json(b"\xff")
    with pytest.raises(FileError, match="there is nothing at this path"):
        polyak.read_plan(tmp_path / "none.json")


def test_a_weight_that_is_new_since_the_plan_is_refused_and_can_be_skipped_by_name(tmp_path: Path) -> None:
    net = Net()
    net.new = tf.Variable([1.0])
    path = stored(tmp_path)
    with pytest.raises(UnexpectedWeight, match="weight 'new': Net 'net' has it, the plan does not name it"):
        polyak.transfer(source(), net, plan=path)
    grown = Snapshot.from_arrays({**source(), "late": np.float32([1])}, "average", STATE)
    with pytest.raises(UnexpectedWeight, match="weight 'late': arrays has it, the plan does not name it"):
        polyak.transfer(grown, Net(), plan=path)
    assert polyak.transfer(source(), net, plan=stored(tmp_path, skipped=["new"])).skipped == ("new",)


def test_a_plan_says_all_that_can_be_asked(tmp_path: Path) -> None:
    with pytest.raises(WeightError, match=r"plan=: expected weights= and sample= alone .*\['include'\]"):
        polyak.transfer(source(), Net(), plan=stored(tmp_path), include="a")
    with pytest.raises(WeightError, match="give it as the target of plan"):
        polyak.plan(source(), Net(), like=Net())


def test_values_are_checked_as_without_a_plan(tmp_path: Path) -> None:
    bad = Snapshot.from_arrays({**source(), "a": np.float32([1, np.nan])}, "average", STATE)
    with pytest.raises(NonFinite, match="weight 'a': expected finite values"):
        polyak.transfer(bad, Net(), plan=stored(tmp_path))
    net = Net()
    polyak.transfer(bad, net, plan=stored(tmp_path, finite=False))
    assert np.isnan(net.a.numpy()[1])


# --- a file as target ------------------------------------------------------------------------------------------------


def test_a_file_gets_the_structure_of_a_model_and_the_values_of_the_source(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    receipt = polyak.transfer(source(), out, like=Net(), cast="target")
    made = polyak.open(out)
    assert {name: array.dtype.name for name, array in made.items()} == {
        "a": "float32",
        "b": "float32",
        "wide": "float32",
        "steps": "int64",
    }
    assert (made.roles, made.state, made["wide"].tolist()) == (("average",), STATE, [5.0])
    assert [m.target for m in receipt.cast] == ["wide"]
    assert made.items_by_path["steps"].weight.kind == "counter"
    net = Net()
    assert polyak.transfer(out, net).digest == receipt.digest


def test_a_file_as_target_has_all_the_checks_of_a_model(tmp_path: Path) -> None:
    like = tmp_path / "like.npz"
    np.savez(like, a=np.zeros(3, np.float32), b=np.zeros(2, np.float32))
    out = tmp_path / "out.safetensors"
    with pytest.raises(ShapeMismatch, match=r"weight 'a': expected \(3,\), received \(2,\) from arrays"):
        polyak.transfer(source(), out, like=like, exclude=["wide", "steps"])
    with pytest.raises(UnexpectedWeight, match="weight 'wide': expected no such weight for the structure of file"):
        polyak.transfer(source(), out, like=like)
    with pytest.raises(TransferError, match="received a structure without values"):
        polyak.plan(source(), like, include="b").apply()
    assert not out.exists()


@pytest.mark.parametrize(
    "use", [lambda t: t.read("a"), lambda t: t.view("a"), lambda t: t.write("a", np.zeros(1)), lambda t: t.hold("a")]
)
def test_a_structure_has_no_value_to_read_or_write(use: Callable[[Target], object]) -> None:
    with pytest.raises(TransferError, match="arrays: expected a model or an average to write into"):
        use(structure_of(Snapshot.from_arrays({"a": np.zeros(1, np.float32)})))


def test_a_plan_for_a_file_may_change_dtypes(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    data = json.loads(polyak.plan(source(), source()).to_json())
    data["moves"][0] |= {"dtype": "float16"}
    path.write_text(json.dumps(data))
    out = tmp_path / "out.npz"
    assert polyak.transfer(source(), out, plan=path).cast[0].target == "a"
    assert np.load(out)["a"].dtype == np.float16
    data["moves"][0] |= {"dtype": "int32"}
    path.write_text(json.dumps(data))
    with pytest.raises(DtypeMismatch, match="the plan makes int32 of float32"):
        polyak.transfer(source(), out, plan=path)


def test_a_value_out_of_range_is_refused_and_no_file_is_left(tmp_path: Path) -> None:
    big = Snapshot.from_arrays({"a": np.float32([1e6])})
    like = Snapshot.from_arrays({"a": np.float16([0])})
    with pytest.raises(DtypeMismatch, match="expected values in the range of float16, received up to 1e"):
        polyak.transfer(big, tmp_path / "out.safetensors", like=like, cast="target")
    assert list(tmp_path.iterdir()) == []


def test_weights_are_chosen_and_renamed_on_the_way_into_a_file(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    receipt = polyak.transfer(source(), out, exclude=["wide", "steps"], rename={"a": "first"})
    assert list(polyak.open(out)) == ["first", "b"]
    assert receipt.skipped == ("wide", "steps")
    with pytest.raises(FileError, match="expected weights=, include=, exclude= and rename= alone"):
        polyak.transfer(source(), out, by="position")
