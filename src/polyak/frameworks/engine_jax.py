"""The arrays of JAX: one compiled program an update, in which the old shadows give their memory to the new ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from polyak.errors import ModelError
from polyak.frameworks.base import Tree
from polyak.frameworks.engine import Arrays, Engine, Held, Program, held_from, tree_of
from polyak.frameworks.exchange import Hands, Over
from polyak.frameworks.jax_refusals import (
    is_elsewhere,
    is_gone,
    refuse_compiled,
    refuse_elsewhere,
    refuse_gone,
    refuse_gone_weights,
    refuse_traced,
)
from polyak.memory import copied
from polyak.snapshot import Array


class JaxOps:
    """The functions in which rules are written, on float64 arrays, also where JAX works with 32 bits otherwise."""

    def asarray(self, x: Any) -> Any:
        return jnp.asarray(x, jnp.float64)

    def minimum(self, x: Any, y: Any) -> Any:
        return jnp.minimum(x, y)

    def maximum(self, x: Any, y: Any) -> Any:
        return jnp.maximum(x, y)

    def power(self, x: Any, y: Any) -> Any:
        return jnp.power(x, y)

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        return jnp.where(condition, x, y)

    def floor(self, x: Any) -> Any:
        return jnp.floor(x)

    def expm1(self, x: Any) -> Any:
        return jnp.expm1(x)

    def log1p(self, x: Any) -> Any:
        return jnp.log1p(x)

    def cos(self, x: Any) -> Any:
        return jnp.cos(x)

    def prod(self, array: Any) -> Any:
        return jnp.prod(array, axis=-1)

    def arange(self, start: int, stop: int) -> Any:
        return jnp.arange(start, stop, dtype=jnp.float64)


OPS = JaxOps()
# A small model: so many arrays of so many numbers. XLA spends more on their squares and a branch than on their largest.
# Of more arrays each would be looked at again for each shadow, because nothing but a branch ends what XLA fuses.
_FEW, _SMALL = 16, 1 << 12


def in_float64() -> Any:
    """A context in which JAX computes with 64 bits, as rules are written."""
    return jax.enable_x64(True)


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

    def settle(self, model: Any) -> None:
        # Of an evaluation that raised Keras keeps averaged values: it would write them over the raw ones later.
        if vars(model).get("_jax_state"):
            model.jax_state_sync()

    def start(self, array: Any, dtype: str, zeros: bool) -> Any:
        with in_float64():
            return jnp.zeros_like(array, dtype=dtype, device=array.sharding) if zeros else self.cast(array, dtype)

    def cast(self, array: Any, dtype: str) -> Any:
        """Always an array of its own: a compiled step deletes those that it is given."""
        with in_float64():
            return jnp.array(array, dtype=dtype, copy=True)

    def readable(self, shadow: Any, variable: Any) -> Any:
        return shadow if shadow.dtype.name == variable.dtype else self.as_weight(shadow, variable)

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
        with in_float64():
            return bool(_are_within([array]))

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
            raise
        refuse_traced(new[0]["count"])
        return [held_from(tree) for tree in new]

    def pure_step(self, program: Program, held: Held, values: Arrays) -> Held:
        return held_from(stepped_alone([program], [tree_of(held)], values)[0])

    def refuse_traced(self, array: Any) -> None:
        """Nothing is computed from the array: the step of another thread may take its memory away just now."""
        refuse_compiled(array)

    def is_gone(self, array: Any) -> bool:
        return is_gone(array)

    def refuse_gone(self, array: Any, what: str) -> None:
        refuse_gone(array, what)

    def along(self, shadows: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
        return {path: _along(shadow, variables[path]._value) for path, shadow in shadows.items()}


def _along(shadow: Any, value: Any) -> Any:
    there = value is None or is_gone(value) or not is_elsewhere(shadow, value)
    return shadow if there else _placed(shadow, value, value.sharding)


def _are_same(put: Over, found: Any) -> bool:
    """Whether it is the same array, or another one of the same numbers, which evaluations leave behind.

    Of what a step that failed has taken away, or other processes hold, nobody can tell here.
    """
    if found is put.mark or found is None or found.is_deleted() or not found.is_fully_addressable:
        return True
    return bool(jnp.array_equal(put.make(), found, equal_nan=True))


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


@lru_cache(maxsize=64)
def compiled(programs: tuple[Program, ...], takes_over: bool = True) -> Callable[..., list[Tree]]:
    """``stepped`` as one program; it takes over the memory of its first argument, or leaves it as it is."""
    given = 0 if takes_over else ()
    return jax.jit(lambda trees, values, real=True: stepped(programs, trees, values, real), donate_argnums=given)  # type: ignore[no-any-return]


def stepped_alone(
    programs: Sequence[Program], trees: Sequence[Tree], values: Mapping[str, Any], *real: Any
) -> list[Tree]:
    """``stepped`` within a function that is compiled; elsewhere it is compiled by itself, and takes over no memory.

    Run one operation after another, JAX would compile each branch in it anew at each call.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((trees, values, real))):
        return stepped(programs, trees, values, *real)
    with in_float64():  # arrays of NumPy would come in with 32 bits
        found: list[Tree] = compiled(tuple(programs), takes_over=False)(list(trees), dict(values), *real)
    return found


def stepped(
    programs: Sequence[Program], trees: Sequence[Tree], values: Mapping[str, Any], real: Any = True
) -> list[Tree]:
    """One update of averages of one model as a pure function of arrays.

    Every choice is a scalar that selects among values: XLA makes one loop over each array of it.

    Args:
        values: the weights, by path.
        real: a truth value; false leaves everything as it is.
    """
    with in_float64():
        values = {path: _as_stored(value) for path, value in values.items()}
        turns = [_Turn.of(program, tree, real) for program, tree in zip(programs, trees, strict=True)]
        safe = {guarded: _looked_at(turns, guarded, values) for guarded in dict.fromkeys(p.guarded for p in programs)}
        return [turn.done(safe[turn.program.guarded], values) for turn in turns]


@dataclass(frozen=True, slots=True)
class _Turn:
    """One average at one update: the weights of the newest values by rule, and whether it moves at all."""

    program: Program
    tree: Tree
    real: Any
    weights: list[Any]
    moving: Any

    @classmethod
    def of(cls, program: Program, tree: Tree, real: Any) -> _Turn:
        n = tree["count"].astype(jnp.float64) + 1.0
        weights = [jnp.asarray(rule.weight(n, OPS), jnp.float64) for rule, _ in program.moved]
        moving = jnp.any(jnp.stack([w > 0.0 for w in weights])) if weights else jnp.asarray(True)
        return cls(program, tree, real, weights, moving & real)

    @property
    def rests(self) -> bool:
        """Whether most updates leave everything as it is: then a branch that reads nothing is worth having."""
        return bool(self.weights) and all(rule.rests for rule, _ in self.program.moved)

    def done(self, safe: Any, values: Mapping[str, Any]) -> Tree:
        """The state after the update, if the values are fit to be averaged."""
        safe = ~self.moving | safe
        go = self.moving & safe
        shadows = self.tree["shadows"]
        if self.rests:
            moved = jax.lax.cond(go, lambda: self._moved(shadows, values, go), lambda: shadows)
        else:
            moved = self._moved(shadows, values, go)
        updated, skipped = ((self.real & ok).astype(jnp.int64) for ok in (safe, ~safe))
        return {"shadows": moved, "count": self.tree["count"] + updated, "skipped": self.tree["skipped"] + skipped}

    def _moved(self, shadows: Tree, values: Mapping[str, Any], go: Any) -> Tree:
        moved = {path: jnp.where(go, values[path], shadows[path]) for path in self.program.copied}
        for (_, paths), w in zip(self.program.moved, self.weights, strict=True):
            share = _Share.of(w, go)
            moved |= {path: _lerp(shadows[path], values[path], share) for path in paths}
        return {path: moved.get(path, shadow) for path, shadow in shadows.items()}


def _looked_at(turns: Sequence[_Turn], guarded: tuple[str, ...], values: Mapping[str, Any]) -> Any:
    """Whether weights that several averages follow are fit to be averaged. While all of them rest nobody looks."""
    own = [turn for turn in turns if turn.program.guarded == guarded]
    # Apart from what is averaged: XLA would cast a narrow value once for both, into memory.
    followed = [_as_stored(values[path]) for path in guarded]
    if not all(turn.rests for turn in own):
        return _are_safe(followed)
    moving = jnp.any(jnp.stack([turn.moving for turn in own]))
    return jax.lax.cond(moving, lambda: _are_safe(followed), lambda: jnp.asarray(True))


@dataclass(frozen=True, slots=True)
class _Share:
    """What the weight w of the newest value decides for all arrays: from which end, whether the other counts, how far.

    From the near end, the average, the step is w; from the far one, the value, it is 1 - w. Both are formed in float64.
    """

    from_average: Any
    to_value: Any
    step: Any

    @classmethod
    def of(cls, w: Any, go: Any) -> _Share:
        near = w < 0.5
        return cls(near | ~go, go & ((near & (w > 0.0)) | (w >= 1.0)), jnp.where(near, w, 1.0 - w))


def _are_safe(values: Sequence[Any]) -> Any:
    """Whether all are finite and below half of the range, so that no difference of two overflows.

    A finite sum of squares proves it in one quick pass. If it is not finite, it may only have overflowed, and the
    values themselves are looked at: those of a small model at once, because a branch takes longer than they do.
    """
    if len(values) <= _FEW and all(v.size <= _SMALL for v in values):
        return _are_within(values)
    total = sum(jnp.sum(jnp.square(_wide(v))).astype(jnp.float64) for v in values)
    return jax.lax.cond(jnp.isfinite(total), lambda: jnp.asarray(True), lambda: _are_within(values))


def _are_within(values: Sequence[Any]) -> Any:
    """Each value is compared: the largest of them would do, but on CPUs XLA's ``max`` passes over NaN."""
    if not values:
        return jnp.asarray(True)
    wide = list(map(_wide, values))
    return jnp.all(jnp.stack([jnp.all(jnp.abs(v) <= float(jnp.finfo(v.dtype).max) / 2) for v in wide]))


def _as_stored(value: Any) -> Any:
    """A value as its weight will hold it. XLA would hand a narrow one over as it was before it was rounded."""
    return jax.lax.optimization_barrier(value) if jnp.dtype(value.dtype).itemsize < 4 else value


def _wide(value: Any) -> Any:
    return value if value.dtype == jnp.float64 else value.astype(jnp.float32)


def _lerp(a: Any, value: Any, share: _Share) -> Any:
    """The two-sided kernel. ``minimum`` with the largest number changes nothing, for the guard keeps steps below it.

    It stands between the product and the difference, so that XLA cannot fuse the two into one operation that rounds
    once: the bits are those of NumPy.
    """
    x = value.astype(a.dtype)
    base, other = jnp.where(share.from_average, a, x), jnp.where(share.to_value, x, a)
    return base - jnp.minimum(share.step.astype(a.dtype) * (base - other), jnp.finfo(a.dtype).max)
