"""Where the bytes of PyTorch's storages lie in a file, and the arrays in them, read when they are asked for."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import xxhash
from isal.isal_zlib import crc32

from polyak.errors import DamagedFile
from polyak.files.positioned import PositionedFile
from polyak.files.torch_globals import View
from polyak.manifest import Manifest
from polyak.snapshot import Array
from polyak.weights import numpy_dtype

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
_SPREAD = 2**26  # bytes by which a view may be larger than its storage: torch stores expanded tensors as views
_MOST_DEFLATED = 2**31
_PIECE = 1 << 19  # bytes: it stays in the processor's cache


@dataclass
class Block:
    """A run of bytes in a file.

    Attributes:
        place: what errors call it.
        start, stored: where it lies in the file, and how many bytes it takes there.
        size: bytes of content; it differs from ``stored`` where the block is compressed.
        crc: CRC-32 of the content, or None where the file has none.
    """

    data: PositionedFile
    place: str
    start: int
    stored: int
    size: int
    crc: int | None = None
    deflated: bool = False
    verified: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        most = min(_MOST_DEFLATED, 1040 * self.stored + 64) if self.deflated else self.stored
        if self.start + self.stored > self.data.size or not 0 <= self.size <= most:
            raise DamagedFile(
                f"{self.place} at byte {self.start}: expected {self.size} bytes in {self.stored}, "
                f"received {max(self.data.size - self.start, 0)} to the end of the file",
                hint="the file is truncated or damaged; restore it from a copy",
            )

    def read(self) -> bytes:
        """The content, verified when it is first read. Raises DamagedFile."""
        if not self.deflated:
            return self.copy(0, self.size).tobytes()
        content = self._inflated(self.data.piece(self.start, self.start + self.stored))
        self._compare(crc32(content))
        return content

    def copy(self, first: int, count: int) -> Bytes:
        """A copy of so many bytes of the content. Raises as ``read``."""
        if self.deflated:
            return np.frombuffer(self.read(), np.uint8)[first : first + count].copy()
        if count < self.size:
            self._verify()
        made, found = np.empty(count, np.uint8), 0
        for at in range(0, count, _PIECE):
            piece = made[at : at + _PIECE].data
            self.data.fill(piece, self.start + first + at)
            found = crc32(piece, found) if self._is_due else 0
        self._compare(found)
        return made

    def digest(self, first: int, count: int) -> str:
        """What ``manifest.digest`` says of so many bytes of the content; only a piece of them is held at a time."""
        if self.deflated:
            return xxhash.xxh3_128_hexdigest(self.read()[first : first + count])
        self._verify()
        return self.data.digest([(self.start + first, count)])

    @property
    def _is_due(self) -> bool:
        return self.crc is not None and not self.verified

    def _verify(self) -> None:
        """Read the whole content once, piece by piece, where it has a CRC-32."""
        if not self._is_due:
            return
        found, held = 0, memoryview(bytearray(min(_PIECE, self.size)))
        for at in range(0, self.size, _PIECE):
            piece = held[: min(_PIECE, self.size - at)]
            self.data.fill(piece, self.start + at)
            found = crc32(piece, found)
        self._compare(found)

    def _compare(self, found: int) -> None:
        if self._is_due and found != self.crc:
            raise DamagedFile(
                f"{self.place} at byte {self.start}: expected bytes with CRC-32 {self.crc:08x}, received {found:08x}",
                hint="the file is damaged; restore it from a copy",
            )
        self.verified = True

    def _inflated(self, data: bytes) -> bytes:
        try:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, self.size + 1)
        except zlib.error as error:
            raise DamagedFile(f"{self.place} at byte {self.start}: not readable: {error}") from error
        if len(content) != self.size:
            raise DamagedFile(f"{self.place} at byte {self.start}: expected {self.size} bytes, received another number")
        return content


@dataclass(frozen=True)
class Storages:
    """The blocks of a file by the key of their storage, and polyak's own manifest where there is one.

    ``swapped``: numbers have the other byte order.
    """

    blocks: Mapping[str, Block]
    origin: str
    swapped: bool = False
    manifest: Manifest | None = None

    def check(self, name: str, view: View) -> int:
        """The bytes that reading a view costs. Raises DamagedFile if it is not within its storage. Reads nothing."""
        block = self.blocks.get(view.storage.key)
        if block is None:
            raise DamagedFile(f"{self.origin}: weight {name!r}: no storage {view.storage.key!r:.60} in the file")
        wide = numpy_dtype(view.dtype).itemsize
        needed = _start(view) + view.reach * wide
        whole = _start(view) + view.storage.size * numpy_dtype(view.storage.dtype).itemsize
        if max(needed, whole) > block.size:
            raise DamagedFile(
                f"{self.origin}: weight {name!r}: expected a storage of {max(needed, whole)} bytes, "
                f"received {block.size}",
                hint="the file is truncated or damaged; restore it from a copy",
            )
        cost = math.prod(view.shape) * wide
        if cost > block.size + _SPREAD:
            raise DamagedFile(f"{self.origin}: weight {name!r}: {view.shape} is far more than its storage holds")
        return max(cost, block.size) if block.deflated else cost

    def unchecked(self) -> Storages:
        """The same without CRC-32, which takes much longer than the digests that its arrays are compared with."""
        return replace(self, blocks={key: replace(block, crc=None) for key, block in self.blocks.items()})

    def measure(self, view: View) -> Callable[[], str] | None:
        """How to compute the digest of the array that ``read`` gives, if its bytes lie so in the file."""
        block = self.blocks[view.storage.key]
        first, count = _place(view)
        as_read = _is_whole(view) and not (self.swapped or view.conjugate or view.negative)
        return partial(block.digest, first, count) if as_read else None

    def read(self, view: View) -> Array:
        """A copy of the view's elements, in C order and in the machine's byte order. Raises DamagedFile."""
        dtype = numpy_dtype(view.dtype)
        if 0 in view.shape:
            return np.empty(view.shape, dtype)
        block = self.blocks[view.storage.key]
        if _is_whole(view):
            array: Array = block.copy(*_place(view)).view(dtype).reshape(view.shape)
        else:
            array = _strided(block, view, dtype)
        return _signed(_swapped(array) if self.swapped else array, view)


def _is_whole(view: View) -> bool:
    """Whether the elements of a view lie one after the other."""
    steps = [math.prod(view.shape[i + 1 :]) for i in range(len(view.shape))]
    return all(n <= 1 or s == step for n, s, step in zip(view.shape, view.strides, steps, strict=True))


def _strided(block: Block, view: View, dtype: np.dtype[Any]) -> Array:
    first, end = _start(view) + view.offset * dtype.itemsize, _start(view) + view.reach * dtype.itemsize
    steps = tuple(s * dtype.itemsize if n > 1 else 0 for n, s in zip(view.shape, view.strides, strict=True))
    array: Array = np.ndarray(view.shape, dtype, block.copy(first, end - first), 0, steps).copy(order="C")
    return array


def _place(view: View) -> tuple[int, int]:
    """Where a view begins in its block, and the bytes of its elements."""
    wide = numpy_dtype(view.dtype).itemsize
    return _start(view) + view.offset * wide, math.prod(view.shape) * wide


def _start(view: View) -> int:
    return view.storage.start * numpy_dtype(view.storage.dtype).itemsize


def _swapped(array: Array) -> Array:
    """The other byte order; NumPy cannot swap the extended dtypes itself."""
    width = array.dtype.itemsize // (2 if array.dtype.kind == "c" else 1)
    flat: np.ndarray[Any, Any] = array.reshape(-1).view(f"u{width}").byteswap()
    return flat.view(array.dtype).reshape(array.shape)


def _signed(array: Array, view: View) -> Array:
    """PyTorch keeps conjugation and negation as marks, and applies them when the values are used."""
    if view.conjugate:
        np.conjugate(array, out=array)
    if view.negative:
        np.negative(array, out=array)
    return array
