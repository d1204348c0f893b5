"""What polyak asks of the arrays behind Keras where these are not TensorFlow's: those of JAX or of PyTorch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyak.averaging.parts import Parts
from polyak.averaging.rules import Rule
from polyak.frameworks.base import Tree
from polyak.frameworks.exchange import Hands
from polyak.snapshot import Array
from polyak.weights import Kind, Weight

Arrays = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Program:
    """What one update does: by rule the paths that it moves, the paths that are copied, and those that are guarded."""

    moved: tuple[tuple[Rule, tuple[str, ...]], ...]
    copied: tuple[str, ...]
    guarded: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """The values of an average: shadows by path, updates that moved it, updates that were refused."""

    shadows: dict[str, Any]
    count: Any
    skipped: Any


def tree_of(held: Held) -> Tree:
    """The values of an average as a tree of arrays."""
    return {"shadows": held.shadows, "count": held.count, "skipped": held.skipped}


def held_from(tree: Tree) -> Held:
    """The values of an average from a tree."""
    return Held(tree["shadows"], tree["count"], tree["skipped"])


class Engine(ABC):
    """The few operations on arrays of one library. Attribute ``hands`` takes values out of Keras variables."""

    hands: Hands
    # Whether its shadows lie elsewhere than the weights, so that no compiled step of the model can hold them.
    apart: bool = False

    @abstractmethod
    def value(self, variable: Any) -> Any:
        """The array in a Keras variable; it may change with the variable."""

    def dtype_of(self, variable: Any) -> str:
        """The dtype of the array in a Keras variable."""
        return str(variable.dtype)

    def settle(self, model: Any) -> None:
        """Bring back into a model's variables what a loop that was cut short has taken out of them."""
        del model

    def values(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The arrays in Keras variables, by path."""
        return {path: self.value(variable) for path, variable in variables.items()}

    @abstractmethod
    def start(self, array: Any, dtype: str, zeros: bool) -> Any:
        """A new array in this dtype: the values of another, or zeros."""

    @abstractmethod
    def cast(self, array: Any, dtype: str) -> Any:
        """A new array in this dtype."""

    def as_weight(self, shadow: Any, variable: Any) -> Any:
        """A new array with a shadow's values, in the dtype of its variable's array and where that computes."""
        return self.cast(shadow, self.dtype_of(variable))

    def records(self, inputs: Any, left: Sequence[Any]) -> bool:
        """Whether a call of the model needs what it reads once more, later, for gradients.

        Args:
            inputs: a nest of what the model is called with.
            left: variables that it reads themselves.
        """
        del inputs, left
        return False

    @abstractmethod
    def readable(self, shadow: Any, variable: Any) -> Any:
        """What a call may read in the place of a variable: the shadow itself where it can stand there."""

    @abstractmethod
    def apart_from(self, shadows: Iterable[Any], found: Any) -> Any:
        """What a call has given, a nest, with copies in the place of what is memory of a shadow."""

    @abstractmethod
    def lent(self, shadow: Any, variable: Any) -> Any:
        """What is put into a variable while an average is applied; the shadow must outlive it."""

    def to_numpy(self, array: Any) -> Array:
        """A copy."""
        return np.array(self.view(array))

    @abstractmethod
    def view(self, array: Any) -> Array:
        """The array's own memory where it can be had, to be looked at only."""

    def home(self, variable: Any) -> object:
        """Where the variable's array is kept: see ``Target.home``."""
        return id(variable)

    def is_parted(self, array: Any) -> bool:
        """Whether other processes hold parts of it, which this one cannot read."""
        del array
        return False

    def drifted(self, array: Any) -> bool:
        """Whether devices that should hold the same part of it hold other bits."""
        del array
        return False

    def wrapped(self, value: Array, like: Any) -> Any:
        """What a variable is given that takes a copy of it."""
        return self.from_numpy(value, like)

    @abstractmethod
    def from_numpy(self, value: Array, like: Any) -> Any:
        """A copy, where ``like`` is and as it is spread there."""

    @abstractmethod
    def beside(self, array: Any, like: Any) -> Any:
        """A copy of an array of the same dtype, where ``like`` is and as it is spread there."""

    @abstractmethod
    def is_fit(self, array: Any) -> bool:
        """Whether every value may be averaged: finite, and at most half of the range of the dtype of its shadow."""

    @abstractmethod
    def counter(self, value: int, beside: Any) -> Any:
        """A count as this library keeps it, on the devices that an array is spread over."""

    @abstractmethod
    def step(self, programs: Sequence[Program], held: Sequence[Held], values: Arrays) -> list[Held]:
        """Averages of one model after one update each, in one pass over its values, which all of them share by path.

        What was held before must not be used any more.
        """

    @abstractmethod
    def pure_step(self, program: Program, held: Held, values: Arrays) -> Held:
        """One update with the same bits, where what was held before stays as it is."""

    @abstractmethod
    def refuse_traced(self, array: Any) -> None:
        """Raise ModelError if a program is being compiled, where an average would be a constant."""

    def is_gone(self, array: Any) -> bool:
        """Whether the array's memory was given away."""
        del array
        return False

    def refuse_gone(self, array: Any, what: str) -> None:
        """Raise ModelError if the array's memory was given away."""
        del array, what

    def along(self, shadows: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
        """The shadows on the devices where their variables' arrays are now; those that are there already stay."""
        del variables
        return dict(shadows)


def program_for(weights: tuple[Weight, ...], rule: Rule | Parts, guarded: tuple[str, ...]) -> Program:
    """The weights sorted by what the rule does with them."""
    moved: dict[Rule, list[str]] = {}
    copied = []
    for w in weights:
        own = rule_of(rule, w)
        if w.kind is Kind.TRAINABLE and own is not None:
            moved.setdefault(own, []).append(w.path)
        else:
            copied.append(w.path)
    return Program(tuple((r, tuple(paths)) for r, paths in moved.items()), tuple(copied), guarded)


def rule_of(rule: Rule | Parts, weight: Weight) -> Rule | None:
    """The rule of one weight; None leaves it out."""
    return rule.rule_of(weight.path) if isinstance(rule, Parts) else rule


def starts_at_zero(rule: Rule | Parts, weight: Weight) -> bool:
    """Whether a shadow begins as zeros and not as its weight."""
    own = rule_of(rule, weight)
    return own is not None and weight.kind is Kind.TRAINABLE and own.origin == "zeros"
