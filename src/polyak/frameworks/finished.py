"""A model that ``fit`` has left with its average in it: where its raw weights are meanwhile."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from polyak.errors import ModelError
from polyak.frameworks.base import Average, snapshot_of
from polyak.frameworks.stateful import StatefulAverage
from polyak.manifest import RAW, digest
from polyak.snapshot import Snapshot
from polyak.weights import Kind


@dataclass(frozen=True, slots=True)
class Finished:
    """What is known of such a model.

    Attributes:
        raw: the raw weights, for as long as somebody else holds them.
        marks: digests of what the model was left with, by which one knows later whether it has been written since.
    """

    raw: weakref.ref[Snapshot]
    marks: Mapping[str, str]


def note_finished(average: Average, raw: Snapshot) -> None:
    """Note that the model holds the average now, and these raw weights lie beside it."""
    cast(StatefulAverage, average).finished.value = Finished(weakref.ref(raw), _marks(average))


def forget_finished(average: Average) -> None:
    """Note that the model has its raw weights again."""
    cast(StatefulAverage, average).finished.value = None


def finished_in(watching: Iterable[object]) -> StatefulAverage | None:
    """Of the averages that watch a model the one that it still holds, as ``fit`` has left it."""
    noted = [a for a in watching if isinstance(a, StatefulAverage) and a.finished.value is not None]
    found = [a for a in noted if a.finished.value.marks == _marks(a)]
    return found[0] if len(found) == 1 else None


def raw_of(average: Average) -> Snapshot:
    """The raw weights beside an average: its model's, or those that ``fit`` has taken out of the model at its end.

    Raises:
        ModelError: the model holds the average, and nobody has kept the raw weights.
    """
    if finished_in([average]) is None:
        return snapshot_of(average.source, RAW)
    found: Finished = cast(StatefulAverage, average).finished.value
    raw = found.raw()
    if raw is None:
        raise ModelError(
            f"raw weights beside {average.label}: expected them in the model or in the callback, received a model that "
            'fit(finish="average") has left with the average, and the callback is gone',
            hint='keep the callback, whose raw has them, until they are saved; or ask for weights="average"',
        )
    return raw


def _marks(average: Average) -> dict[str, str]:
    source = average.source
    return {w.path: digest(source.read(w.path)) for w in source.weights if w.kind is Kind.TRAINABLE}
