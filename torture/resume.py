"""Campaigns of runs that are killed and resumed (row 17). The runs are those of ``tests/keras/kills.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torture.backends import BACKENDS, on
from torture.campaign import Campaign, Outcome

PROGRAM = Path(__file__).parents[1] / "tests" / "keras" / "kills.py"
FORMATS = (".npz", ".pt", ".orbax", ".weights.h5", ".safetensors.index.json")
# What is tried first is what a short campaign tries.
KINDS = (
    ("saved", "tensorflow"),
    ("fit-several", "jax"),
    ("managed", "tensorflow"),
    *((f"saved{end}", BACKENDS[i % 3]) for i, end in enumerate(FORMATS)),
    ("fit-several", "torch"),
    ("fit-several", "tensorflow"),
    ("fit-steps", "torch"),
    ("fit-epochs", "jax"),
)


def killed(kinds: int) -> Outcome:
    """So many kinds of runs, each killed a few times."""
    chosen = KINDS[:kinds]
    found = list(_at_once(chosen, 1 if kinds < len(KINDS) else 3))
    broken = tuple(
        f"{variant} on {backend}: {f['runs'] - f['equal']} of {f['runs']} ended otherwise"
        for (variant, backend), f in zip(chosen, found, strict=True)
        if f["equal"] != f["runs"]
    )
    kills, ends = (sum(f[key] for f in found) for key in ("kills", "equal"))
    return Outcome(kills, broken, f"{ends} ends after {kills} kills equal the undisturbed one")


def _at_once(kinds: Iterable[tuple[str, str]], count: int) -> Iterable[dict[str, Any]]:
    """Two at a time: a run that is killed waits for disks and clocks."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda kind: campaign(*kind, count), kinds))


def campaign(variant: str, backend: str, count: int) -> dict[str, Any]:
    """What the program says of so many kills."""
    command = [sys.executable, "-W", "ignore", str(PROGRAM), variant, "--count", str(count)]
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=3600)
    if not done.stdout:
        raise RuntimeError(f"{variant} on {backend}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def stateless(trials: int) -> Outcome:
    """Files without the state of an average, given to one that shall go on from them."""
    faults = on("tensorflow", "resuming.stateless")
    return Outcome(trials, tuple(faults), f"{len(faults)} began anew without a word")


CAMPAIGNS = (
    Campaign("17a", "A run that was killed and resumed ends bit for bit as one that was not", killed, 1, len(KINDS)),
    Campaign("17b", "A file without an average's state is refused by one that shall go on", stateless, 4, 4),
)
