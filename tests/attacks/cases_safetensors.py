"""safetensors, single and sharded: what tests/files has not already."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from tests.attacks.attack import Attack, Build, one_file

from polyak.errors import FileError, UnknownFormat
from polyak.files import safetensors, safetensors_sharded
from polyak.snapshot import Snapshot

INDEX = "model.safetensors.index.json"
ARRAYS = {"a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "b/kernel": np.ones(4, np.float64)}


def own(directory: Path) -> Path:
    safetensors.write(Snapshot.from_arrays(ARRAYS), directory / "model.safetensors")
    return directory / "model.safetensors"


def own_sharded(directory: Path) -> Path:
    safetensors_sharded.write(Snapshot.from_arrays(ARRAYS), directory / INDEX, shard_bytes=30)
    return directory / INDEX


def raw(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def plain(directory: Path) -> Path:
    """As other tools write it: no manifest, no checksum."""
    entries, data = {}, b""
    for name, array in ARRAYS.items():
        offsets = [len(data), len(data) + array.nbytes]
        entries[name] = {"dtype": f"F{8 * array.itemsize}", "shape": array.shape, "data_offsets": offsets}
        data += array.tobytes()
    return one_file("model.safetensors", raw(json.dumps(entries).encode(), data))(directory)


def told(state: str) -> bytes:
    """A header whose manifest, with a right digest, has this text as the state of its average."""
    text = '{"tool":"polyak 0","version":1,"weights":[],"roles":{"average":' + state + "}}"
    digest = xxhash.xxh3_128_hexdigest(text.encode())
    return raw(json.dumps({"__metadata__": {"polyak": text, "polyak.digest": digest}}).encode())


def index(weight_map: Any, prepare: Callable[[Path], object] = lambda directory: None) -> Build:
    def build(directory: Path) -> Path:
        prepare(directory)
        text = weight_map if isinstance(weight_map, str) else json.dumps({"weight_map": weight_map})
        (directory / INDEX).write_text(text)
        return directory / INDEX

    return build


def linked(target: str) -> Callable[[Path], object]:
    """A shard that is a link to somewhere."""
    return lambda directory: (directory / "s.safetensors").symlink_to(target)


def outside(directory: Path) -> None:
    """A good file one level up: an index that could reach it would read it."""
    plain(directory.parent)


ONE = {"w": "s.safetensors"}
ATTACKS = (
    Attack("safetensors: a shape of NaN", one_file(
        "x.safetensors", raw(b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4))
    ), "weight 'w': its description is not readable"),
    Attack("safetensors: an infinite offset", one_file(
        "x.safetensors", raw(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,1e999]}}', bytes(4))
    ), "weight 'w': its description is not readable"),
    Attack("safetensors: a count of NaN", one_file("x.safetensors", told('{"rule":{},"count":NaN}')), "manifest"),
    Attack("safetensors: a count of 1e999", one_file("x.safetensors", told('{"rule":{},"count":1e999}')), "manifest"),
    Attack("safetensors: a fractional count", one_file("x.safetensors", told('{"rule":{},"count":1.5}')), "manifest"),
    Attack("safetensors: offsets that overlap under names that sort apart", one_file("x.safetensors", raw(
        b'{"z":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',
        bytes(12),
    )), "expected an array at byte 8 of the data, received one at 4"),
    Attack("safetensors: a name of a thousand megabytes", one_file(
        "x.safetensors", struct.pack("<Q", 10**9) + b'{"' + b"n" * 1000
    ), "of no known format", UnknownFormat),
    Attack("safetensors: a header of a million brackets", one_file("x.safetensors", raw(b'{"a":' + b"[" * 10**6)),
           "the header is not readable", bomb=True),
    Attack("safetensors: an integer of a million digits", one_file(
        "x.safetensors", raw(b'{"a":{"dtype":"F32","shape":[' + b"9" * 10**6 + b'],"data_offsets":[0,4]}}', bytes(4))
    ), "the header is not readable"),
    Attack("sharded: a shard above its directory", index({"w": "../model.safetensors"}, outside),
           "shard '../model.safetensors': expected a file in the index's directory"),
    Attack("sharded: a shard that is a link to itself", index(ONE, linked("s.safetensors")), "is missing", FileError),
    Attack("sharded: a shard that never ends", index(ONE, linked("/dev/zero")), "a link that leads out",
           FileError),
    Attack("sharded: a shard that is a pipe", index(ONE, lambda d: os.mkfifo(d / "s.safetensors")), "is missing",
           FileError),
    Attack("sharded: a shard that is the system's", index(ONE, linked("/etc/passwd")),
           "shard 's.safetensors': expected a file of its own, received a link that leads out", FileError),
    Attack("sharded: a shard that is the index", index({"w": INDEX}), "expected a safetensors file"),
    Attack("sharded: a shard that is a directory", index(ONE, lambda d: (d / "s.safetensors").mkdir()), "is missing",
           FileError),
    Attack("sharded: a name of 5,000 letters", index({"w": "s" * 5000 + ".safetensors"}),
           "shard 'sss.*: expected a file in the index's directory"),
    Attack("sharded: a deep index", index('{"weight_map":' * 100_000), "expected a text"),
    Attack("sharded: a metadata of NaN", index('{"metadata":{"total_size":NaN,"polyak":NaN},"weight_map":{}}'),
           "the manifest does not have its digest"),
    Attack("sharded: a weight map within a weight map", index({"w": {"w": "s.safetensors"}}), "expected a text"),
)  # fmt: skip
