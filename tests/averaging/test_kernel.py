"""The laws of the kernel, bit for bit where they are meant so, on ordinary and extreme numbers."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from polyak.averaging.kernel import lerp, shadow_dtype
from polyak.averaging.rules import EMA
from polyak.errors import DtypeMismatch, RuleError, ShapeMismatch

FLOAT32_MAX = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).smallest_subnormal)

any_float32 = st.floats(width=32)
finite_float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
finite_float64 = st.floats(allow_nan=False, allow_infinity=False)
weights = st.floats(0.0, 1.0) | st.sampled_from([0.5, np.nextafter(0.5, 0), np.nextafter(1, 0), 1e-50, 1e-8])


def bits(array: np.ndarray) -> bytes:
    return np.asarray(array).tobytes()


def f32(x: float) -> np.ndarray:
    return np.array(x, np.float32)


@given(any_float32, any_float32)
@example(float("nan"), float("inf"))
@example(-0.0, 0.0)
@example(FLOAT32_MAX, -FLOAT32_MAX)
def test_weights_zero_and_one_give_the_bits_of_one_end(a: float, x: float) -> None:
    assert bits(lerp(f32(a), f32(x), 0.0)) == bits(f32(a))
    assert bits(lerp(f32(a), f32(x), 1.0)) == bits(f32(x))


def test_the_payload_of_a_nan_survives_weights_zero_and_one() -> None:
    odd = np.array([0x7FC12345, 0xFFABCDEF], np.uint32).view(np.float32)
    assert bits(lerp(odd, f32([1, 2]), 0.0)) == bits(odd)
    assert bits(lerp(f32([1, 2]), odd, 1.0)) == bits(odd)


@given(finite_float32, weights)
@example(-0.0, 0.25)
@example(-0.0, 0.75)
@example(0.0, 0.25)
@example(TINY, 0.3)
@example(FLOAT32_MAX, 0.7)
def test_equal_inputs_stay_fixed_bit_for_bit(x: float, w: float) -> None:
    assert bits(lerp(f32(x), f32(x), w)) == bits(f32(x))
    assert bits(lerp(np.float64(x), np.float64(x), w)) == bits(np.float64(x))


@given(finite_float32, finite_float32, weights)
@example(FLOAT32_MAX, -FLOAT32_MAX, 0.3)
@example(-FLOAT32_MAX, FLOAT32_MAX, 0.7)
@example(FLOAT32_MAX, -FLOAT32_MAX, 1e-50)
@example(TINY, 0.0, 0.4999)
@example(TINY, -TINY, 0.5)
@example(3 * TINY, 0.0, 0.5)
@example(1.0, float(np.nextafter(np.float32(1), np.float32(2))), 0.49999999)
def test_the_result_never_leaves_the_two_ends(a: float, x: float, w: float) -> None:
    result = float(lerp(f32(a), f32(x), w))
    assert min(a, x) <= result <= max(a, x)


@given(finite_float64, finite_float64, weights)
def test_the_result_never_leaves_the_two_ends_in_float64(a: float, x: float, w: float) -> None:
    result = float(lerp(np.float64(a), np.float64(x), w))
    assert min(a, x) <= result <= max(a, x)


@given(finite_float32, finite_float32, weights)
def test_the_result_is_the_exact_one_to_rounding(a: float, x: float, w: float) -> None:
    exact = np.longdouble(a) + np.longdouble(w) * (np.longdouble(x) - np.longdouble(a))
    error = abs(np.longdouble(float(lerp(f32(a), f32(x), w))) - exact)
    assert error <= 3e-7 * max(abs(a), abs(x)) + 2 * TINY


@given(finite_float32, finite_float32, finite_float32, weights)
def test_it_is_monotone_in_the_farther_end(near: float, far: float, other: float, w: float) -> None:
    assume(max(abs(near), abs(far), abs(other)) < FLOAT32_MAX / 2)
    low, high = sorted((far, other))
    if w < 0.5:
        assert lerp(f32(near), f32(low), w) <= lerp(f32(near), f32(high), w)
    else:
        assert lerp(f32(low), f32(near), w) <= lerp(f32(high), f32(near), w)


@given(finite_float32, finite_float32, st.floats(0, 0.5, exclude_max=True), st.floats(0, 0.5, exclude_max=True))
def test_it_is_monotone_in_the_weight_on_each_side_of_one_half(a: float, x: float, v: float, w: float) -> None:
    assume(max(abs(a), abs(x)) < FLOAT32_MAX / 2)
    v, w = sorted((v, w))
    toward = 1.0 if x >= a else -1.0
    assert toward * lerp(f32(a), f32(x), v) <= toward * lerp(f32(a), f32(x), w)
    # 1 - (1 - v) may round v away, so the two weights are compared as the kernel sees them.
    assert toward * lerp(f32(a), f32(x), 1 - w) <= toward * lerp(f32(a), f32(x), 1 - v)


def test_overflowing_elements_alone_take_the_other_form() -> None:
    a = f32([FLOAT32_MAX, 1.0, -FLOAT32_MAX])
    x = f32([-FLOAT32_MAX, 2.0, FLOAT32_MAX])
    assert lerp(a, x, 0.25) == pytest.approx([FLOAT32_MAX / 2, 1.25, -FLOAT32_MAX / 2], rel=1e-6)
    assert lerp(a, x, 0.75) == pytest.approx([-FLOAT32_MAX / 2, 1.75, FLOAT32_MAX / 2], rel=1e-6)


@pytest.mark.parametrize("w", [0.25, 0.75])
def test_infinities_give_their_limits_and_never_an_unmarked_number(w: float) -> None:
    inf, nan = np.inf, np.nan
    result = lerp(f32([inf, 1.0, inf, -inf, nan, 1.0]), f32([1.0, -inf, inf, inf, 1.0, nan]), w)
    assert result[:3].tolist() == [inf, -inf, inf]
    assert np.isnan(result[3:]).all()


def test_a_small_value_survives_a_large_average() -> None:
    assert float(lerp(f32(1e8), f32(1e-6), np.nextafter(1, 0))) == pytest.approx(1e-6, rel=0.05)


@given(st.floats(1e-30, 1e-8))
def test_one_minus_a_weight_near_one_is_formed_in_float64(step: float) -> None:
    w = 1.0 - step
    assume(w < 1.0)
    assert float(lerp(f32(1.0), f32(0.0), w)) == pytest.approx(1.0 - w, rel=1e-6, abs=0)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_narrow_types_are_widened_before_the_arithmetic(dtype: type) -> None:
    a, x = np.array([1.0, 0.5], dtype), np.array([0.5, 1.0], dtype)
    for w in (0.0, 0.001, 0.9, 1.0):
        result = lerp(a, x, w)
        assert result.dtype == np.float32
        assert bits(result) == bits(lerp(a.astype(np.float32), x.astype(np.float32), w))
    assert bits(lerp(f32([1, 2]), x, 0.3)) == bits(lerp(f32([1, 2]), x.astype(np.float32), 0.3))


def test_a_bfloat16_average_moves() -> None:
    average, value = np.array(1.0, ml_dtypes.bfloat16), np.array(1.25, ml_dtypes.bfloat16)
    for n in range(1, 3001):
        average = lerp(average, value, float(EMA(0.999, "initial").weight(n)))
    assert float(average) == pytest.approx(1.25 - 0.25 * 0.999**3000, abs=2e-5)


def test_the_dtype_is_that_of_the_average() -> None:
    assert lerp(np.float64([1.0]), f32([2.0]), 0.1).dtype == np.float64
    assert lerp(f32([1.0]), np.float64([2.0]), 0.1).dtype == np.float32
    assert lerp(f32([1.0]), np.float64([1e300]), 1.0) == np.inf


@pytest.mark.parametrize("w", [0.0, 0.3, 0.7, 1.0])
def test_the_result_is_a_new_array_and_the_inputs_stay(w: float) -> None:
    a, x = f32([1.0, 2.0]), f32([3.0, 4.0])
    result = lerp(a, x, w)
    assert isinstance(result, np.ndarray)
    assert not np.shares_memory(result, a)
    assert not np.shares_memory(result, x)
    result[:] = -1
    assert a.tolist() == [1.0, 2.0]
    assert x.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("shape", [(), (0,), (3, 2, 4)])
def test_any_shape_stays(shape: tuple[int, ...]) -> None:
    for w in (0.0, 0.3, 0.7, 1.0):
        assert lerp(np.zeros(shape), np.ones(shape), w).shape == shape


@pytest.mark.parametrize(
    ("name", "shadow"),
    [
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("float8_e4m3fn", "float32"),
        ("float8_e5m2", "float32"),
        ("float8_e4m3b11fnuz", "float32"),
        ("float4_e2m1fn", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
        ("float128", "float128"),
        ("int8", "int8"),
        ("uint32", "uint32"),
        ("bool", "bool"),
        ("string", "string"),
        ("complex64", "complex64"),
    ],
)
def test_shadow_dtype(name: str, shadow: str) -> None:
    assert shadow_dtype(name) == shadow


def test_shapes_must_agree() -> None:
    with pytest.raises(ShapeMismatch) as caught:
        lerp(np.zeros((3, 1)), np.zeros(3), 0.5)
    assert str(caught.value) == "lerp: expected a value of the average's shape (3, 1), received (3,)"


@pytest.mark.parametrize("dtype", ["int64", "bool", "complex64", "U3"])
def test_only_floating_point_is_averaged(dtype: str) -> None:
    for a, x in [(np.zeros(2, dtype), np.zeros(2)), (np.zeros(2), np.zeros(2, dtype))]:
        with pytest.raises(DtypeMismatch) as caught:
            lerp(a, x, 0.5)
        assert caught.value.message == f"lerp: expected floating-point arrays, received {np.dtype(dtype)}"


@pytest.mark.parametrize("w", [-1e-9, 1.0000001, float("nan"), float("inf")])
def test_weights_outside_the_unit_interval_are_refused(w: float) -> None:
    with pytest.raises(RuleError) as caught:
        lerp(np.zeros(2), np.zeros(2), w)
    assert caught.value.message == f"lerp: expected a weight in [0, 1], received {w}"
