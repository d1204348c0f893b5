"""What a campaign is: one promise of docs/reliability.md, tried so many times, with its figure.

A module beside this one holds the campaigns of one topic in ``CAMPAIGNS``. The tests in ``tests/reliability`` run each
of them with its ``short`` count, ``make torture`` with its ``full`` one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Outcome:
    """What a campaign found.

    Attributes:
        trials: how often the promise was tried.
        broken: what broke it, one text each; none if it holds.
        figure: the result in a few words, as the table of docs/reliability.md has it.
        peers: by peer, the figure of the same trials on it, where they ran on it.
        seconds: how long it took.
        day: when it was found, as 2026-01-31.
    """

    trials: int
    broken: tuple[str, ...]
    figure: str
    peers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    day: str = ""

    @property
    def holds(self) -> bool:
        return not self.broken and self.trials > 0


@dataclass(frozen=True)
class Campaign:
    """One promise and the trial of it.

    Attributes:
        row: its number in docs/reliability.md; a letter after it where a row has several campaigns.
        promise: what holds, as a sentence.
        run: tries it about so many times, seeded, and says what was found.
        short, full: how many times in ``make test`` and in ``make torture``.
        bound: what keeps the goal from being met as it stands, if something does.
    """

    row: str
    promise: str
    run: Callable[[int], Outcome]
    short: int
    full: int
    bound: str = ""

    def __str__(self) -> str:
        return f"{self.row}: {self.promise}"
