"""The object graph: ways, names and slots as TensorFlow's own message holds them; graphs that lie."""

from __future__ import annotations

import time
from typing import Any

import pytest

from polyak.files.object_graph import PATH_LIMIT, ObjectKey, Slot, parse_graph, split_key, unescape
from polyak.files.protobuf import WireError

Graph = pytest.importorskip("tensorflow.core.protobuf.trackable_object_graph_pb2").TrackableObjectGraph


def graph(edges: dict[int, list[tuple[str, int]]], keys: dict[int, str], count: int | None = None) -> Any:
    """A message of nodes with these named edges, whose attribute has these checkpoint keys."""
    message = Graph()
    for node in range(count or 1 + max([*edges, *keys, *(to for tos in edges.values() for _, to in tos)])):
        item = message.nodes.add()
        for name, to in edges.get(node, ()):
            item.children.add(local_name=name, node_id=to)
        if node in keys:
            item.attributes.add(name="VARIABLE_VALUE", full_name=f"name{node}", checkpoint_key=keys[node])
    return message


def paths(message: Any, key: str) -> tuple[tuple[str, ...], ...]:
    return parse_graph(message.SerializeToString()).tensors[key].paths


def test_ways_are_sorted_by_length_and_alphabet() -> None:
    edges = {0: [("z", 1), ("b", 2), ("a", 2)], 2: [("c", 1), ("b", 3)], 3: [("x", 1)]}
    expected = (("z",), ("a", "c"), ("b", "c"), ("a", "b", "x"), ("b", "b", "x"))
    assert paths(graph(edges, {1: "k"}), "k") == expected


def test_cycles_end() -> None:
    edges = {0: [("self", 0), ("a", 1)], 1: [("up", 0), ("b", 2), ("self", 1)], 2: [("back", 1)]}
    message = graph(edges, {0: "root", 1: "one", 2: "two"})
    assert paths(message, "root") == ((),)
    assert paths(message, "one") == (("a",),)
    assert paths(message, "two") == (("a", "b"),)


def test_names_are_not_escaped_and_attributes_are_kept() -> None:
    found = parse_graph(graph({0: [("a/b.c", 1)]}, {1: "k"}).SerializeToString()).tensors["k"]
    assert found.paths == (("a/b.c",),)
    assert (found.attribute, found.full_name, found.slot) == ("VARIABLE_VALUE", "name1", None)


def test_the_number_of_ways_is_bounded() -> None:
    """Sixty diamonds in a row have 2**60 ways through."""
    edges = {i: [("l", i + 1), ("r", i + 1)] for i in range(60)}
    message = graph(edges, {5: "near", 4: "small", 60: "far"})
    assert len(paths(message, "small")) == 2**4
    near = paths(message, "near")
    assert near == tuple(sorted(near))[:PATH_LIMIT]
    assert near[0] == ("l",) * 5
    assert paths(message, "far")[0] == ("l",) * 60
    assert len(paths(message, "far")) == PATH_LIMIT


def test_a_long_chain_and_a_dense_graph_take_bounded_time() -> None:
    chain = graph({i: [("n", i + 1)] for i in range(5000)}, {i: f"k{i}" for i in range(5000)})
    dense = graph({i: [(str(j), j) for j in range(60)] for i in range(60)}, {i: f"k{i}" for i in range(60)})
    start = time.perf_counter()
    assert paths(chain, "k20") == (("n",) * 20,)
    assert paths(chain, "k4999") == ()
    assert all(len(paths(dense, f"k{i}")) == PATH_LIMIT for i in (1, 59))
    assert time.perf_counter() - start < 10


def test_slots_name_variable_and_optimizer() -> None:
    message = graph({0: [("model", 1), ("opt", 2)]}, {1: "w", 3: "w/slot", 4: "lost"}, 6)
    message.nodes[2].slot_variables.add(original_variable_node_id=1, slot_name="average", slot_variable_node_id=3)
    message.nodes[5].slot_variables.add(original_variable_node_id=1, slot_name="m", slot_variable_node_id=4)
    message.nodes[2].slot_variables.add(original_variable_node_id=5, slot_name="of nothing", slot_variable_node_id=1)
    tensors = parse_graph(message.SerializeToString()).tensors
    assert tensors["w/slot"].slot == Slot("w", "average", ("opt",))
    assert tensors["w/slot"].paths == ()
    assert tensors["lost"].slot == Slot("w", "m", ())
    assert tensors["w"].slot is None


def test_objects_that_share_a_key_share_their_ways() -> None:
    message = graph({0: [("b", 1), ("a", 2)]}, {1: "k", 2: "k"})
    assert paths(message, "k") == (("a",), ("b",))
    for names, expected in (("first", ""), "first"), (("", "second"), "second"):
        for node, name in zip((1, 2), names, strict=True):
            message.nodes[node].attributes[0].full_name = name
        assert parse_graph(message.SerializeToString()).tensors["k"].full_name == expected


def test_an_empty_graph_and_attributes_without_a_key() -> None:
    assert parse_graph(b"").tensors == {}
    assert parse_graph(graph({}, {0: ""}).SerializeToString()).tensors == {}


@pytest.mark.parametrize("node", [-1, 2, 2**31 - 1])
def test_numbers_of_objects_that_do_not_exist(node: int) -> None:
    message = graph({0: [("a", 1)]}, {1: "k"})
    message.nodes[0].children.add(local_name="b", node_id=node)
    with pytest.raises(WireError, match=f"expected the number of one of 2 objects, received {node}"):
        parse_graph(message.SerializeToString())
    for wrong in ({"original_variable_node_id": node, "slot_variable_node_id": 1},
                  {"original_variable_node_id": 1, "slot_variable_node_id": node}):  # fmt: skip
        message = graph({0: [("a", 1)]}, {1: "k"})
        message.nodes[0].slot_variables.add(slot_name="s", **wrong)
        with pytest.raises(WireError, match=f"received {node}"):
            parse_graph(message.SerializeToString())


@pytest.mark.parametrize("name", ["a", "a.b", "a/b", ".S", "/S", "..", "a./.S/b", ".ATTRIBUTES", ""])
def test_escapes_are_those_of_tensorflow(name: str) -> None:
    utils = pytest.importorskip("tensorflow.python.trackable.trackable_utils")
    assert unescape(utils.escape_local_name(name)) == name
    key = utils.checkpoint_key(f"model/{utils.escape_local_name(name)}", "VARIABLE_VALUE")
    assert split_key(key) == ObjectKey(("model", name), "VARIABLE_VALUE")
    slot = utils.slot_variable_key(f"model/{utils.escape_local_name(name)}", "a/opt", name)
    assert split_key(f"{slot}/.ATTRIBUTES/X") == ObjectKey(("model", name), "X", name, ("a", "opt"))


def test_keys_of_other_checkpoints_are_not_split() -> None:
    assert split_key("net/kernel/ExponentialMovingAverage") is None
    assert split_key("_CHECKPOINTABLE_OBJECT_GRAPH") is None
    assert split_key(".ATTRIBUTES/VARIABLE_VALUE") == ObjectKey((), "VARIABLE_VALUE")


def test_a_slot_without_a_key_is_none() -> None:
    message = graph({0: [("model", 1), ("opt", 2)]}, {1: "w", 3: ""}, 4)
    message.nodes[2].slot_variables.add(original_variable_node_id=1, slot_name="m", slot_variable_node_id=3)
    assert set(parse_graph(message.SerializeToString()).tensors) == {"w"}
