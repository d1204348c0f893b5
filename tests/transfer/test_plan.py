"""Plans and receipts as values: their text, their JSON, the digests that prove equal contents."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyak
from polyak.errors import AmbiguousMatch, DtypeMismatch, MissingWeight, UnexpectedWeight
from polyak.snapshot import Item, Snapshot
from polyak.transfer.plan import Move, structure
from polyak.transfer.receipt import Moved, Receipt
from polyak.weights import Kind, Weight

tf = pytest.importorskip("tensorflow")


class Source(tf.Module):
    def __init__(self) -> None:
        super().__init__(name="source")
        self.kernel = tf.Variable([[1.0, 2.0]])
        self.old = tf.Variable([0.5, -0.5])
        self.scale = tf.Variable([1.5])
        self.steps = tf.Variable(7, trainable=False)


class Target(tf.Module):
    def __init__(self) -> None:
        super().__init__(name="target")
        self.kernel = tf.Variable(tf.zeros([1, 2], tf.float16))
        self.new = tf.Variable([0.0, 0.0])
        self.scale = tf.Variable([9.0])
        self.steps = tf.Variable(0, trainable=False)
        self.dice = tf.random.Generator.from_seed(0)


ASKED: Any = {"rename": {"old": "new"}, "cast": "target", "exclude": "scale"}


def plan() -> polyak.Plan:
    return polyak.plan(Source(), Target(), **ASKED)


def test_a_plan_as_text() -> None:
    assert str(plan()) == (
        "raw weights: Source 'source' -> Target 'target'\n"
        "  kernel  (1, 2) float32 -> float16\n"
        "  old -> new  (2,) float32\n"
        "  steps  () int32\n"
        "  skipped as asked: scale\n"
        "  only on one side: dice/state"
    )


@pytest.mark.parametrize("dtype", ["uint32", "int32", "int64"])
def test_seeds_of_another_dtype_move_unasked_where_they_fit(dtype: str, tmp_path: Path) -> None:
    """Each backend of Keras has one of its own; ``like=`` makes a file the target."""
    path = tmp_path / "like.safetensors"
    polyak.save(seeds(np.array([1, 2], dtype)), path)
    for at, value in enumerate((np.int64([7, 2**31 - 1]), np.uint32([7, 0]), np.int32([3, 4]))):
        polyak.transfer(seeds(value), tmp_path / f"{at}.safetensors", like=path)
        moved = polyak.open(tmp_path / f"{at}.safetensors")["dice"]
        assert (moved.dtype, moved.tolist()) == (dtype, value.tolist())


def test_a_seed_that_does_not_fit_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "like.safetensors"
    polyak.save(seeds(np.array([1, 2], "uint32")), path)
    for value in (np.int64([2**40, 2]), np.int64([-1, 2])):
        with pytest.raises(DtypeMismatch, match="'dice': expected values in the range of uint32") as told:
            polyak.transfer(seeds(value), tmp_path / "moved.safetensors", like=path)
        assert 'exclude="dice"' in str(told.value)


def seeds(value: Any) -> Snapshot:
    weight = Weight("dice", value.shape, value.dtype.name, Kind.SEED)
    kernel = Weight("kernel", (1,), "float32", Kind.TRAINABLE)
    items = [Item("raw", weight, lambda: value), Item("raw", kernel, lambda: np.float32([1]))]
    return Snapshot(items, {"raw": None}, "there")


def test_a_plan_as_data() -> None:
    made = plan()
    assert made.moves[1] == Move("old", "new", (2,), "float32", "float32", Kind.TRAINABLE)
    assert json.loads(made.to_json()) == {
        "version": 1,
        "source": "Source 'source'",
        "target": "Target 'target'",
        "role": "raw",
        "moves": [
            {"source": s, "target": t, "shape": shape, "source_dtype": a, "dtype": b, "kind": kind}
            for s, t, shape, a, b, kind in [
                ("kernel", "kernel", [1, 2], "float32", "float16", "trainable"),
                ("old", "new", [2], "float32", "float32", "trainable"),
                ("steps", "steps", [], "int32", "int32", "counter"),
            ]
        ],
        "skipped": ["scale"],
        "left": ["dice/state"],
        "finite": True,
        "structure": {"source": structure(made.source.weights), "target": structure(made.target.weights)},
    }


def test_a_plan_writes_nothing_until_it_is_applied() -> None:
    source, target = Source(), Target()
    made = polyak.plan(source, target, **ASKED)
    assert target.new.numpy().tolist() == [0.0, 0.0]
    source.old.assign([3.0, 4.0])
    made.apply()
    assert target.new.numpy().tolist() == [3.0, 4.0]
    assert target.scale.numpy().tolist() == [9.0]


def test_a_plan_without_some_of_its_moves() -> None:
    source, target = Source(), Target()
    made = polyak.plan(source, target, **ASKED)
    less = made.without(["new", "st*"])
    assert [m.target for m in less.moves] == ["kernel"]
    assert less.skipped == ("scale", "new", "steps")
    assert [m.target for m in made.moves] == ["kernel", "new", "steps"]
    less.apply()
    assert (target.kernel.numpy().tolist(), target.new.numpy().tolist()) == ([[1.0, 2.0]], [0.0, 0.0])
    with pytest.raises(MissingWeight, match="exclude='old': expected a glob of weights"):
        made.without("old")


def test_plans_can_be_compared_and_held_in_sets() -> None:
    made = plan()
    assert made == made.without([])
    assert made != plan()
    assert len({made, made.without([]), plan()}) == 2


def test_a_receipt_as_text() -> None:
    receipt = plan().apply()
    assert str(receipt) == (
        "raw weights: Source 'source' -> Target 'target'\n"
        "  3 weights (16 bytes) moved and verified, 1 cast, 1 renamed, 1 skipped as asked, 1 only on one side\n"
        f"  digest {receipt.digest}"
    )


def test_a_receipt_of_an_average_as_text() -> None:
    moved = (Moved("w", "w", "float32", "float32", 1200, "00"),)
    receipt = Receipt("average ema:0.9 of Net", "Net 'b'", "average", moved, count=1500)
    assert str(receipt) == (
        "average weights after 1,500 updates: average ema:0.9 of Net -> Net 'b'\n"
        "  1 weight (1,200 bytes) moved and verified, 0 cast, 0 renamed, 0 skipped as asked\n"
        f"  digest {receipt.digest}"
    )


def test_a_receipt_as_data() -> None:
    receipt = plan().apply()
    data = json.loads(receipt.to_json())
    assert {key: data[key] for key in data if key != "moved"} == {
        "source": "Source 'source'",
        "target": "Target 'target'",
        "role": "raw",
        "skipped": ["scale"],
        "left": ["dice/state"],
        "count": None,
        "unread": {},
        "nbytes": 4 + 8 + 4,
        "digest": receipt.digest,
    }
    assert [Moved(**m) for m in data["moved"]] == list(receipt.moved)
    assert [m.target for m in receipt.cast] == ["kernel"]
    assert [(m.source, m.target) for m in receipt.renamed] == [("old", "new")]


def test_equal_contents_have_equal_digests_wherever_they_are(tmp_path: Path) -> None:
    source = Source()
    to_model = polyak.transfer(source, Source())
    to_file = polyak.save(source, tmp_path / "a")
    from_file = polyak.transfer(tmp_path / "a", Source())
    into_average = polyak.transfer(source, polyak.track(Source(), "copy"))
    assert len({r.digest for r in (to_model, to_file, from_file, into_average)}) == 1
    source.old.assign([0.5, np.nextafter(np.float32(-0.5), np.float32(0))])
    assert polyak.save(source, tmp_path / "a").digest != to_file.digest


def test_a_digest_tells_names_dtypes_and_bytes_apart_and_not_their_order() -> None:
    def digest(*moved: tuple[str, str, str]) -> str:
        return Receipt("s", "t", "raw", tuple(Moved("x", t, "", dtype, 0, d) for t, dtype, d in moved)).digest

    one, two = ("a", "float32", "00"), ("b", "float32", "11")
    assert digest(one, two) == digest(two, one)
    others = [(one,), (two,), (one, ("b", "int32", "11")), (one, ("c", "float32", "11")), (one, ("b", "float32", "12"))]
    assert len({digest(one, two), *(digest(*o) for o in others)}) == 6


def test_a_plan_with_half_a_character_in_a_name_is_not_stored() -> None:
    made = dataclasses.replace(plan(), skipped=("a\ud800",))
    with pytest.raises(UnexpectedWeight, match="expected a name in Unicode"):
        made.to_json()


@pytest.mark.parametrize("name", ["a\nb", "enc/k\n", "a//b", "/", ""])
def test_names_with_line_breaks_and_empty_steps_are_refused_like_others_that_do_not_fit(name: str) -> None:
    held, other = ({n: np.zeros(2, np.float32)} for n in (name, "dense/kernel"))
    with pytest.raises(MissingWeight, match="dense/kernel") as raised:
        polyak.plan(Snapshot.from_arrays(held), Snapshot.from_arrays(other))
    assert repr(name) in str(raised.value)


def test_a_renamed_matrix_of_another_framework_is_refused_where_nobody_says_how_it_lies() -> None:
    source = Snapshot.from_arrays({"linear.weight": np.ones((2, 2), np.float32)})
    target = tf.Module()
    target.kernel = tf.Variable(tf.zeros([2, 2]))
    with pytest.raises(AmbiguousMatch, match="axes may be the other way round"):
        polyak.transfer(source, target, rename={"linear.weight": "kernel"})
