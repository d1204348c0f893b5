"""Keras 3 ``.keras`` archives: a zip of config.json, metadata.json and model.weights.h5.

Keras does not pack the weights: they are read where they lie, once their checksum is verified. Packed ones are copied
out: HDF5 seeks backwards, and each such step would unpack the member from its start again.
"""

from __future__ import annotations

import errno
import io
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from isal.isal_zlib import crc32

from polyak.contents import Contents
from polyak.errors import DamagedFile, FileError, UnknownFormat
from polyak.files import zips
from polyak.files.failures import NO_ROOM, failures_named
from polyak.files.keras_h5 import contents, first_bytes
from polyak.files.keras_hdf5 import Hdf5
from polyak.files.positioned import PositionedFile

CONFIG = "config.json"
WEIGHTS = "model.weights.h5"
_TEXTS = (CONFIG, "metadata.json")
_IN_MEMORY = 1 << 23
_LARGEST_TEXT = 1 << 24
_PIECE = 1 << 19  # bytes: it stays in the processor's cache
_ENCRYPTED = 1


def recognises(path: Path) -> bool:
    """Whether this is a zip that lists a Keras model. Raises FileError: the file cannot be read."""
    if not path.is_file() or first_bytes(path, 4) != b"PK\x03\x04":
        return False
    return b"config.json" in first_bytes(path, 4096) or path.suffix == ".keras" or CONFIG in _names(path)


def read(path: Path) -> Contents:
    """Open an archive; all checksums are verified. Raises DamagedFile, UnknownFormat, FileError."""
    origin = f"file {str(path)!r}"
    data = PositionedFile(path)
    with failures_named(path, "read"), _damage(origin), zips.opened(data.stream(), origin) as archive:
        if WEIGHTS not in archive.namelist():
            raise UnknownFormat(f"{origin}: expected {WEIGHTS} in the archive, received {archive.namelist()!s:.200}")
        texts = {name: _text(archive, name, origin) for name in _TEXTS if name in archive.namelist()}
        spare = [n for n in archive.namelist() if n not in (*_TEXTS, WEIGHTS) and not n.endswith("/")]
        weights = _in_place(archive, data) or _copied(archive, origin)
    held = contents(Hdf5(weights, origin), "keras")
    beside = {**held.beside, **dict.fromkeys(spare, "a member of the archive")}
    return replace(held, integrity="crc32", texts={n: partial(_same, t) for n, t in texts.items()}, beside=beside)


def _names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except zips.FAILURES:
        return []


def _same(text: bytes) -> bytes:
    return text


def _text(archive: zipfile.ZipFile, name: str, origin: str) -> bytes:
    if archive.getinfo(name).file_size > _LARGEST_TEXT:
        raise DamagedFile(f"{origin}: {name}: expected a text, received one of more than {_LARGEST_TEXT:,} bytes")
    return archive.read(name)


def _in_place(archive: zipfile.ZipFile, data: PositionedFile) -> BinaryIO | None:
    """The weights as a file of their own, if they are neither packed nor encrypted. Their checksum is verified."""
    member = archive.getinfo(WEIGHTS)
    is_packed = member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size
    if is_packed or member.flag_bits & _ENCRYPTED:
        return None
    part = data.part(zips.begins(archive, member), member.file_size)
    found = 0
    with part.stream() as stream:
        while piece := stream.read(_PIECE):
            found = crc32(piece, found)
    if found != member.CRC:
        raise zipfile.BadZipFile(f"Bad CRC-32 of {WEIGHTS}: expected {member.CRC:#010x}, received {found:#010x}")
    return part.stream()


def _copied(archive: zipfile.ZipFile, origin: str) -> BinaryIO:
    """The weights in memory, or in a file without a name where they are large."""
    size = archive.getinfo(WEIGHTS).file_size
    with _room(size, origin):
        return _unpacked(archive, size > _IN_MEMORY)


def _unpacked(archive: zipfile.ZipFile, large: bool) -> BinaryIO:
    copy: BinaryIO = tempfile.TemporaryFile() if large else io.BytesIO()  # noqa: SIM115 - it lives with the snapshot
    try:
        with archive.open(WEIGHTS) as packed:
            shutil.copyfileobj(packed, copy, 1 << 20)
        copy.seek(0)
    except BaseException:
        with suppress(OSError):  # what could not be written cannot be written now
            copy.close()
        raise
    return copy


@contextmanager
def _room(needed: int, origin: str) -> Iterator[None]:
    """Say of a copy for which there is no room that it is the copy, and not the file itself."""
    try:
        yield
    except OSError as error:
        if error.errno not in (*NO_ROOM, errno.ENOENT):
            raise
        raise FileError(
            f"{origin}: its weights cannot be unpacked into a temporary file: {error.strerror or error}; it needs "
            f"{needed:,} bytes",
            hint="name a directory with room in TMPDIR, or write the model without packing it: save_weights",
        ) from error


@contextmanager
def _damage(origin: str) -> Iterator[None]:
    try:
        yield
    except FileError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
        raise DamagedFile(
            f"{origin}: expected a zip archive, received one that cannot be unpacked: {error!s:.200}",
            hint="it is truncated or damaged; restore it from a copy",
        ) from error
