"""The place of a file that will be written: whether it can be, and what the new file takes over from the old one."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from polyak.errors import FileError
from polyak.files.failures import no_room

if sys.platform != "win32":  # pragma: no branch - Windows has no such module
    import resource

_MOUNTS = Path("/proc/self/mountinfo")
_ACL = "system.posix_acl_access"
_ACL_HEAD, _ACL_ENTRY, _ACL_RIGHTS = 4, 8, 2  # bytes: the version, an entry, and what stands before its rights
_READ, _SEARCH = 4, 1
_MAY_BE_LOST = ("security.", "trusted.")  # attributes that the system itself keeps, or lets only its owner set


@dataclass(frozen=True, slots=True)
class Kept:
    """What a file keeps when its contents are replaced: mode, owner, group, extended attributes (ACLs among them)."""

    mode: int
    owner: int
    group: int
    attributes: tuple[tuple[str, bytes], ...]


def examined(path: Path) -> Kept | None:
    """What a new file at the path must take over, or None where there is no file.

    Raises:
        FileError: no file can be put there, or the one that is there may not be replaced.
    """
    if path.is_dir():
        raise FileError(f"file {str(path)!r}: expected a file to write, received a directory", hint="add a file name")
    _refuse_no_parent(path)
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        odd = "links that lead in a circle" if stat.S_ISLNK(status.st_mode) else "a device, a socket or a pipe"
        raise FileError(f"file {str(path)!r}: expected a regular file, received {odd}")
    _refuse_protected(path)
    return Kept(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, _attributes(path))


def examined_directory(path: Path) -> Kept | None:
    """What a new directory at the path must take over, or None where there is none. Raises FileError."""
    _refuse_no_parent(path)
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISDIR(status.st_mode):
        raise FileError(f"file {str(path)!r}: expected nothing or a directory to replace, received a file")
    _refuse_protected(path)
    return Kept(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, _attributes(path))


def for_directory(kept: Kept) -> Kept:
    """The same for a directory of the parts of a file: who may read the file may search there, too."""
    mode = kept.mode & 0o777
    attributes = tuple((name, _searchable(value) if name == _ACL else value) for name, value in kept.attributes)
    return replace(kept, mode=mode | (mode & 0o444) >> 2 | 0o700, attributes=attributes)


def _searchable(acl: bytes) -> bytes:
    """An access control list in which who may read may search. Source: ``linux/posix_acl_xattr.h``."""
    content = bytearray(acl)
    for place in range(_ACL_HEAD + _ACL_RIGHTS, len(content), _ACL_ENTRY):
        content[place] |= _SEARCH if content[place] & _READ else 0
    return bytes(content)


def for_parts(kept: Kept, old: Iterable[Path]) -> Kept:
    """The same for the parts of what a file leads to.

    Args:
        old: the parts that are there, and the directories of theirs. To whom one of them was closed, the new ones are.
    """
    mode = kept.mode
    for path in old:
        with suppress(OSError, ValueError):  # one that is missing, or that no file can be, closes nothing
            found = path.stat().st_mode
            open_to = found & 0o011 if stat.S_ISDIR(found) else (found & 0o044) >> 2
            mode &= open_to * 7 | 0o7700
    return replace(kept, mode=mode)


def _refuse_no_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise FileError(f"file {str(path)!r}: its directory does not exist", hint=f"create {str(path.parent)!r} first")


def refuse_closed(directory: Path) -> None:
    """Raise PermissionError where this process may make no files."""
    if not _permitted(directory, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _permitted(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _refuse_protected(path: Path) -> None:
    if not _permitted(path, os.W_OK):
        raise FileError(
            f"file {str(path)!r}: cannot be written: Permission denied: this process may not write what is there",
            hint="make it writable, or choose another name",
        )
    if is_mounted(path):
        raise FileError(
            f"file {str(path)!r}: expected one to replace, received one that is mounted here and cannot be renamed",
            hint="write to another name, or mount the directory instead of the file",
        )


def is_mounted(path: Path) -> bool:
    """Whether a file system, or one file of it, is mounted at a path; no rename can replace that."""
    try:
        lines = _MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:  # no Linux
        return os.path.ismount(path)
    return str(path) in {_unescaped(line.split(" ")[4]) for line in lines}


def _unescaped(text: str) -> str:
    for code in (" ", "\t", "\n", "\\"):
        text = text.replace(f"\\{ord(code):03o}", code)
    return text


def _attributes(path: Path) -> tuple[tuple[str, bytes], ...]:
    if sys.platform != "linux":  # pragma: no cover - macOS and Windows
        return ()
    try:
        return tuple((name, os.getxattr(path, name)) for name in os.listxattr(path))
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return ()
        raise


def close_to_others(directory: Path) -> None:
    """Let nobody else look into a directory while it is written, where the file system knows such rights."""
    with suppress(OSError):
        directory.chmod(0o700)


def hand_over(kept: Kept | None, handle: int, path: Path) -> None:
    """Give an open file what the old one at ``path`` had, before a byte is in it.

    Raises:
        FileError: the system does not let this process keep it.
    """
    if kept is None or sys.platform == "win32":
        return
    try:
        status = os.fstat(handle)
        if (status.st_uid, status.st_gid) != (kept.owner, kept.group):
            os.fchown(handle, kept.owner, kept.group)
        _drop_inherited(kept, handle)
        for name, value in kept.attributes:
            _set_attribute(handle, name, value)
        os.fchmod(handle, kept.mode)  # last: a change of the owner takes bits away
    except OSError as error:
        raise FileError(
            f"file {str(path)!r}: cannot be written: a new file cannot have the owner, group {kept.owner}:{kept.group} "
            f"and attributes of the old one: {error.strerror or error}",
            hint="remove the old file first, or choose another name",
        ) from error


def _drop_inherited(kept: Kept, handle: int) -> None:
    """A directory may give each new file in it an access control list, which the old one did not have."""
    if sys.platform == "linux" and not any(name == _ACL for name, _ in kept.attributes):  # pragma: no branch
        with suppress(OSError):  # there is none
            os.removexattr(handle, _ACL)


def _set_attribute(handle: int, name: str, value: bytes) -> None:
    if sys.platform == "linux":  # pragma: no branch - elsewhere there are no attributes to set
        try:
            os.setxattr(handle, name, value)
        except OSError:
            if not name.startswith(_MAY_BE_LOST):
                raise


def refuse_no_room(path: Path, needed: int) -> None:
    """Raise FileError where the free space, or the longest file that this process may write, is less than needed."""
    if sys.platform == "win32":  # pragma: no cover - Windows has no statvfs
        return
    if (free := _free(path.parent)) is not None and free < needed:
        raise no_room(path, needed, f"{free:,} bytes are free")
    longest = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if longest != resource.RLIM_INFINITY and longest < needed:
        raise no_room(path, needed, f"a file of this process may have {longest:,} bytes")


def _free(directory: Path) -> int | None:
    """Bytes that this process may still write there; None where the file system does not say."""
    try:
        room = os.statvfs(directory)
    except OSError:
        return None
    return room.f_frsize * (room.f_bfree if os.geteuid() == 0 else room.f_bavail) if room.f_blocks else None
