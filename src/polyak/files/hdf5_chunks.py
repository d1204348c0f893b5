"""Where the bytes of an HDF5 array lie in the file, and how polyak divides its own arrays so that they lie well.

HDF5 stores an array with checksums in chunks. Where a chunk is a run of elements that follow each other in memory, too,
as in polyak's files, its bytes can be read past HDF5, which copies them several times.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import h5py
import numpy as np

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
    found = list(_chunks(dataset, size))
    return None if None in found else [run for run in found if run is not None]


def _are_runs(dataset: h5py.Dataset) -> bool:
    """Whether chunks are of one element along the first axes, and whole along the last."""
    chunk, shape = dataset.chunks, dataset.shape
    axis = next((i for i, n in enumerate(chunk) if n > 1), len(chunk) - 1)
    return bool(chunk[axis + 1 :] == shape[axis + 1 :])


def _chunks(dataset: h5py.Dataset, size: int) -> Iterator[tuple[int, int] | None]:
    chunk, shape, wide = dataset.chunks, dataset.shape, dataset.dtype.itemsize
    whole = math.prod(chunk) * wide
    for index in np.ndindex(*(math.ceil(n / c) for n, c in zip(shape, chunk, strict=True))):
        first = tuple(i * c for i, c in zip(index, chunk, strict=True))
        held = dataset.id.get_chunk_info_by_coord(first)
        if held.byte_offset is None or held.filter_mask or held.size != whole + _CHECKSUM:
            yield None
            return
        used = math.prod(min(c, n - at) for c, n, at in zip(chunk, shape, first, strict=True)) * wide
        yield (held.byte_offset, used) if held.byte_offset + held.size <= size else None
