"""A mixture of averages of one run, one array at a time: coefficients of any sign, whose sum is about one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, count, pairwise
from typing import final

import numpy as np

from polyak.combine.average import Read, Watch, common_layout, finite, in_parts, refuse_mixed, watched_read
from polyak.combine.blocks import Array, blocks, same_bits, wide
from polyak.combine.telling import EVIDENCE, fitting, unread
from polyak.errors import WeightError, argument
from polyak.manifest import AVERAGE, Manifest, State, digest
from polyak.snapshot import Item, Snapshot, tool, versions
from polyak.weights import Kind, Weight

_WHOLE = 1e-9


@dataclass(frozen=True, slots=True)
class Ingredient:
    """One of the kept averages that a synthesized one is made of.

    Attributes:
        source: its label.
        rule: the rule it was averaged by, as text.
        count: the updates it had seen.
        coefficient: its part; negative ones are usual.
    """

    source: str
    rule: str
    count: int
    coefficient: float


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make an average of others.

    Attributes:
        rule: the rule that is approximated, as text; ``state`` has it as data, with the count.
        ingredients: what it is made of, in the order of the members.
        error: distance of the mixture's shares of the past from the rule's, relative to the norm of the rule's.
    """

    rule: str
    state: State
    ingredients: tuple[Ingredient, ...]
    error: float

    @property
    def norm(self) -> float:
        """Euclidean norm of the coefficients."""
        return math.sqrt(math.fsum(i.coefficient**2 for i in self.ingredients))

    def evidence(self) -> tuple[str, ...]:
        """The recipe in sentences, for the manifest."""
        head = (
            f"synthesized {self.rule} after {self.state.count} updates: relative profile error {self.error:.3g}, "
            f"norm of the coefficients {self.norm:.3g}"
        )
        parts = [f"{i.coefficient:+.6g} of {i.source}: {i.rule} after {i.count} updates" for i in self.ingredients]
        return (head, *fitting(parts, EVIDENCE))


@final
class Synthesis(Snapshot):
    """A synthesized average: a snapshot of role "average" whose arrays are computed when they are read.

    Attributes:
        rule: the rule that it approximates, as text.
        ingredients: what it is made of.
        error: distance of its shares of the past from those of the rule, relative to the norm of those.
        norm: Euclidean norm of the coefficients, by which independent rounding errors of the ingredients grow.
    """

    def __init__(self, items: Sequence[Item], recipe: Recipe, layout: str, left: dict[str, str]) -> None:
        written = Manifest(tool(), {}, (), versions=versions(), evidence=recipe.evidence(), layout=layout, unread=left)
        super().__init__(items, {AVERAGE: recipe.state}, f"synthesized {recipe.rule}", written=written)
        self.rule = recipe.rule
        self.ingredients = recipe.ingredients
        self.error = recipe.error
        self.norm = recipe.norm


def mixed(members: Sequence[Snapshot], recipe: Recipe, watch: Watch | None = None) -> Synthesis:
    """The mixture of averages by a recipe, in float64, rounded once to the members' dtype.

    A weight that is the same in all members keeps its bits. What an average copies from its model, such as moving
    statistics and counters, is that of the last member up to the recipe's count, or of the first one after it.
    Memory of one read: at most four times the array, or three times and 128 MiB.

    Args:
        members: averages of one structure, as ``refuse_two_clocks`` wants them.
        recipe: with an ingredient for each.
        watch: told of each array before it is computed: name, how many are done, of how many.

    Raises:
        NonFinite: when an array is read that has NaN or infinity in one member.

    Example:
        >>> arrays = [{"w": np.float32([v, 1])} for v in (1, 2)]
        >>> parts = Ingredient("a", "mean", 1, -1.0), Ingredient("b", "mean", 2, 2.0)
        >>> recipe = Recipe("copy", State({"rule": "copy"}, 2), parts, 0.0)
        >>> mixed([Snapshot.from_arrays(a, "average") for a in arrays], recipe)["w"].tolist()
        [3.0, 1.0]
    """
    copied = members[_nearest(recipe)]
    turn, weights = count(), copied.weights
    return Synthesis(
        [
            Item(AVERAGE, w, watched_read(_reader(members, copied, recipe, w), watch, w.path, turn, len(weights)))
            for w in weights
        ],
        recipe,
        common_layout(members),
        unread(members),
    )


def refuse_two_runs(members: Sequence[Snapshot], recipes: Sequence[tuple[str, int]]) -> tuple[int, ...]:
    """The indices of members without those that are there twice.

    Args:
        recipes: rule and count of each.

    Raises:
        WeightError: two averages of one rule after as many updates hold other values, or updates were refused in an
            order that no single run has.
    """
    twice = set()
    for i, j in combinations(range(len(members)), 2):
        if recipes[i] == recipes[j]:
            _refuse_other_values(members[i], members[j], recipes[i])
            twice.add(j)
    ranked = sorted(range(len(members)), key=lambda i: recipes[i][1])
    for i, j in pairwise(ranked):
        _refuse_other_skips(members[i], members[j])
    return tuple(i for i in range(len(members)) if i not in twice)


def _refuse_other_values(one: Snapshot, other: Snapshot, recipe: tuple[str, int]) -> None:
    refuse_mixed([one, other])
    for name in one:
        if not same_bits(one[name], other[name]):
            raise WeightError(
                f"weight {name!r}: expected snapshots of one run, received other values from {one.origin} and "
                f"{other.origin}, both {recipe[0]} after {recipe[1]:,} updates",
                hint="leave out the snapshots of the other run",
            )


def _refuse_other_skips(one: Snapshot, other: Snapshot) -> None:
    """A run refuses more and more updates; what its averages count at one time is the same."""
    a, b = one.state, other.state
    if a is None or b is None or a.skipped == b.skipped or (a.count < b.count and a.skipped < b.skipped):
        return
    raise WeightError(
        f"expected snapshots of one run, received {a.skipped:,} refused updates after {a.count:,} from "
        f"{one.origin} and {b.skipped:,} after {b.count:,} from {other.origin}",
        hint="leave out the snapshots of the other run",
    )


def refuse_two_clocks(members: Sequence[Snapshot], clocks: Sequence[tuple[str, int]]) -> None:
    """Raise where what the averages copied from their model shows that their counts began at different steps.

    Averages of one run that moved at one update hold the same copies, and those of another update hold others: moving
    statistics, counters and random seeds change with every step. A copy that one average holds after two updates does
    not, and tells nothing. Recomputed statistics are an average's own, so that they may differ at one update.

    Args:
        clocks: of each member the rule, and the number of the last update that moved it.

    Raises:
        WeightError: a copy is the same after different updates, or another one after the same.
        MissingWeight, ShapeMismatch, DtypeMismatch: the structures differ.
    """
    refuse_mixed(members)
    for w in members[0].weights:
        if w.kind is Kind.TRAINABLE:
            continue
        marks = [digest(m[w.path]) for m in members]
        if len({(rule, mark) for (rule, _), mark in zip(clocks, marks, strict=True)}) < len(set(clocks)):
            continue
        for i, j in combinations(range(len(members)), 2):
            same, at_one_update = marks[i] == marks[j], clocks[i][1] == clocks[j][1]
            if same != at_one_update and (same or w.kind is not Kind.STATISTIC):
                _refuse_clock(w, [(members[k], clocks[k]) for k in (i, j)], same=same)


def _refuse_clock(w: Weight, pair: Sequence[tuple[Snapshot, tuple[str, int]]], *, same: bool) -> None:
    (one, (rule, n)), (other, (other_rule, m)) = pair
    found = "one value" if same else "two values"
    raise WeightError(
        f"{w.kind.value} {w.path!r}: expected averages that began at one step, whose counts are one clock; received "
        f"{found} of it from {one.origin} ({rule} after {n:,}) and {other.origin} ({other_rule} after {m:,})",
        hint="start all averages at one step, or, if it does not change in training, write them without it: "
        f"polyak.convert(snapshot, path, {argument('exclude', w.path)})",
    )


def _nearest(recipe: Recipe) -> int:
    """The member whose copies are those of the recipe's count, or were true last before it."""
    counts = [i.count for i in recipe.ingredients]
    before = [n for n in counts if n <= recipe.state.count]
    return counts.index(max(before) if before else min(counts))


def _reader(members: Sequence[Snapshot], copied: Snapshot, recipe: Recipe, w: Weight) -> Read:
    if w.kind is not Kind.TRAINABLE or not w.floating:
        return lambda: copied[w.path]
    parts = [(m, i.coefficient) for m, i in zip(members, recipe.ingredients, strict=True)]
    return lambda: in_parts(w, lambda part: _wide_mixture(parts, w, part))


def _wide_mixture(parts: Sequence[tuple[Snapshot, float]], w: Weight, part: slice) -> Array:
    """The last member, and what the others differ from it by: where they do not, its bits stay."""
    total = math.fsum(c for _, c in parts)
    first, rest = parts[-1][0], parts[:-1]
    base = finite(first, w).reshape(-1)[part]
    made = np.asarray(wide(base))
    if abs(total - 1.0) >= _WHOLE:
        made *= total
    for member, coefficient in rest:
        _add(made, base, finite(member, w).reshape(-1)[part], coefficient)
    return made


def _add(made: Array, base: Array, value: Array, coefficient: float) -> None:
    for m, b, x in blocks(made, base, value):
        step = (wide(x) - wide(b)) * coefficient
        np.add(m, step, out=m, where=step != 0)  # adding nothing would turn -0.0 into 0.0
