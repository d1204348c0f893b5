"""What cannot be written is refused before the first byte, and a new file takes over what the old one had."""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from tests.files.bounded import file_sizes, nobody

from polyak.errors import FileError
from polyak.files import place
from polyak.files.atomic import replacing, replacing_directory
from polyak.files.place import Kept, hand_over

Replacing = Callable[[Path], AbstractContextManager[Any]]
BOTH = pytest.mark.parametrize("kind", [replacing, replacing_directory])
linux = pytest.mark.skipif(sys.platform != "linux", reason="extended attributes are those of Linux")


def refused(kind: Replacing, path: Path, message: str) -> None:
    """Before the block begins; all that was there is as it was."""
    before = {p: p.lstat() for p in path.parent.glob("*")}
    with pytest.raises(FileError, match=message), kind(path):
        raise AssertionError("the block began")
    assert {p: p.lstat() for p in path.parent.glob("*")} == before


def made(kind: Replacing, path: Path) -> Path:
    """What one of the two replaces."""
    if kind is replacing:
        path.write_bytes(b"old")
    else:
        path.mkdir()
        (path / "old").write_bytes(b"old")
    return path


def test_a_directory_is_not_replaced_by_a_file_nor_a_file_by_a_directory(tmp_path: Path) -> None:
    refused(replacing, made(replacing_directory, tmp_path / "d"), "expected a file to write, received a directory")
    refused(
        replacing_directory, made(replacing, tmp_path / "f"), "expected nothing or a directory to replace, received"
    )


@BOTH
def test_a_directory_that_is_missing_is_named(kind: Replacing, tmp_path: Path) -> None:
    refused(kind, tmp_path / "no" / "a", r"a': its directory does not exist\nhint: create '.*no' first")


@BOTH
def test_what_this_process_may_not_write_is_not_replaced(kind: Replacing, tmp_path: Path) -> None:
    path = made(kind, tmp_path / "a")
    path.chmod(0o555)
    tmp_path.chmod(0o777)  # in which anybody may rename
    for above in tmp_path.parents:
        if Path(tempfile.gettempdir()) in above.parents:  # which are for their owner alone
            above.chmod(0o755)
    with nobody():
        refused(kind, path, "this process may not write what is there")


@BOTH
def test_what_is_mounted_is_not_replaced(kind: Replacing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts, path = tmp_path / "mountinfo", made(kind, tmp_path / "a")
    mounts.write_text(f"1 2 0:3 / {path} rw - ext4 x rw\n")
    monkeypatch.setattr(place, "_MOUNTS", mounts)
    refused(kind, path, "received one that is mounted here")


def test_a_file_longer_than_this_process_may_write_is_refused(tmp_path: Path) -> None:
    with file_sizes() as bound:
        bound(1000)
        refused(lambda path: replacing(path, 1001), tmp_path / "a", "a file of this process may have 1,000 bytes")
        with replacing(tmp_path / "a", 1000) as file:
            file.write(bytes(1000))


@BOTH
def test_what_there_is_no_room_for_is_refused(kind: Callable[..., Any], tmp_path: Path) -> None:
    refused(lambda path: kind(path, 10**15), tmp_path / "a", "bytes are free; it needs 1,000,000,000,000,000 bytes")


@linux
@BOTH
def test_mode_owner_and_attributes_are_taken_over(kind: Replacing, tmp_path: Path) -> None:
    path = made(kind, tmp_path / "a")
    if os.geteuid() == 0:
        os.chown(path, 1234, 2345)
    os.setxattr(path, "user.note", b"mine")
    path.chmod(0o750)
    before = path.stat()
    with kind(path):
        """Nothing is written into it."""
    after = path.stat()
    assert after.st_ino != before.st_ino
    assert stat.S_IMODE(after.st_mode) == 0o750
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert os.getxattr(path, "user.note") == b"mine"


@linux
def test_an_attribute_that_cannot_be_kept_is_refused_unless_it_is_the_systems(tmp_path: Path) -> None:
    path, too_long = tmp_path / "a", bytes(1 << 17)
    with path.open("wb") as file:
        status = os.fstat(file.fileno())

        def keep(name: str) -> None:
            kept = Kept(0o640, status.st_uid, status.st_gid, ((name, too_long),))
            hand_over(kept, file.fileno(), path)

        with pytest.raises(FileError, match="and attributes of the old one: "):
            keep("user.note")
        keep("security.note")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@BOTH
def test_a_link_that_is_made_meanwhile_is_not_replaced(kind: Replacing, tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "other"
    with pytest.raises(FileError, match="received a symbolic link made meanwhile\nhint: write again"), kind(path):
        path.symlink_to(other)
    assert path.is_symlink()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_mounts_are_known_where_the_system_lists_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "_MOUNTS", tmp_path / "none")
    assert place.is_mounted(Path("/"))
    with replacing(made(replacing, tmp_path / "a")) as file:
        file.write(b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


@linux
def test_a_file_system_without_attributes_is_written_to_and_a_failing_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(replacing, tmp_path / "a")

    def answer(code: int) -> None:
        def fail(path: Path) -> list[str]:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "listxattr", fail)

    answer(errno.EIO)
    refused(replacing, path, "a': cannot be written: Input/output error")
    answer(errno.ENOTSUP)
    with replacing(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_a_file_system_that_does_not_say_how_much_room_it_has_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> os.statvfs_result:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "statvfs", fail)
    with replacing(tmp_path / "a", 10**15) as file:
        file.write(b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
