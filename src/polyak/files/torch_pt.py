"""PyTorch's files (``.pt``, ``.pth``, ``.bin``, ``.ckpt``), read without PyTorch and without running what they bring.

``torch.load`` runs the code of a file, or refuses whole files that hold a class that it does not know. Here
unknown classes are inert notes, so the weights beside them can be read. Each storage is verified by the CRC-32
of the archive when it is read; torch writes these and never looks at them.
"""

from __future__ import annotations

import mmap
from functools import partial
from pathlib import Path

from polyak.contents import Contents, Tensor
from polyak.errors import DamagedFile, FileError
from polyak.files import torch_legacy, torch_zip
from polyak.files.torch_storage import Storages
from polyak.files.torch_tree import Tree

FORMAT = "torch"
NOT_READ = "not read/"
_START = 512
_SHARED = 16
_FREE = 2**30


def recognises(path: Path) -> bool:
    if not path.is_file():
        return False
    start = _start(path)
    if start.startswith(torch_zip.MAGIC):
        return torch_zip.recognises(path, start)
    return torch_legacy.recognises(start)


def read(path: Path) -> Contents:
    """Open a file; its pickle is read, its tensors are not. Raises DamagedFile, UnknownFormat, FileError.

    Tensors are named by the path through the containers, joined with slashes; the dots in the names that torch
    gives are kept: ``state_dict/encoder.0.weight``. A fact ``not read/<path>`` says what a tensor is that is not read.
    """
    origin = f"file {str(path)!r}"
    zipped = _start(path).startswith(torch_zip.MAGIC)
    with path.open("rb") as file:
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    value, storages = torch_zip.read(path, view, origin) if zipped else torch_legacy.read(view, origin)
    tree = Tree(origin)
    tree.add(value)
    _refuse_excess(sum(storages.check(name, held) for name, held in tree.views.items()), len(view), origin)
    facts = tree.facts | {NOT_READ + name: what for name, what in tree.not_read.items()}
    return Contents(origin, FORMAT, _tensors(tree, storages), "crc32" if zipped else "none", facts=facts)


def _refuse_excess(cost: int, size: int, origin: str) -> None:
    """Tensors may share storages; a small file that makes terabytes of them is no file of weights."""
    if cost > _SHARED * size + _FREE:
        raise DamagedFile(f"{origin}: expected tensors in proportion to its {size} bytes, received {cost} bytes")


def _tensors(tree: Tree, storages: Storages) -> dict[str, Tensor]:
    return {name: Tensor(v.shape, v.dtype, partial(storages.read, v)) for name, v in tree.views.items()}


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_START)
    except OSError as error:
        raise FileError(f"file {str(path)!r}: cannot be read: {error.strerror or error}") from error
