"""PyTorch's files (``.pt``, ``.pth``, ``.bin``, ``.ckpt``), read without PyTorch and without running what they bring.

``torch.load`` runs the code of a file, or refuses whole files that hold a class that it does not know. Here
unknown classes are inert notes, so the weights beside them can be read. Each storage is verified when it is read, by
the digests of polyak's manifest or by the CRC-32 of the archive; torch writes the latter and never looks at them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

from polyak.contents import Contents, Tensor, plain
from polyak.errors import DamagedFile, FileError
from polyak.files import torch_legacy, torch_tar, torch_zip
from polyak.files.limits import most_steps
from polyak.files.positioned import PositionedFile
from polyak.files.torch_storage import Storages
from polyak.files.torch_tree import Tree
from polyak.manifest import Manifest

FORMAT = "torch"
_START = 2048
_SHARED = 16
_FREE = 2**30


def recognises(path: Path) -> bool:
    if not path.is_file():
        return False
    start = _start(path)
    if start.startswith(torch_zip.MAGIC):
        return torch_zip.recognises(path, start)
    return torch_legacy.recognises(start) or torch_tar.recognises(start)


def read(path: Path) -> Contents:
    """Open a file; its pickle is read, its tensors are not. Raises DamagedFile, UnknownFormat, FileError.

    Tensors are named by the path through the containers, joined with slashes; the dots in the names that torch
    gives are kept: ``state_dict/encoder.0.weight``.
    """
    origin = f"file {str(path)!r}"
    data = PositionedFile(path)
    start = data.piece(0, _START)
    zipped = start.startswith(torch_zip.MAGIC)
    value, storages = _format(start).read(data, origin)
    tree = Tree(origin, most_steps(data.size, len(storages.blocks)))
    tree.add(value)
    _refuse_excess(sum(storages.check(name, held) for name, held in tree.views.items()), data.size, origin)
    marked = storages.manifest is not None and storages.manifest.marked
    tensors = _tensors(tree, storages.unchecked() if marked else storages)
    if storages.manifest is not None:
        _refuse_others(storages.manifest, tensors, origin)
        return Contents(origin, FORMAT, tensors, "xxh3-128", storages.manifest)
    held = Contents(origin, FORMAT, tensors, "crc32" if zipped else "none", facts=tree.facts)
    return replace(held, unread=tree.not_read, beside=tree.others | plain(tree.facts))


def _format(start: bytes) -> ModuleType:
    if start.startswith(torch_zip.MAGIC):
        return torch_zip
    return torch_tar if torch_tar.recognises(start) else torch_legacy


def _refuse_others(manifest: Manifest, tensors: dict[str, Tensor], origin: str) -> None:
    """The manifest must describe just these tensors."""
    described = {s.name: (s.weight.shape, s.weight.dtype) for s in manifest.weights}
    found = {name: (t.shape, t.dtype) for name, t in tensors.items()}
    if described != found:
        name = min(name for name, _ in set(described.items()) ^ set(found.items()))
        raise DamagedFile(
            f"{origin}: weight {name!r}: expected {described.get(name, 'nothing')} by the manifest, "
            f"received {found.get(name, 'nothing')}",
            hint="another tool has changed it and kept the manifest: read it with torch.load, and save it anew",
        )


def _refuse_excess(cost: int, size: int, origin: str) -> None:
    """Tensors may share storages; a small file that makes terabytes of them is no file of weights."""
    if cost > _SHARED * size + _FREE:
        raise DamagedFile(f"{origin}: expected tensors in proportion to its {size} bytes, received {cost} bytes")


def _tensors(tree: Tree, storages: Storages) -> dict[str, Tensor]:
    return {
        name: Tensor(v.shape, v.dtype, partial(storages.read, v), storages.measure(v)) for name, v in tree.views.items()
    }


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_START)
    except OSError as error:
        raise FileError(f"file {str(path)!r}: cannot be read: {error.strerror or error}") from error
