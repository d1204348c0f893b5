"""The object graph of a ``tf.train.Checkpoint``: which Python objects led to which tensor, under which names.

A checkpoint key holds one path to its variable, the shortest at the time of saving, which changes when an optimizer is
attached. The graph, stored as the string tensor ``_CHECKPOINTABLE_OBJECT_GRAPH``, has every edge, the variables' full
names and the optimizers' slot variables.
Source: ``tensorflow/core/protobuf/trackable_object_graph.proto``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from polyak.files.protobuf import Message, WireError, decode

GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
ATTRIBUTES = ".ATTRIBUTES"
OPTIMIZER_SLOT = ".OPTIMIZER_SLOT"
PATH_LIMIT = 16
_DEPTH_LIMIT = 64

ObjectPath = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Slot:
    """What makes a tensor an optimizer's slot variable.

    Attributes:
        variable: checkpoint key of the variable that the slot belongs to.
        name: the slot's name, such as ``average`` or ``momentum``.
        optimizer: path to the optimizer; empty if it is the root, or not reachable.
    """

    variable: str
    name: str
    optimizer: ObjectPath


@dataclass(frozen=True, slots=True)
class TrackedTensor:
    """One tensor of the checkpoint, as the object graph knows it.

    Attributes:
        key: its checkpoint key.
        attribute: what it is of its object, most often ``VARIABLE_VALUE``.
        full_name: the variable's name when it was saved, such as ``dense/kernel``; not unique, maybe empty.
        paths: the edge names from the root, unescaped, for up to ``PATH_LIMIT`` ways to reach the object; the shortest
            first, equally long ones in alphabetical order. Empty for slot variables that no edge leads to.
        slot: for an optimizer's slot variable, what it belongs to.
    """

    key: str
    attribute: str
    full_name: str
    paths: tuple[ObjectPath, ...]
    slot: Slot | None = None


@dataclass(frozen=True, slots=True)
class ObjectKey:
    """The parts of an object-based checkpoint key, unescaped.

    Attributes:
        path: edge names from the root to the variable.
        attribute: what follows ``.ATTRIBUTES``.
        slot: the slot's name, or None.
        optimizer: path to the optimizer of a slot.
    """

    path: ObjectPath
    attribute: str
    slot: str | None = None
    optimizer: ObjectPath = ()


@dataclass(frozen=True, slots=True)
class ObjectGraph:
    """What the object graph says.

    Attributes:
        tensors: all that it names, by checkpoint key.
        names: what the root calls its children.
    """

    tensors: Mapping[str, TrackedTensor]
    names: frozenset[str] = frozenset()


def parse_graph(data: bytes) -> ObjectGraph:
    """Decode a serialized ``TrackableObjectGraph``; ``WireError`` if it contradicts itself.

    Example:
        >>> node = bytes([0x0A, 0x05, 0x08, 0x01, 0x12, 0x01]) + b"w"
        >>> leaf = bytes([0x12, 0x03, 0x1A, 0x01]) + b"k"
        >>> graph = parse_graph(bytes([10, len(node)]) + node + bytes([10, len(leaf)]) + leaf)
        >>> graph.tensors["k"].paths
        (('w',),)
    """
    nodes = decode(data).messages(1)
    edges = [_children(node, len(nodes)) for node in nodes]
    paths = _paths(edges)
    attributes = [node.messages(2) for node in nodes]
    tensors: dict[str, TrackedTensor] = {}
    for found, own in zip(paths, attributes, strict=True):
        for attribute in own:
            _add(tensors, TrackedTensor(attribute.text(3), attribute.text(1), attribute.text(2), found))
    for key, slot in _slots(nodes, attributes, paths):
        tensors[key] = replace(tensors[key], slot=slot)
    return ObjectGraph(MappingProxyType(tensors), frozenset(name for held in edges[:1] for name, _ in held))


def unescape(name: str) -> str:
    """An edge's name as the object had it, from its form in a checkpoint key.

    Example:
        >>> unescape("a.Sb..c")
        'a/b.c'
    """
    return re.sub(r"\.([.S])", lambda match: "/" if match[1] == "S" else ".", name)


def split_key(key: str) -> ObjectKey | None:
    """The parts of a checkpoint key, or None if it is not object-based.

    Example:
        >>> split_key("model/kernel/.OPTIMIZER_SLOT/optimizer/average/.ATTRIBUTES/VARIABLE_VALUE")
        ObjectKey(path=('model', 'kernel'), attribute='VARIABLE_VALUE', slot='average', optimizer=('optimizer',))
    """
    head, found, attribute = f"/{key}".partition(f"/{ATTRIBUTES}/")
    if not found:
        return None
    path, found, slot = head.partition(f"/{OPTIMIZER_SLOT}/")
    names = _unescaped(path)
    if not found:
        return ObjectKey(names, unescape(attribute))
    *optimizer, name = _unescaped(f"/{slot}")
    return ObjectKey(names, unescape(attribute), name, tuple(optimizer))


def _unescaped(path: str) -> ObjectPath:
    return tuple(unescape(name) for name in path.split("/")[1:])


def _add(tensors: dict[str, TrackedTensor], tensor: TrackedTensor) -> None:
    """Add a tensor; where several objects share a key, they share its paths."""
    if not tensor.key:
        return
    if known := tensors.get(tensor.key):
        paths = sorted({*known.paths, *tensor.paths}, key=lambda path: (len(path), path))
        tensor = replace(known, full_name=known.full_name or tensor.full_name, paths=tuple(paths[:PATH_LIMIT]))
    tensors[tensor.key] = tensor


def _children(node: Message, count: int) -> list[tuple[str, int]]:
    """The edges of a node as (name, node), by name."""
    return sorted((edge.text(2), _node_id(edge, 1, count)) for edge in node.messages(1))


def _node_id(message: Message, field: int, count: int) -> int:
    if 0 <= (node := message.integer(field)) < count:
        return node
    raise WireError(f"expected the number of one of {count} objects, received {node}")


def _slots(
    nodes: list[Message], attributes: list[list[Message]], paths: list[tuple[ObjectPath, ...]]
) -> Iterator[tuple[str, Slot]]:
    """The slots of all optimizers, by the checkpoint key of the slot variable."""
    for optimizer, node in enumerate(nodes):
        for slot in node.messages(3):
            owner = attributes[_node_id(slot, 1, len(nodes))]
            if owner and (variable := owner[0].text(3)):
                where = paths[optimizer][0] if paths[optimizer] else ()
                for attribute in attributes[_node_id(slot, 3, len(nodes))]:
                    if key := attribute.text(3):
                        yield key, Slot(variable, slot.text(2), where)


@dataclass(frozen=True, slots=True)
class _Step:
    """One way to a node, as the way to its parent plus one edge: ways that begin alike share memory."""

    node: int
    name: str
    before: _Step | None

    def back(self) -> Iterator[_Step]:
        step: _Step | None = self
        while step is not None:
            yield step
            step = step.before

    def path(self) -> ObjectPath:
        return tuple(step.name for step in self.back())[-2::-1]


def _paths(edges: list[list[tuple[str, int]]]) -> list[tuple[ObjectPath, ...]]:
    """Of each node, the paths from the root without cycles, shortest first, then alphabetical.

    Breadth first and level by level: a level is in alphabetical order because the one before it is and edges are.
    """
    found: defaultdict[int, list[_Step]] = defaultdict(list)
    level = [_Step(0, "", None)] if edges else []
    for _ in range(_DEPTH_LIMIT):
        kept = []
        for step in level:
            if len(found[step.node]) < PATH_LIMIT:
                found[step.node].append(step)
                kept.append(step)
        level = [child for step in kept for child in _extended(step, edges[step.node])]
    return [tuple(step.path() for step in found[node]) for node in range(len(edges))]


def _extended(step: _Step, edges: list[tuple[str, int]]) -> Iterator[_Step]:
    seen = {before.node for before in step.back()}
    return (_Step(node, name, step) for name, node in edges if node not in seen)
