"""Trees of JAX programs from no tool that is known: a ``TrainState``, the state of ``nnx``, variables of Flax.

Nothing in a tree says whether it is an average, so it is taken as raw, with confidence "unknown". Where its writer
calls a subtree an average (``ema_params`` beside ``params``, an ``nnx.EMA`` under ``ema``), and exactly one other has
its names and shapes, or of several alone is the one that it is named after, the two are told apart. Layers of one
network may be called so and be alike, too: a part of what is below ``params`` is none, nor is one layer among others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from polyak.contents import Contents, Tensor
from polyak.dialects import optax
from polyak.dialects.called import is_named_after, is_network, is_of_others, roles_of, says_average
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
from polyak.dialects.torch_sets import Reading
from polyak.errors import listed
from polyak.manifest import RAW
from polyak.snapshot import Snapshot

_WRAPPERS = ("params", "ema", "average", "model", "variables")
_HOLDERS = (*_WRAPPERS, "shadow", "shadow_params", "ema_params", "weights")
_NUMBERS = ("step", "count", "decay", "num_updates", "updates", "epoch", "momentum")
_IN_OPTIMIZER = re.compile(r"(.+?)/ema/.+")
_NUMBER = re.compile(r"\d+(\.\d+)?", re.ASCII)
_PARAMS = "params"
_MOST_AVERAGES = 16
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class _Called:
    """What its writer calls an average.

    Attributes:
        place: where it is; ``name`` is the same for all parts of a list.
        inner: where the weights are in it.
        raws: the places that have its names and shapes.
    """

    place: str
    name: str
    inner: str
    raws: tuple[str, ...]

    def is_named_after(self, raw: str) -> bool:
        """Whether it is called an average of what is at a place, or of what wraps that: ``G`` of ``G/params``."""
        owner, _, last = raw.rpartition("/")
        wrapped = bool(owner) and last in _WRAPPERS and is_named_after(self.name, owner)
        return is_named_after(self.name, raw) or wrapped


def interpret(contents: Contents) -> Snapshot | None:
    """None for formats of other programs."""
    tree = JaxTree.of(contents)
    if tree is None:
        return None
    places = _places(tree)
    layers = _layers(tree, places)
    called = _looked_up(tree, [place for place in places if place not in layers])
    raws = _raws(called)
    twins = _twins(tree, raws[0], called) if len(raws) == 1 else None
    many = len(places) - len(layers)
    unread = (f"{many:,} places are called averages: none is taken for one",) if many > _MOST_AVERAGES else ()
    return twins or _alone(tree, (*map(_said, called[:_MOST_NAMED]), *unread, *map(_layer, layers[:_MOST_NAMED])))


def _places(tree: JaxTree) -> dict[str, int]:
    """The outermost places whose name says average, and how many weights are there.

    Statistics that are called so belong to one of the others, or to a layer of Haiku.
    """
    found = {path: place for path in tree.weights if (place := _outermost(path))}
    haikus = {place for path, place in found.items() if _is_haikus(tree, path)}
    return {place: n for place, n in Counter(found.values()).items() if place not in haikus}


def _outermost(path: str) -> str:
    steps = path.split("/")[:-1]
    found = next((n for n, step in enumerate(steps, 1) if says_average(step)), 0)
    place = "/".join(steps[:found])
    return "" if found and (STATISTICS in steps[found - 1] or is_of_others(place)) else place


def _is_haikus(tree: JaxTree, path: str) -> bool:
    """Whether it is a part of an average that a layer of Haiku keeps of what went through it."""
    owner = path.removesuffix("/hidden")
    return owner != path and f"{owner}/average" in tree.weights and f"{owner}/counter" in tree.weights


def _layers(tree: JaxTree, places: Mapping[str, int]) -> list[str]:
    """Places that are a part of a network: below ``params``, with more weights there than they would be averages of."""
    sizes = Counter(map(_network, tree.weights))
    averages: Counter[str] = Counter()
    for place, size in places.items():
        averages[_network(place)] += size
    own = {place: network for place in places if (network := _network(place))}
    return [place for place, network in own.items() if sizes[network] - averages[network] != places[place]]


def _network(path: str) -> str:
    """The ``params`` that a path lies below; "" if there are none."""
    steps = path.split("/")[:-1]
    return "/".join(steps[: steps.index(_PARAMS) + 1]) if _PARAMS in steps else ""


def _looked_up(tree: JaxTree, places: list[str]) -> list[_Called]:
    if len(places) > _MOST_AVERAGES:
        return []
    return [one for place in places for one in _parts(tree, place, places)]


def _parts(tree: JaxTree, place: str, places: list[str]) -> list[_Called]:
    """What is at a place, or in the list there, whose parts may be called by their decays."""
    whole = _one(tree, place, place, places)
    numbers = {n.partition("/")[0] for n in tree.below(place)}
    if whole.raws or not all(map(_NUMBER.fullmatch, numbers)):
        return [whole]
    parts = [_one(tree, f"{place}/{n}", place, places) for n in sorted(numbers, key=float)]
    return parts if all(p.raws for p in parts) and len(parts) <= _MOST_AVERAGES else [whole]


def _one(tree: JaxTree, place: str, name: str, places: list[str]) -> _Called:
    inners = dict.fromkeys((_inner(tree, place), _inner(tree, place, numbers=True)))
    alike = {inner: tree.places_of(tree.below(inner), places) for inner in inners}
    found = {inner: tuple(raw for raw in raws if not is_of_others(raw)) for inner, raws in alike.items()}
    inner = next((inner for inner in found if found[inner]), place)
    return _Called(place, name, inner, found.get(inner, ()))


def _inner(tree: JaxTree, place: str, *, numbers: bool = False) -> str:
    """The place of the weights at a place, without steps around all of them that only wrap, and beside statistics.

    Args:
        numbers: pass over all single numbers there, and not only over those that are called a count or a decay.
    """
    held = [n for n, t in tree.below(place).items() if t.shape or not (n in _NUMBERS or (numbers and "/" not in n))]
    first = {n.partition("/")[0] for n in held} if all("/" in n for n in held) else set()
    wrapper = _PARAMS if first == {_PARAMS, STATISTICS} else next(iter(first)) if len(first) == 1 else ""
    return _inner(tree, f"{place}/{wrapper}", numbers=numbers) if wrapper in _HOLDERS else place


def _raws(called: list[_Called]) -> list[str]:
    """The places that all that is called an average may be averages of: by its name, where several are alike."""
    if not all(one.raws for one in called):
        return []
    raws = list(dict.fromkeys(raw for one in called for raw in one.raws))
    named = [raw for raw in raws if _all_named(called, raw)]
    return named if len(named) == 1 else raws


def _twins(tree: JaxTree, start: str, called: list[_Called]) -> Snapshot | None:
    """One set, and others with its names and shapes that are called averages."""
    network, within = network_of(tree, start, [one.place for one in called])
    averages = {one.place: with_statistics(tree, one.inner) for one in called}
    averaged = {n for held in averages.values() for n in held}
    raw = with_statistics(tree, network) if network else around(tree, averages, averaged)
    names = roles_of(averages)
    sets: dict[str, Mapping[str, Tensor]] = {RAW: raw}
    sets |= {names[p]: completed(held, raw, within) for p, held in averages.items()}
    inner = [one.inner for one in called]
    taken = used(tree, *inner, network) if network else used(tree, *inner) | raw.keys()
    if not all(_is_told(tree, start, one, taken) for one in called) or (within and not _all_named(called, start)):
        return None
    biased = optax.note_of(tree)
    evidence = (*_evidence(tree, network, raw, called), *filter(None, (biased, *_chained(tree))))
    note = "; ".join(filter(None, (biased, _left(tree, taken))))
    return snapshot(
        tree, Reading("JAX", sets, taken, evidence, note=note), statistics_of(tree, network, raw.keys() | averaged)
    )


def _all_named(called: list[_Called], start: str) -> bool:
    return all(one.is_named_after(start) for one in called)


def _evidence(tree: JaxTree, start: str, raw: Mapping[str, Tensor], called: list[_Called]) -> tuple[str, ...]:
    own = tree.below(start) if start else raw
    told = (
        f"{one.place!r} has {own_names(start, own, tree.below(one.inner))} and is called an average by its writer"
        for one in called
    )
    return (*told, "the tree does not say how they were averaged; state of momentum has the same names and shapes")


def _is_told(tree: JaxTree, start: str, one: _Called, taken: frozenset[str]) -> bool:
    """Whether the two are no layers of one network, which may be alike by chance where there is more than them."""
    others = bool(_others(tree, taken))
    if (_network(one.place) or others) and not one.is_named_after(start):
        return False
    deep = any("/" in n for n in tree.below(one.inner))
    return not others or is_network(one.name, start, deep=deep)


def _others(tree: JaxTree, taken: frozenset[str]) -> list[str]:
    """More arrays, beside those of the training."""
    left = (p for p, t in tree.weights.items() if t.shape and p not in taken)
    return [p for p in left if not {*p.split("/")} & {*BESIDE}]


def _left(tree: JaxTree, taken: frozenset[str]) -> str:
    """A word on arrays that may be weights, too, and are in no set."""
    counts = Counter(p.partition("/")[0] for p in _others(tree, taken))
    told = [f"{place!r} ({n} array{'s' * (n > 1)})" for place, n in counts.items()]
    return f"left with the state of the training: {listed(told, _MOST_NAMED)}" if told else ""


def _said(one: _Called) -> str:
    """Why something is not taken for an average though it is called so."""
    places = " and ".join(map(repr, one.raws[:_MOST_NAMED]))
    if not one.raws:
        return f"{one.place!r} is called an average, and no one set beside it has its names and shapes"
    if len(one.raws) == 1:
        return (
            f"{one.place!r} is called an average and has the names and shapes of {places}; there are more weights or "
            "averages, so that both may be parts of one network: it is not taken for one"
        )
    return f"{one.place!r} is called an average, and {places} have its names and shapes: none is taken for it"


def _layer(place: str) -> str:
    return f"{place!r} is called an average and lies among layers of one network: it is taken for one of these"


def _alone(tree: JaxTree, untaken: tuple[str, ...]) -> Snapshot:
    """One set: what is under ``params``, if nothing but the state of training lies beside it; else every array."""
    base = _common([p.split("/")[:-1] for p in tree.stored])
    base = base[: base.index(_PARAMS)] if _PARAMS in base else base
    start = "/".join([*base, _PARAMS])
    around = f"{'/'.join(base)}/" if base else ""
    beside = {p.removeprefix(around).partition("/")[0] for p in tree.weights} - {_PARAMS, *BESIDE}
    note = optax.note_of(tree)
    told = (*untaken, *filter(None, (note, *_chained(tree))))
    evidence = ("a set of weights without a word on whether it is an average", *told)
    if tree.below(start) and not beside:
        raw = with_statistics(tree, start)
        copied = raw.keys() - tree.below(start).keys()
        return snapshot(tree, Reading("JAX", {RAW: raw}, used(tree, start), evidence, "unknown", note=note), copied)
    whole = tree.weights
    sets = {RAW: whole} if whole else {}
    return snapshot(tree, Reading("JAX", sets, frozenset(whole), evidence, "unknown", note=note))


def _common(places: list[list[str]]) -> list[str]:
    """The steps that all places begin with."""
    common = min(places, default=[])
    return [s for n, s in enumerate(common) if all(p[: n + 1] == common[: n + 1] for p in places)]


def _chained(tree: JaxTree) -> tuple[str, ...]:
    """A word on ``optax.ema`` within an optimizer, which a reader may take for an average of the weights."""
    found = sorted({m[1] for p in tree.stored if tree.is_optimizer(p) and (m := _IN_OPTIMIZER.fullmatch(p))})
    if not any(f"{place}/count" in tree.stored for place in found):
        return ()
    return (
        f"{found[0]!r} may be of optax.ema; within an optimizer that averages updates, and it is no set of weights",
    )
