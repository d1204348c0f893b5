"""Campaigns of long life: a million updates on each backend."""

from __future__ import annotations

from torture.backends import on_each
from torture.campaign import Campaign, Outcome

CLOSE = 1e-5
# Of a million updates at most this much memory; an allocator keeps some pages for itself.
SLACK = 16 * 2**20


def lived(steps: int) -> Outcome:
    """So many updates in loops as a backend compiles them."""
    found = on_each("long_life.lived", steps)
    broken = []
    for backend, (count, error, kept) in found.items():
        if count != steps or not error < CLOSE:
            broken.append(f"{count:,} updates on {backend}, relative difference {error:.2g} from the closed form")
        if kept * steps > SLACK:
            broken.append(f"{kept:.1f} bytes kept by each update on {backend}")
    worst, most = max(each[1] for each in found.values()), max(each[2] for each in found.values())
    return Outcome(3 * steps, tuple(broken), f"error {worst:.1g}, {most * steps / 2**20:.1f} MiB more")


def used(steps: int) -> Outcome:
    """Updates one by one, with snapshots and evaluations between them."""
    found = on_each("long_life.lived_eagerly", steps)
    broken = tuple(f"{kept:.0f} bytes by each on {b}" for b, (_, kept) in found.items() if kept * steps > SLACK)
    return Outcome(3 * steps, broken, f"{max(kept for _, kept in found.values()) * steps / 2**20:.1f} MiB more")


CAMPAIGNS = (
    Campaign("30a", "A long run keeps its memory and ends as the closed form says", lived, 6_000, 1_000_000),
    Campaign("30b", "So it does with snapshots and evaluations between the updates", used, 200, 20_000),
)
