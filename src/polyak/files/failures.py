"""What the operating system refuses, said as polyak's errors are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from polyak.errors import FileError


@contextmanager
def failures_named(path: Path, doing: Literal["read", "written"]) -> Iterator[None]:
    """Turn an OSError of the block into a FileError that names the file."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"file {str(path)!r}: cannot be {doing}: {error.strerror or error}") from error
