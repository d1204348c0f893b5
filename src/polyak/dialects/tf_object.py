"""TensorFlow 2 checkpoints and SavedModels: what their object graph says.

polyak's averages are found by the note that they leave beside their values. Everything else that is
neither an optimizer's nor a counter is a raw weight under its path in the graph.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import msgspec

from polyak.contents import Contents, Tensor
from polyak.dialects.autonumber import creation_keys
from polyak.dialects.called import roles_of
from polyak.dialects.plain import UNSAID, item
from polyak.dialects.tf_averages import UPDATED, Beside, averages_beside
from polyak.dialects.tf_chains import SEED, Step, keras2_chain, keras3_chain
from polyak.dialects.tf_optimizers import GraphPath, is_within, optimizers
from polyak.dialects.tf_twins import is_of_several, twins_beside
from polyak.manifest import AVERAGE, RAW, Manifest, Memo, State, decode_memo
from polyak.snapshot import Item, Snapshot
from polyak.transfer.places import place
from polyak.weights import Evidence, Kind, Weight, is_floating

OPTIMIZER = "optimizer"
TRAINING = "training"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_EXPORTED, _REPEATED = "variables", "_all_variables"
_METRICS = ("keras_api", "metrics")  # of a SavedModel of Keras 2
_KERAS_2 = re.compile(r"keras_api|layer(_with_weights)?-\d+")
_COUNTER = "save_counter"
_INCOMPLETE = (
    "TensorFlow's own checkpoint of a Keras 3 model lacks the layers that it holds in lists and dictionaries; "
    "save it with an average, or as polyak.tensorflow.Weights(model)"
)


@dataclass(frozen=True, slots=True)
class Found:
    """An average in the graph: the path that leads to it, its note, its counters."""

    path: GraphPath
    memo: Memo
    count: int
    skipped: int

    @property
    def name(self) -> str:
        return "/".join(self.path)

    @property
    def state(self) -> State:
        return State(self.memo.rule, self.count, self.skipped)


@dataclass(frozen=True)
class Graph:
    """The contents with their object graph, looked up in the other direction."""

    contents: Contents

    @cached_property
    def keys(self) -> Mapping[GraphPath, str]:
        """Checkpoint key of every path."""
        return {path: key for key, paths in self.contents.paths.items() for path in paths}

    @cached_property
    def averages(self) -> tuple[Found, ...]:
        """Every average once, though several paths may lead to it."""
        return tuple(self._average(paths[0]) for paths in self._averages)

    @cached_property
    def to_averages(self) -> frozenset[GraphPath]:
        """All paths that lead to averages: one that a model holds may stand beside the model, too."""
        return frozenset(path for paths in self._averages for path in paths)

    @cached_property
    def _averages(self) -> list[list[GraphPath]]:
        """The paths to each average."""
        notes = (self.contents.paths.get(key, ()) for key in self.contents.texts)
        owners = ([path[:-1] for path in paths if path[-1:] == ("memo",)] for paths in notes)
        return sorted(paths for paths in owners if paths and (*paths[0], "count") in self.keys)

    @cached_property
    def texts(self) -> dict[str, str]:
        """What the texts are that are no note of an average."""
        notes = {self.keys[(*a.path, "memo")] for a in self.averages}
        return {key: "a text" for key in self.contents.texts if key not in notes}

    @cached_property
    def slots(self) -> Mapping[str, tuple[str, str]]:
        """Role and name of every optimizer slot, by key."""
        return {s.key: (f"slot:{s.name}", s.weight.removesuffix(_VALUE)) for s in self.contents.slots}

    @cached_property
    def followed(self) -> Mapping[str, Weight]:
        """The raw weights that averages follow, by key, described as the averages describe them."""
        described = {w.path: w for a in self.averages for w in a.memo.weights}
        return {
            key: described.get(path[-1]) or item(RAW, path[-1], self.contents.tensors[key]).weight
            for path, key in self.keys.items()
            if any(path[:-1] == (*a.path, "raw") for a in self.averages)
        }

    @cached_property
    def chained(self) -> Mapping[str, Step]:
        """Weights of Sequential and functional Keras models, whose graph numbers all layers."""
        counters = {*self.steps, self.keys.get((_COUNTER,))}
        paths = {key: self.outside(key) for key in self.contents.tensors if key not in counters}
        names = self.contents.full_names
        found = keras3_chain(paths, names) or keras2_chain(paths, names)
        return found if self.numbers.keys() <= found.keys() else {}  # what an export numbers, it numbers throughout

    @cached_property
    def numbers(self) -> Mapping[str, str]:
        """The number of every weight in the list that an export has of all."""
        numbered = {key: path for path, key in self.keys.items() if path[0] == _EXPORTED and len(path) == 2}
        return {key: f"#{path[1]}" for key, path in numbered.items()} if self.exported else {}

    @cached_property
    def named(self) -> Mapping[str, Step]:
        """Weights that an export numbers, with the names that their layers had, where these tell all of them apart."""
        names = {key: "/".join(self.contents.full_names.get(key, "").split("/")[-2:]) for key in self.numbers}
        if len(set(names.values())) < len(names):
            return {}
        created = creation_keys(names.values())
        return {key: Step(self.numbers[key], self.numbers[key], name, created[name]) for key, name in names.items()}

    @cached_property
    def bare(self) -> Counter[GraphPath]:
        """How many keys would have this path without its leading underscores."""
        firsts = (self.outside(key)[:1] for key in self.contents.tensors)
        return Counter(_bare(path) for paths in firsts for path in paths)

    @cached_property
    def optimizers(self) -> frozenset[GraphPath]:
        return optimizers(self.keys)

    @cached_property
    def steps(self) -> frozenset[str]:
        """Whole numbers that a checkpoint was given beside models, as ``step=tf.Variable(0)``: no part of any."""
        if not is_of_several(self.contents.names):
            return frozenset()
        firsts = {key: paths[0] for key in self.contents.tensors if (paths := self.outside(key))}
        alone = {key for key, path in firsts.items() if len(path) == 1 and path != (_COUNTER,)}
        whole = {key for key in alone if (t := self.contents.tensors[key]).shape == () and not is_floating(t.dtype)}
        return frozenset(whole) if firsts.keys() - alone - {self.keys.get((_COUNTER,))} else frozenset()

    @property
    def exported(self) -> bool:
        """Whether Keras' ``model.export`` wrote this: it numbers all variables in one list."""
        return (_EXPORTED, "0") in self.keys

    def tensor(self, path: GraphPath) -> Tensor:
        return self.contents.tensors[self.keys[path]]

    def paths(self, key: str) -> list[GraphPath]:
        """The paths to a key that do not go through an average."""
        all_paths = self.contents.paths.get(key, ())
        return [p for p in all_paths if not any(p[:depth] in self.to_averages for depth in range(len(p)))]

    def outside(self, key: str) -> list[GraphPath]:
        """The paths to a key that go neither through an average nor through an optimizer."""
        return [p for p in self.paths(key) if not is_within(p, self.optimizers)]

    def listed(self, key: str) -> list[GraphPath]:
        """The paths to a key as one of the variables that an optimizer of Keras 3 updates; an export numbers all."""
        if self.exported:
            return []
        return [p for p in self.paths(key) if p[:-2] in self.optimizers and p[-2] == UPDATED]

    def _average(self, path: GraphPath) -> Found:
        memo = decode_memo(self.contents.texts[self.keys[(*path, "memo")]]())
        count, skipped = (int(self.tensor((*path, name)).read()) for name in ("count", "skipped"))
        return Found(path, memo, count, skipped)


def interpret(contents: Contents) -> Snapshot | None:
    """None unless there is an object graph."""
    if not contents.paths:
        return None
    graph = Graph(contents)
    by_name = roles_of([a.name for a in graph.averages])
    roles = {a.path: by_name[a.name] for a in graph.averages}
    held = {key: tuple(_raw(graph, key)) for key in contents.tensors}
    raw = {key: i for key, items in held.items() for i in items if i.role == RAW}
    slots = averages_beside(contents, raw)
    if not roles and not slots.items:
        slots = twins_beside(contents, raw, {key: graph.outside(key) for key in raw}) or slots
    items = [*_numbered(i for key, of_key in held.items() if key not in slots.keys for i in of_key)]
    items += [replace(i, role=f"{AVERAGE}:{OPTIMIZER}") if roles else i for i in slots.items]
    items += [i for a in graph.averages for i in _shadows(graph, a, roles[a.path])]
    states = {roles[a.path]: a.state for a in graph.averages}
    return Snapshot(items, states, contents.origin, contents.integrity, _written(graph, slots))


def _written(graph: Graph, slots: Beside) -> Manifest:
    """What the file's roles rest on."""
    stated = tuple(
        f"{a.name or 'the root'}: an average of polyak's, by the note beside its values" for a in graph.averages
    )
    unsaid = () if stated or slots.items else (UNSAID,)
    confidence = "inferred" if slots.items else "stated" if stated else "unknown"
    note = _lacking(graph)
    evidence = (*stated, *slots.evidence, *unsaid)
    written = Manifest("TensorFlow", {}, (), note=note, evidence=evidence, confidence=confidence)
    return msgspec.structs.replace(written, source=graph.contents.origin, unread=graph.texts)


def _lacking(graph: Graph) -> str:
    """What the file may lack: nothing where polyak or Keras' export wrote all weights, or the model is of Keras 2."""
    steps = {step for paths in graph.contents.paths.values() for path in paths for step in path}
    if graph.followed or graph.exported or any(map(_KERAS_2.fullmatch, steps)):
        return ""
    return _INCOMPLETE if any(step.startswith("_") for step in steps) else f"if a Keras 3 model is in it: {_INCOMPLETE}"


def _shadows(graph: Graph, average: Found, role: str) -> Iterator[Item]:
    for weight in average.memo.weights:
        path = (*average.path, "shadows", weight.path)
        if path in graph.keys:
            yield Item(role, weight, graph.tensor(path).read)


def _raw(graph: Graph, key: str) -> Iterator[Item]:
    """What one key is, if it is no part of an average: a weight, or state of the training."""
    tensor = graph.contents.tensors[key]
    if key in graph.followed:
        yield Item(RAW, replace(graph.followed[key], dtype=tensor.dtype), tensor.read)
        return
    role, path = graph.slots.get(key) or _place(graph, key)
    if role != RAW:
        yield item(role, path, tensor)
    elif path:
        weight = _weight(graph.chained.get(key) or graph.named.get(key) or _same(path), tensor, _local(graph, key))
        yield Item(RAW, weight, tensor.read, places=_places(graph, key), called=graph.contents.full_names.get(key, ""))


def _places(graph: Graph, key: str) -> tuple[str, ...]:
    return () if graph.exported else tuple(map(place, (*graph.outside(key), *graph.listed(key))))


def _same(path: str) -> Step:
    return Step(path, path, path, path)


def _local(graph: Graph, key: str) -> str:
    return graph.contents.full_names.get(key, "").rsplit("/", 1)[-1]


def _place(graph: Graph, key: str) -> tuple[str, str]:
    """Role and readable path of a key. An empty path: an average's own, or a copy of another key."""
    paths = graph.paths(key)
    outside = graph.outside(key)
    if not paths:
        return (RAW, "") if graph.contents.paths.get(key) else (TRAINING, key)
    if not outside and graph.listed(key):
        return RAW, _readable(graph, (*graph.listed(key)[0], _local(graph, key)))
    if not outside:
        return OPTIMIZER, "/".join(paths[0])
    if outside[0][-1] == _COUNTER or key in graph.steps:
        return TRAINING, outside[0][-1]
    return _exported_place(graph, outside) if graph.exported else (RAW, _readable(graph, outside[0]))


def _readable(graph: Graph, path: GraphPath) -> str:
    """The path as the user wrote it: Keras keeps some attributes under a leading underscore."""
    bare = _bare(path)
    return "/".join(path if graph.bare[bare] > 1 else bare)


def _bare(path: GraphPath) -> GraphPath:
    return tuple(step.lstrip("_") for step in path)


def _exported_place(graph: Graph, paths: list[GraphPath]) -> tuple[str, str]:
    """The number in the list of all variables, which another list of Keras' repeats; what is in neither has a name."""
    numbers = [p[1] for p in paths if p[0] == _EXPORTED and len(p) == 2]
    if numbers or paths[0][0] == _REPEATED:
        return RAW, f"#{numbers[0]}" if numbers else ""
    if paths[0][:2] == _METRICS:
        return TRAINING, "/".join(paths[0])
    return RAW, _readable(graph, paths[0])


def _weight(step: Step, tensor: Tensor, local: str) -> Weight:
    """A weight with the evidence that the file gives."""
    kind = Kind.TRAINABLE if is_floating(tensor.dtype) else Kind.SEED if local == SEED else Kind.COUNTER
    layers = tuple(step.name.split("/")[:-1]) if step.path.startswith("#") else ()
    evidence = Evidence(step.structure, step.name, step.creation, "", local, 0, tensor.dtype, names=layers)
    return Weight(step.path, tensor.shape, tensor.dtype, kind, evidence)


def _numbered(items: Iterator[Item]) -> Iterator[Item]:
    """Numbered weights in the order of their numbers, with their position; random seeds do not count."""
    held = list(items)
    of_export = sorted((i for i in held if i.weight.path.startswith("#")), key=lambda i: int(i.weight.path[1:]))
    yield from (i for i in held if not i.weight.path.startswith("#"))
    position = 0
    for i in of_export:
        evidence = replace(i.weight.evidence, position=position) if i.weight.evidence else None
        position += i.weight.kind is not Kind.SEED
        yield replace(i, weight=replace(i.weight, evidence=evidence))
