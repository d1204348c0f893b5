"""After a fork parent and child read one open file: each from places of its own."""

from __future__ import annotations

import json
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


# A child that moves the place of each open file that both processes have, as one that reads does, only all the time.
MOVED = """
import os, signal, sys
import numpy as np
import polyak

held, expected = polyak.open(sys.argv[1]), np.load(sys.argv[2])
parent, (told, tell) = os.getpid(), os.pipe()
child = os.fork()
if child == 0:
    shared = []
    for number in range(3, 64):
        try:
            os.lseek(number, 0, os.SEEK_CUR)
            shared.append(number)
        except OSError:  # none, or a pipe
            pass
    os.write(tell, bytes([len(shared)]))
    while shared and os.getppid() == parent:
        for number in shared:
            os.lseek(number, 5, os.SEEK_SET)
    os._exit(0)
files = os.read(told, 1)[0]
try:
    right = [np.array_equal(held[name], value) for _ in range(5) for name, value in zip(sorted(held), expected)]
finally:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
print(files > 0, right.count(False), len(right))
"""


def _weights(path: Path, values: np.ndarray, first: int = 0, **how: object) -> Path:
    with h5py.File(path, "w") as file:
        for i, value in enumerate(values, first):
            file.create_dataset(f"layers/d{i:02}/vars/0", data=value, **how)
    return path


def _packed_weights(path: Path, values: np.ndarray) -> None:
    _weights(path, values, compression="gzip", compression_opts=1)


def _archive(path: Path, values: np.ndarray) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.write(_weights(path.with_suffix(".h5"), values), "model.weights.h5")


def _shards(path: Path, values: np.ndarray) -> None:
    _weights(path.with_name("a_0.weights.h5"), values[:5])
    _weights(path.with_name("a_1.weights.h5"), values[5:], 5)
    homes = {f"/layers/d{i:02}/vars": f"a_{i // 5}.weights.h5" for i in range(len(values))}
    path.write_text(json.dumps({"metadata": {}, "weight_map": homes}))


def _packed_arrays(path: Path, values: np.ndarray) -> None:
    np.savez_compressed(path, **{f"w{i}": value for i, value in enumerate(values)})


MAKERS: dict[str, Callable[[Path, np.ndarray], object]] = {
    "plain.weights.h5": _weights,
    "packed.weights.h5": _packed_weights,
    "model.keras": _archive,
    "a.weights.json": _shards,
    "packed.npz": _packed_arrays,
}


@pytest.mark.parametrize("name", MAKERS)
def test_no_other_process_moves_the_place_that_is_read(name: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 100, (10, 250_000)).astype(np.float32)  # hardly packed, 10 MB
    MAKERS[name](tmp_path / name, values)
    np.save(tmp_path / "expected.npy", values)
    command = [sys.executable, "-c", MOVED, str(tmp_path / name), str(tmp_path / "expected.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("True 0 50\n", 0), done.stderr
