"""Where the bytes of an HDF5 array lie in the file, and how polyak divides its own arrays so that they lie well.

HDF5 stores an array with checksums in chunks. Where a chunk is a run of elements that follow each other in memory, too,
as in polyak's files, its bytes can be written and read past HDF5, which copies them several times.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from operator import sub
from typing import Any

import h5py

from polyak.files.hdf5_stored import BLOCK, Packer, spans, stored_size
from polyak.files.positioned import flat_bytes
from polyak.snapshot import Array

_CHECKSUM = 4  # bytes behind a chunk with a Fletcher-32, as in older files of polyak's
_CHUNK = 9 * BLOCK  # bytes: somewhat more than 512 KiB; it stays in the cache while it is packed and written
_LEAST_USED = 64  # of so many rows that are stored, one may be filling


def chunk_of(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """The chunk for an array that has elements: a run of these, of 576 KiB at most.

    Example:
        >>> chunk_of((64, 131_072), 4), chunk_of((30, 20), 4), chunk_of((2, 1_000_000), 4)
        ((1, 131072), (30, 20), (1, 142858))
    """
    axis = next((i for i in range(len(shape) - 1) if math.prod(shape[i + 1 :]) * itemsize <= _CHUNK), len(shape) - 1)
    count, rest = shape[axis], shape[axis + 1 :]
    most = max(1, _CHUNK // (math.prod(rest) * itemsize))
    rows = (math.ceil(count / parts) for parts in range(math.ceil(count / most), count + 1))
    return (*(1,) * axis, next(n for n in rows if -count % n <= count // _LEAST_USED), *rest)


def write(dataset: h5py.Dataset, value: Array) -> None:
    """Write a contiguous array into one that was made for it, packed with gzip in chunks of ``chunk_of``."""
    chunk, wide = dataset.chunks, value.itemsize
    packer, data, done = Packer(math.prod(chunk) * wide), flat_bytes(value).data, 0
    for first in _firsts(value.shape, chunk):
        count = _used(first, chunk, value.shape) * wide
        dataset.id.write_direct_chunk(first, packer.packed(data[done : done + count]))
        done += count


def runs(dataset: h5py.Dataset, size: int) -> list[tuple[int, int]] | None:
    """Where an array's bytes begin in a file of so many bytes and how many they are, run after run in C order.

    Without checksums, which nobody compares then. None where the bytes do not lie there as they do in memory.
    """
    if not dataset.dtype.isnative or dataset.chunks is None or not _are_runs(dataset):
        return None
    chunk, shape, wide = dataset.chunks, dataset.shape, dataset.dtype.itemsize
    stored, lie = _stored(dataset, math.prod(chunk) * wide)
    held: list[Any] = []
    dataset.id.chunk_iter(held.append)
    odd = any(c.filter_mask or c.size != stored or c.byte_offset + c.size > size for c in held)
    if odd or len(held) != math.prod(math.ceil(n / c) for n, c in zip(shape, chunk, strict=True)):
        return None
    held.sort(key=lambda c: c.chunk_offset)
    used = ((c.byte_offset, _used(c.chunk_offset, chunk, shape) * wide) for c in held)
    return [(begin + at, length) for begin, count in used for at, length in lie(count)]


def _stored(dataset: h5py.Dataset, count: int) -> tuple[int, Callable[[int], Iterable[tuple[int, int]]]]:
    """The bytes that a chunk of so many takes in the file, and where its first ones lie in them; -1 for other forms."""
    plan = dataset.id.get_create_plist()
    filters = [plan.get_filter(i) for i in range(plan.get_nfilters())]
    match [(code, values) for code, _, values, _ in filters]:
        case [(h5py.h5z.FILTER_DEFLATE, (0,))]:
            return stored_size(count), spans
        case [(h5py.h5z.FILTER_FLETCHER32, _)]:
            return count + _CHECKSUM, lambda used: [(0, used)]
        case _:
            return -1, lambda _: []


def _firsts(shape: tuple[int, ...], chunk: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Where each chunk begins, in C order."""
    return itertools.product(*(range(0, n, c) for n, c in zip(shape, chunk, strict=True)))


def _used(first: tuple[int, ...], chunk: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """The elements in the chunk that begins at ``first``: the last ones are not full."""
    return math.prod(map(min, chunk, map(sub, shape, first)))


def _are_runs(dataset: h5py.Dataset) -> bool:
    """Whether chunks are of one element along the first axes, and whole along the last."""
    chunk, shape = dataset.chunks, dataset.shape
    axis = next((i for i, n in enumerate(chunk) if n > 1), len(chunk) - 1)
    return bool(chunk[axis + 1 :] == shape[axis + 1 :])
