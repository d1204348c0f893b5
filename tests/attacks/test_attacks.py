"""Files from strangers: each is refused with a clear error or read inertly, within bounds; nothing runs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.attacks.attack import CANARY, Attack
from tests.attacks.make import ATTACKS

import polyak
from polyak import errors, files
from polyak.errors import PolyakError

SECONDS = 20
MEBI = 1 << 20
MOST_MEMORY = 64 * MEBI
MOST_OF_A_BOMB = 1024 * MEBI

# Reads everything with so much address space beyond what Python takes by itself, and says what came of it.
BOUNDED = f"""
import json, resource, sys
import numpy, h5py, polyak, polyak.files
from pathlib import Path
from tests.attacks.test_attacks import read_everything
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + {MOST_OF_A_BOMB},) * 2)
try:
    read_everything(Path(sys.argv[1]))
except polyak.errors.PolyakError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


def read_everything(path: Path) -> None:
    """As bytes, and with what they mean."""
    for tensor in files.read(path).tensors.values():
        tensor.read()
    snap = polyak.open(path)
    for name in snap:
        _ = snap[name]


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """An endless loop ends, as a failure."""

    def ring(number: int, frame: object) -> None:
        pytest.fail(f"still busy after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(path: Path) -> PolyakError | None:
    """The refusal, within the limits of time and memory; None if everything could be read."""
    tracemalloc.start()
    try:
        with limited(SECONDS):
            read_everything(path)
    except PolyakError as error:
        return error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST_MEMORY, f"{peak / MEBI:.0f} MiB"
    return None


def outcome_of_a_bomb(path: Path) -> PolyakError | None:
    """The same in a process of its own, which the system stops at its limit of memory."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(path)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=3 * SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    if not done.stdout:
        return None
    name, message = json.loads(done.stdout)
    made: PolyakError = getattr(errors, name)(message)
    return made


def tree(directory: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of all that is there."""
    found = (p for p in directory.rglob("*"))
    return sorted((str(p), p.lstat().st_size, p.lstat().st_mtime_ns) for p in found)


def test_each_attack_has_a_name_of_its_own() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name.replace(" ", "-"))
def test_an_attack_is_survived(attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "folder" / "files"
    directory.mkdir(parents=True)
    path = attack.build(directory)
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    error = outcome_of_a_bomb(path) if attack.bomb else outcome(path)
    assert tree(tmp_path) == before
    assert not (tmp_path / CANARY).exists()
    if attack.said is None:
        assert error is None, error
        return
    assert type(error) is attack.error, error
    assert re.search(attack.said, str(error))
    assert str(directory) in str(error)
    assert len(str(error)) < 2000
