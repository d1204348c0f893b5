"""The arrays of an Orbax checkpoint, read with TensorStore alone: headers first, values when they are asked for.

TensorStore is imported when a checkpoint is opened. It trusts what it reads: a header may declare any size, and a
part that is missing reads as zeros. So the headers are read here and checked before TensorStore opens an array.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from polyak.errors import DamagedFile, FileError
from polyak.files.orbax_path import ARRAY_HEADERS, MANIFEST
from polyak.snapshot import Array
from polyak.weights import numpy_dtype

HINT = 'pip install "polyak[orbax]"; it brings tensorstore, and neither JAX nor Orbax'
_FAILURES = (ValueError, RuntimeError, OSError, KeyError, TypeError, NotImplementedError, MemoryError)
_MOST_AXES = 32
_MOST_PARTS = 1 << 20
_FREE = 1 << 30
_RATIO = 1024
_LARGEST_HEADER = 1 << 20
_TOGETHER = 512
_NODES, _KEPT = "cache_pool#nodes", 1 << 24  # bytes of nodes; arrays are not kept
_NUMBERS = re.compile(r"[<>|][biufc]\d{1,2}")


@dataclass(frozen=True, slots=True)
class Header:
    """What an array's header says: the driver that reads it, shape, and dtype by name ("" if it is no known one)."""

    driver: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * numpy_dtype(self.dtype).itemsize


def tensorstore(origin: str) -> Any:
    """The package. Raises FileError with what to install."""
    try:
        return import_module("tensorstore")
    except ImportError as error:
        raise FileError(
            f"{origin}: expected the package tensorstore, which reads and writes Orbax checkpoints, received none",
            hint=HINT,
        ) from error


def base(directory: Path) -> dict[str, Any]:
    """Where the files are, as TensorStore says it."""
    return {"driver": "file", "path": f"{directory.absolute()}/"}


@dataclass(frozen=True)
class Store:
    """The arrays of one tree.

    Attributes:
        size: bytes of all files; what an array may declare depends on it.
        complete: whether a part that is missing is damage.
    """

    directory: Path
    origin: str
    size: int
    complete: bool

    @property
    def joined(self) -> bool:
        """Whether all arrays are in one OCDBT database, or each in a directory of its own."""
        return (self.directory / MANIFEST).is_file()

    def headers(self, names: Iterable[str] | None) -> dict[str, Header]:
        """The headers of the named arrays, or of all. Raises DamagedFile."""
        kv = self._database
        wanted = list(self._listed(kv) if names is None else names)
        found: dict[str, Header] = {}
        for at in range(0, len(wanted), _TOGETHER):
            found |= self._some_headers(kv, wanted[at : at + _TOGETHER])
        return found

    def _some_headers(self, kv: Any, wanted: list[str]) -> dict[str, Header]:
        """They are asked for together, and each must be there before more are."""
        asked = [(name, kind, self._asked(kv, name, kind)) for name in wanted for kind in ARRAY_HEADERS]
        found: dict[str, Header] = {}
        for name, kind, future in asked:
            raw = self._result(future, name)
            if raw.state == "value" and name not in found:
                found[name] = self._header(name, kind, bytes(raw.value))
        for name in wanted:
            if name not in found:
                raise DamagedFile(
                    f"{self.origin}: weight {name!r:.120}: expected an array by the tree, received none",
                    hint="the checkpoint is damaged or not complete; copy it again",
                )
        return found

    def begin(self, name: str, header: Header) -> Any:
        """Begin to read an array: the future of its values, for ``values``. Raises DamagedFile."""
        spec = {"driver": header.driver, "fill_missing_data_reads": not self.complete}
        opening = tensorstore(self.origin).open(spec, kvstore=self._database + f"{name}/", open=True, read=True)
        values = self._result(opening, name).read()
        values.force()
        return values

    def values(self, begun: Any, name: str, header: Header) -> Array:
        """An array's values. Raises DamagedFile."""
        value = np.asarray(self._result(begun, name))
        if (value.shape, value.dtype.name) != (header.shape, header.dtype):
            raise DamagedFile(
                f"{self.origin}: weight {name!r:.120}: expected {header.shape} {header.dtype}, "
                f"received {value.shape} {value.dtype.name}"
            )
        return np.ascontiguousarray(value).reshape(header.shape)

    @cached_property
    def _database(self) -> Any:
        """Opened once: a node of an OCDBT database describes thousands of arrays, and is kept for the next one."""
        store, files = tensorstore(self.origin), base(self.directory)
        nodes = store.Context({_NODES: {"total_bytes_limit": _KEPT}})
        spec = {"driver": "ocdbt", "base": files, "cache_pool": _NODES} if self.joined else files
        return self._result(store.KvStore.open(spec, context=nodes), "")

    def _asked(self, kv: Any, name: str, kind: str) -> Any:
        """The future of a header."""
        try:
            return kv.read(f"{name}/{kind}")
        except _FAILURES as error:
            raise self._damaged(name, error) from error

    def _listed(self, kv: Any) -> list[str]:
        keys = (bytes(key) for key in self._result(kv.list(), ""))
        names = (key.rpartition(b"/") for key in keys)
        return sorted({n.decode(errors="replace") for n, _, end in names if end.decode("latin-1") in ARRAY_HEADERS})

    def _result(self, future: Any, name: str) -> Any:
        try:
            return future.result()
        except _FAILURES as error:
            raise self._damaged(name, error) from error

    def _damaged(self, name: str, error: Exception) -> DamagedFile:
        subject = f"weight {name!r:.120}: " if name else ""
        return DamagedFile(
            f"{self.origin}: {subject}not readable: {error!s:.300}",
            hint="the checkpoint is truncated or damaged; restore it from a copy",
        )

    def _header(self, name: str, kind: str, raw: bytes) -> Header:
        try:
            if len(raw) > _LARGEST_HEADER:
                raise ValueError(f"{len(raw)} bytes of it")
            held = msgspec.json.decode(raw, type=dict[str, Any])
            shape, parts, dtype = _second(held) if kind == ".zarray" else _third(held)
            self._refuse_absurd(shape, parts, dtype)
        except (msgspec.MsgspecError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedFile(
                f"{self.origin}: weight {name!r:.120}: its header is not readable: {error!s:.200}",
                hint="the checkpoint is damaged; restore it from a copy",
            ) from error
        return Header("zarr" if kind == ".zarray" else "zarr3", shape, dtype)

    def _refuse_absurd(self, shape: tuple[int, ...], parts: list[tuple[int, ...]], dtype: str) -> None:
        """Neither the array nor a part of it may be out of all proportion to the files; nor may the parts be dust."""
        wide = numpy_dtype(dtype).itemsize if dtype else 1
        for extent in (shape, *parts):
            if math.prod(extent) * wide > _FREE + _RATIO * self.size:
                raise ValueError(f"{extent} {dtype} is far more than {self.size} bytes of files can hold")
        whole = shape
        for part in parts:
            if len(part) != len(shape) or 0 in part:
                raise ValueError(f"parts of {part} in an array of {shape}")
            whole = tuple(max(n, p) for n, p in zip(whole, part, strict=True))
            if math.prod(-(-n // p) for n, p in zip(whole, part, strict=True)) > _MOST_PARTS:
                raise ValueError(f"more than {_MOST_PARTS} parts of {part} in an array of {shape}")


_Described = tuple[tuple[int, ...], list[tuple[int, ...]], str]


def _second(held: Mapping[str, Any]) -> _Described:
    """A header of Zarr's second version."""
    if held["zarr_format"] != 2:
        raise ValueError(f"version {held['zarr_format']!r:.40}")
    code = held["dtype"]
    name = np.dtype(code).name if isinstance(code, str) and _NUMBERS.fullmatch(code) else code
    return _extent(held["shape"]), [_extent(held["chunks"])], _known(name)


def _third(held: Mapping[str, Any]) -> _Described:
    """A header of Zarr's third version; its parts may be cut into parts again."""
    if held["zarr_format"] != 3 or held["node_type"] != "array":
        raise ValueError("no array of version 3")
    parts = [_extent(held["chunk_grid"]["configuration"]["chunk_shape"])]
    shards = [c for c in held["codecs"] if isinstance(c, dict) and c.get("name") == "sharding_indexed"]
    parts += [_extent(shard["configuration"]["chunk_shape"]) for shard in shards]
    return _extent(held["shape"]), parts, _known(held["data_type"])


def _extent(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > _MOST_AXES:
        raise ValueError(f"{value!r:.80} as a shape")
    if not all(type(n) is int and 0 <= n < 2**48 for n in value):
        raise ValueError(f"{value!r:.80} as a shape")
    return tuple(value)


def _known(name: Any) -> str:
    """A dtype by name; "" for texts, records and others that are no numbers."""
    try:
        dtype = numpy_dtype(name) if isinstance(name, str) else None
    except TypeError:
        return ""
    return dtype.name if dtype is not None and dtype.kind in "biufcV" and dtype.itemsize and not dtype.names else ""
