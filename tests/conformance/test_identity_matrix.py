"""For every change of FORMATS.md 1.4 between two instances: each weight arrives at its layer, or nothing is written.

All layers have one shape, so that a wrong pairing shows only in the values. A builder labels its layers; a label means
the same layer on both sides, and ``fill`` gives each label its own values. Every row runs twice: within this process,
and through files that a process with another history of layers wrote (the table's last row).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import polyak
from polyak.errors import AmbiguousMatch, MissingWeight, PolyakError, UnexpectedWeight

WIDTH = 4
SAMPLE = np.ones((2, WIDTH), np.float32)
ARRIVES = None

Labelled = dict[str, layers.Layer]
Built = tuple[keras.Model | tf.Module, Labelled]
Values = dict[str, list[np.ndarray]]


class Block(layers.Dense):
    pass


class Renamed(layers.Dense):
    pass


def dense(cls: type[layers.Dense] = layers.Dense, name: str | None = None) -> layers.Dense:
    return cls(WIDTH, name=name)


def denses(labels: str, names: Mapping[str, str] | None = None, cls: type[layers.Dense] = layers.Dense) -> Labelled:
    return {label: dense(cls, (names or {}).get(label)) for label in labels}


def chain(held: Labelled, before: str = "") -> list[layers.Layer]:
    """The layers in order, with dropout before one of them."""
    return [x for label, layer in held.items() for x in ([layers.Dropout(0.1)] if label == before else []) + [layer]]


# Models


def sequential(held: Labelled, before: str = "") -> Built:
    return keras.Sequential([keras.Input((WIDTH,)), *chain(held, before)]), held


def functional(held: Labelled, before: str = "") -> Built:
    x = y = keras.Input((WIDTH,))
    for layer in chain(held, before):
        y = layer(y)
    return keras.Model(x, y), held


def branches(held: Labelled, order: str) -> Built:
    """Branches a and b, made in this order and added in the given one, then c."""
    x = keras.Input((WIDTH,))
    outputs = {label: held[label](x) for label in "ab"}
    return keras.Model(x, held["c"](layers.Add()([outputs[label] for label in order]))), held


class Subclassed(keras.Model):
    """Holds whatever it is given in attributes, in this order."""

    def __init__(self, attributes: Mapping[str, Any]) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)

    def call(self, x: Any) -> Any:
        for layer in self._flatten_layers(include_self=False, recursive=False):
            x = layer(x)
        return x


def attributes(held: Labelled, names: Sequence[str] | None = None) -> Built:
    return Subclassed(dict(zip(names or held, held.values(), strict=True))), held


def listed(held: Labelled, before: str = "", order: str = "") -> Built:
    blocks = [held[label] for label in order] or chain(held, before)
    return Subclassed({"blocks": blocks}), held


class Part(tf.Module):
    """What has no name and no number, so that only the order among those that own weights speaks for it."""

    def __init__(self, layer: layers.Layer) -> None:
        super().__init__()
        self.layer = layer

    def __call__(self, x: Any) -> Any:
        return self.layer(x)


class Parts(tf.Module):
    def __init__(self, parts: list[Part]) -> None:
        super().__init__()
        self.parts = parts

    def __call__(self, x: Any) -> Any:
        for part in self.parts:
            x = part(x)
        return x


def modules(held: Labelled, before: str = "") -> Built:
    return Parts([Part(layer) for layer in chain(held, before)]), held


def keyed(held: Labelled) -> Built:
    return Subclassed({"d": dict(held)}), held


def nested(held: Labelled) -> Built:
    inner = keras.Sequential([keras.Input((WIDTH,)), held["a"], held["b"]])
    return Subclassed({"net": inner, "rest": [held["c"]]}), held


@dataclass(frozen=True)
class Row:
    """One change.

    Attributes:
        source, target: how both models are made.
        refused: the error that a transfer without further words must raise; ARRIVES if none.
        told: what a caller then says, as the error's hint suggests, to get every weight to its layer.
        added: the label that only the target has.
    """

    source: Callable[[], Built]
    target: Callable[[], Built]
    refused: type[PolyakError] | None = ARRIVES
    told: tuple[Mapping[str, Any], ...] = ()
    added: str = ""


ABC = "abc"
NAMED = {"a": "left", "b": "right", "c": "out"}
OTHER = {"a": "one", "b": "two", "c": "three"}
STRUCTURE, POSITION = {"by": "structure"}, {"by": "position"}

ROWS: dict[str, Row] = {
    "second instance, functional": Row(lambda: functional(denses(ABC)), lambda: functional(denses(ABC))),
    "second instance, Sequential": Row(lambda: sequential(denses(ABC)), lambda: sequential(denses(ABC))),
    "second instance, subclassed": Row(lambda: attributes(denses(ABC)), lambda: attributes(denses(ABC))),
    "second instance, list of layers": Row(lambda: listed(denses(ABC)), lambda: listed(denses(ABC))),
    "second instance, dict of layers": Row(lambda: keyed(denses(ABC)), lambda: keyed(denses(ABC))),
    "second instance, nested": Row(lambda: nested(denses(ABC)), lambda: nested(denses(ABC))),
    "layers renamed, functional": Row(
        lambda: functional(denses(ABC, NAMED)),
        lambda: functional(denses(ABC, OTHER)),
        MissingWeight,
        (POSITION, {"rename": {"left/*": "one/*", "right/*": "two/*", "out/*": "three/*"}}),
    ),
    "layers named, which were not, Sequential": Row(
        lambda: sequential(denses(ABC)),
        lambda: sequential(denses(ABC, NAMED)),
        MissingWeight,
        (POSITION, {"rename": {"dense/*": "left/*", "dense_1/*": "right/*", "dense_2/*": "out/*"}}),
    ),
    "layers renamed, subclassed": Row(lambda: attributes(denses(ABC, NAMED)), lambda: attributes(denses(ABC, OTHER))),
    "layers renamed, in a list": Row(lambda: listed(denses(ABC, NAMED)), lambda: listed(denses(ABC, OTHER))),
    "names exchanged, in a list": Row(
        lambda: listed(denses(ABC, NAMED)),
        lambda: listed(denses(ABC, {"a": "right", "b": "left", "c": "out"})),
        AmbiguousMatch,
        ({"by": "path"}, STRUCTURE, POSITION),
    ),
    "names exchanged, subclassed": Row(
        lambda: attributes(denses(ABC, NAMED)),
        lambda: attributes(denses(ABC, {"a": "right", "b": "left", "c": "out"})),
        AmbiguousMatch,
        ({"by": "path"}, STRUCTURE, POSITION),
    ),
    "Dropout inserted, functional": Row(lambda: functional(denses(ABC)), lambda: functional(denses(ABC), before="b")),
    "Dropout inserted, Sequential": Row(lambda: sequential(denses(ABC)), lambda: sequential(denses(ABC), before="b")),
    "Dropout inserted, in a list": Row(
        lambda: listed(denses("abcd")),
        lambda: listed(denses("abcd"), before="b"),
        AmbiguousMatch,
        (STRUCTURE, POSITION),
    ),
    "Dropout inserted, in a list of modules": Row(
        lambda: modules(denses("abcd")),
        lambda: modules(denses("abcd"), before="b"),
        AmbiguousMatch,
        (STRUCTURE,),
    ),
    "Dropout removed, in a list": Row(
        lambda: listed(denses("abcd"), before="b"),
        lambda: listed(denses("abcd")),
        AmbiguousMatch,
        (STRUCTURE, POSITION),
    ),
    "Dropout moved, in a list": Row(
        lambda: listed(denses("abcd"), before="b"),
        lambda: listed(denses("abcd"), before="d"),
        AmbiguousMatch,
        (STRUCTURE, POSITION),
    ),
    "attributes created in another order": Row(lambda: attributes(denses(ABC)), lambda: attributes(denses("cab"))),
    "attribute renamed": Row(
        lambda: attributes(denses(ABC), ["first", "second", "out"]),
        lambda: attributes(denses(ABC), ["first", "second", "head"]),
        MissingWeight,
        ({"rename": {"out/*": "head/*"}}, POSITION),
    ),
    "dict insertion order changed": Row(lambda: keyed(denses(ABC)), lambda: keyed(denses("bca"))),
    "list order changed, automatic names": Row(
        lambda: listed(denses(ABC)),
        lambda: listed(denses(ABC), order="bac"),
        AmbiguousMatch,
        ({"by": "creation"},),
    ),
    "list order changed, explicit names": Row(
        lambda: listed(denses(ABC, NAMED)),
        lambda: listed(denses(ABC, NAMED), order="bac"),
        AmbiguousMatch,
        ({"by": "name"},),
    ),
    "layer class renamed, in a list": Row(
        lambda: listed(denses(ABC, cls=Block)), lambda: listed(denses(ABC, cls=Renamed))
    ),
    "layer class renamed, subclassed": Row(
        lambda: attributes(denses(ABC, cls=Block)), lambda: attributes(denses(ABC, cls=Renamed))
    ),
    "layer class renamed, functional": Row(
        lambda: functional(denses(ABC, cls=Block)),
        lambda: functional(denses(ABC, cls=Renamed)),
        MissingWeight,
        (STRUCTURE, POSITION, {"rename": {"block*": "renamed*"}}),
    ),
    "branches swapped, automatic names": Row(
        lambda: branches(denses(ABC), "ab"),
        lambda: branches(denses(ABC), "ba"),
        AmbiguousMatch,
        ({"by": "creation"},),
    ),
    "branches swapped, explicit names": Row(
        lambda: branches(denses(ABC, NAMED), "ab"), lambda: branches(denses(ABC, NAMED), "ba")
    ),
    "layer added at the end": Row(
        lambda: sequential(denses(ABC)),
        lambda: sequential(denses("abcd")),
        MissingWeight,
        ({"exclude": "dense_3/*"},),
        added="d",
    ),
    "layer added at the start": Row(
        lambda: attributes(denses("bcd")),
        lambda: attributes(denses("abcd")),
        MissingWeight,
        ({"exclude": "a/*"},),
        added="a",
    ),
    "layer removed from the end": Row(
        lambda: listed(denses("abcd")), lambda: listed(denses(ABC)), UnexpectedWeight, ({"exclude": "blocks/3/*"},)
    ),
}


def fill(held: Labelled) -> None:
    """Values that tell the label."""
    for label, layer in held.items():
        layer.set_weights([np.full(w.shape, ord(label) + i / 8, np.float32) for i, w in enumerate(layer.weights)])


def values(held: Labelled) -> Values:
    return {label: layer.get_weights() for label, layer in held.items()}


def built(make: Callable[[], Built]) -> Built:
    model, held = make()
    model(SAMPLE)
    return model, held


def write_sources(folder: Path) -> None:
    """Every row's source as a file, from a process that made other layers first."""
    keras.Sequential([keras.Input((1,)), layers.Dense(1), layers.Dropout(0.1), Block(1), layers.Dense(1)])
    for name, row in reversed(ROWS.items()):
        model, held = built(row.source)
        fill(held)
        polyak.save(model, folder / f"{name}.safetensors")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    subprocess.run([sys.executable, __file__, str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture(params=["instance", "process"])
def source_of(request: pytest.FixtureRequest) -> Callable[[str], Any]:
    """The source of a row, from this process or from the other one."""
    if request.param == "process":
        folder = request.getfixturevalue("files")
        return lambda name: folder / f"{name}.safetensors"

    def here(name: str) -> Any:
        model, held = built(ROWS[name].source)
        fill(held)
        return model

    return here


@pytest.mark.parametrize("name", ROWS)
def test_each_weight_arrives_at_its_own_layer_or_nothing_is_written(name: str, source_of: Callable[[str], Any]) -> None:
    row = ROWS[name]
    source = source_of(name)
    target, held = built(row.target)
    before = values(held)
    if row.refused is ARRIVES:
        receipt = polyak.transfer(source, target)
        assert len(receipt.moved) == 2 * len(held)
        assert_right(held, before, row.added)
    else:
        with pytest.raises(row.refused) as error:
            polyak.transfer(source, target)
        assert type(error.value) is row.refused
        assert error.value.hint
        assert_same(values(held), before)
        for told in row.told:
            target, held = built(row.target)
            before = values(held)
            polyak.transfer(source, target, **told)
            assert_right(held, before, row.added)


def assert_right(held: Labelled, before: Values, added: str) -> None:
    """Each layer holds what ``fill`` gave to its label in the source; an added one holds what it held before."""
    arrived = values(held)
    fill(held)
    assert_same(arrived, values(held) | {label: before[label] for label in added})


def assert_same(found: Values, expected: Values) -> None:
    for label, arrays in expected.items():
        for a, b in zip(found[label], arrays, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"layer {label}")


if __name__ == "__main__":
    write_sources(Path(sys.argv[1]))
