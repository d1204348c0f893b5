"""Zips that contradict themselves, each in one way."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.attacks.attack import Member, zipped

from polyak.errors import DamagedFile
from polyak.files import zips

GOOD = zipped([Member("a", b"one"), Member("b", b"two")])


def opened(content: bytes, tmp_path: Path) -> list[str]:
    path = tmp_path / "x.zip"
    path.write_bytes(content)
    with zips.opened(path, "file 'x'") as archive:
        return archive.namelist()


def test_a_good_zip_is_opened_from_a_path_and_from_a_file(tmp_path: Path) -> None:
    assert opened(GOOD, tmp_path) == ["a", "b"]
    with zips.opened(io.BytesIO(GOOD), "file 'x'") as archive:
        assert archive.read("b") == b"two"


def test_a_zip_of_more_members_than_the_old_record_counts_is_opened(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as made:
        for i in range(70_000):
            made.writestr(zipfile.ZipInfo(f"{i}"), b"")
    with zips.opened(tmp_path / "x.zip", "file 'x'") as archive:
        assert len(archive.namelist()) == 70_000


def test_a_zip_with_a_comment_is_opened(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as made:
        made.writestr("a", b"one")
        made.comment = b"a comment"
    with zips.opened(tmp_path / "x.zip", "file 'x'") as archive:
        assert archive.namelist() == ["a"]


def counted(count: int) -> bytes:
    at = GOOD.rindex(b"PK\5\6")
    return GOOD[: at + 8] + struct.pack("<HH", count, count) + GOOD[at + 12 :]


def longer_entry() -> bytes:
    """The directory's first entry says that its comment is the second one."""
    at = GOOD.index(b"PK\1\2")
    size = GOOD.index(b"PK\1\2", at + 1) - at
    return GOOD[: at + 32] + struct.pack("<H", size) + GOOD[at + 34 :]


def hidden() -> bytes:
    """A directory of two hundred members, of which the end counts two."""
    many = zipped([Member(f"{i}", b"") for i in range(200)])
    at = many.rindex(b"PK\5\6")
    return many[: at + 8] + struct.pack("<HH", 2, 2) + many[at + 12 :]


def other_name() -> bytes:
    return GOOD.replace(b"a", b"c", 1)


def other_header() -> bytes:
    at = GOOD.index(b"PK\3\4", 1)
    return GOOD[:at] + b"NONE" + GOOD[at + 4 :]


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "too few": (lambda: counted(3), "expected 3 members by the end of the zip, received 2"),
    "too many": (lambda: counted(1), "expected 1 members by the end of the zip, received 2"),
    "an entry behind another": (longer_entry, "expected 2 members by the end of the zip, received 1"),
    "a directory of others": (hidden, "expected 2 members by the end of the zip, received more"),
    "another name": (other_name, "member 'a' at byte 0: expected this name before its bytes, too, received b'c'"),
    "no header": (other_header, "member 'b' at byte 34: no readable header"),
    "an overlap": (lambda: zipped([Member("a", b"one"), Member("b", b"two", at=0)]), "it overlaps another"),
    "bytes that are not there": (lambda: zipped([Member("a", b"one", size=5000)]), "expected 5,000 bytes"),
    "two of a name": (lambda: zipped([Member("a", b"one"), Member("a", b"two")]), "a name occurs twice"),
    "a bomb": (lambda: zipped([Member("a", bytes(17 << 20), packed=True)]), "expected at most 20 bytes for each"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_zip_that_contradicts_itself_is_refused(name: str, tmp_path: Path) -> None:
    make, said = BROKEN[name]
    with pytest.raises(DamagedFile, match=said):
        opened(make(), tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\3\4", GOOD[:-1], GOOD[:50], counted(0xFFFF)])
def test_a_zip_without_a_readable_end_is_no_zip(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(zipfile.BadZipFile):
        opened(content, tmp_path)


@pytest.mark.parametrize("record", [b"", b"PK\6\6", b"NONE" + bytes(52)])
def test_a_record_for_many_members_that_is_not_there_is_noticed(record: bytes, tmp_path: Path) -> None:
    at = GOOD.rindex(b"PK\5\6")
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    with pytest.raises(zipfile.BadZipFile, match="not where it should be"):
        opened(GOOD[:at] + record + locator + end, tmp_path)


def test_an_end_that_counts_as_for_many_members_needs_their_record(tmp_path: Path) -> None:
    with pytest.raises(zipfile.BadZipFile, match="there is no such record"):
        opened(counted(0xFFFF), tmp_path)


def test_a_count_above_the_limit_is_refused_before_the_members_are_read(tmp_path: Path) -> None:
    at = GOOD.rindex(b"PK\5\6")
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2, 200_000, at, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    with pytest.raises(DamagedFile, match="at most 100,064 members, received 200,000"):
        opened(GOOD[:at] + record + locator + end, tmp_path)
