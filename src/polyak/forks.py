"""Locks in processes that are forked: free there, where another thread of the first process held them."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

_RENEWED = weakref.WeakSet[Any]()


def renewed_in_forks(lock: Any) -> Any:
    """The lock, which is free in a process that is forked while another thread holds it: that thread is not in there.

    What the other thread was at stays half done there. The thread that forks keeps what it holds.

    Args:
        lock: an ``RLock`` of Python, or what answers its calls for a fork.

    Example:
        >>> with renewed_in_forks(threading.RLock()) as taken:
        ...     taken
        True
    """
    _RENEWED.add(lock)
    return lock


def new_lock() -> Any:
    """A lock that knows its thread, and is free in forked processes where another thread held it."""
    return renewed_in_forks(threading.RLock())


def _renew() -> None:
    """In a forked process, before anything else is done there."""
    for lock in _RENEWED:
        if not lock._is_owned():
            lock._at_fork_reinit()


if hasattr(os, "register_at_fork"):  # not on every platform
    os.register_at_fork(after_in_child=_renew)
