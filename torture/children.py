"""Trials in processes of their own, so that one that crashes, hangs or eats memory ends alone and is reported.

A campaign starts a fresh interpreter, because a process that has threads must not be forked; that one forks a child for
every so many trials and watches it.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torture.campaign import Outcome

ROOT = Path(__file__).resolve().parents[1]
MEBI = 1 << 20
MOST_SECONDS = 1.0
MOST_GROWTH = 64 * MEBI
_PATIENCE = 20.0  # seconds until a child that does not answer is ended
_ROOM = (
    2048 * MEBI
)  # of address space beyond what a child has at its start: less than the machine, far more than allowed
_BATCH = 100
_TRIES = 3
_COUNTED, _COUNTING = 10_000_000, 0.25  # what the machine of the table counts to in so many seconds


@dataclass(frozen=True)
class Verdict:
    """What became of a trial.

    Attributes:
        said: what the trial returned, or how its process ended.
        ended: whether the process ended by it.
        seconds: of the processor; above the bound, those that the machine of the table would take.
        growth: bytes of memory at the peak, beyond those before it.
    """

    said: str
    ended: bool = False
    seconds: float = 0.0
    growth: int = 0

    @property
    def excess(self) -> str:
        """What was too much, in words, or nothing."""
        if self.ended:
            return self.said
        slow = f"{self.seconds:.1f} s" if self.seconds > MOST_SECONDS else ""
        large = f"{self.growth / MEBI:.0f} MiB" if self.growth > MOST_GROWTH else ""
        return " and ".join(part for part in (slow, large) if part)


def verdicts(
    count: int, trial: Callable[[int], str], warm: Callable[[], object], batch: int = _BATCH
) -> Iterator[Verdict]:
    """The verdicts of trials 0, 1, 2 ..., each forked child running some of them.

    Args:
        warm: called in each child first, for what is loaded or allocated once.
        batch: how many trials a child runs.
    """
    done = 0
    while done < count:
        for verdict in _watched(range(done, min(done + batch, count)), trial, warm):
            done += 1
            yield verdict


def apart(job: Callable[[], object]) -> None:
    """Do something in a forked child: what starts threads, such as TensorStore, must not run where others are forked.

    Raises:
        RuntimeError: it failed.
    """
    child = os.fork()
    if child == 0:
        try:
            job()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("what was to be prepared could not be made")


def _watched(batch: range, trial: Callable[[int], str], warm: Callable[[], object]) -> Iterator[Verdict]:
    answers, place = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(answers)
        _serve(batch, trial, warm, place)
    os.close(place)
    pending = b""
    told = 0
    with open(answers, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor has no path
        while told < len(batch):
            ready, _, _ = select.select([file], [], [], _PATIENCE)
            raw = file.read(1 << 16) if ready else b""
            if not raw:
                break
            *lines, pending = (pending + raw).split(b"\n")
            for line in lines:
                told += 1
                yield Verdict(**json.loads(line))
    how = _ended(child, hung=told < len(batch))
    if told < len(batch):
        yield Verdict(how, ended=True)


def _ended(child: int, *, hung: bool) -> str:
    """How a child ended; one that answers no more is ended."""
    deadline = time.monotonic() + 1
    while hung and time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return f"died by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"left with {status >> 8}"
        time.sleep(0.01)
    if hung:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return f"hung for {_PATIENCE:.0f} s"


def _serve(batch: range, trial: Callable[[int], str], warm: Callable[[], object], place: int) -> None:
    """What a child does; it never returns."""
    try:
        warm()
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + _ROOM,) * 2)
        for number in batch:
            os.write(place, json.dumps(asdict(_measured(number, trial))).encode() + b"\n")
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _measured(number: int, trial: Callable[[int], str]) -> Verdict:
    """A trial in the least time of up to three: what else a machine does can only make it slower."""
    tried = [_once(number, trial)]
    while tried[-1].seconds > MOST_SECONDS and len(tried) < _TRIES:
        tried.append(_once(number, trial))
    least = min(each.seconds for each in tried)
    return replace(tried[0], seconds=least if least <= MOST_SECONDS else least / _slowness())


def _slowness() -> float:
    """How many times longer this machine takes to count than the one of the table, at least 1."""
    start = time.process_time()
    for _ in range(_COUNTED):
        pass
    return max(1.0, (time.process_time() - start) / _COUNTING)


def _once(number: int, trial: Callable[[int], str]) -> Verdict:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start = _memory("VmRSS"), time.process_time()
    said = trial(number)
    return Verdict(said, False, time.process_time() - start, _memory("VmHWM") - before)


def _memory(field: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def in_fresh_process(function: str, count: int, **environment: str) -> Outcome:
    """The outcome of a campaign's function, named as ``module:function``, called in a new interpreter."""
    module, _, name = function.partition(":")
    program = (
        f"import json, sys, dataclasses; from {module} import {name}; "
        f"print(json.dumps(dataclasses.asdict({name}(int(sys.argv[1])))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(count)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return Outcome(1, (f"{function} ended with {done.returncode}: {done.stderr[-2000:]}",), "did not run")
    held = json.loads(done.stdout.splitlines()[-1])
    return Outcome(held["trials"], tuple(held["broken"]), held["figure"])
