"""The hidden names under which polyak writes what is not finished, and the sweeping of what a killed process left.

A name holds a random number and a checksum over it, so that nobody else's file is taken for one of polyak's. Whoever
writes holds a lock on the file or directory until it has its final name; the system lets go of the lock when the
process ends, however it ends. What is polyak's and locked by nobody belongs to nobody any more.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import xxhash

if sys.platform != "win32":  # pragma: no branch - Windows has no fcntl
    import fcntl

PARTIAL = "partial"
SET_ASIDE = "replaced"
_TRIES = 100
_HIDDEN = re.compile(r"\.(.+)\.([0-9a-f]{24})\.(partial|replaced)", re.DOTALL)
_DIGITS = 16


def signed(name: str) -> str:
    """24 digits that no other program puts behind this name: 16 at random, 8 that follow from them and the name."""
    number = secrets.token_hex(_DIGITS // 2)
    return number + _signature(name, number)


def is_signed(name: str, token: str) -> bool:
    """Whether polyak made these digits, for this name."""
    return token[_DIGITS:] == _signature(name, token[:_DIGITS])


def _signature(name: str, number: str) -> str:
    return xxhash.xxh3_64_hexdigest(f"polyak {number} {name}".encode(errors="surrogateescape"))[:8]


def hidden(final: Path, kind: str = PARTIAL) -> Path:
    """A new hidden name beside a path. Short, because a name may have 255 bytes at most."""
    name = final.name[:32]
    return final.parent / f".{name}.{signed(name)}.{kind}"


def hidden_beside(final: Path, kind: str = PARTIAL) -> list[Path]:
    """What stands beside a path under names that ``hidden`` gave; none where the directory cannot be listed."""
    found = []
    with suppress(OSError), os.scandir(final.parent) as entries:
        for entry in entries:
            match = _made(entry.name)
            if match and match[1] == final.name[:32] and match[3] == kind:
                found.append(Path(entry.path))
    return found


def is_hidden(name: str) -> bool:
    """Whether ``hidden`` gave this name: what has it is not finished, or was replaced, whatever it holds."""
    return _made(name) is not None


def _made(name: str) -> re.Match[str] | None:
    match = _HIDDEN.fullmatch(name)
    return match if match and is_signed(match[1], match[2]) else None


@contextmanager
def locked_file(final: Path) -> Iterator[tuple[Path, int]]:
    """A new, empty, hidden file beside a path, and its descriptor, which is closed at the end and holds the lock.

    Raises:
        OSError: the directory is not there, or cannot be written to.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    with _locked(lambda path: os.open(path, flags, 0o666), final) as held:
        yield held


@contextmanager
def locked_directory(final: Path, named: Callable[[Path], Path] = hidden) -> Iterator[tuple[Path, int]]:
    """A new, empty, hidden directory beside a path, as ``locked_file``.

    Raises:
        OSError: the directory is not there, or cannot be written to.
    """

    def make(path: Path) -> int:
        path.mkdir()
        return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    with _locked(make, final, named) as held:
        yield held


@contextmanager
def _locked(
    make: Callable[[Path], int], final: Path, named: Callable[[Path], Path] = hidden
) -> Iterator[tuple[Path, int]]:
    for _ in range(_TRIES):
        path = named(final)
        try:
            handle = make(path)
        except FileNotFoundError:
            if not final.parent.is_dir():
                raise
            continue  # a directory, swept before it was opened
        try:
            hold(handle)
            if is_at(handle, path):  # else it was swept between its making and its lock
                yield path, handle
                return
        finally:
            os.close(handle)
    raise OSError(f"no hidden file could be kept beside {str(final)!r}")


def hold(handle: int) -> None:
    """Lock what is open until it is closed, after whoever holds it now. Some file systems know no locks: none, then."""
    if sys.platform != "win32":  # pragma: no branch - Windows has no fcntl
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)


def share(handle: int) -> None:
    """Keep what is open from being swept until it is closed, beside others who do; one's own lock becomes shared."""
    if sys.platform != "win32":  # pragma: no branch - Windows has no fcntl
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)


def lock(handle: int) -> bool:
    """Lock what is open until it is closed; False where somebody else holds it, or nothing can be locked."""
    if sys.platform == "win32":  # pragma: no cover - Windows has no fcntl
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_at(handle: int, path: Path) -> bool:
    """Whether a path still leads to what is open."""
    try:
        there, held = path.lstat(), os.fstat(handle)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, held)


def sweep(final: Path, kind: str = PARTIAL) -> None:
    """Remove what killed writers of this path left beside it. What cannot be removed stays."""
    if found := hidden_beside(final, kind):
        _settle(final.parent)
    for path in found:
        remove_if_nobodys(path, final)


def _settle(directory: Path) -> None:
    """Let the renames of a killed writer reach the disk before what they replaced is removed."""
    with suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_if_nobodys(path: Path, final: Path, still: Callable[[], bool] = lambda: True) -> None:
    """Remove a file or directory of polyak's that no process writes or reads.

    Args:
        final: the path for which it was made.
        still: asked once nobody else can come to hold it: whether nothing refers to it.
    """
    with suppress(OSError):
        handle = _opened(path)
        try:
            if _is_mine(handle, final) and lock(handle) and is_at(handle, path) and still():
                remove(path)
        finally:
            os.close(handle)


def _is_mine(handle: int, final: Path) -> bool:
    """Whether this user made what is open, or root for the owner of the path, to whom it is handed over."""
    if sys.platform == "win32":  # pragma: no cover - Windows has no such owners
        return True
    owner, user = os.fstat(handle).st_uid, os.geteuid()
    return owner == user or (user == 0 and owner == final.lstat().st_uid)


def _opened(path: Path) -> int:
    """Some file systems lock only what is open for writing; a directory never is. Links are not followed."""
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        return os.open(path, os.O_RDWR | flags)
    except (IsADirectoryError, PermissionError):
        return os.open(path, os.O_RDONLY | flags)


def remove(path: Path) -> None:
    """Remove a file, or a directory with all that is in it. Links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
