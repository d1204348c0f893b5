"""Campaigns of replicas: one average, one file, one rule for statistics (row 20). The programs are the tests' own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import polyak
from torture.campaign import Campaign, Outcome

PROGRAMS = Path(__file__).parents[1] / "tests" / "distribution"
# Those that batches of 24 can be divided among: Keras itself fails in `fit` where parts are unequal.
SIZES = (2, 3, 4, 8)


def mirrored(sizes: int) -> Outcome:
    """So many numbers of replicas."""
    broken = [fault for size in SIZES[:sizes] for fault in _mirrored(size)]
    return Outcome(sizes, tuple(broken), f"bit-equal on {', '.join(map(str, sorted(SIZES[:sizes])))} replicas")


def _mirrored(size: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        found = _answer(_started("mirrored.py", str(size), folder))
        held = polyak.open(Path(folder) / "average.safetensors")
        faults = {
            "averages differ between replicas": not found["same on all replicas"],
            "an update within replicas differs from one outside": found["inside against outside"] != 0,
            "raw weights were not put back": not found["restored"],
            "the file has other bits": any(
                held[path].tobytes() != np.asarray(value, held[path].dtype).tobytes()
                for path, value in found["values"].items()
            ),
        }
        return [f"{size} replicas: {fault}" for fault, is_so in faults.items() if is_so]


def statistics(sizes: int) -> Outcome:
    """The rule for statistics, and drift."""
    broken, differ = [], 0.0
    for size in SIZES[:sizes]:
        with tempfile.TemporaryDirectory() as folder:
            found = _answer(_started("replicated.py", str(size), folder))
        differ = max(differ, found["statistics differ by"])
        same = ("copied beside each", "raw is Keras' own", "raw is the first", "average is the first")
        broken += [f"{size} replicas: not {what}" for what in same if not found[what]]
        broken += [
            f"{size} replicas: {what} that drifts was saved" for what, said in found["refused"].items() if not said
        ]
    return Outcome(
        sizes * 6,
        tuple(broken),
        "statistics of the first replica; drift is refused",
        {"Keras": f"statistics differ by {differ:.2g}"},
    )


def processes(trials: int) -> Outcome:
    """Two processes of TensorFlow, then two of PyTorch, that save to one path."""
    broken = []
    for name, together in (("TensorFlow", _workers), ("PyTorch", _ranks))[:trials]:
        with tempfile.TemporaryDirectory() as folder:
            first, second = map(_answer, together(folder))
        if not first["digests"] == second["digests"] == first["receipt"] == second["receipt"]:
            broken.append(f"{name}: two processes hold different averages or receipts")
        if first["file"] != second["file"]:
            broken.append(f"{name}: the file was written twice")
    return Outcome(2 * trials, tuple(broken), "one file, written once, verified by each")


def _workers(folder: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("localhost", 0))
        other.bind(("localhost", 0))
        cluster = {"worker": [f"localhost:{s.getsockname()[1]}" for s in (one, other)]}
    configs = [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": i}}) for i in range(2)]
    return [_started("workers.py", folder, TF_CONFIG=config) for config in configs]


def _ranks(folder: str) -> list[subprocess.Popen[str]]:
    return [_started("ddp.py", str(rank), folder, KERAS_BACKEND="torch") for rank in range(2)]


def _started(program: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    given = {**os.environ, "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "", **environment}
    command = [sys.executable, "-W", "ignore", str(PROGRAMS / program), *arguments]
    return subprocess.Popen(command, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    said, errors = process.communicate(timeout=600)
    if process.returncode:
        raise RuntimeError(errors[-3000:])
    return dict(json.loads(said.strip().splitlines()[-1]))


CAMPAIGNS = (
    Campaign("20a", "All replicas have one average, and a restore elsewhere has it, too", mirrored, 1, 4),
    Campaign("20b", "Statistics have a rule, and weights that drift apart are refused", statistics, 1, 4),
    Campaign("20c", "Of processes that save together one writes, and each verifies", processes, 1, 2),
)
