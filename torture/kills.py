"""Rows 1, 2 and 5: a process that saves over an old file is ended, at any time and before every call."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from torture.campaign import Campaign, Outcome
from torture.tracing import AVAILABLE, PASS, Call, Verdict, in_child, watched
from torture.ways import (
    EXPORTS,
    OTHERS,
    OTHERS_EXPORTS,
    OTHERS_TENSORFLOW,
    POLYAK,
    SMALL,
    TENSORFLOW,
    Way,
    found,
    start,
)  # fmt: skip

MEBI = 1 << 20
OLD, NEW = 1, 2
_OF_OTHERS = 40  # trials of another library's writer
_LINGER = 0.05  # seconds from the first save on, within which most kills fall
_FOREIGN = (".m.safetensors.partial", "m.safetensors.tmp", ".m.npz.0123456789abcdef01234567.partial", "notes.txt")


def tried(ways: Sequence[Way], trial: object, most: int) -> tuple[list[str], dict[str, tuple[int, int]]]:
    """Runs a trial for each way; what broke, and for each way how many of how many."""
    broken: list[str] = []
    counts: dict[str, tuple[int, int]] = {}
    for way in ways:
        way.prepare()
        with tempfile.TemporaryDirectory(prefix="polyak-") as top:
            done, lost = trial(way, Path(top), most)
        counts[way.name] = (len(lost), done)
        broken += [f"{way.name}: {text}" for text in lost]
    return broken, counts


def told(counts: dict[str, tuple[int, int]]) -> dict[str, str]:
    return {name: f"{lost} of {done} lost" for name, (lost, done) in counts.items()}


def _outcome(ways: Sequence[Way], others: Sequence[Way], trial: object, most: int, word: str = "lost") -> Outcome:
    broken, counts = tried(ways, trial, most)
    _, theirs = tried(others, trial, min(most, _OF_OTHERS))
    trials = sum(done for _, done in counts.values())
    each = ", ".join(f"{name} {done}" for name, (_, done) in counts.items())
    return Outcome(trials, tuple(broken), f"{len(broken)} {word} ({each})", told(theirs))


# --- row 1: at a random time ------------------------------------------------------------------------------------------


def at_random(way: Way, top: Path, trials: int, size: int = MEBI) -> tuple[int, list[str]]:
    """A child saves version after version; whatever it said it has saved is there, or the one after it."""
    chance = random.Random(way.name)
    lost: list[str] = []
    old, place = top / "old", top / "place"
    in_child(lambda: start(way, old, size))
    for number in range(trials):
        _copied(old, place)
        last = _killed(way, place, chance.uniform(0.0, _LINGER), size)
        held = in_child(lambda: _as_list(found(way, place)))
        if held not in ([last], [last + 1]):
            lost.append(f"kill {number}, after version {last} was saved: found {held}")
    return trials, lost


def _killed(way: Way, place: Path, seconds: float, size: int) -> int:
    """The last version that a child had saved when it was killed, so many seconds after it was ready to save."""
    told, says = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            save = way.saver(size)
            os.write(says, b".")
            for version in range(NEW, 10_000):
                save(place / way.file, version)
                os.write(says, b".")
        finally:
            os._exit(1)
    os.close(says)
    with os.fdopen(told, "rb", buffering=0) as stream:
        heard = stream.read(1)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := stream.read(4096):
            heard += more
    return len(heard)  # the first byte stands for the old version, which is 1


def _as_list(held: set[int] | str) -> list[int] | str:
    return held if isinstance(held, str) else sorted(held)


def _copied(old: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(old, place, symlinks=True)


# --- row 2: before every call -----------------------------------------------------------------------------------------


def at_calls(way: Way, top: Path, most: int) -> tuple[int, list[str]]:
    """A child is ended before its first, second, ... call that changes a file, or before so many of them."""
    lost: list[str] = []
    old, place = top / "old", top / "place"
    in_child(lambda: start(way, old, SMALL))
    total = _calls(way, old, place)
    points = _spread(total, most)
    for point in points:
        _copied(old, place)
        ended = watched(lambda: way.saver(SMALL)(place / way.file, NEW), place, _killer(point))
        held = in_child(lambda: _as_list(found(way, place)))
        if held not in ([OLD], [NEW]) or (not ended.signal and held != [NEW]):
            lost.append(f"kill before call {point} of {total}: found {held}")
    return len(points), lost


def _calls(way: Way, old: Path, place: Path) -> int:
    """How many calls a save makes, which is one more than the kills that fall into it."""
    seen: list[str] = []
    _copied(old, place)
    ended = watched(lambda: way.saver(SMALL)(place / way.file, NEW), place, lambda c: seen.append(c.name) or PASS)
    assert not ended.signal, ended
    assert ended.said is None, ended.said
    return len(seen)


def _spread(total: int, most: int) -> Iterable[int]:
    """Points from the first call to behind the last, all of them or so many."""
    step = max(1, -(-total // most))
    return range(1, total + 2) if step == 1 else sorted({*range(1, total + 2, step), total - 1, total})


def _killer(point: int) -> object:
    seen = [0]

    def watcher(call: Call) -> Verdict:
        seen[0] += 1
        return Verdict(kill=seen[0] == point)

    return watcher


# --- row 5: what is left ----------------------------------------------------------------------------------------------


def left_over(way: Way, top: Path, most: int) -> tuple[int, list[str]]:
    """After a kill and a good save, a directory holds what it holds after the good save alone."""
    lost: list[str] = []
    old, place = top / "old", top / "place"
    in_child(lambda: start(way, old, SMALL))
    for name in _FOREIGN:
        (old / name).write_text("not made by polyak")
    total = _calls(way, old, place)
    expected = _inventory(place)
    points = _spread(total, most)
    for point in points:
        _copied(old, place)
        watched(lambda: way.saver(SMALL)(place / way.file, NEW), place, _killer(point))
        in_child(lambda: way.saver(SMALL)(place / way.file, NEW))
        if (now := _inventory(place)) != expected:
            lost.append(f"kill before call {point} of {total}: {now} instead of {expected}")
    return len(points), lost


def _inventory(place: Path) -> dict[str, int]:
    """The bytes below each name; random numbers in names do not count."""
    held: dict[str, int] = {}
    for path in sorted(place.iterdir()):
        name = path.name if path.name in _FOREIGN else _unnumbered(path.name)
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        held[name] = held.get(name, 0) + sum(1 if len(files) > 1 else p.stat().st_size for p in files)
    return held


def _unnumbered(name: str) -> str:
    """A name without the digits that differ from save to save: of shards, and of the count of a checkpoint's files."""
    head, _, tail = name.rpartition("-")
    return head if len(tail) in (24, 5) and set(tail) <= set("0123456789abcdef") else name


def _random(trials: int) -> Outcome:
    return _outcome(POLYAK, OTHERS if trials > 20 else OTHERS[1:2], _sixteen if trials > 20 else at_random, trials)


def _sixteen(way: Way, top: Path, trials: int) -> tuple[int, list[str]]:
    return at_random(way, top, trials, 16 * MEBI)


def _random_tensorflow(trials: int) -> Outcome:
    return _outcome(TENSORFLOW, OTHERS_TENSORFLOW, at_random, trials)


def _every(most: int) -> Outcome:
    return _outcome(POLYAK, OTHERS if most > 20 else OTHERS[3:], at_calls, most)


def _every_tensorflow(most: int) -> Outcome:
    return _outcome(TENSORFLOW, OTHERS_TENSORFLOW, at_calls, most)


def _every_export(most: int) -> Outcome:
    return _outcome(EXPORTS, OTHERS_EXPORTS, at_calls, most)


def _left(most: int) -> Outcome:
    return _outcome(POLYAK, OTHERS if most > 20 else OTHERS[:1], left_over, most, "with something left or missing")


def _left_tensorflow(most: int) -> Outcome:
    return _outcome(TENSORFLOW[:2], OTHERS_TENSORFLOW, left_over, most, "with something left or missing")


CAMPAIGNS = (
    Campaign("1a", "A process killed at any time leaves the old file or the new one", _random, 2, 200),
    Campaign("1b", "So it is with what TensorFlow writes for polyak", _random_tensorflow, 1, 200),
) + (
    (
        Campaign(
            "2a", "A process killed before any call that changes a file leaves the old one or the new", _every, 4, 500
        ),
        Campaign("2b", "So it is with what TensorFlow writes for polyak", _every_tensorflow, 3, 500),
        Campaign("2c", "An export that is killed is no version that a server would take", _every_export, 3, 500),
        Campaign("5a", "The next good save removes what killed ones left, and nothing else", _left, 3, 500),
        Campaign("5b", "So it is with what TensorFlow writes for polyak", _left_tensorflow, 2, 500),
    )
    if AVAILABLE
    else ()
)
