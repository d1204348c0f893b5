"""Validation in several passes over the same data, each as if it were the only one."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import keras
import numpy as np
from keras.src.backend.common.global_state import get_global_attribute

from polyak.errors import ModelError

_ENDLESS = -1  # tf.data.INFINITE_CARDINALITY
_SELECTING = {"_TakeDataset", "_SkipDataset", "_ShardDataset", "_TakeWhileDataset"}
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
    """Random states of the process and of Keras, and those that the data hold, as a DataLoader and its samplers do."""
    found: Memory = [(random.setstate, random.getstate()), (np.random.set_state, np.random.get_state())]  # noqa: NPY002
    owners = [data, *(getattr(data, part, None) for part in ("dataset", "sampler", "batch_sampler"))]
    owners.append(getattr(owners[-1], "sampler", None))
    held = {id(value): value for owner in owners for value in getattr(owner, "__dict__", {}).values()}
    of_torch = getattr(sys.modules.get("torch"), "default_generator", None)
    of_all = (of_torch, get_global_attribute("global_seed_generator"), *held.values())
    return found + [state for value in of_all for state in _state_of(value)]


def _state_of(value: Any) -> Memory:
    """Of a generator of random numbers; nothing of anything else."""
    if isinstance(value, keras.random.SeedGenerator):
        return [(value.state.assign, keras.ops.convert_to_numpy(value.state).copy())]
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        return [(partial(setattr, bits, "state"), bits.state)]
    if isinstance(value, random.Random):
        return [(value.setstate, value.getstate())]
    if (torch := sys.modules.get("torch")) is not None and isinstance(value, torch.Generator):
        return [(value.set_state, value.get_state())]
    return []


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
    if tf is not None and isinstance(data, tf.data.Dataset) and _differs(data, _is_part(data, steps)):
        raise ModelError(
            f"{told}that are the same in each pass, received a tf.data.Dataset that shuffles them anew, of which each "
            "pass takes another part",
            hint='shuffle(..., reshuffle_each_iteration=False); or ask for evaluate="raw" or evaluate="average"',
        )
    if isinstance(data, keras.utils.PyDataset) and data.workers > 1 and _goes_on(data, steps):
        raise ModelError(
            f"{told}that are the same in each pass, received a PyDataset with workers={data.workers}, whose queue goes "
            "on where the pass before has stopped",
            hint='give it workers=1, or leave validation_steps out; or ask for evaluate="raw" or evaluate="average"',
        )


def _is_part(data: Any, steps: int | None) -> bool:
    """Whether so many steps are not all that there are, once or several times; not where that is not known."""
    if steps is None:
        return False
    while (size := int(data.cardinality())) == _ENDLESS and len(data._inputs()) == 1:
        (data,) = data._inputs()  # that is repeated for ever
    return size == _ENDLESS or (size > 0 and steps % size != 0)


def _goes_on(data: Any, steps: int | None) -> bool:
    return data.num_batches is None or (steps is not None and steps < data.num_batches)


def _differs(data: Any, is_part: bool) -> bool:
    """Whether a part is taken of what lies further up, and that is shuffled anew in each pass."""
    data = getattr(data, "_dataset", data)  # as TensorFlow 1 wraps them
    kind = type(data).__name__
    if kind == "CacheDataset":
        return False
    if kind == "_ShuffleDataset" and is_part and data._reshuffle_each_iteration is not False:
        return True
    is_part = is_part or kind in _SELECTING or _drops(data)
    return any(_differs(above, is_part) for above in data._inputs())


def _drops(data: Any) -> bool:
    """Whether a last batch that is too small is left out; not where it is not known that there is one."""
    if not (hasattr(data, "_drop_remainder") and hasattr(data, "_batch_size")):
        return False
    size = int(data._input_dataset.cardinality())
    return bool(np.asarray(data._drop_remainder)) and size > 0 and size % int(data._batch_size) != 0


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
