"""Keras' files: HDF5 that shares, repeats and refers; archives and indexes that lie."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tests.attacks.attack import Attack, Build, Member, one_file, zipped
from tests.attacks.cases_safetensors import ARRAYS

from polyak.errors import FileError, UnknownFormat

MEBI = 1 << 20


def h5(make: Callable[[h5py.File], None], name: str = "x.weights.h5") -> Build:
    def build(directory: Path) -> Path:
        with h5py.File(directory / name, "w") as file:
            make(file)
        return directory / name

    return build


def good(file: h5py.File) -> None:
    for name, array in ARRAYS.items():
        file[f"layers/{name}"] = array


def one_twice(file: h5py.File) -> None:
    """A thousand names of one array of a megabyte."""
    file["layers/w0"] = np.zeros(MEBI // 4, np.float32)
    for i in range(1, 1000):
        file[f"layers/w{i}"] = file["layers/w0"]


def circle_of_two(file: h5py.File) -> None:
    file["a/w"] = np.zeros(1)
    file["a/b/c"] = file["a"]


def link_chain(file: h5py.File) -> None:
    for i in range(100):
        file[f"l{i}"] = h5py.SoftLink(f"/l{i + 1}")


def external_to_itself(file: h5py.File) -> None:
    file["w"] = h5py.ExternalLink("x.weights.h5", "/w")


def deep(file: h5py.File) -> None:
    group = file
    for _ in range(500):
        group = group.create_group("g")
    group["w"] = np.zeros(1)


def wide_shape(file: h5py.File) -> None:
    file.create_dataset("w", (2**31, 2**31), "f8", chunks=(1, 1024))


def resizable_claim(file: h5py.File) -> None:
    """One chunk is stored, and a tebibyte declared."""
    held = file.create_dataset("w", (1024,), "f4", maxshape=(None,), chunks=(1024,))
    held[:] = 1
    held.resize((2**38,))


def repeated_text(file: h5py.File) -> None:
    """A text of four megabytes, to which twenty thousand places of an attribute are made to refer."""
    file["layers/w"] = np.zeros(1)
    texts = ["x" * 4 * MEBI] + ["y"] * 20_000
    file.create_dataset("hold", data=0)
    file.attrs.create("layer_names", texts, dtype=h5py.string_dtype())


def repeated_text_file() -> bytes:
    """HDF5's own writer stores each text once for each place; here all places get the reference of the first."""
    with io.BytesIO() as buffer:
        with h5py.File(buffer, "w") as file:
            file["layers/w"] = np.zeros(1)
            file.attrs.create("layer_names", ["x" * 4 * MEBI, *["y"] * 4000], dtype=h5py.string_dtype())
        content = buffer.getvalue()
    length = (4 * MEBI).to_bytes(4, "little")
    at = next(i for i in _finds(content, length) if content[i + 16 : i + 20] == (1).to_bytes(4, "little"))
    return content[:at] + content[at : at + 16] * 4001 + content[at + 16 * 4001 :]


def _finds(content: bytes, part: bytes) -> list[int]:
    found, at = [], content.find(part)
    while at >= 0:
        found.append(at)
        at = content.find(part, at + 1)
    return found


def inner(make: Callable[[h5py.File], None] = good) -> bytes:
    with io.BytesIO() as buffer:
        with h5py.File(buffer, "w") as file:
            make(file)
        return buffer.getvalue()


def archive(weights: bytes, config: bytes = b"{}", *others: Member, **claims: Any) -> bytes:
    return zipped([Member("config.json", config), *others, Member("model.weights.h5", weights, **claims)])


def index(weight_map: Any) -> Build:
    def build(directory: Path) -> Path:
        with h5py.File(directory / "m_00000.weights.h5", "w") as file:
            good(file)
        text = weight_map if isinstance(weight_map, str) else json.dumps({"weight_map": weight_map})
        (directory / "m.weights.json").write_text(text)
        return directory / "m.weights.json"

    return build


def good_sharded(directory: Path) -> Path:
    return index({f"/layers/{name.partition('/')[0]}": "m_00000.weights.h5" for name in ARRAYS})(directory)


def linked_shard(target: str) -> Build:
    def build(directory: Path) -> Path:
        path = good_sharded(directory)
        (directory / "m_00000.weights.h5").unlink()
        (directory / "m_00000.weights.h5").symlink_to(target)
        return path

    return build


SHARD = "m_00000.weights.h5"
ATTACKS = (
    Attack("hdf5: a thousand names of one array", h5(one_twice), "'layers/w1.*'", bomb=True),
    Attack("hdf5: a circle of two groups", h5(circle_of_two), "group 'a/b/c/': expected a tree of groups"),
    Attack("hdf5: a chain of links", h5(link_chain), "received a soft link", UnknownFormat),
    Attack("hdf5: a link to the file itself", h5(external_to_itself), "'w': .* received an external link"),
    Attack("hdf5: five hundred groups in each other", h5(deep), "expected a tree of groups"),
    Attack("hdf5: a shape of 2**62", h5(wide_shape), "weight 'w': expected 36,893,488,147,419,103,232 bytes"),
    Attack("hdf5: a tebibyte of which one chunk is stored", h5(resizable_claim),
           "weight 'w': expected 1,099,511,627,776 bytes by its shape, received 4,096"),
    Attack("hdf5: an attribute that repeats one text", one_file("x.weights.h5", repeated_text_file),
           "texts of up to 4,194,304 bytes in a list of many", bomb=True),
    Attack("keras: a configuration of half a gigabyte", one_file("x.keras", lambda: zipped([
        Member("config.json", b" " * 512 * MEBI, packed=True), Member("model.weights.h5", inner())
    ])), "config.json': expected at most 20 bytes", bomb=True),
    Attack("keras: a deep configuration", one_file("x.keras", archive(inner(), b'{"a":' * 100_000)), None),
    Attack("keras: two sets of weights", one_file("x.keras", archive(inner(), b"{}", Member(
        "model.weights.h5", inner()
    ))), "two members of one name"),
    Attack("keras: weights of four gigabytes in a file of thousands", one_file("x.keras", archive(
        inner(), size=4_000_000_000
    )), "model.weights.h5': expected at most 20 bytes"),
    Attack("keras: weights with another checksum", one_file("x.keras", archive(inner(), crc=1)), "Bad CRC-32"),
    Attack("keras: weights that are the configuration", one_file("x.keras", archive(inner(), at=0)),
           "model.weights.h5' at byte 0: it overlaps another"),
    Attack("keras: weights that are no HDF5", one_file("x.keras", archive(b"nonsense")), "expected an HDF5 file"),
    Attack("keras: no weights", one_file("x.keras", zipped([Member("config.json", b"{}")])),
           "expected model.weights.h5 in the archive", UnknownFormat),
    Attack("keras sharded: a group named twice", index(
        f'{{"weight_map":{{"/layers/a":"{SHARD}","/layers/b":"{SHARD}","/layers/b":"{SHARD}"}}}}'
    ), "occurs twice"),
    Attack("keras sharded: a deep index", index('{"weight_map":{"a":"m_00000.weights.h5","b":' + "[" * 10**5),
           "the index of shards is not readable"),
    Attack("keras sharded: a shard of NaN", index(
        f'{{"weight_map":{{"/layers/a":"{SHARD}","/layers/b":NaN}}}}'
    ),
           "the index of shards is not readable: expected a list"),
    Attack("keras sharded: a shard above", index({"/layers/a": SHARD, "/layers/b": "../m_00000.weights.h5"}),
           "expected the name of a shard beside the index"),
    Attack("keras sharded: a shard that is a link to itself", linked_shard(SHARD), "expected the shard", FileError),
    Attack("keras sharded: a shard that never ends", linked_shard("/dev/zero"), "a link that leads out",
           FileError),
    Attack("keras sharded: a shard that is the system's", linked_shard("/etc/passwd"), "a link that leads out",
           FileError),
)  # fmt: skip
