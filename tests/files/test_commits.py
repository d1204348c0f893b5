"""What a save of several files replaces, removes and leaves alone, also where the system cannot exchange two names."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.files.bounded import nobody
from tests.files.test_sstable import write as write_table

import polyak
from polyak import file_verbs
from polyak.errors import DamagedFile, FileError
from polyak.files import atomic, bundle_commit, partial, place
from polyak.files.atomic import replacing, replacing_directory
from polyak.files.bundle_commit import replacing_bundle
from polyak.files.pinned import Pinned
from polyak.snapshot import Snapshot

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "tensorflow" / "module.index"
INDEX = "model.safetensors.index.json"
UNSAFE = r"the new one has its name, but a power cut may undo that: its directory .*: Input/output error\nhint: look at"


def held(value: float) -> Snapshot:
    return Snapshot.from_arrays({"a/w": np.full(5, value, np.float32)})


def value(path: Path) -> float:
    (found,) = np.unique(polyak.open(path)["a/w"])
    return float(found)


def save(path: Path, number: float) -> None:
    bundle(path) if path.name == "ckpt" else polyak.save(held(number), path)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def put(path: Path, text: str) -> None:
    with replacing_directory(path) as fresh:
        (fresh / "file").write_text(text)


# --- files ------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_back_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    polyak.save(held(1), path)
    writer = file_verbs.writer(path)

    def broken(fresh: Path) -> object:
        raise DamagedFile("file 'a': the bytes differ")

    monkeypatch.setattr("polyak.verbs.saver", lambda _: file_verbs.Writer(writer.write, broken))
    with pytest.raises(DamagedFile, match="the bytes differ"):
        polyak.save(held(2), path)
    assert value(path) == 1
    assert names(tmp_path) == ["a.safetensors"]


def test_a_save_for_which_there_is_no_room_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a"
    refused = pytest.raises(FileError, match=r"bytes are free; it needs 1,000,000,000,000,000 bytes")
    with refused, replacing(path, 10**15):
        raise AssertionError("the block began")
    assert names(tmp_path) == []


def test_a_failed_synchronisation_is_raised_and_the_old_file_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    polyak.save(held(1), path)

    def refuse(handle: int) -> None:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(FileError, match=r"cannot be written: Input/output error; it needs \d+ bytes"):
        polyak.save(held(2), path)
    monkeypatch.undo()
    assert value(path) == 1
    assert names(tmp_path) == ["a.safetensors"]


def test_a_file_that_is_mounted_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, mounts = tmp_path / "a b", tmp_path / "mountinfo"
    path.write_bytes(b"old")
    mounts.write_text(f"1 2 0:3 / {str(path).replace(' ', chr(92) + '040')} rw - ext4 x rw\n")
    monkeypatch.setattr(place, "_MOUNTS", mounts)
    with pytest.raises(FileError, match="mounted here"), replacing(path):
        raise AssertionError("the block began")


def test_a_living_writer_is_not_swept(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with replacing(path) as outer:
        outer.write(b"outer")
        with replacing(path) as inner:
            inner.write(b"inner")
        assert path.read_bytes() == b"inner"
    assert path.read_bytes() == b"outer"
    assert names(tmp_path) == ["a"]


def test_only_what_polyak_made_for_this_name_and_nobody_holds_is_swept(tmp_path: Path) -> None:
    path = tmp_path / "a"
    dead, other = partial.hidden(path), partial.hidden(tmp_path / "b")
    foreign = tmp_path / f".a.{'0' * 24}.partial"
    link = partial.hidden(path)
    for made in (dead, other, foreign):
        made.write_bytes(b"half")
    link.symlink_to(other)
    with replacing(path) as file:
        file.write(b"new")
    assert set(names(tmp_path)) == {"a", other.name, foreign.name, link.name}


@pytest.mark.parametrize("kind", [partial.locked_file, partial.locked_directory])
def test_a_directory_that_went_meanwhile_is_said_to_be_missing(
    kind: Callable[[Path], AbstractContextManager[object]], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError), kind(tmp_path / "gone" / "a"):
        raise AssertionError("the block began")


class Swept:
    """What happens so many times between the making of a hidden file or directory and its lock: it is swept."""

    def __init__(self, times: int, folder: Path) -> None:
        self.times, self.folder = times, folder

    def happens(self) -> None:
        for path in self.folder.iterdir():
            if self.times > 0:
                partial.remove(path)
                self.times -= 1


@pytest.mark.parametrize("kind", [replacing, replacing_directory])
@pytest.mark.parametrize("times", [1, partial._TRIES])
def test_what_is_swept_before_it_is_locked_is_made_again_a_number_of_times(
    kind: Callable[[Path], AbstractContextManager[object]], times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept, hold = Swept(times, tmp_path), partial.hold
    monkeypatch.setattr(partial, "hold", lambda handle: (swept.happens(), hold(handle)))
    if times == 1:
        with kind(tmp_path / "a"):
            """Nothing is written."""
        assert names(tmp_path) == ["a"]
        return
    with (
        pytest.raises(FileError, match="a': cannot be written: no hidden file could be kept beside"),
        kind(tmp_path / "a"),
    ):
        raise AssertionError("the block began")
    assert names(tmp_path) == []


def test_a_directory_that_is_swept_before_it_is_opened_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept, make = Swept(1, tmp_path), Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda path: (make(path), swept.happens()))
    with replacing_directory(tmp_path / "a") as fresh:
        (fresh / "file").write_text("new")
    assert swept.times == 0
    assert (tmp_path / "a" / "file").read_text() == "new"


def refuse_names(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let nothing make the names in this directory survive a power cut once they have changed."""
    fsync, before = os.fsync, {p.name: p.lstat().st_ino for p in folder.iterdir() if not p.name.startswith(".")}

    def refuse(handle: int) -> None:
        now = {p.name: p.lstat().st_ino for p in folder.iterdir() if p.name in before}
        if os.path.samestat(os.fstat(handle), folder.stat()) and now != before:
            raise OSError(5, os.strerror(5))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)


@pytest.mark.parametrize("can", [True, False])
@pytest.mark.parametrize("name", ["a.safetensors", "a.orbax", INDEX])
def test_a_name_that_may_not_survive_a_power_cut_is_an_error_that_says_so_and_the_new_file_stays(
    name: str, can: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    polyak.save(held(1), path)
    if not can:
        monkeypatch.setattr(atomic, "exchange", lambda one, other: False)
    refuse_names(monkeypatch, tmp_path)
    with pytest.raises(FileError, match=rf"^file '.*{name}': {UNSAFE}"):
        polyak.save(held(2), path)
    monkeypatch.undo()
    assert value(path) == 2
    polyak.save(held(3), path)
    assert len(names(tmp_path)) == (2 if name == INDEX else 1)


def test_a_checkpoint_of_tensorflow_whose_name_may_not_survive_is_told_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle(tmp_path / "ckpt")
    before = (tmp_path / "ckpt.index").lstat().st_ino
    refuse_names(monkeypatch, tmp_path)
    with pytest.raises(FileError, match=rf"^file '.*ckpt.index': {UNSAFE}"):
        bundle(tmp_path / "ckpt")
    assert (tmp_path / "ckpt.index").lstat().st_ino != before
    assert polyak.open(tmp_path / "ckpt").copy()


@pytest.mark.parametrize("name", ["a.safetensors", "a.orbax", INDEX, "ckpt"])
def test_a_directory_that_cannot_be_synchronised_is_refused_while_the_old_file_stands(name: str) -> None:
    """One in which this process may write, and not read."""
    with tempfile.TemporaryDirectory() as top:
        path = Path(top) / name
        save(path, 1)
        before = {p: p.lstat() for p in sorted(path.parent.iterdir())}
        path.parent.chmod(0o333)
        for p in before:
            p.chmod(0o777)
        with nobody(), pytest.raises(FileError, match="cannot be written: Permission denied"):
            save(path, 2)
        path.parent.chmod(0o755)
        assert {p: p.lstat().st_ino for p in sorted(path.parent.iterdir())} == {p: s.st_ino for p, s in before.items()}


def test_a_new_file_in_a_directory_that_cannot_be_synchronised_is_refused() -> None:
    with tempfile.TemporaryDirectory() as top:
        Path(top).chmod(0o333)
        message = "may not read its directory, so no new name in it would be safe .*\nhint: make '.*' read"
        for kind in (replacing, replacing_directory, replacing_bundle):
            with nobody(), pytest.raises(FileError, match=message), kind(Path(top) / "a"):
                raise AssertionError("the block began")
        Path(top).chmod(0o755)
        assert names(Path(top)) == []


# --- directories ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("can", [True, False])
def test_a_directory_is_replaced_whole(tmp_path: Path, can: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not can:
        monkeypatch.setattr(atomic, "exchange", lambda one, other: False)
    put(tmp_path / "d", "old")
    (tmp_path / "d" / "other").write_text("old")
    (tmp_path / "d").chmod(0o750)
    put(tmp_path / "d", "new")
    assert (tmp_path / "d" / "file").read_text() == "new"
    assert names(tmp_path / "d") == ["file"]
    assert names(tmp_path) == ["d"]
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("path", ["f", "d"])
def test_what_is_written_is_read_back_also_when_no_thread_can_be_started(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is when the program ends."""

    def refuse(fresh: Path) -> None:
        raise DamagedFile("the bytes differ")

    def end(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    kind = {"f": replacing, "d": replacing_directory}[path]
    for prepare in (lambda: None, lambda: monkeypatch.setattr(threading.Thread, "start", end)):
        prepare()
        with pytest.raises(DamagedFile, match="the bytes differ"), kind(tmp_path / path, check=refuse):
            """Nothing is written."""
        assert names(tmp_path) == []
    with kind(tmp_path / path, check=lambda fresh: None):
        """Nothing is written."""
    assert names(tmp_path) == [path]


def test_a_directory_that_cannot_take_its_name_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "d", "old")
    rename = Path.rename

    def refuse_last(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise OSError(5, os.strerror(5))
        return rename(path, target)

    monkeypatch.setattr(atomic, "exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", refuse_last)
    with pytest.raises(FileError, match="Input/output error"):
        put(tmp_path / "d", "new")
    assert (tmp_path / "d" / "file").read_text() == "old"
    assert names(tmp_path) == ["d"]


@pytest.mark.skipif(sys.platform != "linux", reason="two names change places on Linux alone")
def test_two_paths_change_places_where_the_system_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d" / "inner").mkdir(parents=True)
    (tmp_path / "f").write_text("f")
    assert atomic.exchange(tmp_path / "f", tmp_path / "d")
    assert (tmp_path / "d").read_text() == "f"
    with pytest.raises(FileNotFoundError):
        atomic.exchange(tmp_path / "f", tmp_path / "missing")
    # What a system answers that does not know how.
    assert not atomic.exchange(tmp_path / "f", tmp_path / "f" / "inner")
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())  # an older C library
    assert not atomic.exchange(tmp_path / "f", tmp_path / "d")


def test_half_of_a_directory_that_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    half, aside = partial.hidden(tmp_path / "d"), partial.hidden(tmp_path / "d", partial.SET_ASIDE)
    for left in (half, aside):
        left.mkdir()
        (left / "file").write_text("left")
    put(tmp_path / "d", "new")
    assert names(tmp_path) == ["d"]


KILLED = """
import os, sys
from pathlib import Path
import numpy as np
import polyak
from polyak.files import atomic
from polyak.snapshot import Snapshot
atomic.exchange = lambda one, other: False
renames, rename = [], Path.rename
def counted(self, target):
    renames.append(target)
    if len(renames) == int(sys.argv[2]):
        os._exit(9)
    return rename(self, target)
Path.rename = counted
polyak.save(Snapshot.from_arrays({"a/w": np.full(5, 2, np.float32)}), sys.argv[1])
"""


@pytest.mark.parametrize("point", [1, 2])
def test_without_an_exchange_a_killed_writer_leaves_the_old_checkpoint(tmp_path: Path, point: int) -> None:
    path = tmp_path / "m.orbax"
    polyak.save(held(1), path)
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), str(point)], capture_output=True, check=False)
    assert done.returncode == 9, done.stderr
    assert path.exists() == (point == 1)
    assert value(path) == 1
    polyak.save(held(3), path)
    assert value(path) == 3
    assert names(tmp_path) == ["m.orbax"]


def test_a_checkpoint_that_is_read_stays_until_nobody_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "m.orbax"
    polyak.save(held(1), path)
    opened = polyak.open(path)
    polyak.save(held(2), path)
    assert opened["a/w"].tolist() == [1.0] * 5
    assert value(path) == 2
    del opened
    polyak.save(held(3), path)
    assert names(tmp_path) == ["m.orbax"]


def test_who_opens_a_directory_before_its_writer_has_ended_keeps_it(tmp_path: Path) -> None:
    held: list[Pinned] = []
    with replacing_directory(tmp_path / "d", check=lambda fresh: held.append(Pinned(fresh))) as fresh:
        (fresh / "file").write_text("first")
    for text in ("second", "third"):
        put(tmp_path / "d", text)
    assert (held[0].path / "file").read_text() == "first"
    held.clear()
    put(tmp_path / "d", "fourth")
    assert names(tmp_path) == ["d"]


def test_a_checkpoint_with_a_file_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "m.orbax"
    polyak.save(held(1), path)
    (path / "notes.txt").write_text("mine")
    with pytest.raises(FileError, match=r"'notes.txt' in it, which would be lost"):
        polyak.save(held(2), path)
    assert value(path) == 1


# --- shards -----------------------------------------------------------------------------------------------------------


def test_old_shards_go_unless_an_index_beside_them_leads_there(tmp_path: Path) -> None:
    path, copied = tmp_path / INDEX, tmp_path / "best.safetensors.index.json"
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"of another tool")
    polyak.save(held(1), path)
    shutil.copy(path, copied)
    polyak.save(held(2), path)
    polyak.save(held(3), path)
    assert (value(path), value(copied)) == (3, 1)
    assert len([n for n in names(tmp_path) if (tmp_path / n).is_dir()]) == 2
    assert "model-00001-of-00002.safetensors" in names(tmp_path)


def test_an_index_is_written_through_a_link_with_its_shards(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / INDEX).symlink_to(tmp_path / "real" / INDEX)
    polyak.save(held(1), tmp_path / INDEX)
    assert value(tmp_path / INDEX) == value(tmp_path / "real" / INDEX) == 1
    assert names(tmp_path) == [INDEX, "real"]


# --- TensorFlow -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_tensorflow_is_replaced_and_read_by_tensorflow(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    from polyak import tensorflow

    module = tf.Module()
    module.w = tf.Variable([0.0, 0.0])
    checkpoint = tf.train.Checkpoint(module=module)
    prefix = tmp_path / "ckpt"
    for step in range(1, 4):
        module.w.assign([float(step)] * 2)
        assert tensorflow.write(checkpoint, prefix) == str(prefix)
        module.w.assign([0.0, 0.0])
        checkpoint.read(str(prefix)).assert_consumed()
        assert module.w.numpy().tolist() == [float(step)] * 2
        assert polyak.open(prefix).select("raw")["module/w"].tolist() == [float(step)] * 2
        assert len(names(tmp_path)) == 2
    polyak.tensorflow.save_tf1(held(7), prefix)
    assert tf.train.load_variable(str(prefix), "a/w").tolist() == [7.0] * 5
    assert len(names(tmp_path)) == 2


def test_a_checkpoint_that_tensorflow_cannot_write_leaves_the_old_one(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    from polyak import tensorflow

    class Refusing:
        def write(self, prefix: str) -> None:
            raise tf.errors.ResourceExhaustedError(None, None, "no room")

    module = tf.Module()
    module.w = tf.Variable([1.0])
    tensorflow.write(tf.train.Checkpoint(module=module), tmp_path / "ckpt")
    with pytest.raises(FileError, match="cannot be written: no room"):
        tensorflow.write(Refusing(), tmp_path / "ckpt")
    assert tf.train.load_checkpoint(str(tmp_path / "ckpt")) is not None
    assert len(names(tmp_path)) == 2


def bundle(prefix: Path, check: Callable[[Path], None] | None = None, index: Path = GOLDEN) -> None:
    """Write a checkpoint of TensorFlow's without it."""
    with replacing_bundle(prefix, check=check) as fresh:
        shutil.copyfile(index, fresh.with_name(f"{fresh.name}.index"))
        end = ".data-00000-of-00001"
        shutil.copyfile(GOLDEN.with_suffix(end), fresh.with_name(fresh.name + end))


def test_a_checkpoint_keeps_its_mode_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    prefix, index = tmp_path / "ckpt", tmp_path / "ckpt.index"
    bundle(prefix)
    index.chmod(0o640)
    left = partial.hidden(prefix)
    left.mkdir()
    for _ in range(3):
        bundle(prefix)
    assert index.stat().st_mode & 0o777 == 0o640
    assert len(names(tmp_path)) == 2
    assert polyak.open(prefix).copy()


@pytest.mark.parametrize(("of_data", "mode"), [(0o644, 0o600), (0o600, 0o644), (0o640, 0o600), (0o400, 0o640)])
def test_data_is_open_to_no_more_than_index_and_data_were(of_data: int, mode: int, tmp_path: Path) -> None:
    bundle(tmp_path / "ckpt")
    (data,) = tmp_path.glob("ckpt.data*")
    data.chmod(of_data)
    (tmp_path / "ckpt.index").chmod(mode)
    seen: list[int] = []
    for _ in range(2):
        bundle(tmp_path / "ckpt", lambda fresh: seen.append(fresh.parent.stat().st_mode & 0o777))
    (data,) = tmp_path.glob("ckpt.data*")
    found = [p.stat().st_mode & 0o777 for p in (tmp_path / "ckpt.index", data)]
    assert found == [mode, mode & (of_data | 0o700)]
    assert seen == [0o700] * 2


def test_a_closed_directory_is_closed_while_it_is_replaced(tmp_path: Path) -> None:
    put(tmp_path / "d", "old")
    (tmp_path / "d").chmod(0o710)
    with replacing_directory(tmp_path / "d") as fresh:
        assert fresh.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o710


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("name", ["a.orbax", "ckpt"])
def test_what_root_replaces_for_its_owner_goes(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    save(path, 1)
    for p in tmp_path.iterdir():
        os.chown(p, 1234, 2345)
    for number in range(3):
        save(path, number)
    assert len(names(tmp_path)) == (2 if name == "ckpt" else 1)
    assert {(p.stat().st_uid, p.stat().st_gid) for p in tmp_path.iterdir()} == {(1234, 2345)}


def test_what_somebody_else_has_left_stays_unless_the_file_is_his(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root gives files away")
    left = partial.hidden(tmp_path / "a")
    left.write_bytes(b"half")
    os.chown(left, 1234, 2345)
    with replacing(tmp_path / "a"):
        """There is no old file, whose owner would count."""
    with replacing(tmp_path / "a"):
        """It is root's."""
    assert left.exists()
    os.chown(tmp_path / "a", 1234, 2345)
    with replacing(tmp_path / "a"):
        """It is his."""
    assert names(tmp_path) == ["a"]


def test_a_checkpoint_that_cannot_be_read_back_leaves_the_old_one(tmp_path: Path) -> None:
    bundle(tmp_path / "ckpt")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def refuse(fresh: Path) -> None:
        raise DamagedFile("the bytes differ")

    with pytest.raises(DamagedFile, match="the bytes differ"):
        bundle(tmp_path / "ckpt", refuse)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_checkpoint_that_is_saved_in_the_middle_of_another_save_takes_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle(tmp_path / "ckpt")
    others, sync = [tmp_path / "ckpt"], bundle_commit.sync

    def interrupted(path: Path) -> None:
        """The data files have their names then, and the index has not."""
        if others:
            bundle(others.pop())
        sync(path)

    monkeypatch.setattr(bundle_commit, "sync", interrupted)
    bundle(tmp_path / "ckpt")
    assert others == []
    assert len(names(tmp_path)) == 2
    assert polyak.open(tmp_path / "ckpt").copy()


def test_a_checkpoint_for_which_there_is_no_room_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="bytes are free"), replacing_bundle(tmp_path / "ckpt", 10**15):
        raise AssertionError("the block began")
    assert names(tmp_path) == []


def test_data_files_get_their_names_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(1, os.strerror(1))

    monkeypatch.setattr(os, "link", refuse)
    bundle(tmp_path / "ckpt")
    assert names(tmp_path) == ["ckpt.data-00000-of-00001", "ckpt.index"]
    assert polyak.open(tmp_path / "ckpt").copy()


@pytest.mark.parametrize("function", ["link", "hold"])
def test_data_files_get_another_number_where_another_writer_has_taken_it(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes a file of this name just before ours is linked, or sweeps ours just before it is held."""
    other, before = tmp_path / "ckpt.data-00000-of-00001", []
    module = {"link": os, "hold": bundle_commit}[function]
    real = getattr(module, function)

    def meet(*arguments: Any) -> None:
        if not before:
            before.append(True)
            other.write_bytes(b"other") if function == "link" else other.unlink()
        real(*arguments)

    monkeypatch.setattr(module, function, meet)
    bundle(tmp_path / "ckpt")
    assert before
    assert names(tmp_path) == ["ckpt.data-00000-of-00002", "ckpt.index"]
    assert polyak.open(tmp_path / "ckpt").copy()


def test_a_checkpoint_among_too_many_data_files_is_refused(tmp_path: Path) -> None:
    for count in range(1, 128):
        (tmp_path / f"ckpt.data-00000-of-{count:05d}").touch()
    with pytest.raises(FileError, match="expected fewer than 127 data files beside it, received too many"):
        bundle(tmp_path / "ckpt")
    assert len(names(tmp_path)) == 127


def test_an_index_that_is_no_checkpoints_is_not_given_another_number(tmp_path: Path) -> None:
    bundle(tmp_path / "ckpt")
    table = write_table(tmp_path / "table", [[(b"key", b"value")]])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(FileError, match="expected the header of a TensorFlow V2 checkpoint, received another"):
        bundle(tmp_path / "ckpt", index=table)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_opening_waits_out_a_writer_that_replaces_parts(tmp_path: Path) -> None:
    path = tmp_path / INDEX
    polyak.save(held(1), path)
    over = threading.Event()

    def write() -> None:
        for step in range(2, 30):
            polyak.save(held(step), path)
        over.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = []
    while not over.is_set():
        seen.append(value(path))
    thread.join()
    assert seen == sorted(seen)
    assert value(path) == 29


def test_a_file_that_is_written_again_at_each_opening_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read, tries = tmp_path / "a.safetensors", polyak.files._read, []
    polyak.save(held(1), path)

    def meanwhile_written(path: Path) -> object:
        tries.append(shutil.copyfile(path, tmp_path / "new"))
        tries[-1].replace(path)
        return read(path)

    monkeypatch.setattr("polyak.files._TRIES", 3)
    monkeypatch.setattr("polyak.files._read", meanwhile_written)
    with pytest.raises(FileError, match="it was written again at each of 3 attempts to open it"):
        polyak.open(path)
    assert len(tries) == 3


def test_a_file_that_is_half_written_when_it_is_opened_is_opened_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole, read = tmp_path / "a.safetensors", tmp_path / "whole", polyak.files._read
    polyak.save(held(3), path)
    path.rename(whole)
    path.write_bytes(whole.read_bytes()[:-5])

    def meanwhile_written(path: Path) -> object:
        try:
            return read(path)
        finally:
            if whole.exists():
                whole.replace(path)

    monkeypatch.setattr("polyak.files._read", meanwhile_written)
    assert value(path) == 3
