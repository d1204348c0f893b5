"""Chunks of HDF5 that carry an Adler-32: packed with gzip, which every reader of HDF5 unpacks, by storing the bytes.

HDF5 compares the sum whenever a chunk is read, as it does with its own Fletcher-32. That one it computes in the thread
that writes, for longer than the writing takes; an Adler-32 is computed at the speed of memory.

Source: RFC 1950 (the frame and its sum) and RFC 1951, 3.2.4 (stored blocks).
"""

from __future__ import annotations

from collections.abc import Iterator

from isal.isal_zlib import adler32

BLOCK = 65_535  # bytes: the most that one stored block holds
_FRAME = b"\x78\x01"
_HEAD = 5  # bytes before a block's own: whether it is the last, and their count twice
_SUM = 4


def stored_size(count: int) -> int:
    """The bytes that a chunk of so many bytes takes.

    Example:
        >>> stored_size(100), stored_size(2 * BLOCK)
        (111, 131086)
    """
    return len(_FRAME) + -(-count // BLOCK) * _HEAD + count + _SUM


def spans(count: int) -> Iterator[tuple[int, int]]:
    """Where the first ``count`` bytes of a chunk lie in what is stored: the beginning and the length of each run.

    Example:
        >>> list(spans(BLOCK + 9))
        [(7, 65535), (65547, 9)]
    """
    for number, start in enumerate(range(0, count, BLOCK)):
        yield len(_FRAME) + (number + 1) * _HEAD + start, min(BLOCK, count - start)


class Packer:
    """What packs chunks of one size, each into the same memory.

    Example:
        >>> import zlib
        >>> zlib.decompress(Packer(6).packed(memoryview(b"polyak")))
        b'polyak'
    """

    def __init__(self, count: int) -> None:
        self._count, self._spans = count, list(spans(count))
        self._room = memoryview(bytearray(stored_size(count)))
        self._room[: len(_FRAME)] = _FRAME
        for at, length in self._spans:
            is_last = at + length + _SUM == len(self._room)
            self._room[at - _HEAD : at] = b"".join(
                n.to_bytes(size, "little") for n, size in ((is_last, 1), (length, 2), (length ^ 0xFFFF, 2))
            )

    def packed(self, data: memoryview) -> memoryview:
        """A chunk as it is stored, until the next one is packed. What is missing at its end is zero."""
        whole = data if len(data) == self._count else memoryview(bytes(data).ljust(self._count, b"\0"))
        done = 0
        for at, length in self._spans:
            self._room[at : at + length] = whole[done : done + length]
            done += length
        self._room[-_SUM:] = adler32(whole).to_bytes(_SUM, "big")
        return self._room
