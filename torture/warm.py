"""Runs of pytest that begin at once: each is forked from a process that has loaded all that tests need but polyak.

``python -m torture.warm DIRECTORY`` is that process: it reads a request on each line, and answers it on one. polyak is
taken from the directory, also by the processes that tests start.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import re
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any, Self

import pytest

ROOT = Path(__file__).resolve().parents[1]
_LOADED = (
    "numpy", "ml_dtypes", "safetensors.numpy", "h5py", "click", "rich", "msgspec", "xxhash", "google_crc32c", "pytest",
    "xdist.plugin", "hypothesis.extra.numpy", "tensorstore", "tensorflow", "keras",
)  # fmt: skip
_MEMORY = 4 << 30  # bytes of addresses that a run may take beyond what the process has: a missing bound shows
_LONG = re.compile("::test_(any_|every_|deep_|snappy_|no_flipped)|load(s_no|ed)|restores|more_members_than_the_old")
Lines = Mapping[str, Collection[int]]


@dataclass(frozen=True)
class Ran:
    """How a run ended.

    Attributes:
        passed: all its tests did.
        seconds: what each test took, by its id; the last one is where it ended.
        reached: which of the lines that were asked for each test executed, by its id: by file.
    """

    passed: bool
    seconds: Mapping[str, float]
    reached: Mapping[str, Lines]

    @property
    def failed(self) -> str:
        """The test that failed, or why none did."""
        return "" if self.passed else (list(self.seconds) or ["no test began, or none ended in time"])[-1]


class Warm:
    """The process, for as long as the context lasts.

    Args:
        directory: holds the package that is tested, and gets what the tests write.
        backend: what Keras runs on.
    """

    def __init__(self, directory: Path, backend: str = "tensorflow") -> None:
        self._directory = directory
        self._backend = backend
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        environment = {
            **os.environ,
            "PYTHONPATH": f"{self._directory}{os.pathsep}{ROOT}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "",
            "KERAS_BACKEND": self._backend,
            "JAX_COMPILATION_CACHE_DIR": str(self._directory / "programs"),
        }
        command = [sys.executable, "-m", "torture.warm", str(self._directory)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is not None:
            self._process.communicate()

    def run(
        self, tests: Sequence[str], only: Sequence[str] = (), traced: Lines | None = None, patience: float = 900
    ) -> Ran:
        """Run tests until the first one fails; a run that outlives the patience, in seconds, has failed.

        Args:
            tests: files and ids.
            only: ids among them, in the order in which they run; all, if none is given.
            traced: lines by file: of these it is told which tests execute them. Tests of many trials are left out then.
        """
        assert self._process is not None, "within its context alone"
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        lines = {name: list(asked) for name, asked in (traced or {}).items()}
        asked = {"tests": list(tests), "only": list(only), "traced": lines, "patience": patience}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return Ran(**json.loads(self._process.stdout.readline()))


# --- in the process ---------------------------------------------------------------------------------------------------


class _Watch:
    """A plugin of pytest: chooses and orders tests, and notes what they take and reach."""

    def __init__(self, only: Sequence[str], traced: Lines) -> None:
        self._order = {name: place for place, name in enumerate(only)}
        self._traced = traced
        self.seconds: dict[str, float] = {}
        self.reached: dict[str, dict[str, list[int]]] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        if self._traced:  # what tests of many trials notice, a test of one case notices, too
            items[:] = [i for i in items if not _LONG.search(i.nodeid)]
        if self._order:
            items[:] = sorted((i for i in items if i.nodeid in self._order), key=lambda i: self._order[i.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> Iterator[None]:
        begun, reached = time.monotonic(), {name: set[int]() for name in self._traced}
        trace = _tracer(self._traced, reached) if self._traced else None
        threading.settrace(trace)  # type: ignore[arg-type]
        sys.settrace(trace)
        result = yield
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        self.seconds[item.nodeid] = time.monotonic() - begun
        self.reached[item.nodeid] = {
            name: sorted(seen.intersection(self._traced[name])) for name, seen in reached.items() if seen
        }
        return result


def _tracer(wanted: Lines, reached: dict[str, set[int]]) -> Callable[[FrameType, str, Any], Any]:
    """A function for ``sys.settrace``; code in which no line is wanted runs untraced."""
    known: dict[CodeType, bool] = {}

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        reached[frame.f_code.co_filename].add(frame.f_lineno)
        return line

    def call(frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if code.co_filename not in wanted:
            return None
        if code not in known:
            known[code] = any(number in wanted[code.co_filename] for _, _, number in code.co_lines())
        return line if known[code] else None

    return call


def _run(asked: dict[str, Any], directory: Path, answer: int) -> None:
    """The life of a forked child."""
    os.setsid()
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silent, stream)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + _MEMORY,) * 2)
    watch = _Watch(asked["only"], asked["traced"])
    options = ["-q", "-x", "-p", "no:cacheprovider", "--assert=plain", f"--basetemp={directory / 'made'}"]
    code = pytest.main([*options, *asked["tests"]], plugins=[watch])
    told = {"passed": code == pytest.ExitCode.OK, "seconds": watch.seconds, "reached": watch.reached}
    with os.fdopen(answer, "w") as stream:
        stream.write(json.dumps(told) + "\n")


def _answer(asked: dict[str, Any], directory: Path) -> str:
    """Run in a child; one that is late, or ends without an answer, has failed, and all that it started ends with it."""
    told, tells = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(told)
        try:
            _run(asked, directory, tells)
        finally:
            os._exit(1)
    os.close(tells)
    said = _read(told, asked["patience"])
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(child, signal.SIGKILL)  # before it led a group
    os.waitpid(child, 0)
    return said or json.dumps({"passed": False, "seconds": {}, "reached": {}})


def _read(pipe: int, patience: float) -> str:
    """A line; nothing if it takes too long, or the other end is closed before."""
    end, said = time.monotonic() + patience, b""
    with selectors.DefaultSelector() as ready, os.fdopen(pipe, "rb", buffering=0) as stream:
        ready.register(stream, selectors.EVENT_READ)
        while ready.select(max(0.0, end - time.monotonic())) and (more := stream.read(1 << 16)):
            said += more
            if said.endswith(b"\n"):
                return said.decode().strip()
    return ""


def main(directory: Path) -> None:
    for name in _LOADED:
        importlib.import_module(name)
    gc.freeze()  # pytest collects garbage several times a run, which takes a second with a framework loaded
    for line in sys.stdin:
        print(_answer(json.loads(line), directory), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
