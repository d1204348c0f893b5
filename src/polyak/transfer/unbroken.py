"""Work that an interrupt from the keyboard must not cut in two."""

from __future__ import annotations

# What `signal` wraps: it makes members of enumerations of every number, a hundred times as slowly, at every update.
import _signal  # type: ignore[import-not-found]
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

_NUMBERS = tuple(map(int, signal.valid_signals()))


@contextmanager
def unbroken() -> Iterator[None]:
    """Signals that have a handler in Python wait until the block is left; then their handlers run, in their order.

    Python runs such handlers in the main thread alone, so that other threads need nothing.

    Example:
        >>> done = []
        >>> try:
        ...     with unbroken():
        ...         signal.raise_signal(signal.SIGINT)
        ...         done.append("all of it")
        ... except KeyboardInterrupt:
        ...     done.append("and then the interrupt")
        >>> done
        ['all of it', 'and then the interrupt']
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[tuple[int, FrameType | None]] = []
    handlers = {number: h for number in _NUMBERS if callable(h := _signal.getsignal(number))}
    try:
        try:
            for number in handlers:
                _signal.signal(number, lambda number, frame: waiting.append((number, frame)))
            yield
        finally:
            _set(handlers)
    finally:
        for arrived, frame in waiting:
            handlers[arrived](arrived, frame)


def _set(handlers: Mapping[int, Callable[..., Any]]) -> None:
    """Set handlers of signals, all of them also where one that is set already raises meanwhile."""
    try:
        for number, handler in handlers.items():
            _signal.signal(number, handler)
    except BaseException:
        _set(handlers)
        raise


def surely(work: Callable[[], None]) -> None:
    """Do work that may be done twice, and do it again where an interrupt came in before it began."""
    done = False
    try:
        with unbroken():
            work()
            done = True
    finally:
        if not done:
            with unbroken():
                work()
