"""What transfers read and write where Keras runs on JAX or PyTorch: variables, raw weights, shadows."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np

from polyak.errors import Applied, ModelError
from polyak.frameworks.described import Described
from polyak.frameworks.engine import Engine
from polyak.frameworks.exchange import holds_average, moment_of, raw_value
from polyak.frameworks.keras_derived import settle
from polyak.frameworks.keras_places import places_of
from polyak.frameworks.keras_scope import refuse_scoped
from polyak.frameworks.stateless import StatelessAverage
from polyak.snapshot import Array
from polyak.transfer.places import Place
from polyak.transfer.target import PutBack, Target
from polyak.weights import Kind, Weight


class KerasVariables(Target):
    """Keras variables under structural paths. While an average is applied they read as what the model computes with."""

    layout = "keras"

    def __init__(self, model: Described, engine: Engine) -> None:
        self.label = model.label
        self.variables = model.variables
        self._weights = as_held(model, engine).weights
        self._trained = {w.path for w in model.weights if w.kind is Kind.TRAINABLE}
        self._engine = engine

    @property
    def weights(self) -> tuple[Weight, ...]:
        return self._weights

    def read(self, path: str) -> Array:
        return np.array(self.view(path))

    def view(self, path: str) -> Array:
        """The value; where devices hold copies of what is trained, that which all of them have. Raises ModelError."""
        refuse_scoped(f"weight {path!r} of {self.label}")
        value = self._engine.value(self.variables[path])
        seen = _seen(self._engine, value, f"weight {path!r} of {self.label}")
        if path in self._trained and self._engine.drifted(value):
            raise ModelError(
                f"weight {path!r} of {self.label}: expected one value on all devices that hold a copy, received others",
                hint="they have drifted apart: an update ran on some devices only; go on from a file",
            )
        return seen

    def home(self, path: str) -> object:
        return self._engine.home(self.variables[path])

    def write(self, path: str, value: Array) -> None:
        variable = self.variables[path]
        self._engine.hands.put(variable, self._engine.wrapped(value, self._engine.value(variable)))

    def moment(self) -> AbstractContextManager[None]:
        """Between two updates of the averages that follow the variables."""
        return moment_of(self.variables.values())

    def hold(self, path: str) -> PutBack:
        variable = self.variables[path]
        refuse_scoped(f"weight {path!r} of {self.label}")
        self._engine.refuse_traced(None)
        if holds_average(variable):
            raise Applied(
                f"weight {path!r} of {self.label}: an average is applied; what is written now would be lost",
                hint="leave the `with ema.applied()` block first",
            )
        held = self._engine.hands.take(variable)

        def put_back() -> None:
            self._engine.hands.put(variable, held)

        return put_back


class ModelVariables(KerasVariables):
    """The variables of a model, whose layers may have computed constants from them."""

    def __init__(self, model: Any, held: Described, engine: Engine) -> None:
        super().__init__(held, engine)
        self._model = model

    def places(self) -> Mapping[str, Place]:
        return places_of(self._model)

    def settle(self) -> None:
        settle(self._model._flatten_layers())


class RawVariables(KerasVariables):
    """The raw weights that an average follows; they read as such also while it is applied."""

    def read(self, path: str) -> Array:
        what = f"weight {path!r} of {self.label}"
        refuse_scoped(what)
        return np.array(_seen(self._engine, raw_value(self.variables[path], self._engine.hands), what))

    def view(self, path: str) -> Array:
        return self.read(path) if holds_average(self.variables[path]) else super().view(path)


class Shadows(Target):
    """The shadows of an average."""

    layout = "keras"

    def __init__(self, average: StatelessAverage, weights: tuple[Weight, ...]) -> None:
        self.label = average.label
        self._average = average
        self._weights = weights

    @property
    def weights(self) -> tuple[Weight, ...]:
        return self._weights

    def read(self, path: str) -> Array:
        return np.array(self.view(path))

    def view(self, path: str) -> Array:
        shadow = self._average.held.shadows[path]
        return _seen(self._average.engine, shadow, f"weight {path!r} of {self.label}")

    def write(self, path: str, value: Array) -> None:
        shadows = self._average.held.shadows
        shadows[path] = self._average.engine.from_numpy(value, shadows[path])

    def hold(self, path: str) -> PutBack:
        # Writing puts a new array in the place of the old one, which stays as it is.
        old = self._average.held.shadows[path]
        return lambda: self._average.held.shadows.__setitem__(path, old)


def as_held(model: Described, engine: Engine) -> Described:
    """Weights in the dtypes of their arrays, which may be others now than their variables were made with."""

    def held(w: Weight) -> Weight:
        dtype = engine.dtype_of(model.variables[w.path])
        return (
            w if w.dtype == dtype else replace(w, dtype=dtype, evidence=w.evidence and replace(w.evidence, dtype=dtype))
        )

    return replace(model, weights=tuple(map(held, model.weights)))


def _seen(engine: Engine, value: Any, what: str) -> Array:
    """The value, if it can be read here. Raises ModelError."""
    engine.refuse_traced(value)
    engine.refuse_gone(value, what)
    if engine.is_parted(value):
        raise ModelError(
            f"{what}: expected a value that this process can read, received one of which other processes hold parts",
            hint="save with Orbax, which writes the parts of each process, or give each process the whole first: "
            "jax.experimental.multihost_utils.process_allgather(value, tiled=True)",
        )
    return engine.view(value)
