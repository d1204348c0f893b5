"""Campaigns of transfers that fail: all or nothing, on every backend."""

from __future__ import annotations

from torture.backends import BACKENDS, on_each
from torture.campaign import Campaign, Outcome

MOST = 1.5


def failures(count: int) -> Outcome:
    """A failure at any line of polyak during a transfer."""
    found = on_each("transactions.failures", count // len(BACKENDS))
    broken = tuple(f"{fault}, on {backend}" for backend, (_, faults) in found.items() for fault in faults)
    peers = {name: said for each in on_each("transactions.peers").values() for name, said in each.items()}
    trials = sum(each[0] for each in found.values())
    return Outcome(trials, broken, f"{len(broken)} of {trials:,} left something half written", peers)


def undo(mebibytes: int) -> Outcome:
    """What the undo of a transfer costs."""
    found = on_each("transactions.undo", mebibytes)
    broken = tuple(f"{times:.2f} times the target on {backend}" for backend, times in found.items() if times > MOST)
    return Outcome(len(found), broken, f"{max(found.values()):.2f} times the target's size")


CAMPAIGNS = (
    Campaign(
        "29a", "A transfer that fails at any line, by an error or Ctrl-C, leaves all or nothing", failures, 90, 3_000
    ),
    Campaign("29b", "The undo of a transfer holds the old bits of the target once", undo, 64, 256),
)
