"""Averages in steps that are pure functions: the state goes in as a tree of arrays and comes out as one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from polyak.errors import ModelError
from polyak.frameworks.base import Tree
from polyak.frameworks.described import Described
from polyak.frameworks.engine import Engine, Held, Program, held_from, tree_of
from polyak.frameworks.keras_outputs import values_of
from polyak.frameworks.stateful import StatefulAverage, undisturbed


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

    @undisturbed
    def tree(self) -> Tree:
        return tree_of(self._copied(self.held))

    def stateless_update(self, tree: Tree, trainable_variables: Any, non_trainable_variables: Any = ()) -> Tree:
        model, raw = self.followed(), self.raw.variables
        known = {
            **_by_variable("trainable_variables", model.trainable_variables, trainable_variables),
            **_by_variable("non_trainable_variables", model.non_trainable_variables, non_trainable_variables),
        }
        values = {path: known[id(raw[path])] for path in tree["shadows"]}
        return tree_of(self.engine.pure_step(self.program, held_from(tree), values))

    def stateless_call(self, tree: Tree, *args: Any, **kwargs: Any) -> Any:
        left = [w.path for w in self.raw.weights if w.path not in tree["shadows"]]
        if left:
            raise ModelError(
                f"stateless_call() of {self.label}: expected an average of every weight, received none of {left[0]!r}",
                hint="a rule for it, for example 'copy', puts its present value into the tree",
            )
        return self.call_with(tree["shadows"], *args, **kwargs)

    @undisturbed
    def take(self, tree: Tree) -> None:
        self.refuse_applied()
        held = held_from(tree)
        self._refuse_other(held.shadows)
        self.engine.refuse_traced(held.count)
        self.held = self._copied(held)
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

    def _copied(self, held: Held) -> Held:
        """The same state in arrays of its own: a compiled step may take over the memory of those that it is given."""
        shadows = {w.path: self.engine.cast(held.shadows[w.path], w.dtype) for w in self.shadow_weights()}
        beside = next(iter(shadows.values()), None)
        count, skipped = (self.engine.counter(int(n), beside) for n in (held.count, held.skipped))
        return Held(shadows, count, skipped)

    def _refuse_other(self, shadows: Mapping[str, Any]) -> None:
        expected = {w.path: w.shape for w in self.shadow_weights()}
        received = {path: tuple(s.shape) for path, s in shadows.items()}
        for path in [*expected, *received]:
            if expected.get(path) != received.get(path):
                raise ModelError(
                    f"take() of {self.label}: weight {path!r}: expected {_shape(expected.get(path))}, "
                    f"received {_shape(received.get(path))}",
                    hint="give the tree that ema.tree() or ema.stateless_update() returned",
                )


def _by_variable(name: str, variables: Sequence[Any], values: Sequence[Any]) -> dict[int, Any]:
    values = list(values)
    if len(values) != len(variables):
        raise ModelError(
            f"stateless_update(): expected {len(variables)} {name}, as the model has, received {len(values)}",
            hint=f"give the values of model.{name} in their order: [v.value for v in model.{name}]",
        )
    return {id(variable): value for variable, value in zip(variables, values, strict=True)}


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else f"shape {shape}"
