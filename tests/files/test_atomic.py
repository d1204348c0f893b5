"""A path holds the old contents or the new ones: after errors, with links and modes, and when the process is killed."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

import polyak
from polyak.errors import FileError
from polyak.files.atomic import refuse_unwritable, refuse_unwritable_directory, replacing
from polyak.files.safetensors import write
from polyak.snapshot import Snapshot


def put(path: Path, data: bytes) -> None:
    with replacing(path) as file:
        file.write(data)


def names(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir()]


def test_a_new_file_and_a_replaced_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    put(path, b"one")
    put(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["a"]


def test_the_old_file_stands_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
        file.seek(0)
        file.write(b"NEW")
    assert path.read_bytes() == b"NEW"


def fail(file: BinaryIO, error: type[BaseException]) -> None:
    file.write(b"half of it")
    raise error("in the block")


@pytest.mark.parametrize("error", [ValueError, MemoryError, KeyboardInterrupt, SystemExit, FileError])
@pytest.mark.parametrize("old", [b"old", None])
def test_an_exception_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException], old: bytes | None
) -> None:
    path = tmp_path / "a"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(error, match="in the block"), replacing(path) as file:
        fail(file, error)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if old is None else [old])


def test_a_failed_write_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"a': cannot be written: No space left on device"), replacing(tmp_path / "a"):
        raise OSError(28, os.strerror(28))


def test_the_mode_of_the_old_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(0o640)
    put(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_new_file_gets_the_mode_of_any_new_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        put(tmp_path / "ours", b"new")
        (tmp_path / "plain").write_bytes(b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("exists", [True, False])
def test_a_symbolic_link_is_written_through(tmp_path: Path, exists: bool) -> None:
    real, link = tmp_path / "elsewhere" / "real", tmp_path / "link"
    real.parent.mkdir()
    if exists:
        real.write_bytes(b"old")
    link.symlink_to(real)
    put(link, b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert names(real.parent) == ["real"]


@pytest.mark.parametrize("name", ["x" * 255, "ß" * 127, ".hidden", "a b\nc"])
def test_any_name_that_the_system_takes_will_do(tmp_path: Path, name: str) -> None:
    put(tmp_path / name, b"new")
    assert names(tmp_path) == [name]


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with replacing("a") as file:
        file.write(b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_pipe_is_refused_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(FileError, match="expected a regular file"):
        put(pipe, b"new")
    assert pipe.is_fifo()


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A directory in which this process may not write; root becomes nobody for the while."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a").write_bytes(b"old")
        folder.chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)


def test_a_read_only_directory_is_refused(read_only: Path) -> None:
    with pytest.raises(FileError, match=r"a': cannot be written: Permission denied"):
        put(read_only / "a", b"new")
    assert (read_only / "a").read_bytes() == b"old"
    assert names(read_only) == ["a"]


@pytest.mark.parametrize("refuse", [refuse_unwritable, refuse_unwritable_directory])
def test_what_cannot_be_written_is_told_before_anything_is(refuse: Callable[..., None], read_only: Path) -> None:
    with pytest.raises(FileError, match=r"new': cannot be written: Permission denied"):
        refuse(read_only / "new")
    assert names(read_only) == ["a"]


@pytest.mark.parametrize("refuse", [refuse_unwritable, refuse_unwritable_directory])
def test_a_disk_without_room_is_told_before_anything_is_written(refuse: Callable[..., None], tmp_path: Path) -> None:
    refuse(tmp_path / "new", 1000)
    with pytest.raises(FileError, match=r"new': cannot be written: .*1,152,921,504,606,846,976 bytes"):
        refuse(tmp_path / "new", 1 << 60)
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    with pytest.raises(FileError, match=r"expected .*, received a (file|directory)"):
        refuse(tmp_path / ("directory" if refuse is refuse_unwritable else "file"))
    assert sorted(names(tmp_path)) == ["directory", "file"]


# --- kill -9 ---------------------------------------------------------------------------------------------------------

WRITER = """
import itertools, sys
import numpy as np
from polyak.files.safetensors import write
from polyak.snapshot import Snapshot
for n in itertools.count(1):
    write(Snapshot.from_arrays({str(i): np.full(200_000, n, np.float32) for i in range(8)}), sys.argv[1])
    print(n, flush=True)
"""


def killed_while_writing(path: Path, seconds: float) -> float:
    """Kill a process that writes a file of 6 MB again and again. Returns the number that all of the file holds."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
        finished = [int(n) for n in (first + child.stdout.read()).split()]
    assert child.returncode == -signal.SIGKILL
    snap = polyak.open(path)
    values = {float(v) for array in snap.values() for v in np.unique(array)}
    (value,) = values
    assert finished[-1] <= value <= finished[-1] + 1
    return value


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write(Snapshot.from_arrays({"old": np.zeros(3, np.float32)}), path)
    values = [killed_while_writing(path, seconds) for seconds in (0.013, 0.04)]
    assert min(values) >= 1.0


@pytest.mark.kill
def test_a_writer_killed_many_times_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    chance, unfinished = random.Random(0), 0
    for _ in range(60):
        killed_while_writing(path, chance.uniform(0.0, 0.1))
        unfinished += len(names(tmp_path)) > 1  # the next writer removes it
    assert unfinished, "no kill fell into a write: the test shows nothing"
