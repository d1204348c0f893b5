"""TensorFlow checkpoints read without TensorFlow: a table of entries (``prefix.index``) over mapped data files.

Covers ``tf.train.Checkpoint``, the V2 format of ``tf.compat.v1.train.Saver`` and the variables of a SavedModel, in one
or many data files, partitioned variables included. Every tensor's CRC32C is verified when it is read.
Sources: ``tensorflow/core/protobuf/tensor_bundle.proto`` and ``tensorflow/core/util/tensor_bundle``.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np

from polyak.errors import DamagedFile, FileError, MissingWeight, UnknownFormat, WeightError
from polyak.files.object_graph import GRAPH_KEY, ObjectGraph, parse_graph
from polyak.files.protobuf import Message, WireError, decode, take, varint
from polyak.files.sstable import has_magic, map_file, masked_crc32c, read_table
from polyak.weights import numpy_dtype

_NON_NUMERIC = ("string", "resource", "variant")
# In the order of tensorflow.DataType, from 1. Quantised integers are plain ones here: their scale is not in the file.
_DTYPE_NAMES = """
    float32 float64 int32 uint8 int16 int8 string complex64 int64 bool int8 uint8 int32 bfloat16 int16 uint16 uint16
    complex128 float16 resource variant uint32 uint64 float8_e5m2 float8_e4m3fn float8_e4m3fnuz float8_e4m3b11fnuz
    float8_e5m2fnuz int4 uint4 int2 uint2 float4_e2m1fn
"""
_DTYPES = dict(enumerate(_DTYPE_NAMES.split(), start=1))
_FORMAT_VERSION = 1
_MAX_RANK = 64  # NumPy's limit
_STATE_LIMIT = 1 << 24
_AGAIN = "copy or download the checkpoint again"

# Per dimension: first index and length; a length of -1 takes the whole dimension.
Region = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """Where and what one tensor of a checkpoint is.

    Attributes:
        key: its name in the checkpoint.
        dtype: name of its NumPy or ml_dtypes dtype, or "string", "resource", "variant".
        shape: lengths of its dimensions, in elements.
        shard: number of the data file.
        offset: its first byte in that file.
        size: bytes it takes there; 0 if it is stored in parts.
        crc32c: masked checksum of these bytes.
        regions: the parts of a partitioned variable, each of which has an entry of its own.

    Example:
        >>> Entry("kernel", "bfloat16", (64, 10), shard=0, offset=0, size=1280, crc32c=0).nbytes
        1280
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int
    regions: tuple[Region, ...] = ()

    @property
    def numeric(self) -> bool:
        """Whether the tensor can be read as an array."""
        return self.dtype not in _NON_NUMERIC

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in memory; as stored, if it is not numeric."""
        return math.prod(self.shape) * numpy_dtype(self.dtype).itemsize if self.numeric else self.size


@dataclass(frozen=True, slots=True)
class _Shard:
    path: Path
    data: np.ndarray[Any, np.dtype[np.uint8]]


class TensorBundle:
    """A TensorFlow checkpoint, open for reading. Data are mapped, and read tensor by tensor.

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
            entries, self._parts = _decode_entries(table)
            stored = [entry for entry in (*entries.values(), *self._parts.values()) if not entry.regions]
            self._shards = _map_shards(self.prefix, _used_shards(stored, count), count)
            _check_extents(stored, self._shards)
            _check_regions(entries, self._parts, sum(len(shard.data) for shard in self._shards.values()))
        except WireError as error:
            raise DamagedFile(f"file {str(self._index)!r}: {error}", hint=_AGAIN) from None
        self.entries = MappingProxyType(entries)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the data files. Arrays that were read stay valid; the entries can still be listed."""
        # A map ends with the last array over it.
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
            raise DamagedFile(f"file {str(self._index)!r}: object graph: {error}", hint=_AGAIN) from None

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
        data = self._shard(entry).data[entry.offset : entry.offset + entry.size].tobytes()
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
        source = self._shard(entry).data[entry.offset : entry.offset + entry.size]
        array = np.empty(entry.shape, numpy_dtype(entry.dtype))
        flat = array.reshape(-1).view(np.uint8)
        # The copy is what is verified: the file behind the map may change between two looks.
        flat[:] = source
        self._verify(entry, masked_crc32c(flat))
        return array

    def _assemble(self, entry: Entry) -> np.ndarray[Any, np.dtype[Any]]:
        array = np.empty(entry.shape, numpy_dtype(entry.dtype))
        filled = np.zeros(entry.shape, np.bool_)
        for region in entry.regions:
            where = _slices(region, entry.shape)
            if filled[where].any():
                part = f"the part at {region} overlaps another"
                raise DamagedFile(f"file {str(self._index)!r}: tensor {entry.key!r}: {part}", hint=_AGAIN)
            filled[where] = True
            array[where] = self._load(self._parts[_region_key(entry.key, region)])
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
        return DamagedFile(f"{where}: {problem}", hint=_AGAIN)

    @property
    def _name(self) -> str:
        return repr(str(self._index))


def find_prefix(path: Path) -> Path:
    """The prefix of the checkpoint that a path leads to; ``prefix.index`` exists.

    Args:
        path: as ``TensorBundle`` takes it; one of the checkpoint's data files will do as well.

    Raises:
        FileError: nothing is there, or a state file points outside its directory.
        UnknownFormat: the path is a file of another kind.
        DamagedFile: a state file names no checkpoint.
    """
    if path.is_dir():
        if any((path / f"saved_model.{kind}").is_file() for kind in ("pb", "pbtxt")):
            return _existing(path / "variables" / "variables", path)
        if (path / "checkpoint").is_file():
            return _existing(_latest(path / "checkpoint"), path / "checkpoint")
    stem = path.with_name(re.sub(r"\.(index|data-\d{5}-of-\d{5})$", "", path.name)) if path.name else path
    for prefix in (path, stem):
        if _has_index(prefix):
            return prefix
    if path.is_file():
        raise _no_checkpoint(path, stem)
    received = "a directory without one" if path.is_dir() else "nothing"
    hint = _names(path if path.is_dir() else path.parent)
    raise FileError(f"file {str(path)!r}: expected a TensorFlow checkpoint, received {received}", hint=hint)


def _has_index(prefix: Path) -> bool:
    try:
        return Path(f"{prefix}.index").is_file()
    except OSError:  # a name longer than the system allows
        return False


def _existing(prefix: Path, source: Path) -> Path:
    if _has_index(prefix):
        return prefix
    message = f"file {str(source)!r}: expected the checkpoint {str(prefix)!r}, received no {prefix.name}.index"
    raise FileError(message, hint=_names(prefix.parent))


def _no_checkpoint(path: Path, stem: Path) -> FileError:
    if stem != path:
        return FileError(f"file {str(path)!r}: expected {stem.name}.index beside it, received none", hint=_AGAIN)
    if has_magic(path):
        hint = "save it again with tf.compat.v1.train.Saver, which writes V2 by default"
        return UnknownFormat(f"file {str(path)!r}: expected a TensorFlow V2 checkpoint, received V1", hint=hint)
    return UnknownFormat(f"file {str(path)!r}: expected a TensorFlow checkpoint, received another file")


def _names(directory: Path) -> str | None:
    """A hint that names the checkpoints of a directory, if it has any."""
    found = sorted(str(path)[: -len(".index")] for path in directory.glob("*.index")) if directory.is_dir() else []
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"name one of {', '.join(found[:3])}{more}" if found else None


def _latest(state: Path) -> Path:
    """The checkpoint that a ``checkpoint`` state file (a text protocol buffer) names, inside the file's directory."""
    if (size := state.stat().st_size) > _STATE_LIMIT:
        raise DamagedFile(f"file {str(state)!r}: expected at most {_STATE_LIMIT} bytes, received {size}")
    pattern = rb"""(?<!\w)model_checkpoint_path\s*:\s*(?:"((?:[^"\\\n]|\\.)*)"|'((?:[^'\\\n]|\\.)*)')"""
    found = re.search(pattern, state.read_bytes())
    target = os.fsdecode(_unquoted(found[1] or found[2] or b"")) if found else ""
    if not target or "\0" in target:
        raise DamagedFile(
            f"file {str(state)!r}: expected model_checkpoint_path, received none", hint=_names(state.parent)
        )
    return _inside(state.parent, target, state)


def _unquoted(text: bytes) -> bytes:
    """The bytes of a quoted text field; what is not ASCII may stand as octal escapes."""
    plain = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}

    def character(match: re.Match[bytes]) -> bytes:
        code = match[1]
        if code[0] in b"01234567":
            return bytes([int(code, 8) & 0xFF])
        return bytes([int(code[1:], 16)]) if len(code) > 1 else plain.get(code, code)

    return re.sub(rb"\\([0-7]{1,3}|[xX][0-9a-fA-F]{1,2}|.)", character, text)


def _inside(directory: Path, target: str, state: Path) -> Path:
    """``target`` under ``directory``: neither its text nor a linked directory may lead out. Linked files may."""
    inside = directory / target
    if ".." in Path(target).parts or not _real(inside.parent).is_relative_to(directory.resolve()):
        message = f"file {str(state)!r}: expected a checkpoint in its own directory, received {target!r}"
        raise FileError(message, hint=_names(directory))
    return inside


def _real(directory: Path) -> Path:
    """A directory without links; the root for one that is not there or linked in a circle."""
    try:
        return Path(os.path.realpath(directory, strict=True))
    except OSError:
        return Path("/")


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


def _decode_entries(table: dict[bytes, bytes]) -> tuple[dict[str, Entry], dict[bytes, Entry]]:
    """All tensors by name, and the parts of partitioned ones by their encoded keys."""
    names = {raw: raw.decode("utf-8", "backslashreplace") for raw in table}
    decoded = {raw: _decode_entry(names[raw], value) for raw, value in table.items()}
    wanted = {_region_key(entry.key, region) for entry in decoded.values() for region in entry.regions}
    parts = {raw: entry for raw, entry in decoded.items() if raw in wanted}
    entries = {entry.key: entry for raw, entry in decoded.items() if raw not in wanted}
    if len(entries) + len(parts) != len(decoded):
        raise WireError(f"expected {len(decoded)} distinct keys, received {len(entries) + len(parts)}")
    return entries, parts


def _decode_entry(key: str, value: bytes) -> Entry:
    try:
        fields = decode(value)
        shape = tuple(dim.integer(1) for shape in fields.messages(2) for dim in shape.messages(2))
        regions = tuple(_decode_region(part) for part in fields.messages(7))
        shard, offset, size, crc32c = (fields.integer(number) for number in (3, 4, 5, 6))
        entry = Entry(key, _dtype(fields), shape, shard, offset, size, crc32c, regions)
        _check_size(entry)
    except WireError as error:
        raise WireError(f"tensor {key!r}: {error}") from None
    return entry


def _dtype(fields: Message) -> str:
    if (code := fields.integer(1)) in _DTYPES:
        return _DTYPES[code]
    raise WireError(f"expected a dtype from 1 to {len(_DTYPES)}, received {code}")


def _decode_region(part: Message) -> Region:
    # An extent without a length takes everything, also for the key that the region is stored under.
    return tuple((dim.integer(1), dim.integer(2) if 2 in dim else -1) for dim in part.messages(1))


def _check_size(entry: Entry) -> None:
    """A shape that NumPy can hold, and as many bytes as it needs."""
    if len(entry.shape) > _MAX_RANK or any(length < 0 for length in entry.shape):
        raise WireError(f"expected up to {_MAX_RANK} dimensions without negative ones, received shape {entry.shape}")
    if math.prod(length or 1 for length in entry.shape) >= 1 << 56:
        raise WireError(f"expected fewer than 2**56 elements, received shape {entry.shape}")
    expected = 0 if entry.regions else entry.nbytes
    if entry.size != expected:
        raise WireError(f"expected {expected} bytes for {entry.dtype} of shape {entry.shape}, received {entry.size}")


def _used_shards(entries: list[Entry], count: int) -> list[int]:
    """The numbers of the data files that hold anything."""
    for entry in entries:
        if not 0 <= entry.shard < count:
            raise WireError(f"tensor {entry.key!r}: expected one of {count} data files, received number {entry.shard}")
    return sorted({entry.shard for entry in entries})


def _map_shards(prefix: Path, used: list[int], count: int) -> dict[int, _Shard]:
    shards = {}
    for number in used:
        path = Path(f"{prefix}.data-{number:05d}-of-{count:05d}")
        if not path.is_file():
            hint = f"copy all data files of the checkpoint, {prefix.name}.data-*"
            raise FileError(f"file {str(path)!r}: expected data file {number + 1} of {count}, received none", hint=hint)
        # An empty file, which holds only empty tensors, cannot be mapped.
        data = map_file(path) if path.stat().st_size else b""
        shards[number] = _Shard(path, np.frombuffer(data, np.uint8))
    return shards


def _check_extents(entries: list[Entry], shards: Mapping[int, _Shard]) -> None:
    for entry in entries:
        shard = shards[entry.shard]
        if entry.offset < 0 or entry.size < 0 or entry.offset + entry.size > len(shard.data):
            extent = f"expected bytes {entry.offset} to {entry.offset + entry.size}, received {len(shard.data)} bytes"
            raise DamagedFile(f"file {str(shard.path)!r}: tensor {entry.key!r}: {extent}", hint=_AGAIN)


def _check_regions(entries: Mapping[str, Entry], parts: Mapping[bytes, Entry], room: int) -> None:
    """Parts of partitioned tensors that fit and add up, so that reading allocates no more than the files hold."""
    for entry in entries.values():
        if not entry.regions or not entry.numeric:
            continue
        for region in entry.regions:
            part = parts.get(_region_key(entry.key, region))
            if part is None or (part.dtype, part.shape) != (entry.dtype, _region_shape(region, entry.shape)):
                received = "none" if part is None else f"{part.dtype} of shape {part.shape}"
                raise WireError(f"tensor {entry.key!r}: expected its part at {region}, received {received}")
        stored = sum(parts[_region_key(entry.key, region)].nbytes for region in entry.regions)
        if stored != entry.nbytes or stored > room:
            total = f"expected parts of {entry.nbytes} bytes in all, received {stored} in files of {room} bytes"
            raise WireError(f"tensor {entry.key!r}: {total}")


def _slices(region: Region, shape: tuple[int, ...]) -> tuple[slice, ...]:
    if len(region) != len(shape):
        raise WireError(f"expected a part in {len(shape)} dimensions, received {region}")
    extents = [
        (0, whole) if length == -1 else (start, length) for (start, length), whole in zip(region, shape, strict=True)
    ]
    if any(
        start < 0 or length < 0 or start + length > whole for (start, length), whole in zip(extents, shape, strict=True)
    ):
        raise WireError(f"expected a part within shape {shape}, received {region}")
    return tuple(slice(start, start + length) for start, length in extents)


def _region_shape(region: Region, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(where.stop - where.start for where in _slices(region, shape))


def _region_key(name: str, region: Region) -> bytes:
    """The key that a part is stored under: an encoding whose bytes sort as its values do.

    Source: ``EncodeTensorNameSlice`` in ``tensorflow/core/util/saved_tensor_slice_util.cc``.
    """
    escaped = re.sub(rb"[\x00\xff]", lambda byte: byte[0] + bytes([byte[0][0] ^ 0xFF]), name.encode())
    extents = b"".join(_ordered_signed(number) for extent in region for number in extent)
    return b"\0" + escaped + b"\0\1" + _ordered(len(region)) + extents


def _ordered(number: int) -> bytes:
    """A natural number as its length in bytes and its bytes, highest first."""
    size = (number.bit_length() + 7) // 8
    return bytes([size]) + number.to_bytes(size, "big")


def _ordered_signed(number: int) -> bytes:
    """An integer in two's complement whose first bits tell the sign and, by their count, the length in bytes.

    Example:
        >>> _ordered_signed(-1).hex(), _ordered_signed(63).hex(), _ordered_signed(64).hex()
        ('7f', 'bf', 'c040')
    """
    size = (number ^ (number >> 63)).bit_length() // 7 + 1
    header = ((1 << size) - 1) << 7 * size
    return ((number % (1 << 8 * size)) ^ header).to_bytes(size, "big")


def _scalar_string(data: bytes) -> tuple[bytes, int]:
    """A stored scalar string and its masked checksum, which covers the length as an integer of 4 or 8 bytes."""
    length, at = varint(data, 0)
    stored, at = take(data, at, 4)
    text, at = take(data, at, length)
    if at != len(data):
        raise WireError(f"expected a string of {len(data) - at + length} bytes, received {length}")
    # The stored checksum of the length alone adds nothing: the tensor's own covers the length and that checksum.
    return text, masked_crc32c(length.to_bytes(4 if length < 1 << 32 else 8, "little") + stored + text)
