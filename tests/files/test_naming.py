"""What is no name of a file is refused by every verb in polyak's own words."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyak
from polyak.errors import FileError
from polyak.snapshot import Snapshot

MADE = Snapshot.from_arrays({"w": np.float32([1])})
VERBS: tuple[Callable[[Any], object], ...] = (
    polyak.open,
    lambda path: polyak.convert(MADE, path),
    lambda path: polyak.save(MADE, path),
    lambda path: polyak.average([MADE], out=path),
    lambda path: polyak.Saver().save(MADE, path),
)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("x\0.npz", r"file 'x\\x00\.npz': no file has such a name"),
        ("\ud800.npz", r"file '\\ud800\.npz': no file has such a name"),
        (b"x.npz", r"file b'x\.npz': expected a path as text, received bytes\nhint: os\.fsdecode"),
        (3, "file 3: expected a path, received int"),
        ("", "file '': expected the name of a file to (read|write), received an empty one"),
    ],
)
@pytest.mark.parametrize("verb", VERBS)
def test_what_no_file_is_called_is_refused(
    verb: Callable[[Any], object], path: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError, match=said):
        verb(path)
    assert not list(tmp_path.iterdir())


WRITERS: tuple[Callable[[str, str], object], ...] = (
    polyak.convert,
    polyak.save,
    lambda source, path: polyak.average([source], out=path),
)


@pytest.mark.parametrize("write", WRITERS)
def test_a_name_that_is_too_long_cannot_be_written(
    write: Callable[[str, str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    polyak.save(MADE, "c.npz")
    with pytest.raises(FileError, match=r"x\.npz': cannot be written"):
        write("c.npz", "x" * 300 + ".npz")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may look everywhere")
@pytest.mark.parametrize("write", WRITERS)
def test_a_place_out_of_reach_cannot_be_written(
    write: Callable[[str, str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    polyak.save(MADE, "c.npz")
    (tmp_path / "shut").mkdir(mode=0)
    with pytest.raises(FileError, match=r"x\.npz': cannot be written"):
        write("c.npz", "shut/in/x.npz")
