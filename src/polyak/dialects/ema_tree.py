"""Trees that ``ema.tree()`` of polyak gives, as a JAX program saves them with its own state by Orbax or Flax.

Such a tree holds the shadows by the paths of their weights, and two counts; no rule, which the program knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from polyak.contents import Contents, Tensor
from polyak.dialects.called import roles_of
from polyak.dialects.jax_tree import JaxTree, snapshot, used
from polyak.dialects.torch_sets import Reading, is_count
from polyak.errors import listed
from polyak.manifest import RAW
from polyak.snapshot import Snapshot

_SHADOWS, _COUNTS = "shadows", ("count", "skipped")
_MOST = 16
_MOVING = ("moving_mean", "moving_variance")  # as Keras calls them


def interpret(contents: Contents) -> Snapshot | None:
    """None where no such tree is in the file."""
    tree = JaxTree.of(contents)
    places = [] if tree is None else _places(tree)
    if tree is None or not 0 < len(places) <= _MOST:
        return None
    names = roles_of(places)
    averages = {place: tree.below(_below(place, _SHADOWS)) for place in places}
    sets: dict[str, Mapping[str, Tensor]] = {names[place]: held for place, held in averages.items()}
    raw = _raw(tree, averages)
    if raw is not None:
        sets = {RAW: tree.below(raw)} | sets
    taken = used(tree, *places, *([] if raw is None else [raw]))
    note = "; ".join(_said(tree, place) for place in places)
    held = snapshot(tree, Reading("polyak", sets, taken, (_why(places), note), "stated", note=note), _statistics(sets))
    return _in_keras_layout(held)


def _places(tree: JaxTree) -> list[str]:
    """Where two counts lie beside shadows, and nothing else does."""
    ends = [p for p in tree.weights if p == _COUNTS[0] or p.endswith(f"/{_COUNTS[0]}")]
    places = [p.removesuffix(_COUNTS[0]).removesuffix("/") for p in ends]
    return [place for place in places if _is_tree(tree.below(place))]


def _is_tree(held: Mapping[str, Tensor]) -> bool:
    shadows = [name for name in held if name not in _COUNTS]
    return (
        bool(shadows)
        and all(is_count(held.get(name)) for name in _COUNTS)
        and all(name.startswith(f"{_SHADOWS}/") for name in shadows)
    )


def _raw(tree: JaxTree, averages: Mapping[str, Mapping[str, Tensor]]) -> str | None:
    """The one place at which all averages' weights are, too, by the same names; a program may keep them as lists."""
    own = [_below(place, _SHADOWS) for place in averages]
    found = [tree.places_of(held, own) for held in averages.values()]
    if not all(len(places) == 1 for places in found):
        return None
    places = {places[0] for places in found}
    return places.pop() if len(places) == 1 else None


def _statistics(sets: Mapping[str, Mapping[str, Tensor]]) -> set[str]:
    return {name for held in sets.values() for name in held if name.rpartition("/")[2] in _MOVING}


def _said(tree: JaxTree, place: str) -> str:
    made, skipped = (int(tree.weights[_below(place, name)].read().reshape(-1)[0]) for name in _COUNTS)
    left = f", and left out {skipped:,}" if skipped else ""
    return f"the average {_named(place)} has made {made:,} updates{left}; its rule is not in the tree"


def _why(places: Sequence[str]) -> str:
    return f"{listed([_named(place) for place in places])} has what ema.tree() of polyak gives: shadows and two counts"


def _in_keras_layout(held: Snapshot) -> Snapshot:
    """Such averages are of Keras models, and so are their arrays."""
    written = msgspec.structs.replace(held.manifest, layout="keras")
    return Snapshot(held.items_by_path.values(), held.states, held.origin, held.integrity, written, held.moment)


def _named(place: str) -> str:
    return repr(place) if place else "at the root"


def _below(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name
