"""Writing a file so that its path holds the old contents or the new ones, whatever happens."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from polyak.errors import FileError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file that becomes ``path`` when the block ends without an exception.

    The bytes go to a hidden file in the same directory, reach the disk, and take the name in one
    rename. A symbolic link is written through; the mode of an existing file is kept.

    Raises:
        FileError: the path is a directory, or its directory is missing or not writable.
    """
    final = Path(os.path.realpath(path))
    _refuse_bad_place(final)
    with _failures_named(final):
        handle, temporary = tempfile.mkstemp(dir=final.parent, prefix=f".{final.name}.", suffix=".partial")
    try:
        with _failures_named(final), os.fdopen(handle, "w+b") as file:
            os.fchmod(file.fileno(), _mode(final))
            yield file
            file.flush()
            os.fsync(file.fileno())
        with _failures_named(final):
            os.replace(temporary, final)
            sync_directory(final.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refuse_bad_place(path: Path) -> None:
    if path.is_dir():
        raise FileError(f"file {str(path)!r}: expected a file to write, received a directory", hint="add a file name")
    if not path.parent.is_dir():
        raise FileError(f"file {str(path)!r}: its directory does not exist", hint=f"create {str(path.parent)!r} first")


@contextmanager
def _failures_named(path: Path) -> Iterator[None]:
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"file {str(path)!r}: cannot be written: {error.strerror or error}") from error


def _mode(path: Path) -> int:
    """The mode of the file that is replaced, or what a plain new file would get."""
    if path.exists():
        return stat.S_IMODE(path.stat().st_mode)
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask
