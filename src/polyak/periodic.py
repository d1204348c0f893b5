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
    that one that is there is whole. A run that was taken back to an earlier checkpoint writes over its own files;
    those of later updates are not of the run any more, and get ``.abandoned`` at the end of their names.

    Args:
        averages: one average, several, or several by name; otherwise the rule is the name. Of one model, and started
            at one step.
        every: updates between two snapshots, at least 1. Thirty or more of a run, of two widths, make any width
            between them within one percent.
        folder: made where there is none.

    Attributes:
        paths: the files written so far, by this object.

    Raises:
        ModelError: two averages have one name, or ``every`` is no number of updates.

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
        self._looked = False
        self.paths: list[Path] = []

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
    def left(self) -> int:
        """Updates until the next snapshot is due, at least 1."""
        return self._every - self._last % self._every

    def step(self) -> None:
        """Write the averages if a multiple of ``every`` updates has been reached since the last call."""
        before, self._last = self._last, self.count
        if not self._looked:
            self._set_aside_abandoned()
        if self._last // self._every > before // self._every:
            self.take()

    def take(self) -> None:
        """Write the averages now, unless they have not moved since they were written last.

        Raises:
            FileError: the folder holds files of another run.
        """
        if not self._looked:
            self._set_aside_abandoned()
        count = self.count
        paths = {name: self._folder / f"{name}-{count:09}{_FORMAT}" for name in self._averages}
        if count == 0 or set(paths.values()) <= set(self.paths):
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, path in paths.items():
            save(self._averages[name], path)
            self.paths.append(path)

    def _set_aside_abandoned(self) -> None:
        """Files from before an interruption: later ones than the averages are now are of no use to anybody."""
        count, found = self.count, self._found()
        later = [path for path, n in found.items() if n > count]
        if later and len(later) == len(found):
            raise FileError(
                f"folder {str(self._folder)!r}: expected no snapshots of another run, received {later[0].name!r} "
                f"while the averages have seen {count:,} updates",
                hint="give each run a folder of its own",
            )
        for path in later:
            path.rename(path.with_name(path.name + _ABANDONED))
        self._looked = True

    def _found(self) -> dict[Path, int]:
        names = "|".join(map(re.escape, self._averages))
        pattern = re.compile(rf"(?:{names})-(\d+){re.escape(_FORMAT)}")
        there = sorted(self._folder.iterdir()) if self._folder.is_dir() else []
        return {path: int(match[1]) for path in there if (match := pattern.fullmatch(path.name))}


def _named(averages: Average | Iterable[Average] | Mapping[str, Average]) -> dict[str, Average]:
    if isinstance(averages, Mapping):
        return {_plain(name): average for name, average in averages.items()}
    listed = [averages] if isinstance(averages, Average) else list(averages)
    named = {_plain(str(average.rule)): average for average in listed}
    if not named or len(named) < len(listed):
        raise ModelError(
            f"expected averages of different rules, received {', '.join(str(a.rule) for a in listed) or 'none'}",
            hint='name them: {"narrow": ..., "wide": ...}',
        )
    return named


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
