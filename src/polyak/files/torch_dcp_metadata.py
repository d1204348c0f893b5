"""The ``.metadata`` of a distributed checkpoint of PyTorch: which tensors there are, and where their chunks lie.

It is a pickle, run on the machine that runs nothing. The classes in it stay inert notes; here their fields are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any

from polyak.errors import DamagedFile
from polyak.files import torch_globals
from polyak.files.limits import FREE_STEPS
from polyak.files.torch_pickle import Machine, load
from polyak.files.torch_values import Budget, Name, Refused, Stub
from polyak.weights import numpy_dtype

_CLASSES = "torch.distributed.checkpoint.metadata."
_DTYPES = {
    "float32": "float32", "float64": "float64", "float16": "float16", "bfloat16": "bfloat16", "int64": "int64",
    "int32": "int32", "int16": "int16", "int8": "int8", "uint8": "uint8", "uint16": "uint16", "uint32": "uint32",
    "uint64": "uint64", "bool": "bool", "complex64": "complex64", "complex128": "complex128",
    "float8_e4m3fn": "float8_e4m3fn", "float8_e5m2": "float8_e5m2", "float8_e4m3fnuz": "float8_e4m3fnuz",
    "float8_e5m2fnuz": "float8_e5m2fnuz", "float8_e8m0fnu": "float8_e8m0fnu",
}  # fmt: skip
_MOST_AXES = 32
_MOST_STEPS = 128
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes of a file in the checkpoint's directory. ``coded``: how they were transformed, or ""."""

    file: str
    start: int
    length: int
    coded: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box of a tensor: where it begins, its extent, and where it is stored."""

    offsets: Shape
    sizes: Shape
    place: Place


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor: shape, dtype by name ("" for one that is not read), and its chunks."""

    shape: Shape
    dtype: str
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a checkpoint holds, by path: tensors, and objects that were stored as pickles."""

    tensors: Mapping[str, Entry]
    objects: Mapping[str, Place]


def read_metadata(raw: bytes, origin: str) -> Metadata:
    """Read the pickle. Raises DamagedFile."""
    # A tensor takes two hundred bytes here and, with some of its axes and names for each, nearly as many steps.
    budget = Budget(FREE_STEPS + len(raw))
    value = load(BytesIO(raw), Machine(torch_globals.find, torch_globals.call, torch_globals.storage, budget), origin)
    try:
        return _metadata(value, origin)
    except (Refused, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DamagedFile(
            f"{origin}: .metadata does not describe a distributed checkpoint: {error!r:.160}",
            hint="the file is damaged; restore it from a copy",
        ) from error


def _metadata(value: Any, origin: str) -> Metadata:
    held = _fields(value, "Metadata")
    names = _names(held["state_dict_metadata"], held.get("planner_data"))
    places = dict(_places(held["storage_data"], origin))
    tensors: dict[str, Entry] = {}
    objects: dict[str, Place] = {}
    for key, entry in held["state_dict_metadata"].items():
        path = names[key]
        if path in tensors or path in objects:
            raise ValueError(f"two values {path!r:.80}")
        if isinstance(entry, Stub) and entry.name == f"{_CLASSES}BytesStorageMetadata":
            objects[path] = places[key, None]
        else:
            tensors[path] = _entry(key, _fields(entry, "TensorStorageMetadata"), places)
    return Metadata(tensors, objects)


def _fields(value: Any, name: str) -> dict[str, Any]:
    """The fields of a noted object of one class."""
    if not isinstance(value, Stub) or value.name.rpartition(".")[2] != name or not isinstance(value.state, dict):
        raise ValueError(f"expected a {name}, received {getattr(value, 'name', type(value).__name__)!s:.80}")
    return value.state


def _names(entries: Any, planned: Any) -> dict[str, str]:
    """The path of each key: the steps that the planner joined with dots, joined with slashes."""
    names = {}
    for key in entries:
        if not isinstance(key, str):
            raise TypeError("a tensor without a name")
        key.encode()
        steps = planned.get(key) if isinstance(planned, dict) else None
        whole = isinstance(steps, tuple) and ".".join(map(str, steps)) == key and len(steps) <= _MOST_STEPS
        names[key] = "/".join(map(str, steps)) if whole and steps else key
    return names


def _places(storage: Any, origin: str) -> Iterator[tuple[tuple[str, Shape | None], Place]]:
    """Where each chunk is, by the name of its tensor and its offsets."""
    for noted, info in storage.items():
        index = _fields(noted.args[0] if isinstance(noted, Stub) and noted.name == "key" else noted, "MetadataIndex")
        at = _fields(info, "_StorageInfo")
        offset = None if index.get("offset") is None else _shape(index["offset"])
        coded = at.get("transform_descriptors")
        place = Place(_inside(at["relative_path"], origin), _natural(at["offset"]), _natural(at["length"]))
        yield (
            (index["fqn"], offset),
            place if not coded else Place(place.file, place.start, place.length, "transformed"),
        )


def _inside(name: Any, origin: str) -> str:
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if not parts or name.startswith("/") or ".." in parts or set(name) & set("\\\0:"):
        raise DamagedFile(f"{origin}: {name!r:.120}: expected a file in the checkpoint's directory: refused")
    return str(name)


def _entry(key: str, held: Mapping[str, Any], places: Mapping[tuple[str, Shape | None], Place]) -> Entry:
    shape = _shape(held["size"])
    dtype = _dtype(held["properties"])
    chunks = []
    for noted in held["chunks"]:
        box = _fields(noted, "ChunkStorageMetadata")
        offsets, sizes = _shape(box["offsets"]), _shape(box["sizes"])
        if not len(offsets) == len(sizes) == len(shape):
            raise ValueError(f"{key!r:.80}: a chunk of {sizes} in {shape}")
        if any(o + n > whole for o, n, whole in zip(offsets, sizes, shape, strict=True)):
            raise ValueError(f"{key!r:.80}: a chunk of {sizes} at {offsets} in {shape}")
        place = places[key, offsets]
        _refuse_absurd(key, sizes, dtype, place)
        chunks.append(Chunk(offsets, sizes, place))
    covered = sum(math.prod(chunk.sizes) for chunk in chunks)
    if covered != math.prod(shape):
        raise ValueError(f"{key!r:.80}: chunks of {covered} elements in all for {shape}")
    return Entry(shape, dtype, tuple(chunks))


def _refuse_absurd(key: str, sizes: Shape, dtype: str, place: Place) -> None:
    needed = math.prod(sizes) * (numpy_dtype(dtype).itemsize if dtype else 0)
    if needed > place.length and not place.coded:
        raise ValueError(f"{key!r:.80}: a chunk of {needed} bytes in {place.length}")


def _dtype(properties: Any) -> str:
    """The dtype of a tensor; its properties are a tuple of state, the dtype first, or their fields by name."""
    state = properties.state if isinstance(properties, Stub) else None
    named = state[0] if isinstance(state, tuple) and state else state.get("dtype") if isinstance(state, dict) else None
    if not isinstance(named, Name) or named.module != "torch":
        raise ValueError("a tensor without a dtype")
    return _DTYPES.get(named.name, "")


def _shape(value: Any) -> Shape:
    if not isinstance(value, (tuple, list)) or len(value) > _MOST_AXES:
        raise ValueError("no shape")
    return tuple(_natural(n) for n in value)


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**60:
        raise ValueError(f"{type(value).__name__} as a size or place")
    return value
