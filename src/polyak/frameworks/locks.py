"""The locks of averages: interrupts and forks leave none taken, and threads that wait for each other are noticed."""

from __future__ import annotations

import os
import threading
from typing import Any

from polyak.forks import new_lock, renewed_in_forks

# Held while one thread looks at what the others hold and wait for.
_LOOKING = new_lock()
# What each thread that waits waits for, and whether it gives up some time.
_WAITING: dict[int, tuple[Lock, bool]] = {}


class Lock:
    """A lock that its thread may take several times, each time for another block.

    It is free once no block holds it: so a block may let go of it twice, and an interrupt between the taking and a note
    of it loses nothing.

    Example:
        >>> lock, block, inner = Lock(), object(), object()
        >>> lock.take(block, 0.0), lock.take(inner, 0.0)
        (True, True)
        >>> lock.let_go(inner); lock.is_mine
        True
        >>> lock.let_go(block); lock.let_go(block); lock.is_mine
        False
    """

    def __init__(self) -> None:
        self._lock: Any = threading.RLock()  # it knows its thread
        self._holder: int | None = None
        self._blocks = set[object]()
        renewed_in_forks(self)

    def _is_owned(self) -> bool:
        return self.is_mine

    def _at_fork_reinit(self) -> None:
        self._lock._at_fork_reinit()
        self._holder = None
        self._blocks.clear()

    @property
    def is_mine(self) -> bool:
        """Whether this thread holds it."""
        return bool(self._lock._is_owned())

    def take(self, block: object, seconds: float) -> bool:
        """Take it for a block of this thread; whether that came about.

        Args:
            seconds: how long to wait at most; for ever where it is below zero, but where those that hold it wait for
                this thread, and none of them gives up.
        """
        if not self.is_mine:
            if not (self._lock.acquire(blocking=False) or self._waited(seconds)):
                return False
            self._holder = threading.get_ident()
        self._blocks.add(block)
        return True

    def let_go(self, block: object) -> None:
        """It is free if this thread holds it for no other block."""
        if self.is_mine:
            self._blocks.discard(block)
            if not self._blocks:
                self._holder = None
                self._lock.release()

    def _waited(self, seconds: float) -> bool:
        me = threading.get_ident()
        try:
            with _LOOKING:
                if self._waits_for(me, seconds < 0):
                    return False
                _WAITING[me] = (self, seconds >= 0)
            return bool(self._lock.acquire(timeout=seconds))
        finally:
            _WAITING.pop(me, None)

    def _waits_for(self, thread: int, for_ever: bool) -> bool:
        """Whether who holds it waits, over however many others, for what the thread holds.

        Who asks as one that waits for ever may wait for one that gives up.
        """
        lock, seen = self, set[int]()
        while (holder := lock._holder) is not None and holder not in seen:
            if holder == thread:
                return True
            seen.add(holder)
            lock, gives_up = _WAITING.get(holder, (_FREE, False))
            if gives_up and for_ever:
                return False
        return False


_FREE = Lock()


if hasattr(os, "register_at_fork"):  # not on every platform
    os.register_at_fork(after_in_child=_WAITING.clear)
