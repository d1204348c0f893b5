"""Trees of arrays as JAX programs save them (Orbax, Flax): the sets of weights in them, and a snapshot of those.

A set is a subtree: weights by their path below it. An optimizer's state repeats the names and shapes of the weights
several times over, so subtrees of an optimizer are never a set.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice

from polyak.contents import Contents, Tensor
from polyak.dialects.nnx import short_names
from polyak.dialects.plain import item
from polyak.dialects.torch_sets import OPTIMIZER, TRAINING, Reading, is_count
from polyak.manifest import Manifest
from polyak.snapshot import Item, Snapshot
from polyak.weights import Kind, is_floating

FORMATS = ("orbax", "flax")
# Names of nothing but an optimizer's state; names that a layer may have, too, which lies below ``params``; and short
# names, which tell only where what optax keeps lies below them.
_STATE = re.compile(r"(^|/)(\w+_)?(opt|optim|optimi[sz]ers?|optax|tx)_?states?\d*(_\w{1,2})?(/|$)", re.IGNORECASE)
_NAMED = re.compile(r"(^|/)(opts?|optim|(\w+_)?optimi[sz]ers?(_\w+)?)(/|$)")
_SHORT = re.compile(
    r"((?:.*/)?(?:tx|updater|(?:\w+_)?(?:opts?|optim|optax)\d*(?:_\w{1,2})?)/)"
    r"(?:(?:\d+|inner_states?)/)*(?:mu|nu|trace|(?<=\d/)ema)/.+"
)
_PART = re.compile(r"((?:\d+/)*)(count|mu|nu|nu_max|trace|ema)(?:/(.+))?")
STATISTICS = "batch_stats"
# Places of the training beside weights at a root.
BESIDE = (STATISTICS, "step", "count", "rng", "key", "epoch", "opt_state")
_MOMENTS = {"mean", "var"}
_PARAMS = "params"
_MOST_LOOKED_AT, _MOST_PLACES = 1000, 16


@dataclass(frozen=True)
class JaxTree:
    """The arrays of a file by path. ``nnx`` keeps each in a Variable, whose last step is left out here."""

    contents: Contents
    stored: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, contents: Contents) -> JaxTree | None:
        """None for other formats, and for what polyak wrote."""
        if contents.format not in FORMATS or contents.manifest is not None:
            return None
        short = short_names(contents.tensors, lambda name: not contents.tensors[name].shape or _is_named_state(name))
        return cls(contents, {path: name for name, path in short.items()})

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Everything that belongs to no optimizer."""
        return {p: t for p, t in self._all.items() if not self.is_optimizer(p)}

    def is_optimizer(self, path: str) -> bool:
        """Whether a place belongs to an optimizer, by the names that Flax, Keras and users give it, or by its form."""
        return _is_named_state(path) or path.startswith(self._chains)

    @cached_property
    def _chains(self) -> tuple[str, ...]:
        """Places of what optax keeps, under a short name or under one that tells nothing."""
        short = (m[1] for p in self.stored if (m := _SHORT.fullmatch(p)) and _above(m[1]) == m[1])
        counted = (p.removesuffix("count") for p in self.stored if p.endswith("/count") and self._counts(p))
        states = [place for place in counted if _above(place) == place]
        lists = tuple(filter(self._is_chain, dict.fromkeys(map(_chain, states))))
        single = (place for place in states if not place.startswith(lists) and self._is_chain(place))
        return tuple(dict.fromkeys((*short, *lists, *single)))

    def _is_chain(self, place: str) -> bool:
        """Whether optax keeps all that is there, and a part of it is moments of weights that are elsewhere."""
        trees: dict[str, dict[str, Tensor]] = {}
        for path in self._starting(place):
            part = _PART.fullmatch(path.removeprefix(place))
            if part is None:
                return False
            if part[3]:
                trees.setdefault(part[1] + part[2], {})[part[3]] = self._all[path]
        moments = (t for p, t in trees.items() if p.endswith("trace") or (p.endswith("mu") and f"{p[:-2]}nu" in trees))
        return any(self._is_elsewhere(tree, place) for tree in moments)

    def _is_elsewhere(self, tree: Mapping[str, Tensor], place: str) -> bool:
        """Whether names and shapes are also those of something outside of a place."""
        starts = [start for start in self._starts(min(tree), self._all) if not f"{start}/".startswith(place)]
        return len(starts) <= _MOST_LOOKED_AT and any(_holds(self._all, start, tree) for start in starts)

    def _starting(self, place: str) -> Iterator[str]:
        names = self._sorted
        for name in islice(names, bisect_left(names, place), None):
            if not name.startswith(place):
                return
            yield name

    @cached_property
    def _sorted(self) -> list[str]:
        return sorted(self.stored)

    @cached_property
    def _all(self) -> dict[str, Tensor]:
        return {path: self.contents.tensors[name] for path, name in self.stored.items()}

    def _counts(self, path: str) -> bool:
        return is_count(self._all[path])

    def _starts(self, name: str, among: Mapping[str, Tensor]) -> list[str]:
        """The places below which something of this name is."""
        ends = (p for p in self._by_last.get(name.rpartition("/")[2], ()) if p in among)
        return [p.removesuffix(name).removesuffix("/") for p in ends if f"/{p}".endswith(f"/{name}")]

    @cached_property
    def _by_last(self) -> Mapping[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in self.stored:
            found.setdefault(path.rpartition("/")[2], []).append(path)
        return found

    def below(self, prefix: str) -> dict[str, Tensor]:
        """The set at a place, by the paths below it."""
        start = f"{prefix}/" if prefix else ""
        return {p.removeprefix(start): t for p, t in self.weights.items() if p.startswith(start)}

    def places_of(self, tensors: Mapping[str, Tensor], but: Iterable[str]) -> list[str]:
        """Where all of these names are, with the same shapes; an exact set goes before a larger one.

        Args:
            but: places in which, and around which, not to look.
        """
        if not tensors:
            return []
        first = min(tensors, key=lambda n: (len(self._by_last.get(n.rpartition("/")[2], ())), n))
        places = self._starts(first, self.weights)
        if len(places) > _MOST_LOOKED_AT:
            return []
        avoided = tuple(but)
        fitting = [q for q in places if not any(_overlap(q, a) for a in avoided) and _holds(self.weights, q, tensors)]
        if len(fitting) > _MOST_PLACES:
            return []
        exact = [q for q in fitting if len(self.below(q)) == len(tensors)]
        return exact or fitting

    def statistics(self, place: str) -> dict[str, str]:
        """The moving statistics beside a set: stored path by the path that they have in the set.

        Those of ``ema_params`` may be ``ema_batch_stats``; otherwise they are those of the set that it is made of.
        """
        parent, slash, last = place.rpartition("/")
        own = (last.replace(_PARAMS, STATISTICS),) if _PARAMS in last else ()
        found = (self._renamed(f"{parent}{slash}{name}/") for name in (*own, STATISTICS) if place)
        return next(filter(None, found), {})

    def _renamed(self, start: str) -> dict[str, str]:
        return {p.removeprefix(start): p for p in self.weights if p.startswith(start)}


def _is_named_state(path: str) -> bool:
    return bool(_STATE.search(path) or _NAMED.search(_above(path)))


def _overlap(place: str, other: str) -> bool:
    """Whether one place lies in the other. The root is around everything, so it overlaps nothing by that."""
    return place == other or place.startswith(f"{other}/") or (bool(place) and other.startswith(f"{place}/"))


def _holds(held: Mapping[str, Tensor], place: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether all of these names are at a place, with the same shapes."""
    start = f"{place}/" if place else ""
    return all((t := held.get(start + n)) is not None and t.shape == w.shape for n, w in tensors.items())


def _above(path: str) -> str:
    """The part of a path that comes before ``params``."""
    steps = path.split("/")
    return path if _PARAMS not in steps else "".join(f"{step}/" for step in steps[: steps.index(_PARAMS)])


def _chain(state: str) -> str:
    """The place of a chain, given that of a state in it: without the numbers at its end."""
    steps = state.removesuffix("/").split("/")
    while len(steps) > 1 and steps[-1].isdigit():
        steps.pop()
    return "".join(f"{step}/" for step in steps)


def with_statistics(tree: JaxTree, place: str) -> dict[str, Tensor]:
    """The set at a place, and the moving statistics of its layers."""
    held = tree.below(place)
    return held | {n: tree.weights[p] for n, p in tree.statistics(place).items() if n not in held}


def network_of(tree: JaxTree, start: str, averages: Iterable[str]) -> tuple[str, str]:
    """The network that a set is a part of, and the names' start in it; the set itself and "" where it is no part.

    A part is what lies below ``params`` beside other weights, if the averages of it lie elsewhere.
    """
    steps = start.split("/")
    network = "/".join(steps[: steps.index(_PARAMS) + 1]) if _PARAMS in steps else start
    within = any(place.startswith(f"{network}/") for place in averages)
    if within or network == start or len(tree.below(network)) == len(tree.below(start)):
        return start, ""
    return network, f"{start.removeprefix(network + '/')}/"


def around(tree: JaxTree, within: Iterable[str], averaged: Container[str]) -> dict[str, Tensor]:
    """The weights at the root, less what lies at places ``within`` it, and less the training unless it is averaged."""
    starts = tuple(f"{place}/" for place in within)
    held = {p: t for p, t in tree.weights.items() if not p.startswith(starts)}
    return {p: t for p, t in held.items() if p in averaged or p.partition("/")[0] not in BESIDE}


def statistics_of(tree: JaxTree, place: str, names: Iterable[str]) -> frozenset[str]:
    """Those of a set's names that are moving statistics: ``batch_stats``, or mean and variance of one layer."""
    held = {*names}
    owners = {n: n.rpartition("/")[0] for n in held if n.rpartition("/")[2] in _MOMENTS}
    return frozenset(n for n, o in owners.items() if all(f"{o}/{m}".strip("/") in held for m in _MOMENTS)) | frozenset(
        tree.statistics(place)
    )


def own_names(place: str, raw: Collection[str], average: Collection[str]) -> str:
    """How an average stands to a set without its statistics, for evidence: a part of it has its names, or all."""
    count = f" of {len(average)} of the {len(raw)} weights" if len(average) < len(raw) else ""
    if place:
        return f"the names and shapes{count} of {place!r}"
    return f"the names and shapes{count or ' of the weights'} around it"


def completed(held: Mapping[str, Tensor], raw: Mapping[str, Tensor], within: str = "") -> dict[str, Tensor]:
    """An average with all the names of a set: what is not averaged is the same in both.

    Args:
        within: the names' start in the set; statistics of the whole set may lie beside an average of a part.
    """
    named = {f"{within}{n}": t for n, t in held.items()}
    more = {n: t for n, t in named.items() if n.removeprefix(within) not in raw}
    return {n: named.get(n, t) for n, t in raw.items()} | more


def used(tree: JaxTree, *places: str) -> frozenset[str]:
    """The paths of sets, and of the statistics beside them."""
    starts = tuple(f"{p}/" for p in places if p)
    beside = (p for place in places for p in tree.statistics(place).values())
    return frozenset(p for p in tree.weights if p.startswith(starts) or "" in places) | frozenset(beside)


def snapshot(tree: JaxTree, reading: Reading, statistics: Iterable[str] = ()) -> Snapshot:
    """The sets in their roles, and all that is left as state of the optimizer or the training.

    Args:
        statistics: names of moving statistics.
    """
    copied = frozenset(statistics)
    items = [_item(role, n, t, copied) for role, held in reading.sets.items() for n, t in held.items()]
    left = [p for p in tree.stored if p not in reading.used]
    contents = tree.contents
    roles = {p: OPTIMIZER if tree.is_optimizer(p) else TRAINING for p in left}
    items += (item(role, p, contents.tensors[tree.stored[p]]) for p, role in roles.items())
    written = Manifest(
        reading.tool,
        {},
        (),
        source=contents.origin,
        note=reading.note,
        evidence=reading.evidence,
        confidence=reading.confidence,
        layout="jax",
    )
    return Snapshot(items, None, contents.origin, contents.integrity, written)


def _item(role: str, name: str, tensor: Tensor, copied: frozenset[str]) -> Item:
    made = item(role, name, tensor)
    if name not in copied or not is_floating(tensor.dtype):
        return made
    return replace(made, weight=replace(made.weight, kind=Kind.STATISTIC))
