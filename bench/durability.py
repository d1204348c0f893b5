"""What a save costs that is synchronised, read back and committed by a rename, beside the other library's bare save.

python -m bench.durability [--size MB] [--turns N] [--only WORD]

The two take turns in one process, so that what else the machine does falls on both. Wall time is the median of turns;
processor time, of all threads and of the system for them, is what does not depend on the disk. The least that a lasting
save can cost is a plain write of the same bytes to another name, synchronised and renamed over the old file: the old
one's memory is not free before that, while a bare save writes over it.
"""

# ruff: noqa: D103 - the functions come in pairs whose names say what they do
from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import polyak
from bench.measure import keep, table
from polyak.snapshot import Item, Snapshot
from polyak.weights import Evidence, Kind, Weight

MEBI = 1 << 20
COUNT = 16


@dataclass(frozen=True)
class Turn:
    """One call: wall and processor seconds."""

    wall: float
    processor: float


@dataclass(frozen=True)
class Pair:
    """A format: its file, and how the other library saves the same arrays bare."""

    name: str
    file: str
    bare: Callable[[Path, int], Any]
    ours: Callable[[Path, int], Any]


@cache
def arrays(size: int) -> dict[str, np.ndarray]:
    dice = np.random.default_rng(0)
    return {f"dense_{i}/kernel": dice.standard_normal((64, size // COUNT // 256), np.float32) for i in range(COUNT)}


@cache
def snapshot(size: int) -> Snapshot:
    return Snapshot([_item(i, name, value) for i, (name, value) in enumerate(arrays(size).items())])


def _item(number: int, name: str, value: np.ndarray) -> Item:
    evidence = Evidence(name, name, name, "Dense", "kernel", number, "float32", f"layers/dense_{number}/vars/0")
    return Item("average", Weight(name, value.shape, "float32", Kind.TRAINABLE, evidence), lambda: value)


def ours(path: Path, size: int) -> None:
    polyak.save(snapshot(size), path)


def bare_safetensors(path: Path, size: int) -> None:
    from safetensors.numpy import save_file

    save_file(arrays(size), path)


def bare_torch(path: Path, size: int) -> None:
    import torch

    torch.save({name: torch.from_numpy(value) for name, value in arrays(size).items()}, path)


def bare_npz(path: Path, size: int) -> None:
    np.savez(path, **arrays(size))


def bare_h5(path: Path, size: int) -> None:
    """As Keras' ``save_weights`` writes them."""
    import h5py

    with h5py.File(path, "w") as file:
        for number, value in enumerate(arrays(size).values()):
            file.create_dataset(f"layers/dense_{number}/vars/0", data=value)


@cache
def checkpoint(size: int) -> Any:
    import tensorflow as tf

    module = tf.Module()
    module.held = {name.replace("/", "_"): tf.Variable(value) for name, value in arrays(size).items()}
    return tf.train.Checkpoint(module=module)


def bare_tensorflow(path: Path, size: int) -> None:
    checkpoint(size).write(str(path))


def our_tensorflow(path: Path, size: int) -> None:
    from polyak import tensorflow

    tensorflow.write(checkpoint(size), path)


PAIRS = (
    Pair("safetensors", "m.safetensors", bare_safetensors, ours),
    Pair("npz", "m.npz", bare_npz, ours),
    Pair(".pt", "m.pt", bare_torch, ours),
    Pair(".weights.h5", "m.weights.h5", bare_h5, ours),
    Pair("TensorFlow", "m", bare_tensorflow, our_tensorflow),
)


def timed(call: Callable[[], Any], size: int) -> Turn:
    settle(size)
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return Turn(time.perf_counter() - wall, time.process_time() - processor)


def settle(size: int) -> None:
    """What a call would pay for others is done before: what they left to the disk, and memory.

    A virtual machine gives free memory back to its host after a while, and takes seconds to get it again, whoever asks
    first. So twice the bytes of a file are asked for here.
    """
    os.sync()
    np.ones(2 * size, np.uint8)


def verified(path: Path) -> None:
    """Reading compares each array with its digest, or with its checksum."""
    for value in polyak.open(path).values():
        assert value is not None


def measured(pair: Pair, size: int, turns: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="polyak-bench-") as name:
        theirs, mine = Path(name, "theirs"), Path(name, "mine")
        theirs.mkdir()
        mine.mkdir()
        jobs = {
            "bare": lambda: pair.bare(theirs / pair.file, size),
            "ours": lambda: pair.ours(mine / pair.file, size),
            "verify": lambda: verified(mine / pair.file),
            "cp": lambda: _copied(theirs, Path(name, "copy")),
            "least": lambda: _replaced(arrays(size), Path(name, "least")),
        }
        for job in jobs.values():
            job()  # imports, and an old file to replace
        taken = {kind: [] for kind in jobs}
        for _ in range(turns):
            for kind, job in jobs.items():
                taken[kind].append(timed(job, size))
    wall = {kind: statistics.median(t.wall for t in found) for kind, found in taken.items()}
    processor = {f"{kind} cpu": statistics.median(t.processor for t in found) for kind, found in taken.items()}
    return {**wall, **processor, "ratio": _ratio(taken, "ours"), "least ratio": _ratio(taken, "least")}


def _ratio(taken: dict[str, list[Turn]], kind: str) -> float:
    return statistics.median(t.wall / b.wall for t, b in zip(taken[kind], taken["bare"], strict=True))


def _replaced(values: dict[str, np.ndarray], path: Path) -> None:
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as file:
        for value in values.values():
            file.write(value.data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _copied(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.durability", description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="MiB")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", default="")
    parser.add_argument("--quick", action="store_true", help="a sixteenth of the size, one turn")
    asked = parser.parse_args()
    size = (asked.size // 16 if asked.quick else asked.size) * MEBI
    found = {p.name: measured(p, size, 1 if asked.quick else asked.turns) for p in PAIRS if asked.only in p.name}
    heads = ["save", "bare s", "polyak s", "ratio", "least", "of cp", "bare cpu s", "polyak cpu s", "verify GiB/s"]
    rows = [
        [
            name,
            *(f"{f[k]:.2f}" for k in ("bare", "ours", "ratio", "least ratio")),
            f"{f['ours'] / f['cp']:.2f}",
            *(f"{f[k]:.2f}" for k in ("bare cpu", "ours cpu")),
            f"{size / f['verify'] / (1 << 30):.2f}",
        ]
        for name, f in found.items()
    ]
    print(table(heads, rows))
    if not (asked.only or asked.quick):
        keep("durability", found)


if __name__ == "__main__":
    main()
