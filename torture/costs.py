"""Row 27: what saves that last and updates that look at every weight cost, beside others that do neither."""

from __future__ import annotations

from bench import guarded
from bench.durability import MEBI, PAIRS, measured

from torture.campaign import Campaign, Outcome

MOST_RATIO, LEAST_VERIFIED = 1.5, 0.9
# Times a plain lerp: 1.2 for the look, which under XLA adds a third to the bytes that are moved; 2 for both.
_LOOK, _COMPENSATED = {"eager": 1.2, "graph": 1.2, "xla": 1.2 * 16 / 12}, 2.0
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


def updated(turns: int) -> Outcome:
    """An update on TensorFlow in each mode, in turns with a plain lerp in that mode."""
    broken, told = [], []
    for name in ("one", "resnet50"):
        found = guarded.on_tensorflow(name, turns)
        if isinstance(found, str):
            broken.append(f"{name}: {found}")
            continue
        for mode, ratios in found.items():
            look, both = (ratios[manner] for manner in guarded.OURS)
            told.append(f"{name} {mode} {look:.1f} and {both:.1f}")
            if look > _LOOK[mode] or both > _COMPENSATED:
                broken.append(f"{name}, {mode}: {look:.2f} times a plain lerp with the look, {both:.2f} compensated")
    return Outcome(turns, tuple(broken), "times a plain lerp, with the look and compensated: " + ", ".join(told))


CAMPAIGNS = (
    Campaign("27a", "A save costs up to 1.5 times another library's bare one; verify runs at 0.9 GiB/s",
             paid, 8, 512, _BOUND),
    Campaign("27b", "An update that looks at all weights costs up to 1.2 times a plain lerp, 1.6 under XLA; a "
             "compensated one 2", updated, 1, 7,
             "compiled by XLA a plain lerp moves 12 bytes a weight at the speed of memory; a look "
             "before it is a pass of its own over 4 bytes, and 1.33 times as much is moved"),
)  # fmt: skip
