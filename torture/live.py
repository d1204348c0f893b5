"""Campaigns beside training: snapshots that are of one moment, and interrupts that leave raw weights (row 16)."""

from __future__ import annotations

from torture.backends import BACKENDS, on_each
from torture.campaign import Campaign, Outcome


def looped(count: int) -> Outcome:
    """Row 16, beside a loop of one's own."""
    found = _snapshots(count, "a loop")
    peers = {n: said for each in on_each("live.torn_peers", min(count, 300)).values() for n, said in each.items()}
    return Outcome(found.trials, found.broken, found.figure, peers)


def fitted(count: int) -> Outcome:
    """Row 16, beside ``fit``."""
    return _snapshots(count, "fit")


def _snapshots(count: int, inside: str) -> Outcome:
    found = on_each("live.snapshots", count // len(BACKENDS), inside)
    broken = [f"{what} on {backend}, beside {inside}" for backend, (_, faults, _) in found.items() for what in faults]
    broken += [f"no step was made meanwhile on {backend}" for backend, (_, _, steps) in found.items() if not steps]
    trials, steps = (sum(each[i] for each in found.values()) for i in (0, 2))
    return Outcome(trials, tuple(broken), f"{len(broken)} torn of {trials:,} beside {steps:,} steps")


def interrupted(count: int) -> Outcome:
    """Row 16: Ctrl-C while an average is applied."""
    return _interrupts("live.interrupts", count)


def interrupted_fits(count: int) -> Outcome:
    """Row 16: Ctrl-C in ``fit``."""
    return _interrupts("live.interrupted_fits", count)


def _interrupts(trial: str, count: int) -> Outcome:
    found = on_each(trial, count // len(BACKENDS), 0)
    broken = tuple(f"{what} on {backend}" for backend, (_, faults) in found.items() for what in faults)
    hits = sum(each[0] for each in found.values())
    return Outcome(hits, broken, f"{len(broken)} of {hits:,} left other weights")


_STEP = (
    "a step of one's own is made within `with ema.moment():`; compiled steps cannot take a lock of Python themselves"
)
CAMPAIGNS = (
    Campaign("16a", "What is read, saved or handed over beside a loop is of one update", looped, 120, 24_000, _STEP),
    Campaign("16b", "What is read, saved or evaluated beside fit is of one update", fitted, 60, 12_000),
    Campaign("16c", "An interrupt while an average is applied leaves the raw weights", interrupted, 45, 3_000),
    Campaign("16d", "An interrupt of fit leaves raw weights", interrupted_fits, 3, 45),
)
