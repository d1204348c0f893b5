"""Row 4: the N-th system call of a save that changes a file does not happen, or writes less; the kernel says why."""

from __future__ import annotations

import errno
import re
import resource
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from polyak.errors import FileError
from torture.campaign import Campaign, Outcome
from torture.kills import NEW, OLD, _as_list, _calls, _copied, told, tried
from torture.tracing import AVAILABLE, PASS, Call, Verdict, in_child, watched
from torture.ways import OTHERS, OTHERS_TENSORFLOW, POLYAK, SMALL, TENSORFLOW, Way, found, start

ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG, errno.EINTR, 0)  # 0: fewer bytes are written
_NEEDED = re.compile(r"needs [\d,]+ bytes")
_OF_OTHERS = 40  # trials of another library's writer
_WRITES = ("write", "pwrite64")


def saving(way: Way, place: Path, size: int = SMALL) -> Callable[[], object]:
    """A save that answers how it failed: the kind of the error and its text; None if it did not."""

    def save() -> object:
        try:
            way.saver(size)(place / way.file, NEW)
        except Exception as error:  # judged by the parent
            return [isinstance(error, FileError), f"{type(error).__name__}: {error}"]
        return None

    return save


def failing(way: Way, top: Path, most: int) -> tuple[int, list[str]]:
    """Each call fails in each way, or so many of them do."""
    lost: list[str] = []
    old, place = top / "old", top / "place"
    in_child(lambda: start(way, old, SMALL))
    points = [(n, error) for n in range(1, _calls(way, old, place) + 1) for error in ERRORS]
    step = max(1, -(-len(points) // most))
    chosen = points[:: step + (step % len(ERRORS) == 0)]  # so that no error falls on its own calls alone
    for point, error in chosen:
        _copied(old, place)
        hit: list[str] = []
        ended = watched(saving(way, place), place, _fault(point, error, hit))
        held = in_child(lambda: _as_list(found(way, place)))
        if (fault := judged(ended.said, held, error, way)) or ended.signal:
            lost.append(
                f"{errno.errorcode.get(error, 'short')} at call {point} ({hit}): {fault}, signal {ended.signal}"
            )
    return len(chosen), lost


def _fault(point: int, error: int, hit: list[str]) -> Callable[[Call], Verdict]:
    seen = [0]

    def watcher(call: Call) -> Verdict:
        seen[0] += 1
        if seen[0] != point:
            return PASS
        hit.append(call.name)
        if error:
            return Verdict(error=error)
        return Verdict(short=max(1, call.arguments[2] // 2)) if call.name in _WRITES else PASS

    return watcher


def judged(said: object, held: list[int] | str, error: int, way: Way) -> str:
    """What is wrong with the end of a save, or nothing."""
    if said is None:
        return "" if held == [NEW] else f"it returned, and {held} is found"
    if not isinstance(said, list):
        return f"it ended: {said}"
    typed, text = said
    if held not in ([OLD], [NEW]):
        return f"{held} is found after {text}"
    if not typed:
        return f"no FileError: {text}"
    if way.file not in text:
        return f"the path is not named: {text}"
    return ""


def limited(way: Way, top: Path, trials: int) -> tuple[int, list[str]]:
    """The system lets a process write files of so many bytes: the error says how many it needs."""
    lost: list[str] = []
    old, place = top / "old", top / "place"
    in_child(lambda: start(way, old, SMALL))
    for number in range(trials):
        limit = SMALL * (number + 1) // (trials + 1)
        _copied(old, place)

        def bounded(limit: int = limit) -> object:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            ready = way.saver(SMALL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            return saving(Way(way.name, way.file, lambda _: ready, way.load), place)()

        said = _survived(bounded)
        held = in_child(lambda: _as_list(found(way, place)))
        fault = judged(said, held, errno.EFBIG, way)
        if (
            not fault
            and isinstance(said, list)
            and not _NEEDED.search(said[1])
            and way.name != "polyak.tensorflow.write"
        ):
            fault = f"the bytes needed are not named: {said[1]}"  # a checkpoint's are known to TensorFlow alone
        if fault:
            lost.append(f"limit of {limit} bytes: {fault}")
    return trials, lost


def _survived(trial: Callable[[], object]) -> object:
    """What a trial answers; a library may crash instead, which is told."""
    try:
        return in_child(trial)
    except RuntimeError as crash:
        return str(crash)


def interrupted(way: Way, top: Path, trials: int) -> tuple[int, list[str]]:
    """A timer's signal arrives every millisecond while a save runs: it is as if none did."""
    lost: list[str] = []
    place = top / "place"
    in_child(lambda: start(way, place, SMALL))

    def stormed() -> object:
        arrived = [0]

        def count(number: int, frame: object) -> None:
            arrived[0] += 1

        signal.signal(signal.SIGALRM, count)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        said = saving(way, place)()
        signal.setitimer(signal.ITIMER_REAL, 0)
        return [arrived[0], said]

    for number in range(trials):
        arrived, said = in_child(stormed)
        held = in_child(lambda: _as_list(found(way, place)))
        if said or held != [NEW] or not arrived:
            lost.append(f"storm {number} of {arrived} signals: {said}, found {held}")
    return trials, lost


def outcome_of(ways: Sequence[Way], others: Sequence[Way], trial: object, most: int) -> Outcome:
    broken, counts = tried(ways, trial, most)
    _, theirs = tried(others, _kept_old(trial), min(most, _OF_OTHERS))
    each = ", ".join(f"{name} {done}" for name, (_, done) in counts.items())
    return Outcome(
        sum(done for _, done in counts.values()), tuple(broken), f"{len(broken)} broken ({each})", told(theirs)
    )


def _kept_old(trial: object) -> object:
    """The same trial, judged by the file alone: other libraries have errors of their own."""

    def theirs(way: Way, top: Path, most: int) -> tuple[int, list[str]]:
        done, lost = trial(way, top, most)
        return done, [text for text in lost if "is found" in text or "it ended" in text]

    return theirs


def _calls_fail(most: int) -> Outcome:
    return outcome_of(POLYAK, OTHERS if most > 50 else OTHERS[1:2], failing, most)


def _calls_fail_tensorflow(most: int) -> Outcome:
    return outcome_of(TENSORFLOW[:2], OTHERS_TENSORFLOW, failing, most)


def _no_room(trials: int) -> Outcome:
    return outcome_of(POLYAK, OTHERS if trials > 5 else OTHERS[1:2], limited, trials)


def _no_room_tensorflow(trials: int) -> Outcome:
    return outcome_of(TENSORFLOW[:2], OTHERS_TENSORFLOW, limited, trials)


def _storm(trials: int) -> Outcome:
    return outcome_of(POLYAK, (), interrupted, trials)


CAMPAIGNS = (
    Campaign("4c", "A save for which there is no room says at once how many bytes it needs", _no_room, 1, 10),
    Campaign("4d", "What TensorFlow cannot write for polyak leaves the old checkpoint", _no_room_tensorflow, 1, 10),
    Campaign("4e", "Signals that interrupt system calls change nothing", _storm, 1, 20),
) + (
    (
        Campaign("4a", "Whichever call of a save fails, the old file or the new one is whole, and a FileError names it",
                 _calls_fail, 8, 1000),
        Campaign("4b", "So it is with what TensorFlow writes for polyak", _calls_fail_tensorflow, 6, 1000),
    )
    if AVAILABLE
    else ()
)  # fmt: skip
