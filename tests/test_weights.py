"""Dtypes by name, which of them hold which, and globs over paths."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyak.weights import (
    Kind,
    Weight,
    glob_match,
    is_floating,
    numpy_dtype,
    select,
    unmatched_globs,
    widens,
)

INTS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
FLOATS = ["float8_e5m2", "float8_e4m3fn", "bfloat16", "float16", "float32", "float64"]
# Exact casts that NumPy counts as unsafe; a caller must ask for them.
ASKED_FOR = {(a, b) for a in ("float8_e5m2", "float8_e4m3fn") for b in ("bfloat16", "float16")}


@pytest.mark.parametrize(("name", "size"), [("float32", 4), ("bfloat16", 2), ("float8_e4m3fn", 1), ("bool", 1)])
def test_dtypes_go_by_name(name: str, size: int) -> None:
    assert (numpy_dtype(name).name, numpy_dtype(name).itemsize) == (name, size)


@pytest.mark.parametrize("name", ["finfo", "iinfo", "float33", "f4,f4", "(2,)f4", "<f4", ""])
def test_what_is_no_dtype_is_none(name: str) -> None:
    with pytest.raises(TypeError):
        numpy_dtype(name or "no dtype")


@pytest.mark.parametrize("name", [*FLOATS, *INTS, "bool", "complex64", "int4"])
def test_floating_dtypes(name: str) -> None:
    assert is_floating(name) == (name in FLOATS)


@pytest.mark.parametrize("source", [*INTS, *FLOATS])
@pytest.mark.parametrize("target", [*INTS, *FLOATS])
def test_a_dtype_widens_into_another_if_every_value_comes_back(source: str, target: str) -> None:
    """Held against the values themselves: all of an 8 or 16 bit dtype, the extremes of a wider one."""
    kind = np.dtype(source)
    same_sort = is_floating(source) == is_floating(target)
    if kind.itemsize <= 2:
        values = np.arange(256**kind.itemsize, dtype=f"u{kind.itemsize}").view(kind)
    elif source in INTS:
        values = np.array([np.iinfo(kind).min, np.iinfo(kind).max], kind)
    else:
        info = ml_dtypes.finfo(kind)
        values = np.array([info.max, info.smallest_subnormal, 1 + info.eps], kind)
    with np.errstate(all="ignore"):
        back = values.astype(target).astype(kind)
        exact = bool(np.all((values == back) | ((values != values) & (back != back))))
    if source in INTS and target in INTS:
        exact &= bool(np.all((values < 0) == (values.astype(target) < 0)))
    assert widens(source, target) == (same_sort and exact and (source, target) not in ASKED_FOR)


def test_sizes() -> None:
    weight = Weight("w", (3, 0, 2), "bfloat16", Kind.TRAINABLE)
    assert (weight.size, weight.nbytes, weight.floating) == (0, 0, True)
    assert (Weight("n", (), "int64", Kind.COUNTER).nbytes, Weight("n", (5,), "bool", Kind.COUNTER).nbytes) == (8, 5)


@pytest.mark.parametrize(
    ("path", "globs", "matches"),
    [
        ("encoder/0/kernel", "encoder/*", True),
        ("encoder/0/kernel", "*kernel", True),
        ("encoder/0/kernel", "encoder", False),
        ("encoder/0/kernel", "Encoder/*", False),
        ("encoder/0/kernel", ["head/*", "*/0/*"], True),
        ("encoder/0/kernel", (), False),
        ("encoder/0/kernel", "encoder/?/kernel", True),
        ("encoder/3/kernel", "encoder/[0-4]/kernel", True),
        ("blocks[0]/kernel", "blocks[0]/kernel", True),
        ("blocks[0]/kernel", "blocks[0]/*", False),
        ("a\nb", "a*", True),
    ],
)
def test_globs(path: str, globs: str | list[str], matches: bool) -> None:
    assert glob_match(path, globs) is matches


@given(st.text(min_size=1))
def test_a_path_is_a_glob_of_itself(path: str) -> None:
    """Hints give paths as exclude=; what they say must work, whatever characters are in the path."""
    assert glob_match(path, path)
    assert unmatched_globs([path], [path, "*"]) == []


def test_selection_keeps_the_order() -> None:
    assert select(["b/1", "a/1", "b/2", "b/3"], "b/*", ["*2", "a*"]) == ["b/1", "b/3"]
    assert unmatched_globs(["a/1"], ["a/*", "b/*", "c"]) == ["b/*", "c"]
