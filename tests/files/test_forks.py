"""After a fork parent and child read one open file: each from places of its own."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import polyak
from polyak.snapshot import Snapshot

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")

ARRAYS = {f"w{i}": np.full(300_000, i, np.float32) for i in range(4)}


def _foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for name, array in ARRAYS.items():
            file.create_dataset(f"layers/{name}/vars/0", data=array)


def _keras(path: Path) -> None:
    weights = path.with_suffix(".weights.h5")
    with h5py.File(weights, "w") as file:
        for name, array in ARRAYS.items():
            file.create_dataset(f"layers/{name}/vars/0", data=np.tile(array, 2))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", '{"class_name": "Functional", "config": {}}')
        archive.write(weights, "model.weights.h5")


def _own(path: Path) -> None:
    polyak.save(Snapshot.from_arrays(ARRAYS), path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "foreign.h5": _foreign,
    "model.keras": _keras,
    "compressed.npz": lambda path: np.savez_compressed(path, **ARRAYS),
    "own.npz": _own,
    "own.safetensors": _own,
    "own.pt": _own,
}
# Orbax is not among them: tensorstore, which reads it, ends a process that a fork has made.
PROGRAM = """
import os, sys
from pathlib import Path
import numpy as np
from polyak import files

held = files.read(Path(sys.argv[1])).tensors
expected = {path: tensor.read() for path, tensor in held.items()}


def wrong():
    return sum(not np.array_equal(t.read(), expected[p]) for _ in range(15) for p, t in held.items())


children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        found = 1
        try:
            found = wrong()
        finally:
            os._exit(min(found, 100))
    children.append(child)
own = wrong()
print(own, *(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_several_processes_read_after_a_fork_gives_each_its_numbers(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("0 0 0\n", 0), done.stderr
