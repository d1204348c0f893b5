"""While averaged values are in a model: where the raw ones wait, and which averages follow a variable.

Both are noted on the variable itself, so that every average of the model and every transfer sees them,
whichever object it reached the variable through.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any, Protocol

from polyak.errors import ModelError

NOTE = "_polyak_exchange"
_WATCHERS = "_polyak_averages"
# Seconds to wait for a train step that holds an average: one that waits in vain for its data shall hang nobody else.
PATIENCE = 60.0
# Held while a note is read or written together with what its variable holds: two averages may be applied to a variable
# in two threads, and each of them takes its own lock alone. Who holds this one takes none of theirs.
EXCHANGING = RLock()


class Watcher(Protocol):
    """An average that wants to know when a weight that it follows holds averaged values."""

    @property
    def still(self) -> Any:
        """The lock of the average."""

    def look(self) -> None:
        """Notice what the followed weights hold now."""


@dataclass(frozen=True, slots=True)
class Hands:
    """How a framework's values are taken out of a variable and put into it."""

    take: Callable[[Any], Any]
    put: Callable[[Any, Any], Any]


@dataclass(slots=True)
class Exchange:
    """The raw value of a variable, and the averaged values put over it, the newest last, each by who put it there.

    It is not copied with its variable: what the variable holds is the copy's own value, which nobody takes away again.
    """

    raw: Any
    over: list[tuple[object, Any]]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


class _Watchers(weakref.WeakSet[Watcher]):
    """The averages that follow a variable. Nothing follows a copy of it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _Watchers, ()


def enter(variable: Any, owner: object, value: Any, hands: Hands) -> None:
    """Put a value over what the variable holds."""
    with EXCHANGING:
        exchange = noted(variable) or Exchange(hands.take(variable), [])
        exchange.over.append((owner, value))
        setattr(variable, NOTE, exchange)
        hands.put(variable, value)


def leave(variable: Any, owner: object, hands: Hands) -> None:
    """Take the owner's value away again, in whichever order owners leave; the last one brings the raw value back."""
    with EXCHANGING:
        exchange = noted(variable)
        if exchange is None or all(o is not owner for o, _ in exchange.over):
            return
        over = [(o, value) for o, value in exchange.over if o is not owner]
        hands.put(variable, over[-1][1] if over else exchange.raw)
        exchange.over = over
        if not over:
            delattr(variable, NOTE)


def raw_value(variable: Any, hands: Hands) -> Any:
    """The raw value, also while an average is applied."""
    with EXCHANGING:
        exchange = noted(variable)
        return hands.take(variable) if exchange is None else exchange.raw


def noted(variable: Any) -> Exchange | None:
    """What is put over the variable's raw value now."""
    exchange: Exchange | None = vars(variable).get(NOTE)
    return exchange if exchange is not None and exchange.over else None


def holds_average(variable: Any) -> bool:
    """Whether an average is applied to the variable now."""
    return noted(variable) is not None


def watch(variable: Any, watcher: Watcher) -> None:
    """Note that an average follows the variable."""
    with EXCHANGING:
        if _WATCHERS not in vars(variable):
            setattr(variable, _WATCHERS, _Watchers())
        getattr(variable, _WATCHERS).add(watcher)


def watchers(variables: Iterable[Any]) -> list[Watcher]:
    """The averages that follow any of the variables."""
    with EXCHANGING:
        return list({id(w): w for v in variables for w in vars(v).get(_WATCHERS, ())}.values())


@contextmanager
def together(averages: Iterable[Watcher]) -> Iterator[None]:
    """A context in which no other thread changes any of the averages, nor what they follow in polyak's train functions.

    Locks are taken in one order, so that two threads never wait for each other.
    """
    with ExitStack() as held:
        for average in _in_order(averages):
            held.enter_context(average.still)
        yield


@contextmanager
def moment(averages: Iterable[Watcher]) -> Iterator[None]:
    """``together`` for who only reads: it does not wait for ever for a train step that waits for its data.

    Raises:
        ModelError: another thread has held one of the averages for a minute.
    """
    end = time.monotonic() + PATIENCE
    with ExitStack() as held:
        for average in _in_order(averages):
            if not average.still.acquire(timeout=max(0.0, end - time.monotonic())):
                raise ModelError(
                    f"an average: expected a moment between two updates, received none in {PATIENCE:g} seconds; "
                    "another thread is within a step",
                    hint="call this from the thread that trains",
                )
            held.callback(average.still.release)
        yield


def _in_order(averages: Iterable[Watcher]) -> list[Watcher]:
    return sorted(averages, key=id)
