"""The tree of an Orbax checkpoint: the path of each leaf, the name that it is stored under, and what sort it is.

Orbax stores a leaf under the steps of its path joined with dots. The steps themselves, and the sorts of the leaves,
are in ``_METADATA``; a checkpoint without it has the stored names alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from polyak.errors import DamagedFile
from polyak.files.failures import failures_named
from polyak.files.orbax_path import METADATA

STRINGS = "_strings.json"
MOST_LEAVES = 500_000
_LARGEST = 1 << 28
_MOST_STEPS = 128
_TEXT = "string"


@dataclass(frozen=True, slots=True)
class Leaf:
    """An array of the tree: its path, steps joined with slashes, and the name that it is stored under."""

    path: str
    stored: str


@dataclass(frozen=True, slots=True)
class Tree:
    """What the tree says of itself.

    Attributes:
        leaves: the arrays; None where the tree does not list them.
        texts: stored strings by their path.
        complete: whether every value is stored, so that a missing part is damage and no run of zeros.
    """

    leaves: tuple[Leaf, ...] | None
    texts: dict[str, str]
    complete: bool


def read_tree(directory: Path, origin: str) -> Tree:
    """Read the description of a tree. Raises DamagedFile."""
    texts = _json(directory / STRINGS, origin)
    held = _json(directory / METADATA, origin)
    if not held:
        return Tree(None, {}, False)
    entries = held.get("tree_metadata")
    if not isinstance(entries, dict) or len(entries) > MOST_LEAVES:
        raise DamagedFile(f"{origin}: {METADATA}: expected a tree of at most {MOST_LEAVES:,} leaves")
    leaves: dict[str, Leaf] = {}
    told: dict[str, str] = {}
    for key, entry in entries.items():
        leaf, sort, skipped = _leaf(key, entry, origin)
        if leaf.path in leaves or leaf.path in told:
            raise DamagedFile(f"{origin}: expected one value {leaf.path!r:.120}, received two")
        if sort == _TEXT and isinstance(texts.get(leaf.stored), str):
            told[leaf.path] = texts[leaf.stored]
        elif sort != _TEXT and not skipped:
            leaves[leaf.path] = leaf
    _refuse_shared(leaves, origin)
    return Tree(tuple(leaves.values()), told, held.get("store_array_data_equal_to_fill_value") is True)


def _leaf(key: str, entry: Any, origin: str) -> tuple[Leaf, str, bool]:
    """A leaf, its sort, and whether nothing is stored of it: empty containers and None have a place only."""
    try:
        steps = [step["key"] for step in entry["key_metadata"]]
        value = entry["value_metadata"]
        sort, skipped = value["value_type"], value.get("skip_deserialize") is True
        if len(steps) > _MOST_STEPS or not all(isinstance(s, str) for s in (*steps, sort)):
            raise ValueError(len(steps))
        leaf = Leaf("/".join(steps), ".".join(steps))
        leaf.path.encode()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedFile(f"{origin}: {METADATA}: {key!r:.120} is not readable ({error!r:.80})") from error
    return leaf, sort, skipped


def _refuse_shared(leaves: dict[str, Leaf], origin: str) -> None:
    """Steps with dots can give two leaves one stored name; then the later one was written over the first."""
    owners: dict[str, str] = {}
    for leaf in leaves.values():
        other = owners.setdefault(leaf.stored, leaf.path)
        if other != leaf.path:
            raise DamagedFile(f"{origin}: {other!r:.120} and {leaf.path!r:.120} are stored under one name")


def _json(path: Path, origin: str) -> dict[str, Any]:
    """The object in a file; empty where there is no file."""
    with failures_named(path, "read"):
        if not path.is_file():
            return {}
        if path.stat().st_size > _LARGEST:
            raise DamagedFile(f"{origin}: {path.name}: expected at most {_LARGEST:,} bytes")
        raw = path.read_bytes()
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DamagedFile(f"{origin}: {path.name} is not readable: {error}", hint="restore it from a copy") from error
