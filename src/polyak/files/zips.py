"""The members of a zip from a stranger, believed only where its parts agree with each other.

A zip names everything twice: in the directory at its end and before each member. Readers look at one of the two, so
that a damaged or hostile zip can be one thing to one reader and another to the next. Here both must agree, nothing may
be hidden, and the number of members is bounded before any of them is described in memory.

Source: PKWARE's APPNOTE.TXT.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from polyak.errors import DamagedFile
from polyak.files.limits import FREE_INFLATION, MOST_INFLATION, MOST_TENSORS

MAGIC = b"PK\x03\x04"
LOCAL = struct.Struct("<4s5H3I2H")
_MOST_MEMBERS = MOST_TENSORS + 64  # one for each tensor, and those that describe them
_MARK = b"PK\x01\x02"
_END = struct.Struct("<4s4H2LH")
_LONGEST_COMMENT = 0xFFFF
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ELSEWHERE = (0xFFFF, 0xFFFFFFFF)  # a number that does not fit stands in the record of zip64
# What the standard library raises for the directory or a member of a damaged zip.
FAILURES = (
    zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError, struct.error, OverflowError, KeyError,
    IndexError, OSError, MemoryError,
)  # fmt: skip
_HINT = "it is truncated or damaged; restore it from a copy"


def opened(source: Path | BinaryIO, origin: str) -> zipfile.ZipFile:
    """A zip whose members lie apart, have their names in both places, are all listed and do not unpack without end.

    Raises:
        DamagedFile: it contradicts itself, or has more members than a file of weights.
        One of FAILURES: its directory is not readable; the caller, who knows the format, says so.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            size, count = _counted(file, origin)
    else:
        size, count = _counted(source, origin)
    archive = zipfile.ZipFile(source)
    try:
        _refuse_bomb(archive.infolist(), size, origin)
        _refuse_contradictions(archive, count, origin)
    except BaseException:
        archive.close()
        raise
    return archive


def begins(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Where the bytes of a member begin: behind its name, which stands before them, too. The zip is an opened one."""
    file: Any = archive.fp
    file.seek(member.header_offset)
    return int(member.header_offset + head_size(file.read(LOCAL.size)))


def head_size(head: bytes) -> int:
    """The bytes before a member's own, by the first of them: the header, its name and what else it says."""
    name, extra = LOCAL.unpack(head)[9:]
    return int(LOCAL.size + name + extra)


def _refuse_bomb(members: Sequence[zipfile.ZipInfo], size: int, origin: str) -> None:
    """Refuse members that unpack to far more than the file's size. Raises DamagedFile."""
    if sum(m.file_size for m in members) > max(FREE_INFLATION, MOST_INFLATION * size):
        largest = max(members, key=lambda m: m.file_size)
        raise DamagedFile(
            f"{origin}: member {largest.filename!r:.80}: expected at most {MOST_INFLATION} bytes for each of the "
            f"file's {size:,}, received {largest.file_size:,} in {largest.compress_size:,}",
            hint="it is damaged or hostile; weights that pack so well are all zeros",
        )


def _counted(file: BinaryIO, origin: str) -> tuple[int, int]:
    """The size of a zip, and the number of members by its end; the directory holds about so many."""
    file.seek(0, os.SEEK_END)
    size = file.tell()
    file.seek(max(0, size - _END.size - _LONGEST_COMMENT))
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise zipfile.BadZipFile("it has no end")
    count, length = _END.unpack_from(tail, at)[4:6]
    end = size - len(tail) + at
    if count == _ELSEWHERE[0] or length == _ELSEWHERE[1]:
        count, length, end = _zip64(file, end)
    if count > _MOST_MEMBERS or length > end:
        raise DamagedFile(f"{origin}: expected a list of at most {_MOST_MEMBERS:,} members, received {count:,} "
                          f"in {length:,} bytes of {size:,}", hint=_HINT)  # fmt: skip
    file.seek(end - length)
    # Names and comments may hold the mark by chance, but no second list of members.
    if file.read(length).count(_MARK) > 2 * count + 64:
        raise _contradiction(origin, f"{count} members by the end of the zip", "more")
    return size, int(count)


def _zip64(file: BinaryIO, end: int) -> tuple[int, int, int]:
    """Count, length of the directory and where it ends, by the record for zips of many members."""
    file.seek(max(0, end - _LOCATOR.size))
    locator = file.read(_LOCATOR.size)
    if not locator.startswith(b"PK\x06\x07"):
        raise zipfile.BadZipFile("its end counts as zip64 does, and there is no such record")
    place = _LOCATOR.unpack(locator)[2]
    file.seek(min(place, end))
    raw = file.read(_END64.size)
    if len(raw) < _END64.size or not raw.startswith(b"PK\x06\x06"):
        raise zipfile.BadZipFile("the end of its directory is not where it should be")
    count, length = _END64.unpack(raw)[7:9]
    return count, length, place


def _refuse_contradictions(archive: zipfile.ZipFile, count: int, origin: str) -> None:
    members = archive.infolist()
    if count != len(members):  # one wrong length in the directory hides the members behind it
        raise _contradiction(origin, f"{count} members by the end of the zip", f"{len(members)}")
    if len({m.filename for m in members}) < count:
        raise _contradiction(origin, "members with names of their own", "two members of one name: a name occurs twice")
    end = 0
    for member in sorted(members, key=lambda m: m.header_offset):
        end = _behind(archive, member, end, origin)


def _behind(archive: zipfile.ZipFile, member: zipfile.ZipInfo, least: int, origin: str) -> int:
    """Where a member ends, which begins where the one before it has ended, and is named as in the directory."""
    place = f"{origin}: member {member.filename!r:.80} at byte {member.header_offset}"
    if member.header_offset < least:
        raise DamagedFile(f"{place}: it overlaps another", hint=_HINT)
    file: Any = archive.fp
    file.seek(member.header_offset)
    head = file.read(LOCAL.size)
    if len(head) < LOCAL.size or not head.startswith(MAGIC):
        raise DamagedFile(f"{place}: no readable header", hint=_HINT)
    told = file.read(LOCAL.unpack(head)[9])
    if told != _stored_name(member):
        raise DamagedFile(f"{place}: expected this name before its bytes, too, received {told!r:.80}", hint=_HINT)
    end = member.header_offset + head_size(head) + member.compress_size
    if end > archive.start_dir:
        raise DamagedFile(f"{place}: expected {member.compress_size:,} bytes, received a shorter file", hint=_HINT)
    return int(end)


def _stored_name(member: zipfile.ZipInfo) -> bytes:
    return member.orig_filename.encode("utf-8" if member.flag_bits & 0x800 else "cp437")


def _contradiction(origin: str, expected: str, received: str) -> DamagedFile:
    return DamagedFile(f"{origin}: expected {expected}, received {received}", hint=_HINT)
