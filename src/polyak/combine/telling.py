"""What is said of many members: as much as a name or a manifest has room for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from polyak.snapshot import Snapshot

LABEL = 2048  # characters of a name that lists members
EVIDENCE = 8192  # characters of a manifest's evidence; readers refuse manifests out of proportion to their arrays


def fitting(parts: Sequence[str], room: int) -> tuple[str, ...]:
    """The first parts that fit into so many characters, and how many more there are.

    Example:
        >>> fitting(["one", "two", "three"], 6), fitting(["one", "two"], 6)
        (('one', 'two', 'and 1 more'), ('one', 'two'))
    """
    kept = list(_kept(parts, room))
    return (*kept, f"and {len(parts) - len(kept):,} more") if len(kept) < len(parts) else tuple(kept)


def _kept(parts: Sequence[str], room: int) -> Iterator[str]:
    for part in parts:
        room -= len(part)
        if room < 0:
            return
        yield part


def unread(members: Sequence[Snapshot]) -> dict[str, str]:
    """What else is in the files of all members, by its path there."""
    return {path: what for member in members for path, what in member.manifest.unread.items()}
