"""PyTorch's first format, before 0.1.10: a tar archive of storages, tensors, and the pickle that refers to them.

It has no checksums but those of the archive's headers. Sources: ``torch.serialization.legacy_load`` for the members,
POSIX.1-2001 (pax) for the archive: ``tarfile``, by which PyTorch wrote it, notes the parts of a second in each
member's time, in a header of their own before that of the member.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, NoReturn

from polyak.errors import DamagedFile
from polyak.files import torch_globals
from polyak.files.limits import most_described, most_steps
from polyak.files.positioned import PositionedFile
from polyak.files.torch_globals import Storage
from polyak.files.torch_pickle import Machine, load
from polyak.files.torch_storage import Block, Storages
from polyak.files.torch_values import Budget, Refused
from polyak.weights import numpy_dtype

_NAMES = (b"sys_info", b"pickle", b"storages", b"tensors")
_MAGIC, _MAGIC_AT = b"ustar", 257
_UNIT = 512
_KIND = slice(156, 157)
_PAX = b"x"
_PAX_SIZE = re.compile(rb"^\d+ size=(\d{1,19})$", re.MULTILINE)  # of a member of 8 GiB and more
_MOST_HEADERS = 64
_WINDOW = 4096  # bytes in which the description of one storage or tensor lies
_LEAST = 16  # bytes that such a description takes at least
_SIZE = 8


@dataclass
class _Cursor:
    """A place in one member. Reading past its end is refused."""

    data: PositionedFile
    origin: str
    at: int
    end: int

    def value(self, machine: Machine, window: int = _WINDOW) -> Any:
        """The pickle that starts here."""
        head = BytesIO(self.data.piece(self.at, min(self.at + window, self.end)))
        value = load(head, machine, self.origin)
        self.at += head.tell()
        return value

    def number(self) -> int:
        """How many descriptions follow."""
        count = self.value(_plain())
        if type(count) is not int or not 0 <= count <= (self.end - self.at) // _LEAST:
            self.refuse(f"expected a number of descriptions that the file has room for, received {count!r:.40}")
        return int(count)

    def skip(self, size: int) -> int:
        """Where the next bytes start; the cursor moves behind them."""
        start = self.at
        if not 0 <= size <= self.end - start:
            self.refuse(f"expected {size} bytes, received {self.end - start}")
        self.at += size
        return start

    def numbers(self, form: str) -> tuple[Any, ...]:
        start = self.skip(struct.calcsize(form))
        return struct.unpack(form, self.data.piece(start, self.at))

    def refuse(self, what: str) -> NoReturn:
        raise DamagedFile(
            f"{self.origin} at byte {self.at}: {what}", hint="it is truncated or damaged; restore it from a copy"
        )


@dataclass
class _Archive:
    """What the pickle may refer to, by its key, and where the storages lie."""

    origin: str
    objects: dict[str, Any] = field(default_factory=dict)
    blocks: dict[str, Block] = field(default_factory=dict)

    def enter(self, key: Any, value: Any) -> None:
        name = torch_globals.storage_key(key)
        if name in self.objects:
            raise Refused(f"two values of the key {name!r:.40}")
        self.objects[name] = value

    def persistent(self, identity: Any) -> Any:
        """A tensor or storage by its key, or a module beside its source, which is not looked at."""
        if isinstance(identity, tuple) and identity:
            return identity[0]
        return self.get(identity)

    def get(self, key: Any) -> Any:
        name = torch_globals.storage_key(key)
        if name not in self.objects:
            raise Refused(f"the tensor {name!r:.40}, which there is not")
        return self.objects[name]


def recognises(start: bytes) -> bool:
    """Whether a file starts as a tar archive with one of PyTorch's members, behind a pax header or not."""
    name = start[2 * _UNIT :][:100] if start[_KIND] == _PAX else start[:100]
    return start[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC and name.rstrip(b"\0") in _NAMES


def read(data: PositionedFile, origin: str) -> tuple[Any, Storages]:
    """The tree of a file, and where its storages lie. Raises DamagedFile."""
    members = dict(_members(data, origin))
    for name in _NAMES[1:]:
        if name not in members:
            raise DamagedFile(f"{origin}: the archive has no {name.decode()}", hint="restore it from a copy")
    archive = _Archive(origin)
    try:
        _read_storages(members[b"storages"], archive)
        _read_tensors(members[b"tensors"], archive)
    except Refused as error:
        raise DamagedFile(f"{origin}: it asks for {error}: refused") from error
    budget = Budget(most_steps(data.size, len(archive.objects)))
    machine = Machine(torch_globals.find, torch_globals.call, archive.persistent, budget)
    most = most_described(len(archive.objects))
    return members[b"pickle"].value(machine, most), Storages(archive.blocks, origin)


def _members(data: PositionedFile, origin: str) -> Iterator[tuple[bytes, _Cursor]]:
    seen = set[bytes]()
    for name, at, size in _headers(data, origin):
        start = at + _UNIT
        if name in seen or size > data.size - start:
            raise DamagedFile(
                f"{origin}: member {name!r:.60} at byte {at}: expected once and {size} bytes, "
                f"received {data.size - start} to the end of the file",
                hint="it is truncated or damaged; restore it from a copy",
            )
        seen.add(name)
        yield name, _Cursor(data, f"{origin}: member {name.decode('ascii', 'replace')!r:.60}", start, start + size)


def _headers(data: PositionedFile, origin: str) -> Iterator[tuple[bytes, int, int]]:
    """The name of each member, where its header is, and its size, which a pax header before it may give."""
    at, noted = 0, None
    for _ in range(_MOST_HEADERS):
        head = data.piece(at, at + _UNIT)
        if len(head) < _UNIT or not any(head):
            return
        size = _header_size(head, at, origin)
        if head[_KIND] == _PAX:
            found = _PAX_SIZE.search(data.piece(at + _UNIT, at + _UNIT + min(size, _WINDOW)))
            noted = int(found[1]) if found else None
        else:
            size, noted = size if noted is None else noted, None
            yield head[:100].rstrip(b"\0"), at, size
        at += _UNIT + -(-size // _UNIT) * _UNIT


def _header_size(head: bytes, at: int, origin: str) -> int:
    """The size that a header gives, if its own checksum is right."""
    blank = head[:148] + b" " * 8 + head[156:]
    expected, size = _octal(head[148:156]), _octal(head[124:136])
    if expected != sum(blank) or size is None:
        raise DamagedFile(f"{origin} at byte {at}: a header of the archive is damaged", hint="restore it from a copy")
    return size


def _octal(digits: bytes) -> int | None:
    text = digits.strip(b"\0 ")
    return int(text, 8) if text and not text.strip(b"01234567") else None


def _plain() -> Machine:
    return Machine(torch_globals.find, torch_globals.call, _no_identity)


def _no_identity(identity: Any) -> NoReturn:
    raise Refused("a tensor where there is none")


def _read_storages(member: _Cursor, archive: _Archive) -> None:
    """Each storage: its key, device and class, the number of its elements, and these."""
    for _ in range(member.number()):
        key, kind = _described(member)
        dtype = torch_globals.storage_dtype(kind)
        if dtype is None:
            raise Refused(f"a tensor in {kind!s:.60}, whose size is not known")
        (size,) = member.numbers("<q")
        wide = numpy_dtype(dtype).itemsize
        start = member.skip(size * wide)
        name = torch_globals.storage_key(key)
        archive.enter(key, Storage(name, dtype, size))
        place = f"{archive.origin}: storage {name!r:.60}"
        archive.blocks[name] = Block(member.data, place, start, size * wide, size * wide)
    for view in _listed(member.value(_plain(), most_described(0))):
        _read_view(view, archive)


def _described(member: _Cursor) -> tuple[Any, Any]:
    """The first and the last of three values."""
    value = member.value(_plain())
    if not isinstance(value, tuple) or len(value) != 3:
        member.refuse("expected the description of a storage or tensor, received something else")
    return value[0], value[2]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _read_view(view: Any, archive: _Archive) -> None:
    """A storage that is a part of another one."""
    if not isinstance(view, tuple) or len(view) != 4:
        raise Refused("a part of a storage without a description")
    key, root, start, size = view
    held = archive.get(root)
    if not isinstance(held, Storage) or not all(type(n) is int and n >= 0 for n in (start, size)):
        raise Refused("a part of something that is no storage")
    if start + size > held.size:
        raise Refused(f"elements up to {start + size} of a storage of {held.size}")
    archive.enter(key, Storage(held.key, held.dtype, size, held.start + start))


def _read_tensors(member: _Cursor, archive: _Archive) -> None:
    """Each tensor: its key, storage and class, then its axes, shape, strides and offset, all in elements."""
    for _ in range(member.number()):
        value = member.value(_plain())
        if not isinstance(value, tuple) or len(value) != 3:
            member.refuse("expected the description of a tensor, received something else")
        (axes, _) = member.numbers("<ii")
        if not 0 <= axes <= torch_globals.MOST_AXES:
            member.refuse(f"expected at most {torch_globals.MOST_AXES} axes, received {axes}")
        numbers = member.numbers(f"<{2 * axes + 1}q")
        held = archive.get(value[1])
        archive.enter(value[0], torch_globals.tensor(held, numbers[-1], numbers[:axes], numbers[axes:-1]))
