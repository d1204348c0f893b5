"""Damage, in the short form of the campaigns."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from torture import bombs, fuzz, integrity
from torture.campaign import Campaign
from torture.damage import KINDS, Region, damaged, regions_of
from torture.samples import OWN

import polyak
from polyak.errors import DamagedFile


@pytest.mark.parametrize("campaign", integrity.CAMPAIGNS + bombs.CAMPAIGNS + fuzz.CAMPAIGNS, ids=str)
def test_a_campaign_holds(campaign: Campaign) -> None:
    outcome = campaign.run(campaign.short)
    assert outcome.holds, outcome.broken


def test_damage_changes_what_it_says() -> None:
    dice = random.Random(0)
    content = dice.randbytes(4000)
    regions = [Region("a", 100, 300), Region("b", 1000, 1200)]
    for kind in KINDS:
        done = damaged(kind, content, regions, dice)
        assert done is not None
        assert done.content != content
        assert done.content[: done.first] == content[: done.first]
    swapped = damaged("two weights swapped", content, regions, dice)
    assert swapped is not None
    assert swapped.content[100:300] + swapped.content[1000:1200] == content[1000:1200] + content[100:300]


def test_values_are_found_where_they_lie() -> None:
    values = {"a": random.Random(1).randbytes(64), "b": b"short"}
    assert regions_of(b"xx" + values["a"] + b"short", values) == [Region("a", 2, 66)]


def _edited(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) >= 1
    path.write_bytes(content.replace(old, new))


@pytest.mark.parametrize(
    ("format", "hide"),
    [
        ("safetensors-sharded", lambda path: _edited(path, b'"metadata"', b'"metadatb"')),
        ("torch", lambda path: _edited_last(path, b"archive/polyak.json", b"archive/polyak.jsoo")),
        ("npz", lambda path: _edited_last(path, b"polyak.json.npy", b"polyak.jsoo.npy")),
    ],
)
def test_a_manifest_does_not_get_lost_with_its_name(format: str, hide: Callable[[Path], None], tmp_path: Path) -> None:
    path = OWN[format](tmp_path)
    hide(path)
    with pytest.raises(DamagedFile):
        polyak.open(path)


def _edited_last(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    at = content.rindex(old)
    path.write_bytes(content[:at] + new + content[at + len(old) :])


@pytest.mark.parametrize("find", list(fuzz.kept_finds()), ids=lambda path: path.parent.name)
def test_what_fuzzing_has_found_is_refused_or_read(find: Path) -> None:
    assert not fuzz.opened(find).startswith("FIND")
