"""What tells a file from one that was written to its place. Within one tick of the clock nothing does."""

from __future__ import annotations

import os

Stamp = tuple[int, int, int]


def stamp(found: os.stat_result) -> Stamp:
    """Its number, its size, and when it was written.

    Example:
        >>> stamp(os.stat(__file__)) == stamp(os.stat(__file__))
        True
    """
    return found.st_ino, found.st_size, found.st_mtime_ns
