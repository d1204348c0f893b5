"""Validation in several passes over the same data, each as if it were the only one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import keras
import numpy as np

from polyak.errors import ModelError
from polyak.keras.dice import Memory, dice

_ENDLESS, _UNKNOWN = -1, -2  # tf.data.INFINITE_CARDINALITY and UNKNOWN_CARDINALITY
_MOST = 2**63 - 1  # elements, to which enumerate() counts
# Datasets that end before what they read has ended; that read on to the end, and of which it depends on the order what
# they leave out or put together; and those of either that have lost nothing where they have as many as what they read.
_STOPPING = {"_TakeDataset", "_TakeWhileDataset"}
_LOSING = {"_SkipDataset", "_ShardDataset", "_WindowDataset", "_GroupByWindowDataset", "_ScanDataset"}
_CUTTING = {"_TakeDataset", "_SkipDataset", "_ShardDataset"}


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
    return [*variables, *dice(data)]


def _variables(model: Any) -> Iterable[Any]:
    """States of recurrent layers that remember, random seeds, and metrics."""
    layers = list(model._flatten_layers())
    recurrent = (x for x in layers if isinstance(x, keras.layers.RNN) and x.stateful)
    states = [state for x in recurrent for state in keras.tree.flatten(x.states) if state is not None]
    return (*states, *(seed.state for x in layers for seed in x._seed_generators), *model.metrics_variables)


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
    if tf is not None and isinstance(data, tf.data.Dataset) and _differs(data, False, _is_part(data, steps)):
        raise ModelError(
            f"{told}that are the same in each pass, received a tf.data.Dataset that shuffles them anew, of which each "
            "pass takes another part, or may",
            hint=f"shuffle(..., reshuffle_each_iteration=False){_say_sizes(data)}; or ask for "
            'evaluate="raw" or evaluate="average"',
        )
    if isinstance(data, keras.utils.PyDataset) and data.workers > 1 and _goes_on(data, steps):
        raise ModelError(
            f"{told}that are the same in each pass, received a PyDataset with workers={data.workers}, whose queue goes "
            "on where the pass before has stopped",
            hint='give it workers=1, or leave validation_steps out; or ask for evaluate="raw" or evaluate="average"',
        )


def _say_sizes(data: Any) -> str:
    """What to do besides where all of the data may be read, and nothing says how many they are."""
    if not _lacks_size(data):
        return ""
    return ", or where nothing is left over, say how many there are: .apply(tf.data.experimental.assert_cardinality(n))"


def _lacks_size(data: Any) -> bool:
    """Whether it would help to know it; of what is read where that is what nobody knows."""
    size, above = int(data.cardinality()), data._inputs()
    if size >= 0 or _drops_of_batches(data) or _chooses_in_part(data):
        return False
    is_first = all(int(each.cardinality()) != _UNKNOWN for each in above)
    return (size == _UNKNOWN and is_first) or any(map(_lacks_size, above))


def _is_part(data: Any, steps: int | None) -> bool:
    """Whether so many steps are not all that there are, once or several times, or may not be."""
    if steps is None:
        return False
    while (size := int(data.cardinality())) == _ENDLESS and len(data._inputs()) == 1:
        (data,) = data._inputs()  # that is repeated for ever
    return size < 0 or (size > 0 and steps % size != 0)


def _goes_on(data: Any, steps: int | None) -> bool:
    return data.num_batches is None or (steps is not None and steps < data.num_batches)


def _differs(data: Any, is_lossy: bool, stops: bool) -> bool:
    """Whether what lies further up is shuffled anew in each pass, and a part is lost on the way or left unread.

    A cache that is read to its end gives the same from then on; TensorFlow throws one away that was filled in part.
    """
    data = getattr(data, "_dataset", data)  # as TensorFlow 1 wraps them
    kind = type(data).__name__
    if kind == "CacheDataset" and not stops:
        return False
    if kind == "_ShuffleDataset" and (is_lossy or stops) and data._reshuffle_each_iteration is not False:
        return True
    is_lossy = is_lossy or (kind in _LOSING and not _keeps_all(data)) or _drops(data)
    above = zip(data._inputs(), _left_early(data), strict=True)
    return any(_differs(each, is_lossy, stops or early) for each, early in above)


def _keeps_all(data: Any) -> bool:
    size = int(data.cardinality())
    return type(data).__name__ in _CUTTING and size >= 0 and size == int(data._input_dataset.cardinality())


def _left_early(data: Any) -> list[bool]:
    """Of each dataset that one reads, whether it is left before its end, or may be."""
    above, kind = data._inputs(), type(data).__name__
    if kind == "_ZipDataset":
        return _cut_off(above)
    return [_chooses_in_part(data) or (kind in _STOPPING and not _keeps_all(data))] * len(above)


def _chooses_in_part(data: Any) -> bool:
    """Whether choices among datasets, which the first of them makes, end before all of the others have, or may."""
    if type(data).__name__ != "_DirectedInterleaveDataset":
        return False
    return bool(data._stop_on_empty_dataset) or int(data._selector_input.cardinality()) != _ENDLESS


def _cut_off(zipped: Sequence[Any]) -> list[bool]:
    """Of datasets that are read side by side, whether one of the others ends, or may end, before this one."""
    sizes = [int(each.cardinality()) for each in zipped]
    least = [{_ENDLESS: _MOST, _UNKNOWN: 0}.get(size, size) for size in sizes]
    most = [{_ENDLESS: _MOST, _UNKNOWN: _MOST - 1}.get(size, size) for size in sizes]
    return [any(end < own for at, end in enumerate(least) if at != place) for place, own in enumerate(most)]


def _drops(data: Any) -> bool:
    """Whether a last batch that is too small is left out, or may be."""
    if not hasattr(data, "_batch_size") or not _leaves_out(data):
        return _drops_of_batches(data)
    size = int(data._input_dataset.cardinality())
    return size == _UNKNOWN or (size > 0 and size % int(data._batch_size) != 0)


def _drops_of_batches(data: Any) -> bool:
    """The same of what makes batches of batches, of which no size says how much they hold."""
    return not hasattr(data, "_batch_size") and _leaves_out(data)


def _leaves_out(data: Any) -> bool:
    return bool(np.asarray(getattr(data, "_drop_remainder", False)))


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
