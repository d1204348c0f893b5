"""Sorted tables as LevelDB lays them out: the ``.index`` file of a TensorFlow checkpoint.

Blocks of key-value pairs, then a metaindex block, an index block with one entry per data block, and a footer of 48
bytes: the positions of the last two blocks, padding and a magic number. Behind each block stand its compression type
(one byte) and a masked CRC32C. Within a block a key stores only what differs from the key before it.
Sources: LevelDB's table_format.md and the Snappy format description.

Memory stays within a small multiple of the file's size whatever the file claims: blocks may not overlap, a Snappy block
cannot expand beyond what the format can express, and keys beyond what their block can reasonably share are refused.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np

from polyak.errors import DamagedFile, FileError, UnknownFormat
from polyak.files.protobuf import Bytes, WireError, take, varint

FOOTER = 48
MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
_TRAILER = 5
_MASK_DELTA = 0xA282EAD8
# Three bytes of Snappy copy at most 64.
_SNAPPY_EXPANSION = 22
# A block repeats its key in full every 16 entries, so shared prefixes multiply its size by less than that.
_KEY_EXPANSION = 64


def read_table(path: Path) -> dict[bytes, bytes]:
    """All pairs of a table file in key order, every block's checksum verified.

    Raises:
        FileError: there is no such file, or it cannot be read.
        UnknownFormat: the file is no table.
        DamagedFile: the table is truncated or contradicts itself.
    """
    try:
        with map_file(path) as data:
            _check_magic(data, path)
            return _pairs(data)
    except WireError as error:
        raise DamagedFile(f"file {str(path)!r}: {error}", hint="copy or download the checkpoint again") from None


def first_block(data: bytes) -> tuple[int, int]:
    """Where the first block of a table lies: its first byte and its length. Raises WireError."""
    footer = data[-FOOTER:]
    _, at = _handle(footer, 0)
    (offset, size), _ = _handle(footer, at)
    return _handle(next(_entries(data[offset : offset + size]))[1], 0)[0]


def has_magic(path: Path) -> bool:
    """Whether a file ends as a table does."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(MAGIC)))
        return file.read() == MAGIC


def map_file(path: Path) -> mmap.mmap:
    """A file that is not empty, mapped read-only; a ``FileError`` if that cannot be done."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise DamagedFile(f"file {str(path)!r}: expected data, received an empty file") from None
    except OSError as error:
        raise FileError(f"file {str(path)!r}: cannot be read: {error.strerror}") from error


def masked_crc32c(data: bytes | np.ndarray) -> int:
    """The CRC32C of bytes or of a C-contiguous array, masked as LevelDB and TensorFlow store it.

    The mask keeps a checksum of data that itself holds checksums from degenerating.

    Example:
        >>> hex(masked_crc32c(b"123456789"))
        '0xc78ab0e5'
    """
    return mask_crc32c(int(google_crc32c.value(data)))


def mask_crc32c(crc: int) -> int:
    """A plain CRC32C rotated right by 15 bits plus a constant, modulo 2**32."""
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def _check_magic(data: mmap.mmap, path: Path) -> None:
    if len(data) >= FOOTER and data[-len(MAGIC) :] == MAGIC:
        return
    message = f"file {str(path)!r}: expected the table magic {MAGIC.hex()} at its end, received {data[-8:].hex()}"
    # The first key of a checkpoint is empty: nothing shared, nothing added.
    if b"\0\0".startswith(data[:2]):
        raise DamagedFile(f"{message}; the file is truncated", hint="copy or download the checkpoint again")
    raise UnknownFormat(message, hint="name the .index file that TensorFlow wrote, or its prefix")


def _pairs(data: mmap.mmap) -> dict[bytes, bytes]:
    footer = data[-FOOTER:]
    meta, at = _handle(footer, 0)
    index, _ = _handle(footer, at)
    _block(data, *meta)
    pairs: dict[bytes, bytes] = {}
    last, end = b"", 0
    for _, value in _entries(_block(data, *index)):
        (offset, size), _ = _handle(value, 0)
        if offset < end:
            raise WireError(f"expected a block at or after byte {end}, received byte {offset}")
        end = offset + size + _TRAILER
        for key, item in _entries(_block(data, offset, size)):
            if pairs and key <= last:
                raise WireError(f"expected a key after {last!r}, received {key!r}")
            pairs[key] = item
            last = key
    return pairs


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """A block's offset and size in bytes, and the index behind them."""
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return (offset, size), at


def _block(data: mmap.mmap, offset: int, size: int) -> memoryview:
    room = len(data) - FOOTER - _TRAILER
    if offset + size > room:
        raise WireError(f"block at byte {offset}: expected an end at or before byte {room}, received {offset + size}")
    content = data[offset : offset + size + 1]
    stored = int.from_bytes(data[offset + size + 1 : offset + size + _TRAILER], "little")
    received = masked_crc32c(content)
    if received != stored:
        raise WireError(f"block at byte {offset}: expected CRC32C {stored:#010x}, received {received:#010x}")
    if content[-1] == 0:
        return memoryview(content)[:-1]
    if content[-1] == 1:
        return memoryview(snappy_decompress(memoryview(content)[:-1]))
    raise WireError(f"block at byte {offset}: expected compression 0 (none) or 1 (snappy), received {content[-1]}")


def _entries(block: Bytes) -> Iterator[tuple[bytes, bytes]]:
    """The pairs of a block. Its tail, the restart points, serves only binary search."""
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (restarts + 1)
    if end < 0:
        raise WireError(f"expected room for {restarts} restart points, received a block of {len(block)} bytes")
    body, key, at, budget = block[:end], b"", 0, _KEY_EXPANSION * len(block)
    while at < end:
        shared, at = varint(body, at)
        added, at = varint(body, at)
        size, at = varint(body, at)
        suffix, at = take(body, at, added)
        value, at = take(body, at, size)
        budget -= shared + added
        if shared > len(key) or budget < 0:
            raise WireError(f"expected a key that shares at most {len(key)} bytes, received {shared}")
        key = key[:shared] + bytes(suffix)
        yield key, bytes(value)


def snappy_decompress(data: Bytes) -> bytes:
    """The content of a raw Snappy block; ``WireError`` if it is not exactly as long as it declares.

    Example:
        >>> snappy_decompress(bytes([6, 4, 97, 98, 0b01, 2]))
        b'ababab'
    """
    length, at = varint(data, 0)
    if length > _SNAPPY_EXPANSION * len(data):
        raise WireError(f"expected at most {_SNAPPY_EXPANSION * len(data)} bytes of Snappy data, received {length}")
    out = bytearray()
    while at < len(data) and len(out) <= length:
        tag, at = data[at], at + 1
        if tag & 3 == 0:
            at = _literal(data, at, tag >> 2, out)
        else:
            at = _copy(data, at, tag, out)
    if len(out) != length:
        raise WireError(f"expected {length} bytes of Snappy data, received {len(out)}")
    return bytes(out)


def _literal(data: Bytes, at: int, size: int, out: bytearray) -> int:
    if size >= 60:
        raw, at = take(data, at, size - 59)
        size = int.from_bytes(raw, "little")
    content, at = take(data, at, size + 1)
    out += content
    return at


def _copy(data: Bytes, at: int, tag: int, out: bytearray) -> int:
    raw, at = take(data, at, (0, 1, 2, 4)[tag & 3])
    offset, size = int.from_bytes(raw, "little"), 1 + (tag >> 2)
    if tag & 3 == 1:
        offset, size = offset | tag >> 5 << 8, 4 + (tag >> 2 & 7)
    if not 0 < offset <= len(out):
        raise WireError(f"expected a Snappy copy from at most {len(out)} bytes back, received {offset}")
    start = len(out) - offset
    # A copy may reach into its own output: the bytes between repeat.
    out += (out[start : start + size] * (size // offset + 1))[:size]
    return at
