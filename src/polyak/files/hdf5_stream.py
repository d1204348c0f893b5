"""The bytes of an HDF5 file on their way to HDF5, which goes round for ever in a damaged heap of texts.

HDF5 keeps texts of no fixed length in global heaps: collections of objects, each with its size. It walks them without
looking whether a step is forward, holding Python's lock, so that a page of zeros hangs the process. Here every heap is
walked before HDF5 sees it.

Source: HDF5 File Format Specification, III.E.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from polyak.errors import DamagedFile

_HEAP = b"GCOL\x01"
_OBJECT = 16  # bytes before an object's own: index, references, padding, size
_LARGEST = 1 << 24
_PIECE = 1 << 30  # bytes to ask for at once: Linux gives less than two gibibytes, macOS gives nothing for more


def _number(file: BinaryIO) -> int | None:
    try:
        return file.fileno()
    except OSError:  # held in memory, which a fork copies
        return None


class _OfAThread(threading.local):
    """What each thread is about to read: HDF5 asks for bytes in the thread that asked HDF5."""

    values = False


class Watched(io.RawIOBase):
    """A file open for reading, as h5py wants it, whose heaps of texts are looked through.

    Except ``values()``, those of arrays: they may hold any bytes, and no heap.
    """

    def __init__(self, file: BinaryIO, origin: str) -> None:
        super().__init__()
        self._file = file
        self._origin = origin
        self._known: set[int] = set()
        self._longest, self._most = 0, _LARGEST
        self._at = 0  # of its own: after a fork several processes share the file's
        self._number = _number(file)
        self.size = file.seek(0, os.SEEK_END)
        self._of_a_thread = _OfAThread()

    @property
    def watching(self) -> bool:
        return not self._of_a_thread.values

    @contextmanager
    def values(self) -> Iterator[None]:
        """A context in which this thread reads values of arrays."""
        self._of_a_thread.values = True
        try:
            yield
        finally:
            self._of_a_thread.values = False

    def refuse_longer(self, most: int) -> None:
        """From now on raise DamagedFile for heaps with an object of more bytes; also if one was read already."""
        self._most = most
        if self._longest > most:
            raise self._too_long(self._longest)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = place + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        start = self._at
        got = self._read_at(start, buffer)
        self._at += got
        if self.watching:
            self._look(start, bytes(buffer[:got]))
        return got

    def _look(self, start: int, raw: bytes) -> None:
        """Every heap that begins in what was read, or whose mark ends in it."""
        if raw[:1] and raw[:1] in _HEAP[1:]:
            before = min(start, len(_HEAP) - 1)
            start, raw = start - before, self._bytes(start - before, before) + raw
        at = raw.find(_HEAP)
        while at >= 0:
            self._walk(start + at)
            at = raw.find(_HEAP, at + 1)

    def _walk(self, place: int) -> None:
        if place in self._known:
            return
        size = int.from_bytes(self._bytes(place + 8, 8), "little")
        if size > min(_LARGEST, self.size - place):
            raise self._damaged(place)
        heap, at = self._bytes(place, size), _OBJECT
        while len(heap) - at >= _OBJECT:
            index = int.from_bytes(heap[at : at + 2], "little")
            length = int.from_bytes(heap[at + 8 : at + 16], "little")
            step = _OBJECT + length + -length % 8 if index else length  # that of free room counts its own head
            if not 0 < step <= len(heap) - at:
                raise self._damaged(place)
            self._longest = max(self._longest, length if index else 0)
            at += step
        if self._longest > self._most:
            raise self._too_long(self._longest)
        self._known.add(place)

    def _bytes(self, start: int, count: int) -> bytes:
        made = bytearray(max(min(count, self.size - start), 0))
        return bytes(made[: self._read_at(start, memoryview(made))])

    def _read_at(self, start: int, buffer: memoryview) -> int:
        """Read all that is there: HDF5 does not look at the count, and takes what it did not get for numbers."""
        if self._number is None or sys.platform == "win32":  # where there is no preadv, nor a fork
            self._file.seek(start)
            return int(self._file.readinto(buffer) or 0)  # type: ignore[attr-defined]
        view, done = memoryview(buffer), 0
        while done < len(view):
            got = os.preadv(self._number, [view[done : done + _PIECE]], start + done)
            if not got:
                break
            done += got
        return done

    def _too_long(self, length: int) -> DamagedFile:
        return DamagedFile(
            f"{self._origin}: expected a list of names, received texts of up to {length:,} bytes in a list of many",
            hint="Keras writes short names: the file is damaged or hostile",
        )

    def _damaged(self, place: int) -> DamagedFile:
        return DamagedFile(
            f"{self._origin}: the heap of texts at byte {place} is not readable",
            hint="it is truncated or damaged; restore it from a copy",
        )
