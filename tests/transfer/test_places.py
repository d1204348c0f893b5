"""Pairs by places in TensorFlow's object graph, and what objects. tests/keras/test_nests.py has real files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from polyak.errors import AmbiguousMatch
from polyak.snapshot import Item
from polyak.transfer.places import Place, place, renamed
from polyak.weights import Kind, Weight


def held(path: str, *places: str, called: str = "", size: int = 2) -> Item:
    weight = Weight(path, (size,), "float32", Kind.TRAINABLE)
    return Item("raw", weight, lambda: np.zeros(size, np.float32), places=places, called=called)


def live(path: str, kind: Kind = Kind.TRAINABLE) -> Weight:
    return Weight(path, (2,), "float32", kind)


def pairs(source: Sequence[Item], places: Mapping[str, Place]) -> dict[str, str] | None:
    return renamed(source, [live(path) for path in places], places, "a file")


def test_a_place_is_a_path_less_what_only_keras_put_into_it() -> None:
    assert place(("m", "_functional", "_operations", "0", "_layers", "12", "a", "3", "_bias")) == "m/#0/#12/a/3/bias"
    assert place(()) == ""


def test_weights_pair_under_one_root_whatever_it_is() -> None:
    wanted = {"a/kernel": Place("#0/kernel"), "b/kernel": Place("#1/kernel")}
    for root in ("", "model/", "two/steps/"):
        source = [held("x", f"{root}#0/kernel"), held("y", "else", f"{root}#1/kernel"), held("z", "step")]
        assert pairs(source, wanted) == {"x": "a/kernel", "y": "b/kernel"}


def test_a_step_of_the_file_is_no_part_of_a_root() -> None:
    assert pairs([held("x", "model/my_kernel")], {"kernel": Place("kernel")}) is None


def test_nothing_pairs_unless_all_do() -> None:
    wanted = {"a": Place("#0/kernel"), "b": Place("#1/kernel")}
    assert pairs([held("x", "#0/kernel")], wanted) is None
    assert pairs([held("x", "m/#0/kernel"), held("y", "n/#1/kernel")], wanted) is None
    assert renamed([held("x", "#0/kernel")], [live("a"), live("c")], {"a": Place("#0/kernel")}, "a file") is None
    assert pairs([held("x", "#0/kernel")], {}) is None


def test_random_seeds_need_no_place() -> None:
    target = [live("a"), live("seed", Kind.SEED)]
    assert renamed([held("x", "#0/kernel")], target, {"a": Place("#0/kernel")}, "a file") == {"x": "a"}


def test_two_roots_are_refused_with_one_to_leave_out() -> None:
    source = [held("x", "student/#0/kernel"), held("y", "teacher/#0/kernel")]
    with pytest.raises(AmbiguousMatch, match="received 2 from a file: under 'student/', 'teacher/'") as error:
        pairs(source, {"a": Place("#0/kernel")})
    assert error.value.hint == 'leave the others out: exclude="teacher/*"'


def named(first: str, second: str) -> list[Item]:
    return [held("m/0/kernel", "#0/kernel", called=first), held("m/1/kernel", "#1/kernel", called=second)]


def test_an_explicit_name_at_another_weight_objects() -> None:
    wanted = {"left/kernel": Place("#0/kernel", "", ("left",)), "right/kernel": Place("#1/kernel", "", ("right",))}
    assert pairs(named("left/dense/kernel", "right/dense/kernel"), wanted)
    assert pairs(named("dense/kernel", "dense_1/kernel"), wanted), "the file knows none of the names"
    with pytest.raises(AmbiguousMatch, match=r"weight 'left/kernel'.*'m/0/kernel' .*place.*'m/1/kernel' .*names"):
        pairs(named("right/dense/kernel", "left/dense/kernel"), wanted)


def test_a_name_at_a_weight_of_another_shape_does_not_object() -> None:
    wanted = {"left/kernel": Place("#0/kernel", "", ("left",)), "b/kernel": Place("#1/kernel")}
    source = [held("m/0/kernel", "#0/kernel"), held("m/1/kernel", "#1/kernel", called="left/kernel", size=3)]
    assert pairs(source, wanted)


def test_automatic_names_of_another_order_object() -> None:
    wanted = {"a/kernel": Place("#0/kernel", "dense_3"), "b/kernel": Place("#1/kernel", "dense_12")}
    assert pairs(named("dense/kernel", "dense_1/kernel"), wanted)
    assert pairs(named("net/kernel", "net/kernel"), wanted), "these are no names of layers"
    assert pairs(named("dense_8/kernel", "conv_1/kernel"), wanted), "of two classes"
    with pytest.raises(AmbiguousMatch, match="names of the layers") as error:
        pairs(named("dense_8/kernel", "dense_1/kernel"), wanted)
    assert "made, named or put together" in error.value.hint


def test_weights_of_one_layer_have_no_order() -> None:
    wanted = {"a/kernel": Place("#0/kernel", "dense_3"), "a/bias": Place("#0/bias", "dense_3")}
    source = [held("x", "#0/kernel", called="dense_7/kernel"), held("y", "#0/bias", called="dense_7/bias")]
    assert pairs(source, wanted)
