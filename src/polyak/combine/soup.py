"""Greedy soup: the members that help, averaged. Wortsman et al. 2022, "Model soups", arXiv 2203.05482, recipe 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from polyak.combine.average import mean, refuse_mixed
from polyak.errors import WeightError
from polyak.snapshot import Snapshot

Score = Callable[[Snapshot], float]


def greedy(members: Sequence[Snapshot], score: Score) -> tuple[Snapshot, tuple[int, ...]]:
    """Rank the members by their own score, then add each to the mean if the mean's score does not fall.

    Args:
        members: snapshots of one role and structure.
        score: a snapshot to a number, larger is better; called up to ``2 n - 1`` times. Score on held-out data that
            is not the test set: the choice is fitted to it.

    Returns:
        The lazy mean of the chosen members, and their indices in the order in which they were added.

    Raises:
        WeightError: no members, or a score is no finite number.

    Example:
        >>> import numpy as np
        >>> members = [Snapshot.from_arrays({"w": np.float64([v])}) for v in (0.0, 3.0, 9.0)]
        >>> soup, chosen = greedy(members, lambda held: -abs(float(held["w"][0]) - 2.0))
        >>> soup["w"].tolist(), chosen
        ([1.5], (1, 0))
    """
    if not members:
        raise WeightError("a soup needs members, received none")
    refuse_mixed(members)
    scores = [_scored(score, m) for m in members]
    ranked = sorted(range(len(members)), key=lambda i: -scores[i])
    chosen, best = [ranked[0]], scores[ranked[0]]
    for i in ranked[1:]:
        tried = _scored(score, mean([members[k] for k in (*chosen, i)]))
        if tried >= best:
            chosen, best = [*chosen, i], tried
    return mean([members[k] for k in chosen]), tuple(chosen)


def _scored(score: Score, held: Snapshot) -> float:
    answer = score(held)
    try:
        value = float(answer)
    except (TypeError, ValueError):
        raise WeightError(f"score({held.origin}): expected a finite number, received {answer!r:.80}") from None
    if not math.isfinite(value):
        raise WeightError(f"score({held.origin}): expected a finite number, received {value}")
    return value
