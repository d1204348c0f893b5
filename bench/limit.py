"""What the machine can do: a plain loop that moves one flat array towards another, and a plain copy, on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np

# Numbers of which three blocks fit into a core's own cache.
BLOCK = 1 << 15
Flat = np.ndarray[Any, np.dtype[Any]]


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def flat_update(numbers: int) -> Callable[[], object]:
    """``a += w * (x - a)`` in place over one flat float32 array: reads 8 bytes a number and writes 4."""
    average, value = np.full(numbers, 1, np.float32), np.full(numbers, 2, np.float32)
    return partial(_on_all_cores, partial(_move, average, value), numbers)


def flat_copy(size: int) -> Callable[[], object]:
    """So many bytes from one array into another, which exists."""
    source, target = np.full(size, 1, np.uint8), np.full(size, 2, np.uint8)

    def copy(start: int, end: int) -> None:
        target[start:end] = source[start:end]

    return partial(_on_all_cores, copy, size)


def flat_copy_on_one_core(size: int) -> Callable[[], object]:
    """The same as one plain copy, as a program does it that does not think of cores."""
    source, target = np.full(size, 1, np.uint8), np.full(size, 2, np.uint8)
    return partial(np.copyto, target, source)


def update_share(averages: int, itemsize: int) -> float:
    """What an update must read and write for each weight, as a share of the 12 bytes that ``flat_update`` does.

    The weight is read once; each of its float32 averages is read and written.

    Example:
        >>> update_share(1, 4), round(update_share(3, 4), 2), round(update_share(1, 2), 2)
        (1.0, 2.33, 0.83)
    """
    return (itemsize + 8 * averages) / 12


def _move(average: Flat, value: Flat, start: int, end: int) -> None:
    distance, w = np.empty(BLOCK, np.float32), np.float32(0.001)
    for at in range(start, end, BLOCK):
        a, x = average[at : min(at + BLOCK, end)], value[at : min(at + BLOCK, end)]
        d = distance[: a.size]
        np.subtract(x, a, out=d)
        d *= w
        a += d


def _on_all_cores(job: Callable[[int, int], None], size: int) -> None:
    if size < 1 << 18:
        job(0, size)
        return
    ends = [size * i // cores() for i in range(cores() + 1)]
    list(_pool().map(job, ends[:-1], ends[1:]))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores())


def of_backend(backend: str, numbers: int) -> Callable[[], object]:
    """The limit of an update of so many float32 weights: of the CUDA device that a backend uses, or of the host."""
    if backend == "torch":
        import torch

        if torch.cuda.is_available():
            return _torch_update(torch, numbers)
    if backend == "jax":
        import jax

        if jax.default_backend() == "gpu":
            return _jax_update(jax, numbers)
    return flat_update(numbers)


def _torch_update(torch: Any, numbers: int) -> Callable[[], object]:
    """The 12 bytes a number as a copy on the device: 6 are read, 6 are written."""
    source = torch.ones(6 * numbers, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return lambda: (target.copy_(source), torch.cuda.synchronize())


def _jax_update(jax: Any, numbers: int) -> Callable[[], object]:
    source = jax.numpy.ones(6 * numbers, jax.numpy.uint8)
    copy = jax.jit(jax.numpy.copy)
    return lambda: copy(source).block_until_ready()
