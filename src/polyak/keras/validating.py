"""Validation in several passes over the same data, each as if it were the only one."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import keras
import numpy as np

from polyak.errors import ModelError

# How to put something back, and what it was.
Memory = list[tuple[Callable[[Any], object], Any]]


class Passes:
    """Passes over the same data. After each of them everything is as it was after the first."""

    def __init__(self, model: Any, data: Any) -> None:
        self._model = model
        self._data = data
        self._begun: Memory | None = None

    @contextmanager
    def next(self) -> Iterator[None]:
        """The next pass: it begins with what the first one began with."""
        now = _memory(self._model, self._data)
        if self._begun is None:
            self._begun = now
            yield
            return
        _recall(self._begun)
        try:
            yield
        finally:
            _recall(now)


@contextmanager
def one_epoch(data: Any) -> Iterator[None]:
    """All passes within are one epoch to a PyDataset, which may give other data in the next one."""
    if not isinstance(data, keras.utils.PyDataset):
        yield
        return
    hooks = _Hooks(data)
    with ExitStack() as stack:
        for name in ("on_epoch_begin", "on_epoch_end"):
            stack.enter_context(_instead(data, name, getattr(hooks, name)))
        yield
    if hooks.ended:
        data.on_epoch_end()


class _Hooks:
    """What Keras calls while several passes are one epoch. An end that it tells before the first pass is passed on."""

    def __init__(self, data: Any) -> None:
        self._begin = data.on_epoch_begin
        self._end = data.on_epoch_end
        self._begun = False
        self.ended = False

    def on_epoch_begin(self) -> None:
        if not self._begun:
            self._begin()
        self._begun = True

    def on_epoch_end(self) -> None:
        if self._begun:
            self.ended = True
        else:
            self._end()


@contextmanager
def _instead(owner: Any, name: str, function: Callable[[], None]) -> Iterator[None]:
    own = vars(owner).get(name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def _memory(model: Any, data: Any) -> Memory:
    """What a pass changes, in the model, in the dice that data are shuffled with, and in the data's own."""
    variables = [(v.assign, keras.ops.convert_to_numpy(v).copy()) for v in _variables(model)]
    return [*variables, *_dice(data)]


def _variables(model: Any) -> Iterable[Any]:
    """States of recurrent layers that remember, random seeds, and metrics."""
    layers = list(model._flatten_layers())
    recurrent = (x for x in layers if isinstance(x, keras.layers.RNN) and x.stateful)
    states = [state for x in recurrent for state in keras.tree.flatten(x.states) if state is not None]
    return (*states, *(seed.state for x in layers for seed in x._seed_generators), *model.metrics_variables)


def _dice(data: Any) -> Memory:
    """Random states of the process, and the generators that a DataLoader of PyTorch was given."""
    found: Memory = [(random.setstate, random.getstate()), (np.random.set_state, np.random.get_state())]  # noqa: NPY002
    torch = sys.modules.get("torch")
    if torch is None:
        return found
    given = (getattr(data, "generator", None), getattr(getattr(data, "sampler", None), "generator", None))
    generators = [torch.default_generator, *(g for g in given if isinstance(g, torch.Generator))]
    return found + [(g.set_state, g.get_state()) for g in generators]


def _recall(held: Memory) -> None:
    for put_back, value in held:
        put_back(value)


def refuse_other_passes(model: Any, data: Any, steps: int | None) -> None:
    """Raise ModelError for data of which a second pass gives nothing, or others than the first."""
    told = f'fit of {type(model).__name__} with polyak.keras.Averaging(evaluate="both"): expected validation data '
    if isinstance(data, Generator):
        raise ModelError(
            f"{told}that can be read twice, received a generator",
            hint="give arrays, or a keras.utils.PyDataset, a tf.data.Dataset or a DataLoader that gives the same in "
            'each pass; or ask for evaluate="raw" or evaluate="average"',
        )
    tf = sys.modules.get("tensorflow")
    if tf is not None and isinstance(data, tf.data.Dataset) and _is_part(data, steps) and _is_shuffled_anew(data):
        raise ModelError(
            f"{told}that are the same in each pass, received a tf.data.Dataset that shuffles them anew, and of which "
            f"validation_steps={steps} takes a part",
            hint="shuffle(..., reshuffle_each_iteration=False), or leave validation_steps out; "
            'or ask for evaluate="raw" or evaluate="average"',
        )


def _is_part(data: Any, steps: int | None) -> bool:
    size = int(data.cardinality())
    return steps is not None and (size < 0 or steps < size)  # below zero where it is endless or not known


def _is_shuffled_anew(data: Any) -> bool:
    if type(data).__name__ == "_ShuffleDataset" and data._reshuffle_each_iteration is not False:
        return True
    return any(map(_is_shuffled_anew, data._inputs()))


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
