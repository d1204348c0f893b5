"""``ema.evaluate`` and ``ema.predict``: Keras' own loops with the averaged weights, which never touch the live ones.

Exchanging weights in the model is no way here, because another thread may be training it. A shell, a model whose own
variables are copies of the averaged values, runs the followed model in a scope in which each weight reads as its copy.
Because the copies are variables of a model, Keras hands them to its compiled functions as it does with all others.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from polyak.errors import ModelError
from polyak.forks import new_lock
from polyak.frameworks.described import describe
from polyak.frameworks.exchange import patiently
from polyak.frameworks.keras_shell import Shell, compiled_like
from polyak.frameworks.stateful import Ref, StatefulAverage

_TESTS = ("test_step", "compute_loss", "compute_metrics", "get_metrics_result", "make_test_function", "evaluate")
_PREDICTS = ("predict_step", "make_predict_function", "predict")
# Those that code of a user's also sets on one model alone.
_STEPS = ("test_step", "predict_step", "compute_loss", "compute_metrics")
# Seconds to wait for a train step that holds the average; it may itself be waiting for its data.
_PATIENCE = 5.0
_TRIES = 1000


@dataclass(frozen=True, slots=True)
class Seen:
    """The variables of a model by path, and the values with which it is to run."""

    variables: Mapping[str, Any]
    values: Mapping[str, Any]


class ViewedByKeras(StatefulAverage):
    """An average of a Keras model that runs Keras' loops beside the model.

    Attributes:
        view: holds the shell, where TensorFlow and Keras do not look for variables.
    """

    view: Ref

    @abstractmethod
    def pairing(self) -> object:
        """An object that is another one once the average follows other variables."""

    @abstractmethod
    def seen(self) -> Seen:
        """The model's variables, and copies of the averaged values in their dtypes; what is left out as it is now."""

    @abstractmethod
    def _fresh(self) -> object:
        """What is followed, after a look at all weights. Raises ModelError where the model has new ones."""

    def refuse_changed(self) -> None:
        """``fresh_to_run`` if the model has other variables than at the last look: that is slow beside a small call."""
        now, view = list(self.followed().variables), self.view.value
        if list(map(id, now)) != list(map(id, view.looked)):
            self.fresh_to_run()
            view.looked = now

    def fresh_to_run(self) -> object:
        """``_fresh``, for a model that is given averaged values. Raises ModelError where it would run raw ones, too."""
        return self._fresh()

    @abstractmethod
    def same(self, one: Any, other: Any) -> bool:
        """Whether two arrays of the backend agree in all values."""

    def evaluate(self, x: Any = None, y: Any = None, **asked: Any) -> Any:
        """``model.evaluate`` with the averaged weights, beside the model: it is never touched.

        The result is that of ``with ema.applied(): model.evaluate(x, y)``. Loss and metrics are those of
        ``model.compile``, with a state of their own, so that another thread may train the model meanwhile: all
        weights are then those after one and the same update.

        Args:
            x, y: as ``model.evaluate`` takes them, as all other arguments.

        Raises:
            ModelError: the model has a test step, a loss or metrics of its own code, or is not compiled.

        Example:
            >>> import keras, numpy as np, polyak
            >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            >>> model.compile("sgd", "mse")
            >>> ema = polyak.EMA(model, decay=0.9)
            >>> x, y = np.ones((4, 2)), np.ones((4, 1))
            >>> with ema.applied():
            ...     applied = model.evaluate(x, y, verbose=0)
            >>> ema.evaluate(x, y, verbose=0) == applied
            True
        """
        model = self.followed()
        _refuse_own_code(model, "evaluate", _TESTS)
        if not model.compiled:
            raise ModelError(f"{describe(model)}: expected a compiled model", hint="call model.compile(loss=...) first")
        _refuse_own_metrics(model)
        return self._run(lambda shell: shell.evaluate(x, y, **asked))

    def predict(self, x: Any, **asked: Any) -> Any:
        """``model.predict`` with the averaged weights, beside the model: it is never touched.

        Args:
            x: as ``model.predict`` takes it, as all other arguments.

        Raises:
            ModelError: the model has a predict step of its own.

        Example:
            >>> import keras, numpy as np, polyak
            >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            >>> ema = polyak.EMA(model, decay=0.9)
            >>> ema.predict(np.ones((4, 2)), verbose=0).shape
            (4, 1)
        """
        _refuse_own_code(self.followed(), "predict", _PREDICTS)
        return self._run(lambda shell: shell.predict(x, **asked))

    def _run(self, verb: Callable[[Any], Any]) -> Any:
        """One caller at a time: a shell has one set of copies."""
        self.fresh_to_run()
        view: View = self.view.value
        with view.lock:
            seen = self.collected(_PATIENCE)
            return verb(view.shell(self.followed(), self.pairing(), seen))

    def collected(self, patience: float) -> Seen:
        """Values that all belong to one moment, whatever another thread does to the average meanwhile.

        Args:
            patience: seconds to wait for a train step that holds the average.
        """
        with patiently([self], patience) as had:
            return self.seen() if had else self._collected_twice()

    def _collected_twice(self) -> Seen:
        """A train step that waits for its data moves nothing: two readings that agree are of one moment."""
        before = self.seen()
        for _ in range(_TRIES):
            now = self.seen()
            if all(self.same(value, before.values[path]) for path, value in now.values.items()):
                return now
            before = now
            time.sleep(0.001)
        raise ModelError(
            f"{self.label}: expected a moment between two updates to read it, received none",
            hint="call this from the thread that trains",
        )


class View:
    """The shell of an average, made anew once the model is compiled anew or the average follows other variables."""

    def __init__(self) -> None:
        self.lock = new_lock()
        self.looked: Sequence[Any] = ()  # the model's variables at the last look at their names
        self._made_for: tuple[Any, ...] = ()
        self._shell: Any = None

    def shell(self, model: Any, pairing: object, seen: Seen) -> Any:
        """The shell with these values in its copies. Raises ModelError if the model's metrics cannot be made anew."""
        now = (pairing, *_compiled_as(model))
        if len(now) != len(self._made_for) or any(a is not b for a, b in zip(now, self._made_for, strict=True)):
            self._shell = compiled_like(model, Shell(model, seen.variables))
            self._made_for = now
        self._shell.set_copies(seen.values)
        return self._shell


def _compiled_as(model: Any) -> tuple[Any, ...]:
    """What is other after ``model.compile``, or after one of its settings was changed."""
    if not model.compiled:
        return ()
    return (model._compile_config, model.run_eagerly, model.jit_compile, model.steps_per_execution)


def _refuse_own_code(model: Any, verb: str, names: Iterable[str]) -> None:
    """The shell runs Keras' own loop: what a model does otherwise there would be left out."""
    if not isinstance(model, keras.Model):
        raise ModelError(
            f"ema.{verb}: expected an average of a keras.Model, received one of {describe(model)}",
            hint="call the average itself: ema(x)",
        )
    for name in names:
        if getattr(type(model), name) is not getattr(keras.Model, name) or (name in _STEPS and name in vars(model)):
            _refuse(model, verb, f"a method {name}() of its own, in which the live weights would be used")


def _refuse_own_metrics(model: Any) -> None:
    """Metrics that the model or a layer holds would be moved by what the shell evaluates."""
    inner = [m for layer in model._flatten_layers() if layer is not model for m in layer._metrics]
    for metric in (*model._metrics, *inner):
        _refuse(model, "evaluate", f"the metric {metric.name!r}, which is in an attribute and not in compile(metrics=)")


def _refuse(model: Any, verb: str, received: str) -> None:
    raise ModelError(
        f"ema.{verb}: expected a model that leaves {verb} to Keras; {describe(model)} has {received}",
        hint=f"use `with ema.applied(): model.{verb}(...)`, while no other thread trains the model",
    )
