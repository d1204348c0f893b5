"""Which Orbax checkpoint a path leads to: a tree of arrays, the items of one step, or the newest of several steps.

A directory that its writer did not finish is refused: Orbax gives it its name only at the end. So is one with links
that lead out of it, because what they lead to is not part of the checkpoint.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from polyak.errors import DamagedFile, FileError, UnknownFormat, listed
from polyak.files.failures import failures_named
from polyak.files.partial import is_hidden

METADATA = "_METADATA"
STEP_METADATA = "_CHECKPOINT_METADATA"
MANIFEST = "manifest.ocdbt"
ARRAY_HEADERS = (".zarray", "zarr.json")
_TREE_MARKS = (METADATA, MANIFEST, "_sharding")
_UNFINISHED = ".orbax-checkpoint-tmp"
_STEP = re.compile(r"(?:.*_)?(\d{1,18})")
_MOST_ENTRIES = 1_000_000
_DEEPEST = 64
_SPARSE, _FREE = 64, 1 << 32


@dataclass(frozen=True, slots=True)
class Found:
    """The trees that a path leads to.

    Attributes:
        trees: directories of arrays and strings by the name of their item; a single tree has the name "".
        origin: what errors call the checkpoint; it names the step where the path held several.
        size: bytes of its files.
        others: names of items that are no trees of arrays, such as JSON.
    """

    trees: dict[str, Path]
    origin: str
    size: int
    others: tuple[str, ...] = ()


def is_checkpoint(path: Path) -> bool:
    """Whether a directory is a tree of arrays, a step or a directory of steps. Raises FileError."""
    if not path.is_dir():
        return False
    with failures_named(path, "read"):
        return _is_tree(path) or _is_step(path) or bool(_steps(path)) or _is_unfinished(path)


def find(path: Path) -> Found:
    """The trees of arrays that a path leads to; of several steps those of the newest.

    Raises:
        FileError: the checkpoint is not finished, or a link leads out of it.
        DamagedFile: it holds no array, or no end of directories.
    """
    origin = f"checkpoint {str(path)!r}"
    _refuse_unfinished(path, origin)
    with failures_named(path, "read"):
        chosen, steps = path, {} if _is_tree(path) or (path / STEP_METADATA).is_file() else _steps(path)
        if steps:
            chosen, origin = _newest(path, steps, origin)
        trees = {"": chosen} if _is_tree(chosen) else _items(chosen, origin)
        others = () if "" in trees else tuple(p.name for p in _below(chosen) if p.name not in trees)
        size = _scanned(chosen, origin)
    if not trees:
        raise DamagedFile(f"{origin}: expected a tree of arrays, received a directory without one")
    return Found(trees, origin, size, others)


def _is_tree(path: Path) -> bool:
    return any((path / mark).is_file() for mark in _TREE_MARKS) or _has_arrays(path)


def _has_arrays(path: Path) -> bool:
    """Whether directories of Zarr arrays lie in it, and a mark of Orbax beside them or nothing else."""
    with os.scandir(path) as entries:
        below = (entry for entry in entries if _is_directory(entry))
        return any(any(Path(entry.path, h).is_file() for h in ARRAY_HEADERS) for entry in below)


def _is_step(path: Path) -> bool:
    """Whether it holds items: it says so, or a tree lies below that is no step itself."""
    return (path / STEP_METADATA).is_file() or any(not _STEP.fullmatch(p.name) for p in _below(path) if _is_item(p))


def _below(path: Path) -> list[Path]:
    """Directories that may be steps or items; what polyak replaces, or has not finished, is neither."""
    with os.scandir(path) as entries:
        below = [Path(entry.path) for entry in entries if not is_hidden(entry.name) and _is_directory(entry)]
    return sorted(below, key=lambda p: p.name)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    """A link in a circle, or to where this process may not look, is none; what lies beside it may be a checkpoint."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_item(path: Path) -> bool:
    return any((path / mark).is_file() for mark in _TREE_MARKS) or _is_unfinished(path)


def _items(path: Path, origin: str) -> dict[str, Path]:
    """The trees directly below a step, by name."""
    for item in _below(path):
        _refuse_unfinished(item, origin)
    items = {p.name: p for p in _below(path) if _is_item(p)}
    whole = [p for p in items.values() if (p / STEP_METADATA).is_file()]
    if len(whole) > 1 and not (path / STEP_METADATA).is_file():
        raise UnknownFormat(
            f"{origin}: expected one checkpoint, received {len(whole)} beside each other",
            hint=f"open the one that is meant: {listed([repr(str(p)) for p in whole], 3)}",
        )
    return items


def _steps(path: Path) -> dict[int, list[Path]]:
    """The finished steps in a directory, by number; two of one number are two of them."""
    numbered = ((_STEP.fullmatch(p.name), p) for p in _below(path))
    found = ((int(m[1]), p) for m, p in numbered if m and (_is_tree(p) or _is_step(p)) and not _is_unfinished(p))
    steps: dict[int, list[Path]] = {}
    for number, step in found:
        steps.setdefault(number, []).append(step)
    return steps


def _newest(path: Path, steps: dict[int, list[Path]], origin: str) -> tuple[Path, str]:
    """The newest step, and what errors call it."""
    chosen, *others = steps[max(steps)]
    if others:
        raise UnknownFormat(
            f"{origin}: expected one step {max(steps)}, received {chosen.name!r} and {others[0].name!r}",
            hint=f"open the one that is meant: {str(chosen)!r} or {str(others[0])!r}",
        )
    if not os.path.realpath(chosen).startswith(os.path.realpath(path) + os.sep):
        raise FileError(f"{origin}: expected steps of its own, received {chosen.name!r}, a link that leads out")
    told = ", ".join(str(n) for n in sorted(steps)[-3:])
    return chosen, f"{origin}, step {max(steps)}, the newest of {len(steps)}" + (f" ({told})" if len(steps) > 1 else "")


def _is_unfinished(path: Path) -> bool:
    """Whether the name, or parts of processes that nobody has joined, say that the writer did not finish."""
    parts = any(p.is_dir() for p in path.glob("ocdbt.process_*"))
    return _UNFINISHED in path.name or (parts and not (path / MANIFEST).is_file())


def _refuse_unfinished(path: Path, origin: str) -> None:
    if _is_unfinished(path):
        raise FileError(
            f"{origin}: expected a finished checkpoint, received {path.name!r}, which its writer never finished",
            hint="take an older step; Orbax renames a checkpoint when it is complete",
        )


def _scanned(top: Path, origin: str) -> int:
    """The bytes of all files below, after a look at every name."""
    size = 0
    for number, entry in enumerate(_entries(top, 0, origin)):
        if number >= _MOST_ENTRIES:
            raise DamagedFile(f"{origin}: expected at most {_MOST_ENTRIES:,} files, received more")
        if entry.is_symlink():
            _refuse_leading_out(Path(entry.path), top, origin)
        found = entry.stat()
        if stat.S_ISREG(found.st_mode):
            if sys.platform != "win32" and found.st_size > _SPARSE * found.st_blocks * 512 + _FREE:
                raise DamagedFile(f"{origin}: {entry.name!r:.120}: {found.st_size:,} bytes, nearly all of them a hole")
            size += found.st_size
        elif not stat.S_ISDIR(found.st_mode):
            raise DamagedFile(f"{origin}: expected files, received {entry.name!r:.120}, a device or a pipe")
    return size


def _entries(directory: Path, depth: int, origin: str) -> Iterator[os.DirEntry[str]]:
    if depth > _DEEPEST:
        raise DamagedFile(f"{origin}: expected at most {_DEEPEST} levels of directories, received more")
    with os.scandir(directory) as listed:
        for entry in listed:
            if depth == 0 and is_hidden(entry.name) and not _is_tree(directory):
                continue  # no part of the checkpoint; it may go meanwhile
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _entries(Path(entry.path), depth + 1, origin)


def _refuse_leading_out(link: Path, top: Path, origin: str) -> None:
    target = Path(os.path.realpath(link))
    if not target.exists() or not target.is_relative_to(os.path.realpath(top)) or target.is_dir():
        raise FileError(
            f"{origin}: expected files of its own, received {link.name!r:.120}, a link to {str(target)!r:.120}",
            hint="copy the checkpoint with its links followed, as `cp -rL` does, if you trust what they lead to",
        )
