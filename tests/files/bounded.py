"""A system that refuses: for a while no file of this process may be longer than so many bytes, or it is nobody's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from polyak.snapshot import Item, Snapshot
from polyak.weights import Kind, Weight


@contextmanager
def file_sizes() -> Iterator[Callable[..., None]]:
    """A function that sets the length of the longest file, or takes the bound back; none stands after the block."""
    import resource

    usual, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda size=usual: resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (usual, most))


@contextmanager
def nobody() -> Iterator[None]:
    """A process that may not do everything; root is one that may."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def read_under(bound: Callable[..., None], *size: int) -> Callable[[], Any]:
    """How a weight of 4 MiB is read: from that moment on the bound holds, after every check of what will be written."""

    def read() -> Any:
        bound(*size)
        return np.ones(1 << 20, np.float32)

    return read


def unwritable(bound: Callable[..., None]) -> Snapshot:
    """A weight of 4 MiB where no more than a thousand bytes can be written."""
    weight = Weight("w", (1 << 20,), "float32", Kind.TRAINABLE)
    return Snapshot([Item("raw", weight, read_under(bound, 1000))])
