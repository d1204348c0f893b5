"""What differs between two snapshots: bits, figures, structure and states, against plain NumPy."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import polyak
from polyak.combine import blocks
from polyak.combine.difference import difference, measure
from polyak.errors import AmbiguousRole, DamagedFile, WeightError
from polyak.manifest import State
from polyak.snapshot import Item, Snapshot

EMA = State({"rule": "ema", "decay": 0.99}, 10)


def held(role: str = "raw", state: State | None = None, **arrays: Any) -> Snapshot:
    return Snapshot.from_arrays(arrays, role, state)


def both(raw: Snapshot, average: Snapshot) -> Snapshot:
    items = [*raw.items_by_path.values(), *average.items_by_path.values()]
    return Snapshot(items, {"average": average.state})


def test_equal_bits_are_the_same_and_nan_equals_itself() -> None:
    a = held(w=np.float32([1, np.nan, -0.0]), n=np.int64(3))
    found = difference(a, a.copy())
    assert (found.equal, found.same, found.changed) == (True, 2, ())


def test_the_sign_of_zero_is_a_difference_of_no_size() -> None:
    (change,) = difference(held(w=np.float32([0.0])), held(w=np.float32([-0.0]))).changed
    assert change.gap is not None
    assert (change.gap.max_abs, change.gap.max_rel, change.gap.max_ulp, change.gap.differing) == (0.0, 0.0, 0, 1)


def test_leaves_without_a_partner_are_named() -> None:
    found = difference(held(a=np.float32(1), b=np.float32(1)), held(b=np.float32(1), c=np.float32(1)))
    assert (found.only_in_a, found.only_in_b, found.same, found.equal) == (("a",), ("c",), 1, False)


def test_another_shape_has_no_figures_and_another_dtype_has_no_ulp() -> None:
    a = held(s=np.zeros(2, np.float32), d=np.float32([1.5]))
    b = held(s=np.zeros(3, np.float32), d=np.float64([1.5]))
    shape, dtype = difference(a, b).changed
    assert (shape.shapes, shape.gap) == (((2,), (3,)), None)
    assert dtype.dtypes == ("float32", "float64")
    assert dtype.gap is not None
    assert (dtype.gap.max_abs, dtype.gap.max_ulp, dtype.gap.differing) == (0.0, None, 0)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, ml_dtypes.float8_e5m2])
def test_one_representable_number_is_one_ulp(dtype: Any) -> None:
    for value in (1.0, -1.0, 0.25):
        one = np.array([value], dtype)
        bits = one.view(f"u{one.itemsize}") + 1
        assert measure(one, bits.view(dtype)).max_ulp == 1


def test_ulp_crosses_zero_and_spans_the_whole_of_float64() -> None:
    tiny = np.array([5e-324])
    assert measure(tiny, -tiny).max_ulp == 2
    most = np.array([np.finfo(np.float64).max])
    assert measure(most, -most).max_abs is None  # their distance is no float64
    assert measure(np.array([1e308]), np.array([-7e307])).max_ulp > 2**63


def test_nan_and_infinity_have_no_distance() -> None:
    for a, b in ((np.nan, 1.0), (np.inf, -np.inf), (1.0, np.inf)):
        gap = measure(np.float32([a]), np.float32([b]))
        assert (gap.max_abs, gap.max_rel, gap.max_ulp, gap.differing) == (None, None, None, 1)
    assert not difference(held(w=np.float32([np.nan])), held(w=np.float32([1])), atol=1e9).equal


def test_large_integers_differ_by_one() -> None:
    gap = measure(np.array([2**60, -(2**63)]), np.array([2**60 + 1, -(2**63)]))
    assert (gap.max_abs, gap.max_ulp, gap.differing) == (1.0, None, 1)
    assert measure(np.array([-(2**63)]), np.array([2**63 - 1])).max_abs == float(2**64 - 1)


@given(st.lists(st.tuples(st.floats(width=32), st.floats(width=32)), min_size=1, max_size=9))
def test_figures_are_those_of_numpy(pairs: list[tuple[float, float]]) -> None:
    a, b = np.float32(pairs).T
    gap = measure(a, b)
    assert gap.differing == int(np.count_nonzero(a.view(np.uint32) != b.view(np.uint32)))
    if np.isfinite([a, b]).all():
        apart = np.abs(a.astype(np.float64) - b)
        assert gap.max_abs == apart.max()
        if gap.max_ulp is not None and 0 < gap.max_ulp < 1000:
            assert gap.max_abs <= gap.max_ulp * float(np.spacing(np.abs(np.float32([a, b])).max()))


def test_figures_of_many_blocks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 100)).astype(np.float32)
    whole = measure(a, b)
    monkeypatch.setattr(blocks, "BLOCK", 7)
    assert measure(a, b) == whole


def test_a_tolerance_is_absolute_and_only_within_one_dtype() -> None:
    a, b = held(w=np.float32([1.0])), held(w=np.float32([1.25]))
    assert difference(a, b, atol=0.25).equal
    assert not difference(a, b, atol=0.24).equal
    assert not difference(a, held(w=np.float64([1.0])), atol=1.0).equal
    with pytest.raises(WeightError, match="atol=-1: expected a finite number of at least 0"):
        difference(a, b, atol=-1)


def test_states_count_where_both_sides_know_theirs() -> None:
    a, b = held("average", EMA, w=np.float32(1)), held("average", State(EMA.rule, 11), w=np.float32(1))
    found = difference(a, b)
    assert (found.equal, found.states[0].role, found.states[0].states[1].count) == (False, "average", 11)
    assert difference(a, held(w=np.float32(1))).equal  # a plain file says neither role nor rule
    assert difference(a, held("average:ema", EMA, w=np.float32(1))).equal


def test_sets_are_compared_role_by_role_and_never_guessed() -> None:
    raw, average = held(w=np.float32(1)), held("average", EMA, w=np.float32(2))
    two = both(raw, average)
    assert polyak.diff(two, both(raw, average)).same == 2
    with pytest.raises(AmbiguousRole, match="'raw' and 'average'"):
        polyak.diff(two, average)
    assert not polyak.diff(raw, average).equal
    assert polyak.diff(two.select("average"), average).equal


def test_leaves_are_read_one_pair_at_a_time() -> None:
    alive: list[int] = []

    def item(i: int) -> Item:
        weight = held(**{f"w{i}": np.float32(i)}).weights[0]

        def read() -> np.ndarray[Any, Any]:
            alive.append(i)
            return np.array(i, np.float32)

        return Item("raw", weight, read)

    a, b = (Snapshot(item(i) for i in range(3)) for _ in range(2))
    assert alive == []
    assert difference(a, b).equal
    assert alive == [0, 0, 1, 1, 2, 2]


def test_a_damaged_leaf_is_an_error_and_no_difference() -> None:
    a = held(w=np.float32(1))
    damaged = Snapshot(Item("raw", i.weight, i.read, "0" * 32) for i in a.items_by_path.values())
    with pytest.raises(DamagedFile, match="expected bytes with digest 0000"):
        difference(a, damaged)


def test_json_says_all() -> None:
    found = json.loads(difference(held(w=np.float32([1])), held(w=np.float32([2]))).to_json())
    assert found["equal"] is False
    assert found["changed"] == [
        {
            "name": "w",
            "shapes": [[1], [1]],
            "dtypes": ["float32", "float32"],
            "gap": {"max_abs": 1.0, "max_rel": 0.5, "max_ulp": 8388608, "differing": 1},
        }
    ]
