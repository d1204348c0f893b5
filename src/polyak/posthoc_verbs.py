"""The verb of averages made after a run: synthesize."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from polyak.averaging.parse import parse
from polyak.averaging.parts import Parts, rule_from_json
from polyak.averaging.posthoc import Kept, Mixture, mixture
from polyak.averaging.rules import Rule
from polyak.combine.average import Watch
from polyak.combine.synthesis import Ingredient, Recipe, Synthesis, mixed, refuse_two_clocks, refuse_two_runs
from polyak.errors import AmbiguousRole, RuleError, WeightError, argument
from polyak.file_verbs import open as open_file
from polyak.file_verbs import source_of
from polyak.frameworks import Average
from polyak.manifest import AVERAGE, State
from polyak.snapshot import Snapshot
from polyak.weights import Kind

TOLERANCE = 0.1
LARGEST_NORM = 100.0
# What ``average`` and ``synthesize`` note. Their counts are no clock of a run.
_STRETCH = 4096
_MADE_OF_OTHERS = ("member ", "synthesized ")


@dataclass(frozen=True, slots=True)
class _Member:
    """One average of a source: its values, and what it remembers."""

    held: Snapshot
    kept: Kept


def synthesize(
    snapshots: Sequence[Any],
    rule: Rule | str,
    at: int | None = None,
    tolerance: float = TOLERANCE,
    largest_norm: float = LARGEST_NORM,
    watch: Watch | None = None,
) -> Synthesis:
    """The average that another rule would have made, from averages that were kept during one run.

    Least squares finds the mixture of the kept averages whose shares of all past values are nearest to those of the
    rule; see ``polyak.averaging.posthoc``. Power-function averages of two widths, kept now and then, make every width
    between them and many beside. All averages must have been started at the same step of the run: their counts are
    its clock. Others are refused where files show it: averages of one file with different counts, and averages whose
    copied statistics, counters or seeds contradict the counts. A model without any of these leaves no such trace;
    ``polyak.Snapshots`` takes no averages of different counts at all.

    Values are mixed array by array, in float64, when they are read. Moving statistics are no average, but
    those that the model had then: ``polyak.recalibrate`` sets them right.

    Args:
        snapshots: paths, snapshots or live averages; of a file with several averages each one is used.
        rule: the rule to approximate, or its text.
        at: after how many updates; by default, as many as the latest snapshot has seen.
        tolerance: the largest relative error of the shares that is accepted.
        largest_norm: the largest norm of the coefficients that is accepted; it amplifies rounding errors.
        watch: told of each array before it is computed: name, how many are done, of how many.

    Returns:
        A lazy snapshot of role "average", with ``error``, ``norm`` and ``ingredients``; save or transfer it.

    Raises:
        WeightError: the rule is out of reach of the snapshots, or they are not of one run.
        AmbiguousRole: a source holds no average, or none whose rule and count are known.
        RuleError: the rule is no rule, or its end is after that of the snapshots.
        MissingWeight, ShapeMismatch, DtypeMismatch: the structures differ.

    Example:
        >>> import numpy as np
        >>> from polyak.averaging.rules import Mean
        >>> def kept(n):  # the mean of the values 1 ... n
        ...     return Snapshot.from_arrays({"w": np.float64([(n + 1) / 2])}, "average", State(Mean().to_json(), n))
        >>> made = synthesize([kept(100), kept(200)], "mean,after=100")  # the mean of 101 ... 200
        >>> round(float(made["w"][0]), 9), round(made.error, 9), [round(i.coefficient, 9) for i in made.ingredients]
        (150.5, 0.0, [-1.0, 2.0])
    """
    wanted = parse(rule)
    members = [m for source in _listed(snapshots) for m in _members(source)]
    if not members:
        raise WeightError("a synthesis needs snapshots, received none", hint="give at least one path or snapshot")
    left = refuse_two_runs([m.held for m in members], [(str(m.kept.rule), m.kept.count) for m in members])
    members = [members[i] for i in left]
    refuse_two_clocks([m.held for m in members], [(str(m.kept.rule), _moved(m.kept)) for m in members])
    target = Kept(wanted, max(m.kept.count for m in members) if at is None else at)
    made = mixture([m.kept for m in members], target)
    _refuse_unfit(made, members, target, tolerance, largest_norm)
    parts = zip(members, made.coefficients.tolist(), strict=True)
    ingredients = tuple(Ingredient(m.held.origin, str(m.kept.rule), m.kept.count, c) for m, c in parts)
    recipe = Recipe(str(wanted), State(wanted.to_json(), target.count), ingredients, made.error)
    return mixed([m.held for m in members], recipe, watch)


def _listed(snapshots: Any) -> Sequence[Any]:
    """One source is a list of one; paths and snapshots are sequences or mappings, too."""
    return [snapshots] if isinstance(snapshots, (str, os.PathLike, Snapshot, Average)) else list(snapshots)


def _members(source: Any) -> Iterator[_Member]:
    """Each average of a source; a live one moves on, so it is copied."""
    if isinstance(source, (str, os.PathLike)):
        source = open_file(source)
    held = (source if isinstance(source, Snapshot) else source_of(source, None)).still()
    roles = [r for r in held.roles if r.partition(":")[0] == AVERAGE]
    if not roles:
        raise AmbiguousRole(
            f"{held.origin}: expected an average, received {' and '.join(map(repr, held.roles)) or 'nothing'}",
            hint="keep averages in the run, not raw weights: polyak.save(ema, path)",
        )
    found = []
    for role in roles:
        one = held.select(role=role)
        found.append(_Member(_as_average(one), _kept(one)))
    if len(counts := {member.kept.count for member in found}) > 1:
        raise WeightError(
            f"{held.origin}: expected averages that began at one step, whose counts are one clock; received counts of "
            f"{' and '.join(f'{n:,}' for n in sorted(counts))} at one moment",
            hint="start all averages at one step; or take one of them: "
            f"polyak.convert(source, path, {argument('weights', roles[0])})",
        )
    yield from found


def _moved(kept: Kept) -> int:
    """The number of the last update that moved an average, and at which it copied what it copies; 0 for none."""
    for last in range(kept.count, 0, -_STRETCH):
        first = max(last - _STRETCH, 0) + 1
        moving = np.flatnonzero(kept.rule.span(first, last))
        if moving.size:
            return first + int(moving[-1])
    return 0


def _as_average(held: Snapshot) -> Snapshot:
    """The same under the plain role: files call several averages by names."""
    items = (replace(item, role=AVERAGE) for item in held.items_by_path.values())
    return Snapshot(items, {AVERAGE: held.state}, held.origin, held.integrity, held.manifest)


def _kept(held: Snapshot) -> Kept:
    state = held.state
    if state is None or state.rule is None:
        raise AmbiguousRole(
            f"{held.origin}: expected an average whose rule and count of updates are known, received one without",
            hint="files that polyak.save writes hold both",
        )
    if any(line.startswith(_MADE_OF_OTHERS) for line in held.manifest.evidence):
        raise WeightError(
            f"{held.origin}: expected an average that a run has kept, received one that was made of others",
            hint="give the snapshots that it was made of",
        )
    rule = rule_from_json(state.rule)
    return Kept(_only_rule(rule, held) if isinstance(rule, Parts) else rule, state.count)


def _only_rule(parts: Parts, held: Snapshot) -> Rule:
    rules = {parts.rule_of(w.path) for w in held.weights if w.kind is Kind.TRAINABLE} - {None}
    only = rules.pop() if len(rules) == 1 else None
    if only is None:
        glob = next((glob for glob, rule in parts.entries if rule is not None), "*")
        raise RuleError(
            f"{held.origin}: expected one rule, received {parts}",
            hint=f"synthesize each part for itself: polyak.convert(source, path, {argument('include', glob)})",
        )
    return only


def _refuse_unfit(
    made: Mixture, members: Sequence[_Member], wanted: Kept, tolerance: float, largest_norm: float
) -> None:
    rules = ", ".join(dict.fromkeys(str(m.kept.rule) for m in members))
    counts = sorted({m.kept.count for m in members})
    span = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    held = f"{len(members)} snapshots of {rules} after {span} updates"
    if not made.error <= tolerance:
        raise WeightError(
            f"{wanted.rule} after {wanted.count:,} updates: expected a relative profile error of at most "
            f"{tolerance:g}, received {made.error:.3g} from {held}",
            hint=_nearer(wanted.count, counts),
        )
    if not made.norm <= largest_norm:
        raise WeightError(
            f"{wanted.rule} after {wanted.count:,} updates: expected coefficients of a norm of at most "
            f"{largest_norm:g}, received {made.norm:.3g} from {held}; rounding errors would grow by that",
            hint="keep more snapshots near the end; or accept it with a larger largest_norm=",
        )


def _nearer(at: int, counts: Sequence[int]) -> str:
    """A mixture has a step wherever a snapshot was kept: between two of them nothing ends."""
    if at in counts:
        return "keep more snapshots, or wider and narrower averages; or accept it with a larger tolerance="
    nearest = min(counts, key=lambda n: abs(n - at))
    return f"ask for the average at the nearest snapshot: at={nearest}; or keep more snapshots"
