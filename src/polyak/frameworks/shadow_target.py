"""The shadows of an average as what a transfer reads and writes, with its rule and counts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from polyak.errors import ModelError
from polyak.frameworks.base import refuse_written
from polyak.frameworks.exchange import moment
from polyak.frameworks.stateful import StatefulAverage
from polyak.manifest import State
from polyak.transfer.places import Place
from polyak.transfer.target import PutBack, Target
from polyak.weights import Kind, Weight


class ShadowTarget(Target):
    """The shadow values of an average, with its rule and counts."""

    def __init__(self, average: StatefulAverage, shadows: Target) -> None:
        self.label = f"average {average.label}"
        self.layout = shadows.layout
        self._average = average
        self._shadows = shadows
        self._unfit: Mapping[str, bytes] = {}
        self._written: set[str] = set()

    @property
    def weights(self) -> tuple[Weight, ...]:
        return self._shadows.weights

    def places(self) -> Mapping[str, Place]:
        return self._average.places()

    def read(self, path: str) -> Any:
        return self._shadows.read(path)

    def view(self, path: str) -> Any:
        return self._shadows.view(path)

    def home(self, path: str) -> object:
        return self._shadows.home(path)

    def write(self, path: str, value: Any) -> None:
        refuse_written(self._average)
        self._written.add(path)
        self._shadows.write(path, value)

    def hold(self, path: str) -> PutBack:
        return self._shadows.hold(path)

    def moment(self) -> AbstractContextManager[None]:
        return moment([self._average])

    def hold_state(self) -> PutBack:
        self._unfit = self._average.unfit()  # these may stay
        self._written = set()
        return self._average.hold_state()

    def adopt(self, state: State | None) -> None:
        is_new = self._average.count == 0
        self._average.adopt(state)
        if is_new and state is not None and state.count:
            left = [w.path for w in self.weights if w.kind is Kind.TRAINABLE and w.path not in self._written]
            self._average.begin_late(left)
        for path, value in self._average.unfit().items():
            if self._unfit.get(path) != value:
                raise ModelError(
                    f"weight {path!r}: expected the statistics that the layer was adapted to, received others, which "
                    "it would not compute with: it keeps constants that were made of its own",
                    hint="transfer into the model first, and then into its average",
                )
