"""Files that are read at given places, straight into the arrays that are asked for.

A memory map would do the same with less code, but its pages count as the process's memory for as long as it lives, and
the system ends the process when somebody makes the file shorter meanwhile. Here that is an error like any other, and so
is a file that somebody writes again: what its head said would be read into other bytes.
"""

from __future__ import annotations

import copy
import io
import math
import os
import sys
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from polyak.errors import DamagedFile
from polyak.files.failures import failures_named
from polyak.files.stamp import stamp
from polyak.forks import new_lock
from polyak.snapshot import Array
from polyak.weights import numpy_dtype

Runs = Sequence[tuple[int, int]]  # of bytes: where each begins, how long it is
_MOST = 1 << 30  # bytes of one call: some systems refuse two gibibytes
_PIECE = 1 << 19  # bytes: it stays in the processor's cache
_GAP = 1 << 10  # bytes between two runs that cost less to read than another call


class PositionedFile:
    """A file open for reading at any place, from any thread; it is closed when nothing refers to it any more.

    Args:
        path: the file.
        file: the path, opened already, by somebody who keeps it open.

    Attributes:
        size: bytes in the file when it was opened.

    Raises:
        FileError: the file cannot be read.

    Example:
        >>> PositionedFile(Path(__file__)).array(3, (5,), "uint8").tobytes()
        b'Files'
    """

    def __init__(self, path: Path, file: BinaryIO | None = None) -> None:
        self._path = path
        with failures_named(path, "read"):
            self._file = file or path.open("rb", buffering=0)
            if file is None:
                weakref.finalize(self, self._file.close)
            status = os.fstat(self._file.fileno())
        self._opened, self.size, self._first = stamp(status), status.st_size, 0
        self._turn = new_lock()
        self._whole: PositionedFile | None = None

    def array(self, start: int, shape: tuple[int, ...], dtype: str) -> Array:
        """A new array of the bytes from ``start`` on; the caller has compared its size with the file's.

        Raises:
            DamagedFile: the file has become shorter, or was written again.
            FileError: it cannot be read.
        """
        return self.gathered([(start, math.prod(shape) * numpy_dtype(dtype).itemsize)], shape, dtype)

    def gathered(self, runs: Runs, shape: tuple[int, ...], dtype: str) -> Array:
        """A new array whose bytes are those of the runs, one after the other. Raises as ``array``."""
        made = np.empty(shape, numpy_dtype(dtype))
        view, done = flat_bytes(made).data, 0
        if len(runs) == 1:
            self.fill(view, runs[0][0])
            return made
        for part in self._parts(runs):
            view[done : done + len(part)] = part
            done += len(part)
        return made

    def digest(self, runs: Runs) -> str:
        """What ``manifest.digest`` says of an array with the bytes of the runs; only a piece of them is held at a time.

        Raises:
            DamagedFile, FileError: as ``array``.

        Example:
            >>> PositionedFile(Path(__file__)).digest([(3, 2), (5, 3)]) == xxhash.xxh3_128_hexdigest(b"Files")
            True
        """
        mark = xxhash.xxh3_128()
        for part in self._parts(runs):
            mark.update(part)
        return mark.hexdigest()

    def _parts(self, runs: Runs) -> Iterator[memoryview]:
        """The bytes of the runs, each part for as long as the next is not asked for."""
        room = memoryview(bytearray(min(_PIECE, sum(count + _GAP for _, count in runs))))
        for near in _together(runs):
            first, (last, count) = near[0][0], near[-1]
            self.fill(room[: last + count - first], first)
            yield from (room[start - first :][:length] for start, length in near)

    def piece(self, start: int, end: int) -> bytes:
        """The bytes from ``start`` to ``end``, or to the end of the file. Raises as ``array``."""
        made = bytearray(max(min(end, self.size) - start, 0))
        self.fill(memoryview(made), start)
        return bytes(made)

    def part(self, start: int, size: int) -> PositionedFile:
        """So many bytes of the file as one of their own."""
        made = copy.copy(self)
        made._whole = self  # which closes the file when nothing refers to it any more
        made._first, made.size = self._first + start, size
        return made

    def stream(self, end: int | None = None) -> io.BufferedReader:
        """The file, or its first bytes, for who reads one piece after the other."""
        return _Buffered(_Stream(self, self.size if end is None else min(end, self.size)))

    def fill(self, view: memoryview, start: int) -> None:
        """Read as many bytes as a memory has room for. Raises as ``array``."""
        done, start = 0, self._first + start
        with failures_named(self._path, "read"):
            while done < len(view):
                got = self._read_into(view[done : done + _MOST], start + done)
                if got == 0:
                    raise DamagedFile(
                        f"file {str(self._path)!r}: expected {len(view)} bytes at byte {start}, received {done}: "
                        "it became shorter after it was opened",
                        hint="whoever writes it should write another file and rename that",
                    )
                done += got
            if stamp(os.fstat(self._file.fileno())) != self._opened:
                raise DamagedFile(
                    f"file {str(self._path)!r}: it was written again after it was opened",
                    hint="open it once more; whoever writes it should write another file and rename that",
                )

    def _read_into(self, view: memoryview, start: int) -> int:
        if sys.platform == "win32":  # pragma: no cover - Windows has no preadv
            with self._turn:
                self._file.seek(start)
                return int(self._file.readinto(view) or 0)
        return os.preadv(self._file.fileno(), [view], start)


def _together(runs: Runs) -> Iterator[list[tuple[int, int]]]:
    """The runs in groups that one call can read: of a piece at most, with little between them."""
    near: list[tuple[int, int]] = []
    for start, count in _cut(runs):
        end = sum(near[-1]) if near else start
        if near and not (end <= start <= end + _GAP and start + count <= near[0][0] + _PIECE):
            yield near
            near = []
        near.append((start, count))
    if near:
        yield near


def _cut(runs: Runs) -> Iterator[tuple[int, int]]:
    for start, count in runs:
        yield from ((start + at, min(_PIECE, count - at)) for at in range(0, count, _PIECE))


class _Buffered(io.BufferedReader):
    """Python's takes memory for all that is asked for, before it sees how little there is."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and 0 <= size <= _PIECE:  # what parsers ask for, a million times
            return super().read(size)
        left = max(self.raw.end - self.tell(), 0)  # type: ignore[attr-defined]
        return super().read(left if size is None or size < 0 else min(size, left))


class _Stream(io.RawIOBase):
    """A place in a file that nobody else moves, as a process would that has the same file open by a fork."""

    def __init__(self, data: PositionedFile, end: int) -> None:
        self._data, self._at, self.end = data, 0, end

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, view: Any) -> int:
        count = min(len(view), max(self.end - self._at, 0))
        self._data.fill(memoryview(view)[:count], self._at)
        self._at += count
        return count

    def tell(self) -> int:
        return self._at

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        self._at = place + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.end}[whence]
        return self._at


def flat_bytes(array: Array) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The bytes of a contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8)
