"""What verbs read: files, with somebody who watches, and standard input."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polyak.cli.output import Watch
    from polyak.snapshot import Snapshot

# A plan has a line for each weight; what is longer is none.
_LARGEST = 1 << 28


def opened(path: str, watch: Watch) -> Snapshot:
    """A file whose arrays are announced when they are read."""
    import polyak
    from polyak.combine.watching import watched

    return watched(polyak.open(path), watch)


def standard_input() -> bytes:
    """All of it, within bounds."""
    from polyak.errors import FileError

    text = sys.stdin.buffer.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise FileError(f"standard input: expected at most {_LARGEST:,} bytes, received more")
    return text
