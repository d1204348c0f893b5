"""Dice that a pass over data throws: those of the process and of Keras, and those that lie within the data."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from types import FunctionType, MethodType, ModuleType
from typing import Any

import keras
import numpy as np
from keras.src.backend.common.global_state import get_global_attribute

# How to put something back, and what it was.
Memory = list[tuple[Callable[[Any], object], Any]]

# Objects, and of each container: so a list of all samples does not hide what lies beside it.
_LOOKED_AT, _OF_EACH = 100_000, 1000
_HOLDS_NONE = (str, bytes, bytearray, int, float, complex, type(None), type, ModuleType, np.ndarray, np.generic)
_CONTAINERS = (list, tuple, set, frozenset, deque)


def dice(data: Any) -> Memory:
    """States of all dice that are known, and how to put them back."""
    found: Memory = [(random.setstate, random.getstate()), (np.random.set_state, np.random.get_state())]  # noqa: NPY002
    of_torch = getattr(sys.modules.get("torch"), "default_generator", None)
    of_all = (of_torch, get_global_attribute("global_seed_generator"), *_within(data))
    return found + [state for value in of_all for state in _state_of(value)]


def _within(data: Any) -> Iterator[Any]:
    """What data hold, in attributes, containers and functions, each object once and the nearest ones first."""
    seen, waiting = {id(data)}, deque([data])
    while waiting:
        value = waiting.popleft()
        yield value
        for part in _parts(value):
            if len(seen) < _LOOKED_AT and not isinstance(part, _HOLDS_NONE) and id(part) not in seen:
                seen.add(id(part))
                waiting.append(part)


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        yield from list(islice(value.values(), _OF_EACH))
    elif isinstance(value, _CONTAINERS):
        yield from list(islice(value, _OF_EACH))
    elif isinstance(value, FunctionType):
        yield from _held_by(value)
    elif isinstance(value, MethodType):
        yield value.__self__
    elif isinstance(value, partial):
        yield from (value.func, value.args, value.keywords)
    yield from list(getattr(value, "__dict__", {}).values())
    yield from _slots(value)


def _held_by(function: FunctionType) -> Iterator[Any]:
    """What a function has from where it was made, and its defaults."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # it is not bound yet
            continue
    yield from (function.__defaults__, function.__kwdefaults__)


def _slots(value: Any) -> Iterator[Any]:
    """Attributes that a class keeps in slots; ``__dict__`` has the others."""
    for kind in type(value).__mro__:
        names = kind.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__"):
                yield getattr(value, name, None)


def _state_of(value: Any) -> Memory:
    """Of a generator of random numbers; nothing of anything else."""
    if isinstance(value, keras.random.SeedGenerator):
        return [(value.state.assign, keras.ops.convert_to_numpy(value.state.value).copy())]
    if isinstance(value, np.random.RandomState):
        return [(value.set_state, value.get_state())]
    if isinstance(value, (np.random.Generator, np.random.BitGenerator)):
        bits = value.bit_generator if isinstance(value, np.random.Generator) else value
        return [(partial(setattr, bits, "state"), bits.state)]
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return [(value.setstate, value.getstate())]
    return _state_of_tensors(value)


def _state_of_tensors(value: Any) -> Memory:
    """Of generators of PyTorch and TensorFlow, where the program has loaded these."""
    if (torch := sys.modules.get("torch")) is not None and isinstance(value, torch.Generator):
        return [(value.set_state, value.get_state())]
    if (tf := sys.modules.get("tensorflow")) is not None and isinstance(value, tf.random.Generator):
        return [(value.state.assign, value.state.numpy())]
    return []
