"""Hostile files under an audit hook: opening one runs no code, opens nothing beside it, and reaches no network.

Row 21 of docs/reliability.md. The files are those of tests/attacks, and the good ones beside them.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

from tests.attacks.make import ATTACKS, GOOD

from polyak import dialects, files
from polyak.errors import PolyakError
from torture.campaign import Campaign, Outcome
from torture.children import apart, in_fresh_process, verdicts
from torture.samples import OWN

# What a file could make a process do. ``compile`` of NumPy's literals is looked at more closely.
_FORBIDDEN = re.compile(
    r"exec|compile|import|marshal\.|pickle\.|ctypes\.|code\.|cpython\.|function\.__new__|socket\.|subprocess\.|urllib\.|"
    r"http\.|ftplib\.|smtplib\.|os\.(?!scandir|listdir|fwalk|walk)|shutil\.|pty\.|signal\.|tempfile\.mk|webbrowser\.|"
    r"setopencodehook|sys\.(?!_getframe|audit)"
)
FRAMEWORKS = ("tensorflow", "keras", "tf_keras", "torch", "jax", "flax", "orbax")


class Watch:
    """An audit hook, which the process keeps: it notes what is done while a file is open that may not be done."""

    def __init__(self) -> None:
        self.place: Path | None = None
        self.seen: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.place is None:
            return
        if event == "open":
            self._opened(arguments)
        elif _FORBIDDEN.match(event) and not _harmless(event, arguments):
            self.seen.append(f"{event} {arguments!r:.120}")

    def _opened(self, arguments: tuple[Any, ...]) -> None:
        path, mode, flags = (*arguments, None, None)[:3]
        writes = bool(flags and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)) or "w" in str(mode)
        if not isinstance(path, (str, bytes, os.PathLike)):
            return  # a descriptor, which was opened before
        real = Path(os.path.realpath(os.fsdecode(path)))
        inside = self.place is not None and real.is_relative_to(self.place)
        own = real.parent == Path("/proc/self") or real.is_relative_to(f"/proc/{os.getpid()}")  # the watching itself
        if writes or not (inside or own):
            self.seen.append(f"open {path!r:.120} {'to write' if writes else ''}")


def _harmless(event: str, arguments: tuple[Any, ...]) -> bool:
    """NumPy reads the header of an .npy array as a literal: a tree is made of its text, and no code."""
    if event == "compile":
        return _called_by("literal_eval", sys._getframe())
    if event == "import":
        return str(arguments[0]) in sys.modules or str(arguments[0]).startswith("polyak.")
    # numpy.ndarray of a memory map, and the directory's own links
    return event in ("os.putenv", "os.unsetenv")


def _called_by(name: str, frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == name and frame.f_code.co_filename.endswith("ast.py"):
            return True
        frame = frame.f_back
    return False


def _read(path: Path) -> None:
    try:
        held = dialects.interpret(files.read(path))
        for name in held:
            _ = held[name]
    except PolyakError:
        pass


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name)


def _prepare(directory: Path) -> None:
    for name, build in _all():
        place = directory / _slug(name)
        place.mkdir()
        (directory / f"{_slug(name)}.path").write_text(str(build(place)))


def _all() -> list[tuple[str, Any]]:
    good = [(f"good {name}", build) for name, build in GOOD.items()]
    good += [(f"good and own {name}", build) for name, build in OWN.items()]
    return [*good, *((attack.name, attack.build) for attack in ATTACKS)]


class _Trial:
    """Reads the prepared files, each under the watch."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.watch = Watch()
        self.paths = [(n, Path((directory / f"{_slug(n)}.path").read_text())) for n, _ in _all()]

    def warm(self) -> None:
        """All that is loaded once; what is loaded later, a file has caused."""
        for name, path in self.paths:
            if name.startswith("good "):
                _read(path)
        os.chdir(self.directory)
        sys.addaudithook(self.watch)

    def __call__(self, number: int) -> str:
        name, path = self.paths[number]
        self.watch.seen.clear()
        self.watch.place = self.directory / _slug(name)
        try:
            _read(path)
        finally:
            self.watch.place = None
        loaded = [f"import of {m}" for m in FRAMEWORKS if m in sys.modules]
        ran = ["the command ran"] * Path("canary").exists()
        return "; ".join((*self.watch.seen, *loaded, *ran))


def hostile(count: int) -> Outcome:
    """The first so many files; the good ones come first, which must do as little."""
    with tempfile.TemporaryDirectory() as held:
        directory = Path(os.path.realpath(held))
        apart(lambda: _prepare(directory))
        trial = _Trial(directory)
        names = [name for name, _ in trial.paths][:count]
        seen = list(verdicts(len(names), trial, trial.warm))
    broken = [f"{n}: {v.excess if v.ended else v.said}" for n, v in zip(names, seen, strict=True) if v.said or v.ended]
    figure = f"{len(broken)} of {len(seen)} files ran code, opened another file, reached out or loaded a framework"
    return Outcome(len(seen), tuple(broken), figure)


# What the watch must see; each would be seen if a file made polyak do it.
ACTIONS = (
    "exec('1')", "eval('1')", "compile('1', 'x', 'eval')", "open('/etc/hostname')", "open('/nowhere/x', 'w')",
    "import this",
    "__import__('os').system('true')", "__import__('subprocess').run(['true'])",
    "__import__('os').remove('/nowhere/x')", "__import__('socket').socket()", "__import__('ctypes').CDLL(None)",
    "__import__('pickle').loads(b'cos\\nsystem\\n.')",
    "__import__('urllib.request').request.urlopen('http://127.0.0.1:9')", "__import__('shutil').rmtree('/nowhere/x')",
)  # fmt: skip


def noticed(count: int) -> Outcome:
    """Whether the watch notices what no file may cause."""

    def trial(number: int) -> str:
        watch.seen.clear()
        watch.place = Path("/nowhere")
        try:
            exec(codes[number], {})  # noqa: S102 - a test of the watch
        except OSError:
            pass
        finally:
            watch.place = None
        return "; ".join(watch.seen)

    watch = Watch()
    codes = [compile(action, "action", "exec") for action in ACTIONS]
    seen = list(verdicts(len(ACTIONS), trial, lambda: sys.addaudithook(watch)))
    # The exec that runs an action is seen, too.
    missed = [a for a, v in zip(ACTIONS, seen, strict=True) if v.said.count(";") < 1]
    return Outcome(len(seen), tuple(missed), f"{len(missed)} of {len(seen)} actions not noticed")


def _in_fresh(count: int) -> Outcome:
    return in_fresh_process("torture.hostile:hostile", count)


CAMPAIGNS = (
    Campaign(
        "21",
        "opening a hostile file runs no code, opens nothing beside it, reaches no network and loads no framework",
        _in_fresh,
        short=1000,
        full=1000,
    ),
)
