"""Writing ``.weights.h5`` files that Keras loads without polyak, and that polyak reads with role, rule and digests.

Each array carries HDF5's Fletcher-32 checksum and the newest file layout checks its structure, too: Keras' own loader
then refuses a damaged file, which it does not notice in those that it writes itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h5py
import msgspec
import numpy as np
import xxhash

from polyak.errors import AmbiguousRole, FileError, UnexpectedWeight
from polyak.files.atomic import Check, replacing
from polyak.files.keras_hdf5 import NOTE, NOTE_DIGEST
from polyak.manifest import Manifest, Stored, digest
from polyak.snapshot import Array, Snapshot, tool, versions
from polyak.weights import Evidence, Kind, Weight, numpy_dtype

SUFFIX = ".weights.h5"


def write(snapshot: Snapshot, path: str | os.PathLike[str], check: Check | None = None) -> Manifest:
    """Write the weights of one role where ``load_weights`` looks for them, in the dtypes of the model.

    Random seeds are left out, as Keras leaves them out. Memory: the largest array.

    Args:
        check: reads the finished file back before it takes the place of an old one.

    Raises:
        FileError: the path cannot be written, or Keras would not take its name.
        AmbiguousRole: several roles.
        UnexpectedWeight: a weight that has no place in a file of Keras'.
    """
    if not os.fspath(path).endswith(SUFFIX):
        raise FileError(f"file {os.fspath(path)!r}: expected a name that ends in {SUFFIX}, which Keras asks for")
    if len(snapshot.roles) != 1:
        raise AmbiguousRole(
            f"{snapshot.origin}: expected weights of one role, received {', '.join(snapshot.roles)}",
            hint='pick one with weights="average" or weights="raw"',
        )
    placed = {
        i.weight.path: _place(i.weight) for i in snapshot.items_by_path.values() if i.weight.kind is not Kind.SEED
    }
    _refuse_shared(placed)
    needed = sum(w.nbytes for w in snapshot.weights)
    with replacing(path, needed, check) as file, _refusals_named(path), h5py.File(file, "w", libver="latest") as h5:
        h5.require_group("vars")  # Keras 2 opens it, though the model owns no weights itself
        stored = [_put(h5, snapshot, name, evidence) for name, evidence in placed.items()]
        return _note(h5, snapshot, stored)


@contextmanager
def _refusals_named(path: str | os.PathLike[str]) -> Iterator[None]:
    """HDF5 says in a RuntimeError what the system refused it."""
    try:
        yield
    except RuntimeError as error:
        raise FileError(f"file {os.fspath(path)!r}: cannot be written: {error!s:.200}") from error


def _place(weight: Weight) -> Evidence:
    if weight.evidence is None or not weight.evidence.saved:
        raise UnexpectedWeight(
            f"weight {weight.path!r}: expected a place in Keras' files, received none",
            hint="Keras loads only what the live model stores by itself; write a safetensors file",
        )
    return weight.evidence


def _refuse_shared(placed: dict[str, Evidence]) -> None:
    owners: dict[str, str] = {}
    for name, evidence in placed.items():
        if evidence.saved in owners:
            raise UnexpectedWeight(
                f"weights {owners[evidence.saved]!r} and {name!r}: expected a place in the file for each"
            )
        owners[evidence.saved] = name


def _put(h5: Any, snapshot: Snapshot, name: str, evidence: Evidence) -> Stored:
    value = np.ascontiguousarray(snapshot[name].astype(numpy_dtype(evidence.dtype), copy=False)).reshape(
        snapshot.items_by_path[name].weight.shape
    )
    group = h5.require_group(evidence.saved.rpartition("/")[0])
    if evidence.names and "name" not in group.attrs:
        group.attrs["name"] = evidence.names[-1]
    dataset = group.create_dataset(evidence.saved.rpartition("/")[2], data=value, **_checks(value))
    if evidence.dtype == "bfloat16":
        dataset.attrs["dtype"] = "bfloat16"
    item = snapshot.items_by_path[name]
    return Stored(evidence.saved, item.role, _retyped(item.weight, evidence.dtype), digest(value))


def _checks(value: Array) -> dict[str, Any]:
    """HDF5 checks arrays in chunks; a scalar has none."""
    return {"fletcher32": True, "chunks": value.shape} if value.size and value.nbytes < 2**32 and value.ndim else {}


def _retyped(weight: Weight, dtype: str) -> Weight:
    return Weight(weight.path, weight.shape, dtype, weight.kind, weight.evidence)


def _note(h5: Any, snapshot: Snapshot, stored: list[Stored]) -> Manifest:
    manifest = msgspec.structs.replace(
        snapshot.manifest,
        tool=tool(),
        source=snapshot.origin,
        versions=versions(),
        integrity="xxh3-128",
        weights=tuple(stored),
    )
    text = manifest.to_json()
    h5.attrs[NOTE] = text
    h5.attrs[NOTE_DIGEST] = xxhash.xxh3_128_hexdigest(text.encode())
    return manifest
