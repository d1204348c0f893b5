"""Averages in the train function of a model, which is made again where anything that it contains has changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from polyak.averaging.parts import Parts
from polyak.averaging.rules import Rule
from polyak.frameworks import Average
from polyak.keras.fitting import fitting
from polyak.keras.loops import Places

_PLACE = "train_function"


class Stepping:
    """Which averages a model's compiled step moves, and by which rules: a step contains those it was made with."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._rules: list[Rule | Parts] = []
        self._made: tuple[tuple[Any, ...], Callable[..., Any]] | None = None

    def holds(self, averages: Sequence[Average]) -> bool:
        """Whether the step that stands there moves the averages by their present rules."""
        stand = self._places[_PLACE]
        if stand.present is None:  # compile was called within an epoch, where Keras does not make another
            return True
        return stand.present is stand and [a.rule for a in averages] == self._rules

    def move(self, model: Any, averages: Sequence[Average]) -> None:
        """Put them into the step; one that was made for an earlier ``fit`` serves again if it contains just these."""
        self._places.give_back(_PLACE)
        self._rules = [a.rule for a in averages]
        contained = (model.train_function, *averages, *self._rules)
        if self._made is None or not _are_same(self._made[0], contained):
            self._made = contained, fitting().moving(model, averages)
        self._places.take(model, _PLACE, self._made[1])

    def forget(self) -> None:
        """The next step is made anew."""
        self._made = None


def _are_same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))
