"""Shares of the past as a plot of plain text, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyak.averaging.base import Float64, Rule
from polyak.averaging.profile import profile

BLOCKS = " ▁▂▃▄▅▆▇█"
ASCII = " ..::||##"
_WIDTH, _HEIGHT = 60, 4


def in_stretches(shares: Float64, parts: int) -> Float64:
    """The shares summed over so many equal stretches of the run; the first one has the initial value's, too.

    Where a border lies within an update, the update's share is divided there.

    Example:
        >>> in_stretches(np.array([0.5, 0.25, 0.125, 0.125]), 2).tolist()
        [0.8125, 0.1875]
    """
    n = shares.size - 1
    covered = np.concatenate([[0.0], np.cumsum(shares[1:])])
    sums = np.diff(np.interp(np.linspace(0, n, parts + 1), np.arange(n + 1), covered))
    sums[0] += shares[0]
    return np.asarray(sums)


def plots(rules: Sequence[Rule | str], steps: int, blocks: str = BLOCKS) -> str:
    """A plot for each rule, each on a scale of its own: when the values were taken that the average holds.

    Args:
        steps: length of the run, in updates.
        blocks: nine characters, from empty to full; ``ASCII`` where there is nothing else.

    Example:
        >>> print(plots(["mean"], 100, ASCII))
        share of each 60th of the run, after 100 updates
        <BLANKLINE>
        mean
         1.67 % |############################################################
                |############################################################
                |############################################################
                |############################################################
                +------------------------------------------------------------
                 start                                              100 (now)
    """
    head = f"share of each {_WIDTH}th of the run, after {steps:,} updates"
    return "\n\n".join([head, *(_plot(rule, steps, blocks) for rule in rules)])


def _plot(rule: Rule | str, steps: int, blocks: str) -> str:
    sums = in_stretches(profile(rule, steps).shares, _WIDTH)
    top = float(sums.max())
    levels = np.rint(sums / top * _HEIGHT * (len(blocks) - 1)).astype(int)
    rows = [_row(levels - row * (len(blocks) - 1), blocks) for row in reversed(range(_HEIGHT))]
    labels = [f"{100 * top:>5.3g} %", *[" " * 7] * (_HEIGHT - 1)]
    drawn = [f"{label} |{row}".rstrip() for label, row in zip(labels, rows, strict=True)]
    end = f"{steps:,} (now)"
    axis = [f"        +{'-' * _WIDTH}", f"         start{end:>{_WIDTH - 5}}"]
    return "\n".join([str(rule), *drawn, *axis])


def _row(levels: np.ndarray[tuple[int], np.dtype[np.int64]], blocks: str) -> str:
    return "".join(blocks[level] for level in np.clip(levels, 0, len(blocks) - 1))
