"""Where the bytes of an HDF5 array lie in the file, and how polyak divides its own arrays so that they lie well.

HDF5 stores an array with checksums in chunks. Where a chunk is a run of elements that follow each other in memory, too,
as in polyak's files, its bytes can be read past HDF5, which copies them several times.
"""

from __future__ import annotations

import math
from typing import Any

import h5py

_CHECKSUM = 4  # bytes behind a chunk
_CHUNK = 1 << 17  # bytes: HDF5 copies it in the processor's cache, and in memory that the C library does not give back
_LEAST_USED = 64  # of so many rows that are stored, one may be filling


def chunk_of(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """The chunk for an array that has elements: a run of these, of 128 KiB at most.

    Example:
        >>> chunk_of((64, 131_072), 4), chunk_of((30, 20), 4), chunk_of((2, 1_000_000), 4)
        ((1, 32768), (30, 20), (1, 32259))
    """
    axis = next((i for i in range(len(shape) - 1) if math.prod(shape[i + 1 :]) * itemsize <= _CHUNK), len(shape) - 1)
    count, rest = shape[axis], shape[axis + 1 :]
    most = max(1, _CHUNK // (math.prod(rest) * itemsize))
    rows = (math.ceil(count / parts) for parts in range(math.ceil(count / most), count + 1))
    return (*(1,) * axis, next(n for n in rows if -count % n <= count // _LEAST_USED), *rest)


def runs(dataset: h5py.Dataset, size: int) -> list[tuple[int, int]] | None:
    """Where an array's bytes begin in a file of so many bytes and how many they are, run after run in C order.

    Without checksums, which nobody compares then. None where the bytes do not lie there as they do in memory.
    """
    plan = dataset.id.get_create_plist()
    filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
    if filters != [h5py.h5z.FILTER_FLETCHER32] or not dataset.dtype.isnative or not _are_runs(dataset):
        return None
    chunk, shape, wide = dataset.chunks, dataset.shape, dataset.dtype.itemsize
    stored = math.prod(chunk) * wide + _CHECKSUM
    held: list[Any] = []
    dataset.id.chunk_iter(held.append)
    odd = any(c.filter_mask or c.size != stored or c.byte_offset + c.size > size for c in held)
    if odd or len(held) != math.prod(math.ceil(n / c) for n, c in zip(shape, chunk, strict=True)):
        return None
    held.sort(key=lambda c: c.chunk_offset)
    return [(c.byte_offset, _used(c.chunk_offset, chunk, shape) * wide) for c in held]


def _used(first: tuple[int, ...], chunk: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """The elements in the chunk that begins at ``first``: the last ones are not full."""
    return math.prod(min(c, n - at) for at, c, n in zip(first, chunk, shape, strict=True))


def _are_runs(dataset: h5py.Dataset) -> bool:
    """Whether chunks are of one element along the first axes, and whole along the last."""
    chunk, shape = dataset.chunks, dataset.shape
    axis = next((i for i, n in enumerate(chunk) if n > 1), len(chunk) - 1)
    return bool(chunk[axis + 1 :] == shape[axis + 1 :])
