"""Checksums of an array, computed in a second thread while its bytes are written; members of zips that are made so."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Callable
from typing import BinaryIO, TypeVar

from isal.isal_zlib import crc32

from polyak.files.positioned import flat_bytes
from polyak.manifest import digest
from polyak.snapshot import Array

T = TypeVar("T")
_SMALL = 1 << 20  # bytes that are dealt with sooner than a thread is started


class Members:
    """The members of a zip that is being written, of arrays that are not compressed.

    zipfile writes the same, but computes CRC-32 first and then writes. Here, too, it makes the header, which is
    written twice, and the list of members, which goes where its ``start_dir`` says.
    """

    def __init__(self, archive: zipfile.ZipFile, file: BinaryIO) -> None:
        self._archive = archive
        self._file = file

    def append(self, info: zipfile.ZipInfo, head: bytes, array: Array, zip64: bool) -> str:
        """Write some bytes and a contiguous array's as one member. Answers the array's digest."""
        archive, file = self._archive, self._file
        info.file_size = info.compress_size = len(head) + array.nbytes
        info.external_attr = 0o600 << 16  # as zipfile has it
        info.CRC = 0
        info.header_offset = file.seek(archive.start_dir)
        file.write(info.FileHeader(zip64) + head)
        info.CRC, mark = _written(file, head, array)
        archive.start_dir = file.tell()
        file.seek(info.header_offset)
        file.write(info.FileHeader(zip64))
        file.seek(archive.start_dir)
        archive.filelist.append(info)
        archive.NameToInfo[info.filename] = info
        return mark


def written(file: BinaryIO, array: Array, compute: Callable[[], T]) -> T:
    """Write a contiguous array's bytes; what ``compute`` answers, which only reads the array, is computed meanwhile."""
    body = flat_bytes(array).data if array.size else b""
    return while_written(lambda: file.write(body), array, compute)


def while_written(write: Callable[[], object], array: Array, compute: Callable[[], T]) -> T:
    """What ``compute`` answers, which only reads the array; of a large one it is computed while that is written."""
    if array.nbytes >= _SMALL:
        return meanwhile(write, compute)
    write()
    return compute()


def meanwhile(do: Callable[[], object], compute: Callable[[], T]) -> T:
    """What ``compute`` answers in a thread of its own while ``do`` runs in this one; both have ended then.

    Example:
        >>> done = []
        >>> meanwhile(lambda: done.append(1), lambda: 2), done
        (2, [1])
    """
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(compute()), name="polyak-checksum")
    try:
        thread.start()
    except RuntimeError:  # no thread can be started: the program ends
        do()
        return compute()
    try:
        do()
    finally:
        thread.join()
    return found[0] if found else compute()  # raises here what it has raised there


def _written(file: BinaryIO, head: bytes, array: Array) -> tuple[int, str]:
    body = flat_bytes(array).data if array.size else b""
    return written(file, array, lambda: (crc32(body, crc32(head)), digest(array)))
