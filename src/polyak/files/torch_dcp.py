"""Distributed checkpoints of PyTorch (``torch.distributed.checkpoint``): a directory with ``.metadata`` and chunks.

Each process writes a ``.distcp`` file; a tensor may be spread over all of them. Every chunk is a small file of
``torch.save``, so its CRC-32 is verified when it is read. Names are those that ``torch.save`` of the same state would
have: the containers joined with slashes, and within a ``state_dict`` the dots that PyTorch gives.
"""

from __future__ import annotations

import mmap
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from polyak.contents import Contents, Tensor
from polyak.errors import DamagedFile, FileError
from polyak.files import torch_zip
from polyak.files.failures import failures_named
from polyak.files.limits import MOST_HEADER
from polyak.files.torch_dcp_metadata import Chunk, Entry, Metadata, Place, read_metadata
from polyak.files.torch_globals import View
from polyak.files.torch_pt import FORMAT, NOT_READ
from polyak.files.torch_storage import Storages
from polyak.files.torch_tree import Tree
from polyak.snapshot import Array
from polyak.weights import numpy_dtype

METADATA = ".metadata"
_CHUNKS = "*.distcp"
_LARGEST_OBJECT = 1 << 20
_MOST_OBJECTS = 2000


def recognises(path: Path) -> bool:
    """Whether it is a directory with a list of chunks, or with chunks alone. Raises FileError."""
    if not path.is_dir():
        return False
    with failures_named(path, "read"):
        return any(path.glob(_CHUNKS)) or ((path / METADATA).is_file() and _is_metadata(path / METADATA))


def _is_metadata(path: Path) -> bool:
    with path.open("rb") as file:
        return b"torch.distributed.checkpoint" in file.read(4096)


def read(path: Path) -> Contents:
    """Open a checkpoint; the list of chunks and small objects are read, tensors are not.

    Raises:
        FileError: the list or a file of chunks is missing: the checkpoint was not finished.
        DamagedFile: it contradicts itself, or asks for code.
    """
    origin = f"checkpoint {str(path)!r}"
    metadata = read_metadata(_listed(path, origin), origin)
    _check(path, metadata, origin)
    facts = _facts(path, metadata, origin)
    tensors = {
        name: Tensor(entry.shape, entry.dtype, partial(_assembled, path, name, entry, origin))
        for name, entry in metadata.tensors.items()
        if _readable(entry)
    }
    facts |= {
        NOT_READ + n: "a tensor of a sort or coding of its own" for n, e in metadata.tensors.items() if n not in tensors
    }
    return Contents(origin, FORMAT, tensors, "crc32", facts=facts)


def _readable(entry: Entry) -> bool:
    return bool(entry.dtype) and not any(chunk.place.coded for chunk in entry.chunks)


def _listed(path: Path, origin: str) -> bytes:
    held = path / METADATA
    with failures_named(held, "read"):
        if not held.is_file():
            raise FileError(
                f"{origin}: expected {METADATA}, which is written last, received chunks alone",
                hint="the checkpoint was not finished or not copied whole; file managers hide names with a dot",
            )
        if held.stat().st_size > MOST_HEADER:
            raise DamagedFile(f"{origin}: {METADATA}: expected at most {MOST_HEADER:,} bytes")
        return held.read_bytes()


def _all_places(metadata: Metadata) -> set[Place]:
    chunks = {chunk.place for entry in metadata.tensors.values() for chunk in entry.chunks}
    return chunks | set(metadata.objects.values())


def _check(path: Path, metadata: Metadata, origin: str) -> None:
    """Every place must be in a file of the directory."""
    places = _all_places(metadata)
    sizes = {file: _size(path, file, origin) for file in sorted({place.file for place in places})}
    for place in places:
        if place.start + place.length > sizes[place.file]:
            raise DamagedFile(
                f"{origin}: {place.file!r:.120}: expected {place.length} bytes at byte {place.start}, "
                f"received {max(sizes[place.file] - place.start, 0)} to the end of the file",
                hint="the file is truncated; restore it from a copy",
            )


def _size(path: Path, name: str, origin: str) -> int:
    file = path / name
    with failures_named(file, "read"):
        if not file.is_file():
            raise FileError(f"{origin}: {name!r:.120} is missing", hint="copy the checkpoint again, whole")
        if not file.resolve().is_relative_to(path.resolve()):
            raise FileError(
                f"{origin}: {name!r:.120}: expected a file of its own, received a link that leads out",
                hint="copy the checkpoint with its links followed, as `cp -rL` does, if you trust what they lead to",
            )
        return file.stat().st_size


def _unpacked(path: Path, place: Place, origin: str) -> tuple[Any, Storages]:
    """The tree that ``torch.save`` stored at a place, and its storages, in memory of their own."""
    file = path / place.file
    where = f"{origin}: {place.file!r:.120} at byte {place.start}"
    held = mmap.mmap(-1, max(place.length, 1))
    with failures_named(file, "read"), file.open("rb") as opened:
        opened.seek(place.start)
        opened.readinto(memoryview(held)[: place.length])
    if held[: len(torch_zip.MAGIC)] != torch_zip.MAGIC:
        raise DamagedFile(f"{where}: expected an archive of torch.save, received something else")
    archive: Any = held  # a map can be read like a file
    return torch_zip.read(archive, held, where)


def _facts(path: Path, metadata: Metadata, origin: str) -> dict[str, object]:
    """Plain values that lie beside the tensors as pickles of their own."""
    tree = Tree(origin)
    skipped: dict[str, object] = {}
    for number, (name, place) in enumerate(metadata.objects.items()):
        if place.coded or place.length > _LARGEST_OBJECT or number >= _MOST_OBJECTS:
            skipped[NOT_READ + name] = "a large or coded object"
            continue
        value, _ = _unpacked(path, place, origin)
        tree.add(value, name)
    within = dict.fromkeys(tree.views, "a tensor within an object") | tree.not_read
    return {**tree.facts, **{NOT_READ + name: what for name, what in within.items()}, **skipped}


def _assembled(path: Path, name: str, entry: Entry, origin: str) -> Array:
    """The tensor, chunk by chunk. Raises DamagedFile where two overlap."""
    made: Array = np.empty(entry.shape, numpy_dtype(entry.dtype))
    filled = np.zeros(entry.shape, bool) if len(entry.chunks) > 1 else None
    for chunk in entry.chunks:
        box = tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))
        if filled is not None:
            if filled[box].any():
                raise DamagedFile(f"{origin}: weight {name!r:.120}: two chunks overlap at {chunk.offsets}")
            filled[box] = True
        made[box] = _chunk(path, name, entry, chunk, origin)
    return made


def _chunk(path: Path, name: str, entry: Entry, chunk: Chunk, origin: str) -> Array:
    value, storages = _unpacked(path, chunk.place, f"{origin}: weight {name!r:.120}")
    if not isinstance(value, View) or (value.shape, value.dtype) != (chunk.sizes, entry.dtype):
        received = f"{value.shape} {value.dtype}" if isinstance(value, View) else type(value).__name__
        raise DamagedFile(
            f"{origin}: weight {name!r:.120}: expected a chunk of {chunk.sizes} {entry.dtype}, received {received:.80}"
        )
    storages.check(name, value)
    array: Array = storages.read(value)
    return array
