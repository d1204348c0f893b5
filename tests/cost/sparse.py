"""Files of ten gigabytes that take no room on the disk: headers as the tools write them, and holes for the data."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import h5py
from tests.attacks.cases_tensorflow import FLOAT, integer, shape, table
from tests.files.test_torch_pt import Call, Global, pickled, storage

GIGA = 1_000_000_000
NAMES = [f"block/{i}/kernel" for i in range(10)]
SIZE = GIGA // 4  # elements of each


def hole(path: Path, header: bytes, size: int) -> Path:
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)
    return path


def safetensors(directory: Path) -> Path:
    entries = {
        name: {"dtype": "F32", "shape": [SIZE], "data_offsets": [i * GIGA, (i + 1) * GIGA]}
        for i, name in enumerate(NAMES)
    }
    header = json.dumps(entries).encode()
    return hole(directory / "x.safetensors", struct.pack("<Q", len(header)) + header, 10 * GIGA)


def _zipped(path: Path, members: list[tuple[str, bytes, int]]) -> Path:
    """A stored zip whose members are a start and a hole; their checksums are not looked at before they are read."""
    with path.open("w+b") as file, zipfile.ZipFile(file, "w") as archive:
        for name, start, size in members:
            info = zipfile.ZipInfo(name)
            info.header_offset, info.CRC = file.tell(), 0 if size else zlib.crc32(start)
            info.file_size = info.compress_size = len(start) + size
            file.write(info.FileHeader(zip64=False) + start)
            file.seek(size, 1)
            archive.filelist.append(info)
            archive.NameToInfo[name] = info
            archive._didModify, archive.start_dir = True, file.tell()  # type: ignore[attr-defined]
    return path


def npz(directory: Path) -> Path:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({SIZE},), }}\n".encode()
    start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
    return _zipped(directory / "x.npz", [(f"{name}.npy", start, GIGA) for name in NAMES])


def torch_zip(directory: Path) -> Path:
    rebuilt = Global("torch._utils", "_rebuild_tensor_v2")
    tree = {
        name: Call(rebuilt, storage("FloatStorage", str(i), SIZE), 0, (SIZE,), (1,), False, {})
        for i, name in enumerate(NAMES)
    }
    members = [("x/data.pkl", pickled(tree), 0), *((f"x/data/{i}", b"", GIGA) for i in range(len(NAMES)))]
    return _zipped(directory / "x.pt", members)


def torch_legacy(directory: Path) -> Path:
    """One storage: the second one's length would lie behind the hole."""
    rebuilt = Global("torch._utils", "_rebuild_tensor_v2")
    tree = {"w": Call(rebuilt, storage("FloatStorage", "0", 10 * SIZE), 0, (10 * SIZE,), (1,), False, {})}
    head = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    keys = pickle.dumps(["0"], 2) + struct.pack("<Q", 10 * SIZE)
    return hole(directory / "x.pt", head + pickled(tree) + keys, 10 * GIGA)


def tensorflow(directory: Path) -> Path:
    entries = {b"": integer(1, 1)} | {
        name.encode(): integer(1, FLOAT) + shape(SIZE) + integer(4, i * GIGA) + integer(5, GIGA)
        for i, name in enumerate(NAMES)
    }
    (directory / "x.index").write_bytes(table(entries))
    hole(directory / "x.data-00000-of-00001", b"", 10 * GIGA)
    return directory / "x"


def hdf5(directory: Path) -> Path:
    """Laid out, and not filled."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(directory / "x.weights.h5", "w") as file:
        for i in range(len(NAMES)):
            group = file.create_group(f"layers/dense_{i}/vars")
            h5py.h5d.create(group.id, b"0", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((SIZE,)), plan)
    return directory / "x.weights.h5"


MAKERS: OrderedDict[str, Callable[[Path], Path]] = OrderedDict(
    safetensors=safetensors, npz=npz, torch=torch_zip, torch_legacy=torch_legacy, tensorflow=tensorflow, hdf5=hdf5
)
