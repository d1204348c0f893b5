"""Campaigns of what must not get in or out: numbers that are not finite, or beyond a dtype (rows 14, 15)."""

from __future__ import annotations

from torture.backends import on_each
from torture.campaign import Campaign, Outcome

FORMATS = (".safetensors", ".npz", ".pt", ".orbax", ".weights.h5", ".safetensors.index.json")


def guarded(longest: int) -> Outcome:
    """Row 14, update by update."""
    return _outcome(on_each("guard.guarded", (1, longest)), "guard.peers")


def compiled(steps: int) -> Outcome:
    """Row 14, in compiled loops."""
    found = on_each("guard.compiled", steps)
    return _outcome({backend: (steps, faults) for backend, faults in found.items()})


def patience(trials: int) -> Outcome:
    """Row 14, skips without end."""
    found = on_each("guard.patience")
    return _outcome({backend: (trials, faults) for backend, faults in found.items()})


def files(trials: int) -> Outcome:
    """Row 14, files."""
    found = on_each("guard.refused_files")
    return _outcome({backend: (trials, faults) for backend, faults in found.items()})


def exported(formats: int) -> Outcome:
    """Row 15."""
    return _outcome(on_each("guard.overflowing", FORMATS[:formats]), "guard.cast_peers")


def _outcome(found: dict[str, tuple[int, list[str]]], peers: str = "") -> Outcome:
    broken = tuple(f"{fault}, on {backend}" for backend, (_, faults) in found.items() for fault in faults)
    beside = {name: said for each in on_each(peers).values() for name, said in each.items()} if peers else {}
    trials = sum(each[0] for each in found.values())
    return Outcome(trials, broken, f"{len(broken)} of {trials:,} got through", beside)


CAMPAIGNS = (
    Campaign(
        "14a",
        "Nothing that is not finite enters an average: a step is skipped whole and named",
        guarded,
        3,
        100,
    ),
    Campaign("14b", "So it is in compiled loops", compiled, 50, 10_000),
    Campaign("14c", "Skips in a row beyond an average's patience raise, and it can go on after them", patience, 10, 10),
    Campaign("14d", "A file that is not finite is refused unless it is allowed", files, 27, 27),
    Campaign(
        "15",
        "An export beyond a dtype is refused by name; the live state stays",
        exported,
        2,
        6,
    ),
)
