"""A model that ``fit`` has left with its average in it: where its raw weights are meanwhile."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

from polyak.errors import ModelError
from polyak.frameworks.base import Average, snapshot_of
from polyak.frameworks.exchange import watchers
from polyak.frameworks.stateful import StatefulAverage
from polyak.manifest import RAW, digest
from polyak.snapshot import Item, Snapshot
from polyak.weights import Kind


class _Followed(Protocol):
    """What an average follows, on the frameworks of Keras."""

    variables: Mapping[str, Any]


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
    found = _left_by_fit(watching)
    return found[0] if len(found) == 1 else None


def raw_of(average: Average) -> Snapshot:
    """The raw weights beside an average: its model's, or those that ``fit`` has taken out of the model at its end.

    The model may hold another average of it than this one, or a part of the model may.

    Raises:
        ModelError: the model holds an average, and nobody has kept the raw weights.
    """
    source = average.source
    held = snapshot_of(source, RAW)
    aside = {home: item for each in left_beside(average) for home, item in _aside(each).items()}
    if not aside:
        return held
    pairs = [(item, aside.get(item.home(), item)) for item in held.items_by_path.values()]
    items = [replace(own, read=found.read, view=found.view) for own, found in pairs]
    return Snapshot(items, {RAW: None}, held.origin, written=held.manifest, moment=source.moment)


def left_beside(average: Average) -> list[StatefulAverage]:
    """The averages that ``fit`` has left in the model that this one follows, or in parts of it."""
    return _left_by_fit(watchers(cast("_Followed", average.source).variables.values()))


def _left_by_fit(watching: Iterable[object]) -> list[StatefulAverage]:
    noted = [a for a in watching if isinstance(a, StatefulAverage) and a.finished.value is not None]
    return [a for a in noted if a.finished.value.marks == _marks(a)]


def _aside(average: StatefulAverage) -> dict[object, Item]:
    """The raw weights that lie beside the model, by where the model has the average now."""
    raw = cast(Finished, average.finished.value).raw()
    if raw is None:
        raise ModelError(
            f"raw weights beside {average.label}: expected them in the model or in the callback, received a model that "
            'fit(finish="average") has left with the average, and the callback is gone',
            hint='keep the callback, whose raw has them, until they are saved; or ask for weights="average"',
        )
    source = average.source
    return {source.home(w.path): raw.items_by_path[w.path] for w in source.weights if w.path in raw}


def _marks(average: Average) -> dict[str, str]:
    source = average.source
    return {w.path: digest(source.read(w.path)) for w in source.weights if w.kind is Kind.TRAINABLE}
