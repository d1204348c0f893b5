"""``optax.ema``: its state holds a counter and the average of what went through it, which starts at zero.

Outside of an optimizer's state it is an average of the weights beside it. Within one it averages updates, because
that is what goes through the chain of an optimizer; there it is no set of weights. A numbered part of a chain is one
of an optimizer, whatever its place is called.

Source: ``optax/transforms/_accumulation.py``: whether it debiases or not, the values in the state are the biased ones.
"""

from __future__ import annotations

from collections.abc import Mapping

from polyak.contents import Contents, Tensor
from polyak.dialects.called import is_named_after, is_of_others
from polyak.dialects.jax_tree import (
    BESIDE,
    STATISTICS,
    JaxTree,
    around,
    completed,
    network_of,
    own_names,
    snapshot,
    statistics_of,
    used,
    with_statistics,
)
from polyak.dialects.torch_sets import Reading, is_count
from polyak.errors import listed
from polyak.manifest import AVERAGE, RAW
from polyak.snapshot import Snapshot

_COUNT, _EMA, _PARAMS = "count", "ema", "params"
_MOST_COUNTERS, _MOST_TOLD = 64, 3
_USUAL = (0.999, 0.9999)
_SLOW, _ENOUGH = 0.99999, 0.9999
# Other modules look for this, to say so where such an average is handed over.
_BIASED = "as optax.ema keeps it, without its correction for the start at zero"


Found = tuple[Mapping[str, Mapping[str, Tensor]], frozenset[str]]


def interpret(contents: Contents) -> Snapshot | None:
    """None unless one state lies outside of optimizers, and one set has its names and shapes, or none is beside it."""
    tree = JaxTree.of(contents)
    states = [] if tree is None else _states(tree)
    if tree is None or len(states) != 1:
        return None
    place = states[0]
    inner = _variables(tree, _joined(place, _EMA))
    raws = tree.places_of(tree.below(inner), [place] if place else [inner])
    named = [raw for raw in raws if is_named_after(place, raw)] if len(raws) > 1 else raws
    if len(named) == 1:
        return _pair(tree, place, inner, named[0])
    return None if raws or not _is_alone(tree, place) else _average(tree, place, inner)


def _pair(tree: JaxTree, place: str, inner: str, start: str) -> Snapshot:
    own, (network, within) = tree.below(inner), network_of(tree, start, [place])
    raw = with_statistics(tree, network) if network else around(tree, [place], own)
    sets: Mapping[str, Mapping[str, Tensor]] = {RAW: raw, AVERAGE: completed(with_statistics(tree, inner), raw, within)}
    why = f"averages with {own_names(network, tree.below(network) if network else raw, own)}"
    taken = used(tree, inner, network) if network else used(tree, inner) | raw.keys()
    return snapshot(tree, _reading(tree, place, why, (sets, taken)), statistics_of(tree, network, sets[AVERAGE]))


def _average(tree: JaxTree, place: str, inner: str) -> Snapshot:
    """A state with no weights beside it."""
    held = with_statistics(tree, inner)
    found: Found = ({AVERAGE: held}, used(tree, inner))
    return snapshot(tree, _reading(tree, place, "averages", found), statistics_of(tree, inner, held))


def _reading(tree: JaxTree, place: str, why: str, found: Found) -> Reading:
    count = _count(tree, place)
    note = _note(count)
    where = repr(place) if place else "the tree"
    told = f"{where} holds a counter, which is {count}, and {why}, as the state of optax.ema does"
    return Reading("optax", *found, (told, note), note=note)


def _note(count: int) -> str:
    if count <= 0:
        return f"the average is stored {_BIASED}; its counter is {count}: it has not moved, and holds zeros"
    if 1 - _SLOW**count > _ENOUGH:
        return (
            f"the average is stored as optax.ema keeps it, without its correction, which after {count:,} updates is "
            f"below {1 - _ENOUGH:.2%} for decays up to {_SLOW}"
        )
    return (
        f"the average is stored {_BIASED}: divide by 1 - decay**{count}, where the decay is not in the file; "
        f"{_shares(count)}"
    )


def note_of(tree: JaxTree) -> str:
    """A word on states of ``optax.ema`` that are several, or not told apart from the weights; "" if there are none."""
    counts = {_joined(place, _EMA): _count(tree, place) for place in _states(tree)}
    young = {place: n for place, n in counts.items() if n <= 0 or 1 - _SLOW**n <= _ENOUGH}
    if not young:
        return ""
    told = [f"{place!r} (counter {n:,})" for place, n in young.items()]
    return (
        f"what is at {listed(told, _MOST_TOLD)} is stored {_BIASED}; divide it by 1 - decay**counter, where the "
        "decay is not in the file"
    )


def _shares(count: int) -> str:
    """How much of the right values is there, by usual decays."""
    return "it is " + " or ".join(f"{1 - decay**count:.2%} of the right values with decay {decay}" for decay in _USUAL)


def _joined(place: str, step: str) -> str:
    return f"{place}/{step}" if place else step


def _count(tree: JaxTree, place: str) -> int:
    return int(tree.weights[_joined(place, _COUNT)].read().reshape(-1)[0])


def _variables(tree: JaxTree, place: str) -> str:
    """The weights in averages of all that Flax calls variables."""
    first = {n.partition("/")[0] for n in tree.below(place)}
    return f"{place}/{_PARAMS}" if _PARAMS in first and first <= {_PARAMS, STATISTICS} else place


def _is_alone(tree: JaxTree, place: str) -> bool:
    """Whether nothing but the training is beside a state."""
    start = f"{place}/" if place else ""
    left = (p for p, t in tree.weights.items() if t.shape and not p.startswith(start))
    return all({*p.split("/")} & {*BESIDE} for p in left)


def _states(tree: JaxTree) -> list[str]:
    """Places that hold a counter and a subtree of averages, and nothing else."""
    counters = [p for p in tree.weights if p == _COUNT or p.endswith(f"/{_COUNT}")]
    places = [p.removesuffix(_COUNT).removesuffix("/") for p in counters if is_count(tree.weights[p])]
    held = [place for place in places if not is_of_others(place)]
    return [place for place in held if _is_state(tree, place)] if len(held) <= _MOST_COUNTERS else []


def _is_state(tree: JaxTree, place: str) -> bool:
    names = set(tree.below(place)) - {_COUNT}
    return bool(names) and all(n.startswith(f"{_EMA}/") for n in names)
