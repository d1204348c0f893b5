"""What goes wrong with bytes that nobody touches: flipped bits, lost pages, short files, things in wrong places."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

PAGE = 512


@dataclass(frozen=True)
class Region:
    """Where the values of a weight lie in a file."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class Damaged:
    """A file's new content, and the first and the last byte that differ from the old one."""

    content: bytes
    first: int
    last: int


Damage = Callable[[bytes, Sequence[Region], random.Random], bytes]


def flipped(content: bytes, regions: Sequence[Region], dice: random.Random) -> bytes:
    """One bit is another."""
    at = dice.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << dice.randrange(8)]) + content[at + 1 :]


def zeroed(content: bytes, regions: Sequence[Region], dice: random.Random) -> bytes:
    """A page, aligned as a disk has it, holds zeros."""
    start = dice.randrange(len(content)) // PAGE * PAGE
    size = min(PAGE, len(content) - start)
    return content[:start] + bytes(size) + content[start + size :]


def truncated(content: bytes, regions: Sequence[Region], dice: random.Random) -> bytes:
    """The end is missing."""
    return content[: dice.randrange(len(content))]


def pages_swapped(content: bytes, regions: Sequence[Region], dice: random.Random) -> bytes:
    """Two whole pages lie in each other's place."""
    pages = [content[i : i + PAGE] for i in range(0, len(content), PAGE)]
    if len(pages) < 3:
        return flipped(content, regions, dice)
    a, b = dice.sample(range(len(pages) - 1), 2)
    pages[a], pages[b] = pages[b], pages[a]
    return b"".join(pages)


def tensors_swapped(content: bytes, regions: Sequence[Region], dice: random.Random) -> bytes:
    """The values of two weights of one size lie in each other's place."""
    pairs = [(a, b) for a in regions for b in regions if a.start < b.start and a.end - a.start == b.end - b.start]
    if not pairs:
        return pages_swapped(content, regions, dice)
    a, b = dice.choice(pairs)
    middle = content[a.end : b.start]
    return content[: a.start] + content[b.start : b.end] + middle + content[a.start : a.end] + content[b.end :]


KINDS: Mapping[str, Damage] = {
    "a flipped bit": flipped,
    "a zeroed page": zeroed,
    "a cut end": truncated,
    "two pages swapped": pages_swapped,
    "two weights swapped": tensors_swapped,
}


def damaged(kind: str, content: bytes, regions: Sequence[Region], dice: random.Random) -> Damaged | None:
    """The damage and where it is; None if it changes nothing, as zeros in the place of zeros do."""
    made = KINDS[kind](content, regions, dice)
    if made == content:
        return None
    if len(made) < len(content):
        return Damaged(made, len(made), len(content) - 1)
    same = next(i for i in range(len(made)) if made[i] != content[i])
    same_end = next(i for i in range(len(made) - 1, -1, -1) if made[i] != content[i])
    return Damaged(made, same, same_end)


def regions_of(content: bytes, values: Mapping[str, bytes]) -> list[Region]:
    """Where values that are there once lie in a file; small ones could be something else."""
    places = ((name, content.find(v)) for name, v in values.items() if len(v) >= 64)
    return [Region(name, at, at + len(values[name])) for name, at in places if at >= 0]
