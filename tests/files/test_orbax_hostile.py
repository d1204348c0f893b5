"""Orbax checkpoints that ask for too much, lead elsewhere, contradict themselves, or change while they are read."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.files.test_orbax import copy, described

import polyak
from polyak.errors import DamagedFile, FileError
from polyak.files import orbax, pinned
from polyak.files.orbax_store import Store
from polyak.files.orbax_tree import MOST_TREE
from polyak.files.orbax_write import NOTE
from polyak.files.pinned import Pinned
from polyak.snapshot import Snapshot

HEADERS = {"plain_zarr": "w/.zarray", "plain_zarr3": "w/zarr.json"}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A tree whose arrays each have a directory; ``w`` is float32 of (3, 4)."""
    return copy("plain_zarr", tmp_path)


def with_leaf(made: Path, *steps: str) -> None:
    """Let the tree hold one array more."""
    entry = {"key_metadata": [{"key": step} for step in steps], "value_metadata": {"value_type": "np.ndarray"}}
    described(made, lambda held: held["tree_metadata"].update({str(steps): entry}), "_METADATA")


def widened(file: Path, size: int) -> None:
    """Fill a file of JSON up with spaces, which change nothing that it says."""
    file.write_bytes(file.read_bytes().ljust(size))


# --- which checkpoint a path leads to --------------------------------------------------------------------------------


def test_a_step_without_a_tree_is_refused(tmp_path: Path) -> None:
    step = copy("steps", tmp_path) / "9"
    shutil.rmtree(step / "state")
    with pytest.raises(DamagedFile, match="expected a tree of arrays, received a directory without one"):
        polyak.open(step)


def test_a_step_with_an_item_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    step = copy("steps", tmp_path) / "9"
    shutil.copytree(step / "state", step / "more.orbax-checkpoint-tmp")
    with pytest.raises(FileError, match=r"received 'more\.orbax-checkpoint-tmp', which its writer never finished"):
        polyak.open(step)


def test_a_newest_step_that_is_a_link_to_another_place_is_refused(tmp_path: Path) -> None:
    steps = copy("steps", tmp_path)
    (steps / "10").rename(tmp_path / "elsewhere")
    (steps / "11").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileError, match="expected steps of its own, received '11', a link that leads out"):
        polyak.open(steps)


def test_a_newest_step_may_be_a_link_to_a_step_beside_it(tmp_path: Path) -> None:
    steps = copy("steps", tmp_path)
    (steps / "11").symlink_to("9")
    assert polyak.open(steps)["w"].tolist() == [9]


def test_more_files_than_any_checkpoint_has_are_refused(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = len(list(made.rglob("*")))
    monkeypatch.setattr("polyak.files.orbax_path._MOST_ENTRIES", files)
    assert "w" in polyak.open(made)
    (made / "one_more").touch()
    with pytest.raises(DamagedFile, match=f"expected at most {files} files, received more"):
        polyak.open(made)


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not tell what of a file is a hole")
def test_a_file_that_is_nearly_all_hole_is_refused(made: Path) -> None:
    """Its size would allow its arrays to be as large."""
    os.truncate(made / "w" / "0.0", 1 << 33)
    with pytest.raises(DamagedFile, match=r"'0\.0': 8,589,934,592 bytes, nearly all of them a hole"):
        polyak.open(made)


def test_directories_without_an_end_are_refused(made: Path) -> None:
    made.joinpath(*["d"] * 70).mkdir(parents=True)
    with pytest.raises(DamagedFile, match="expected at most 64 levels of directories, received more"):
        polyak.open(made)


# --- the tree and the manifest ---------------------------------------------------------------------------------------


def test_more_leaves_than_any_tree_has_are_refused(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyak.files.orbax_tree.MOST_TENSORS", 6)
    assert "w" in polyak.open(made)
    with_leaf(made, "b", "again")
    with pytest.raises(DamagedFile, match="_METADATA: expected a tree of at most 6 leaves"):
        polyak.open(made)


def test_two_leaves_that_are_stored_under_one_name_are_refused(tmp_path: Path) -> None:
    polyak.save(Snapshot.from_arrays({"a/b": np.float32([1])}), tmp_path / "m.orbax")
    (tmp_path / "m.orbax" / NOTE).unlink()
    with_leaf(tmp_path / "m.orbax", "a.b")
    with pytest.raises(DamagedFile, match=r"'a/b' and 'a\.b' are stored under one name"):
        polyak.open(tmp_path / "m.orbax")


@pytest.mark.parametrize("step", ["..", "../w", "/etc/w", "w/./w", "w/"])
def test_a_leaf_that_is_stored_under_no_name_is_refused(made: Path, step: str) -> None:
    with_leaf(made, step)
    with pytest.raises(DamagedFile, match=rf"_METADATA: .* is not readable \(ValueError\('{re.escape(step)}'\)\)"):
        polyak.open(made)


def test_a_leaf_that_is_too_deep_is_refused(made: Path) -> None:
    with_leaf(made, *["d"] * 129)
    with pytest.raises(
        DamagedFile, match=r"_METADATA: .* is not readable \(ValueError\('129 steps, more than 128'\)\)"
    ):
        polyak.open(made)


@pytest.mark.parametrize("name", ["_METADATA", "_strings.json"])
def test_a_description_that_is_too_long_is_refused(made: Path, name: str) -> None:
    widened(made / name, MOST_TREE + 1)
    with pytest.raises(DamagedFile, match=f"{name}: expected at most 25,000,000 bytes, received 25,000,001"):
        polyak.open(made)


def test_a_manifest_that_is_too_long_for_its_arrays_is_refused(tmp_path: Path) -> None:
    polyak.save(Snapshot.from_arrays({"w": np.float32([1])}), tmp_path / "m.orbax")
    widened(tmp_path / "m.orbax" / NOTE, 200_000)
    with pytest.raises(DamagedFile, match=r"expected the manifest of 1 arrays, received 200,000 bytes"):
        polyak.open(tmp_path / "m.orbax")


# --- the headers of arrays -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("plain_zarr", {"zarr_format": 3}, "version 3"),
        ("plain_zarr3", {"zarr_format": 2}, "no array of version 3"),
        ("plain_zarr3", {"node_type": "group"}, "no array of version 3"),
        ("plain_zarr", {"shape": [1] * 33, "chunks": [1] * 33}, "as a shape"),
        ("plain_zarr", {"shape": {}, "chunks": {}}, "{} as a shape"),
        ("plain_zarr", {"shape": [-3, 4]}, "[-3, 4] as a shape"),
        ("plain_zarr", {"shape": [3.0, 4]}, "[3.0, 4] as a shape"),
        ("plain_zarr", {"shape": [True, 4]}, "[True, 4] as a shape"),
        ("plain_zarr", {"shape": [2**48, 0], "chunks": [1, 1]}, "[281474976710656, 0] as a shape"),
    ],
)
def test_a_header_that_describes_no_array_is_refused(
    tmp_path: Path, name: str, change: dict[str, Any], told: str
) -> None:
    made = copy(name, tmp_path)
    described(made, lambda held: held.update(change), HEADERS[name])
    with pytest.raises(DamagedFile, match="weight 'w': its header is not readable: ") as refused:
        polyak.open(made)
    assert told in str(refused.value)


def test_a_header_that_is_too_long_is_refused(made: Path) -> None:
    widened(made / "w" / ".zarray", 1 << 20)
    assert "w" in polyak.open(made)
    widened(made / "w" / ".zarray", (1 << 20) + 1)
    with pytest.raises(DamagedFile, match="weight 'w': its header is not readable: 1048577 bytes of it"):
        polyak.open(made)


# --- what changes while it is read -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"), [({"dtype": "<i4"}, "(3, 4) int32"), ({"shape": [2, 4]}, "(2, 4) float32")]
)
def test_a_header_that_changes_after_it_was_read_is_noticed(made: Path, change: dict[str, Any], told: str) -> None:
    opened = polyak.open(made)
    described(made, lambda held: held.update(change), "w/.zarray")
    with pytest.raises(DamagedFile) as refused:
        opened["w"]
    assert f"weight 'w': expected (3, 4) float32, received {told}" in str(refused.value)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has paths through open directories")
def test_a_checkpoint_that_is_open_is_read_to_its_end_after_another_took_its_place(tmp_path: Path) -> None:
    old, new = ({"a": np.float32([n]), "b": np.float32([n, n])} for n in (1, 2))
    path = tmp_path / "m.orbax"
    polyak.save(Snapshot.from_arrays(old), path)
    opened = polyak.open(path)
    polyak.save(Snapshot.from_arrays(new), path)
    assert {name: array.tolist() for name, array in opened.items()} == {"a": [1], "b": [1, 1]}
    assert polyak.open(path)["b"].tolist() == [2, 2]
    del opened
    polyak.save(Snapshot.from_arrays(new), path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.orbax"]


def test_a_name_that_no_file_can_have_is_damage(made: Path) -> None:
    with_leaf(made, "a\0b")
    with pytest.raises(DamagedFile, match=r"a.*b"):
        polyak.open(made)


def test_arrays_of_no_numbers_are_named_by_their_item_too(tmp_path: Path, made: Path) -> None:
    step = copy("steps", tmp_path) / "9"
    shutil.copytree(made, step / "more")
    described(step / "more" / "w", lambda held: held.update({"dtype": "nonsense"}), ".zarray")
    assert orbax.read(step).unread["more/w"] == "an array of no numbers"


def test_a_tree_of_nothing_has_no_arrays(made: Path) -> None:
    described(made, lambda held: held.update({"tree_metadata": {}}), "_METADATA")
    assert orbax.read(made).tensors == {}


def test_a_link_to_another_file_of_the_checkpoint_is_followed(made: Path) -> None:
    chunk = next(p for p in sorted((made / "w").iterdir()) if not p.name.startswith("."))
    kept = polyak.open(made)["w"].tobytes()
    chunk.rename(made / "w.data")
    chunk.symlink_to(made / "w.data")
    assert polyak.open(made)["w"].tobytes() == kept


def test_where_no_directory_can_be_held_its_name_serves(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "_OPEN", made / "no such directory")
    assert Pinned(made).path == made
    assert polyak.open(made)["w"].shape == (3, 4)


def test_a_name_that_is_no_text_is_damage(made: Path) -> None:
    with pytest.raises(DamagedFile, match=r"weight '.*d800'"):
        Store(made, "a checkpoint", 1 << 20, True).headers(["\ud800"])
