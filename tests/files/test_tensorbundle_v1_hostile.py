"""V1 files with right checksums whose descriptions and parts contradict each other: refused, never read in half."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.attacks.cases_tensorflow import FLOAT, INT32, described, extent, floats, integer, message, part, v1

import polyak
from polyak.errors import DamagedFile

W = described("w", 4)
NUMBERS = described("w", 4, dtype=INT32)
HALVES = [part("w", extent(start, 2), floats(2)) for start in (0, 2)]
RESOURCE, VARIANT = 20, 21


def ints(content: bytes, *rest: bytes) -> bytes:
    """The whole of ``NUMBERS``, packed, and what stands behind them."""
    return part("w", extent(0, 4), message(3, integer(1, INT32), message(7, content), *rest))


@pytest.mark.parametrize(
    ("tensors", "parts", "said"),
    [
        ([W, described("w", 2)], HALVES, "tensor 'w': expected one description, received two"),
        ([W, NUMBERS], HALVES, "tensor 'w': expected one description, received two"),
        ([W], [part("w", extent(0, 4))], "tensor 'w': expected a part with values, received none"),
        ([W], [*HALVES, part("w")], "tensor 'w': expected a part with values, received none"),
        ([described("w", 4, dtype=99)], HALVES, r"'w': expected a dtype and a shape, received 99 and \(4,\)"),
        ([described("w", 4, dtype=0)], HALVES, r"'w': expected a dtype and a shape, received 0 and \(4,\)"),
        ([described("w", -4)], [], r"'w': expected a dtype and a shape, received 1 and \(-4,\)"),
        ([W], [*HALVES, part("v", extent(0, 4), floats(4))], "tensor 'v': it has values and no description"),
    ],
)
def test_descriptions_and_parts_that_contradict_each_other_are_refused_at_once(
    tmp_path: Path, tensors: list[bytes], parts: list[bytes], said: str
) -> None:
    with pytest.raises(DamagedFile, match=said):
        polyak.open(v1(tensors, parts)(tmp_path))


@pytest.mark.parametrize(
    ("tensor", "parts", "said"),
    [
        (W, HALVES[:1], "expected 4 values, received 2"),
        (W, [], "expected 4 values, received 0"),
        (W, [*HALVES, HALVES[0]], "expected 4 values, received 6"),
        (W, [HALVES[0]] * 2, "expected parts that lie apart, received two that overlap"),
        (W, [part("w", extent(start, 2), floats(2)) for start in (0, 1)], "expected parts that lie apart"),
        (W, [part("w", extent(2, 4), floats(4))], r"expected a part within shape \(4,\)"),
        (NUMBERS, [ints(b"\1\2\3\4", integer(7, 5))], "expected packed values, received single ones"),
        (NUMBERS, [ints(b"\1\2\3\4\x80")], "expected packed numbers, received bytes without an end"),
        (NUMBERS, [ints(b"\xff" * 4)], "expected packed numbers, received bytes without an end"),
        (NUMBERS, [ints(b"\1\2\3" + b"\x80" * 10 + b"\1")], "expected packed numbers, received bytes without an end"),
    ],
)
def test_parts_that_do_not_make_up_their_tensor_are_refused_when_it_is_read(
    tmp_path: Path, tensor: bytes, parts: list[bytes], said: str
) -> None:
    held = polyak.open(v1([tensor], parts)(tmp_path))
    with pytest.raises(DamagedFile, match=f"tensor 'w': {said}"):
        _ = held["w"]


def test_a_single_number_behind_packed_ones_is_refused(tmp_path: Path) -> None:
    values = message(3, integer(1, FLOAT), message(5, bytes(16)), integer(5, 0))
    held = polyak.open(v1([W], [part("w", extent(0, 4), values)])(tmp_path))
    with pytest.raises(DamagedFile, match="tensor 'w': expected packed values, received single ones"):
        _ = held["w"]


def test_the_forger_writes_what_is_read_where_nothing_is_wrong(tmp_path: Path) -> None:
    assert polyak.open(v1([W, W], HALVES)(tmp_path))["w"].tolist() == [0.0] * 4
    assert polyak.open(v1([NUMBERS], [ints(b"\1\2\3\xac\2")])(tmp_path))["w"].tolist() == [1, 2, 3, 300]


@pytest.mark.parametrize("dtype", [RESOURCE, VARIANT])
def test_what_holds_no_numbers_is_left_out(tmp_path: Path, dtype: int) -> None:
    held = polyak.open(v1([W, described("table", 1, dtype=dtype)], HALVES)(tmp_path))
    assert list(held) == ["w"]
