"""Updates on JAX and PyTorch: averages of one model that move together, in one pass over its values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from polyak.frameworks.engine import Engine, Held, Program
from polyak.frameworks.exchange import Watcher, together
from polyak.transfer.unbroken import unbroken


class Moving(Watcher, Protocol):
    """An average whose shadows are arrays of the library that Keras runs on."""

    held: Held

    @property
    def engine(self) -> Engine: ...
    @property
    def program(self) -> Program: ...
    @property
    def raw(self) -> Any: ...
    def raw_values(self) -> dict[str, Any]: ...
    def complete(self) -> None: ...
    def refuse_applied(self) -> None: ...
    def report_skips(self) -> None: ...


def update_all(averages: Sequence[Moving]) -> None:
    """Update averages of one model; those whose shadows lie in one place all in one pass over its values."""
    for average in averages:
        average.raw  # noqa: B018 - its locks are those of the weights from here on
        average.complete()
    with together(averages):
        for average in averages:
            average.refuse_applied()
        with unbroken():
            for engine, own in _by_engine(averages).items():
                _step(engine, own)
    for average in averages:
        average.report_skips()


def _step(engine: Engine, averages: Sequence[Moving]) -> None:
    """Move averages whose shadows lie in one place. In between, what they hold is half moved or given away."""
    values = {path: value for average in averages for path, value in average.raw_values().items()}
    new = engine.step([average.program for average in averages], [average.held for average in averages], values)
    for average, held in zip(averages, new, strict=True):
        average.held = held


def _by_engine(averages: Sequence[Moving]) -> dict[Engine, list[Moving]]:
    """The averages whose shadows lie in one place, by what moves them."""
    found: dict[Engine, list[Moving]] = {}
    for average in averages:
        found.setdefault(average.engine, []).append(average)
    return found
