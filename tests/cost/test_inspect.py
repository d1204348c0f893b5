"""Looking into a file costs what its header costs, however large the file is; and starting costs little."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.cost.sparse import GIGA, MAKERS, NAMES

MEGA = 1_000_000
# What the process has read by calls of the system, the CPU time and the memory that it took, on standard error.
MEASURED = """
import json, resource, sys
def read():
    lines = dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())
    return int(lines["rchar"])
from polyak.cli import main
import polyak.files, polyak.dialects, h5py, numpy, msgspec
before = read()
try:
    main(sys.argv[1:], standalone_mode=False)
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds, mapped = used.ru_utime + used.ru_stime, resource.getpagesize() * used.ru_majflt
    lines = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
    peak = int(lines["VmHWM"].split()[0]) * 1024
    said = {"read": read() - before, "seconds": seconds, "mapped": mapped, "peak": peak}
    print(json.dumps(said), file=sys.stderr)
"""


def measured(*arguments: str) -> tuple[str, dict[str, Any]]:
    """What the command says, and what it cost."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout, json.loads(done.stderr.splitlines()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says what was read")
@pytest.mark.parametrize("name", MAKERS)
def test_inspect_reads_the_header_of_ten_gigabytes_and_no_more(name: str, tmp_path: Path) -> None:
    path = MAKERS[name](tmp_path)
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) >= 10 * GIGA
    said, cost = measured("inspect", str(path), "--json")
    shapes = [w["weight"]["shape"] for w in json.loads(said)["weights"]]
    assert 4 * sum(size for (size,) in shapes) == 10 * GIGA
    assert len(shapes) == (1 if name == "torch_legacy" else len(NAMES))
    assert cost["read"] < 4 * MEGA
    assert cost["mapped"] < 4 * MEGA
    assert cost["peak"] < 300 * MEGA
    assert cost["seconds"] < 1.5  # with the start of Python; under load, too


def test_help_needs_no_framework_and_a_quarter_of_a_second_of_computing() -> None:
    said, cost = measured("--help")
    assert "inspect" in said
    assert cost["seconds"] < 0.75  # the imports that this test adds are most of it
