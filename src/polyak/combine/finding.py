"""Finding: one thing that a user of a file should know."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a user of the file should know.

    Attributes:
        what: the finding, one line.
        evidence: what in the file shows it.
        mend: the command or call that mends it, or what to find out first.
    """

    what: str
    evidence: str
    mend: str


def weights_counted(n: int) -> str:
    """A number of weights.

    Example:
        >>> weights_counted(1), weights_counted(1200)
        ('1 weight', '1,200 weights')
    """
    return "1 weight" if n == 1 else f"{n:,} weights"
