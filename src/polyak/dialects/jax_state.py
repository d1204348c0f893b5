"""Trees of JAX programs from no tool that is known: a ``TrainState``, the state of ``nnx``, variables of Flax.

Nothing in a tree says whether it is an average, so it is taken as raw, with confidence "unknown". Where its writer
calls a subtree an average (``ema_params`` beside ``params``, an ``nnx.EMA`` under ``ema``), and exactly one other has
its names and shapes, or of several alone is the one that it is named after, the two are told apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from polyak.contents import Contents, Tensor
from polyak.dialects.called import is_named_after, roles_of, says_average
from polyak.dialects.jax_tree import STATISTICS, JaxTree, snapshot, used, with_statistics
from polyak.dialects.torch_sets import Reading
from polyak.manifest import RAW
from polyak.snapshot import Snapshot

_WRAPPERS = ("params", "ema", "average", "model", "variables")
_IN_OPTIMIZER = re.compile(r"(.+?)/ema/.+")
_PARAMS = "params"
_MOST_AVERAGES = 16
_MOST_NAMED = 3
_BESIDE = (STATISTICS, "step", "count", "rng", "key", "epoch", "opt_state")


def interpret(contents: Contents) -> Snapshot | None:
    """None for formats of other programs."""
    tree = JaxTree.of(contents)
    if tree is None:
        return None
    called = _called(tree)
    raws = _raws(tree, called)
    twins = _twins(tree, raws[0], called) if len(raws) == 1 else None
    return twins or _alone(tree, _untaken(called, raws))


def _raws(tree: JaxTree, called: list[str]) -> list[str]:
    """The places that all that is called an average may be averages of: by its name, where several are alike."""
    if not 0 < len(called) <= _MOST_AVERAGES:
        return []
    pairs = {place: tree.places_of(tree.below(_inner(tree, place)), called) for place in called}
    if not all(pairs.values()):
        return []
    raws = list(dict.fromkeys(raw for found in pairs.values() for raw in found))
    named = [raw for raw in raws if all(_is_named_after(place, raw) for place in called)]
    return named if len(named) == 1 else raws


def _twins(tree: JaxTree, start: str, called: list[str]) -> Snapshot | None:
    """One set, and others with its names and shapes that are called averages."""
    raw = with_statistics(tree, start) if start else _around(tree, called)
    averages = {place: with_statistics(tree, _inner(tree, place)) for place in called}
    names = roles_of(called)
    sets: dict[str, Mapping[str, Tensor]] = {RAW: raw}
    sets |= {names[p]: held | {n: t for n, t in raw.items() if n not in held} for p, held in averages.items()}
    copied = {n for n in raw if not all(n in held for held in averages.values())} | {*tree.statistics(start)}
    evidence = tuple(
        f"{p!r} has the names and shapes of {start or 'the weights around it'!r} and is called an average by its writer"
        for p in called
    )
    why = "the tree does not say how they were averaged; state of momentum has the same names and shapes"
    inner = [_inner(tree, place) for place in called]
    taken = used(tree, *called, *inner, start) if start else used(tree, *called, *inner) | raw.keys()
    layers = _others(tree, taken) or any(_PARAMS in place.split("/")[:-1] for place in called)
    if layers and not all(_is_named_after(place, start) for place in called):
        return None
    return snapshot(tree, Reading("JAX", sets, taken, (*evidence, why, *_chained(tree))), copied)


def _called(tree: JaxTree) -> list[str]:
    """The outermost places whose name says average; statistics that are called so belong to one of the others."""
    places: dict[str, None] = {}
    for path in tree.weights:
        steps = path.split("/")[:-1]
        found = next((n for n, step in enumerate(steps, 1) if says_average(step)), None)
        if found is not None and STATISTICS not in steps[found - 1]:
            places["/".join(steps[:found])] = None
    return list(places)


def _is_named_after(average: str, raw: str) -> bool:
    """Whether something is called an average of what is at a place, or of what wraps that: ``G`` of ``G/params``."""
    owner, _, last = raw.rpartition("/")
    return is_named_after(average, raw) or (bool(owner) and last in _WRAPPERS and is_named_after(average, owner))


def _around(tree: JaxTree, called: list[str]) -> dict[str, Tensor]:
    """The weights at the root, among which the averages of them lie."""
    within = tuple(f"{place}/" for place in called)
    averaged = {n for place in called for n in tree.below(_inner(tree, place))}
    around = {p: t for p, t in tree.weights.items() if not p.startswith(within)}
    return {p: t for p, t in around.items() if p in averaged or p.partition("/")[0] not in _BESIDE}


def _untaken(called: list[str], raws: list[str]) -> tuple[str, ...]:
    """Why nothing is taken for an average where something is called so."""
    if len(raws) < 2:
        return ()
    places = " and ".join(map(repr, raws[:_MOST_NAMED]))
    return tuple(
        f"{place!r} is called an average, and {places} have its names and shapes: none is taken for it"
        for place in called[:_MOST_NAMED]
    )


def _others(tree: JaxTree, taken: frozenset[str]) -> bool:
    """Whether there are more arrays, beside those of the training: then two layers may be alike by chance."""
    left = (p for p, t in tree.weights.items() if t.shape and p not in taken)
    return any(not {*p.split("/")} & {*_BESIDE} for p in left)


def _inner(tree: JaxTree, place: str) -> str:
    """The place of the weights at a place, without steps around all of them that only wrap, and beside statistics."""
    held = tree.below(place)
    first = {n.partition("/")[0] for n in held} if all("/" in n for n in held) else set()
    wrapper = _PARAMS if first == {_PARAMS, STATISTICS} else next(iter(first)) if len(first) == 1 else ""
    return _inner(tree, f"{place}/{wrapper}") if wrapper in _WRAPPERS else place


def _alone(tree: JaxTree, untaken: tuple[str, ...]) -> Snapshot:
    """One set: what is under ``params``, if nothing but the state of training lies beside it; else every array."""
    base = _common([p.split("/")[:-1] for p in tree.stored])
    base = base[: base.index(_PARAMS)] if _PARAMS in base else base
    start = "/".join([*base, _PARAMS])
    around = f"{'/'.join(base)}/" if base else ""
    beside = {p.removeprefix(around).partition("/")[0] for p in tree.weights} - {_PARAMS, *_BESIDE}
    evidence = ("a set of weights without a word on whether it is an average", *untaken, *_chained(tree))
    if tree.below(start) and not beside:
        raw = with_statistics(tree, start)
        copied = raw.keys() - tree.below(start).keys()
        return snapshot(tree, Reading("JAX", {RAW: raw}, used(tree, start), evidence, "unknown"), copied)
    whole = tree.weights
    sets = {RAW: whole} if whole else {}
    return snapshot(tree, Reading("JAX", sets, frozenset(whole), evidence, "unknown"))


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
