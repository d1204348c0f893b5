"""Work that an interrupt from the keyboard must not cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType


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
    handlers = {s: h for s in signal.valid_signals() if callable(h := signal.getsignal(s))}
    try:
        with ExitStack() as back:
            for number, handler in handlers.items():
                back.callback(signal.signal, number, handler)
                signal.signal(number, lambda number, frame: waiting.append((number, frame)))
            yield
    finally:
        for arrived, frame in waiting:
            handlers[signal.Signals(arrived)](arrived, frame)


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
