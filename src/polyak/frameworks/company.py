"""Processes that train one model together: the first writes its files, and the others wait for what it has written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from polyak.errors import FileError, PolyakWarning, notify
from polyak.manifest import Manifest, digest
from polyak.snapshot import Snapshot
from polyak.weights import Kind

# Seconds to wait for a file that another process writes, and those of them that pass in silence.
PATIENCE = 600.0
SILENCE = 20.0
_FOR_EACH = "a file of its own for each waits for nobody: polyak.save(polyak.snapshot(source), path)"


@dataclass(frozen=True, slots=True)
class Company:
    """A process among those that train a model together.

    Attributes:
        index: its number; 0 writes.
        size: how many there are.
    """

    index: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        return self.index == 0

    def awaited(self, held: Snapshot, path: Path, open: Callable[[Path], Snapshot]) -> Manifest:
        """Wait until a file has the counts and the trained values of this process, bit for bit, and say what is in it.

        No word passes between the processes: where only the first saves, it waits for nobody. Statistics and random
        seeds may differ from process to process; the file has those of the first.

        A warning says what is waited for where that takes long.

        Raises:
            FileError: it has not got them in ten minutes.
        """
        own = {name: digest(held[name]) for name, i in held.items_by_path.items() if i.weight.kind is Kind.TRAINABLE}
        self._wait(path, lambda: _lacking(held, own, path, open))
        found, known = open(path), held.manifest
        marks = {s.name: digest(found[_stored(s.name, held, found)]) for s in known.weights}
        weights = tuple(msgspec.structs.replace(s, digest=marks[s.name]) for s in known.weights)
        return msgspec.structs.replace(known, weights=weights)

    def _wait(self, path: Path, lacking: Callable[[], str]) -> None:
        began, pause, silent = time.monotonic(), 0.02, True
        while lacks := lacking():
            waited = time.monotonic() - began
            if waited > SILENCE and silent:
                silent = False
                notify(self._waits(path, lacks))
            if waited > PATIENCE:
                raise self._has_waited(path, lacks)
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    def _waits(self, path: Path, lacks: str) -> PolyakWarning:
        return PolyakWarning(
            f"file {os.fspath(path)!r}: process {self.index} of {self.size} waits for process 0 to write what it has, "
            f"too, so far for {SILENCE:g} seconds and for {PATIENCE:g} at most: {lacks}; hint: let process 0 save to "
            f"this path, too; {_FOR_EACH}"
        )

    def _has_waited(self, path: Path, lacks: str) -> FileError:
        return FileError(
            f"file {os.fspath(path)!r}: process {self.index} of {self.size} expected process 0 to write what it has, "
            f"too; received none of it in {PATIENCE:g} seconds: {lacks}",
            hint="they have drifted apart, or each sees a disk of its own: there save in process 0 alone; " + _FOR_EACH,
        )


ALONE = Company()


def _lacking(held: Snapshot, own: Mapping[str, str], path: Path, open: Callable[[Path], Snapshot]) -> str:
    """What a file does not have of a snapshot; "" where all is there."""
    try:
        found = open(path)
        if found.manifest.roles != held.manifest.roles:
            return "it holds other sets of weights, or other counts"
        for name, mark in own.items():
            stored = _stored(name, held, found)
            if stored not in found or digest(found[stored]) != mark:
                return f"weight {name!r} has other bits"
    except FileError as error:
        return error.message
    return ""


def _stored(name: str, held: Snapshot, found: Snapshot) -> str:
    """The name under which a file has an array of the snapshot."""
    return name if name in found else held.items_by_path[name].weight.path
