"""PyTorch's zip format: the pickle in ``data.pkl``, each storage in a member of its own."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from polyak.errors import DamagedFile
from polyak.files import torch_globals, zips
from polyak.files.limits import most_described, most_steps
from polyak.files.positioned import PositionedFile
from polyak.files.torch_pickle import Machine, load
from polyak.files.torch_storage import Block, Storages
from polyak.files.torch_values import Budget
from polyak.manifest import Manifest, longest_manifest

MAGIC = zips.MAGIC
NOTE = "polyak.json"
_PICKLE = "data.pkl"
_ENCRYPTED = 1


def recognises(path: Path, start: bytes) -> bool:
    """Whether a zip archive is one of PyTorch's: by its list of members, or by the first one if the end is cut off."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _pickle_name(archive.namelist()) is not None
    except zips.FAILURES:
        first = start[zips.LOCAL.size : zips.LOCAL.size + int.from_bytes(start[26:28], "little")]
        return first.endswith(b"/" + _PICKLE.encode())


def read(data: PositionedFile, origin: str) -> tuple[Any, Storages]:
    """The tree of an archive, and where its storages lie. Raises DamagedFile."""
    members = _members(data, origin)
    name = _pickle_name(list(members))
    if name is None:
        raise DamagedFile(f"{origin}: the archive has no {_PICKLE}", hint="restore it from a copy")
    top = name.removesuffix(_PICKLE)
    pickle = _block(members[name], data, origin)
    if pickle.size > (most := most_described(len(members))):
        raise DamagedFile(f"{origin}: expected a pickle of at most {most:,} bytes, received {pickle.size:,}")
    budget = Budget(most_steps(data.size, len(members)))
    machine = Machine(torch_globals.find, torch_globals.call, torch_globals.storage, budget)
    tree = load(BytesIO(pickle.read()), machine, origin)
    folder = f"{top}data/"
    blocks = {n.removeprefix(folder): _block(m, data, origin) for n, m in members.items() if n.startswith(folder)}
    swapped = _big(members.get(f"{top}byteorder"), data, origin)
    return tree, Storages(blocks, origin, swapped, _note(members.get(f"{top}{NOTE}"), data, len(blocks), origin))


def _note(member: zipfile.ZipInfo | None, data: PositionedFile, count: int, origin: str) -> Manifest | None:
    """What polyak says of its own files."""
    if member is None:
        return None
    block = _block(member, data, origin)
    if block.size > longest_manifest(count):
        raise DamagedFile(f"{origin}: expected the manifest of {count:,} arrays, received {block.size:,} bytes")
    return Manifest.from_json(bytes(block.read()), origin, count)


def _pickle_name(names: list[str]) -> str | None:
    """PyTorch puts all members under one directory, whose name it takes from the file's."""
    found = [n for n in names if n == _PICKLE or n.endswith("/" + _PICKLE)]
    return min(found, key=len, default=None)


def _members(data: PositionedFile, origin: str) -> Mapping[str, zipfile.ZipInfo]:
    try:
        with zips.opened(data.stream(), origin) as archive:
            members = archive.infolist()
    except DamagedFile:
        raise
    except zips.FAILURES as error:
        raise DamagedFile(
            f"{origin}: the list of its members is not readable: {error!s:.80}",
            hint="it is truncated or damaged; restore it from a copy",
        ) from error
    by_name = {m.filename: m for m in members}
    for name in by_name:
        if name.startswith("/") or ".." in name.split("/"):
            raise DamagedFile(f"{origin}: a member is named {name!r:.80}, outside of the archive: refused")
    return by_name


def _block(member: zipfile.ZipInfo, data: PositionedFile, origin: str) -> Block:
    """Where a member's content lies. Its own header says how long that header is."""
    place = f"{origin}: member {member.filename!r:.80}"
    start = member.header_offset
    head = data.piece(start, start + zips.LOCAL.size) if start >= 0 else b""
    if len(head) < zips.LOCAL.size or head[:4] != MAGIC or member.flag_bits & _ENCRYPTED:
        raise DamagedFile(f"{place} at byte {start}: no readable header", hint="restore the file from a copy")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DamagedFile(f"{place}: an unknown compression {member.compress_type}")
    deflated = member.compress_type == zipfile.ZIP_DEFLATED
    begin = start + zips.head_size(head)
    stored, size = member.compress_size, member.file_size
    if not deflated and stored != size:
        raise DamagedFile(f"{place}: expected {size} bytes, received {stored}", hint="restore the file from a copy")
    return Block(data, place, begin, stored, size, member.CRC, deflated)


def _big(member: zipfile.ZipInfo | None, data: PositionedFile, origin: str) -> bool:
    """Whether numbers have the big end first; files without the record were written on little-endian machines."""
    if member is None:
        return False
    block = _block(member, data, origin)
    order = bytes(block.read()) if block.size <= len(b"little") else b""
    if order not in (b"little", b"big"):
        raise DamagedFile(f"{origin}: expected a byte order of 'little' or 'big', received {order!r}")
    return order == b"big"
