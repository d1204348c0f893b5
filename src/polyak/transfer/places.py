"""Places: pairs of the weights of a Keras 3 model and of TensorFlow's checkpoint of it, where names do not pair them.

TensorFlow's object graph has the layers of Sequential and functional models by their numbers alone, those in
models within models, too: ``model/_operations/1/_functional/_operations/2/_kernel``. A place is such a path less what
only Keras put into it: ``model/#1/#2/kernel``. A live model knows its places, and they lie under one root in the file.
A number says nothing of which layer it was, so the names in the file may object.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from polyak.errors import AmbiguousMatch
from polyak.snapshot import Item
from polyak.weights import Kind, Weight

Pairs = dict[str, str]
_LISTS = ("_operations", "_layers")
_HIDDEN = "_functional"
_NUMBERED = re.compile(r"(.+?)(?:_(\d{1,9}))?")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a live weight lies.

    Attributes:
        path: the steps to it, ``#3`` for the layer of this number.
        owner: name of the layer that owns it, "" where the user chose the name.
        names: explicit names of the layers on the way.
    """

    path: str
    owner: str = ""
    names: tuple[str, ...] = ()


def place(path: Sequence[str]) -> str:
    """The place of a path in TensorFlow's object graph.

    Example:
        >>> place(("model", "_operations", "1", "_functional", "_operations", "2", "_kernel"))
        'model/#1/#2/kernel'
    """
    steps: list[str] = []
    for before, step in zip(("", *path), path, strict=False):
        if step.isdigit() and before in _LISTS:
            steps[-1] = f"#{step}"
        elif step != _HIDDEN:
            steps.append(step.lstrip("_"))
    return "/".join(steps)


def renamed(source: Sequence[Item], target: Sequence[Weight], places: Mapping[str, Place], where: str) -> Pairs | None:
    """Source path to target path by places; None unless every weight of the target but random seeds has one there.

    Raises:
        AmbiguousMatch: they are there under several roots, or names in the file say that layers changed places.
    """
    wanted = {w.path: places.get(w.path) for w in target if w.kind is not Kind.SEED}
    known = {path: at for path, at in wanted.items() if at is not None}
    held = {at: item for item in source for at in item.places}
    if not known or len(known) < len(wanted):
        return None
    roots = _roots(list(held), [at.path for at in known.values()])
    if len(roots) > 1:
        raise AmbiguousMatch(
            f"expected one model of this structure, received {len(roots)} from {where}: under "
            f"{', '.join(map(repr, roots))}",
            hint=f'leave the others out: exclude="{_readable(roots[-1])}*"',
        )
    pairs = [(held[roots[0] + at.path], path, at) for path, at in known.items()] if roots else []
    _refuse_names(pairs, where)
    _refuse_order(pairs, where)
    return {item.weight.path: path for item, path, _ in pairs} or None


_Found = Sequence[tuple[Item, str, Place]]


def _roots(held: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """What stands before all that is wanted, with the slash after it."""
    there = set(held)
    ends = (at.removesuffix(wanted[0]) for at in held if f"/{at}".endswith(f"/{wanted[0]}"))
    return [root for root in sorted(set(ends)) if all(root + at in there for at in wanted)]


def _readable(root: str) -> str:
    return re.sub(r"#(\d+)", r"*/\1", root)


def _refuse_names(pairs: _Found, where: str) -> None:
    """Raise AmbiguousMatch where a layer's explicit name stands at another weight of the same sort."""
    named: dict[str, list[Item]] = {}
    for item, _, _ in pairs:
        for name in item.called.split("/"):
            named.setdefault(name, []).append(item)
    for item, path, at in pairs:
        for name in set(at.names).difference(item.called.split("/")):
            other = next((o for o in named.get(name, ()) if _alike(item.weight, o.weight)), None)
            if other is not None:
                raise _moved(path, item, other, where)


def _refuse_order(pairs: _Found, where: str) -> None:
    """Raise AmbiguousMatch where layers of one class that have automatic names were made in another order."""
    kin: dict[str, list[tuple[int, int, Item, str]]] = {}
    for item, path, at in pairs:
        ours, theirs = _number(at.owner), _number("/".join(item.called.split("/")[-2:-1]))
        if ours is not None and theirs is not None and ours[0] == theirs[0]:
            kin.setdefault(ours[0], []).append((theirs[1], ours[1], item, path))
    for numbers in kin.values():
        numbers.sort(key=lambda n: n[:2])
        for before, after in pairwise(numbers):
            if before[1] > after[1] and before[0] < after[0]:
                raise _moved(after[3], after[2], before[2], where)


def _number(name: str) -> tuple[str, int] | None:
    """The family and number of an automatic name."""
    found = _NUMBERED.fullmatch(name)
    return None if found is None else (found.group(1), int(found.group(2) or 0))


def _alike(a: Weight, b: Weight) -> bool:
    return a.path != b.path and a.shape == b.shape and a.path.rpartition("/")[2] == b.path.rpartition("/")[2]


def _moved(path: str, item: Item, other: Item, where: str) -> AmbiguousMatch:
    return AmbiguousMatch(
        f"weight {path!r}: expected one source, received two from {where}: {item.weight.path!r} ({item.called}) by "
        f"its place in the model and {other.weight.path!r} ({other.called}) by the names of the layers",
        hint="layers were made, named or put together in another order: name the pairs with rename=",
    )
