"""Conversions, in the short form of the campaign; and what has to be refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torture import conversions
from torture.campaign import Campaign

import polyak
from polyak.combine.convert import FORMATS
from polyak.errors import DtypeMismatch, ShapeMismatch


@pytest.mark.parametrize("campaign", conversions.CAMPAIGNS, ids=str)
def test_a_campaign_holds(campaign: Campaign) -> None:
    outcome = campaign.run(campaign.short)
    assert outcome.holds, outcome.broken


REFUSED = {
    ("empty", "orbax"): ShapeMismatch,
    ("float8_e4m3fnuz", "safetensors"): DtypeMismatch,
    ("complex128", "safetensors"): DtypeMismatch,
    ("complex128", "safetensors-sharded"): DtypeMismatch,
    ("float8_e4m3fn", "keras"): DtypeMismatch,
    ("float8_e5m2", "keras"): DtypeMismatch,
}


@pytest.mark.parametrize(("case", "format"), REFUSED, ids=str)
def test_what_a_format_cannot_hold_is_refused_and_nothing_is_written(case: str, format: str, tmp_path: Path) -> None:
    held = conversions.snapshot({"average": conversions.cases()[case]})
    with pytest.raises(REFUSED[case, format], match="weight 'layer/kernel': expected"):
        polyak.convert(held, tmp_path / f"x{FORMATS[format]}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("case", ["float32", "int64", "bfloat16", "scalar float32", "name with space", "kind seed"])
def test_every_format_holds_what_models_have(case: str, format: str, tmp_path: Path) -> None:
    held = conversions.snapshot({"average": conversions.cases()[case]})
    assert conversions.there_and_back(held, format, "safetensors", tmp_path) == "same"


def test_a_lost_word_is_noticed(tmp_path: Path) -> None:
    weight, array = conversions.cases()["float32"]
    held = conversions.snapshot({"average": (weight, array)})
    other = conversions.snapshot({"raw": (weight, array)})
    assert conversions.Said.of(held) != conversions.Said.of(other)


def test_a_wide_average_of_a_narrow_model_keeps_its_bits_in_a_file_for_keras(tmp_path: Path) -> None:
    weight, array = conversions.cases()["float32"]
    assert weight.evidence is not None
    assert weight.evidence.dtype == "bfloat16"
    polyak.convert(conversions.snapshot({"average": (weight, array)}), tmp_path / "x.weights.h5")
    found = polyak.open(tmp_path / "x.weights.h5")["layer/kernel"]
    assert found.dtype == np.float32
    assert found.tobytes() == array.tobytes()
