"""Programs for some tensors at a time: traced once for as many of the same dtypes, and called for all others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol

import tensorflow as tf

# Tracing takes a millisecond a tensor, a call in a graph as long as computing three tensors.
_BATCH = 16
# A call is one operation to TensorFlow's optimisation then, and not everything that is within.
_WHOLE = {"_noinline": True}


class Held(Protocol):
    """What the kernel asks of a variable."""

    dtype: tf.DType

    def value(self) -> tf.Tensor: ...
    def assign(self, value: tf.Tensor) -> Any: ...
    def assign_sub(self, value: tf.Tensor) -> Any: ...


Rows = Sequence[Sequence[Held]]
Scalars = Sequence[tf.Tensor]
Body = Callable[[Rows, Scalars], Any]


class _Handed:
    """A variable of which a program knows the handle alone."""

    def __init__(self, handle: tf.Tensor, dtype: tf.DType) -> None:
        self._handle, self.dtype = handle, dtype

    def value(self) -> tf.Tensor:
        return tf.raw_ops.ReadVariableOp(resource=self._handle, dtype=self.dtype)

    def assign(self, value: tf.Tensor) -> None:
        tf.raw_ops.AssignVariableOp(resource=self._handle, value=value)

    def assign_sub(self, value: tf.Tensor) -> None:
        tf.raw_ops.AssignSubVariableOp(resource=self._handle, value=value)


def over(body: Body, rows: Sequence[Sequence[tf.Variable]], scalars: Scalars = ()) -> list[Any]:
    """Call ``body(rows, scalars)`` for all rows: at once where they are few, or else some at a time by a program.

    XLA makes one program of all anyway, and a variable of several replicas has no handle of its own.

    Args:
        body: a function of a module, which makes the same operations for all variables of the same dtypes.
        rows: variables that it takes together.
        scalars: what it takes for all rows alike.

    Returns:
        What each call returned.
    """
    if len(rows) <= _BATCH or is_compiled() or is_spread(variable for row in rows for variable in row):
        return [body(rows, scalars)]
    return list(_in_batches(body, rows, scalars))


def is_compiled() -> bool:
    """Whether XLA will compile the function that is being traced, or one around it."""
    return tf.__internal__.get_enclosing_xla_context() is not None


def is_spread(variables: Iterable[tf.Variable]) -> bool:
    """Whether any has a value for each of several replicas."""
    return any(isinstance(variable, tf.distribute.DistributedValues) for variable in variables)


def _in_batches(body: Body, rows: Sequence[Sequence[tf.Variable]], scalars: Scalars) -> Iterator[Any]:
    for kinds, alike in _alike(rows).items():
        for start in range(0, len(alike), _BATCH):
            some = alike[start : start + _BATCH]
            program = _program(body, kinds, len(some), tuple(scalar.dtype for scalar in scalars))
            yield program(*scalars, *(variable.handle for row in some for variable in row))


def _alike(rows: Sequence[Sequence[tf.Variable]]) -> dict[tuple[Any, ...], list[Sequence[tf.Variable]]]:
    """Rows by the dtypes and devices of their variables."""
    alike: dict[tuple[Any, ...], list[Sequence[tf.Variable]]] = {}
    for row in rows:
        alike.setdefault(tuple((variable.dtype, variable.device) for variable in row), []).append(row)
    return alike


@lru_cache(maxsize=256)
def _program(body: Body, kinds: tuple[tuple[tf.DType, str], ...], rows: int, scalars: tuple[tf.DType, ...]) -> Any:
    """Handles tell nothing of shapes, so that it serves tensors of all shapes."""

    def run(*given: tf.Tensor) -> Any:
        handles = iter(given[len(scalars) :])
        return body([[_Handed(next(handles), dtype) for dtype, _ in kinds] for _ in range(rows)], given[: len(scalars)])

    asked = [tf.TensorSpec([], dtype) for dtype in scalars] + [tf.TensorSpec([], tf.resource)] * (rows * len(kinds))
    with tf.init_scope():
        function = tf.function(run, autograph=False, experimental_attributes=_WHOLE)
        return function.get_concrete_function(*asked)
