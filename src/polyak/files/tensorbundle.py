"""TensorFlow checkpoints read without TensorFlow: a table of entries (``prefix.index``) over data files.

Covers ``tf.train.Checkpoint``, the V2 format of ``tf.compat.v1.train.Saver`` and the variables of a SavedModel, in one
or many data files, partitioned variables included. Every tensor's CRC32C is verified when it is read.
Sources: ``tensorflow/core/protobuf/tensor_bundle.proto`` and ``tensorflow/core/util/tensor_bundle``.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np

from polyak.errors import DamagedFile, FileError, MissingWeight, UnknownFormat, WeightError
from polyak.files.bundle_entries import Entry, check_regions, decode_entries, region_key, region_slices
from polyak.files.bundle_path import AGAIN, find_prefix
from polyak.files.object_graph import GRAPH_KEY, ObjectGraph, parse_graph
from polyak.files.positioned import PositionedFile, flat_bytes
from polyak.files.protobuf import WireError, decode, take, varint
from polyak.files.sstable import masked_crc32c, read_table
from polyak.weights import numpy_dtype

_FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class _Shard:
    path: Path
    data: PositionedFile


class TensorBundle:
    """A TensorFlow checkpoint, open for reading. Data are read tensor by tensor.

    Opening reads the index, verifies it, and checks every position in it against the sizes of the data files.

    Args:
        path: a prefix (``run/ckpt-900``), its ``.index`` file, a directory with TensorFlow's ``checkpoint`` state file,
            or a SavedModel directory.

    Attributes:
        prefix: the path that the names of all files of the checkpoint begin with.
        entries: the tensors by key, in the index's order, partitioned variables as one. Strings are among them.

    Raises:
        FileError: nothing is there, or a data file is missing.
        UnknownFormat: what is there is no TensorFlow V2 checkpoint, or a kind of it that cannot be read.
        DamagedFile: the files contradict themselves.

    Example:
        >>> with TensorBundle("run/ckpt-900") as bundle:  # doctest: +SKIP
        ...     kernel = bundle.read("model/kernel/.ATTRIBUTES/VARIABLE_VALUE")
    """

    prefix: Path
    entries: Mapping[str, Entry]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.prefix = find_prefix(Path(path))
        self._index = Path(f"{self.prefix}.index")
        table = read_table(self._index)
        try:
            count = _shard_count(table, self._index)
            entries, self._parts = decode_entries(table)
            stored = [entry for entry in (*entries.values(), *self._parts.values()) if not entry.regions]
            self._shards = _open_shards(self.prefix, _used_shards(stored, count), count)
            _check_extents(stored, self._shards)
            check_regions(entries, self._parts, sum(shard.data.size for shard in self._shards.values()))
        except WireError as error:
            raise DamagedFile(f"file {str(self._index)!r}: {error}", hint=AGAIN) from None
        self.entries = MappingProxyType(entries)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the data files. Arrays that were read stay valid; the entries can still be listed."""
        self._shards.clear()

    @property
    def skipped(self) -> Mapping[str, str]:
        """The tensors that are no arrays of numbers, with the word for what they are, such as "string"."""
        return {key: entry.dtype for key, entry in self.entries.items() if not entry.numeric}

    @cached_property
    def graph(self) -> ObjectGraph | None:
        """The object graph; None if the checkpoint was saved by name. ``DamagedFile`` if it cannot be decoded."""
        if GRAPH_KEY not in self.entries:
            return None
        try:
            return parse_graph(self.read_string(GRAPH_KEY))
        except WireError as error:
            raise DamagedFile(f"file {str(self._index)!r}: object graph: {error}", hint=AGAIN) from None

    def read(self, key: str) -> np.ndarray[Any, np.dtype[Any]]:
        """A tensor as a new array of its own memory, in C order, verified. Quantised integers come as plain integers.

        Raises:
            MissingWeight: there is no such tensor.
            WeightError: the tensor does not hold numbers.
            DamagedFile: its checksum does not match, or its parts do not make up the whole.
        """
        entry = self._entry(key)
        if not entry.numeric:
            hint = "a single string is read with read_string" if entry.dtype == "string" else None
            raise WeightError(f"tensor {key!r}: expected numbers, received {entry.dtype} from {self._name}", hint=hint)
        return self._assemble(entry) if entry.regions else self._load(entry)

    def read_string(self, key: str) -> bytes:
        """The bytes of a scalar string tensor, verified. Raises what ``read`` raises."""
        entry = self._entry(key)
        if entry.dtype != "string" or entry.shape != ():
            received = f"{entry.dtype} of shape {entry.shape} from {self._name}"
            raise WeightError(f"tensor {key!r}: expected one string, received {received}")
        data = self._shard(entry).data.array(entry.offset, (entry.size,), "uint8").tobytes()
        try:
            text, crc = _scalar_string(data)
        except WireError as error:
            raise self._damaged(entry, str(error)) from None
        self._verify(entry, crc)
        return text

    def _entry(self, key: str) -> Entry:
        if key in self.entries:
            return self.entries[key]
        near = difflib.get_close_matches(key, self.entries, n=1)
        nearest = f"; nearest: {near[0]!r}" if near else ""
        received = f"received {len(self.entries)} others from {self._name}{nearest}"
        raise MissingWeight(f"tensor {key!r}: expected in the checkpoint, {received}", hint="list the keys of .entries")

    def _load(self, entry: Entry) -> np.ndarray[Any, np.dtype[Any]]:
        array = self._shard(entry).data.array(entry.offset, entry.shape, entry.dtype)
        self._verify(entry, masked_crc32c(flat_bytes(array)))
        return array

    def _assemble(self, entry: Entry) -> np.ndarray[Any, np.dtype[Any]]:
        array = np.empty(entry.shape, numpy_dtype(entry.dtype))
        filled = np.zeros(entry.shape, np.bool_)
        for region in entry.regions:
            where = region_slices(region, entry.shape)
            if filled[where].any():
                part = f"the part at {region} overlaps another"
                raise DamagedFile(f"file {str(self._index)!r}: tensor {entry.key!r}: {part}", hint=AGAIN)
            filled[where] = True
            array[where] = self._load(self._parts[region_key(entry.key, region)])
        return array

    def _shard(self, entry: Entry) -> _Shard:
        if entry.shard in self._shards:
            return self._shards[entry.shard]
        raise FileError(f"file {self._name}: expected an open checkpoint, received a closed one")

    def _verify(self, entry: Entry, received: int) -> None:
        if received != entry.crc32c:
            raise self._damaged(entry, f"expected CRC32C {entry.crc32c:#010x}, received {received:#010x}")

    def _damaged(self, entry: Entry, problem: str) -> DamagedFile:
        where = f"file {str(self._shard(entry).path)!r}: tensor {entry.key!r} at byte {entry.offset}"
        return DamagedFile(f"{where}: {problem}", hint=AGAIN)

    @property
    def _name(self) -> str:
        return repr(str(self._index))


def _shard_count(table: dict[bytes, bytes], index: Path) -> int:
    """The number of data files, from the header, which is the entry with the empty key."""
    if b"" not in table:
        raise UnknownFormat(f"file {str(index)!r}: expected the header of a TensorFlow V2 checkpoint, received none")
    header = decode(table.pop(b""))
    if header.integer(2):
        hint = "save it again on a little-endian machine, such as x86 or ARM"
        raise UnknownFormat(f"file {str(index)!r}: expected little-endian data, received big-endian", hint=hint)
    for version in header.messages(3):
        if (needed := version.integer(2)) > _FORMAT_VERSION:
            message = f"expected checkpoint format {_FORMAT_VERSION} or older, received {needed}"
            raise UnknownFormat(f"file {str(index)!r}: {message}", hint="update polyak")
    return header.integer(1)


def _used_shards(entries: list[Entry], count: int) -> list[int]:
    """The numbers of the data files that hold anything."""
    for entry in entries:
        if not 0 <= entry.shard < count:
            raise WireError(f"tensor {entry.key!r}: expected one of {count} data files, received number {entry.shard}")
    return sorted({entry.shard for entry in entries})


def _open_shards(prefix: Path, used: list[int], count: int) -> dict[int, _Shard]:
    shards = {}
    for number in used:
        path = Path(f"{prefix}.data-{number:05d}-of-{count:05d}")
        if not path.is_file():
            hint = f"copy all data files of the checkpoint, {prefix.name}.data-*"
            raise FileError(f"file {str(path)!r}: expected data file {number + 1} of {count}, received none", hint=hint)
        shards[number] = _Shard(path, PositionedFile(path))
    return shards


def _check_extents(entries: list[Entry], shards: Mapping[int, _Shard]) -> None:
    for entry in entries:
        shard = shards[entry.shard]
        if entry.offset < 0 or entry.size < 0 or entry.offset + entry.size > shard.data.size:
            extent = f"expected bytes {entry.offset} to {entry.offset + entry.size}, received {shard.data.size} bytes"
            raise DamagedFile(f"file {str(shard.path)!r}: tensor {entry.key!r}: {extent}", hint=AGAIN)


def _scalar_string(data: bytes) -> tuple[bytes, int]:
    """A stored scalar string and its masked checksum, which covers the length as an integer of 4 or 8 bytes."""
    length, at = varint(data, 0)
    stored, at = take(data, at, 4)
    text, at = take(data, at, length)
    if at != len(data):
        raise WireError(f"expected a string of {len(data) - at + length} bytes, received {length}")
    # The stored checksum of the length alone adds nothing: the tensor's own covers the length and that checksum.
    return bytes(text), masked_crc32c(length.to_bytes(4 if length < 1 << 32 else 8, "little") + stored + text)
