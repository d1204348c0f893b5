"""The kernel in JAX: one update of averages as a pure function, and the operations that rules are written in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from polyak.frameworks.base import Tree
from polyak.frameworks.engine import Program


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
# Where every value is compared, which is seldom: these take memory once more.
_SELDOM_SMALL = 1 << 16
# So many arrays lie end to end.
_ROW = 256


def in_float64() -> Any:
    """A context in which JAX computes with 64 bits, as rules are written."""
    return jax.enable_x64(True)


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
        return are_within(values)
    sums = jnp.stack([jnp.sum(jnp.square(v)) for v in _end_to_end(values, _SMALL)])
    return jax.lax.cond(jnp.all(jnp.isfinite(sums)), lambda: jnp.asarray(True), lambda: are_within(values))


def are_within(values: Sequence[Any]) -> Any:
    """Each value is compared: the largest of them would do, but on CPUs XLA's ``max`` passes over NaN."""
    if not values:
        return jnp.asarray(True)
    return jnp.all(jnp.stack([jnp.all(_is_within(v)) for v in _end_to_end(values, _SELDOM_SMALL)]))


def _is_within(value: Any) -> Any:
    return jnp.abs(value) <= float(jnp.finfo(value.dtype).max) / 2


def _end_to_end(values: Sequence[Any], most: int) -> list[Any]:
    """The values, wide; those of up to so many numbers end to end in few arrays, for XLA compiles a loop for each.

    Not where there are several devices: arrays may be spread over them, each in its own way.
    """
    wide = list(map(_wide, values))
    if jax.device_count() > 1:
        return wide
    small = [v for v in wide if v.size <= most]
    alike = [[v.reshape(-1) for v in small if v.dtype == dtype] for dtype in dict.fromkeys(v.dtype for v in small)]
    rows = [flat[start : start + _ROW] for flat in alike for start in range(0, len(flat), _ROW)]
    return [*map(jnp.concatenate, rows), *(v for v in wide if v.size > most)]


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
