"""Writing a file so that its path holds the old contents or the new ones, whatever happens."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from polyak.errors import FileError
from polyak.files.failures import failures_named


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file that becomes ``path`` when the block ends without an exception.

    The bytes go to a hidden file in the same directory, reach the disk, and take the name in one
    rename. A symbolic link is written through; the mode of an existing file is kept.

    Raises:
        FileError: the path is a directory or a device, or its directory is missing or not writable.
    """
    final = Path(os.path.realpath(path))
    # Short, because a name may have 255 bytes at most, and hidden: a killed process leaves it behind.
    temporary = final.parent / f".{final.name[:32]}.{secrets.token_hex(8)}.partial"
    with failures_named(final, "written"):
        mode = _mode_of_place(final)
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with failures_named(final, "written"), os.fdopen(handle, "w+b") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        with failures_named(final, "written"):
            temporary.replace(final)
            sync_directory(final.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _mode_of_place(path: Path) -> int | None:
    """The mode of the file that will be replaced, or None where there is none."""
    if path.is_dir():
        raise FileError(f"file {str(path)!r}: expected a file to write, received a directory", hint="add a file name")
    if not path.parent.is_dir():
        raise FileError(f"file {str(path)!r}: its directory does not exist", hint=f"create {str(path.parent)!r} first")
    if not path.exists():
        return None
    if not path.is_file():
        raise FileError(f"file {str(path)!r}: expected a regular file, received a device, a socket or a pipe")
    return stat.S_IMODE(path.stat().st_mode)
