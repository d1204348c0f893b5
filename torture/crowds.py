"""Row 9: readers while a file is written over and over, and several writers of one path; real processes."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from torture.campaign import Campaign, Outcome
from torture.tracing import in_child, live
from torture.ways import OTHERS, POLYAK, SMALL, TENSORFLOW, Way, start

READERS = 2
_OF_A_WRITER = 100_000
_MOST_READS = 100_000


def together(trials: Sequence[Callable[[], object]]) -> list[object]:
    """The answers of trials that run at once, each in a child."""
    pipes = []
    for trial in trials:
        answer, told = os.pipe()
        if os.fork() == 0:
            os.close(answer)
            live(trial, None, told)
        os.close(told)
        pipes.append(answer)
    said = []
    for answer in pipes:
        with os.fdopen(answer, "rb") as stream:
            said.append(stream.read())
    for _ in pipes:
        os.waitpid(-1, 0)
    return [json.loads(text) if text else "ended without an answer" for text in said]


def _writes(way: Way, path: Path, writer: int, count: int) -> Callable[[], object]:
    def trial() -> object:
        save, failed = way.saver(SMALL), []
        for step in range(1, count + 1):
            try:
                save(path, writer * _OF_A_WRITER + step)
            except Exception as error:  # judged by the campaign
                failed.append(f"save {step} of writer {writer}: {type(error).__name__}: {error!s:.200}")
        path.with_name(f"done-{writer}").touch()
        return failed

    return trial


def _reads(way: Way, path: Path, writers: int) -> Callable[[], object]:
    """Reads until all writers are done; how many reads, and what was wrong with some."""

    def trial() -> object:
        failed: list[str] = []
        last: dict[int, int] = {}
        for number in range(_MOST_READS):
            over = all(path.with_name(f"done-{w}").exists() for w in range(1, writers + 1))
            try:
                held = way.load(path)
            except Exception as error:  # judged by the campaign
                failed.append(f"read {number}: {type(error).__name__}: {error!s:.200}")
            else:
                failed += _wrong(held, last, number)
            if over:
                return [number + 1, failed]
        return [_MOST_READS, [*failed, "the writers never ended"]]

    return trial


def _wrong(held: set[int], last: dict[int, int], number: int) -> list[str]:
    """A mixture, or a step of a writer before one that was seen."""
    if len(held) != 1:
        return [f"read {number}: a mixture of {sorted(held)}"]
    writer, step = divmod(min(held), _OF_A_WRITER)
    before, last[writer] = last.get(writer, 0), step
    return [f"read {number}: step {step} of writer {writer} after {before}"] if step < before else []


def crowd(way: Way, writers: int, saves: int) -> tuple[int, list[str]]:
    """So many writers, each with its share of the saves, and some readers; how many reads, and what was wrong."""
    with tempfile.TemporaryDirectory(prefix="polyak-") as name:
        top = Path(name) / "place"
        in_child(lambda: start(way, top, SMALL))
        path, each = top / way.file, max(1, saves // writers)
        trials = [_writes(way, path, w, each) for w in range(1, writers + 1)]
        answers = together(trials + [_reads(way, path, writers) for _ in range(READERS)])
        failed = [text for said in answers[:writers] for text in (said if isinstance(said, list) else [said])]
        reads = [said if isinstance(said, list) else [0, [said]] for said in answers[writers:]]
        last = in_child(lambda: sorted(way.load(path))) if not failed else []
    whole = [f"at the end: {last}"] if not failed and [v % _OF_A_WRITER for v in last] != [each] else []
    return sum(r[0] for r in reads), failed + [text for r in reads for text in r[1]] + whole


def _tried(ways: Sequence[Way], writers: int, saves: int) -> tuple[int, list[str], dict[str, str]]:
    broken: list[str] = []
    counts: dict[str, str] = {}
    total = 0
    for way in ways:
        way.prepare()
        reads, failed = crowd(way, writers, saves)
        total += reads
        broken += [f"{way.name}, {writers} writers: {text}" for text in failed]
        counts[way.name] = f"{len(failed)} of {reads} reads"
    return total, broken, counts


def overwritten(saves: int) -> Outcome:
    reads, broken, _ = _tried((*POLYAK, *TENSORFLOW[:1]) if saves > 20 else POLYAK, 1, saves)
    _, _, theirs = _tried(OTHERS if saves > 20 else OTHERS[1:2], 1, saves)
    return Outcome(reads, tuple(broken), f"{len(broken)} failed or mixed reads during {saves} saves a format", theirs)


def contended(saves: int) -> Outcome:
    ways = (*POLYAK, *TENSORFLOW[:1]) if saves > 20 else POLYAK
    total, broken = 0, []
    for writers in (2, 3, 4) if saves > 20 else (3,):
        reads, wrong, _ = _tried(ways, writers, saves)
        total, broken = total + reads, broken + wrong
    _, _, theirs = _tried(OTHERS if saves > 20 else OTHERS[1:2], 3, saves)
    told = f"{len(broken)} failed or mixed reads and saves, with two to four writers"
    return Outcome(total, tuple(broken), told, theirs)


CAMPAIGNS = (
    Campaign("9a", "Readers of a file that is saved over and over find one whole version, none older", overwritten,
             10, 200),
    Campaign("9b", "Of several writers of one path one is found, whole", contended, 6, 60),
)  # fmt: skip
