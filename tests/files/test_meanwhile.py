"""Checksums beside the writing: the zip is zipfile's, byte for byte, and what fails in either thread is raised."""

from __future__ import annotations

import io
import threading
import zipfile

import numpy as np
import pytest

from polyak.files.meanwhile import Members, meanwhile, written
from polyak.manifest import digest

ARRAYS = {
    "small": np.arange(5, dtype=np.float32),
    "large": np.random.default_rng(0).standard_normal((3, 100_000)),
    "empty": np.zeros((0, 3)),
    "scalar": np.array(7),
}


@pytest.mark.parametrize("zip64", [False, True])
def test_the_members_are_those_of_zipfile(zip64: bool) -> None:
    ours, theirs = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(ours, "w") as made, zipfile.ZipFile(theirs, "w") as expected:
        members = Members(made, ours)
        for name, array in ARRAYS.items():
            assert members.append(zipfile.ZipInfo(name), b"head", array, zip64) == digest(array)
            info = zipfile.ZipInfo(name)
            info.file_size = 4 + array.nbytes
            with expected.open(info, "w", force_zip64=zip64) as member:
                member.write(b"head" + array.tobytes())
    assert ours.getvalue() == theirs.getvalue()
    with zipfile.ZipFile(ours) as read:
        assert read.testzip() is None
        assert {n: read.read(n) for n in read.namelist()} == {n: b"head" + a.tobytes() for n, a in ARRAYS.items()}


def test_zipfile_and_members_take_turns() -> None:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        members = Members(archive, held)
        archive.writestr("first", b"1")
        members.append(zipfile.ZipInfo("second"), b"", ARRAYS["small"], zip64=False)
        archive.writestr("third", b"3")
    with zipfile.ZipFile(held) as archive:
        assert archive.testzip() is None
        assert [archive.read(n) for n in archive.namelist()] == [b"1", ARRAYS["small"].tobytes(), b"3"]


def test_what_is_written_while_a_checksum_is_computed_is_whole() -> None:
    file = io.BytesIO()
    found = written(file, ARRAYS["large"], threading.get_ident)
    assert file.getvalue() == ARRAYS["large"].tobytes()
    assert found != threading.get_ident()
    assert written(file, ARRAYS["small"], threading.get_ident) == threading.get_ident()


def _raise(error: BaseException) -> None:
    raise error


def test_a_failure_of_the_writing_is_raised_when_both_have_ended() -> None:
    ended = []
    with pytest.raises(OSError, match="no room"):
        meanwhile(lambda: _raise(OSError("no room")), lambda: ended.append(1))
    assert ended == [1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failure_of_the_checksum_is_raised_here() -> None:
    done = []
    with pytest.raises(MemoryError, match="too large"):
        meanwhile(lambda: done.append(1), lambda: _raise(MemoryError("too large")))
    assert done == [1]


def test_both_are_done_one_after_the_other_when_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", lambda _: _raise(RuntimeError("interpreter shutdown")))
    file = io.BytesIO()
    assert written(file, ARRAYS["large"], threading.get_ident) == threading.get_ident()
    assert file.getvalue() == ARRAYS["large"].tobytes()
