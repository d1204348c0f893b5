"""Writing ``.weights.h5`` files that Keras loads without polyak, and that polyak reads with role, rule and digests.

Each array carries checksums and the newest file layout checks its structure, too: Keras' own loader then refuses a
damaged file, which it does not notice in those that it writes itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, TypeVar

import h5py
import numpy as np
import xxhash

from polyak.errors import AmbiguousRole, DtypeMismatch, FileError, UnexpectedWeight, argument
from polyak.files import hdf5_chunks
from polyak.files.atomic import Check, refuse_unwritable, replacing
from polyak.files.keras_hdf5 import NOTE, NOTE_DIGEST, again
from polyak.files.meanwhile import while_written
from polyak.manifest import Manifest, Stored, digest
from polyak.snapshot import Array, Snapshot
from polyak.weights import Kind, Weight, numpy_dtype

SUFFIX = ".weights.h5"
_SEEDS = "polyak/seeds"
T = TypeVar("T")


def write(snapshot: Snapshot, path: str | os.PathLike[str], check: Check | None = None) -> Manifest:
    """Write the weights of one role where ``load_weights`` looks for them, in their own dtypes: Keras casts to its own.

    Keras' files have no place for random seeds: they lie in a group of polyak's, which Keras does not look into.
    Memory: the largest array.

    Args:
        check: reads the finished file back before it takes the place of an old one.

    Raises:
        FileError: the path cannot be written, or Keras would not take its name.
        AmbiguousRole: several roles.
        UnexpectedWeight: a weight that has no place in a file of Keras'.
    """
    placed = _placed(snapshot, path)
    with replacing(path, _needed(snapshot), check) as file:
        patient = _Patient(file)
        with h5py.File(patient, "w", libver="latest") as h5:
            h5.require_group("vars")  # Keras 2 opens it, though the model owns no weights itself
            stored = [_put(h5, snapshot, path, place) for path, place in placed.items()]
            manifest = _note(h5, snapshot, stored)
        patient.raise_refused()
    return manifest


def refuse(snapshot: Snapshot, path: str | os.PathLike[str]) -> None:
    """Raise what ``write`` would raise before it reads an array; nothing is written."""
    _placed(snapshot, path)
    refuse_unwritable(path, _needed(snapshot))


def _needed(snapshot: Snapshot) -> int:
    return sum(w.nbytes * (1 + len(again(w))) for w in snapshot.weights)


def _placed(snapshot: Snapshot, path: str | os.PathLike[str]) -> dict[str, str]:
    """Where each weight goes, by its name. Raises FileError, AmbiguousRole, UnexpectedWeight, DtypeMismatch."""
    if not os.fspath(path).endswith(SUFFIX):
        raise FileError(f"file {os.fspath(path)!r}: expected a name that ends in {SUFFIX}, which Keras asks for")
    if len(roles := snapshot.roles) != 1:
        raise AmbiguousRole(
            f"{snapshot.origin}: expected weights of one role, received {', '.join(roles) or 'no weights at all'}",
            hint='pick one with weights="average" or weights="raw"' if roles else None,
        )
    placed = {name: _place(item.weight, i) for i, (name, item) in enumerate(snapshot.items_by_path.items())}
    _refuse_shared(snapshot.weights, placed)
    return placed


class _Patient:
    """A file for HDF5, which cannot bear that a call fails: it fails once, at the end, with what was refused first."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._refused: OSError | None = None
        self.read = file.read

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        return self._unless_refused(lambda: self._file.seek(place, whence), place)

    def tell(self) -> int:
        return self._unless_refused(self._file.tell, 0)

    def readinto(self, buffer: memoryview) -> int:
        return self._unless_refused(lambda: int(self._file.readinto(buffer)), len(buffer))  # type: ignore[attr-defined]

    def write(self, data: bytes | memoryview) -> int:
        return self._unless_refused(lambda: self._file.write(data), len(data))

    def truncate(self, size: int) -> int:
        return self._unless_refused(lambda: self._file.truncate(size), size)

    def flush(self) -> None:
        self._unless_refused(self._file.flush, None)

    def _unless_refused(self, do: Callable[[], T], answer: T) -> T:
        """What the file answers; once it has refused something, what it would answer if it had not."""
        try:
            return answer if self._refused is not None else do()
        except OSError as error:
            self._refused = error
            return answer

    def raise_refused(self) -> None:
        if self._refused is not None:
            raise self._refused


def _place(weight: Weight, number: int) -> str:
    place = f"{_SEEDS}/{number}" if weight.kind is Kind.SEED else weight.evidence.saved if weight.evidence else ""
    if not place:
        raise UnexpectedWeight(
            f"weight {weight.path!r}: expected a place in Keras' files, received none",
            hint="Keras loads only what the live model stores by itself; write a safetensors file",
        )
    if numpy_dtype(weight.dtype).isbuiltin != 1 and weight.dtype != "bfloat16":
        raise DtypeMismatch(
            f"weight {weight.path!r}: expected a dtype that Keras' files hold, received {weight.dtype}",
            hint=f"cast it first; polyak.convert leaves it out with {argument('exclude', weight.path)}",
        )
    return place


def _refuse_shared(weights: Iterable[Weight], placed: dict[str, str]) -> None:
    owners: dict[str, str] = {}
    for weight, (path, first) in zip(weights, placed.items(), strict=True):
        for place in (first, *again(weight)):
            if place in owners:
                raise UnexpectedWeight(f"weights {owners[place]!r} and {path!r}: expected a place in the file for each")
            owners[place] = path


def _put(h5: Any, snapshot: Snapshot, path: str, place: str) -> Stored:
    item = snapshot.items_by_path[path]
    value = np.ascontiguousarray(snapshot[path]).reshape(item.weight.shape)
    above, _, name = place.rpartition("/")
    group, evidence = h5.require_group(above), item.weight.evidence
    if evidence is not None and evidence.names and above != _SEEDS and "name" not in group.attrs:
        group.attrs["name"] = evidence.names[-1]
    mark = while_written(lambda: _create(group, name, value), value, lambda: digest(value))
    for other in again(item.weight):
        above, _, name = other.rpartition("/")
        _create(h5.require_group(above), name, value)
    return Stored(place, item.role, item.weight, mark)


def _create(group: Any, name: str, value: Array) -> None:
    """An array whose damage HDF5 notices.

    It checks those in chunks. One without axes cannot have these, and lies in the object's header, which is checked.
    """
    if value.size and value.ndim:
        packing = {
            "chunks": hdf5_chunks.chunk_of(value.shape, value.itemsize),
            "compression": "gzip",
            "compression_opts": 0,
        }
        dataset = group.create_dataset(name, value.shape, value.dtype, **packing)
        hdf5_chunks.write(dataset, value)
    elif value.ndim:
        dataset = group.create_dataset(name, data=value)
    else:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_layout(h5py.h5d.COMPACT)
        plan.set_obj_track_times(False)  # as h5py has it: equal weights make equal files
        kind, space = h5py.h5t.py_create(value.dtype, logical=True), h5py.h5s.create(h5py.h5s.SCALAR)
        dataset = h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, plan))
        dataset[()] = value
    if value.dtype.name == "bfloat16":
        dataset.attrs["dtype"] = "bfloat16"


def _note(h5: Any, snapshot: Snapshot, stored: list[Stored]) -> Manifest:
    manifest = snapshot.written(tuple(stored))
    text = manifest.to_json()
    h5.attrs[NOTE] = text
    h5.attrs[NOTE_DIGEST] = xxhash.xxh3_128_hexdigest(text.encode())
    return manifest
