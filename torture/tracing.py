"""Watching the system calls of a child, as a debugger does: ptrace, on Linux on x86-64.

A trial is a function that runs in a forked child. At each of its system calls that changes a file below a directory, in
whichever thread, the watcher may record it, end the process before it, let it fail, or let it write fewer bytes.
Sources: ptrace(2), syscalls(2).
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

AVAILABLE = sys.platform == "linux" and platform.machine() == "x86_64"
_SEIZE, _INTERRUPT, _SYSCALL, _POKEUSER, _INFO = 0x4206, 0x4207, 24, 6, 0x420E
_OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x100000  # marked system calls; forks, threads followed; killed with the watcher
_WALL = 0x40000000
_NUMBER, _RESULT, _COUNT = 8 * 15, 8 * 10, 8 * 12  # orig_rax, rax, rdx in struct user
_ENTRY, _EXIT = 1, 2
_PATIENCE = 30  # seconds
_CREATES = os.O_CREAT | os.O_TRUNC
_CALLS = {
    1: "write", 18: "pwrite64", 20: "writev", 296: "pwritev", 328: "pwritev2", 2: "open", 257: "openat", 85: "creat",
    82: "rename", 264: "renameat", 316: "renameat2", 87: "unlink", 263: "unlinkat", 84: "rmdir", 83: "mkdir",
    258: "mkdirat", 86: "link", 265: "linkat", 88: "symlink", 266: "symlinkat", 76: "truncate", 77: "ftruncate",
    285: "fallocate", 74: "fsync", 75: "fdatasync", 277: "sync_file_range", 40: "sendfile", 326: "copy_file_range",
    90: "chmod", 91: "fchmod", 93: "fchown", 188: "setxattr", 190: "fsetxattr",
}  # fmt: skip
# Which argument is the descriptor, or which ones are (directory, path); no directory is -1.
_HANDLES = {
    **dict.fromkeys(("write", "pwrite64", "writev", "pwritev", "pwritev2", "ftruncate", "fallocate", "fsync"), 0),
    **dict.fromkeys(("fdatasync", "sync_file_range", "sendfile", "fchmod", "fchown", "fsetxattr"), 0),
    "copy_file_range": 2,
}
_PATHS = {
    "open": ((-1, 0),), "openat": ((0, 1),), "creat": ((-1, 0),), "rename": ((-1, 0), (-1, 1)),
    "renameat": ((0, 1), (2, 3)), "renameat2": ((0, 1), (2, 3)), "unlink": ((-1, 0),), "unlinkat": ((0, 1),),
    "rmdir": ((-1, 0),), "mkdir": ((-1, 0),), "mkdirat": ((0, 1),), "link": ((-1, 0), (-1, 1)),
    "linkat": ((0, 1), (2, 3)), "symlink": ((-1, 1),), "symlinkat": ((1, 2),), "truncate": ((-1, 0),),
    "chmod": ((-1, 0),), "setxattr": ((-1, 0),),
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A system call that changes files, as it begins.

    Attributes:
        name: such as "renameat2".
        arguments: the six numbers.
        paths: what it names, absolute; of a descriptor what that is open on.
        process: whose memory and descriptors the numbers mean.
    """

    name: str
    arguments: tuple[int, ...]
    paths: tuple[str, ...]
    process: int

    def memory(self, address: int, size: int) -> bytes:
        with Path(f"/proc/{self.process}/mem").open("rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(size)


@dataclass(frozen=True)
class Verdict:
    """What to do with a call: nothing by default.

    Attributes:
        kill: end the process before it.
        error: its errno instead of doing it; 0 for none.
        short: write so many bytes at most.
    """

    kill: bool = False
    error: int = 0
    short: int = 0


PASS = Verdict()
Watcher = Callable[[Call], Verdict]


@dataclass(frozen=True)
class Ended:
    """How a child ended: what it said last, as JSON, and the signal that ended it, if one did."""

    said: object
    signal: int


def watched(trial: Callable[[], object], below: Path, watcher: Watcher) -> Ended:
    """Run a trial in a child whose calls below a directory the watcher sees."""
    answer, told = os.pipe()
    ready, set_off = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(answer)
        os.close(set_off)
        live(trial, ready, told)
    os.close(told)
    os.close(ready)
    try:
        _seize(child)
        os.write(set_off, b"!")
        ended = _follow(child, f"{os.path.realpath(below)}", watcher)
        with os.fdopen(answer, "rb", closefd=False) as said:
            text = said.read().splitlines()
        return Ended(json.loads(text[-1]) if text else None, ended)
    finally:
        os.close(answer)
        os.close(set_off)


def in_child(trial: Callable[[], object]) -> object:
    """The answer of a trial that runs in a forked child; an exception is RuntimeError with its text."""
    answer, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(answer)
        live(trial, None, told)
    os.close(told)
    with os.fdopen(answer, "rb") as said:
        text = said.read().splitlines()
    _, status = os.waitpid(child, 0)
    if status or not text:
        raise RuntimeError(f"a trial ended with {status}: {text[-1:]!r}")
    return json.loads(text[-1])


def live(trial: Callable[[], object], ready: int | None, told: int) -> None:
    """The life of a child: never returns."""
    code = 1
    try:
        if ready is not None:
            os.read(ready, 1)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_PATIENCE)  # a library may wait for ever after a failed call
        os.write(told, json.dumps(trial()).encode() + b"\n")
        code = 0
    except BaseException:
        os.write(told, json.dumps(traceback.format_exc()).encode() + b"\n")
    finally:
        os._exit(code)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def _ptrace(request: int, process: int, address: int = 0, data: int = 0) -> int:
    done = _libc.ptrace(request, process, address, data)
    if done == -1 and (code := ctypes.get_errno()):
        raise OSError(code, f"ptrace {request:#x}: {os.strerror(code)}")
    return int(done)


def _seize(child: int) -> None:
    ctypes.set_errno(0)
    _ptrace(_SEIZE, child, 0, _OPTIONS)
    _ptrace(_INTERRUPT, child)


def _follow(child: int, below: str, watcher: Watcher) -> int:
    """Let the child and its threads go from call to call until it ends; the signal that ended it, or 0."""
    failing: dict[int, int] = {}
    while True:
        thread, status = os.waitpid(-1, _WALL)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            if thread == child:
                return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            continue
        stopped, event = os.WSTOPSIG(status), status >> 16
        deliver = 0
        try:
            if stopped == signal.SIGTRAP | 0x80:
                if _at_call(thread, child, below, watcher, failing):
                    os.kill(child, signal.SIGKILL)
                    continue
            elif not event:
                deliver = stopped
            _ptrace(_SYSCALL, thread, 0, deliver)
        except ProcessLookupError:  # killed meanwhile
            continue


def _at_call(thread: int, child: int, below: str, watcher: Watcher, failing: dict[int, int]) -> bool:
    """One stop at the begin or end of a call; whether the process must be ended."""
    held = ctypes.create_string_buffer(88)
    _ptrace(_INFO, thread, len(held), ctypes.addressof(held))
    kind = held.raw[0]
    if kind == _EXIT and thread in failing:
        _ptrace(_POKEUSER, thread, _RESULT, (-failing.pop(thread)) & (2**64 - 1))
    if kind != _ENTRY:
        return False
    number, *arguments = struct.unpack_from("<7Q", held.raw, 24)
    call = _seen(number, tuple(arguments), thread, below)
    if call is None:
        return False
    verdict = watcher(call)
    if verdict.error:
        failing[thread] = verdict.error
        _ptrace(_POKEUSER, thread, _NUMBER, 2**64 - 1)
    elif verdict.short:
        _ptrace(_POKEUSER, thread, _COUNT, min(verdict.short, call.arguments[2]))
    return verdict.kill


def _seen(number: int, arguments: tuple[int, ...], thread: int, below: str) -> Call | None:
    """The call, if it changes something below the directory."""
    name = _CALLS.get(number)
    if name is None or (name in ("open", "openat") and not arguments[2 if name == "openat" else 1] & _CREATES):
        return None
    if name in _HANDLES:
        paths = (_of_handle(thread, _signed(arguments[_HANDLES[name]])),)
    else:
        paths = tuple(_of_path(thread, arguments, d, p) for d, p in _PATHS[name])
    return Call(name, arguments, paths, thread) if any(_below(path, below) for path in paths) else None


def _below(path: str, below: str) -> bool:
    return path == below or path.startswith(f"{below}/")


def _signed(number: int) -> int:
    return ctypes.c_int(number & 0xFFFFFFFF).value


def _of_handle(thread: int, handle: int) -> str:
    try:
        return str(Path(f"/proc/{thread}/fd/{handle}").readlink()).removesuffix(" (deleted)")
    except OSError:
        return ""


def _of_path(thread: int, arguments: tuple[int, ...], directory: int, path: int) -> str:
    text = os.fsdecode(_text(thread, arguments[path]))
    handle = _signed(arguments[directory]) if directory >= 0 else -100
    top = str(Path(f"/proc/{thread}/cwd").readlink()) if handle == -100 else _of_handle(thread, handle)
    joined = os.path.join(top, text)  # noqa: PTH118 - a text from another process, not always a path
    return os.path.join(os.path.realpath(os.path.dirname(joined)), os.path.basename(joined))  # noqa: PTH118, PTH119, PTH120


def _text(thread: int, address: int) -> bytes:
    with Path(f"/proc/{thread}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        held = memory.read(min(4096, 4096 - address % 4096))
        if b"\0" not in held:
            held += memory.read(4096)
    return held.split(b"\0", 1)[0]
