"""The kernel in TensorFlow: the two-sided lerp over many variables, and the operations that rules are written in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from operator import not_
from typing import Any, TypeVar

import tensorflow as tf

from polyak.frameworks.tensorflow_batches import Body, Held, Rows, Scalars, is_compiled, is_spread, over

Pairs = Sequence[tuple[tf.Variable, tf.Variable]]
T = TypeVar("T")


class TensorFlowOps:
    """The functions in which rules are written, on float64 tensors; Python numbers stand for float64."""

    def asarray(self, x: Any) -> Any:
        return tf.cast(x, tf.float64)

    def minimum(self, x: Any, y: Any) -> Any:
        return tf.minimum(_f64(x), _f64(y))

    def maximum(self, x: Any, y: Any) -> Any:
        return tf.maximum(_f64(x), _f64(y))

    def power(self, x: Any, y: Any) -> Any:
        return tf.pow(_f64(x), _f64(y))

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        return tf.where(condition, _f64(x), _f64(y))

    def floor(self, x: Any) -> Any:
        return tf.floor(_f64(x))

    def expm1(self, x: Any) -> Any:
        return tf.math.expm1(_f64(x))

    def log1p(self, x: Any) -> Any:
        return tf.math.log1p(_f64(x))

    def cos(self, x: Any) -> Any:
        return tf.cos(_f64(x))

    def prod(self, array: Any) -> Any:
        return tf.reduce_prod(array, axis=-1)

    def arange(self, start: int, stop: int) -> Any:
        return tf.range(start, stop, dtype=tf.float64)


OPS = TensorFlowOps()


# One compiled loop over a tensor reads and writes each number once. Starting it costs tens of microseconds a weight,
# compiling it tens of milliseconds a shape.
_MOST_FUSED = 512
_LEAST_FUSED = 2**20
# Up to so many numbers, what each operation costs TensorFlow outweighs what it computes, and a branch has several.
_SMALL = 2**12
# Of so many small weights all values are compared at once under XLA, too: it takes no longer than a sum and a branch.
_FEW = 64
# The largest number of 16 bits that is below half of the range of the float32 in which it is averaged.
_LARGEST = {tf.bfloat16: tf.bfloat16.max / 2, tf.float16: tf.float16.max}
# Rows of so many numbers are worth a product of their own.
_WIDE_ROW = 32


@dataclass(frozen=True, slots=True)
class Part:
    """Pairs of (shadow, weight) that move alike: by ``w``, a float64 scalar in [0, 1], if ``go``."""

    pairs: Pairs
    w: tf.Tensor
    go: tf.Tensor


def move(parts: Sequence[Part]) -> None:
    """Move each shadow. The same four cases as ``polyak.averaging.kernel.lerp``; a scalar decides for a whole part.

    Outside of a function nothing is fused, because a program that is not kept would be compiled anew each time, and
    of the cases only the one that is meant costs anything.
    """
    if not tf.inside_function():
        for part in parts:
            _by_case(part.pairs, part.w, part.go)
        return
    small, large = _sorted(parts)
    for part in small:
        _do(_select, part.pairs, _share(part.w, 1 - part.w, part.go))
    if _are_worth_fusing(large):
        _fused(large)
        return
    for part in large:
        _by_case(part.pairs, part.w, part.go)


def glide(parts: Sequence[Part]) -> None:
    """``move``, in a function, for weights that are known to be 0 or below one half: a graph of a third of the size."""
    small, large = _sorted(parts)
    for part in small:
        _do(_nudge, part.pairs, [tf.where(part.go, part.w, 0)])
    if _are_worth_fusing(large):
        _fused(large)
        return
    for part in large:
        tf.cond(part.go & (part.w > 0), partial(_do, _near, part.pairs, [part.w]), _nothing)


def _by_case(pairs: Pairs, w: tf.Tensor, go: tf.Tensor) -> None:
    case = tf.cast(w > 0, tf.int32) + tf.cast(w >= 0.5, tf.int32) + tf.cast(w >= 1, tf.int32)
    near, far = partial(_do, _near, pairs, [w]), partial(_do, _far, pairs, [1 - w])
    tf.switch_case(tf.where(go, case, 0), [_nothing, near, far, partial(_do, _copy, pairs)])


def copy(pairs: Pairs, go: tf.Tensor) -> None:
    """Make each shadow of (shadow, weight) equal to the weight, if ``go``."""
    if pairs:
        tf.cond(go, partial(_do, _copy, pairs), _nothing)


def is_safe(variables: Sequence[tf.Variable]) -> tf.Tensor:
    """Whether all values are finite and below half of the range, so that no difference of two overflows.

    Of small weights every value is compared. Of others one pass without memory of its own proves it by a finite sum; if
    that is not finite, it may only have overflowed, and the values themselves are looked at. So is it of many small
    weights where XLA compiles, which would look at them again for each shadow without the branch.
    """
    if not variables:
        return tf.constant(True)
    small, large = _parted(variables, map(_is_small, variables))
    narrow, large = _parted(large, map(_has_order_in_its_bits, large))
    told = [_is_tame_by_its_bits(variable) for variable in narrow]
    if small and not (is_compiled() and (narrow or large or len(small) > _FEW)):
        told += over(_compare, [(variable,) for variable in small])
        small = []
    if small or large:
        told.append(_have_safe_sums(small, large))
    return _all(told)


def _have_safe_sums(small: Sequence[tf.Variable], large: Sequence[tf.Variable]) -> tf.Tensor:
    flats = _end_to_end(small)
    sums = [tf.cast(_proof(value), tf.float64) for value in (*flats, *map(_wide, large))]
    finite = tf.math.is_finite(tf.add_n(sums))
    return tf.cond(finite, lambda: tf.constant(True), lambda: _all_safe([*flats, *_end_to_end(large)]))


def _compare(rows: Rows, scalars: Scalars = ()) -> tf.Tensor:
    """Whether all values of some variables are safe, without a sum."""
    del scalars
    return _all_safe(_end_to_end([variable for (variable,) in rows]))


def _has_order_in_its_bits(variable: tf.Variable) -> bool:
    """Of 16 bits, where XLA will not compile: XLA would take far longer than for a cast, TensorFlow takes half."""
    return variable.dtype in _LARGEST and not is_compiled()


def _is_tame_by_its_bits(variable: tf.Variable) -> tf.Tensor:
    """Whether all values are within what may be averaged: numbers of one sign are in the order of their bits.

    Read with a sign, the largest bits are those of the largest positive number; without one, of the lowest negative.
    """
    most = tf.bitcast(tf.constant(_LARGEST[variable.dtype], variable.dtype), tf.int16)
    positive = tf.reduce_max(tf.bitcast(variable, tf.int16))
    negative = tf.bitcast(tf.reduce_max(tf.bitcast(variable, tf.uint16)), tf.int16) & 0x7FFF
    return (positive <= most) & (negative <= most)


def _proof(value: tf.Tensor) -> tf.Tensor:
    """A sum that is finite only if every value is finite and below half of the range.

    A sum of squares is one. So is the sum of four times each value: what cancels there has not overflowed before. XLA
    takes it, as a product with a vector, on all cores and in a quarter of the time.
    """
    last = value.shape[-1] or 0 if (value.shape.rank or 0) > 1 else 0
    if last < _WIDE_ROW:
        return tf.nn.l2_loss(value)
    rows = tf.reshape(value, [-1, last])
    return tf.reduce_sum(tf.linalg.matvec(rows, tf.fill([last], tf.constant(4, value.dtype))))


def _all_safe(flats: Sequence[tf.Tensor]) -> tf.Tensor:
    return _all([tf.reduce_all(tf.abs(f) <= f.dtype.max / 2) for f in flats])


def _all(truths: Sequence[tf.Tensor]) -> tf.Tensor:
    return truths[0] if len(truths) == 1 else tf.reduce_all(truths)


def _end_to_end(variables: Sequence[Held]) -> list[tf.Tensor]:
    """All values in a flat tensor, or two where some are float64."""
    values = [tf.reshape(_wide(v), [-1]) for v in variables]
    return [tf.concat([v for v in values if v.dtype == dtype], 0) for dtype in {v.dtype for v in values}]


def _wide(variable: Held) -> tf.Tensor:
    return tf.cast(variable.value(), tf.float64 if variable.dtype == tf.float64 else tf.float32)


def _is_kept(weight: tf.Variable, dtype: tf.DType) -> bool:
    """Whether ``_as_stored`` sees to it that XLA follows what the weight holds. It never looks into a branch."""
    return weight.dtype == dtype or (weight.dtype, dtype) == (tf.bfloat16, tf.float32)


def _as_stored(weight: Held, dtype: tf.DType) -> tf.Tensor:
    """A weight in the dtype of its shadow. Of bfloat16, the upper half of the bits of a float32.

    Where a cast to a wider dtype stands beside the optimizer's assignment, XLA leaves out that the weight is rounded to
    its own dtype: the two casts are one to it.
    """
    if (weight.dtype, dtype) != (tf.bfloat16, tf.float32):
        return tf.cast(weight.value(), dtype)  # read once, where a variable would be read at each use
    bits = tf.cast(tf.bitcast(weight.value(), tf.uint16), tf.uint32)
    return tf.bitcast(tf.bitwise.left_shift(bits, tf.constant(16, tf.uint32)), tf.float32)


def _is_small(variable: tf.Variable) -> bool:
    return (variable.shape.num_elements() or _SMALL + 1) <= _SMALL


def _sorted(parts: Sequence[Part]) -> tuple[list[Part], list[Part]]:
    """Small pairs, which need no branch, and the others; of each, parts that have some."""
    split = [_parted(part.pairs, (_is_small(s) and _is_kept(w, s.dtype) for s, w in part.pairs)) for part in parts]
    small = [replace(part, pairs=pairs) for part, (pairs, _) in zip(parts, split, strict=True) if pairs]
    large = [replace(part, pairs=pairs) for part, (_, pairs) in zip(parts, split, strict=True) if pairs]
    return small, large


def _parted(things: Sequence[T], first: Iterable[bool]) -> tuple[list[T], list[T]]:
    """Those that belong to the first part, and the others."""
    belongs = list(first)
    return list(compress(things, belongs)), list(compress(things, map(not_, belongs)))


def _are_worth_fusing(parts: Sequence[Part]) -> bool:
    """Large tensors, not too many of them, and not spread over replicas, each of which traces for itself."""
    shadows = [shadow for part in parts for shadow, _ in part.pairs]
    if any(shadow.device != weight.device for part in parts for shadow, weight in part.pairs):
        return False  # a program of XLA lives on one device
    few = len({id(weight) for part in parts for _, weight in part.pairs}) <= _MOST_FUSED
    large = sum(s.shape.num_elements() for s in shadows) >= _LEAST_FUSED
    return few and large and not is_spread(shadows)


def _fused(parts: Sequence[Part]) -> None:
    """``move`` as programs of XLA without branches: every case is a scalar that selects among values.

    A program moves all shadows of one weight, which is in the cache when the second one asks for it. What XLA compiles
    for one weight serves all others of its shape.
    """
    together: dict[int, tuple[tf.Variable, list[tf.Variable], list[int]]] = {}
    for i, part in enumerate(parts):
        for shadow, weight in part.pairs:
            _, shadows, numbers = together.setdefault(id(weight), (weight, [], []))
            shadows.append(shadow)
            numbers.append(i)
    w, go = (tf.stack(scalars) for scalars in zip(*((part.w, part.go) for part in parts), strict=True))
    compiled = tf.function(_move_together, jit_compile=True, autograph=False)

    def run() -> None:
        chosen = {of: (tf.gather(w, of), tf.gather(go, of)) for of in {tuple(of) for _, _, of in together.values()}}
        for weight, shadows, numbers in together.values():
            compiled(weight, shadows, *chosen[tuple(numbers)])

    tf.cond(tf.reduce_any(go), run, _nothing)


def _move_together(weight: tf.Variable, shadows: Sequence[tf.Variable], w: tf.Tensor, go: tf.Tensor) -> None:
    for i, shadow in enumerate(shadows):
        _select([(shadow, weight)], _share(w[i], 1 - w[i], go[i]))


def _share(w: tf.Tensor, rest: tf.Tensor, go: tf.Tensor) -> Scalars:
    """What the weight of the newest value decides: from which end, whether the other counts, how far."""
    near = w < 0.5
    return near | ~go, go & ((near & (w > 0)) | (w >= 1)), tf.where(near, w, rest)


def _select(rows: Rows, share: Scalars) -> None:
    """All cases without a branch."""
    from_average, to_value, step = share
    for shadow, weight in rows:
        a, x = shadow.value(), _as_stored(weight, shadow.dtype)
        base, other = tf.where(from_average, a, x), tf.where(to_value, x, a)
        shadow.assign(base - _apart(tf.cast(step, a.dtype) * (base - other)))


def _apart(product: tf.Tensor) -> tf.Tensor:
    """The product, for a difference with it. XLA would fuse the two into one operation that rounds once.

    The largest number changes nothing, for guarded steps stay below it; but it stands between them, so that the bits
    are NumPy's. Any function may be compiled: by one that calls it, or because TF_XLA_FLAGS asks for it.
    """
    return tf.minimum(product, product.dtype.max) if tf.inside_function() else product


def _nudge(rows: Rows, scalars: Scalars) -> None:
    """``_near`` without a branch: where ``w`` is 0 nothing moves, whatever the weights hold."""
    by_dtype = _cast_once(scalars, rows)
    for shadow, weight in rows:
        distance = shadow.value() - _as_stored(weight, shadow.dtype)
        shadow.assign_sub(_apart(tf.math.multiply_no_nan(distance, by_dtype[shadow.dtype])))


def _near(rows: Rows, scalars: Scalars) -> None:
    by_dtype = _cast_once(scalars, rows)
    for shadow, weight in rows:
        value = tf.cast(weight.value(), shadow.dtype)
        shadow.assign_sub(_apart(by_dtype[shadow.dtype] * (shadow.value() - value)))


def _far(rows: Rows, scalars: Scalars) -> None:
    by_dtype = _cast_once(scalars, rows)
    for shadow, weight in rows:
        value = tf.cast(weight.value(), shadow.dtype)
        shadow.assign(value - _apart(by_dtype[shadow.dtype] * (value - shadow.value())))


def _copy(rows: Rows, scalars: Scalars = ()) -> None:
    del scalars
    for shadow, weight in rows:
        shadow.assign(tf.cast(weight.value(), shadow.dtype))


def _cast_once(scalars: Scalars, rows: Rows) -> dict[tf.DType, tf.Tensor]:
    return {dtype: tf.cast(scalars[0], dtype) for dtype in {shadow.dtype for shadow, _ in rows}}


def _do(body: Body, rows: Rows, scalars: Scalars = ()) -> None:
    """A branch, which gives back as little as ``_nothing``."""
    over(body, rows, scalars)


def _nothing() -> None:
    return None


def _f64(x: Any) -> tf.Tensor:
    # tf.cast would take a Python number through float32.
    return tf.constant(x, tf.float64) if isinstance(x, int | float) else tf.cast(x, tf.float64)
