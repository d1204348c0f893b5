"""Where Keras puts each weight of a live model in a ``.weights.h5`` file: a walk in the manner of its ``saving_lib``.

Keras' own walk is private and reads every property of every object; this one gives the same paths and touches
the layers alone. The tests hold it against the files that Keras writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from types import ModuleType
from typing import Any

from polyak.frameworks.keras_anatomy import Flavour, snake_case
from polyak.frameworks.keras_wrapped import tensors_of


@dataclass(frozen=True, slots=True)
class Saved:
    """The place of one weight in a file, and the explicit names of the layers on the way to it.

    A weight that several layers hold is stored ``again`` by each of them, and each of them asks for it.
    """

    path: str
    names: tuple[str, ...] = ()
    again: tuple[str, ...] = ()

    def __truediv__(self, step: str) -> Saved:
        return Saved(f"{self.path}/{step}" if self.path else step, self.names)


@dataclass(frozen=True, slots=True)
class Manner:
    """How one of the two packages walks.

    Attributes:
        counted: whether an object of a list takes a number among those of its class.
        own: the variables that a layer itself stores, by their keys.
        order: the attributes of an object in the order of the visit.
        nested: lists in lists are entered.
        again: what was visited before takes a number once more.
    """

    counted: Callable[[object], bool]
    own: Callable[[Any], Mapping[str, Any]]
    order: Callable[[Any], list[str]]
    nested: bool
    again: bool


@dataclass(slots=True)
class _Walk:
    flavour: Flavour
    manner: Manner
    seen: set[int] = field(default_factory=set)

    def layer(self, layer: Any, at: Saved) -> Iterator[tuple[int, Saved]]:
        if id(layer) in self.seen:
            return
        self.seen.add(id(layer))
        for key, value in self.manner.own(layer).items():
            yield id(value), at / "vars" / key
        for name in self.manner.order(layer):
            try:
                held = getattr(layer, name)
            except Exception:  # a property of the user's may raise anything; Keras passes over it, too
                continue
            if self.flavour.is_layer(held):
                yield from self.layer(held, self._named(at / name, held))
            elif isinstance(held, (list, dict, tuple)):
                yield from self.container(held, at / name)

    def container(self, held: Any, at: Saved, above: frozenset[int] = frozenset()) -> Iterator[tuple[int, Saved]]:
        """Objects in a list are told apart by their class and their number; keys of dictionaries do not count."""
        if id(held) in above:
            return  # it holds itself
        counts: Counter[str] = Counter()
        for item in list(held.values()) if isinstance(held, dict) else held:
            nested = isinstance(item, (list, dict, tuple)) and self.manner.nested
            if not nested and (not self.manner.counted(item) or (id(item) in self.seen and not self.manner.again)):
                continue
            family = "container" if nested else snake_case(type(item).__name__)
            step = f"{family}_{counts[family]}" if counts[family] else family
            counts[family] += 1
            if nested:
                yield from self.container(item, at / step, above | {id(held)})
            elif self.flavour.is_layer(item):
                yield from self.layer(item, self._named(at / step, item))

    def _named(self, at: Saved, layer: Any) -> Saved:
        name = self.flavour.explicit_name(layer)
        return at if name is None else Saved(at.path, (*at.names, name))


def saved_places(model: Any, flavour: Flavour) -> Mapping[int, Saved]:
    """The place of every variable that Keras would write, by the variable's id; the first, where there are several."""
    manner = _keras3(flavour.module) if flavour.module.__name__ == "keras" else _legacy(flavour.module)
    places: dict[int, Saved] = {}
    for variable, place in _Walk(flavour, manner).layer(model, Saved("")):
        first = places.setdefault(variable, place)
        if first is not place:
            places[variable] = replace(first, again=(*first.again, place.path))
    return places


@cache
def _keras3(keras: ModuleType) -> Manner:
    from keras.src.saving.keras_saveable import KerasSaveable

    skipped = _bare(keras) | {"_self_unconditional_dependency_names"}  # TensorFlow's list, which Keras passes over

    def order(layer: Any) -> list[str]:
        first = ["layers"] if layer._obj_type() in ("Sequential", "Functional") else []
        names = sorted(set(dir(layer)) - skipped, key=lambda n: f"~{n}" if n.startswith("_") else n)
        return [*first, *names]

    def own(layer: Any) -> dict[str, Any]:
        """What Keras would store: the variables themselves, or what a layer makes of them, which is no place of one."""
        store: dict[str, Any] = {}
        try:
            layer.save_own_variables(store)
        except Exception:  # the user's own way to store may want a real file; what it stores has no place then
            return {}
        return {**store, **tensors_of(layer)}

    return Manner(lambda item: isinstance(item, KerasSaveable), own, order, nested=True, again=True)


@cache
def _legacy(tf_keras: ModuleType) -> Manner:
    skipped = _bare(tf_keras)
    kinds = (
        tf_keras.layers.Layer,
        tf_keras.optimizers.Optimizer,
        tf_keras.metrics.Metric,
        tf_keras.losses.Loss,
    )

    def order(layer: Any) -> list[str]:
        return sorted(set(dir(layer)) - skipped, reverse=True)

    def own(layer: Any) -> dict[str, Any]:
        """By Keras' own way to store them, in which the values are no variables any more."""
        if type(layer).save_own_variables is not tf_keras.layers.Layer.save_own_variables:
            return {}
        return {str(i): v for i, v in enumerate([*layer._trainable_weights, *layer._non_trainable_weights])}

    return Manner(lambda item: isinstance(item, kinds), own, order, nested=False, again=False)


def _bare(keras: ModuleType) -> frozenset[str]:
    """Attributes that every layer and model has: none holds a layer that ``layers`` does not hold.

    The two have names, so that they use up no automatic number of the user's layers.
    """
    bare = (keras.layers.Layer(name="polyak"), keras.Model(name="polyak"))
    return frozenset({*dir(bare[0]), *dir(bare[1]), "_functional", "_operations"} - {"layers"})
