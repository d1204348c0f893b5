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
from typing import Any, Protocol

from polyak.errors import ModelError

NOTE = "_polyak_exchange"
_WATCHERS = "_polyak_averages"
# Seconds to wait for a train step that holds an average: one that waits in vain for its data shall hang nobody else.
PATIENCE = 60.0


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
    """The raw value of a variable, and the averaged values put over it, the newest last, each by who put it there."""

    raw: Any
    over: list[tuple[object, Any]]


def enter(variable: Any, owner: object, value: Any, hands: Hands) -> None:
    """Put a value over what the variable holds."""
    exchange = vars(variable).get(NOTE) or Exchange(hands.take(variable), [])
    setattr(variable, NOTE, exchange)
    exchange.over.append((owner, value))
    hands.put(variable, value)


def leave(variable: Any, owner: object, hands: Hands) -> None:
    """Take the owner's value away again, in whichever order owners leave; the last one brings the raw value back."""
    exchange = vars(variable).get(NOTE)
    if exchange is None or all(o is not owner for o, _ in exchange.over):
        return
    exchange.over = [(o, value) for o, value in exchange.over if o is not owner]
    hands.put(variable, exchange.over[-1][1] if exchange.over else exchange.raw)
    if not exchange.over:
        delattr(variable, NOTE)


def raw_value(variable: Any, hands: Hands) -> Any:
    """The raw value, also while an average is applied."""
    exchange = vars(variable).get(NOTE)
    return hands.take(variable) if exchange is None else exchange.raw


def holds_average(variable: Any) -> bool:
    """Whether an average is applied to the variable now."""
    return NOTE in vars(variable)


def watch(variable: Any, watcher: Watcher) -> None:
    """Note that an average follows the variable."""
    if _WATCHERS not in vars(variable):
        setattr(variable, _WATCHERS, weakref.WeakSet())
    getattr(variable, _WATCHERS).add(watcher)


def watchers(variables: Iterable[Any]) -> list[Watcher]:
    """The averages that follow any of the variables."""
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
