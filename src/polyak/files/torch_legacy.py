"""PyTorch's format before 1.6: five pickles, then the storages one after another. It has no checksums."""

from __future__ import annotations

from typing import Any

from polyak.errors import DamagedFile, UnknownFormat
from polyak.files import torch_globals
from polyak.files.limits import most_described, most_steps
from polyak.files.positioned import PositionedFile
from polyak.files.torch_globals import NotRead, Storage
from polyak.files.torch_pickle import Machine, load
from polyak.files.torch_storage import Block, Storages
from polyak.files.torch_values import Budget, Refused, shown
from polyak.weights import numpy_dtype

MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_PROTOCOL = 1001
_SIZE = 8


class _Roots:
    """The whole storages that the tree refers to: bytes an element and number of elements, by key."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[int, int]] = {}

    def persistent(self, identity: Any) -> Any:
        made = torch_globals.storage(identity)
        if isinstance(made, NotRead):
            wide = torch_globals.unread_width(identity[1])
            if wide is None:
                raise Refused(f"{made.what}, whose size is not known")
            self._enter(torch_globals.storage_key(identity[2]), wide, identity[4])
        if isinstance(made, Storage):
            self._enter(made.key, numpy_dtype(made.dtype).itemsize, identity[4])
        return made

    def _enter(self, key: str, wide: int, size: Any) -> None:
        if type(size) is not int:
            raise Refused("a storage without a size")
        self.known.setdefault(key, (wide, size))


def recognises(start: bytes) -> bool:
    """Whether the first pickle is PyTorch's magic number."""
    return start[:1] == b"\x80" and MAGIC in start[:32]


def read(data: PositionedFile, origin: str) -> tuple[Any, Storages]:
    """The tree of a file, and where its storages lie. Raises DamagedFile, UnknownFormat."""
    head, roots = data.stream(most_described(data.size // 4096)), _Roots()
    _, protocol, _ = (load(head, _machine(_Roots(), Budget()), origin) for _ in range(3))
    if protocol != _PROTOCOL:
        raise UnknownFormat(f"{origin}: expected the protocol {_PROTOCOL} of PyTorch, received {shown(protocol)}")
    budget = Budget(most_steps(data.size, 0))
    tree = load(head, _machine(roots, budget), origin)
    keys = _keys(load(head, _machine(_Roots(), budget), origin))
    if set(keys) != set(roots.known) or len(keys) != len(roots.known):
        raise DamagedFile(f"{origin}: expected the keys of its {len(roots.known)} storages, received others")
    return tree, Storages(_blocks(keys, roots, head.tell(), data, origin), origin)


def _keys(value: Any) -> list[str]:
    return [str(k) for k in value if isinstance(k, (str, int))] if isinstance(value, list) else []


def _machine(roots: _Roots, budget: Budget) -> Machine:
    return Machine(torch_globals.find, torch_globals.call, roots.persistent, budget)


def _blocks(keys: list[str], roots: _Roots, position: int, data: PositionedFile, origin: str) -> dict[str, Block]:
    blocks = {}
    for key in keys:
        wide, expected = roots.known[key]
        size = int.from_bytes(data.piece(position, position + _SIZE), "little")
        if size != expected:
            raise DamagedFile(
                f"{origin}: storage {key!r:.60} at byte {position}: expected {expected} elements, received {size}",
                hint="it is truncated or damaged; restore it from a copy",
            )
        blocks[key] = Block(data, f"{origin}: storage {key!r:.60}", position + _SIZE, size * wide, size * wide)
        position += _SIZE + size * wide
    return blocks
