"""safetensors files: polyak's own format. The manifest is in the metadata; any safetensors reader reads the arrays.

Read lazily through a memory map. Written in one pass: the digests have a fixed length, so the header
is written first with blanks and again when they are known.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import xxhash

from polyak.contents import Contents, Tensor
from polyak.errors import DamagedFile
from polyak.files.atomic import replacing
from polyak.manifest import Manifest, digest
from polyak.snapshot import Array, Snapshot
from polyak.weights import numpy_dtype

_CODES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32", "int32": "I32",
    "uint64": "U64", "int64": "I64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "complex64": "C64",
}  # fmt: skip
_NAMES = {code: name for name, code in _CODES.items()}
_BLANK = "0" * 32
_HEADER_LIMIT = 100_000_000
_KEY = "polyak"
_KEY_DIGEST = "polyak.digest"


def recognises(path: Path) -> bool:
    """Whether the first bytes are those of a safetensors file: a plausible length and a JSON object."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size


def read(path: Path) -> Contents:
    """Open a file; only the header is read. Raises DamagedFile."""
    origin = f"file {str(path)!r}"
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, _HEADER_LIMIT):
            raise DamagedFile(f"{origin}: expected a header within {size - 8} bytes, received {length} bytes")
        header = _parsed(file.read(length), origin)
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    metadata = header.pop("__metadata__", {})
    tensors = {name: _tensor(name, entry, view, 8 + length, origin) for name, entry in header.items()}
    _refuse_gaps(header, size - 8 - length, origin)
    manifest = _manifest(metadata, tensors, origin)
    return Contents(origin, "safetensors", tensors, "none" if manifest is None else "xxh3-128", manifest)


def write(snapshot: Snapshot, path: str | os.PathLike[str]) -> Manifest:
    """Write a snapshot with its manifest, array by array. Raises FileError.

    Memory: the largest array.
    """
    manifest = msgspec.structs.replace(
        snapshot.manifest,
        integrity="xxh3-128",
        weights=tuple(msgspec.structs.replace(s, digest=_BLANK) for s in snapshot.manifest.weights),
    )
    with replacing(path) as file:
        start = file.write(_header(manifest))
        stored = tuple(
            msgspec.structs.replace(s, digest=_append(file, snapshot[s.name], s.name)) for s in manifest.weights
        )
        manifest = msgspec.structs.replace(manifest, weights=stored)
        header = _header(manifest)
        assert len(header) == start, "digests have a fixed length"
        file.seek(0)
        file.write(header)
    return manifest


def _append(file: BinaryIO, array: Array, name: str) -> str:
    """Write an array's bytes in C order: a transposed view must not be stored as it lies in memory."""
    array = np.ascontiguousarray(array)
    file.write(array.reshape(-1).view(np.uint8).data if array.size else b"")
    return digest(array)


def _header(manifest: Manifest) -> bytes:
    entries: dict[str, Any] = {}
    offset = 0
    for s in manifest.weights:
        code = _CODES.get(s.weight.dtype)
        if code is None:
            raise DamagedFile(f"weight {s.name!r}: safetensors cannot hold {s.weight.dtype}", hint="cast it first")
        end = offset + s.weight.nbytes
        entries[s.name] = {"dtype": code, "shape": list(s.weight.shape), "data_offsets": [offset, end]}
        offset = end
    text = manifest.to_json()
    entries["__metadata__"] = {_KEY: text, _KEY_DIGEST: xxhash.xxh3_128_hexdigest(text.encode())}
    body = json.dumps(entries, separators=(",", ":")).encode()
    body += b" " * (-len(body) % 8)
    return len(body).to_bytes(8, "little") + body


def _parsed(raw: bytes, origin: str) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise DamagedFile(f"{origin}: a name occurs twice in the header")
        return dict(pairs)

    try:
        header = json.loads(raw, object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{origin}: the header is not readable: {error}") from error
    if not isinstance(header, dict):
        raise DamagedFile(f"{origin}: expected a header of names, received {type(header).__name__}")
    return header


def _tensor(name: str, entry: Any, view: mmap.mmap, base: int, origin: str) -> Tensor:
    try:
        dtype = _NAMES[entry["dtype"]]
        shape = tuple(_natural(n) for n in entry["shape"])
        begin, end = (_natural(n) for n in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFile(f"{origin}: weight {name!r}: unreadable description {entry!r}") from error
    expected = int(np.prod(shape, dtype=object)) * numpy_dtype(dtype).itemsize
    if end - begin != expected or base + end > len(view):
        raise DamagedFile(
            f"{origin}: weight {name!r} at byte {base + begin}: expected {expected} bytes of {len(view) - base - begin} "
            f"left, received {end - begin}",
            hint="the file is truncated or damaged",
        )
    return Tensor(shape, dtype, _reader(view, base + begin, shape, dtype))


def _reader(view: mmap.mmap, offset: int, shape: tuple[int, ...], dtype: str) -> Callable[[], Array]:
    def read_array() -> Array:
        count = int(np.prod(shape, dtype=object))
        return np.frombuffer(view, numpy_dtype(dtype), count, offset).reshape(shape).copy()

    return read_array


def _natural(n: Any) -> int:
    if not isinstance(n, int) or n < 0:
        raise ValueError(n)
    return n


def _refuse_gaps(header: dict[str, Any], size: int, origin: str) -> None:
    """The arrays must cover the file without gaps and overlaps."""
    position = 0
    for begin, end in sorted(tuple(entry["data_offsets"]) for entry in header.values()):
        if begin != position:
            raise DamagedFile(f"{origin}: expected an array at byte {position} of the data, received one at {begin}")
        position = end
    if position != size:
        raise DamagedFile(f"{origin}: expected {position} bytes of data, received {size}", hint="it may be truncated")


def _manifest(metadata: Any, tensors: dict[str, Tensor], origin: str) -> Manifest | None:
    text = metadata.get(_KEY) if isinstance(metadata, dict) else None
    if text is None:
        return None
    if xxhash.xxh3_128_hexdigest(text.encode()) != metadata.get(_KEY_DIGEST):
        raise DamagedFile(f"{origin}: the manifest does not have its digest", hint="restore the file from a copy")
    manifest = Manifest.from_json(text, origin)
    described = {s.name: (s.weight.shape, s.weight.dtype) for s in manifest.weights}
    found = {name: (t.shape, t.dtype) for name, t in tensors.items()}
    if described != found:
        odd = sorted(set(described.items()) ^ set(found.items()))[0]
        raise DamagedFile(f"{origin}: weight {odd[0]!r}: manifest and header disagree ({odd[1]})")
    return manifest
