"""Another average than those that were kept: the mixture of kept averages whose profile is nearest to the wanted one.

An average after n updates is a sum of the values at its updates, each with its share. A mixture of averages of one run
therefore is a sum of the same values, whose shares are the mixture of shares: a rule that nobody ran can be made after
the run from averages that were kept on the way. Karras et al., arXiv 2312.02696, section 3.2 and appendix C, from the
paper alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from polyak.averaging.base import Float64, Rule
from polyak.errors import RuleError

MOST = 10**8  # updates: the shares of each are computed, which takes about a second for ten million of them
_STRETCH = 1 << 16
_DEPENDENT = 1e-10  # profiles of length 1 that differ by less differ by rounding


@dataclass(frozen=True, slots=True)
class Kept:
    """What one kept average remembers: ``count`` updates by ``rule``."""

    rule: Rule
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """Kept averages mixed to be near a wanted one.

    Attributes:
        coefficients: float64, one for each kept average.
        error: Euclidean distance of the mixture's shares from the wanted ones, relative to the norm of those.
        norm: Euclidean norm of the coefficients: independent rounding errors of the kept values are amplified by it.
    """

    coefficients: Float64
    error: float
    norm: float


def mixture(kept: Sequence[Kept], wanted: Kept) -> Mixture:
    """The mixture with the least error, by least squares over all updates.

    The shares are those of ``polyak.profile``, summed over every single update: where an average moves at every k-th
    update only, or starts with a copy or with zeros, that is in them. The paper integrates over continuous time
    instead, which is the limit of many updates. The mixture gives the values as much weight in total as the wanted
    average does: a weight that never moved stays as it is. The paper leaves the total free.

    Raises:
        RuleError: there are no kept averages, one of them has not moved yet, the wanted one ends after the last kept
            one, or a count is above ``MOST``.

    Example:
        >>> from polyak.averaging.rules import PowerEMA
        >>> kept = [Kept(PowerEMA.from_sigma_rel(s), n) for n in (250, 500, 750, 1000) for s in (0.05, 0.10)]
        >>> made = mixture(kept, Kept(PowerEMA.from_sigma_rel(0.08), 1000))
        >>> round(made.error, 3), round(made.norm, 2), round(float(made.coefficients.sum()), 12)
        (0.03, 0.82, 1.0)
    """
    _refuse(kept, wanted)
    shares, totals = _folded(kept, wanted)
    lengths = np.linalg.norm(shares, axis=0)
    _refuse_unmoved((*kept, wanted), lengths)
    scaled, want, scale = shares[:, :-1] / lengths[:-1], shares[:, -1], lengths[-1]
    found = _constrained(scaled, want, totals[:-1] / lengths[:-1], totals[-1])
    coefficients = found / lengths[:-1]
    error = float(np.linalg.norm(scaled @ found - want) / scale)
    return Mixture(coefficients, error, float(np.linalg.norm(coefficients)))


def inner_product(one: Kept, other: Kept) -> float:
    """Sum over all updates of the products of two averages' shares, in O(updates).

    For two power-function averages with exponents g and h after m <= n updates it tends, times n, to the paper's
    integral (g + 1) (h + 1) / (g + h + 1) * (m / n)**h as both become long.

    Example:
        >>> from polyak.averaging.rules import Mean
        >>> inner_product(Kept(Mean(), 4), Kept(Mean(), 8))
        0.125
    """
    shares, _ = _folded([one], other)
    return float(shares[:, 0] @ shares[:, 1])


def _refuse(kept: Sequence[Kept], wanted: Kept) -> None:
    if not kept:
        raise RuleError("expected kept averages to mix, received none")
    for k in (*kept, wanted):
        if not 0 < k.count <= MOST:
            raise RuleError(f"rule {k.rule} after {k.count:,} updates: expected from 1 to {MOST:,} updates")
    last = max(k.count for k in kept)
    if wanted.count > last:
        raise RuleError(
            f"rule {wanted.rule} after {wanted.count:,} updates: the kept averages end after {last:,}",
            hint=f"nothing is known of later values; ask for the average after {last:,} updates",
        )


def _refuse_unmoved(columns: Sequence[Kept], lengths: Float64) -> None:
    """An average that starts from zeros and has not moved yet holds no value at all."""
    for column, length in zip(columns, lengths, strict=True):
        if not length:
            raise RuleError(
                f"rule {column.rule} after {column.count:,} updates: expected an average of values, it still is zero"
            )


def _folded(kept: Sequence[Kept], wanted: Kept) -> tuple[Float64, Float64]:
    """All shares as few rows with the same inner products, columns as ``(*kept, wanted)``; and their sums.

    Between two neighbouring counts the shares of all averages of one rule are multiples of each other. So a stretch
    of time is folded into one triangle for all rules, whatever its length, and no profile is held whole. Triangles
    instead of inner products keep the precision of the shares, which the square of their condition would cost.
    """
    columns = [*kept, wanted]
    rules = list(dict.fromkeys(c.rule for c in columns))
    which = np.array([rules.index(c.rule) for c in columns])
    counts = np.array([c.count for c in columns])
    scale, totals, rows = np.ones(len(columns)), np.zeros(len(columns)), []
    for first, last in _stretches(counts):
        weights = np.stack([r.span(first, last) for r in rules], axis=1)
        after = np.cumprod(1.0 - weights[::-1], axis=0)
        base = weights
        base[:-1] *= after[-2::-1]
        live = np.where(counts >= last, scale, 0.0)
        triangle: Float64 = np.asarray(np.linalg.qr(base, mode="r"))
        rows.append(triangle[:, which] * live)
        totals += base.sum(axis=0)[which] * live
        scale = np.where(counts >= last, scale * after[-1][which], scale)
    start = np.where([c.rule.origin == "zeros" for c in columns], 0.0, scale)
    return np.concatenate([*rows, start[None]]), totals + start


def _stretches(counts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Iterator[tuple[int, int]]:
    """Updates first ... last, from the latest back to 1, cut where an average ends and where they get long."""
    borders = [0, *np.unique(counts).tolist()]
    for low, high in reversed(list(pairwise(borders))):
        for last in range(high, low, -_STRETCH):
            yield max(low, last - _STRETCH) + 1, last


def _constrained(shares: Float64, want: Float64, totals: Float64, total: float) -> Float64:
    """Least squares among all solutions of the wanted total; where several are best, the smallest.

    The columns of shares have length 1, so that a direction in which they hardly change is known as such.
    """
    start = totals * (total / float(totals @ totals))
    free = np.linalg.qr(totals[:, None], mode="complete")[0][:, 1:]
    left, sizes, right = np.linalg.svd(shares @ free, full_matrices=False)
    known = sizes > _DEPENDENT
    step = right[known].T @ ((left[:, known].T @ (want - shares @ start)) / sizes[known])
    return np.asarray(start + free @ step)
