"""Writing ``.pt`` files that ``torch.load(path, weights_only=True)`` reads, mapped into memory or not, without PyTorch.

The archive is that of ``torch.save``: the pickle in ``data.pkl``, each array in a member of its own that starts at a
multiple of 64 bytes, with its CRC-32. A member ``polyak.json`` holds the manifest; PyTorch does not look at it. Equal
weights make equal files.
"""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Sequence
from typing import BinaryIO

import msgspec
import numpy as np

from polyak.errors import ShapeMismatch, UnexpectedWeight
from polyak.files.atomic import Check, refuse_unwritable, replacing
from polyak.files.meanwhile import Members
from polyak.files.torch_pickled import Described, Nest, pickled, refuse_unknown
from polyak.files.torch_tree import LONGEST_STEP
from polyak.files.torch_zip import NOTE
from polyak.manifest import Manifest, Stored
from polyak.snapshot import Array, Snapshot
from polyak.weights import numpy_dtype

_TOP = "archive"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_ALIGNMENT = 64
_HEADER = 30  # bytes of a member's header without its name and extra field
_LARGE = 2_000_000_000  # from here on, zipfile may write a longer header
_LARGE_FIELD = 20
_PADDING = b"FB"  # the extra field that torch fills, too


def write(snapshot: Snapshot, path: str | os.PathLike[str], check: Check | None = None) -> Manifest:
    """Write a snapshot as a dictionary of tensors; with several roles, as one dictionary for each role.

    Memory: the largest array.

    Args:
        check: reads the finished file back before it takes the place of an old one.

    Raises:
        FileError: the path cannot be written.
        DtypeMismatch: PyTorch does not have a weight's dtype.
        UnexpectedWeight: a name that is empty, or too long to be read again.
    """
    known = snapshot.manifest.weights
    _refuse_unheld(known)
    needed = sum(w.nbytes for w in snapshot.weights)
    with replacing(path, needed, check) as file, zipfile.ZipFile(file, "w") as archive:
        members = Members(archive, file)
        _put_text(members, file, "data.pkl", pickled(_nest(known)))
        _put_text(members, file, "byteorder", sys.byteorder.encode())
        stored = [_append(members, file, str(i), snapshot[s.name], s) for i, s in enumerate(known)]
        _put_text(members, file, "version", b"3\n")
        manifest = _manifest(snapshot, stored)
        _put_text(members, file, NOTE, manifest.to_json().encode())
    return manifest


def refuse(snapshot: Snapshot, path: str | os.PathLike[str]) -> None:
    """Raise what ``write`` would raise before it reads an array; nothing is written."""
    _refuse_unheld(snapshot.manifest.weights)
    refuse_unwritable(path, sum(w.nbytes for w in snapshot.weights))


def _refuse_unheld(stored: Sequence[Stored]) -> None:
    """What a file cannot hold so that it is read again: a tensor without a name would be the file itself."""
    for s in stored:
        refuse_unknown(s)
        if not s.name or len(s.name) > LONGEST_STEP:
            raise UnexpectedWeight(
                f"weight {s.name!r:.120}: expected a name of 1 to {LONGEST_STEP:,} letters for a file of PyTorch, "
                f"received {len(s.name):,}",
                hint="rename it, or write a safetensors file",
            )


def _nest(stored: Sequence[Stored]) -> Nest:
    """The tensors under their names, below their roles where there are several."""
    roles = {s.role for s in stored}
    flat: dict[str, Described] = {}
    nested: dict[str, dict[str, Described]] = {}
    for i, s in enumerate(stored):
        held = Described(str(i), s.weight.shape, s.weight.dtype)
        flat[s.name] = held
        nested.setdefault(s.role, {})[s.weight.path] = held
    return flat if len(roles) < 2 else nested


def _manifest(snapshot: Snapshot, stored: list[Stored]) -> Manifest:
    return snapshot.written(tuple(stored))


def _append(members: Members, file: BinaryIO, key: str, array: Array, stored: Stored) -> Stored:
    if (array.shape, array.dtype.name) != (stored.weight.shape, stored.weight.dtype):
        raise ShapeMismatch(
            f"weight {stored.name!r}: expected {stored.weight.shape} {stored.weight.dtype}, "
            f"received {array.shape} {array.dtype.name}",
            hint="it changed while it was written",
        )
    array = np.ascontiguousarray(array, numpy_dtype(stored.weight.dtype))
    return msgspec.structs.replace(stored, digest=_put(members, file, f"data/{key}", array))


def _put_text(members: Members, file: BinaryIO, name: str, content: bytes) -> None:
    _put(members, file, name, np.frombuffer(content, np.uint8))


def _put(members: Members, file: BinaryIO, name: str, content: Array) -> str:
    """A member with a fixed time, whose content is not compressed and starts at a multiple of 64 bytes."""
    info = zipfile.ZipInfo(f"{_TOP}/{name}", _EPOCH)
    large = content.nbytes >= _LARGE
    start = file.tell() + _HEADER + len(info.filename.encode()) + len(_PADDING) + 2 + _LARGE_FIELD * large
    fill = -start % _ALIGNMENT
    info.extra = _PADDING + fill.to_bytes(2, "little") + b"Z" * fill
    return members.append(info, b"", content, large)
