"""What verbs read: files, with somebody who watches, and standard input."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from polyak.cli.output import Watch
    from polyak.snapshot import Snapshot

# A plan has a line for each weight; what is longer is none.
_LARGEST = 1 << 28
_MOST_NAMED = 8


def held(path: str) -> Snapshot:
    """A file; what it holds beside its weights is said."""
    import polyak
    from polyak.cli import output

    found = polyak.open(path)
    unread = found.manifest.unread
    if unread:
        output.say(f"not taken from {found.origin}: {_listed(unread)}")
    return found


def _listed(unread: Mapping[str, str]) -> str:
    """The first of what is left."""
    from polyak.errors import listed

    named = [f"{name} ({what})" for name, what in unread.items()]
    return listed(named, _MOST_NAMED) + ("; polyak inspect --json names all" if len(named) > _MOST_NAMED else "")


def opened(path: str, watch: Watch) -> Snapshot:
    """A file whose arrays are announced when they are read."""
    from polyak.combine.watching import watched

    return watched(held(path), watch)


def standard_input() -> bytes:
    """All of it, within bounds."""
    from polyak.errors import FileError

    if sys.stdin is None:  # closed when the program started
        raise FileError("standard input: expected a plan, received nothing: it is closed")
    text = sys.stdin.buffer.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise FileError(f"standard input: expected at most {_LARGEST:,} bytes, received more")
    return text
