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


class Batches:
    """The inputs of each batch of some data, as tensors of Keras' backend.

    Args:
        data: an array, or a dict of arrays, of whole inputs, which is cut into batches of 32; or anything that gives
            batches: a list, a generator, ``keras.utils.PyDataset``, ``tf.data.Dataset`` or a ``DataLoader``. A batch
            is the inputs, or a tuple of inputs, targets and sample weights, of which the first is used.
        steps: how many batches; all by default.

    Attributes:
        total: how many batches there will be; 0 where nobody knows.
        taken: how many were taken so far.

    Raises:
        ModelError: the data are endless and ``steps`` is not given, or ``steps`` is no number of batches; while
            batches are taken, if there are none, or fewer than ``steps``.

    Example:
        >>> [batch.shape[0] for batch in Batches(np.zeros((40, 3)))]
        [32, 8]
    """

    def __init__(self, data: Any, steps: int | None = None) -> None:
        if steps is not None and (isinstance(steps, bool) or _whole(steps) < 1):
            raise ModelError(f"steps={steps!r}: expected a number of batches, at least 1")
        self._data, length = _source(data)
        self._steps = steps
        self.taken = 0
        if steps is None and length is None and _is_endless(data):
            raise ModelError("expected data that end, received an endless dataset", hint="say how many batches: steps=")
        self.total = int(length or 0) if steps is None else int(steps)

    def __iter__(self) -> Iterator[Any]:
        self.taken = 0
        for batch in islice(self._data, self._steps):
            inputs, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
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
        arrays = keras.tree.flatten(dict(data) if isinstance(data, Mapping) else data)
        size = min(len(a) for a in arrays)
        starts = range(0, size, _BATCH)
        cut = (keras.tree.map_structure(lambda a, i=i: a[i : i + _BATCH], data) for i in starts)
        return cut, len(starts)
    if isinstance(data, tuple) and len(data) > 1 and all(map(_is_array, data)):
        raise ModelError(
            f"expected inputs, or batches of them, received a tuple of {len(data)} arrays, such as x and y",
            hint="give the inputs alone; batches are a list or a generator",
        )
    try:
        return data, len(data)
    except TypeError:
        return data, None


def _whole(steps: Any) -> int:
    try:
        return operator.index(steps)
    except TypeError:
        return 0


def _is_array(data: Any) -> bool:
    return isinstance(data, np.ndarray) or bool(keras.ops.is_tensor(data))


def _is_endless(data: Any) -> bool:
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is not None and isinstance(data, tensorflow.data.Dataset):
        return bool(data.cardinality() == tensorflow.data.INFINITE_CARDINALITY)
    return isinstance(data, keras.utils.PyDataset)


def _tensor(value: Any) -> Any:
    return value if keras.ops.is_tensor(value) else keras.ops.convert_to_tensor(np.asarray(value))
