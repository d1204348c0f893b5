"""Giving a large file to the disk while it is still being written, so that little is left to wait for at the end."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

LEAST = 1 << 26  # bytes: below, a thread costs more than it spares
_STEP = 1 << 23  # bytes that have come since the last time
_PAUSE = 0.005  # seconds
_given_to_disk = getattr(os, "fdatasync", os.fsync)


@contextmanager
def flushed_meanwhile(handle: int, expected: int) -> Iterator[None]:
    """A context in which a file grows by so many bytes, and another thread gives the disk what has come.

    The file still has to be synchronised afterwards.

    Raises:
        OSError: the disk refused something. The system says so once, and not again at the end.
    """
    if expected < LEAST:
        yield
        return
    done = threading.Event()
    refused: list[OSError] = []
    thread = threading.Thread(target=_flush, args=(handle, done, refused), name="polyak-flush")
    try:
        thread.start()
    except RuntimeError:  # no thread can be started: the program ends
        yield
        return
    try:
        yield
    finally:
        done.set()
        thread.join()
    if refused:
        raise refused[0]


def _flush(handle: int, done: threading.Event, refused: list[OSError]) -> None:
    given = 0
    try:
        while not done.wait(_PAUSE):
            size = os.fstat(handle).st_size
            if size - given >= _STEP:
                _given_to_disk(handle)
                given = size
    except OSError as error:  # raised in the other thread
        refused.append(error)
