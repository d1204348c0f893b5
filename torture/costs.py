"""Row 27: what a save that is synchronised, read back and committed costs beside another library's bare save."""

from __future__ import annotations

from bench.durability import MEBI, PAIRS, measured

from torture.campaign import Campaign, Outcome

MOST_RATIO, LEAST_VERIFIED = 1.5, 0.9
_TURNS = 5
_BOUND = (
    "the other library's save waits for no disk and writes over the memory of the old file; a plain write of as many "
    "bytes to another name, synchronised and renamed, is what the machine asks for a save that lasts"
)


def paid(mebibytes: int) -> Outcome:
    """Wall time, in turns; the figures are of the machine that ran them, with whatever else ran there."""
    broken, told = [], []
    for pair in PAIRS:
        found = measured(pair, mebibytes * MEBI, _TURNS)
        speed = mebibytes / 1024 / found["verify"]
        told.append(
            f"{pair.name} {found['ratio']:.1f} times (a plain write, synchronised and renamed, "
            f"{found['least ratio']:.1f}), verify {speed:.2f} GiB/s"
        )
        if found["ratio"] > MOST_RATIO:
            broken.append(f"{pair.name}: {found['ratio']:.2f} times the bare save")
        if speed < LEAST_VERIFIED:
            broken.append(f"{pair.name}: verify {speed:.2f} GiB/s")
    return Outcome(_TURNS * len(PAIRS), tuple(broken), ", ".join(told))


CAMPAIGNS = (
    Campaign("27a", "A save costs up to 1.5 times another library's bare one; verify runs at 0.9 GiB/s",
             paid, 8, 512, _BOUND),
)  # fmt: skip
