"""What the operating system refuses, said as polyak's errors are."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from polyak.errors import FileError

NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@contextmanager
def failures_named(path: Path, doing: Literal["read", "written"], needed: int = 0) -> Iterator[None]:
    """Turn an OSError of the block into a FileError that names the file, and the bytes that its writing needs."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise FileError(
            f"file {str(path)!r}: cannot be {doing}: {error.strerror or error}{_needs(needed)}",
            hint=f"make room in {str(path.parent)!r} or write elsewhere" if error.errno in NO_ROOM else None,
        ) from error


def no_room(path: Path, needed: int, why: str) -> FileError:
    """The error that says, before anything is written, that the bytes will not fit."""
    return FileError(
        f"file {str(path)!r}: cannot be written: {why}{_needs(needed)}",
        hint=f"make room in {str(path.parent)!r} or write elsewhere",
    )


def _needs(needed: int) -> str:
    return f"; it needs {needed:,} bytes" if needed else ""
