"""HDF5 weights: Keras 3 ``.weights.h5``, and the legacy ``.h5`` of Keras 1 and 2."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import xxhash

from polyak.contents import Contents, Tensor
from polyak.errors import DamagedFile
from polyak.files.failures import failures_named
from polyak.files.keras_hdf5 import MAGIC, NOTE, NOTE_DIGEST, Hdf5, again
from polyak.files.positioned import PositionedFile
from polyak.manifest import Manifest, Stored, digest
from polyak.snapshot import Array


def recognises(path: Path) -> bool:
    """Whether the first bytes are HDF5's. Raises FileError: the file cannot be read."""
    return path.is_file() and first_bytes(path, len(MAGIC)) == MAGIC


def read(path: Path) -> Contents:
    """Open a file; only its structure is read. Raises DamagedFile, UnknownFormat, FileError."""
    origin = f"file {str(path)!r}"
    file = path.open("rb")
    held = Hdf5(file, origin)
    manifest = _manifest(held)
    found = contents(held, "hdf5")
    if manifest is None:
        return found
    past = manifest.marked and sys.platform != "win32"  # where a file that is read from two places is not read safely
    tensors = _past_hdf5(held, PositionedFile(path, file)) if past else held.tensors
    own = {s.name: _with_copies(s, tensors) for s in manifest.weights}
    return replace(found, tensors=own, manifest=manifest, integrity="xxh3-128")


def _with_copies(stored: Stored, tensors: Mapping[str, Tensor]) -> Tensor:
    """An array whose bytes are those of its digest only if its copies have them, too."""
    tensor, copies = tensors[stored.name], [tensors[name] for name in again(stored.weight)]
    if not copies:
        return tensor

    def measured() -> str:
        """The digest of the first one that differs."""
        found = [digest(t.read()) if t.measure is None else t.measure() for t in (tensor, *copies)]
        return next((d for d in found if d != stored.digest), stored.digest)

    return replace(tensor, measure=measured)


def _past_hdf5(held: Hdf5, data: PositionedFile) -> dict[str, Tensor]:
    """Arrays that are compared with a digest; HDF5 would take several times longer."""
    return {
        name: replace(t, read=partial(_read, held, data, name), measure=partial(_measured, held, data, name))
        for name, t in held.tensors.items()
    }


def _read(held: Hdf5, data: PositionedFile, name: str) -> Array:
    tensor, runs = held.tensors[name], held.runs(name)
    return tensor.read() if runs is None else data.gathered(runs, tensor.shape, tensor.dtype)


def _measured(held: Hdf5, data: PositionedFile, name: str) -> str:
    runs = held.runs(name)
    return digest(held.tensors[name].read()) if runs is None else data.digest(runs)


def contents(held: Hdf5, format: str) -> Contents:
    """What an open HDF5 file holds, with the texts that lie on its groups as facts."""
    return Contents(
        origin=held.origin,
        format=format,
        tensors=held.tensors,
        integrity="fletcher32" if held.checked else "none",
        facts=facts(held),
        unread=held.unread,
        beside=held.beside,
    )


def _manifest(held: Hdf5) -> Manifest | None:
    """What polyak says of a file that it wrote itself, once it agrees with the arrays."""
    texts = held.texts("")
    if not {NOTE, NOTE_DIGEST} & texts.keys():
        return None
    raw = str(texts.get(NOTE, "")).encode(errors="surrogateescape")
    if xxhash.xxh3_128_hexdigest(raw) != texts.get(NOTE_DIGEST):
        raise DamagedFile(f"{held.origin}: the manifest does not have its digest", hint="restore the file from a copy")
    manifest = Manifest.from_json(raw, held.origin, len(held.tensors))
    described = {
        name: (s.weight.shape, s.weight.dtype) for s in manifest.weights for name in (s.name, *again(s.weight))
    }
    found = {name: (t.shape, t.dtype) for name, t in held.tensors.items()}
    if described != found:
        name = min(name for name, _ in set(described.items()) ^ set(found.items()))
        raise DamagedFile(
            f"{held.origin}: weight {name!r}: expected {described.get(name)} by the manifest, "
            f"received {found.get(name)} in the file",
            hint="restore the file from a copy",
        )
    return manifest


def facts(held: Hdf5) -> dict[str, object]:
    """Texts on groups by ``group/attribute``: names of layers, and in a legacy file the names of weights."""
    return {
        f"{group}/{name}" if group else name: text for group in held.groups for name, text in held.texts(group).items()
    }


def first_bytes(path: Path, count: int) -> bytes:
    """The start of a file. Raises FileError."""
    with failures_named(path, "read"), path.open("rb") as file:
        return file.read(count)
