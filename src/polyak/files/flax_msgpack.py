"""Flax' msgpack files: what ``flax.serialization.to_bytes`` and ``msgpack_serialize`` make of a tree of arrays.

Nothing in them is protected; damage shows only where lengths no longer fit. Read without Flax and without JAX.
"""

from __future__ import annotations

import math
from codecs import getincrementaldecoder
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from polyak.contents import SAME_PATH, Contents, Tensor, plain
from polyak.errors import DamagedFile, UnknownFormat
from polyak.files.failures import failures_named
from polyak.files.flax_msgpack_tree import Malformed, Parser, Run, Skipped
from polyak.files.positioned import PositionedFile
from polyak.snapshot import Array

FORMAT = "flax"
_CHUNKED = "__msgpack_chunked_array__"
_START = 512
_ROOT = "array"
_WIDEST = 2**63
_WIDTHS = {0xD9: 1, 0xDA: 2, 0xDB: 4}  # bytes of the length of a text
_MAPS = frozenset(bytes([code]) for code in (*range(0x80, 0x90), 0xDE, 0xDF))


def recognises(path: Path) -> bool:
    """Whether the file begins with a map whose first key is a name, or with an array. Raises FileError."""
    if not path.is_file():
        return False
    with failures_named(path, "read"), path.open("rb") as file:
        start = file.read(_START)
    return _is_array(start) or _is_map(start)


def _is_map(start: bytes) -> bool:
    """A map with names for keys; the name is printable text, and a value begins behind it."""
    code = start[0] if start else 0
    skip = 1 if 0x81 <= code <= 0x8F else {0xDE: 3, 0xDF: 5}.get(code, 0)
    rest = start[skip:]
    width = _WIDTHS.get(rest[0] if rest else 0)
    if not skip or not rest or (width is None and not 0xA0 <= rest[0] <= 0xBF):
        return False
    length = int.from_bytes(rest[1 : 1 + width], "big") if width else rest[0] & 0x1F
    rest = rest[1 + (width or 0) :]
    try:  # a long name is here in part, perhaps of its last letter, too
        name = getincrementaldecoder("utf-8")().decode(rest[:length], final=len(rest) >= length)
    except UnicodeDecodeError:
        return False
    if not name:  # which proves little
        return rest[:1] in _MAPS or _is_array(rest)
    return name.isprintable() and rest[length : length + 1] != b"\xc1"


def _is_array(start: bytes) -> bool:
    """An extension of Flax' type for arrays, which holds a list of three."""
    width = {0xC7: 1, 0xC8: 2, 0xC9: 4}.get(start[0] if start else 0)
    return width is not None and start[1 + width : 3 + width] == b"\x01\x93"


def read(path: Path) -> Contents:
    """Open a file; its tree is read, its arrays are not. Raises DamagedFile, FileError.

    Arrays are named by their path, steps joined with slashes. Plain values are facts.
    """
    origin = f"file {str(path)!r}"
    data = PositionedFile(path)
    parser = Parser(data.stream(), data.size)
    try:
        tree = parser.value()
        if parser.position != data.size:
            raise Malformed(f"{data.size - parser.position} more bytes behind the tree")
        leaves = list(_leaves(tree))
    except Malformed as error:
        raise DamagedFile(
            f"{origin}: not readable at byte {parser.position}: expected a tree of arrays, received {error}",
            hint="the file is truncated or damaged; restore it from a copy",
        ) from error
    tensors: dict[str, Tensor] = {}
    facts: dict[str, object] = {}
    unread: dict[str, str] = {}
    for name, leaf in leaves:
        if name in tensors or name in facts or name in unread:
            raise UnknownFormat(
                f"{origin}: expected one value {name!r:.120}, received two", hint=SAME_PATH.format(path=name[:80])
            )
        if (tensor := _tensor(leaf, data)) is not None:
            tensors[name] = tensor
        elif (what := _unread(leaf)) is not None:
            unread[name] = what
        elif leaf is not None:
            facts[name] = leaf
    return Contents(origin, FORMAT, tensors, "none", facts=facts, unread=unread, beside=plain(facts))


def _tensor(leaf: Any, data: PositionedFile) -> Tensor | None:
    if isinstance(leaf, Run) and leaf.dtype:
        return Tensor(leaf.shape, leaf.dtype, partial(data.array, leaf.start, leaf.shape, leaf.dtype))
    if isinstance(leaf, tuple):
        shape, parts = leaf
        return Tensor(shape, parts[0].dtype, partial(_joined, data, shape, parts))
    return None


def _unread(leaf: Any) -> str | None:
    if isinstance(leaf, Skipped):
        return leaf.what
    if isinstance(leaf, Run):
        return "an array of no numbers"
    return "a number of more than 64 bits" if isinstance(leaf, int) and abs(leaf) >= _WIDEST else None


def _leaves(value: Any, path: str | None = None) -> Iterator[tuple[str, Any]]:
    """Everything that is no container, by path. An array that Flax cut into chunks is a pair of shape and parts."""
    if isinstance(value, dict) and _CHUNKED in value:
        yield _ROOT if path is None else path, _chunked(value)
    elif isinstance(value, (dict, list)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for step, below in pairs:
            yield from _leaves(below, str(step) if path is None else f"{path}/{step}")
    else:
        yield _ROOT if path is None else path, value


def _chunked(value: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[Run, ...]]:
    shape, parts = _numbered(value.get("shape")), _numbered(value.get("chunks"))
    if not all(type(n) is int and n >= 0 for n in shape) or not all(isinstance(p, Run) and p.dtype for p in parts):
        raise Malformed("an array in chunks that are no arrays")
    same = len({p.dtype for p in parts}) == 1
    if not same or sum(math.prod(p.shape) for p in parts) != math.prod(shape):
        raise Malformed("an array in chunks that do not make its shape")
    return tuple(shape), tuple(parts)


def _numbered(value: Any) -> Sequence[Any]:
    """The values of a map from 0, 1, 2 ... in this order."""
    if not isinstance(value, dict) or set(value) != {str(i) for i in range(len(value))}:
        return (None,)
    return [value[str(i)] for i in range(len(value))]


def _joined(data: PositionedFile, shape: tuple[int, ...], parts: Sequence[Run]) -> Array:
    made: Array = np.concatenate([data.array(p.start, (math.prod(p.shape),), p.dtype) for p in parts])
    return made.reshape(shape)
