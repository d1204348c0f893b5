"""The kernel in place over arrays in host memory: block by block, on all cores, each value read once.

A block of a value, of an average and of their distance fits into a core's cache, so memory sees 12 bytes for each
float32 number of one average, and 8 for each further average of the same value.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from polyak.numbers import BLOCK, is_tame

Flat = npt.NDArray[Any]
Moves = Sequence[tuple[Flat, float]]

# Below so many numbers a second thread costs more than it saves.
_WORTH_THREADS = 1 << 18
_TASK = 1 << 18


def move_all(work: Iterable[tuple[Flat, Moves]]) -> None:
    """Move averages towards the values that they follow, with the bits of ``polyak.averaging.kernel.lerp``.

    Args:
        work: each value with the averages that follow it: (average, w), w in [0, 1]. All are flat, contiguous arrays;
            an average is written in place, in its own dtype, into which the value is cast block by block. Values are
            ``is_safe``, and so is what the averages hold.

    Example:
        >>> fast, slow = np.float32([0, 0]), np.float32([0, 0])
        >>> move_all([(np.float32([1, 2]), [(fast, 0.5), (slow, 0.25)])])
        >>> fast.tolist(), slow.tolist()
        ([0.5, 1.0], [0.25, 0.5])
    """
    _on_all_cores(_move_some, _tasks(list(work)))


def is_safe(values: Iterable[Flat]) -> bool:
    """Whether all numbers are finite and below half of their dtype's range, so that no difference of two overflows.

    Example:
        >>> is_safe([np.float32([1e30, -2.0])]), is_safe([np.float32([1.0, np.nan])]), is_safe([np.float32([3e38])])
        (True, False, False)
    """
    tasks = _tasks([(value, ()) for value in values])
    return all(_on_all_cores(_are_safe, tasks))


def _tasks(work: list[tuple[Flat, Moves]]) -> list[list[tuple[Flat, Moves]]]:
    """The work in portions of about equal size; large arrays are cut, small ones put together."""
    tasks: list[list[tuple[Flat, Moves]]] = [[]]
    size = 0
    for part in (part for value, moves in work for part in _cut(value, moves)):
        tasks[-1].append(part)
        size += part[0].size
        if size >= _TASK:
            tasks.append([])
            size = 0
    return tasks


def _cut(value: Flat, moves: Moves) -> Iterable[tuple[Flat, Moves]]:
    if value.size <= _TASK:
        return ((value, moves),)
    cuts = [slice(start, start + _TASK) for start in range(0, value.size, _TASK)]
    return ((value[cut], [(average[cut], w) for average, w in moves]) for cut in cuts)


def _on_all_cores(job: Any, tasks: list[Any]) -> Iterator[Any]:
    """The results of a job on each task. One or two small tasks are done here."""
    if sum(value.size for task in tasks for value, _ in task) < _WORTH_THREADS:
        return iter([job(task) for task in tasks])
    return iter(list(_pool().map(job, tasks)))


@cache
def _pool() -> ThreadPoolExecutor:
    """NumPy lets go of the interpreter while it computes, so threads are enough."""
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _move_some(task: list[tuple[Flat, Moves]]) -> None:
    scratch: dict[Any, Flat] = {}
    for value, moves in task:
        if value.size <= BLOCK:
            for average, w in moves:
                _move(average, value, w, scratch)
            continue
        for start in range(0, value.size, BLOCK):
            block = value[start : start + BLOCK]
            for average, w in moves:
                _move(average[start : start + BLOCK], block, w, scratch)


def _move(a: Flat, x: Flat, w: float, scratch: dict[Any, Flat]) -> None:
    if w <= 0.0:
        return
    if w >= 1.0:
        a[...] = x
        return
    step, dtype = _scratch(scratch, a), a.dtype
    if w < 0.5:
        np.subtract(a, x, step, dtype=dtype)
        np.multiply(step, dtype.type(w), step)
        np.subtract(a, step, a)
    else:
        np.subtract(x, a, step, dtype=dtype)
        np.multiply(step, dtype.type(1.0 - w), step)
        np.subtract(x, step, a, dtype=dtype)


def _scratch(scratch: dict[Any, Flat], like: Flat) -> Flat:
    held = scratch.get(like.dtype)
    if held is None:
        held = scratch[like.dtype] = np.empty(BLOCK, like.dtype)
    return held[: like.size]


def _are_safe(task: list[tuple[Flat, Moves]]) -> bool:
    """One quick pass: a finite sum of squares proves it. Where it is not, the numbers themselves are looked at."""
    return all(is_tame(value) or _is_within(value) for value, _ in task)


def _is_within(value: Flat) -> bool:
    """NaN fails every comparison, infinity this one."""
    wide = value if value.dtype.itemsize >= 4 else value.astype(np.float32)
    return bool((np.abs(wide) <= np.finfo(wide.dtype).max / 2).all())
