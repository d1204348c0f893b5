"""Good files of every format, damaged in every common way: an error of polyak, or the right bits."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.attacks.make import GOOD
from tests.attacks.test_attacks import limited, tree

import polyak
from polyak import files
from polyak.errors import PolyakError

FLIPS = 150
SHARES = (0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999)
# Bytes that no checksum protects: a flipped bit can be a number like any other, or a letter of a name in a list (DCP).
UNPROTECTED = {"safetensors", "keras weights", "keras sharded", "torch legacy", "torch distributed", "flax msgpack"}


def everything(path: Path) -> dict[str, bytes]:
    """All tensors of a file; and that its meaning can be asked for."""
    polyak.open(path).copy()
    return {name: t.read().tobytes() for name, t in files.read(path).tensors.items()}


def parts(path: Path) -> list[Path]:
    """The files that are read when the path is opened."""
    root = path if path.is_dir() else path.parent
    return sorted(p for p in root.rglob("*") if p.is_file() and not p.name.startswith(("saved_model.pb", "ckpt-900")))


@pytest.mark.parametrize("name", GOOD)
def test_the_good_file_is_good(name: str, tmp_path: Path) -> None:
    assert everything(GOOD[name](tmp_path))


@pytest.mark.parametrize("name", GOOD)
def test_a_truncated_file_is_refused_wherever_it_ends(name: str, tmp_path: Path) -> None:
    path = GOOD[name](tmp_path)
    for part in parts(path):
        if part.name == "checkpoint":
            continue  # its first line says all
        content = part.read_bytes()
        for end in sorted({len(content) - 1, *(int(share * len(content)) for share in SHARES)}):
            part.write_bytes(content[:end])
            with pytest.raises(PolyakError) as caught:
                everything(path)
            assert str(tmp_path) in str(caught.value)
        part.write_bytes(content)


@pytest.mark.parametrize("name", GOOD)
def test_a_flipped_bit_is_noticed_or_harmless(name: str, tmp_path: Path) -> None:
    path = GOOD[name](tmp_path)
    expected, dice = everything(path), random.Random(0)
    for part in parts(path):
        content = part.read_bytes()
        for _ in range(FLIPS):
            at = dice.randrange(len(content))
            part.write_bytes(content[:at] + bytes([content[at] ^ 1 << dice.randrange(8)]) + content[at + 1 :])
            try:
                with limited(20):
                    found = everything(path)
            except PolyakError:
                continue
            assert name in UNPROTECTED or found == expected, (part.name, at)
        part.write_bytes(content)


@pytest.mark.parametrize("name", GOOD)
def test_a_wrong_magic_is_refused(name: str, tmp_path: Path) -> None:
    path = GOOD[name](tmp_path)
    for part in parts(path):
        content = part.read_bytes()
        part.write_bytes(b"NONSENSE" + content[8:-8] + b"NONSENSE")
        with pytest.raises(PolyakError, match=r"file|checkpoint"):
            everything(path)
        part.write_bytes(content)


def _emptied(part: Path) -> None:
    part.write_bytes(b"")


def _a_directory(part: Path) -> None:
    part.unlink()
    part.mkdir()


def _a_pipe(part: Path) -> None:
    part.unlink()
    os.mkfifo(part)


def _a_circle(part: Path) -> None:
    part.unlink()
    part.symlink_to(part)


def _endless(part: Path) -> None:
    part.unlink()
    part.symlink_to("/dev/zero")


def _random(part: Path) -> None:
    part.write_bytes(random.Random(0).randbytes(part.stat().st_size))


@pytest.mark.parametrize("change", [Path.unlink, _emptied, _a_directory, _a_pipe, _a_circle, _endless, _random])
@pytest.mark.parametrize("name", GOOD)
def test_something_else_in_the_place_of_a_file_is_refused(
    name: str, change: Callable[[Path], None], tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    GOOD[name](kept)
    for number in range(len(parts(kept))):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(kept, copy)
        path = copy / GOOD[name](_fresh(tmp_path / f"name{number}")).name
        changed = parts(copy)[number]
        if name == "tensorflow directory" and changed.name == "checkpoint":
            continue  # without its state file a directory may hold anything
        change(changed)
        before = tree(copy)
        with limited(20), pytest.raises(PolyakError):
            everything(path)
        assert tree(copy) == before


def _fresh(directory: Path) -> Path:
    directory.mkdir()
    return directory
