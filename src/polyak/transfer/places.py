"""Places: pairs of the weights of a Keras 3 model and of TensorFlow's checkpoint of it, where names do not pair them.

TensorFlow's object graph has the layers of Sequential and functional models by their numbers alone, those in
models within models, too: ``model/_operations/1/_functional/_operations/2/_kernel``. A place is such a path less what
only Keras put into it: ``model/#1/#2/kernel``. A live model knows its places, and they lie under one root in the file.
Layers in lists and dictionaries have no place there; what an optimizer updates of them has a number in its list,
``optimizer/=5``. Numbers say nothing of which layer it was, so the names in the file may object.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from polyak.errors import AmbiguousMatch, argument
from polyak.snapshot import Item
from polyak.weights import Kind, Weight

Pairs = dict[str, str]
_LISTS = {"_operations": "#", "_layers": "#", "_trainable_variables": "="}
_HIDDEN = "_functional"
_NUMBERED = re.compile(r"(.+?)(?:_(\d{1,9}))?")
_LISTED = re.compile(r"((?:.+/)?)=\d+")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a live weight lies.

    Attributes:
        path: the steps to it, ``#3`` for the layer of this number; "" where TensorFlow does not get to it.
        owner: name of the layer that owns it, "" where the user chose the name.
        names: explicit names of the layers on the way.
        number: its number among the variables that are trained, or -1.
    """

    path: str
    owner: str = ""
    names: tuple[str, ...] = ()
    number: int = -1


@dataclass(frozen=True, slots=True)
class _Found:
    """A pair: what the file has, and a weight of the model with its place."""

    item: Item
    weight: Weight
    at: Place


def place(path: Sequence[str]) -> str:
    """The place of a path in TensorFlow's object graph.

    Example:
        >>> place(("model", "_operations", "1", "_functional", "_operations", "2", "_kernel"))
        'model/#1/#2/kernel'
    """
    steps: list[str] = []
    for before, step in zip(("", *path), path, strict=False):
        if step.isdigit() and before in _LISTS:
            steps[-1] = f"{_LISTS[before]}{step}"
        elif step != _HIDDEN:
            steps.append(step.lstrip("_"))
    return "/".join(steps)


def is_spare(item: Item) -> bool:
    """Whether only an optimizer's list has it, so that it may be no part of the model that is asked for."""
    return bool(item.places) and all(map(_LISTED.fullmatch, item.places))


def renamed(source: Sequence[Item], target: Sequence[Weight], places: Mapping[str, Place], where: str) -> Pairs | None:
    """Source path to target path by places; None unless every weight of the target but random seeds has one there.

    Raises:
        AmbiguousMatch: they are there under several roots, or names in the file say that layers changed places.
    """
    own = [w for w in target if w.kind is not Kind.SEED]
    wanted = [(w, places[w.path]) for w in own if w.path in places]
    held = {at: item for item in source for at in item.places}
    placed = _placed([pair for pair in wanted if pair[1].path], held, where)
    if placed is None or len(wanted) < len(own):
        return None
    trained = sum(at.number >= 0 for at in places.values())
    listed = _listed([pair for pair in wanted if not pair[1].path], placed, held, trained)
    if listed is None:
        return None
    pairs = [*placed, *listed]
    _refuse_names(pairs, where)
    _refuse_order(pairs, where)
    return {found.item.weight.path: found.weight.path for found in pairs} or None


_Wanted = Sequence[tuple[Weight, Place]]
_Held = Mapping[str, Item]


def _placed(wanted: _Wanted, held: _Held, where: str) -> list[_Found] | None:
    """Those that have a place, under the one root at which all of them are; None where there is no such root."""
    if not wanted:
        return []
    roots = _roots(list(held), [at.path for _, at in wanted])
    if len(roots) > 1:
        raise AmbiguousMatch(
            f"expected one model of this structure, received {len(roots)} from {where}: under "
            f"{', '.join(map(repr, roots))}",
            hint=f"leave the others out: {argument('exclude', f'{_readable(roots[-1])}*')}",
        )
    return [_Found(held[roots[0] + at.path], w, at) for w, at in wanted] if roots else None


def _listed(wanted: _Wanted, placed: Sequence[_Found], held: _Held, trained: int) -> list[_Found] | None:
    """Those without a place, by their numbers in the list of the optimizer that updated as many weights as are trained
    here, and has those that have a place under the same numbers; None where no list has them, or two have others.
    """
    if not wanted:
        return []
    lengths = Counter(found[1] for at in held if (found := _LISTED.fullmatch(at)))
    ways = [
        [_Found(held[f"{owner}={at.number}"], w, at) for w, at in wanted]
        for owner, length in lengths.items()
        if length == trained and _agrees(owner, wanted, placed, held)
    ]
    return ways[0] if ways and all([f.item for f in way] == [f.item for f in ways[0]] for way in ways) else None


def _agrees(owner: str, wanted: _Wanted, placed: Sequence[_Found], held: _Held) -> bool:
    same = all(f"{owner}={f.at.number}" in f.item.places for f in placed if f.at.number >= 0)
    return same and all(_fits(held.get(f"{owner}={at.number}"), w) for w, at in wanted)


def _fits(item: Item | None, weight: Weight) -> bool:
    local = weight.evidence.local if weight.evidence else ""
    return item is not None and item.weight.shape == weight.shape and item.called.split("/")[-1] == local


def _roots(held: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """What stands before all that is wanted, with the slash after it."""
    there = set(held)
    ends = (at.removesuffix(wanted[0]) for at in held if f"/{at}".endswith(f"/{wanted[0]}"))
    return [root for root in sorted(set(ends)) if all(root + at in there for at in wanted)]


def _readable(root: str) -> str:
    return re.sub(r"#(\d+)", r"*/\1", root)


def _refuse_names(pairs: Sequence[_Found], where: str) -> None:
    """Raise AmbiguousMatch where a layer's explicit name stands at another weight of the same sort."""
    named: dict[str, list[Item]] = {}
    for found in pairs:
        for name in found.item.called.split("/"):
            named.setdefault(name, []).append(found.item)
    for found in pairs:
        for name in set(found.at.names).difference(found.item.called.split("/")):
            other = next((o for o in named.get(name, ()) if _alike(found.item.weight, o.weight)), None)
            if other is not None:
                raise _moved(found, other, where)


def _refuse_order(pairs: Sequence[_Found], where: str) -> None:
    """Raise AmbiguousMatch where layers of one class that have automatic names were made in another order."""
    kin: dict[str, list[tuple[int, int, _Found]]] = {}
    for found in pairs:
        ours, theirs = _number(found.at.owner), _number("/".join(found.item.called.split("/")[-2:-1]))
        if ours is not None and theirs is not None and ours[0] == theirs[0]:
            kin.setdefault(ours[0], []).append((theirs[1], ours[1], found))
    for numbers in kin.values():
        numbers.sort(key=lambda n: n[:2])
        for before, after in pairwise(numbers):
            if before[1] > after[1] and before[0] < after[0]:
                raise _moved(after[2], before[2].item, where)


def _number(name: str) -> tuple[str, int] | None:
    """The family and number of an automatic name."""
    found = _NUMBERED.fullmatch(name)
    return None if found is None else (found.group(1), int(found.group(2) or 0))


def _alike(a: Weight, b: Weight) -> bool:
    return a.path != b.path and a.shape == b.shape and a.path.rpartition("/")[2] == b.path.rpartition("/")[2]


def _moved(found: _Found, other: Item, where: str) -> AmbiguousMatch:
    return AmbiguousMatch(
        f"weight {found.weight.path!r}: expected one source, received two from {where}: {found.item.weight.path!r} "
        f"({found.item.called}) by its place in the model and {other.weight.path!r} ({other.called}) by the names of "
        "the layers",
        hint="layers were made, named or put together in another order: name the pairs with rename=",
    )
