"""Live TensorFlow models: tf.Module, legacy tf_keras models in it, and the variables of Keras 3 on TensorFlow."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import tensorflow as tf

from polyak.averaging.parts import Parts
from polyak.averaging.rules import Rule
from polyak.errors import ModelError, UnbuiltModel, listed
from polyak.frameworks.base import Framework, Tracking
from polyak.frameworks.company import Company
from polyak.frameworks.described import describe, described
from polyak.frameworks.exchange import holds_average, watchers
from polyak.frameworks.finished import finished_in
from polyak.frameworks.keras_anatomy import Flavour, contained, dtype_name, is_complete, kind_of
from polyak.frameworks.keras_derived import settle
from polyak.frameworks.keras_saved import Saved, saved_places
from polyak.frameworks.tensorflow_average import TensorFlowAverage
from polyak.frameworks.tensorflow_exchange import is_of_session
from polyak.frameworks.tensorflow_moving import Moving
from polyak.frameworks.tensorflow_placing import Place
from polyak.frameworks.tensorflow_state import HeldByTensorFlow
from polyak.frameworks.tensorflow_target import Variables
from polyak.frameworks.walk import Anatomy, Found, Own, Sibling, Step, called, leaves, walk
from polyak.manifest import AVERAGE, RAW, State
from polyak.weights import Kind


class TensorFlowFramework(Framework):
    """tf.Module and everything built on it; Keras 3 has a class of its own."""

    holder = HeldByTensorFlow
    aside_hint = "set it yourself in the other instance"

    def owns(self, obj: object) -> bool:
        return isinstance(obj, tf.Module)

    def target(self, model: Any) -> Variables:
        return ModelVariables(model, self.variables(model, {}))

    def variables(self, model: Any, kinds: Mapping[str, Kind]) -> Variables:
        """The model's weights; ``kinds`` overrides kinds by glob."""
        self.refuse_unbuilt(model)
        found, ordered = list(self.find(model)), self.ordered(model)
        self._refuse_of_session(model, found)
        self._refuse_unfound(model, found, ordered)
        made = described(model, [f for f in found if not _is_text(f)], ordered, kinds, self.saved(model))
        native = {path: self.native(variable) for path, variable in made.variables.items()}
        return Variables(made.label, native, made.weights, made.variables)

    def _refuse_unfound(self, model: Any, found: Sequence[Found], ordered: Sequence[Any]) -> None:
        """Raise ModelError for variables that TensorFlow counts and the walk has not come to: it has no path for them.

        Metrics are no part of a model.
        """
        known = {id(f.own.variable) for f in found}
        unfound = [v for v in ordered if id(v) not in known]
        if unfound:
            left = {id(v) for metric in _metrics(model) for v in metric.variables}
            words = [f"{v.name!r} {tuple(v.shape)}" for v in unfound if id(v) not in left]
            if words:
                raise ModelError(
                    f"{describe(model)}: expected each variable in an attribute, a list, a tuple or a dictionary, "
                    f"received {listed(words)} in something else",
                    hint="hold it in a list, too: of a variable in parts, `self.parts = list(sharded.variables)`",
                )

    def _refuse_of_session(self, model: Any, found: Sequence[Found]) -> None:
        """Raise ModelError for variables of TensorFlow 1, which have no values but in a session."""
        for f in found:
            if is_of_session(self.native(f.own.variable)):
                raise ModelError(
                    f"weight {f.step.path!r} of {describe(model)}: expected a variable with a value, received one of a "
                    "graph of TensorFlow 1, which has its value in a session",
                    hint="write it with tf.compat.v1.train.Saver().save(session, prefix), and move it from there: "
                    "polyak.transfer(prefix, model) into a model outside of the graph, or polyak.open(prefix)",
                )

    def role(self, model: Any) -> tuple[str, State | None]:
        """What the model holds now: raw weights, or the values of an average that is applied to it."""
        variables = self.variables(model, {})
        if finished := finished_in(_averages(variables)):
            return AVERAGE, finished.state
        if not any(holds_average(v) for v in variables.variables.values()):
            return RAW, None
        applied = [a for a in _averages(variables) if a.is_applied]
        return AVERAGE, applied[0].state if len(applied) == 1 else None

    def find(self, model: Any) -> Iterator[Found]:
        """The variables of the model, by the walk."""
        return walk(model, Anatomy(own, children))

    def aside(self, model: Any) -> list[str]:
        return [f"{f.step.path!r} is a variable of texts, which is no weight" for f in self.find(model) if _is_text(f)]

    def within(self, model: Any) -> list[Any]:
        """The model and all modules and layers in it, each once."""
        found, waiting = {id(model): model}, [model]
        while waiting:
            new = {id(child): child for _, child in children(waiting.pop()) if id(child) not in found}
            found |= new
            waiting += new.values()
        return list(found.values())

    def ordered(self, model: Any) -> Sequence[Any]:
        """The variables in the framework's own order."""
        return list(model.variables)

    def saved(self, model: Any) -> Mapping[int, Saved]:
        """Where Keras stores each variable, by its id; nothing for what is no Keras model."""
        flavour = flavour_of(model)
        return {} if flavour is None else saved_places(model, flavour)

    def native(self, variable: Any) -> tf.Variable:
        """The TensorFlow variable behind a weight: Keras wraps its own around it, and scopes change what that gives.

        What Keras 2 wraps around it for mixed precision is a variable of TensorFlow, too.
        """
        held = variable if isinstance(variable, tf.Variable) else variable._value
        return held._variable if hasattr(held, "true_dtype") else held

    def is_built(self, model: Any) -> bool:
        """A tf.Module creates its variables itself; only legacy Keras models say whether they did."""
        legacy = _legacy()
        return legacy is None or not legacy.is_layer(model) or bool(model.built)

    def is_complete(self, model: Any) -> bool:
        return self.is_built(model) or is_complete(model)

    def layers(self, model: Any) -> list[Any]:
        return [x for x in self.within(model) if flavour_of(x) is not None]

    def refuse_unbuilt(self, model: Any) -> None:
        if not self.is_complete(model):
            raise UnbuiltModel(
                f"{describe(model)}: expected a built model, received one without weights yet",
                hint="call it once on a batch; a transfer into it takes sample=, an input shape or a sample input",
            )

    def company(self, model: Any) -> Company:
        return Place.of(model, self.variables(model, {}).variables.values()).company

    def track(self, model: Any, rule: Rule | Parts, tracking: Tracking) -> TensorFlowAverage:
        return TensorFlowAverage(self, model, rule, tracking)

    def moving(self, averages: Sequence[TensorFlowAverage]) -> Moving:
        return Moving(averages)

    def build(self, model: Any, sample: Any) -> None:
        """A shape is tried with zeros: Keras' own ``build`` marks a model as built that it could not build."""
        if isinstance(sample, tuple) and all(n is None or isinstance(n, int) for n in sample):
            sample = tf.zeros([1 if n is None else n for n in sample])
        model(sample)

    def call(self, average: TensorFlowAverage, *args: Any, **kwargs: Any) -> Any:
        """Run a twin of the model whose variables hold the averaged values."""
        with average.target.moment() if tf.executing_eagerly() else nullcontext():
            return average.twin()(*args, **kwargs)

    def served(self, average: TensorFlowAverage) -> tuple[Callable[..., Any], Mapping[str, tf.Variable]]:
        """A function that runs the model with the averaged values, and the variables that it reads."""
        twin = average.twin()
        return twin, self.variables(twin, {}).variables

    def is_variable(self, obj: object) -> bool:
        """Whether an object is a variable that ``native`` takes."""
        keras = sys.modules.get("keras")
        wrapped = obj._value if keras is not None and isinstance(obj, keras.Variable) else obj
        return isinstance(wrapped, tf.Variable)


class ModelVariables(Variables):
    """The variables of a model, whose layers may have computed constants from them."""

    def __init__(self, model: Any, held: Variables) -> None:
        super().__init__(held.label, held.variables, held.weights, held.trackables)
        self._model = model

    def settle(self) -> None:
        settle(FRAMEWORK.within(self._model))


def _averages(variables: Variables) -> list[TensorFlowAverage]:
    return [w for w in watchers(variables.variables.values()) if isinstance(w, TensorFlowAverage)]


def _metrics(model: Any) -> list[Any]:
    legacy = _legacy()
    return [] if legacy is None else [m for m in model.submodules if isinstance(m, legacy.module.metrics.Metric)]


def own(obj: Any) -> list[Own]:
    """The variables that one object holds in its attributes, lists and dictionaries."""
    flavour = flavour_of(obj)
    if flavour is not None:
        return flavour.own(obj)
    held = [(k, v) for k, v in _attributes(obj) if not isinstance(v, (tf.Module, TensorFlowAverage))]
    return [Own(path, v, kind) for key, value in held for path, v, kind in _variables(key, value)]


def children(obj: Any) -> Iterator[tuple[Step, Any]]:
    """The modules and layers that one object holds."""
    flavour = flavour_of(obj)
    if flavour is not None:
        yield from flavour.children(obj)
        return
    for key, value in _attributes(obj):
        if _is_module(value):
            yield Step.named(key), value
        else:
            yield from contained(key, value, _is_module, _sibling)


def flavour_of(obj: object) -> Flavour | None:
    """The Keras package that a layer comes from, if it is one and the package is loaded."""
    keras = sys.modules.get("keras")
    for flavour in (Flavour.keras3(keras) if keras else None, _legacy()):
        if flavour is not None and flavour.is_layer(obj):
            return flavour
    return None


def _legacy() -> Flavour | None:
    tf_keras = sys.modules.get("tf_keras")
    return Flavour.legacy(tf_keras) if tf_keras else None


def _is_module(value: object) -> bool:
    return isinstance(value, tf.Module) or flavour_of(value) is not None


def _sibling(key: str, module: Any) -> Sibling:
    flavour = flavour_of(module)
    if flavour is not None:
        return flavour.sibling(key, module)
    # Not module.variables: TensorFlow does not look into Keras layers.
    owns = any(found.own.kind is not Kind.SEED for found in walk(module, Anatomy(own, children)))
    return Sibling(key, None, type(module).__name__, None, owns=owns)


def _attributes(obj: Any) -> list[tuple[str, Any]]:
    """A module's attributes that hold weights or modules, without TensorFlow's own, public ones first."""
    # Of queues TensorFlow counts what is in them, too.
    held = ((k, list(v) if isinstance(v, deque) else v) for k, v in vars(obj).items())
    ours = (kv for kv in held if not kv[0].startswith(("_self_", "_tf_", "_TF_", "_obj_")))
    ordered = sorted(ours, key=lambda kv: (kv[0].startswith("_"), kv[0]))
    found = [(k, k.lstrip("_"), v) for k, v in ordered if any(_is_held(leaf) for _, leaf in leaves(k, v))]
    return [(name, value) for name, (_, _, value) in zip(called(found), found, strict=True)]


def _is_text(found: Found) -> bool:
    return dtype_name(found.own.variable) == "string"


def _is_held(leaf: object) -> bool:
    return FRAMEWORK.is_variable(leaf) or isinstance(leaf, tf.random.Generator) or _is_module(leaf)


def _variables(key: str, value: object) -> Iterator[tuple[str, Any, Kind]]:
    for path, leaf in leaves(key, value):
        if FRAMEWORK.is_variable(leaf):
            yield path, leaf, kind_of(leaf, leaf.trainable)
        elif isinstance(leaf, tf.random.Generator):
            yield f"{path}/state", leaf.state, Kind.SEED


FRAMEWORK = TensorFlowFramework()
