"""Target: the few operations that a transfer needs of whatever it writes into."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any

from polyak.manifest import State
from polyak.snapshot import Array
from polyak.transfer.places import Place
from polyak.weights import Weight

PutBack = Callable[[], None]


class Target(ABC):
    """A live model or average that weights are written into.

    A framework implements it over its own variables. ``hold`` returns a function that puts the
    present bits back; it must not fail where ``write`` may.

    Attributes:
        label: what errors and receipts call it.
        fixed: the dtypes of its weights cannot change.
        layout: how its arrays lie, "keras" or "torch"; "" where nothing says it.
        aliases: further names of weights that have several, and the path of each.
    """

    label: str
    fixed: bool = True
    layout: str = ""
    aliases: Mapping[str, str] = MappingProxyType({})

    @property
    @abstractmethod
    def weights(self) -> tuple[Weight, ...]:
        """Descriptions of all weights, in the model's order."""

    def places(self) -> Mapping[str, Place]:
        """Where TensorFlow's object graph has the weights of a Keras 3 model; nothing of any other."""
        return {}

    @abstractmethod
    def read(self, path: str) -> Array:
        """A copy of the present value."""

    def view(self, path: str) -> Array:
        """The present value to look at within a ``moment``: the weight's own memory, where it can be had."""
        return self.read(path)

    def home(self, path: str) -> object:
        """Where the value is kept: equal for weights that are kept in one place, also those of another target."""
        return self, path

    @abstractmethod
    def write(self, path: str, value: Array) -> None:
        """Set one weight; shape and dtype are the weight's own. The array stays the caller's."""

    @abstractmethod
    def hold(self, path: str) -> PutBack:
        """Remember the present bits of one weight."""

    def moment(self) -> AbstractContextManager[Any]:
        """A context in which nobody else changes anything of it."""
        return nullcontext()

    def settle(self) -> None:
        """Make anew what is computed from the weights once and kept: they were written, or put back."""
        return

    def hold_state(self) -> PutBack:
        """Remember what ``adopt`` changes."""
        return lambda: None

    def adopt(self, state: State | None) -> None:
        """Take over the rule and counts that came with the values; models have none."""
        del state
