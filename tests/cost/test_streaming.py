"""Converting and averaging hold few arrays at a time, whatever the files hold: the whole process is looked at.

What HDF5 and the system's memory maps take is part of it, which Python's own count does not see.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from polyak.files import npz, safetensors, safetensors_sharded
from polyak.snapshot import Snapshot

MEBI = 1 << 20
LARGEST = 64 * MEBI
COUNT = 6
ROOM = 48 * MEBI  # beside the arrays: buffers of files, Python's own, what is imported on the way
# The first argument is done with small files, so that imports are not counted. The peak starts anew between the two;
# that of getrusage() would be the parent's until this process exceeds it.
MEASURED = """
import sys
import polyak
def status(name):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
    return int(lines[name].split()[0]) * 1024
small, large = sys.argv[1:]
eval(small)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
eval(large)
print(status("VmHWM") - before)
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="/proc has the peak"),
]


def arrays(size: int, dtype: Any, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays of so many bytes each."""
    count = size // np.dtype(dtype).itemsize
    return {f"w{i}": np.full(count, i + seed, dtype) for i in range(COUNT)}


def added(small: str, large: str) -> int:
    """By how much the second statement raises the peak of a process that has done the first."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, small, large], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(json.loads(done.stdout.splitlines()[-1]))


def as_safetensors(path: Path, held: dict[str, np.ndarray]) -> Path:
    safetensors.write(Snapshot.from_arrays(held), path / "x.safetensors")
    return path / "x.safetensors"


def as_shards(path: Path, held: dict[str, np.ndarray]) -> Path:
    safetensors_sharded.write(Snapshot.from_arrays(held), path / "x.safetensors.index.json", 2 * LARGEST)
    return path / "x.safetensors.index.json"


def as_npz(path: Path, held: dict[str, np.ndarray]) -> Path:
    npz.write(Snapshot.from_arrays(held), path / "x.npz")
    return path / "x.npz"


def as_hdf5(path: Path, held: dict[str, np.ndarray]) -> Path:
    import h5py

    with h5py.File(path / "x.weights.h5", "w") as file:
        for name, array in held.items():
            file[f"layers/{name}/vars/0"] = array
    return path / "x.weights.h5"


def as_torch(path: Path, held: dict[str, np.ndarray]) -> Path:
    torch = pytest.importorskip("torch")
    torch.save({name: torch.from_numpy(array) for name, array in held.items()}, path / "x.pt")
    return path / "x.pt"


def as_tensorflow(path: Path, held: dict[str, np.ndarray]) -> Path:
    tf = pytest.importorskip("tensorflow")
    tf.raw_ops.SaveV2(
        prefix=str(path / "x"), tensor_names=list(held), shape_and_slices=[""] * COUNT, tensors=list(held.values())
    )
    return path / "x"


WRITERS = [as_safetensors, as_shards, as_npz, as_hdf5, as_torch, as_tensorflow]


def places(tmp_path: Path) -> list[Path]:
    made = [tmp_path / name for name in ("small", "large")]
    for path in made:
        path.mkdir()
    return made


@pytest.mark.parametrize("write", WRITERS, ids=lambda w: w.__name__)
@pytest.mark.parametrize("end", ["safetensors", "npz", "safetensors.index.json"])
def test_converting_holds_three_arrays_at_most(write: Any, end: str, tmp_path: Path) -> None:
    sources = [write(p, arrays(n, np.float32)) for p, n in zip(places(tmp_path), (4096, LARGEST), strict=True)]
    statements = [f"polyak.convert({str(s)!r}, {str(s.parent / f'out.{end}')!r})" for s in sources]
    assert added(*statements) < 3 * LARGEST + ROOM


@pytest.mark.parametrize("write", WRITERS, ids=lambda w: w.__name__)
def test_averaging_holds_three_arrays_at_most(write: Any, tmp_path: Path) -> None:
    statements = []
    for place, size in zip(places(tmp_path), (4096, LARGEST), strict=True):
        sources = []
        for member in range(3):
            (place / str(member)).mkdir()
            sources.append(str(write(place / str(member), arrays(size, np.float32, member))))
        statements.append(f"polyak.average({sources!r}, out={str(place / 'mean.safetensors')!r})")
    assert added(*statements) < 3 * LARGEST + ROOM


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_averaging_of_other_dtypes_does_so_too(dtype: Any, tmp_path: Path) -> None:
    statements = []
    for place, size in zip(places(tmp_path), (4096, LARGEST), strict=True):
        sources = [str(as_safetensors(place, arrays(size, dtype)))]
        statements.append(f"polyak.average({sources * 2!r}, out={str(place / 'mean.safetensors')!r})")
    assert added(*statements) < max(3 * LARGEST, 2 * LARGEST + 128 * MEBI) + ROOM
