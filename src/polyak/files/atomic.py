"""Writing a file or a directory so that its path holds the old contents or the new ones, whatever happens.

Everything goes to a hidden name in the same directory, reaches the disk, is read back, and takes its own name in one
rename. Every writer of polyak goes through here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from polyak.errors import FileError
from polyak.files.failures import failures_named
from polyak.files.flushing import flushed_meanwhile
from polyak.files.partial import (
    SET_ASIDE,
    hidden,
    hidden_beside,
    is_at,
    locked_directory,
    locked_file,
    remove,
    remove_if_nobodys,
    share,
    sweep,
)
from polyak.files.place import close_to_others, examined, examined_directory, hand_over, refuse_closed, refuse_no_room

PathLike = str | os.PathLike[str]
Check = Callable[[Path], None]
_EXCHANGE = 2  # of renameat2, in linux/fs.h
_HERE = -100  # relative paths are those of the process
_UNKNOWN = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # an older kernel, or a file system without exchanges


@contextmanager
def replacing(path: PathLike, needed: int = 0, check: Check | None = None) -> Iterator[BinaryIO]:
    """A file that becomes ``path`` when the block ends without an exception.

    The bytes go to a hidden file in the same directory, reach the disk, and take the name in one
    rename. A symbolic link is written through; mode, owner, group and extended attributes of an existing file are kept.
    Hidden files that killed writers of this path left are removed.

    Args:
        needed: bytes that will be written at least; refused at once where there is no room for them.
        check: called with the hidden file before it takes the name; what it raises leaves the old file.

    Raises:
        FileError: the path is a directory, a device, protected or mounted, its directory is missing, not readable or
            not writable, or there is no room. Also after the file has its name, where that cannot be synchronised.
    """
    final = Path(os.path.realpath(path))
    with failures_named(final, "written", needed):
        kept = examined(final)
        sweep(final)
        refuse_no_room(final, needed)
        with lasting(final) as synchronise, locked_file(final) as (fresh, handle), _gone_on_failure(fresh, handle):
            hand_over(kept, handle, final)
            with os.fdopen(handle, "w+b", closefd=False) as file:
                with flushed_meanwhile(handle, needed):
                    yield file
                    file.flush()
                synced(lambda: os.fsync(handle), fresh, check)
            _refuse_link(final)
            fresh.replace(final)
            synchronise()


@contextmanager
def replacing_directory(path: PathLike, needed: int = 0, check: Check | None = None) -> Iterator[Path]:
    """A directory that becomes ``path`` when the block ends without an exception; one that is there goes then, whole.

    Linux exchanges the two in one step. Where it cannot, the old one is set aside under a hidden name for an instant,
    in which ``standing`` finds it.

    Args:
        needed, check: as for ``replacing``.

    Raises:
        FileError: the path is a file, protected or mounted, its directory is missing, not readable or not writable, or
            there is no room. Also after the directory has its name, where that cannot be synchronised.
    """
    final = Path(os.path.realpath(path))
    with failures_named(final, "written", needed):
        kept = examined_directory(final)
        sweep(final)
        refuse_no_room(final, needed)
        with lasting(final) as synchronise, locked_directory(final) as (fresh, handle), _gone_on_failure(fresh, handle):
            if kept is not None:
                close_to_others(fresh)  # as the old one may be; it gets its rights at the end
            yield fresh
            share(handle)  # readers may hold it, too, from its first moment under its name on
            hand_over(kept, handle, final)
            synced(lambda: sync_tree(fresh), fresh, check)
            _refuse_link(final)
            _commit_directory(fresh, final, synchronise)
        sweep(final, SET_ASIDE)


def refuse_unwritable(path: PathLike, needed: int = 0) -> None:
    """Raise what ``replacing`` would raise before its first byte; nothing is written."""
    _refuse_place(Path(os.path.realpath(path)), needed, examined)


def refuse_unwritable_directory(path: PathLike, needed: int = 0) -> None:
    """Raise what ``replacing_directory`` would raise before its first byte; nothing is written."""
    _refuse_place(Path(os.path.realpath(path)), needed, examined_directory)


def _refuse_place(final: Path, needed: int, examine: Callable[[Path], object]) -> None:
    with failures_named(final, "written", needed):
        examine(final)
        refuse_closed(final.parent)
        refuse_no_room(final, needed)
        with lasting(final):
            pass


@contextmanager
def lasting(final: Path) -> Iterator[Callable[[], None]]:
    """What makes the new name of a path survive a power cut, for the moment when the path has it.

    The directory is opened at the beginning, so that one which cannot be is refused while the old file stands.

    Raises:
        FileError: this process may not read the directory, and what it cannot open it cannot synchronise.
    """
    if sys.platform == "win32":  # pragma: no cover - Windows opens no directories
        yield lambda: None
        return
    try:
        handle = os.open(final.parent, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError as error:
        raise FileError(
            f"file {str(final)!r}: cannot be written: {error.strerror}: this process may not read its directory, so no "
            "new name in it would be safe from a power cut",
            hint=f"make {str(final.parent)!r} readable, or write elsewhere",
        ) from error
    try:
        yield partial(_settle, handle, final)
    finally:
        os.close(handle)


def _settle(handle: int, final: Path) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        raise FileError(
            f"file {str(final)!r}: the new one has its name, but a power cut may undo that: its directory cannot be "
            f"synchronised: {error.strerror or error}",
            hint="look at the disk, and save again",
        ) from error


@contextmanager
def _gone_on_failure(fresh: Path, handle: int) -> Iterator[None]:
    """A failure after the last rename leaves what has the hidden name then: it is the old one."""
    try:
        yield
    except BaseException:
        if is_at(handle, fresh):
            remove(fresh)
        raise


def _refuse_link(final: Path) -> None:
    """The links of the path were followed when the writing began."""
    if final.is_symlink():
        raise FileError(
            f"file {str(final)!r}: expected the file that was there before, received a symbolic link made meanwhile",
            hint="write again: a link is written through",
        )


def synced(synchronise: Callable[[], None], fresh: Path, check: Check | None) -> None:
    """The disk works while the bytes are read back; both are done, or one of their exceptions is raised."""
    if check is None:
        synchronise()
        return
    refused: list[BaseException] = []

    def beside() -> None:
        try:
            synchronise()
        except BaseException as error:  # raised in the other thread, below
            refused.append(error)

    thread = threading.Thread(target=beside, name="polyak-sync")
    try:
        thread.start()
    except RuntimeError:  # no thread can be started: the program ends
        synchronise()
        check(fresh)
        return
    try:
        check(fresh)
    finally:
        thread.join()
    if refused:
        raise refused[0]


def _commit_directory(fresh: Path, final: Path, synchronise: Callable[[], None]) -> None:
    if not final.exists() or not any(final.iterdir()):
        fresh.rename(final)
        synchronise()
    elif exchange(fresh, final):
        synchronise()
        remove_if_nobodys(fresh, final)  # while somebody reads it, it stays; a later save sweeps it
    else:
        _replace_in_two(fresh, final)
        synchronise()


def _replace_in_two(fresh: Path, final: Path) -> None:
    aside = hidden(final, SET_ASIDE)
    final.rename(aside)
    try:
        fresh.rename(final)
    except BaseException:
        aside.rename(final)
        raise


def exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; False where the system cannot.

    Raises:
        OSError: it can, and refused.
    """
    if sys.platform != "linux":  # pragma: no cover - macOS and Windows
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # an older C library
        return False
    if renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNKNOWN:
        return False
    raise OSError(code, os.strerror(code))


def standing(path: Path) -> Path:
    """The path, or what stands for it where a process was killed between the two renames that replace a directory."""
    if os.path.lexists(path):
        return path
    aside = hidden_beside(Path(os.path.realpath(path)), SET_ASIDE)
    return max(aside, key=lambda p: p.stat().st_mtime_ns, default=path)


def sync_tree(top: Path) -> None:
    """Make all files and names below a directory survive a power cut."""
    for folder, _, names in os.walk(top, topdown=False):
        for name in names:
            sync(Path(folder, name))
        sync(Path(folder))


def sync(path: Path) -> None:
    """Make the bytes of a file, or the names in a directory, survive a power cut."""
    if sys.platform == "win32" and path.is_dir():  # pragma: no cover - Windows opens no directories
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
