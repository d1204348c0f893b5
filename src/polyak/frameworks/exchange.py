"""While averaged values are in a model: where the raw ones wait, and which averages follow a variable.

Both are noted on the variable itself, so that every average of the model and every transfer sees them,
whichever object it reached the variable through.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from polyak.errors import ModelError
from polyak.forks import new_lock
from polyak.frameworks.locks import Lock

NOTE = "_polyak_exchange"
_WATCHERS = "_polyak_averages"
# Seconds to wait for a train step that holds an average: one that waits in vain for its data shall hang nobody else.
PATIENCE = 60.0
# Held while a note is read or written together with what its variable holds: who reads one raw value takes no lock of
# an average. Who holds this one takes none of theirs.
EXCHANGING = new_lock()
Locks = tuple[Lock, ...]


class Watcher(Protocol):
    """An average that wants to know when a weight that it follows holds averaged values."""

    @property
    def locks(self) -> Locks:
        """Those of the weights that it follows: averages that follow the same weights have the same ones."""

    def look(self) -> None:
        """Notice what the followed weights hold now."""


@dataclass(frozen=True, slots=True)
class Hands:
    """How a framework's values are taken out of a variable and put into it.

    Attributes:
        mark: what tells ``same`` what a variable holds.
        same: whether a variable of such a mark still held what was put into it, as far as the framework can tell.
    """

    take: Callable[[Any], Any]
    put: Callable[[Any, Any], Any]
    mark: Callable[[Any], Any]
    same: Callable[[Over, Any], bool]


@dataclass(frozen=True, slots=True)
class Over:
    """A value that is put over another one.

    Attributes:
        owner: who puts it there.
        make: makes the value. JAX takes the memory of the arrays in a model away, also where it only evaluates it.
        mark: that of the variable once the value was put into it, or None.
    """

    owner: object
    make: Callable[[], Any]
    mark: Any = None


Left = tuple[Over, Any]


@dataclass(slots=True)
class Exchange:
    """The raw value of a variable, and the averaged values put over it, the newest last.

    It is not copied with its variable: what the variable holds is the copy's own value, which nobody takes away again.
    """

    raw: Any
    over: list[Over]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


class _Watchers(weakref.WeakSet[Watcher]):
    """The averages that follow a variable, and its lock, which it has in common with what else they follow.

    Nothing follows a copy of it.
    """

    lock: Lock | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Watchers, ()


def enter(variable: Any, owner: object, make: Callable[[], Any], hands: Hands) -> None:
    """Put a value over what the variable holds: one that is made when it is needed, which may be more than once."""
    with EXCHANGING:
        exchange = noted(variable) or Exchange(hands.take(variable), [])
        exchange.over.append(Over(owner, make))
        setattr(variable, NOTE, exchange)
        _put_last(variable, exchange.over, hands)


def leave(variable: Any, owner: object, hands: Hands) -> Left | None:
    """Take the owner's value away again, in whichever order owners leave; the last one brings the raw value back.

    Returns:
        What was put there last, and the mark of what was there when the owner left; None if he was not there.
    """
    with EXCHANGING:
        exchange = noted(variable)
        if exchange is None or all(over.owner is not owner for over in exchange.over):
            return None
        last, found = exchange.over[-1], hands.mark(variable)
        over = [each for each in exchange.over if each.owner is not owner]
        if over:
            _put_last(variable, over, hands)
        else:
            hands.put(variable, exchange.raw)
        exchange.over = over  # in place: a shallow copy of the variable has the same note
        if not over:
            delattr(variable, NOTE)
        return last, found


def _put_last(variable: Any, over: list[Over], hands: Hands) -> None:
    """Put the newest value into the variable."""
    hands.put(variable, over[-1].make())
    over[-1] = replace(over[-1], mark=hands.mark(variable))


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


def watch(variables: Collection[Any], watcher: Watcher) -> Locks:
    """Note that an average follows the variables, and give the locks that it has from now on.

    One for all of them, unless averages of parts of them were there before, each with a lock of its own.
    """
    with EXCHANGING:
        known = {id(lock): lock for v in variables if (lock := _watchers_of(v).lock) is not None}
        locks = tuple(known[key] for key in sorted(known)) or watcher.locks
        for variable in variables:
            note = _watchers_of(variable)
            note.lock = note.lock or locks[0]
            note.add(watcher)
    return locks


def _watchers_of(variable: Any) -> _Watchers:
    if _WATCHERS not in vars(variable):
        setattr(variable, _WATCHERS, _Watchers())
    found: _Watchers = getattr(variable, _WATCHERS)
    return found


def watchers(variables: Iterable[Any]) -> list[Watcher]:
    """The averages that follow any of the variables."""
    with EXCHANGING:
        return list({id(w): w for v in variables for w in vars(v).get(_WATCHERS, ())}.values())


@contextmanager
def together(averages: Iterable[Watcher]) -> Iterator[None]:
    """A context in which no other thread changes any of the averages, nor what they follow in polyak's train functions.

    Nor does another thread apply an average to any of it. Locks are taken in one order, so that two threads never wait
    for each other, unless both are within such a context of other averages already.

    Raises:
        ModelError: they would wait for each other for ever.
    """
    with patiently(averages, -1.0) as had:
        if not had:
            raise _waiting_for_each_other()
        yield


@contextmanager
def moment(averages: Iterable[Watcher]) -> Iterator[None]:
    """``together`` for who only reads: it does not wait for ever for a train step that waits for its data.

    Raises:
        ModelError: another thread has held one of the averages for a minute, or waits for this one.
    """
    end = time.monotonic() + PATIENCE
    with patiently(averages, PATIENCE) as had:
        if not had and time.monotonic() < end:
            raise _waiting_for_each_other()
        if not had:
            raise ModelError(
                f"an average: expected a moment between two updates, received none in {PATIENCE:g} seconds; "
                "another thread is within a step",
                hint="call this from the thread that trains",
            )
        yield


def moment_of(variables: Collection[Any]) -> AbstractContextManager[None]:
    """``moment`` for who reads or writes these variables, which any average may follow.

    Each has one lock, which all that follow it have: those of other weights that one of them follows are none of this.
    """
    return moment([_Followed(variables)])


@dataclass(frozen=True, slots=True)
class _Followed:
    variables: Collection[Any]

    @property
    def locks(self) -> Locks:
        with EXCHANGING:
            notes = [vars(v)[_WATCHERS] for v in self.variables if _WATCHERS in vars(v)]
        return tuple({id(note.lock): note.lock for note in notes if note.lock is not None}.values())

    def look(self) -> None:
        """There is nothing to notice."""


def _waiting_for_each_other() -> ModelError:
    return ModelError(
        "an average: expected another thread to end its step, received one that waits for this thread: each is within "
        "a moment of an average that the other one asks for",
        hint="begin the step of each with `with average.moment():` of the average that follows all that the step uses",
    )


@contextmanager
def patiently(averages: Iterable[Watcher], seconds: float) -> Iterator[bool]:
    """``together``, and whether it came about in so many seconds; it waits for ever where these are below zero.

    Nor does it come about where threads would wait for each other for ever.
    """
    averages = list(averages)
    end = time.monotonic() + seconds
    block = object()
    locks = Locks()
    try:
        try:
            had = True
            # An average of a model that was built meanwhile, or has changed, has other locks now.
            while had and locks != (now := _locks(averages)):
                _let_go(locks, block)
                locks = now
                had = all(lock.take(block, -1.0 if seconds < 0 else max(0.0, end - time.monotonic())) for lock in locks)
            if not had:
                _let_go(locks, block)
            yield had
        finally:
            _let_go(locks, block)
    finally:  # an interrupt may have come in before all of them were free
        _let_go(locks, block)


def _locks(averages: Iterable[Watcher]) -> Locks:
    return tuple(sorted({lock for average in averages for lock in average.locks}, key=id))


def _let_go(locks: Locks, block: object) -> None:
    for lock in locks:
        lock.let_go(block)
