"""Haiku's ``EMAParamsTree``: for each weight a module of its own, with ``average``, ``hidden`` and ``counter``.

The module's name is the weight's with ``/`` written as ``__`` and ``~`` as ``_tilde_``. That cannot be undone for
certain, so it is done again to the names of the weights beside it. Modules of other names are averages that layers keep
of what went through them (``BatchNorm``), and no averages of weights.
"""

from __future__ import annotations

from collections.abc import Mapping

from polyak.contents import Contents, Tensor
from polyak.dialects.jax_tree import JaxTree, snapshot, statistics_of
from polyak.dialects.torch_sets import Reading, is_count, number
from polyak.manifest import AVERAGE, RAW
from polyak.snapshot import Snapshot

_AVERAGE, _HIDDEN, _COUNTER = "average", "hidden", "counter"
_MANGLED = "__"  # between a weight's name and that of its module, which every weight of Haiku has


def interpret(contents: Contents) -> Snapshot | None:
    """None unless all averages are of one tree."""
    tree = JaxTree.of(contents)
    averages = {} if tree is None else _averages(tree)
    places = {owner.rpartition("/")[0] for owner in averages}
    if tree is None or not averages or len(places) != 1:
        return None
    place = places.pop()
    short = {owner.rpartition("/")[2]: t for owner, t in averages.items()}
    taken = frozenset(f"{owner}/{_AVERAGE}" for owner in averages)
    count = number(tree.weights[f"{next(iter(averages))}/{_COUNTER}"])
    why = f"{place!r} holds an average, a hidden value and a counter of each weight, as haiku.EMAParamsTree does"
    told = f"the first counter is {count}; the decay is not in the file"
    raws = _raws(tree, short, place)
    if len(raws) != 1:
        end = "the names of the weights are mangled, and no one set of weights beside them has these names"
        return snapshot(tree, Reading("Haiku", {AVERAGE: short}, taken, (why, told, end)))
    start, pairs = next(iter(raws.items()))
    raw = tree.below(start)
    average = {n: short[pairs[n]] if n in pairs else t for n, t in raw.items()}
    taken |= {f"{start}/{n}" if start else n for n in raw}
    pair = f"each has the shape of one weight in {start!r}, and its mangled name"
    return snapshot(
        tree, Reading("Haiku", {RAW: raw, AVERAGE: average}, taken, (why, pair, told)), statistics_of(tree, start, raw)
    )


def _averages(tree: JaxTree) -> dict[str, Tensor]:
    """The averages of weights by the place of their module."""
    found = {}
    for path, tensor in tree.weights.items():
        owner, _, last = path.rpartition("/")
        hidden = tree.weights.get(f"{owner}/{_HIDDEN}")
        counted = is_count(tree.weights.get(f"{owner}/{_COUNTER}"))
        beside = counted and hidden is not None and hidden.shape == tensor.shape
        if last == _AVERAGE and _MANGLED in owner.rpartition("/")[2] and beside:
            found[owner] = tensor
    return found


def mangled(name: str) -> str:
    """A weight's name as Haiku makes it the name of a module.

    Example:
        >>> mangled("mlp/~/linear_0/w")
        'mlp___tilde___linear_0__w'
    """
    return name.replace("/", "__").replace("~", "_tilde_")


def _raws(tree: JaxTree, short: Mapping[str, Tensor], place: str) -> dict[str, dict[str, str]]:
    """Sets beside the averages in which every average has exactly one weight: the averages' names by the weights'."""
    starts: dict[str, dict[str, str]] = {}
    for path, tensor in tree.weights.items():
        steps = path.split("/")
        for n in range(len(steps)) if not path.startswith(f"{place}/") else ():
            name, average = "/".join(steps[n:]), short.get(mangled("/".join(steps[n:])))
            if average is not None and average.shape == tensor.shape:
                starts.setdefault("/".join(steps[:n]), {})[name] = mangled(name)
    return {s: p for s, p in starts.items() if sorted(p.values()) == sorted(short)}
