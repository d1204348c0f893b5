"""safetensors files: polyak's own format. The manifest is in the metadata; any safetensors reader reads the arrays.

Read lazily, array by array. Written in one pass: the digests have a fixed length, so the header
is written first with blanks and again when they are known. Wide dtypes come first, so that every array
is aligned in the file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import xxhash

from polyak.contents import Contents, Tensor
from polyak.errors import (
    DamagedFile,
    DtypeMismatch,
    FileError,
    ShapeMismatch,
    UnexpectedWeight,
    UnknownFormat,
    argument,
)
from polyak.files.atomic import Check, refuse_unwritable, replacing
from polyak.files.failures import failures_named
from polyak.files.json_cursor import Cursor
from polyak.files.limits import MOST_AXES, MOST_HEADER, MOST_TENSORS
from polyak.files.meanwhile import written
from polyak.files.positioned import PositionedFile
from polyak.manifest import Manifest, Stored, digest, longest_manifest
from polyak.snapshot import Array, Snapshot
from polyak.weights import numpy_dtype

_CODES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32", "int32": "I32",
    "uint64": "U64", "int64": "I64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "complex64": "C64",
}  # fmt: skip
_NAMES = {code: name for name, code in _CODES.items()}
_BLANK = "0" * 32
_MOST_METADATA = 10_000
_KEY = "polyak"
_KEY_DIGEST = "polyak.digest"
_METADATA = "__metadata__"
_KNOWN = (_KEY, _KEY_DIGEST, "format")  # what nearly every file says: "pt", "tf" or "np"


def recognises(path: Path) -> bool:
    """Whether the first bytes are those of a safetensors file: the length of a header, and a JSON object.

    Raises:
        FileError: the file cannot be read.
    """
    if not path.is_file():
        return False
    with failures_named(path, "read"), path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= MOST_HEADER


def read(path: Path) -> Contents:
    """Open a file; only the header is read. Raises DamagedFile, UnknownFormat, FileError."""
    origin = f"file {str(path)!r}"
    data = PositionedFile(path)
    length = int.from_bytes(data.piece(0, 8), "little")
    if not 2 <= length <= min(data.size - 8, MOST_HEADER):
        raise DamagedFile(
            f"{origin}: expected a header of {length} bytes, received {max(data.size - 8, 0)} bytes in all",
            hint="it is truncated; restore it from a copy",
        )
    header, metadata = _parsed(data.piece(8, 8 + length), origin)
    tensors = {name: _tensor(name, entry, data, 8 + length, origin) for name, entry in header.items()}
    _refuse_gaps(header, data.size - 8 - length, origin)
    manifest = _manifest(metadata, tensors, origin)
    beside = {f"{_METADATA}/{key}": "a text" for key in metadata if key not in _KNOWN}
    integrity = "none" if manifest is None else "xxh3-128"
    return Contents(origin, "safetensors", tensors, integrity, manifest, beside=beside)


def refuse(snapshot: Snapshot, path: str | os.PathLike[str]) -> None:
    """Raise what ``write`` would raise before it reads an array; nothing is written."""
    start = _header(snapshot.written(_blank(snapshot)))
    refuse_unwritable(path, len(start) + sum(w.nbytes for w in snapshot.weights))


def write(snapshot: Snapshot, path: str | os.PathLike[str], check: Check | None = None) -> Manifest:
    """Write a snapshot with its manifest, array by array.

    Memory: the largest array.

    Args:
        check: reads the finished file back before it takes the place of an old one.

    Raises:
        FileError: the path cannot be written.
        DtypeMismatch, UnexpectedWeight: safetensors cannot hold a weight's dtype, or its name.
    """
    blank = {s.name: s for s in _blank(snapshot)}
    manifest = snapshot.written(tuple(blank.values()))
    start = _header(manifest)
    with replacing(path, len(start) + sum(w.nbytes for w in snapshot.weights), check) as file:
        file.write(start)
        for s in _layout(blank.values()):
            blank[s.name] = msgspec.structs.replace(s, digest=_append(file, snapshot[s.name], s))
        manifest = msgspec.structs.replace(manifest, weights=tuple(blank.values()))
        header = _header(manifest)
        assert len(header) == len(start), "digests have a fixed length"
        file.seek(0)
        file.write(header)
    return manifest


def _blank(snapshot: Snapshot) -> tuple[Stored, ...]:
    """What will be stored, with room for the digests."""
    return tuple(msgspec.structs.replace(s, digest=_BLANK) for s in snapshot.manifest.weights)


def _layout(stored: Iterable[Stored]) -> list[Stored]:
    """The order of the arrays in the file. No padding may stand between them, so the wide ones come first."""
    return sorted(stored, key=lambda s: -numpy_dtype(s.weight.dtype).itemsize)


def _append(file: BinaryIO, array: Array, stored: Stored) -> str:
    """Write an array's bytes in C order: a transposed view must not be stored as it lies in memory."""
    if (array.shape, array.dtype.name) != (stored.weight.shape, stored.weight.dtype):
        raise ShapeMismatch(
            f"weight {stored.name!r}: expected {stored.weight.shape} {stored.weight.dtype}, "
            f"received {array.shape} {array.dtype.name}",
            hint="it changed while it was written",
        )
    array = np.ascontiguousarray(array, numpy_dtype(stored.weight.dtype))
    return written(file, array, lambda: digest(array))


def refuse_unheld(stored: Iterable[Stored]) -> None:
    """Raise DtypeMismatch or UnexpectedWeight for what safetensors cannot hold."""
    for s in stored:
        if s.weight.dtype not in _CODES:
            raise DtypeMismatch(
                f"weight {s.name!r}: expected a dtype that safetensors holds, received {s.weight.dtype}",
                hint=f"cast it first; polyak.convert leaves it out with {argument('exclude', s.weight.path)}",
            )
        if s.name == _METADATA:
            raise UnexpectedWeight(f"weight {s.name!r}: safetensors keeps this name for itself", hint="rename it")


def _header(manifest: Manifest) -> bytes:
    entries: dict[str, Any] = {}
    offset = 0
    refuse_unheld(manifest.weights)
    for s in _layout(manifest.weights):
        end = offset + s.weight.nbytes
        described = {"dtype": _CODES[s.weight.dtype], "shape": list(s.weight.shape), "data_offsets": [offset, end]}
        entries[s.name] = described
        offset = end
    text = manifest.to_json()
    entries[_METADATA] = {_KEY: text, _KEY_DIGEST: xxhash.xxh3_128_hexdigest(text.encode())}
    body = json.dumps(entries, separators=(",", ":")).encode()
    body += b" " * (-len(body) % 8)
    refuse_long(body, manifest)
    return len(body).to_bytes(8, "little") + body


def refuse_long(described: bytes, manifest: Manifest) -> None:
    """Raise FileError for a description of weights that no reader of polyak's would take."""
    if len(described) > MOST_HEADER:
        raise FileError(
            f"{manifest.source}: expected weights that {MOST_HEADER:,} bytes can describe, received "
            f"{len(manifest.weights):,}, whose names and shapes take {len(described):,}",
            hint="write a .npz, which describes each weight beside its values",
        )


def _parsed(raw: bytes, origin: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The descriptions of the tensors by name, and the metadata."""
    if (count := raw.count(b'"data_offsets"')) > MOST_TENSORS:
        raise DamagedFile(f"{origin}: expected at most {MOST_TENSORS:,} tensors, received more")
    cursor = Cursor(raw, f"{origin}: the header")
    entries: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for name in cursor.names(MOST_TENSORS + 1):
        if name == _METADATA:
            metadata = {key: cursor.text(2 * longest_manifest(count)) for key in cursor.names(_MOST_METADATA)}
        else:
            entries[name] = cursor.description()
    cursor.finish()
    return entries, metadata


def _tensor(name: str, entry: Any, data: PositionedFile, base: int, origin: str) -> Tensor:
    try:
        code = entry["dtype"]
        shape = tuple(_natural(n) for n in entry["shape"])
        begin, end = (_natural(n) for n in entry["data_offsets"])
        if len(shape) > MOST_AXES or math.prod(n for n in shape if n) >= 2**59:
            raise ValueError(shape)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFile(f"{origin}: weight {name!r}: its description is not readable ({error!r:.80})") from error
    dtype = _NAMES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise UnknownFormat(
            f"{origin}: weight {name!r}: expected one of {', '.join(_NAMES)}, received {code!r:.80}",
            hint="write the weight anew in one of these with the tool that made the file",
        )
    expected = math.prod(shape) * numpy_dtype(dtype).itemsize
    if end - begin != expected or base + end > data.size:
        received = end - begin if end - begin != expected else max(data.size - base - begin, 0)
        raise DamagedFile(
            f"{origin}: weight {name!r} at byte {base + begin}: expected {expected} bytes, received {received}",
            hint="the file is truncated or damaged; restore it from a copy",
        )
    measure = partial(data.digest, ((base + begin, expected),))
    return Tensor(shape, dtype, partial(data.array, base + begin, shape, dtype), measure)


def _natural(n: Any) -> int:
    if type(n) is not int or n < 0:
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


def _manifest(metadata: Mapping[str, str], tensors: dict[str, Tensor], origin: str) -> Manifest | None:
    if not {_KEY, _KEY_DIGEST} & metadata.keys():
        return None
    raw = metadata.get(_KEY, "").encode(errors="surrogatepass")
    if xxhash.xxh3_128_hexdigest(raw) != metadata.get(_KEY_DIGEST):
        raise DamagedFile(f"{origin}: the manifest does not have its digest", hint="restore the file from a copy")
    manifest = Manifest.from_json(raw, origin, len(tensors))
    described = {s.name: (s.weight.shape, s.weight.dtype) for s in manifest.weights}
    found = {name: (t.shape, t.dtype) for name, t in tensors.items()}
    if described != found:
        name = min(name for name, _ in set(described.items()) ^ set(found.items()))
        raise DamagedFile(
            f"{origin}: weight {name!r}: expected {_shown(described.get(name))} by the manifest, "
            f"received {_shown(found.get(name))} by the header",
            hint="restore the file from a copy",
        )
    return manifest


def _shown(described: tuple[tuple[int, ...], str] | None) -> str:
    return "nothing" if described is None else f"{described[0]} {described[1]}"
