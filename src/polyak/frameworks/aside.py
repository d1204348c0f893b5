"""A word on what a model holds that is no weight to its framework, and that polyak leaves as it is."""

from __future__ import annotations

from typing import Any, Protocol

from polyak.errors import NotAWeight, listed, notify
from polyak.frameworks.described import describe


class Knows(Protocol):
    """A framework."""

    def aside(self, model: Any) -> list[str]:
        """What a built model holds beside its weights, in words."""


def tell_aside(framework: Knows, model: Any) -> None:
    """Warn of variables that are neither averaged nor handed over, if the model holds some."""
    found = framework.aside(model)
    if found:
        notify(
            NotAWeight(
                f"{describe(model)}: {listed(found)}, which Keras 3 does not count among the weights: it is neither "
                "averaged nor handed over; hint: make it with self.add_weight(...)"
            )
        )
