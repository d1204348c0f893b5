"""A word on what is not averaged: what is no weight to a model's framework, and weights of complex numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from polyak.errors import NotAveraged, NotAWeight, listed, notify
from polyak.frameworks.described import describe
from polyak.weights import Kind, Weight, glob_match


class Knows(Protocol):
    """A framework.

    Attributes:
        aside_hint: what to do about what it holds beside its weights.
    """

    aside_hint: str

    def aside(self, model: Any) -> list[str]:
        """What a built model holds beside its weights, in words."""


def tell_aside(framework: Knows, model: Any) -> None:
    """Warn of variables that are neither averaged nor handed over, if the model holds some."""
    found = framework.aside(model)
    if found:
        notify(
            NotAWeight(
                f"{describe(model)}: {listed(found)}: it is neither averaged nor handed over; "
                f"hint: {framework.aside_hint}"
            )
        )


def tell_copied(model: Any, weights: Sequence[Weight], variables: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    """Warn of complex weights that are trained, and copied at each update; not where the caller says what they are."""
    complex_ones = [w.path for w in weights if w.dtype.startswith("complex") and variables[w.path].trainable]
    found = [path for path in complex_ones if not glob_match(path, list(kinds))]
    if found:
        notify(
            NotAveraged(
                f"{describe(model)}: {listed(list(map(repr, found)))} is of complex numbers: it is copied at each "
                "update, and not averaged; hint: hold real and imaginary parts as two weights, or say that a copy is "
                f'meant: kinds={{"{found[0]}": "counter"}}'
            )
        )
