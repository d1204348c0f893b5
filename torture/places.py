"""Rows 24 and 25: nothing outside the given directory is touched, and what a file had beside its contents stays.

Every trial makes a directory ``inside`` with files that try to lead out of it, and one ``outside`` whose files nobody
may read or write. What is opened is seen by an audit hook.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import polyak
from polyak.errors import PolyakError
from polyak.snapshot import Snapshot
from torture.campaign import Campaign, Outcome
from torture.tracing import in_child
from torture.ways import OTHERS, POLYAK, SMALL, Way

_NOBODY = 65534
_EVIL = ("../outside/secret.safetensors", "../outside/secret", "/etc/passwd", "a/../../outside/secret.safetensors")
_ABSOLUTE = f"{tempfile.gettempdir()}/planted"
_NAMES = ("../../outside/planted", _ABSOLUTE, "..", "a/../../../outside/planted", "C:\\planted", "~/planted")


@contextmanager
def _two() -> Iterator[tuple[Path, Path]]:
    """A directory to work in, and one beside it."""
    with tempfile.TemporaryDirectory(prefix="polyak-") as name:
        inside, outside = Path(name).resolve() / "inside", Path(name).resolve() / "outside"
        inside.mkdir()
        outside.mkdir()
        polyak.save(Snapshot.from_arrays({"secret": np.ones(3, np.float32)}), outside / "secret.safetensors")
        (outside / "secret").write_text("secret")
        yield inside, outside


def _index(inside: Path, target: str) -> Path:
    path = inside / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"secret": target}}))
    return path


def _state(inside: Path, target: str) -> Path:
    (inside / "checkpoint").write_text(f'model_checkpoint_path: "{target}"\n')
    return inside


def _zip(inside: Path, target: str) -> Path:
    path = inside / "m.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{target}/data.pkl", b"\x80\x02}q\x00.")
    return path


def _tar(inside: Path, target: str) -> Path:
    path = inside / "m.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("storages")
        info.type, info.linkname = tarfile.SYMTYPE, target
        archive.addfile(info)
    return path


def _linked_shard(inside: Path, target: str) -> Path:
    """A checkpoint of Orbax' kind whose files are links out of it."""
    (inside / "m.orbax").mkdir()
    (inside / "m.orbax" / "_METADATA").symlink_to(inside / target)
    (inside / "m.orbax" / "manifest.ocdbt").symlink_to(inside / target)
    return inside / "m.orbax"


_LURES: tuple[Callable[[Path, str], Path], ...] = (_index, _state, _zip, _tar, _linked_shard)


def lured(trials: int) -> Outcome:
    """Files that name others elsewhere, opened and read whole."""
    broken: list[str] = []
    cases = [(lure, target) for lure in _LURES for target in _EVIL][:trials]
    for lure, target in cases:
        with _two() as (inside, outside):
            path = lure(inside, target)
            touched = in_child(lambda path=path, outside=outside: _opened_below(path, outside))
            broken += [f"{lure.__name__} to {target!r} opened {name}" for name in touched]
    return Outcome(len(cases), tuple(broken), f"{len(broken)} files opened elsewhere")


def _opened_below(path: Path, forbidden: Path) -> list[str]:
    """What reading a path opens that it must not; runs in a child, since a hook stays for ever."""
    touched: list[str] = []

    def hook(event: str, given: tuple[object, ...]) -> None:
        if event == "open" and isinstance(given[0], (str, bytes, os.PathLike)):
            real = os.path.realpath(os.fsdecode(given[0]))
            if real.startswith((str(forbidden), "/etc/passwd")):
                touched.append(real)

    sys.addaudithook(hook)
    try:
        for value in polyak.open(path).values():
            assert value is not None
    except PolyakError:
        return touched
    return touched


def named(trials: int) -> Outcome:
    """Weights whose names are paths that lead out, saved in every format."""
    broken: list[str] = []
    cases = [(way, name) for way in POLYAK for name in _NAMES][:trials]
    for way, name in cases:
        way.prepare()
        with _two() as (inside, outside):
            before = _everything(outside.parent)
            in_child(lambda way=way, name=name, inside=inside: _saved_as(way, name, inside))
            new = {p for p in _everything(outside.parent) - before if not p.startswith(f"{inside}{os.sep}")}
            broken += [f"{way.name}, weight {name!r}: made {path}" for path in sorted(new)]
            broken += [f"{way.name}: made {_ABSOLUTE}"] if Path(_ABSOLUTE).exists() else []
    return Outcome(len(cases), tuple(broken), f"{len(broken)} files made elsewhere")


def _saved_as(way: Way, name: str, inside: Path) -> str:
    try:
        polyak.save(Snapshot.from_arrays({name: np.ones(3, np.float32)}), inside / way.file)
        return str(list(polyak.open(inside / way.file)))
    except PolyakError as error:
        return str(error)


def _everything(top: Path) -> set[str]:
    return {str(p) for p in top.rglob("*")}


def linked(trials: int) -> Outcome:
    """A link is written through, whatever happens to it meanwhile: nothing is put in its place."""
    ways = [w for w in POLYAK if w.name != "Orbax"]
    broken: list[str] = []
    done = 0
    for way in ways:
        way.prepare()
        for number in range(max(1, trials // len(ways))):
            with _two() as (inside, outside):
                done += 1
                broken += [f"{way.name}: {text}" for text in _through(way, inside, outside, race=bool(number))]
    theirs = {w.name: _linked_by(w) for w in OTHERS[:1]}
    return Outcome(done, tuple(broken), f"{len(broken)} links replaced or files misplaced", theirs)


def _through(way: Way, inside: Path, outside: Path, *, race: bool) -> list[str]:
    """Save through a link, with or without another thread that points it here and there."""
    way.saver(SMALL)(inside / way.file, 1)
    link = outside / way.file
    link.symlink_to(inside / way.file)
    over = threading.Event()

    def swing() -> None:
        other = outside / "elsewhere"
        while not over.is_set():
            other.symlink_to(inside / way.file)
            other.replace(link)

    thread = threading.Thread(target=swing)
    if race:
        thread.start()
    try:
        way.saver(SMALL)(link, 2)
    finally:
        over.set()
        if race:
            thread.join()
    if not link.is_symlink():
        return ["the link was replaced"]
    held = way.load(inside / way.file)
    return [] if held == {2} else [f"{held} behind the link"]


def _linked_by(way: Way) -> str:
    way.prepare()
    with _two() as (inside, outside):
        way.saver(SMALL)(inside / way.file, 1)
        (outside / way.file).symlink_to(inside / way.file)
        way.saver(SMALL)(outside / way.file, 2)
        return "written through" if (outside / way.file).is_symlink() else "the link is replaced"


# --- row 25 -----------------------------------------------------------------------------------------------------------


def kept(trials: int) -> Outcome:
    """Mode, owner, group and attributes of the old file, before and after."""
    broken: list[str] = []
    modes = (0o640, 0o600, 0o664, 0o444 | stat.S_IWUSR, 0o2644, 0o777)[: max(1, trials)]
    for way in POLYAK:
        way.prepare()
        for mode in modes:
            with _two() as (inside, _):
                broken += [f"{way.name} with {mode:o}: {text}" for text in _changed(way, inside, mode)]
    theirs = {w.name: "; ".join(_changed_by(w)) or "kept" for w in OTHERS}
    told = "all kept" if not broken else f"{len(broken)} changed"
    return Outcome(len(POLYAK) * len(modes), tuple(broken), told, theirs)


def _changed(way: Way, inside: Path, mode: int) -> list[str]:
    path = inside / way.file
    in_child(lambda: way.saver(SMALL)(path, 1))
    if os.geteuid() == 0:
        os.chown(path, 12_345, 23_456)
    path.chmod(mode | 0o100 * path.is_dir())
    with_attributes = _attributed(path)
    before = path.stat()
    in_child(lambda: way.saver(SMALL)(path, 2))
    after = path.stat()
    said = [
        f"{what} {getattr(before, what):o} became {getattr(after, what):o}"
        for what in ("st_mode", "st_uid", "st_gid")
        if getattr(before, what) != getattr(after, what)
    ]
    lost = with_attributes and "user.polyak.test" not in os.listxattr(path)
    return said + ["the attribute is gone"] * lost


def _attributed(path: Path) -> bool:
    try:
        os.setxattr(path, "user.polyak.test", b"kept")
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM):
            return False
        raise
    return True


def _changed_by(way: Way) -> list[str]:
    way.prepare()
    with _two() as (inside, _):
        return _changed(way, inside, 0o640)


def refused(trials: int) -> Outcome:
    """Places that cannot be written: an error before the first byte, and nothing changed."""
    broken: list[str] = []
    done = 0
    for way in POLYAK:
        way.prepare()
        for place in (_read_only_directory, _read_only_file, _of_another, _a_pipe)[: max(1, trials)]:
            with _two() as (inside, _):
                in_child(lambda way=way, inside=inside: way.saver(SMALL)(inside / way.file, 1))
                if not place(way, inside):
                    continue
                done += 1
                before = _listing(inside)
                said = in_child(lambda way=way, inside=inside: _as_nobody(way, inside / way.file))
                if not said or _listing(inside) != before:
                    broken.append(f"{way.name}, {place.__name__}: {said or 'no error'}, {_listing(inside)}")
    return Outcome(done, tuple(broken), f"{len(broken)} written or changed")


def _read_only_directory(way: Way, inside: Path) -> bool:
    inside.chmod(0o555)
    return os.geteuid() == 0 or not os.access(inside, os.W_OK)


def _read_only_file(way: Way, inside: Path) -> bool:
    inside.chmod(0o777)
    (inside / way.file).chmod(0o555 if (inside / way.file).is_dir() else 0o444)
    return True


def _of_another(way: Way, inside: Path) -> bool:
    """Root's, writable for all, in a directory that is writable for all: its owner could not be kept."""
    inside.chmod(0o777)
    (inside / way.file).chmod(0o777)
    return os.geteuid() == 0


def _a_pipe(way: Way, inside: Path) -> bool:
    path = inside / way.file
    if path.is_dir():
        return False
    path.unlink()
    os.mkfifo(path, 0o666)
    path.chmod(0o666)
    inside.chmod(0o777)
    return True


def _as_nobody(way: Way, path: Path) -> str:
    if os.geteuid() == 0:
        path.parent.parent.chmod(0o755)
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    try:
        way.saver(SMALL)(path, 2)
    except PolyakError as error:
        return str(error)
    return ""


def _listing(inside: Path) -> list[tuple[str, int, int, int]]:
    """Names, modes, sizes and times of all that is there."""
    found = sorted(inside.rglob("*"))
    return [(str(p), p.lstat().st_mode, p.lstat().st_size, p.lstat().st_mtime_ns) for p in found]


CAMPAIGNS = (
    Campaign("24a", "No name in a file leads a reader out of the given directory", lured, 20, 20),
    Campaign("24b", "No name of a weight leads a writer out of the given directory", named, 36, 36),
    Campaign("24c", "A link is written through and stays, also while it is swung", linked, 10, 200),
    Campaign("25a", "Mode, owner, group and attributes of a file outlive its contents", kept, 1, 6),
    Campaign("25b", "A place that cannot be written is refused and stays as it is", refused, 4, 4),
)
