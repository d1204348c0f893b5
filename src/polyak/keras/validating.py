"""Validation in several passes over the same data, each as if it were the only one."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from polyak.errors import ModelError
from polyak.snapshot import Array

Memory = Sequence[tuple[Any, Array]]


def memory(model: Any) -> Memory:
    """What a pass over data changes: states of recurrent layers that remember, random seeds, and metrics."""
    layers = list(model._flatten_layers())
    recurrent = (x for x in layers if isinstance(x, keras.layers.RNN) and x.stateful)
    states = [state for x in recurrent for state in keras.tree.flatten(x.states) if state is not None]
    seeds = [seed.state for x in layers for seed in x._seed_generators]
    held = (*states, *seeds, *model.metrics_variables)
    return [(variable, keras.ops.convert_to_numpy(variable).copy()) for variable in held]


@contextmanager
def beginning_with(held: Memory, model: Any) -> Iterator[None]:
    """A pass that begins with what a model remembered once, and after which it remembers what it does now."""
    now = memory(model)
    _recall(held)
    try:
        yield
    finally:
        _recall(now)


def refuse_used_up(model: Any, data: Any) -> None:
    """Raise ModelError for data of which nothing is left after the first pass."""
    if isinstance(data, Generator):
        raise ModelError(
            f'fit of {type(model).__name__} with polyak.keras.Averaging(evaluate="both"): expected validation data '
            "that can be read twice, received a generator",
            hint="give arrays, a keras.utils.PyDataset, a tf.data.Dataset or a DataLoader; "
            'or ask for evaluate="raw" or evaluate="average"',
        )


def named(name: str, metrics: Mapping[str, Any], beside: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of the average under names of their own. Raises ModelError where the model has such names."""
    named = {f"{name}_{metric}": value for metric, value in metrics.items()}
    for taken in named.keys() & beside.keys():
        raise ModelError(
            f"polyak.keras.Averaging(name={name!r}): expected names of its own for the average's metrics, received "
            f"{taken!r}, which is one of the model's",
            hint="give the callback another name=",
        )
    return named


def _recall(held: Memory) -> None:
    for state, value in held:
        state.assign(value)
