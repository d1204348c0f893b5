"""Averages kept now and then during a run, from which ``polyak.synthesize`` makes others after it."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from polyak.errors import FileError, ModelError
from polyak.frameworks import Average
from polyak.verbs import save

_FORMAT = ".safetensors"
_ABANDONED = ".abandoned"


class Snapshots:
    """Writes averages into a folder after every so many updates: call ``step()`` after each update.

    The files are called ``<name>-<updates>.safetensors``; each is written beside its place and then moved there, so
    that one that is there is whole. When a run is taken back to an earlier checkpoint, in a new process or in this
    one, the files of later updates are not of the run any more, and get ``.abandoned`` at the end of their names. A
    write that failed is made up for at the next step.

    Args:
        averages: one average, several, or several by name; otherwise the rule is the name. Of one model, and started
            at one step.
        every: updates between two snapshots, at least 1. Thirty or more of a run, of two widths, make any width
            between them within one percent.
        folder: made where there is none.

    Attributes:
        paths: the files written so far, by this object, but for those that were abandoned.

    Raises:
        ModelError: there is no average, two have one name, or ``every`` is no number of updates.
        FileError: the folder holds files of another run.

    Example:
        >>> import tempfile
        >>> import tensorflow as tf
        >>> import polyak
        >>> module = tf.Module(); module.w = tf.Variable([1.0])
        >>> averages = {"narrow": polyak.PowerEMA(module, 0.05), "wide": polyak.PowerEMA(module, 0.10)}
        >>> snapshots = Snapshots(averages, every=2, folder=tempfile.mkdtemp())
        >>> for step in range(4):
        ...     for average in averages.values():
        ...         average.update()
        ...     snapshots.step()
        >>> [path.name for path in snapshots.paths]
        ['narrow-000000002.safetensors', 'wide-000000002.safetensors', ...]
    """

    def __init__(
        self, averages: Average | Iterable[Average] | Mapping[str, Average], every: int, folder: str | os.PathLike[str]
    ) -> None:
        self._averages = _named(averages)
        self._every = _positive(every)
        self._folder = Path(folder)
        self._last = self.count
        self._seen: int | None = None
        self._begun = self._beginnings
        self.paths: list[Path] = []
        if self._last:  # before the first update nobody can tell a new run from one that is yet to be restored
            self.look()

    @property
    def count(self) -> int:
        """The updates that the averages have seen. Raises ModelError where they differ."""
        counts = {name: average.count for name, average in self._averages.items()}
        if len(set(counts.values())) > 1:
            raise ModelError(
                f"expected averages after as many updates each, received {counts}: their counts are the run's clock",
                hint="start and update all of them at the same steps",
            )
        return next(iter(counts.values()))

    @property
    def _beginnings(self) -> int:
        return sum(average.beginnings for average in self._averages.values())

    @property
    def left(self) -> int:
        """Updates until the next snapshot is due, at least 1."""
        count = self._last if self._seen is None else self._seen
        return 1 if self._is_due(count) else self._every - count % self._every

    def step(self) -> None:
        """Write the averages if a multiple of ``every`` updates has been reached since the last call."""
        count = self._counted(1)
        if self._is_due(count):
            self.take()
        self._last = count  # not before: a write that failed is still due

    def take(self) -> None:
        """Write the averages now, unless they have not moved since they were written last.

        Raises:
            FileError: the folder holds files of another run.
        """
        count = self._counted(1)
        paths = {name: self._folder / f"{name}-{count:09}{_FORMAT}" for name in self._averages}
        left = {name: path for name, path in paths.items() if path not in self.paths}
        if count == 0 or not left:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, path in left.items():
            save(self._averages[name], path)
            self.paths.append(path)

    def look(self) -> None:
        """Notice whether the averages were taken back; no update has been made since.

        ``step`` and ``take`` notice it, too. Who calls ``step`` less often than after each update calls this where the
        averages may have been taken back.
        """
        self._counted(0)

    def _is_due(self, count: int) -> bool:
        return count // self._every > self._last // self._every

    def _counted(self, since: int) -> int:
        """The count. Where it fell, the run is after ``since`` updates at most from where it was taken back to.

        It is also back where it has come as far again, or as far as one that another state was written into.
        """
        count, seen, begun = self.count, self._seen, self._beginnings
        back = seen is not None and (count < seen or (count == seen and begun != self._begun))
        if seen is None or back:
            self._set_aside(count + 1 - since)
        if back:
            self._last = count - since
        self._seen, self._begun = count, begun
        return count

    def _set_aside(self, first: int) -> None:
        """Files of so many updates and of more are of no use to anybody, once the averages go on from before them."""
        found = self._found()
        if self._seen is None:
            self._refuse_other_run(found)
        for path, count in found.items():
            if count >= first:
                path.replace(path.with_name(path.name + _ABANDONED))
        self.paths = [path for path in self.paths if self._updates(path) < first]

    def _refuse_other_run(self, found: Mapping[Path, int]) -> None:
        if found and min(found.values()) > self.count:
            raise FileError(
                f"folder {str(self._folder)!r}: expected no snapshots of another run, received "
                f"{next(iter(found)).name!r} while the averages have seen {self.count:,} updates",
                hint="give each run a folder of its own",
            )

    def _found(self) -> dict[Path, int]:
        there = sorted(self._folder.iterdir()) if self._folder.is_dir() else []
        return {path: count for path in there if (count := self._updates(path)) >= 0}

    def _updates(self, path: Path) -> int:
        """The updates in the name of a file of these averages; -1 of any other file."""
        names = "|".join(map(re.escape, self._averages))
        match = re.fullmatch(rf"(?:{names})-(\d+){re.escape(_FORMAT)}", path.name)
        return -1 if match is None else int(match[1])


def _named(averages: Average | Iterable[Average] | Mapping[str, Average]) -> dict[str, Average]:
    if isinstance(averages, Mapping):
        return _named_as_asked(averages)
    listed = [averages] if isinstance(averages, Average) else list(averages)
    named = {_plain(str(average.rule)): average for average in listed}
    if not named or len(named) < len(listed):
        raise ModelError(
            f"expected averages of different rules, received {', '.join(str(a.rule) for a in listed) or 'none'}",
            hint='name them: {"narrow": ..., "wide": ...}',
        )
    return named


def _named_as_asked(averages: Mapping[str, Average]) -> dict[str, Average]:
    if not averages:
        raise ModelError("expected one average or several, received none", hint='give {"narrow": ..., "wide": ...}')
    asked: dict[str, str] = {}
    for name in averages:
        other = asked.setdefault(_plain(name), name)
        if other != name:
            raise ModelError(
                f"expected names of different files, received {other!r} and {name!r}, which become {_plain(name)!r}",
                hint="files are called by letters, digits, dots and underscores: let the names differ in these",
            )
    return {file: averages[name] for file, name in asked.items()}


def _plain(name: str) -> str:
    """A name for a file: what may mean something to a file system becomes a dash."""
    return re.sub(r"[^\w.]+", "-", name).strip("-.") or "average"


def _positive(every: int) -> int:
    try:
        number = 0 if isinstance(every, bool) else operator.index(every)
    except TypeError:
        number = 0
    if number < 1:
        raise ModelError(f"every={every!r}: expected a number of updates, at least 1")
    return number
