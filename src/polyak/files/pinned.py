"""A directory that stays the same one while it is read, whatever happens to its name."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from polyak.files.failures import failures_named
from polyak.files.partial import share

_OPEN = Path("/proc/self/fd")


class Pinned:
    """An open directory. A writer that replaces it leaves its files for as long as
    this lives.

    Where the system has no paths through open directories, this is the path itself.

    Args:
        directory: it is there.

    Attributes:
        path: leads to this directory after its name leads to another.

    Raises:
        FileError: it cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory
        if _OPEN.is_dir():
            with failures_named(directory, "read"):
                handle = os.open(directory, os.O_RDONLY)
            share(handle)
            weakref.finalize(self, os.close, handle)
            self.path = _OPEN / str(handle)
