"""Writing an Orbax checkpoint with TensorStore alone, such that Orbax itself restores it.

One OCDBT database of Zarr arrays, the description of the tree that Orbax looks for, and polyak's manifest beside it.
The directory is made under a hidden name, reaches the disk whole, and takes its own name in one step.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from polyak.errors import DtypeMismatch, FileError, ShapeMismatch, UnexpectedWeight, argument
from polyak.files.atomic import Check, refuse_unwritable_directory, replacing_directory
from polyak.files.orbax_path import ARRAY_HEADERS, MANIFEST, METADATA, STEP_METADATA
from polyak.files.orbax_store import base, tensorstore
from polyak.files.orbax_tree import named
from polyak.manifest import Manifest, Stored, digest, encode_note
from polyak.snapshot import Array, Snapshot
from polyak.weights import numpy_dtype

NOTE = "polyak.json"
_HANDLER = "orbax.checkpoint._src.handlers.standard_checkpoint_handler.StandardCheckpointHandler"
_DTYPES = frozenset((
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16", "float32",
    "float64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3b11fnuz", "int4",
    "complex64", "complex128",
))  # fmt: skip
_COMMITTED = "commit_success.txt"
# What may lie in a checkpoint of one tree, by Orbax or by polyak.
_PROCESS = "ocdbt.process_"
_ORBAX = frozenset({
    METADATA, STEP_METADATA, MANIFEST, NOTE, _COMMITTED, "d", "_sharding", "array_metadatas", "descriptor",
    "_strings.json", "checkpoint",
})  # fmt: skip
_BATCH = 1 << 26
_PART = 1 << 28
_DICT_KEY = 2
_FAILURES = (ValueError, RuntimeError, OSError, TypeError, NotImplementedError)


def write(snapshot: Snapshot, path: str | os.PathLike[str], check: Check | None = None) -> Manifest:
    """Write a snapshot as a checkpoint; each weight's path becomes its path in the tree.

    Memory: the two largest arrays, or 128 MiB.

    Args:
        check: reads the finished checkpoint back before it takes the place of an old one.

    Raises:
        FileError: the path cannot be written, holds something other than one tree, or TensorStore is not installed.
        UnexpectedWeight: a tree cannot hold two of the names.
        DtypeMismatch, ShapeMismatch: Orbax has no such dtype, or no arrays without elements.
    """
    final = Path(os.path.realpath(path))
    origin = f"checkpoint {str(path)!r}"
    stored = snapshot.manifest.weights
    store = tensorstore(origin)
    _refuse_unheld(stored, origin)
    _refuse_other(final)
    with replacing_directory(final, sum(w.nbytes for w in snapshot.weights), check) as directory:
        digests = _write_arrays(store, snapshot, directory, origin)
        manifest = snapshot.written(tuple(msgspec.structs.replace(s, digest=digests[s.name]) for s in stored))
        _write_descriptions(directory, manifest)
    return manifest


def refuse(snapshot: Snapshot, path: str | os.PathLike[str]) -> None:
    """Raise what ``write`` would raise before it reads an array; nothing is written."""
    origin = f"checkpoint {str(path)!r}"
    tensorstore(origin)
    _refuse_unheld(snapshot.manifest.weights, origin)
    _refuse_other(Path(os.path.realpath(path)))
    refuse_unwritable_directory(path, sum(w.nbytes for w in snapshot.weights))


def _refuse_unheld(stored: Sequence[Stored], origin: str) -> None:
    """What a tree of Orbax cannot hold, before anything is written."""
    leaves = {s.name for s in stored}
    names: dict[str, str] = {}
    for s in stored:
        steps = s.name.split("/")
        inner = next((p for n in range(1, len(steps)) if (p := "/".join(steps[:n])) in leaves), None)
        other = inner or names.setdefault(".".join(steps), s.name)
        if other != s.name:
            raise UnexpectedWeight(
                f"weight {s.name!r}: {origin} cannot hold it beside {other!r}", hint="rename one of the two"
            )
        _refuse_unnamed(s.name, steps)
        if s.weight.dtype not in _DTYPES:
            raise DtypeMismatch(
                f"weight {s.name!r}: expected a dtype that Orbax stores, received {s.weight.dtype}",
                hint=f"cast it first; polyak.convert leaves it out with {argument('exclude', s.weight.path)}",
            )
        if not s.weight.size:
            raise ShapeMismatch(
                f"weight {s.name!r}: expected elements, received {s.weight.shape}; Orbax stores no empty arrays",
                hint=f"polyak.convert leaves it out with {argument('exclude', s.weight.path)}",
            )


def _refuse_unnamed(name: str, steps: Sequence[str]) -> None:
    try:
        readable = named(steps).stored
    except ValueError:
        readable = ""
    if not readable:
        raise UnexpectedWeight(
            f"weight {name!r:.120}: expected a path of at most 128 steps that a directory can have, for Orbax' trees",
            hint="rename it, or write a safetensors file",
        )


def _refuse_other(final: Path) -> None:
    """Only a checkpoint of one tree is replaced, and only if nothing of anybody else's is in its directory."""
    if not final.exists() or (final.is_dir() and not any(final.iterdir())):
        return
    if not (final / METADATA).is_file():
        raise FileError(
            f"file {str(final)!r}: expected no file, or a checkpoint of one tree to replace, received something else",
            hint="choose another name; for a new step name the step's directory",
        )
    for entry in sorted(final.iterdir()):
        if not (entry.name.startswith(_PROCESS) or entry.name in _ORBAX or _is_array(entry)):
            raise FileError(
                f"file {str(final)!r}: expected a checkpoint to replace, received one with {entry.name!r} in it, which "
                "would be lost",
                hint="move it out of the checkpoint first",
            )


def _is_array(entry: Path) -> bool:
    return any((entry / header).is_file() for header in ARRAY_HEADERS)


def _write_arrays(store: Any, snapshot: Snapshot, directory: Path, origin: str) -> dict[str, str]:
    """Each array's digest, after all are in the database. Small arrays are committed together."""
    digests: dict[str, str] = {}
    database = _result(store.KvStore.open({"driver": "ocdbt", "base": base(directory)}), origin)
    with _Commits(origin) as commits:
        for batch in _batches(snapshot.manifest.weights):
            transaction = store.Transaction()
            for s in batch:
                array = _checked(snapshot[s.name], s)
                digests[s.name] = digest(array)
                for key, value in _values(array, s.name.replace("/", ".")):
                    _result(database.with_transaction(transaction).write(key, value), origin)
            commits.begin(transaction)
    return digests


class _Commits:
    """One commit is under way while the next arrays are made ready; none is once the block is left, however it is."""

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._under_way: Any = None

    def begin(self, transaction: Any) -> None:
        self._finish()
        self._under_way = transaction.commit_async()

    def __enter__(self) -> _Commits:
        return self

    def __exit__(self, kind: object, *others: object) -> None:
        with suppress(FileError) if kind else nullcontext():
            self._finish()

    def _finish(self) -> None:
        held, self._under_way = self._under_way, None
        if held is not None:
            _result(held, self._origin)


def _batches(stored: Sequence[Stored]) -> Iterator[list[Stored]]:
    batch: list[Stored] = []
    room = _BATCH
    for s in stored:
        if batch and s.weight.nbytes > room:
            yield batch
            batch, room = [], _BATCH
        batch.append(s)
        room -= s.weight.nbytes
    if batch:
        yield batch


def _checked(array: Array, s: Stored) -> Array:
    if (array.shape, array.dtype.name) != (s.weight.shape, s.weight.dtype):
        raise ShapeMismatch(
            f"weight {s.name!r}: expected {s.weight.shape} {s.weight.dtype}, received {array.shape} {array.dtype.name}",
            hint="it changed while it was written",
        )
    return np.ascontiguousarray(array, numpy_dtype(s.weight.dtype)).reshape(s.weight.shape)


def _values(array: Array, name: str) -> Iterator[tuple[str, bytes]]:
    """An array as Zarr's second version has it: a header, and parts of equal extent, the last one filled up.

    Whole arrays are one part; large ones are cut along the first axis.
    """
    rows = array.shape[0] if array.ndim else 1
    most = max(1, min(rows, _PART * rows // array.nbytes))
    header = {
        "zarr_format": 2,
        "shape": list(array.shape),
        "chunks": [most, *array.shape[1:]] if array.ndim else [],
        "dtype": array.dtype.name if array.dtype.isbuiltin == 2 else array.dtype.str,
        "compressor": None,
        "fill_value": None,
        "filters": None,
        "order": "C",
        "dimension_separator": ".",
    }
    yield f"{name}/.zarray", msgspec.json.encode(header)
    for number, first in enumerate(range(0, rows, most)):
        part = array[first : first + most] if array.ndim else array
        missing = (most - len(part)) * (part.nbytes // len(part)) if array.ndim else 0
        yield f"{name}/{'.'.join([str(number), *['0'] * (array.ndim - 1)])}", part.tobytes() + bytes(missing)


def _result(future: Any, origin: str) -> Any:
    try:
        return future.result()
    except _FAILURES as error:
        raise FileError(f"{origin}: cannot be written: {error!s:.300}") from error


def _write_descriptions(directory: Path, manifest: Manifest) -> None:
    now = time.time_ns()
    tree = {str(tuple(s.name.split("/"))): _leaf(s.name.split("/")) for s in manifest.weights}
    step = {
        "item_handlers": _HANDLER,
        "metrics": {},
        "performance_metrics": {},
        "init_timestamp_nsecs": now,
        "commit_timestamp_nsecs": now,
        "custom_metadata": {},
    }
    described = {
        "tree_metadata": tree,
        "use_ocdbt": True,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
    for name, content in ((METADATA, described), (STEP_METADATA, step)):
        (directory / name).write_bytes(msgspec.json.encode(content))
    (directory / NOTE).write_bytes(encode_note(manifest))
    (directory / _COMMITTED).write_bytes(b"Checkpoint commit was successful\n")


def _leaf(steps: list[str]) -> dict[str, Any]:
    return {
        "key_metadata": [{"key": step, "key_type": _DICT_KEY} for step in steps],
        "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
    }
