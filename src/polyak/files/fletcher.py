"""The Fletcher-32 that HDF5 keeps of a chunk, from sums of rows and columns.

HDF5 adds one 16-bit word to the next: the first sum is of all words, the second of what the first was on the way, so
that word i of n is in it n - i times, both modulo 65535. That is a long chain of steps which wait for each other. Here
whole rows and columns are added at once, and their places weigh them afterwards.

Source: J. G. Fletcher, "An Arithmetic Checksum for Serial Transmissions", IEEE Transactions on Communications, 1982,
and the format's filter 3, which takes the high byte of a word first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_SIDE = 128  # rows, and numbers of 64 bits in a row, each of four words
ROW = 8 * _SIDE  # bytes
MOST = ROW * _SIDE  # bytes: sums of more might not fit into 32 bits
BYTES = 4  # of a checksum
_WORD, _HALF = np.uint64(16), np.uint64(32)  # bits
_EVEN, _LOWER = np.uint64(0x0000_FFFF_0000_FFFF), np.uint64(0xFFFF_FFFF)
_PLACES = (np.array([[4 * _SIDE], [4]], np.uint64) * np.arange(_SIDE, dtype=np.uint64)).ravel()  # of rows, of columns

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Fletcher32:
    """Appends it to chunks of one size, one at a time, in memory that it uses again.

    Args:
        size: bytes of a chunk, ``MOST`` at most.

    Example:
        >>> Fletcher32(4).sealed(np.frombuffer(b"abc", np.uint8)).tobytes()
        b'abc\\x00b\\xc4\\xc5%'
    """

    def __init__(self, size: int) -> None:
        rows = -(-size // ROW)
        self._size = size
        self._room = np.zeros(rows * ROW + BYTES, np.uint8)
        self._numbers = self._room[:-BYTES].view("<u8").reshape(rows, _SIDE)
        self._pairs, self._odd = (np.empty((rows, _SIDE), np.uint64) for _ in range(2))
        self._sums = np.zeros((2, _SIDE), np.uint64)

    def sealed(self, data: Bytes) -> Bytes:
        """These bytes, zeros up to the chunk's size, and their checksum; valid until the next call."""
        self._room[: len(data)] = data
        self._room[len(data) :] = 0
        whole = self._room[: self._size + BYTES]
        whole[self._size :] = np.frombuffer(self._checksum().to_bytes(BYTES, "little"), np.uint8)
        return whole

    def _checksum(self) -> int:
        pairs, odd, sums = self._pairs, self._odd, self._sums
        np.bitwise_and(np.right_shift(self._numbers, _WORD, out=odd), _EVEN, out=odd)
        np.add(np.bitwise_and(self._numbers, _EVEN, out=pairs), odd, out=pairs)  # words 0 + 1, above them 2 + 3
        np.add.reduce(pairs, axis=1, out=sums[0, : len(pairs)])
        np.add.reduce(pairs, axis=0, out=sums[1])
        both = (sums & _LOWER) + (sums >> _HALF)
        total, upper = int(np.add.reduce(both[0])), int(np.add.reduce(sums[0])) >> 32
        ones = int(np.add.reduce(odd, axis=None))
        # A word's place: that of its row and its column, one more if it is odd, two if it is of an upper pair.
        places = int(both.ravel() @ _PLACES) + (ones & 0xFFFF_FFFF) + (ones >> 32) + 2 * upper
        return _folded(total) | _folded((self._size + 1) // 2 * total - places) << 16


def _folded(total: int) -> int:
    """Modulo 65535, of words with their bytes exchanged, which is a turn by eight bits; only nothing adds up to 0."""
    return (total * 256 - 1) % 65535 + 1 if total else 0
