"""The tree of an Orbax checkpoint: the path of each leaf, the name that it is stored under, and what sort it is.

Orbax stores a leaf under the steps of its path joined with dots. The steps themselves, and the sorts of the leaves,
are in ``_METADATA``; a checkpoint without it has the stored names alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from polyak.errors import DamagedFile
from polyak.files.failures import failures_named
from polyak.files.limits import MOST_TENSORS
from polyak.files.orbax_path import METADATA

STRINGS = "_strings.json"
_MOST_STEPS = 128
MOST_TREE = 25_000_000  # bytes: some 250 for each of as many leaves as there may be, all of which is decoded at once
_TEXT = "string"
_NO_NAMES = frozenset(("", ".", ".."))  # of a file; TensorStore would be asked for it


_T = TypeVar("_T")


class _Step(msgspec.Struct):
    key: str


class _Value(msgspec.Struct):
    value_type: str
    skip_deserialize: bool | None = None


class _Entry(msgspec.Struct):
    key_metadata: list[_Step]
    value_metadata: _Value


class _Metadata(msgspec.Struct):
    """What is read of ``_METADATA``."""

    tree_metadata: dict[str, _Entry]
    store_array_data_equal_to_fill_value: bool | None = None


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
    texts = _read(directory / STRINGS, dict[str, str], origin) or {}
    held = _read(directory / METADATA, _Metadata, origin)
    if held is None:
        return Tree(None, {}, False)
    if len(held.tree_metadata) > MOST_TENSORS:
        raise DamagedFile(f"{origin}: {METADATA}: expected a tree of at most {MOST_TENSORS:,} leaves")
    leaves: dict[str, Leaf] = {}
    told: dict[str, str] = {}
    for key, entry in held.tree_metadata.items():
        leaf = _leaf(key, entry, origin)
        sort = entry.value_metadata.value_type
        if leaf.path in leaves or leaf.path in told:
            raise DamagedFile(f"{origin}: expected one value {leaf.path!r:.120}, received two")
        if sort == _TEXT and leaf.stored in texts:
            told[leaf.path] = texts[leaf.stored]
        elif sort != _TEXT and not entry.value_metadata.skip_deserialize:  # empty containers and None have a place only
            leaves[leaf.path] = leaf
    _refuse_shared(leaves, origin)
    return Tree(tuple(leaves.values()), told, held.store_array_data_equal_to_fill_value is True)


def _leaf(key: str, entry: _Entry, origin: str) -> Leaf:
    try:
        return named([step.key for step in entry.key_metadata])
    except ValueError as error:
        raise DamagedFile(f"{origin}: {METADATA}: {key!r:.120} is not readable ({error!r:.80})") from error


def named(steps: Sequence[str]) -> Leaf:
    """The leaf at the end of these steps. Raises ValueError if it can have no array in a checkpoint."""
    if len(steps) > _MOST_STEPS:
        raise ValueError(f"{len(steps)} steps, more than {_MOST_STEPS}")
    leaf = Leaf("/".join(steps), ".".join(steps))
    leaf.path.encode()
    if leaf.stored and not _NO_NAMES.isdisjoint(leaf.stored.split("/")):
        raise ValueError(leaf.stored)
    return leaf


def _refuse_shared(leaves: dict[str, Leaf], origin: str) -> None:
    """Steps with dots can give two leaves one stored name; then the later one was written over the first."""
    owners: dict[str, str] = {}
    for leaf in leaves.values():
        other = owners.setdefault(leaf.stored, leaf.path)
        if other != leaf.path:
            raise DamagedFile(f"{origin}: {other!r:.120} and {leaf.path!r:.120} are stored under one name")


def _read(path: Path, type: type[_T], origin: str) -> _T | None:
    """What a file of JSON holds, of a known form: other parts of it are passed over. None where there is no file."""
    with failures_named(path, "read"):
        if not path.is_file():
            return None
        if (size := path.stat().st_size) > MOST_TREE:
            raise DamagedFile(f"{origin}: {path.name}: expected at most {MOST_TREE:,} bytes, received {size:,}")
        raw = path.read_bytes()
    try:
        return msgspec.json.decode(raw, type=type)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DamagedFile(f"{origin}: {path.name} is not readable: {error}", hint="restore it from a copy") from error
