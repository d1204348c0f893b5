"""PyTorch's first format, a tar archive: read as PyTorch itself reads it.

No tool of today writes it. The files are made here by the form that ``torch.serialization.legacy_load`` reads, and
that function is the oracle.
"""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyak
from polyak.errors import DamagedFile
from polyak.files import torch_pt

torch = pytest.importorskip("torch")


@dataclass
class Made:
    """The contents of an archive: storages by key, parts of them, tensors by key, and what refers to them."""

    storages: dict[int, np.ndarray] = field(default_factory=dict)
    views: list[Any] = field(default_factory=list)
    tensors: dict[int, tuple[int, tuple[int, ...], tuple[int, ...], int]] = field(default_factory=dict)
    tree: Any = None


class Keyed:
    """Stands for a tensor or storage in the tree."""

    def __init__(self, key: Any) -> None:
        self.key = key


class _Pickler(pickle._Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.key if isinstance(obj, Keyed) else None


_KINDS = {"float32": "FloatStorage", "float64": "DoubleStorage", "int64": "LongStorage", "float16": "HalfStorage"}


def dumped(value: Any) -> bytes:
    out = io.BytesIO()
    _Pickler(out, protocol=2).dump(value)
    return out.getvalue()


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def entry(key: int, middle: Any, kind: bytes) -> bytes:
    """A pickle of three values, the last of which is a class."""
    number = b"\x8a\x09" + key.to_bytes(9, "little")
    return b"\x80\x02(" + number + number_or_text(middle) + kind + b"t."


def number_or_text(value: Any) -> bytes:
    if isinstance(value, int):
        return b"\x8a\x09" + value.to_bytes(9, "little")
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def storages(made: Made) -> bytes:
    parts = [dumped(len(made.storages))]
    for key, array in made.storages.items():
        parts.append(entry(key, "cpu", named("torch", _KINDS[array.dtype.name])))
        parts.append(struct.pack("<q", array.size) + array.tobytes())
    return b"".join([*parts, dumped(made.views)])


def tensors(made: Made) -> bytes:
    parts = [dumped(len(made.tensors))]
    for key, (storage, shape, strides, offset) in made.tensors.items():
        parts.append(entry(key, storage, named("torch", "FloatTensor")))
        parts.append(struct.pack(f"<ii{2 * len(shape) + 1}q", len(shape), 0, *shape, *strides, offset))
    return b"".join(parts)


def write(made: Made, path: Path, **other: bytes) -> Path:
    info = dumped({"protocol_version": 1000, "little_endian": True})
    members = {"sys_info": info, "pickle": dumped(made.tree), "tensors": tensors(made), "storages": storages(made)}
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (members | other).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def example() -> Made:
    rng = np.random.default_rng(0)
    made = Made()
    made.storages = {
        94000001: rng.normal(size=24).astype(np.float32),
        94000002: np.arange(5, dtype=np.int64),
        94000003: rng.normal(size=6).astype(np.float64),
    }
    made.views = [(94000004, 94000001, 4, 20)]
    made.tensors = {
        1: (94000001, (2, 3, 4), (12, 4, 1), 0),
        2: (94000001, (4, 3), (1, 4), 2),
        3: (94000002, (5,), (1,), 0),
        4: (94000004, (2, 4), (4, 1), 8),
        5: (94000003, (), (), 3),
    }
    keyed = {n: Keyed(str(i)) for i, n in enumerate(("conv.weight", "conv.turned", "steps", "part", "scalar"), 1)}
    made.tree = {"state_dict": OrderedDict(keyed), "epoch": 3}
    return made


def test_every_tensor_is_as_pytorch_reads_it(example: Made, tmp_path: Path) -> None:
    path = write(example, tmp_path / "old.pth")
    wanted = torch.load(path, weights_only=False)["state_dict"]
    held = torch_pt.read(path)
    assert {n.removeprefix("state_dict/") for n in held.tensors} == set(wanted)
    for name, tensor in wanted.items():
        found = held.tensors[f"state_dict/{name}"]
        assert (found.shape, found.dtype) == (tuple(tensor.shape), tensor.numpy().dtype.name)
        assert found.read().tobytes() == tensor.contiguous().numpy().tobytes()
    assert (held.facts["epoch"], held.integrity) == (3, "none")


def test_it_is_opened_as_the_weights_of_pytorch(example: Made, tmp_path: Path) -> None:
    held = polyak.open(write(example, tmp_path / "old.pth"))
    assert (held.roles, held.manifest.layout) == (("raw",), "torch")
    assert held["conv.weight"].shape == (2, 3, 4)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.75])
def test_a_truncated_file_is_refused(example: Made, tmp_path: Path, share: float) -> None:
    path = write(example, tmp_path / "old.pth")
    content = path.read_bytes().rstrip(b"\0")
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DamagedFile):
        torch_pt.read(path)


def test_a_damaged_header_is_refused(example: Made, tmp_path: Path) -> None:
    path = write(example, tmp_path / "old.pth")
    content = bytearray(path.read_bytes())
    content[512 * 2 + 130] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFile):
        torch_pt.read(path)


def refused(made: Made, tmp_path: Path, match: str, **other: bytes) -> None:
    with pytest.raises(DamagedFile, match=match):
        torch_pt.read(write(made, tmp_path / "bad.pth", **other))


def test_what_does_not_fit_into_the_file_is_refused(example: Made, tmp_path: Path) -> None:
    for tensor, match in (
        ((94000001, (2, 3, 5), (15, 5, 1), 0), "30 elements in a storage of 24"),
        ((94000001, (2,), (-1,), 0), "as a size or place"),
        ((7, (2,), (1,), 0), "the tensor '7'"),
    ):
        example.tensors[1] = tensor
        refused(example, tmp_path, match)
    example.tensors[1] = (94000001, (2,), (1,), 0)
    example.views = [(94000004, 94000001, 4, 21)]
    refused(example, tmp_path, "elements up to 25 of a storage of 24")


def test_absurd_numbers_are_refused_before_anything_is_read(example: Made, tmp_path: Path) -> None:
    refused(example, tmp_path, "a number of descriptions", storages=dumped(2**40))
    huge = dumped(1) + entry(1, "cpu", named("torch", "FloatStorage")) + struct.pack("<q", 2**40)
    refused(example, tmp_path, "bytes", storages=huge)
    many = dumped(1) + entry(1, 94000001, named("torch", "FloatTensor")) + struct.pack("<ii", 10**6, 0) + bytes(64)
    refused(example, tmp_path, "axes", tensors=many)


def test_a_missing_member_is_refused(example: Made, tmp_path: Path) -> None:
    path = write(example, tmp_path / "old.pth")
    with tarfile.open(path, "w:") as archive:
        archive.addfile(tarfile.TarInfo("sys_info"))
    with pytest.raises(DamagedFile, match="the archive has no pickle"):
        torch_pt.read(path)


def test_code_is_not_run(example: Made, tmp_path: Path) -> None:
    place = tmp_path / "ran"
    hostile = b"cos\nsystem\n(X" + struct.pack("<I", len(f"touch {place}")) + f"touch {place}".encode() + b"tR."
    for member in ("pickle", "storages", "tensors"):
        refused(example, tmp_path, "which can run code", **{member: hostile})
    assert not place.exists()
