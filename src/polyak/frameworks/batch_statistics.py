"""What both Keras packages share where the statistics of batch normalisation are made anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from polyak.errors import ModelError, NonFinite
from polyak.snapshot import Array

# Told before each batch: "batches", how many are done, of how many.
Told = Callable[[str, int, int], None]
# What the calls of the layers gave, by the id of the statistic.
Found = dict[int, list[Any]]
_STATISTICS = ("moving_mean", "moving_variance")


def statistics_of(layer: Any) -> list[Any]:
    """The variables that a layer of batch normalisation moves."""
    return [getattr(layer, name) for name in _STATISTICS]


def trained(label: str, normalising: Sequence[Any]) -> tuple[Any, ...]:
    """Those of the layers whose statistics move in training.

    Raises:
        ModelError: there are none, or one renormalises.
    """
    layers = tuple(x for x in normalising if x.trainable and x.built)
    if not layers:
        frozen = f", of {len(normalising)} that it has all are frozen" if normalising else ""
        raise ModelError(
            f"{label}: expected a layer of batch normalisation to recalibrate, received none{frozen}",
            hint="set layer.trainable = True first" if normalising else "without one nothing needs to be recalibrated",
        )
    for layer in layers:
        if getattr(layer, "renorm", False):  # Keras 3 has it since 3.14
            raise ModelError(
                f"{label}: expected plain batch normalisation, received {layer.name!r} with renorm=True, whose "
                "statistics depend on those before",
                hint="run a few batches with training=True instead",
            )
    return layers


@contextmanager
def as_in_training(
    layers: Sequence[Any], noting: Callable[[Any, Callable[..., Any], Found], Callable[..., Any]]
) -> Iterator[Found]:
    """These layers alone run as in training, and what they find in each call is noted."""
    found: Found = {}
    before = [(layer, layer.momentum, vars(layer).get("call")) for layer in layers]
    try:
        for layer in layers:
            layer.momentum = 0.0
            layer.call = noting(layer, layer.call, found)
        yield found
    finally:
        for layer, momentum, call in before:
            layer.momentum = momentum
            if call is None:
                vars(layer).pop("call", None)
            else:  # the user's own, set on this layer alone
                layer.call = call


class Means:
    """The equal mean, in float64, of what the calls gave, by path."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._sums: dict[str, Array] = {}
        self._seen: dict[str, int] = {}

    def add(self, calls: Mapping[str, Sequence[Array]]) -> None:
        """Take what the calls of one batch gave."""
        for path, values in calls.items():
            for value in values:
                self._sums[path] = np.asarray(self._sums.get(path, 0.0) + value.astype(np.float64))
                self._seen[path] = self._seen.get(path, 0) + 1

    def result(self) -> dict[str, Array]:
        """The means.

        Raises:
            ModelError: no layer ran.
            NonFinite: a mean is NaN or infinite.
        """
        if not self._sums:
            raise ModelError(
                f"{self._label}: expected a layer of batch normalisation to run on the batches, none did",
                hint="give the data that the model is called on",
            )
        means = {path: np.asarray(total / self._seen[path]) for path, total in self._sums.items()}
        for path, mean in means.items():
            if not np.isfinite(mean).all():
                raise NonFinite(
                    f"weight {path!r} of {self._label}: expected finite statistics, received NaN or infinity",
                    hint="look for NaN in the data or the weights",
                )
        return means
