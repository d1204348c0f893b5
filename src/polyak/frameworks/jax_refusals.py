"""Arrays of JAX that cannot be computed with where they are asked for: traced, deleted, or on other devices."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from polyak.errors import ModelError
from polyak.frameworks.base import Tree

try:
    from jax.extend.core import get_opaque_trace_state
except ImportError:  # of older versions of JAX
    from jax.core import get_opaque_trace_state


@cache
def _outside() -> object:
    """What JAX says in a thread in which it compiles nothing."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(get_opaque_trace_state, convention="flax").result()


def refuse_compiled(array: Any) -> None:
    """Raise ModelError for an array that is traced, and within a function that JAX compiles: what is computed there is.

    To compute something takes longer than to read an average, so it is done only where JAX is not as it is outside.
    """
    refuse_traced(array)
    if get_opaque_trace_state(convention="flax") != _outside():
        refuse_traced(jnp.zeros(()))


def refuse_traced(array: Any) -> None:
    """Raise ModelError for what stands for an array while a function is compiled."""
    if isinstance(array, jax.core.Tracer):
        raise ModelError(
            "the average was used inside a function that JAX compiles: it would stay there what it is now",
            hint="pass its state through: tree = ema.tree(), then ema.stateless_update(tree, ...) and "
            "ema.stateless_call(tree, x) in the function, and ema.take(tree) after it",
        )


def is_gone(array: Any) -> bool:
    """Whether its memory was given away or freed."""
    return isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer) and array.is_deleted()


def refuse_gone(array: Any, what: str) -> None:
    """Raise ModelError for an array whose memory was given away or freed."""
    if is_gone(array):
        raise ModelError(
            f"{what}: expected a value, received a deleted array: a compiled step was given it (donate_argnums)",
            hint="go on from what the step returned, which is to be assigned to the variables or taken as the tree; or "
            "give the step a copy",
        )


def refuse_gone_weights(values: Mapping[str, Any]) -> None:
    """Raise ModelError for the first weight whose memory was given away or freed."""
    for path, value in values.items():
        refuse_gone(value, f"weight {path!r}")


def refuse_elsewhere(shadows: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raise ModelError for a weight that was put on other devices than its shadow."""
    for path, shadow in shadows.items():
        if is_elsewhere(shadow, values[path]):
            raise ModelError(
                f"weight {path!r}: expected on {_devices(shadow)}, where its shadow is, received on "
                f"{_devices(values[path])}",
                hint="ema.refresh() moves the average to where the weights are now",
            )


def refuse_apart(values: Mapping[str, Any]) -> None:
    """Raise ModelError for weights that are bound to other devices than the first of them: no program takes both."""
    _refuse_spread(
        {f"weight {path!r}": value for path, value in values.items()},
        'track the model with placement="host", which keeps the average of all in the memory of the host',
    )


def refuse_tree_apart(tree: Tree, values: Mapping[str, Any]) -> None:
    """Raise ModelError for a tree and values that are bound to other devices than the first of them."""
    parts = {**{repr(path): array for path, array in tree["shadows"].items()}, **tree}
    arrays = {f"{part} of the tree": array for part, array in parts.items() if part != "shadows"}
    _refuse_spread(
        {f"weight {path!r}": value for path, value in values.items()} | arrays,
        "put all of them on one device, the tree by jax.device_put(tree, device); of a model on several devices keep "
        'the average by ema.update(), with placement="host"',
    )


def _refuse_spread(arrays: Mapping[str, Any], hint: str) -> None:
    """``arrays``: by what an error calls them."""
    bound = {what: a for what, a in arrays.items() if isinstance(a, jax.Array) and a.committed}
    first = next(iter(bound), "")
    for what, array in bound.items():
        if is_elsewhere(bound[first], array):
            raise ModelError(
                f"{what}: expected on {_devices(bound[first])}, where {first} is, received on {_devices(array)}",
                hint=hint,
            )


def is_elsewhere(shadow: Any, value: Any) -> bool:
    """Whether both are bound to devices, and to others."""
    bound = shadow.committed and value.committed
    return bool(bound and shadow.sharding.device_set != value.sharding.device_set)


def _devices(array: Any) -> str:
    return ", ".join(sorted(map(str, array.sharding.device_set)))
