"""Trees of JAX programs from no tool that is known: a ``TrainState``, the state of ``nnx``, variables of Flax.

Nothing in a tree says whether it is an average, so it is taken as raw, with confidence "unknown". Where its writer
calls a subtree an average (``ema_params`` beside ``params``, an ``nnx.EMA`` under ``ema``), and exactly one other has
its names and shapes, the two are told apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from polyak.contents import Contents, Tensor
from polyak.dialects.called import is_named_after, roles_of, says_average
from polyak.dialects.jax_tree import JaxTree, is_optimizer, snapshot, used, with_statistics
from polyak.dialects.torch_sets import Reading
from polyak.manifest import RAW
from polyak.snapshot import Snapshot

_WRAPPERS = ("params", "ema", "average", "model", "variables")
_IN_OPTIMIZER = re.compile(r"(.+?)/ema/.+")
_PARAMS = "params"
_MOST_AVERAGES = 16
_BESIDE = ("batch_stats", "step", "count", "rng", "key", "epoch", "opt_state")


def interpret(contents: Contents) -> Snapshot | None:
    """None for formats of other programs."""
    tree = JaxTree.of(contents)
    return None if tree is None else _twins(tree) or _alone(tree)


def _twins(tree: JaxTree) -> Snapshot | None:
    """One set, and others with its names and shapes that are called averages."""
    called = _called(tree)
    pairs = {place: tree.places_of(_below(tree, place), called) for place in called[: _MOST_AVERAGES + 1]}
    raws = {raw for found in pairs.values() for raw in found}
    if len(raws) != 1 or not all(pairs.values()) or len(called) > _MOST_AVERAGES:
        return None
    start = raws.pop()
    raw = with_statistics(tree, start)
    averages = {place: _below(tree, place) for place in called}
    names = roles_of(called)
    sets: dict[str, Mapping[str, Tensor]] = {RAW: raw}
    sets |= {names[p]: held | {n: t for n, t in raw.items() if n not in held} for p, held in averages.items()}
    copied = {n for n in raw if not all(n in held for held in averages.values())}
    evidence = tuple(
        f"{p!r} has the names and shapes of {start!r} and is called an average by its writer" for p in called
    )
    why = "the tree does not say how they were averaged; state of momentum has the same names and shapes"
    taken = used(tree, start, *called)
    if _others(tree, taken) and not all(is_named_after(place, start) for place in called):
        return None
    return snapshot(tree, Reading("JAX", sets, taken, (*evidence, why, *_chained(tree))), copied)


def _called(tree: JaxTree) -> list[str]:
    """The outermost places whose name says average."""
    places: dict[str, None] = {}
    for path in tree.weights:
        steps = path.split("/")[:-1]
        found = next((n for n, step in enumerate(steps, 1) if says_average(step)), None)
        if found is not None:
            places["/".join(steps[:found])] = None
    return list(places)


def _others(tree: JaxTree, taken: frozenset[str]) -> bool:
    """Whether there are more arrays, beside those of the training: then two layers may be alike by chance."""
    left = (p for p, t in tree.weights.items() if t.shape and p not in taken)
    return any(not {*p.split("/")} & {*_BESIDE} for p in left)


def _below(tree: JaxTree, place: str) -> dict[str, Tensor]:
    """The weights at a place, without steps around all of them that only wrap."""
    held = tree.below(place)
    while (
        len(first := {n.partition("/")[0] for n in held}) == 1
        and first <= set(_WRAPPERS)
        and len(held) == sum("/" in n for n in held)
    ):
        held = {n.partition("/")[2]: t for n, t in held.items()}
    return held


def _alone(tree: JaxTree) -> Snapshot:
    """One set: what is under ``params``, if nothing but the state of training lies beside it; else every array."""
    base = _common([p.split("/")[:-1] for p in tree.stored])
    base = base[: base.index(_PARAMS)] if _PARAMS in base else base
    start = "/".join([*base, _PARAMS])
    around = f"{'/'.join(base)}/" if base else ""
    beside = {p.removeprefix(around).partition("/")[0] for p in tree.weights} - {_PARAMS, *_BESIDE}
    evidence = ("a set of weights without a word on whether it is an average", *_chained(tree))
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
    found = sorted({m[1] for p in tree.stored if is_optimizer(p) and (m := _IN_OPTIMIZER.fullmatch(p))})
    if not any(f"{place}/count" in tree.stored for place in found):
        return ()
    return (
        f"{found[0]!r} may be of optax.ema; within an optimizer that averages updates, and it is no set of weights",
    )
