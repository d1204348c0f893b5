"""Batches of inputs out of whatever Keras is trained on."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import keras
import numpy as np

from polyak.errors import ModelError

_BATCH = 32
_HINT = (
    "give the inputs alone, several of them as a dict by their names; or a list or a generator of batches, "
    "[((x1, x2),)] where a batch has several inputs"
)


class Batches:
    """The inputs of each batch of some data, as tensors of Keras' backend.

    Args:
        data: an array, or a dict of arrays, of whole inputs, which is cut into batches of 32; or anything that gives
            batches: a list, a generator, ``keras.utils.PyDataset``, ``tf.data.Dataset`` or a ``DataLoader``. A batch
            is the inputs, or a tuple of inputs, targets and sample weights, of which the first is used.
        steps: how many batches; all by default.
        inputs: how many the model has, where that is known.

    Attributes:
        total: how many batches there will be; 0 where nobody knows.
        taken: how many were taken so far.

    Raises:
        ModelError: the data are endless and ``steps`` is not given, ``steps`` is no number of batches, or the data are
            a tuple as ``fit`` takes x and y; while batches are taken, if there are none, or fewer than ``steps``, or
            one has one array for several inputs.

    Example:
        >>> [batch.shape[0] for batch in Batches(np.zeros((40, 3)))]
        [32, 8]
    """

    def __init__(self, data: Any, steps: int | None = None, inputs: int = 1) -> None:
        if steps is not None and (isinstance(steps, bool) or _whole(steps) < 1):
            raise ModelError(f"steps={steps!r}: expected a number of batches, at least 1")
        self._data, length = _source(data)
        self._steps, self._inputs = steps, inputs
        self.taken = 0
        if steps is None and length is None and _is_endless(data):
            raise ModelError("expected data that end, received an endless dataset", hint="say how many batches: steps=")
        self.total = int(length or 0) if steps is None else int(steps)

    def __iter__(self) -> Iterator[Any]:
        self.taken = 0
        for batch in islice(self._data, self._steps):
            inputs, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
            if self._inputs > 1 and _is_array(inputs):  # a list of whole inputs, too, gives them one by one
                raise ModelError(f"a batch: expected {self._inputs} inputs, received one array", hint=_HINT)
            yield keras.tree.map_structure(_tensor, inputs)
            self.taken += 1
        if self.taken < (self._steps or 1):
            raise ModelError(
                f"expected {'batches' if self._steps is None else f'{self._steps:,} batches'}, received {self.taken:,}",
                hint="a generator that was used before is empty; make it anew",
            )


def _source(data: Any) -> tuple[Iterable[Any], int | None]:
    """What gives the batches, and how many they are if that is known."""
    if isinstance(data, keras.utils.PyDataset):
        length = data.num_batches
        return (data[i] for i in range(length if length is not None else sys.maxsize)), length
    if isinstance(data, Mapping) or _is_array(data):
        return _cut(dict(data) if isinstance(data, Mapping) else data)
    if isinstance(data, tuple) and len(data) > 1 and all(map(_is_whole, data)):
        raise ModelError(
            f"expected inputs, or batches of them, received a tuple of {len(data)} parts, such as x and y", hint=_HINT
        )
    try:
        return data, len(data)
    except TypeError:
        return data, None


def _cut(data: Any) -> tuple[Iterable[Any], int]:
    """Whole inputs in batches, and how many."""
    starts = range(0, min(len(array) for array in keras.tree.flatten(data)), _BATCH)
    return (keras.tree.map_structure(lambda a, i=i: a[i : i + _BATCH], data) for i in starts), len(starts)


def _whole(steps: Any) -> int:
    try:
        return operator.index(steps)
    except TypeError:
        return 0


def _is_array(data: Any) -> bool:
    return isinstance(data, np.ndarray) or bool(keras.ops.is_tensor(data))


def _is_whole(part: Any) -> bool:
    """Whether it is what ``fit`` takes for x, y or weights, be they of one input or of several."""
    arrays = keras.tree.flatten(dict(part) if isinstance(part, Mapping) else part)
    return bool(arrays) and all(map(_is_array, arrays))


def _is_endless(data: Any) -> bool:
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is not None and isinstance(data, tensorflow.data.Dataset):
        return bool(data.cardinality() == tensorflow.data.INFINITE_CARDINALITY)
    return isinstance(data, keras.utils.PyDataset)


def _tensor(value: Any) -> Any:
    return value if keras.ops.is_tensor(value) else keras.ops.convert_to_tensor(np.asarray(value))
