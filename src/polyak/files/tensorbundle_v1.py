"""The older V1 format of TensorFlow's Saver: one table that holds the values themselves, or several such files.

Every pair of the table is a ``SavedTensorSlices`` message: the first lists the tensors, each other one holds a
part of one. The table's blocks have checksums; the whole table is decoded when the file is opened.
Source: ``tensorflow/core/util/saved_tensor_slice.proto`` and ``tensorflow/core/framework/tensor.proto``.
"""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from polyak.contents import Contents, Tensor
from polyak.errors import DamagedFile, FileError
from polyak.files.bundle_entries import DTYPES, NON_NUMERIC, Region, decode_region, no_numbers, region_slices
from polyak.files.bundle_path import has_index, latest
from polyak.files.protobuf import Bytes, Message, WireError, decode
from polyak.files.sstable import has_magic, read_table
from polyak.weights import numpy_dtype

# Of a set in several files; the Saver itself, and its state file, call the set by question marks.
_SHARD = re.compile(r"-(\d{5}|\?{5})-of-(\d{5})$")
# Field of TensorProto in which a dtype's values are, and how they lie there; all others are varints in field 7.
_FIXED = {"float32": (5, "<f4"), "float64": (6, "<f8"), "complex64": (9, "<c8"), "complex128": (12, "<c16")}
_VARINTS = {"int64": 10, "bool": 11, "float16": 13, "bfloat16": 13, "uint32": 16, "uint64": 17}
_INT_FIELD = 7


@dataclass(frozen=True, slots=True)
class _Described:
    """A tensor as the file's list has it."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def recognises(path: Path) -> bool:
    """Whether the path is a table that is no V2 index, or the prefix of a set of such files."""
    files = _files(path)
    return bool(files) and all(f.suffix != ".index" and has_magic(f) for f in files)


def read(path: Path) -> Contents:
    """Open the file or files. Raises FileError, DamagedFile."""
    files = _files(path)
    _refuse_missing_shards(path, files)
    described: dict[str, _Described] = {}
    parts: dict[str, list[tuple[Region, Message]]] = {}
    for file in files:
        try:
            _collect(read_table(file), described, parts)
        except WireError as error:
            raise DamagedFile(f"file {str(file)!r}: {error}", hint="copy the checkpoint again") from None
    for name in parts.keys() - described.keys():
        raise DamagedFile(f"checkpoint {str(path)!r}: tensor {name!r}: it has values and no description")
    numeric = {name: d for name, d in described.items() if d.dtype not in NON_NUMERIC}
    tensors = {
        name: Tensor(d.shape, d.dtype, partial(_assembled, d, parts.get(name, []), path)) for name, d in numeric.items()
    }
    unread = {name: no_numbers(d.dtype) for name, d in described.items() if name not in numeric}
    return Contents(f"checkpoint {str(path)!r}", "tensorbundle v1", tensors, "crc32c of blocks", unread=unread)


def _files(path: Path) -> list[Path]:
    """The one file, or all of the set that the path is the prefix, a file or the common name of."""
    path = _named(path) or path
    shard = _SHARD.search(path.name)
    if not shard and path.is_file():
        return [path]
    stem, of = (path.name[: shard.start()], f"-of-{shard[2]}") if shard else (path.name, "")
    beside = path.parent.glob(f"{glob.escape(stem)}-*{of}") if stem else ()
    return sorted(p for p in beside if (found := _SHARD.search(p.name)) and p.name[: found.start()] == stem)


def _named(path: Path) -> Path | None:
    """What the state file in a directory names, unless that is of the V2 format; others find what is wrong with it."""
    state = path / "checkpoint"
    if not state.is_file() or any(path.glob("saved_model.pb*")):
        return None
    try:
        named = latest(state)
    except FileError:
        return None
    return None if has_index(named) else named


def _refuse_missing_shards(path: Path, files: Sequence[Path]) -> None:
    found = _SHARD.search(files[0].name)
    if found and len(files) != int(found[2]):
        raise FileError(f"checkpoint {str(path)!r}: expected {int(found[2])} files, received {len(files)}")


def _collect(
    table: Mapping[bytes, bytes], described: dict[str, _Described], parts: dict[str, list[tuple[Region, Message]]]
) -> None:
    for value in table.values():
        message = decode(memoryview(value))
        for meta in message.messages(1):
            for tensor in _descriptions(meta):
                # Each file of a set describes a partitioned tensor as a whole.
                if described.setdefault(tensor.name, tensor) != tensor:
                    raise WireError(f"tensor {tensor.name!r}: expected one description, received two")
        for part in message.messages(2):
            region = decode_region(part.messages(2)[0]) if 2 in part else ()
            if 3 not in part:
                raise WireError(f"tensor {part.text(1)!r}: expected a part with values, received none")
            parts.setdefault(part.text(1), []).append((region, part.messages(3)[0]))


def _descriptions(meta: Message) -> Iterator[_Described]:
    for tensor in meta.messages(1):
        shape = tuple(dim.integer(1) for shape in tensor.messages(2) for dim in shape.messages(2))
        code = tensor.integer(3)
        if code not in DTYPES or any(length < 0 for length in shape):
            raise WireError(f"tensor {tensor.text(1)!r}: expected a dtype and a shape, received {code} and {shape}")
        yield _Described(tensor.text(1), shape, DTYPES[code])


def _assembled(d: _Described, parts: Sequence[tuple[Region, Message]], path: Path) -> np.ndarray[Any, Any]:
    """The whole tensor from its parts, which must cover it once."""
    try:
        pieces = [(region_slices(region, d.shape), _values(d.dtype, proto)) for region, proto in parts]
        if sum(values.size for _, values in pieces) != math.prod(d.shape):
            raise WireError(f"expected {math.prod(d.shape)} values, received {sum(v.size for _, v in pieces)}")
        if len(pieces) > 1:
            _refuse_overlap(d.shape, [where for where, _ in pieces])
        whole = np.empty(d.shape, numpy_dtype(d.dtype))
        for where, values in pieces:
            whole[where] = values.reshape(whole[where].shape)
    except (WireError, ValueError) as error:
        raise DamagedFile(f"checkpoint {str(path)!r}: tensor {d.name!r}: {error}") from None
    return whole


def _refuse_overlap(shape: tuple[int, ...], places: Iterable[tuple[slice, ...]]) -> None:
    filled = np.zeros(shape, np.bool_)
    for where in places:
        if filled[where].any():
            raise WireError("expected parts that lie apart, received two that overlap")
        filled[where] = True


def _values(dtype: str, proto: Message) -> np.ndarray[Any, Any]:
    """The values of a ``TensorProto``, flat."""
    if dtype in _FIXED:
        field, layout = _FIXED[dtype]
        return np.frombuffer(_packed(proto, field), layout)
    numbers = _varints(_packed(proto, _VARINTS.get(dtype, _INT_FIELD)))
    if dtype in ("float16", "bfloat16"):
        return numbers.astype(np.uint16).view(numpy_dtype(dtype))
    return numbers.astype(numpy_dtype(dtype))


def _packed(proto: Message, field: int) -> Bytes:
    chunks = proto.fields.get(field, [])
    packed = [c for c in chunks if not isinstance(c, int)]
    if len(packed) < len(chunks):
        raise WireError("expected packed values, received single ones")
    return packed[0] if len(packed) == 1 else b"".join(packed)


def _varints(data: Bytes) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Packed base-128 numbers, all at once.

    Example:
        >>> _varints(bytes([0xAC, 0x02, 0x05])).tolist()
        [300, 5]
    """
    raw = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(raw < 0x80)
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)[: len(ends)]
    lengths = ends - starts + 1
    if raw.size and (not len(ends) or ends[-1] != raw.size - 1 or lengths.max() > 10):
        raise WireError("expected packed numbers, received bytes without an end")
    numbers = np.zeros(len(ends), np.uint64)
    for k in range(int(lengths.max(initial=0))):
        longer = lengths > k
        numbers[longer] |= (raw[starts[longer] + k] & 0x7F).astype(np.uint64) << np.uint64(7 * k)
    return numbers
