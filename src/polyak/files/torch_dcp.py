"""Distributed checkpoints of PyTorch (``torch.distributed.checkpoint``): a directory with ``.metadata`` and chunks.

Each process writes a ``.distcp`` file; a tensor may be spread over all of them. Every chunk is a small file of
``torch.save``, so its CRC-32 is verified when it is read. Names are those that ``torch.save`` of the same state would
have: the containers joined with slashes, and within a ``state_dict`` the dots that PyTorch gives.

PyTorch saves again into the same files, which a chunk's own CRC-32 cannot tell. So each file must stay the one that was
opened, and the list, which is written last, as well.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from polyak.contents import Contents, Tensor, plain
from polyak.errors import DamagedFile, FileError
from polyak.files import torch_zip
from polyak.files.failures import failures_named
from polyak.files.limits import MOST_HEADER
from polyak.files.pinned import Pinned
from polyak.files.positioned import PositionedFile
from polyak.files.stamp import Stamp, stamp
from polyak.files.torch_dcp_metadata import Chunk, Entry, Metadata, Place, read_metadata
from polyak.files.torch_globals import View
from polyak.files.torch_pt import FORMAT
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
    held = _Held(path)
    metadata = read_metadata(held.listed(), held.origin)
    held.expect(_all_places(metadata))
    tree, skipped = _objects(held, metadata)
    tensors = {
        name: Tensor(entry.shape, entry.dtype, partial(_assembled, held, name, entry))
        for name, entry in metadata.tensors.items()
        if _readable(entry)
    }
    odd = {n: "a tensor of a sort or coding of its own" for n in metadata.tensors if n not in tensors}
    unread = dict.fromkeys(tree.views, "a tensor within an object") | tree.not_read | skipped | odd
    beside = tree.others | plain(tree.facts)
    return Contents(held.origin, FORMAT, tensors, "crc32", facts=tree.facts, unread=unread, beside=beside)


class _Held:
    """The files of a checkpoint as they are when it is opened; to read one that has changed since is refused.

    Its directory stays open, but not its files: a large job leaves more of them than a process may hold open.
    """

    def __init__(self, path: Path) -> None:
        self.origin = f"checkpoint {str(path)!r}"
        self._named = path
        self._pinned = Pinned(path.absolute())
        self._stamps: dict[str, Stamp] = {}

    def listed(self) -> bytes:
        """The list of chunks. Raises FileError, DamagedFile."""
        held = self._pinned.path / METADATA
        with failures_named(self._named / METADATA, "read"):
            if not held.is_file():
                raise FileError(
                    f"{self.origin}: expected {METADATA}, which is written last, received chunks alone",
                    hint="the checkpoint was not finished or not copied whole; file managers hide names with a dot",
                )
            self._stamps[METADATA] = stamp(held.stat())
            if held.stat().st_size > MOST_HEADER:
                raise DamagedFile(f"{self.origin}: {METADATA}: expected at most {MOST_HEADER:,} bytes")
            raw = held.read_bytes()
        self._refuse_changed(METADATA)
        return raw

    def expect(self, places: set[Place]) -> None:
        """Every place must be in a file of the directory. Raises FileError, DamagedFile."""
        sizes = {file: self._size(file) for file in sorted({place.file for place in places})}
        for place in places:
            if place.start + place.length > sizes[place.file]:
                raise DamagedFile(
                    f"{self.origin}: {place.file!r:.120}: expected {place.length} bytes at byte {place.start}, "
                    f"received {max(sizes[place.file] - place.start, 0)} to the end of the file",
                    hint="the file is truncated; restore it from a copy",
                )

    def _size(self, name: str) -> int:
        file = self._pinned.path / name
        with failures_named(self._named / name, "read"):
            if not file.is_file():
                raise FileError(f"{self.origin}: {name!r:.120} is missing", hint="copy the checkpoint again, whole")
            if not file.resolve().is_relative_to(self._pinned.path.resolve()):
                raise FileError(
                    f"{self.origin}: {name!r:.120}: expected a file of its own, received a link that leads out",
                    hint="copy the checkpoint with its links followed (`cp -rL`), if you trust what they lead to",
                )
            found = file.stat()
        self._stamps[name] = stamp(found)
        return found.st_size

    def part(self, place: Place) -> PositionedFile:
        """The bytes of a place, read when they are asked for. Raises FileError, DamagedFile."""
        self.refuse_saved_again(place)  # before it is opened: what is there now may be no file
        opened = PositionedFile(self._pinned.path / place.file)
        self.refuse_saved_again(place)
        return opened.part(place.start, place.length)

    def refuse_saved_again(self, place: Place) -> None:
        """Raise DamagedFile if a place, or the list of all, is not what it was when the checkpoint was opened."""
        self._refuse_changed(place.file)
        self._refuse_changed(METADATA)

    def _refuse_changed(self, name: str) -> None:
        with failures_named(self._named / name, "read"):
            found = (self._pinned.path / name).stat()
        if stamp(found) != self._stamps[name]:
            raise DamagedFile(
                f"{self.origin}: {name!r:.120}: expected the file as it was when the checkpoint was opened, "
                "received one that was written later",
                hint="open the checkpoint again; whoever saves should take a new directory each time",
            )


def _readable(entry: Entry) -> bool:
    return bool(entry.dtype) and not any(chunk.place.coded for chunk in entry.chunks)


def _all_places(metadata: Metadata) -> set[Place]:
    chunks = {chunk.place for entry in metadata.tensors.values() for chunk in entry.chunks}
    return chunks | set(metadata.objects.values())


def _unpacked(held: _Held, place: Place, origin: str) -> tuple[Any, Storages]:
    """The tree that ``torch.save`` stored at a place, and its storages."""
    where = f"{origin}: {place.file!r:.120} at byte {place.start}"
    stored = held.part(place)
    if stored.piece(0, len(torch_zip.MAGIC)) != torch_zip.MAGIC:
        raise DamagedFile(f"{where}: expected an archive of torch.save, received something else")
    return torch_zip.read(stored, where)


def _objects(held: _Held, metadata: Metadata) -> tuple[Tree, dict[str, str]]:
    """What lies beside the tensors as pickles of their own, and which of these are not read."""
    tree = Tree(held.origin)
    skipped: dict[str, str] = {}
    for number, (name, place) in enumerate(metadata.objects.items()):
        if place.coded or place.length > _LARGEST_OBJECT or number >= _MOST_OBJECTS:
            skipped[name] = "a large or coded object"
            continue
        value, _ = _unpacked(held, place, held.origin)
        tree.add(value, name)
    return tree, skipped


def _assembled(held: _Held, name: str, entry: Entry) -> Array:
    """The tensor, chunk by chunk. Raises DamagedFile where two overlap."""
    made: Array = np.empty(entry.shape, numpy_dtype(entry.dtype))
    filled = np.zeros(entry.shape, bool) if len(entry.chunks) > 1 else None
    for chunk in entry.chunks:
        box = tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))
        if filled is not None:
            if filled[box].any():
                raise DamagedFile(f"{held.origin}: weight {name!r:.120}: two chunks overlap at {chunk.offsets}")
            filled[box] = True
        made[box] = _chunk(held, name, entry, chunk)
    return made


def _chunk(held: _Held, name: str, entry: Entry, chunk: Chunk) -> Array:
    where = f"{held.origin}: weight {name!r:.120}"
    value, storages = _unpacked(held, chunk.place, where)
    if not isinstance(value, View) or (value.shape, value.dtype) != (chunk.sizes, entry.dtype):
        received = f"{value.shape} {value.dtype}" if isinstance(value, View) else type(value).__name__
        raise DamagedFile(f"{where}: expected a chunk of {chunk.sizes} {entry.dtype}, received {received:.80}")
    storages.check(name, value)
    array: Array = storages.read(value)
    held.refuse_saved_again(chunk.place)
    return array
