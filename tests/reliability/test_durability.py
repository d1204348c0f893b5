"""The campaigns of durability in their short form, and that they can fail: others' bare writers lose in them."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from torture import crowds, faults, full, kills, places, power
from torture.campaign import Campaign
from torture.kills import at_calls, left_over
from torture.power import cut
from torture.tracing import AVAILABLE
from torture.ways import OTHERS, POLYAK, Save, Way, arrays

from polyak.files import atomic, bundle_commit, partial
from polyak.files.atomic import replacing_directory, standing
from polyak.files.bundle_commit import replacing_bundle

INDEX = Path(__file__).resolve().parents[1] / "golden" / "tensorflow" / "module.index"
TENSORFLOW = {"1b", "2b", "2c", "3b", "4b", "4d", "4g", "5b"}
ALL = [campaign for module in (kills, power, faults, full, crowds, places) for campaign in module.CAMPAIGNS]
WAYS = {way.name: way for way in OTHERS}
# A trial forks; pytest's process may hold threads of a framework by then, so campaigns run in processes of their own.
traced = pytest.mark.skipif(not AVAILABLE, reason="system calls are watched on Linux on x86-64 alone")


@pytest.mark.parametrize(
    "campaign", [pytest.param(c, marks=[pytest.mark.kill] * (c.row in TENSORFLOW)) for c in ALL], ids=lambda c: c.row
)
def test_the_promise_holds(campaign: Campaign) -> None:
    from torture.__main__ import in_its_process

    outcome = in_its_process(campaign, short=True)
    assert outcome.broken == ()
    assert outcome.trials > 0
    assert all("lost" in figure or "reads" in figure or figure for figure in outcome.peers.values())


@traced
def test_kills_before_calls_lose_a_file_that_is_written_in_place(tmp_path: Path) -> None:
    done, lost = at_calls(WAYS["h5py in place, as Keras"], tmp_path, 6)
    assert len(lost) > done // 3


@traced
def test_what_a_killed_writer_leaves_is_noticed(tmp_path: Path) -> None:
    _, lost = left_over(WAYS["safetensors"], tmp_path, 4)
    assert lost


@traced
def test_power_cuts_lose_what_is_not_synchronised(tmp_path: Path) -> None:
    _, lost = cut(WAYS["safetensors"], tmp_path, 40)
    assert lost


def _of_two_files(size: int) -> Save:
    def save(path: Path, version: int) -> None:
        with replacing_directory(path) as fresh:
            for name in ("one", "two"):
                (fresh / name).write_bytes(bytes([version]) * size)

    return save


def _under_new_names(size: int) -> Save:
    save = _of_two_files(size)
    return lambda path, version: save(path.with_name(f"m{version}"), version)


def _last(path: Path) -> set[int]:
    return _both(max(path.parent.glob("m?")))


def _both(path: Path) -> set[int]:
    one, two = (standing(path) / name for name in ("one", "two"))
    return {*one.read_bytes(), *two.read_bytes()}


def _in_two_renames(size: int) -> Save:
    atomic.exchange = lambda one, other: False  # in a child that ends soon
    return _of_two_files(size)


def _as_the_program_ends(size: int) -> Save:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    threading.Thread.start = start  # in a child that ends soon
    return POLYAK[0].saver(size)


def _after_a_killed_writer(size: int) -> Save:
    """A writer is killed once it has exchanged two directories; then another one saves."""

    def save(path: Path, version: int) -> None:
        if path.exists():
            left = partial.hidden(path)
            left.mkdir()
            for name in ("one", "two"):
                (left / name).write_bytes(bytes([version]) * size)
            atomic.sync_tree(left)
            atomic.exchange(left, path)
        _of_two_files(size)(path, version)

    return save


def _bundle(size: int) -> Save:
    def save(path: Path, version: int) -> None:
        with replacing_bundle(path) as fresh:
            fresh.with_name("m.index").write_bytes(INDEX.read_bytes())
            fresh.with_name("m.data-00000-of-00001").write_bytes(bytes([version]) * size)

    return save


def _of_index(path: Path) -> set[int]:
    """The bytes of the data file that an index leads to."""
    count = bundle_commit._count(path.with_name("m.index"))
    return set(path.with_name(f"m.data-00000-of-{count:05d}").read_bytes())


PLACES = (
    Way("directory", "m", _of_two_files, _both),
    Way("new directory", "m", _under_new_names, _last),
    Way("directory in two renames", "m", _in_two_renames, _both),
    Way("file as the program ends", POLYAK[0].file, _as_the_program_ends, POLYAK[0].load),
    Way("directory after a killed writer", "m", _after_a_killed_writer, _both),
    Way("bundle", "m", _bundle, _of_index),
)


@traced
@pytest.mark.parametrize("way", [*POLYAK[:2], *PLACES], ids=lambda way: way.name)
def test_power_cuts_lose_nothing_that_is(way: Way, tmp_path: Path) -> None:
    _, lost = cut(way, tmp_path, 200)
    assert lost == []


@traced
def test_faults_lose_a_file_that_is_written_in_place(tmp_path: Path) -> None:
    _, lost = faults.failing(WAYS["h5py in place, as Keras"], tmp_path, 12)
    assert any("is found" in text for text in lost)


@pytest.mark.skipif(not full.CAMPAIGNS, reason="the system lets nobody mount a file system of his own")
def test_a_full_file_system_loses_a_file_that_is_written_in_place_and_grows(tmp_path: Path) -> None:
    def growing(size: int) -> Save:
        return lambda path, version: np.savez(path, **arrays(version, size * version))

    way = Way("growing", "m.npz", growing, WAYS["np.savez"].load)
    _, lost = full.full(way, tmp_path, 4)
    assert any("is found after OSError: [Errno 28]" in text for text in lost)


def test_readers_of_a_file_that_is_written_in_place_fail() -> None:
    WAYS["np.savez"].prepare()
    _, wrong = crowds.crowd(WAYS["np.savez"], 1, 300)
    assert wrong


def test_a_reader_that_is_led_out_is_noticed(tmp_path: Path) -> None:
    from torture.tracing import in_child

    assert in_child(lambda: places._opened_below(_secret(tmp_path), tmp_path))


def _secret(folder: Path) -> Path:
    import numpy as np

    import polyak

    polyak.save(polyak.Snapshot.from_arrays({"w": np.ones(3, np.float32)}), folder / "secret.safetensors")
    return folder / "secret.safetensors"
