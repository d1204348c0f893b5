"""Averages in steps that are pure functions: the state goes in as a tree of arrays and comes out as one."""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from polyak.errors import ModelError, NonFinite, listed
from polyak.frameworks.base import Tree
from polyak.frameworks.described import Described
from polyak.frameworks.engine import Engine, Held, Program, held_from, tree_of
from polyak.frameworks.exchange import raw_value
from polyak.frameworks.keras_outputs import values_of
from polyak.frameworks.keras_scope import refuse_scoped
from polyak.frameworks.keras_wrapped import Buffer
from polyak.frameworks.stateful import StatefulAverage, undisturbed
from polyak.snapshot import Array

_PARTS = {"shadows", "count", "skipped"}
_WIDE = (
    "outside of `with jax.enable_x64(True):` JAX makes float64 of what it reads or computes to float32: read the tree "
    "within it, for example checkpointer.restore(path), and take it there or outside"
)
_GIVE = "give the tree that ema.tree() or ema.stateless_update() returned, in the dtypes that it had"


class StatelessAverage(StatefulAverage):
    """An average whose state is arrays, so that it can pass through a caller's own pure functions."""

    held: Held

    @property
    @abstractmethod
    def engine(self) -> Engine:
        """The library of the arrays."""

    @property
    @abstractmethod
    def raw(self) -> Described:
        """The weights that are followed."""

    @property
    @abstractmethod
    def program(self) -> Program:
        """What one update does."""

    def values(self) -> dict[str, Array]:
        self.engine.refuse_traced(self.held.count)
        return super().values()

    @undisturbed
    def tree(self) -> Tree:
        self.engine.refuse_traced(self.held.count)
        return tree_of(self._copied(self.held))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.target.moment():
            held = self.held
            self.engine.refuse_traced(held.count)
            return self.call_with(held.shadows, *args, **kwargs)

    def stateless_update(self, tree: Tree, trainable_variables: Any, non_trainable_variables: Any = ()) -> Tree:
        model, raw = self.followed(), self.raw.variables
        known = {
            **_by_variable("trainable_variables", model.trainable_variables, trainable_variables),
            **_by_variable("non_trainable_variables", model.non_trainable_variables, non_trainable_variables),
        }
        held = self._state_in(tree, "stateless_update")
        values = {path: known.get(id(raw[path])) for path in held.shadows}
        values |= {path: self.engine.value(raw[path]) for path in values if isinstance(raw[path], Buffer)}
        for path, shadow in held.shadows.items():
            if self.engine.is_gone(values[path]):
                self.engine.refuse_gone(values[path], f"stateless_update() of {self.label}: weight {path!r}")
            if _shape(values[path]) != _shape(shadow):
                raise ModelError(
                    f"stateless_update() of {self.label}: weight {path!r}: expected a value of {_shape(shadow)}, "
                    f"received {_shape(values[path])}",
                    hint="give the values of model.trainable_variables and model.non_trainable_variables as lists in "
                    "their order: [v.value for v in ...]; of a model that has changed, after ema.refresh()",
                )
        return tree_of(self.engine.pure_step(self.program, held, values))

    def stateless_call(self, tree: Tree, *args: Any, **kwargs: Any) -> Any:
        left = [w.path for w in self.raw.weights if w.path not in tree["shadows"]]
        if left:
            raise ModelError(
                f"stateless_call() of {self.label}: expected an average of every weight, received none of {left[0]!r}",
                hint="a rule for it, for example 'copy', puts its present value into the tree",
            )
        self._refuse_gone("stateless_call", held_from(tree))
        return self.call_with(tree["shadows"], *args, **kwargs)

    @undisturbed
    def take(self, tree: Tree) -> None:
        self.refuse_applied()
        held = self._state_in(tree, "take")
        for w in self.shadow_weights():
            if _shape(held.shadows[w.path]) != f"shape {w.shape}":
                raise self._other("take", w.path, held.shadows)
        self.engine.refuse_traced(held.count)
        self.refuse_counts(self._whole(held.count), self._whole(held.skipped))
        taken = self._copied(held)
        for path in self.program.guarded:
            if not self.engine.is_fit(taken.shadows[path]):
                raise NonFinite(
                    f"take() of {self.label}: weight {path!r}: expected finite values, received NaN or infinity; the "
                    "average is as it was",
                    hint="stateless_update() never makes such a value: look at what else wrote into the tree",
                )
        self.held = taken
        self.report_skips()

    def call_with(self, shadows: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Run the model with these values in the place of its own. What it gives shares no memory with them."""
        engine, variables = self.engine, self.raw.variables
        left = [variable for path, variable in variables.items() if path not in shadows]
        read = engine.as_weight if engine.records((args, kwargs), left) else engine.readable
        scope = [(variables[path], read(shadow, variables[path])) for path, shadow in shadows.items()]
        with keras.StatelessScope(state_mapping=scope) as within:
            found = self.followed()(*args, **kwargs)
        return engine.apart_from(shadows.values(), values_of(found, within))

    def __repr__(self) -> str:
        try:
            self.engine.refuse_traced(None)
        except ModelError:
            return f"<{self.label}: within a function that is compiled>"
        return super().__repr__()

    def _value(self, raw: Described, path: str) -> Any:
        """A weight's raw value. Raises ModelError where it cannot be had."""
        what = f"weight {path!r} of {raw.label}"
        refuse_scoped(what)
        self.engine.refuse_traced(None)
        value = raw_value(raw.variables[path], self.engine.hands)
        self.engine.refuse_gone(value, what)
        return value

    def _moved_along(self, shadows: dict[str, Any]) -> str:
        """Go on with the same shadows on other devices; the answer is for who asked, "" if none has moved."""
        moved = [repr(path) for path, shadow in shadows.items() if shadow is not self.held.shadows[path]]
        if not moved:
            return ""
        self.refuse_applied()
        self.held = self._counted(shadows, self.count, self.skipped)
        return f"{self.label}: moved to the devices of its weights: {listed(moved, 3)}"

    def _counted(self, shadows: dict[str, Any], count: int, skipped: int) -> Held:
        beside = next(iter(shadows.values()))
        return Held(shadows, self.engine.counter(count, beside), self.engine.counter(skipped, beside))

    def _copied(self, held: Held) -> Held:
        """The state in arrays of its own, where the shadows are: a compiled step may take over what it is given."""
        own = self.held.shadows
        shadows = {w.path: self.engine.beside(held.shadows[w.path], own[w.path]) for w in self.shadow_weights()}
        beside = next(iter(shadows.values()), None)
        count, skipped = (self.engine.counter(int(n), beside) for n in (held.count, held.skipped))
        return Held(shadows, count, skipped)

    def _state_in(self, tree: Any, verb: str) -> Held:
        """The state in a tree. Raises ModelError if a part or a weight of it is not there, or in another dtype."""
        if not (isinstance(tree, Mapping) and tree.keys() >= _PARTS and isinstance(tree["shadows"], Mapping)):
            received = f"one with {', '.join(map(repr, tree))}" if isinstance(tree, Mapping) else type(tree).__name__
            raise ModelError(
                f"{verb}() of {self.label}: expected a tree with 'shadows', 'count' and 'skipped', received {received}",
                hint=_GIVE,
            )
        held = held_from(dict(tree))
        expected = {w.path: w for w in self.shadow_weights()}
        for path in [*expected, *held.shadows]:
            if path not in held.shadows or path not in expected or _dtype(held.shadows[path]) != expected[path].dtype:
                raise self._other(verb, path, held.shadows)
        self._refuse_gone(verb, held)
        return held

    def _refuse_gone(self, verb: str, held: Held) -> None:
        for path, array in {**held.shadows, "count": held.count, "skipped": held.skipped}.items():
            if self.engine.is_gone(array):
                self.engine.refuse_gone(array, f"{verb}() of {self.label}: {path!r} of the tree")

    def _whole(self, count: Any) -> int:
        try:
            return operator.index(count)
        except TypeError:
            raise ModelError(
                f"take() of {self.label}: expected whole numbers of updates, received {count!r:.80}", hint=_GIVE
            ) from None

    def _other(self, verb: str, path: str, shadows: Mapping[str, Any]) -> ModelError:
        """The error of a tree in which one shadow is another than this average has."""
        own = next((w for w in self.shadow_weights() if w.path == path), None)
        expected = "none" if own is None else f"shape {own.shape} of {own.dtype}"
        received = f"{_shape(shadows[path])} of {_dtype(shadows[path])}" if path in shadows else "none"
        narrowed = own is not None and (own.dtype, _dtype(shadows.get(path))) == ("float64", "float32")
        return ModelError(
            f"{verb}() of {self.label}: weight {path!r}: expected {expected}, received {received}",
            hint=_WIDE if narrowed and keras.backend.backend() == "jax" else _GIVE,
        )


def _by_variable(name: str, variables: Sequence[Any], values: Sequence[Any]) -> dict[int, Any]:
    values = list(values)
    if len(values) != len(variables):
        raise ModelError(
            f"stateless_update(): expected {len(variables)} {name}, as the model has, received {len(values)}",
            hint=f"give the values of model.{name} in their order: [v.value for v in model.{name}]",
        )
    return {id(variable): value for variable, value in zip(variables, values, strict=True)}


def _shape(array: Any) -> str:
    return f"shape {tuple(array.shape)}" if _is_array(array) else type(array).__name__


def _dtype(array: Any) -> str:
    return str(array.dtype).removeprefix("torch.") if _is_array(array) else type(array).__name__


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic) or bool(keras.ops.is_tensor(value))
