"""``optax.ema``: its state holds a counter and the average of what went through it, which starts at zero.

Outside of an optimizer's state it is an average of the weights beside it. Within one it averages updates, because
that is what goes through the chain of an optimizer; there it is no set of weights. A numbered part of a chain is one
of an optimizer, whatever its place is called.

Source: ``optax/transforms/_accumulation.py``: whether it debiases or not, the values in the state are the biased ones.
"""

from __future__ import annotations

from polyak.contents import Contents
from polyak.dialects.jax_tree import JaxTree, snapshot, used, with_statistics
from polyak.dialects.torch_sets import Reading, is_count, number
from polyak.manifest import AVERAGE, RAW
from polyak.snapshot import Snapshot

_COUNT, _EMA = "count", "ema"
_MOST_COUNTERS = 64
_USUAL = (0.999, 0.9999)


def interpret(contents: Contents) -> Snapshot | None:
    """None unless one state lies outside of optimizers, and one set has its names and shapes."""
    tree = JaxTree.of(contents)
    states = [] if tree is None else _states(tree)
    if tree is None or len(states) != 1:
        return None
    place = states[0]
    average = tree.below(_joined(place, _EMA))
    raws = tree.places_of(average, [place])
    if len(raws) != 1:
        return None
    raw = with_statistics(tree, raws[0])
    copied = raw.keys() - average.keys()
    count = number(tree.weights[_joined(place, _COUNT)])
    note = (
        f"the average is stored as optax.ema keeps it, without its correction for the start at zero: divide by "
        f"1 - decay**{count}, where the decay is not in the file; {_shares(int(count or 0))}"
    )
    why = (
        f"{place!r} holds a counter, which is {count}, and averages with the names and shapes of {raws[0]!r}, as the "
        "state of optax.ema does"
    )
    taken = used(tree, raws[0], _joined(place, _EMA))
    sets = {RAW: raw, AVERAGE: average | {n: raw[n] for n in raw if n in copied}}
    return snapshot(tree, Reading("optax", sets, taken, (why, note), note=note), copied)


def _shares(count: int) -> str:
    """How much of the right values is there, by usual decays."""
    return "it is " + " or ".join(f"{1 - decay**count:.2%} of the right values with decay {decay}" for decay in _USUAL)


def _joined(place: str, step: str) -> str:
    return f"{place}/{step}" if place else step


def _states(tree: JaxTree) -> list[str]:
    """Places that hold a counter and a subtree of averages, and nothing else."""
    counters = [p for p in tree.weights if p == _COUNT or p.endswith(f"/{_COUNT}")]
    places = [p.removesuffix(_COUNT).removesuffix("/") for p in counters if is_count(tree.weights[p])]
    places = [place for place in places if place]
    return [place for place in places if _is_state(tree, place)] if len(places) <= _MOST_COUNTERS else []


def _is_state(tree: JaxTree, place: str) -> bool:
    names = set(tree.below(place)) - {_COUNT}
    return bool(names) and all(n.startswith(f"{_EMA}/") for n in names)
