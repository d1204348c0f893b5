"""Row 4 on a file system that is full: a small tmpfs of the trial's own, with little room or few names left.

The kernel says no here, at whichever step it comes to it, also where a writer has looked at the free space before.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torture.campaign import Campaign, Outcome
from torture.faults import judged, outcome_of, saving
from torture.kills import _as_list
from torture.tracing import in_child
from torture.ways import OTHERS, OTHERS_TENSORFLOW, POLYAK, TENSORFLOW, Way, found, start

_SIZE = 1 << 18
_MOST = 1.5  # times the bytes of all arrays: with so much left every save succeeds
_NAMES = 40
_NEW_USER, _NEW_MOUNTS, _REMOUNT = 0x10000000, 0x20000, 32
_ROOMY = "size=64m,nr_inodes=4096"
_libc = ctypes.CDLL(None, use_errno=True)


def full(way: Way, top: Path, trials: int) -> tuple[int, list[str]]:
    """Saves with more and more room left, then with more and more names left."""
    lost: list[str] = []
    spaces = [int(_SIZE * _MOST * n / trials) for n in range(trials)]
    names = [_NAMES * n // trials for n in range(trials)]
    left = [("bytes", n) for n in spaces] + [("names", n) for n in dict.fromkeys(names)]
    for what, count in left:
        said, held = in_child(partial(_saved, way, top, what, count))
        if fault := judged(said, held, errno.ENOSPC, way):
            lost.append(f"{count} {what} left: {fault}")
    return len(left), lost


def _saved(way: Way, top: Path, what: str, count: int) -> list[object]:
    """How a save ended on a file system with so much left, and what is found there."""
    _own_mounts()
    _mount(top, _ROOMY)
    place = top / "place"
    start(way, place, _SIZE)
    used = os.statvfs(top)
    if what == "bytes":
        _mount(top, f"size={(used.f_blocks - used.f_bfree) * used.f_bsize + count}", _REMOUNT)
    else:
        _mount(top, f"nr_inodes={used.f_files - used.f_ffree + count}", _REMOUNT)
    return [saving(way, place, _SIZE)(), _as_list(found(way, place))]


def _own_mounts() -> None:
    """What this process mounts nobody else sees, and it ends with it. Needs no privilege where the system allows it."""
    user, group = os.getuid(), os.getgid()
    _called(_libc.unshare, _NEW_USER | _NEW_MOUNTS)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def _mount(place: Path, options: str, flags: int = 0) -> None:
    _called(_libc.mount, b"tmpfs", os.fsencode(place), b"tmpfs", flags, options.encode())


def _called(function: Callable[..., int], *arguments: object) -> None:
    if function(*arguments):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _is_allowed() -> bool:
    try:
        return in_child(lambda: _own_mounts() or True) is True
    except (RuntimeError, AttributeError, OSError):
        return False


def _full(trials: int) -> Outcome:
    return outcome_of(POLYAK, OTHERS if trials > 5 else OTHERS[1:2], full, trials)


def _full_tensorflow(trials: int) -> Outcome:
    return outcome_of(TENSORFLOW[:2], OTHERS_TENSORFLOW, full, trials)


CAMPAIGNS = (
    (
        Campaign("4f", "A file system that is full, of bytes or of names, keeps the old file whole", _full, 2, 20),
        Campaign("4g", "So it is with what TensorFlow writes for polyak", _full_tensorflow, 2, 10),
    )
    if _is_allowed()
    else ()
)
