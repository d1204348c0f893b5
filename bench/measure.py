"""How long something takes and how much memory, in a process of its own; results as a table and as JSON.

Every bench is a module beside this one, run as ``python -m bench.NAME``. Wall time is the median of some repeats; peak
memory is what the process held beyond what it had before, mapped pages of files included.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
TOOLS = (
    *("polyak", "numpy", "h5py", "safetensors", "torch", "tensorflow", "tensorflow-cpu", "jax", "keras"),
    *("optax", "torch-ema", "ema-pytorch", "timm"),
)
PER_JOB = 900  # seconds


@dataclass(frozen=True)
class Cost:
    """What one job took: seconds (median, least), and bytes of memory at its peak."""

    seconds: float
    least: float
    peak: int


def cost(job: Callable[..., Any], *arguments: Any, repeats: int = 3) -> Cost | None:
    """The cost of a call in a fresh process; None where what it imports is not installed.

    The job is called once before, for its imports and the system's file cache.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            return pool.apply_async(_measured, (job, arguments, repeats)).get(PER_JOB)
        except ImportError:
            return None


def _measured(job: Callable[..., Any], arguments: Sequence[Any], repeats: int) -> Cost:
    job(*arguments)
    before = restart_peak()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        job(*arguments)
        times.append(time.perf_counter() - start)
    return Cost(statistics.median(times or [0]), min(times, default=0), peak_beyond(before))


def restart_peak() -> int:
    """Bytes of memory held now; the peak is counted from here on. 0 where the system does not say."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _status("VmHWM")
    return _status("VmRSS")


def peak_beyond(before: int) -> int:
    """Bytes that were held at most, beyond those, since ``restart_peak``."""
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(lines[name].split()[0]) * 1024


def cpu_of(*command: str) -> float | None:
    """CPU seconds that a command takes, its start included; None if it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, check=False, timeout=PER_JOB)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return None if done.returncode else after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need, the first to the left.

    Example:
        >>> print(table(["job", "s"], [["read", "1.0"], ["x", "10.0"]]))
        job      s
        read   1.0
        x     10.0
    """
    lines = [list(heads), *map(list, rows)]
    wide = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join(
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, wide, strict=True)))
        for line in lines
    )


def keep(name: str, results: Mapping[str, Any]) -> Path:
    """Write results beside the versions and the machine that they belong to."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    machine = {"system": platform.platform(), "cores": os.cpu_count(), "python": sys.version.split()[0]}
    plain = {k: asdict(v) if isinstance(v, Cost) else v for k, v in results.items()}
    path.write_text(json.dumps({"machine": machine, "versions": _versions(), "results": plain}, indent=1) + "\n")
    return path


def kept(name: str) -> dict[str, Any]:
    """The results that ``keep`` wrote under this name, or none."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text())["results"] if path.exists() else {}
    return found


def _versions() -> dict[str, str]:
    found = {}
    for tool in TOOLS:
        try:
            found[tool] = version(tool)
        except PackageNotFoundError:
            continue
    return found
