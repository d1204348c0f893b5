"""The arrays of JAX: one compiled program an update, in which the old shadows give their memory to the new ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from polyak.errors import ModelError
from polyak.frameworks.engine import Arrays, Engine, Held, Program, held_from, tree_of
from polyak.frameworks.exchange import Hands, Over
from polyak.frameworks.jax_kernel import are_within, compiled, in_float64, stepped_alone
from polyak.frameworks.jax_refusals import (
    is_elsewhere,
    is_gone,
    refuse_apart,
    refuse_compiled,
    refuse_elsewhere,
    refuse_gone,
    refuse_gone_weights,
    refuse_traced,
    refuse_tree_apart,
)
from polyak.memory import copied
from polyak.numbers import is_within
from polyak.snapshot import Array


class JaxEngine(Engine):
    """Keras variables that hold arrays of JAX."""

    def __init__(self) -> None:
        self.hands = Hands(
            take=self.value,
            put=lambda variable, value: variable.assign(value),
            mark=lambda variable: variable._value,
            same=_are_same,
        )

    def value(self, variable: Any) -> Any:
        """The array itself: nothing writes into one of JAX. Raises ModelError while ``fit`` has taken it away."""
        value = variable._value
        if value is None:
            raise ModelError(
                f"weight {variable.path!r}: expected a value, received none: fit() keeps it in its compiled step",
                hint="use polyak.keras.Averaging in fit, or read the weights at the end of an epoch",
            )
        return value

    def dtype_of(self, variable: Any) -> str:
        """Without x64 JAX holds a variable of float64 as float32."""
        return super().dtype_of(variable) if variable._value is None else str(variable._value.dtype)

    def settle(self, model: Any) -> None:
        # Of an evaluation that raised Keras keeps averaged values: it would write them over the raw ones later.
        if vars(model).get("_jax_state"):
            model.jax_state_sync()

    def start(self, array: Any, dtype: str, zeros: bool) -> Any:
        if _is_here(array):  # XLA would compile a copy for each shape
            value = self.view(array)
            return self.from_numpy(np.zeros(value.shape, dtype) if zeros else value.astype(dtype), array)
        with in_float64():
            return jnp.zeros_like(array, dtype=dtype, device=array.sharding) if zeros else self.cast(array, dtype)

    def cast(self, array: Any, dtype: str) -> Any:
        """Always an array of its own: a compiled step deletes those that it is given."""
        with in_float64():
            return jnp.array(array, dtype=dtype, copy=True)

    def readable(self, shadow: Any, variable: Any) -> Any:
        return shadow if shadow.dtype.name == self.dtype_of(variable) else self.as_weight(shadow, variable)

    def apart_from(self, shadows: Iterable[Any], found: Any) -> Any:
        """An update deletes the arrays that it takes over."""
        own = set(map(id, shadows))
        return keras.tree.map_structure(lambda one: jnp.array(one, copy=True) if id(one) in own else one, found)

    def lent(self, shadow: Any, variable: Any) -> Any:
        """A copy: a step that trains on it would give its memory away."""
        return self.as_weight(shadow, variable)

    def view(self, array: Any) -> Array:
        return np.asarray(array)

    def is_parted(self, array: Any) -> bool:
        return not (array.is_fully_addressable or array.is_fully_replicated)

    def drifted(self, array: Any) -> bool:
        seen: dict[str, bytes] = {}
        for shard in array.addressable_shards if len(array.sharding.device_set) > 1 else ():
            own = np.asarray(shard.data).tobytes()
            if seen.setdefault(str(shard.index), own) != own:
                return True
        return False

    def from_numpy(self, value: Array, like: Any) -> Any:
        # JAX may keep the buffer that it is given, and it belongs to the caller.
        return _placed(copied(value), like, like.sharding)

    def beside(self, array: Any, like: Any) -> Any:
        made = self.cast(array, like.dtype.name)
        if like.committed:
            return _placed(made, like, like.sharding)
        return self.from_numpy(self.view(made), like) if made.committed else made

    def is_fit(self, array: Any) -> bool:
        if not _is_here(array):
            with in_float64():
                return bool(are_within([array]))
        return all(is_within(np.asarray(shard.data)) for shard in array.addressable_shards if shard.replica_id == 0)

    def counter(self, value: int, beside: Any) -> Any:
        spread = beside.sharding
        whole = NamedSharding(spread.mesh, PartitionSpec()) if isinstance(spread, NamedSharding) else spread
        return _placed(np.int64(value), beside, whole)

    def step(self, programs: Sequence[Program], held: Sequence[Held], values: Arrays, *real: Any) -> list[Held]:
        """``real``: nothing, or the truth value of ``stepped``."""
        try:
            new = compiled(tuple(programs))([tree_of(h) for h in held], dict(values), *real)
        except (RuntimeError, ValueError):  # looked for only now: an update has no time for it
            refuse_gone_weights(values)
            for one in held:
                refuse_elsewhere(one.shadows, values)
            refuse_apart(values)
            raise
        refuse_traced(new[0]["count"])
        return [held_from(tree) for tree in new]

    def pure_step(self, program: Program, held: Held, values: Arrays) -> Held:
        tree = tree_of(held)
        try:
            return held_from(stepped_alone([program], [tree], values)[0])
        except ValueError:
            refuse_tree_apart(tree, values)
            raise

    def refuse_traced(self, array: Any) -> None:
        """Nothing is computed from the array: the step of another thread may take its memory away just now."""
        refuse_compiled(array)

    def is_gone(self, array: Any) -> bool:
        return is_gone(array)

    def refuse_gone(self, array: Any, what: str) -> None:
        refuse_gone(array, what)

    def along(self, shadows: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
        return {path: _along(shadow, variables[path]._value) for path, shadow in shadows.items()}


def _is_here(array: Any) -> bool:
    """Whether NumPy can look at its numbers where they are."""
    on_cpus = jax.default_backend() == "cpu" and all(device.platform == "cpu" for device in array.devices())
    return array.is_fully_addressable and on_cpus


def _along(shadow: Any, value: Any) -> Any:
    there = value is None or is_gone(value) or not is_elsewhere(shadow, value)
    return shadow if there else _placed(shadow, value, value.sharding)


def _are_same(put: Over, found: Any) -> bool:
    """Whether it is the same array, or another one of the same numbers, which evaluations leave behind.

    Of what a step that failed has taken away, or other processes hold, nobody can tell here.
    """
    if found is put.mark or found is None or found.is_deleted() or not found.is_fully_addressable:
        return True
    made = put.make()
    if is_elsewhere(made, found):
        found = _placed(found, made, made.sharding)
    return bool(jnp.array_equal(made, found, equal_nan=True))


class JaxHostEngine(JaxEngine):
    """Weights may be on an accelerator; shadows are in the host's memory and move there, while it goes on."""

    apart = True

    def start(self, array: Any, dtype: str, zeros: bool) -> Any:
        if len(array.sharding.device_set) > 1:
            raise ModelError(
                f'placement="host": expected weights on one device, received one that is spread over '
                f"{len(array.sharding.device_set)}",
                hint='leave placement="device": a shadow is then spread as its weight is',
            )
        with in_float64():
            return super().start(jax.device_put(array, _host()), dtype, zeros)

    def as_weight(self, shadow: Any, variable: Any) -> Any:
        """Bound to no device: it computes where the model's other arrays are."""
        with in_float64():
            return jnp.array(np.asarray(shadow), dtype=variable.dtype)

    def readable(self, shadow: Any, variable: Any) -> Any:
        return self.as_weight(shadow, variable)

    def along(self, shadows: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
        return dict(shadows)

    def step(self, programs: Sequence[Program], held: Sequence[Held], values: Arrays, *real: Any) -> list[Held]:
        refuse_gone_weights(values)
        here = {path: jax.device_put(value, _host()) for path, value in values.items()}
        return super().step(programs, held, here, *(jax.device_put(truth, _host()) for truth in real))

    def pure_step(self, program: Program, held: Held, values: Arrays) -> Held:
        raise ModelError(
            'stateless_update(): expected an average beside its weights, received one of placement="host", which no '
            "compiled step of the model can hold",
            hint="call ema.update() after the step, or track the model without placement",
        )


def _host() -> Any:
    return jax.local_devices(backend="cpu")[0]


def _placed(value: Any, like: Any, sharding: Any) -> Any:
    """An array that is bound to its devices only if ``like`` is: a compiled step is compiled anew for bound ones."""
    with in_float64():
        return jax.device_put(value, sharding if like.committed else None)
