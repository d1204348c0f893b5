"""The demo's directory: made anew each time; nothing is removed that the demo did not make."""

from __future__ import annotations

import shutil
from pathlib import Path

from polyak.errors import FileError

MARKER = ".polyak-demo"


def make(directory: Path) -> Path:
    """An empty directory with the demo's marker in it.

    Raises:
        FileError: something is there that does not carry the marker.
    """
    if directory.is_symlink() or (directory.exists() and not _is_ours(directory)):
        raise FileError(
            f"file {str(directory)!r}: expected nothing or the files of an earlier demo, received something else",
            hint="choose another place with --directory",
        )
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    (directory / MARKER).write_text("Made by polyak demo, which removes this directory when it runs again.\n")
    return directory


def _is_ours(directory: Path) -> bool:
    return directory.is_dir() and ((directory / MARKER).is_file() or not any(directory.iterdir()))
