"""NumPy's .npz: a zip of .npy arrays, each checked when it is read; nothing is unpickled.

The check is the manifest's digest where polyak wrote the file, else the zip's CRC-32, which takes much longer.

polyak's manifest is the array ``polyak.json`` of bytes, so that ``np.load`` opens the file as any other. Dtypes that
.npy has no name for (bfloat16, float8) are stored as unsigned integers of their size; the manifest knows what they are.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tokenize import TokenError
from typing import Any

import msgspec
import numpy as np
from isal.isal_zlib import crc32

from polyak.contents import Contents, Tensor
from polyak.errors import DamagedFile, FileError, UnexpectedWeight, UnknownFormat
from polyak.files import zips
from polyak.files.atomic import Check, refuse_unwritable, replacing
from polyak.files.failures import failures_named
from polyak.files.limits import MOST_AXES
from polyak.files.meanwhile import Members
from polyak.files.positioned import PositionedFile, flat_bytes
from polyak.manifest import Manifest, Stored, longest_manifest
from polyak.snapshot import Array, Snapshot
from polyak.weights import numpy_dtype

_KEY = "polyak.json"
_END = ".npy"
_LOCAL = b"PK\x03\x04"
_HEADER_LIMIT = 1 << 16
_PLAIN_KINDS = "biufc"
_TEXT_KINDS = "SUMm"
_EPOCH = (1980, 1, 1, 0, 0, 0)


# Version 3 is 2 in UTF-8, which only the names in records need; these are refused whatever they are read as.
_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,
}
# RuntimeError holds NotImplementedError and RecursionError: an unknown compression, a header of brackets.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    TokenError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    RuntimeError,
)


@dataclass(frozen=True, slots=True)
class _Source:
    """An open file: as a zip, and as bytes. ``marked``: who reads an array compares it with a digest."""

    archive: zipfile.ZipFile
    data: PositionedFile
    origin: str
    marked: bool = False


@dataclass(frozen=True, slots=True)
class _Member:
    """One array of the zip: where its bytes begin after its .npy header, and what they are."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int


def recognises(path: Path) -> bool:
    """Whether the file is a zip whose first member is an .npy array."""
    if not path.is_file():
        return False
    with failures_named(path, "read"), path.open("rb") as file:
        start = file.read(30)
        name = file.read(int.from_bytes(start[26:28], "little"))
    return start[:4] == _LOCAL and name.endswith(_END.encode())


def read(path: Path) -> Contents:
    """Open a file; the zip's directory and the headers are read. Raises DamagedFile, UnknownFormat, FileError."""
    origin = f"file {str(path)!r}"
    with failures_named(path, "read"), _damage_named(origin):
        data = PositionedFile(path)
        archive = zips.opened(data.stream(), origin)
        source = _Source(archive, data, origin)
        members = {i.filename.removesuffix(_END): i for i in _infos(archive, origin)}
        manifest = _manifest(source, members.pop(_KEY, None), len(members))
        found = {name: _member(archive, info, origin) for name, info in members.items()}
    source = replace(source, marked=manifest is not None and manifest.marked)
    wanted = _described(manifest, found, origin)
    unread = {name: what for name, m in found.items() if (what := _no_numbers(m.dtype)) is not None}
    tensors = {
        name: _tensor(source, name, m, wanted.get(name, m.dtype.name))
        for name, m in found.items()
        if m.dtype.kind in _PLAIN_KINDS
    }
    return Contents(origin, "npz", tensors, "crc32" if manifest is None else "xxh3-128", manifest, unread=unread)


def refuse(snapshot: Snapshot, path: str | os.PathLike[str]) -> None:
    """Raise what ``write`` would raise before it reads an array; nothing is written."""
    _refuse_names(snapshot.manifest)
    refuse_unwritable(path, sum(w.nbytes for w in snapshot.weights))


def write(snapshot: Snapshot, path: str | os.PathLike[str], check: Check | None = None) -> Manifest:
    """Write a snapshot with its manifest, array by array, not compressed: weights hardly are compressible.

    Memory: the largest array.

    Args:
        check: reads the finished file back before it takes the place of an old one.

    Raises:
        FileError: the path cannot be written.
        UnexpectedWeight: a zip cannot hold a weight's name.
    """
    known = snapshot.manifest
    _refuse_names(known)
    needed = sum(w.nbytes for w in snapshot.weights)
    with replacing(path, needed, check) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        members = Members(archive, file)
        weights = tuple(_append(members, snapshot[s.name], s) for s in known.weights)
        manifest = snapshot.written(weights)
        _append_array(members, _KEY, np.frombuffer(manifest.to_json().encode(), np.uint8))
    return manifest


@contextmanager
def _damage_named(origin: str, name: str = "") -> Iterator[None]:
    """The errors of zipfile, zlib and numpy.lib.format as DamagedFile."""
    try:
        yield
    except FileError:
        raise
    except _DAMAGE as error:
        subject = f"{origin}: weight {name!r}" if name else origin
        raise DamagedFile(
            f"{subject}: not readable: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}",
            hint="the file is truncated or damaged; restore it from a copy",
        ) from error


def _infos(archive: zipfile.ZipFile, origin: str) -> list[zipfile.ZipInfo]:
    """The members, each of them an array that can be read."""
    infos = archive.infolist()
    for info in infos:
        subject = f"{origin}: member {info.filename!r:.80} at byte {info.header_offset}"
        if not info.filename.endswith(_END):
            raise UnknownFormat(f"{subject}: expected an .npy array", hint="the file is a zip, but no .npz of NumPy")
        if info.flag_bits & 1:
            raise UnknownFormat(f"{subject}: it is encrypted", hint="decrypt the file first")
    return infos


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, origin: str) -> _Member:
    with _damage_named(origin, info.filename.removesuffix(_END)), archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in _READERS:
            raise ValueError(f"expected .npy version 1.0, 2.0 or 3.0, received {version}")
        header = _header(file, 2 if version == (1, 0) else 4)
        try:
            shape, fortran, dtype = _READERS[version](header)
        except MemoryError:  # so Python says that brackets stand too deep in each other
            raise ValueError("its header is too deep") from None
        member = _Member(info, shape, fortran, dtype, file.tell())
    _refuse_other(member, origin)
    return member


def _header(file: Any, width: int) -> io.BytesIO:
    """The text that describes an array, behind its length in so many bytes; NumPy would read any length first."""
    length = file.read(width)
    if (received := int.from_bytes(length, "little")) > _HEADER_LIMIT:
        raise ValueError(f"expected an .npy header of at most {_HEADER_LIMIT} bytes, received one of {received}")
    return io.BytesIO(length + file.read(received))


def _no_numbers(dtype: np.dtype[Any]) -> str | None:
    """What an array is that holds no numbers, in words."""
    if dtype.hasobject:
        return "pickled objects, which polyak never unpickles"
    if dtype.names:
        return "an array of records"
    return f"an array of {dtype}" if dtype.kind in _TEXT_KINDS else None


def _refuse_other(m: _Member, origin: str) -> None:
    """An array of numbers as large as its header says, else nothing is allocated for it; or of what is not read."""
    subject = f"{origin}: weight {m.info.filename.removesuffix(_END)!r}"
    if _no_numbers(m.dtype) is not None:
        return
    if m.dtype.kind not in _PLAIN_KINDS:
        raise UnknownFormat(
            f"{subject}: expected an array of numbers, received dtype {m.dtype}",
            hint="NumPy stores bfloat16 and float8 without their names: write them with polyak, or as float32",
        )
    if len(m.shape) > MOST_AXES or any(n < 0 for n in m.shape) or math.prod(n or 1 for n in m.shape) >= 2**59:
        raise DamagedFile(f"{subject}: expected a shape that NumPy can hold, received {m.shape}")
    expected = m.start + math.prod(m.shape) * m.dtype.itemsize
    if m.info.file_size != expected:
        raise DamagedFile(
            f"{subject} at byte {m.info.header_offset}: expected {expected:,} bytes for {m.dtype} of shape {m.shape}, "
            f"received {m.info.file_size:,}",
            hint="the file is truncated or damaged; restore it from a copy",
        )


def _tensor(source: _Source, name: str, m: _Member, dtype: str) -> Tensor:
    return Tensor(m.shape, dtype, _reader(source, name, m, dtype), _measure(source, name, m))


def _reader(source: _Source, name: str, m: _Member, dtype: str) -> Callable[[], Array]:
    def read_array() -> Array:
        with _damage_named(source.origin, name):
            buffer = _stored(source, m) if _is_stored(m) else _unpacked(source.archive, m)
        array = np.frombuffer(buffer, m.dtype).reshape(m.shape, order="F" if m.fortran else "C")
        return np.asarray(array, m.dtype.newbyteorder("=")).view(numpy_dtype(dtype))

    return read_array


def _measure(source: _Source, name: str, m: _Member) -> Callable[[], str] | None:
    """The digest without the array, of one whose bytes lie in the file as they will in memory."""

    def measured() -> str:
        with _damage_named(source.origin, name):
            return source.data.digest([(_begin(source.data, m) + m.start, m.info.file_size - m.start)])

    return measured if _is_stored(m) and m.dtype.isnative and not m.fortran else None


def _is_stored(m: _Member) -> bool:
    return m.info.compress_type == zipfile.ZIP_STORED


def _stored(source: _Source, m: _Member) -> Array:
    """The bytes of a member that is not compressed, straight from the file: zipfile would copy them twice."""
    begin = _begin(source.data, m)
    body = source.data.array(begin + m.start, (m.info.file_size - m.start,), "uint8")
    if source.marked:
        return body
    header = source.data.array(begin, (m.start,), "uint8")
    if crc32(flat_bytes(body).data, crc32(flat_bytes(header).data)) != m.info.CRC:
        raise zipfile.BadZipFile(f"Bad CRC-32 of the bytes from {begin} on")
    return body


def _begin(data: PositionedFile, m: _Member) -> int:
    """Where the content of a member that is not compressed begins."""
    head = data.array(m.info.header_offset, (zips.LOCAL.size,), "uint8").tobytes()
    begin: int = m.info.header_offset + zips.head_size(head)
    if begin + m.info.file_size > data.size:
        raise EOFError(f"expected {m.info.file_size:,} bytes at byte {begin}, received {data.size - begin:,}")
    return begin


def _unpacked(archive: zipfile.ZipFile, m: _Member) -> bytearray:
    buffer = bytearray(m.info.file_size - m.start)
    with archive.open(m.info) as file:
        file.read(m.start)
        _fill(file, buffer)
    return buffer


def _fill(file: Any, buffer: bytearray) -> None:
    """Read all, and one byte more: the zip compares the checksum only at the end."""
    view, done = memoryview(buffer), 0
    while done < len(view) and (got := file.readinto(view[done : done + (1 << 20)])):
        done += got
    if done < len(view) or file.read(1):
        raise EOFError(f"expected {len(view):,} bytes, received {'more' if done == len(view) else f'{done:,}'}")


def _manifest(source: _Source, info: zipfile.ZipInfo | None, count: int) -> Manifest | None:
    if info is None:
        return None
    origin = source.origin
    member = _member(source.archive, info, origin)
    if (
        member.dtype != np.uint8
        or len(member.shape) != 1
        or member.info.file_size > longest_manifest(count) + _HEADER_LIMIT
    ):
        received = f"{member.info.file_size:,} bytes of {member.dtype}"
        raise DamagedFile(f"{origin}: the manifest is not readable: expected a short text, received {received}")
    return Manifest.from_json(_reader(source, _KEY, member, "uint8")().tobytes(), origin, count)


def _described(manifest: Manifest | None, found: dict[str, _Member], origin: str) -> dict[str, str]:
    """The dtype of each array by the manifest, which must describe just these arrays."""
    if manifest is None:
        return {}
    described = {s.name: (s.weight.shape, _known(s.weight.dtype)) for s in manifest.weights}
    stored = {name: (m.shape, m.dtype.newbyteorder("=")) for name, m in found.items()}
    for name in sorted({*described, *stored}):
        expected, received = described.get(name), stored.get(name)
        if expected is None or received is None or not _fits(expected, received):
            raise DamagedFile(
                f"{origin}: weight {name!r}: expected {_shown(expected)} by the manifest, received {_shown(received)}",
                hint="restore the file from a copy",
            )
    return {s.name: s.weight.dtype for s in manifest.weights}


_Described = tuple[tuple[int, ...], np.dtype[Any] | None]


def _fits(expected: _Described, received: _Described) -> bool:
    return expected[0] == received[0] and expected[1] is not None and carrier(expected[1]) == received[1]


def _shown(described: _Described | None) -> str:
    return "nothing" if described is None else f"{described[0]} {described[1] or 'of an unknown dtype'}"


def _known(name: str) -> np.dtype[Any] | None:
    try:
        return numpy_dtype(name)
    except TypeError:
        return None


def carrier(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that .npy stores a dtype as: itself, or an unsigned integer of its size.

    Example:
        >>> carrier(numpy_dtype("bfloat16")).name, carrier(numpy_dtype("float16")).name
        ('uint16', 'float16')
    """
    try:
        named = np.dtype(dtype.str) == dtype
    except TypeError:  # '<f1' of a float8
        named = False
    return dtype if named else np.dtype(f"u{dtype.itemsize}")


def _refuse_names(known: Manifest) -> None:
    for stored in known.weights:
        _refuse_name(stored.name)


def _refuse_name(name: str) -> None:
    if name == _KEY:
        raise UnexpectedWeight(f"weight {name!r}: polyak keeps this name for itself", hint="rename it")
    if "\0" in name or not name.isprintable() or len(name.encode(errors="replace")) > 60_000:
        raise UnexpectedWeight(f"weight {name!r:.80}: expected a name that a zip can hold", hint="rename it")


def _append(members: Members, array: Array, stored: Stored) -> Stored:
    found = (array.shape, array.dtype.name)
    if found != (stored.weight.shape, stored.weight.dtype):
        raise UnexpectedWeight(
            f"weight {stored.name!r}: expected {stored.weight.shape} {stored.weight.dtype}, received {found}",
            hint="it changed while it was written",
        )
    array = np.ascontiguousarray(array)
    held = array.view(carrier(array.dtype)).reshape(stored.weight.shape)
    return msgspec.structs.replace(stored, digest=_append_array(members, stored.name, held))


def _append_array(members: Members, name: str, array: Array) -> str:
    """One member with a fixed time, so that equal weights make equal files."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return members.append(zipfile.ZipInfo(name + _END, _EPOCH), header.getvalue(), array, zip64=True)
