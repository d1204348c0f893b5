"""Row 3: power cuts. The calls of a save are recorded; what a disk may hold after a cut is built from them and loaded.

What a file's ``fsync`` came after is on the disk; what none came after may be missing, cut off or zeroed. A new name,
a rename or a removal is on the disk once its directory was synchronised; before, it may be or not, whatever came later.
Source: Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014), whose abstract persistence model this is.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torture.campaign import Campaign, Outcome
from torture.kills import NEW, OLD, _copied, told, tried
from torture.tracing import AVAILABLE, PASS, Call, Verdict, in_child, watched
from torture.ways import OTHERS, OTHERS_TENSORFLOW, POLYAK, SMALL, TENSORFLOW, Way, found, start

_SECTOR = 512
_SYNCS = ("fsync", "fdatasync")


@dataclass(frozen=True)
class Step:
    """One thing that a save did.

    Attributes:
        kind: "data" and "size" of a file; "name" and "gone" in a directory; "move" and "swap" between two; "sync".
        node: the file or directory that it is about, by a number; of "name" and "move" what gets the name.
        place: the directory and the name in it, of all but "data", "size" and "sync".
        source: of "move" and "swap" the other directory and name.
        offset, data: of "data"; the length of "size" is the offset.
    """

    kind: str
    node: int = 0
    place: tuple[int, str] = (0, "")
    source: tuple[int, str] = (0, "")
    offset: int = 0
    data: bytes = b""


@dataclass
class Disk:
    """Files and directories by number; directory 0 is the one that is watched."""

    files: dict[int, bytearray] = field(default_factory=dict)
    names: dict[int, dict[str, int]] = field(default_factory=lambda: {0: {}})

    @classmethod
    def read(cls, top: Path) -> Disk:
        disk = cls()
        disk._add(0, top)
        return disk

    def _add(self, number: int, folder: Path) -> None:
        self.names[number] = {}
        for path in sorted(folder.iterdir()):
            new = self.number()
            self.names[number][path.name] = new
            if path.is_dir():
                self._add(new, path)
            else:
                self.files[new] = bytearray(path.read_bytes())

    def number(self) -> int:
        return max({*self.files, *self.names}) + 1

    def find(self, parts: tuple[str, ...]) -> int | None:
        node: int | None = 0
        for part in parts:
            node = self.names.get(node, {}).get(part) if node is not None else None
        return node

    def copy(self) -> Disk:
        return Disk({n: bytearray(f) for n, f in self.files.items()}, {n: dict(d) for n, d in self.names.items()})

    def apply(self, step: Step) -> None:
        """Let a step happen."""
        directory, name = step.place
        other, old = step.source
        if step.kind == "data":
            held = self.files.setdefault(step.node, bytearray())
            held.extend(bytes(max(0, step.offset + len(step.data) - len(held))))
            held[step.offset : step.offset + len(step.data)] = step.data
        elif step.kind == "size":
            held = self.files.setdefault(step.node, bytearray())
            del held[step.offset :]
            held.extend(bytes(step.offset - len(held)))
        elif step.kind == "name":
            self.names.setdefault(directory, {})[name] = step.node
        elif step.kind == "gone":
            self.names.get(directory, {}).pop(name, None)
        elif step.kind == "move":
            self.names.setdefault(directory, {})[name] = step.node
            if self.names.get(other, {}).get(old) == step.node:
                del self.names[other][old]
        elif step.kind == "swap":
            here, there = self.names.get(directory, {}), self.names.get(other, {})
            if name in here and old in there:
                here[name], there[old] = there[old], here[name]

    def lay_out(self, top: Path) -> None:
        shutil.rmtree(top, ignore_errors=True)
        self._lay_out(0, top)

    def _lay_out(self, number: int, path: Path) -> None:
        path.mkdir()
        for name, node in self.names[number].items():
            if node in self.names:
                self._lay_out(node, path / name)
            else:
                (path / name).write_bytes(self.files.get(node, b""))

    def key(self) -> int:
        """Equal for equal trees."""
        return hash(self._key(0))

    def _key(self, number: int) -> object:
        return frozenset(
            (name, self._key(node) if node in self.names else bytes(self.files.get(node, b"")))
            for name, node in self.names[number].items()
        )


class Recorder:
    """Turns the calls of a child into steps; it keeps a disk that goes along, to know what a name means."""

    def __init__(self, top: Path) -> None:
        self._top = os.path.realpath(top)
        self._now = Disk.read(top)
        self._nodes = {self._identity(top): 0}
        for folder, below, files in os.walk(top):
            for name in (*below, *files):
                path = Path(folder, name)
                self._nodes[self._identity(path)] = self._now.find(self._parts(str(path)))
        self.steps: list[Step] = []

    def __call__(self, call: Call) -> Verdict:
        self._handlers().get(call.name, self._unknown)(call)
        return PASS

    def _handlers(self) -> dict[str, object]:
        return {
            **dict.fromkeys(("open", "openat", "creat"), self._open),
            **dict.fromkeys(("write", "pwrite64", "writev", "pwritev", "pwritev2"), self._write),
            **dict.fromkeys(("rename", "renameat", "renameat2", "link", "linkat"), self._move),
            **dict.fromkeys(("unlink", "unlinkat", "rmdir"), self._gone),
            **dict.fromkeys(("mkdir", "mkdirat"), self._mkdir),
            **dict.fromkeys(_SYNCS, self._sync),
            "ftruncate": self._size,
            **dict.fromkeys(
                ("chmod", "fchmod", "fchown", "setxattr", "fsetxattr", "sync_file_range"), lambda call: None
            ),
        }

    def _unknown(self, call: Call) -> None:
        raise NotImplementedError(f"{call.name} in a power cut")

    def _did(self, step: Step) -> None:
        self.steps.append(step)
        self._now.apply(step)

    def _parts(self, path: str) -> tuple[str, ...]:
        return Path(path).relative_to(self._top).parts

    def _place(self, path: str) -> tuple[int, str]:
        *folder, name = self._parts(path)
        node = self._now.find(tuple(folder))
        assert node is not None, path
        return node, name

    @staticmethod
    def _identity(path: Path) -> tuple[int, int]:
        status = path.stat()
        return status.st_dev, status.st_ino

    def _node(self, call: Call, handle: int) -> int:
        """The number of what is open: by its name now, which calls that were seen gave it, or by what it was before.

        The system gives the number of a file that is gone to the next one, so the name comes first.
        """
        link = Path(f"/proc/{call.process}/fd/{handle}")
        path, identity = str(link.readlink()), self._identity(link)
        found = self._now.find(self._parts(path)) if _is_below(path, self._top) else None
        if found is None:
            found = self._nodes.get(identity)
        assert found is not None, path
        self._nodes[identity] = found
        return found

    def _open(self, call: Call) -> None:
        flags = 0o1101 if call.name == "creat" else call.arguments[2 if call.name == "openat" else 1]
        place = self._place(call.paths[0])
        held = self._now.names[place[0]].get(place[1])
        if held is None and flags & os.O_CREAT:
            node = self._now.number()
            self._now.files[node] = bytearray()
            self._did(Step("name", node, place))
        elif held in self._now.files and flags & os.O_TRUNC:
            self._did(Step("size", held))

    def _write(self, call: Call) -> None:
        handle, address, count = call.arguments[:3]
        node = self._node(call, handle)
        if call.name in ("write", "pwrite64"):
            data = call.memory(address, count)
        else:
            data = b"".join(self._vector(call, address, count))
        offset = call.arguments[3] if call.name.startswith("p") else self._position(call, handle, node)
        self._did(Step("data", node, offset=offset, data=data))

    @staticmethod
    def _vector(call: Call, address: int, count: int) -> Iterator[bytes]:
        table = call.memory(address, 16 * count)
        for at in range(0, len(table), 16):
            begin, size = (int.from_bytes(table[at + n : at + n + 8], "little") for n in (0, 8))
            yield call.memory(begin, size) if size else b""

    def _position(self, call: Call, handle: int, node: int) -> int:
        said = Path(f"/proc/{call.process}/fdinfo/{handle}").read_text().split()
        held = dict(zip(said[::2], said[1::2], strict=False))
        appends = int(held["flags:"], 8) & os.O_APPEND
        return len(self._now.files[node]) if appends else int(held["pos:"])

    def _move(self, call: Call) -> None:
        source, place = self._place(call.paths[0]), self._place(call.paths[1])
        node = self._now.names[source[0]].get(source[1])
        if node is None or (call.name.startswith("link") and place[1] in self._now.names[place[0]]):
            return  # it fails
        if call.name == "renameat2" and call.arguments[4] == 2:
            self._did(Step("swap", node, place, source))
        elif call.name.startswith("link"):
            self._did(Step("name", node, place))
        else:
            self._did(Step("move", node, place, source))

    def _gone(self, call: Call) -> None:
        place = self._place(call.paths[0])
        if place[1] in self._now.names[place[0]]:
            self._did(Step("gone", self._now.names[place[0]][place[1]], place))

    def _mkdir(self, call: Call) -> None:
        if not self._parts(call.paths[0]):
            return  # the watched directory, which is there
        place = self._place(call.paths[0])
        if place[1] not in self._now.names[place[0]]:
            node = self._now.number()
            self._now.names[node] = {}
            self._did(Step("name", node, place))

    def _sync(self, call: Call) -> None:
        self._did(Step("sync", self._node(call, call.arguments[0])))

    def _size(self, call: Call) -> None:
        self._did(Step("size", self._node(call, call.arguments[0]), offset=call.arguments[1]))


def _is_below(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top}{os.sep}")


def states(before: Disk, steps: list[Step], most: int) -> Iterator[tuple[bool, Disk]]:
    """Disks that a cut may leave, each once, with whether the save had returned: extremes first, then random ones."""
    chance, seen = random.Random(0), set()
    cuts = list(range(len(steps) + 1))
    for attempt in range(2 * most):
        cut = cuts[attempt % len(cuts)]
        happened = steps[:cut]
        disk = before.copy()
        for step in _kept(happened, _sure(happened), attempt // len(cuts), chance):
            if step.kind == "name" and step.node not in disk.names and _is_directory(steps, step.node):
                disk.names[step.node] = {}
            disk.apply(step)
        key = (disk.key(), cut == len(steps))
        if key not in seen:
            seen.add(key)
            yield cut == len(steps), disk
        if len(seen) >= most:
            return


def _is_directory(steps: list[Step], node: int) -> bool:
    return any(node in (s.place[0], s.source[0]) for s in steps if s.kind not in ("data", "size", "sync"))


def _sure(steps: list[Step]) -> list[bool]:
    """Which steps are on the disk for certain: those that a synchronisation of their file or directory came after."""
    synced: set[int] = set()
    sure = []
    for step in reversed(steps):
        if step.kind == "sync":
            synced.add(step.node)
        sure.append((step.node if step.kind in ("data", "size") else step.place[0]) in synced)
    return sure[::-1]


def _kept(steps: list[Step], sure: list[bool], style: int, chance: random.Random) -> Iterator[Step]:
    """Steps that reached the disk: the certain ones; of the others, by style, all, none, names, data or some."""
    share = (1.0, 0.0, None, None)[style] if style < 4 else chance.choice((0.2, 0.5, 0.8))
    for step, certain in zip(steps, sure, strict=True):
        if step.kind == "sync":
            continue
        content = step.kind in ("data", "size")
        keep = chance.random() < share if share is not None else content == (style == 3)
        if certain or keep:
            yield step
        elif content and step.kind == "data" and style >= 2 and chance.random() < 0.5:
            yield _torn(step, chance)


def _torn(step: Step, chance: random.Random) -> Step:
    """A write of which only the first sectors came, or zeros."""
    if chance.random() < 0.5:
        return Step("data", step.node, offset=step.offset, data=bytes(len(step.data)))
    length = chance.randrange(0, len(step.data) + 1, _SECTOR) if len(step.data) >= _SECTOR else len(step.data) // 2
    return Step("data", step.node, offset=step.offset, data=step.data[:length])


def cut(way: Way, top: Path, most: int) -> tuple[int, list[str]]:
    """Record a save and load what cuts may leave of it."""
    old, place = top / "old", top / "place"
    in_child(lambda: start(way, old, SMALL))
    _copied(old, place)
    before, recorder = Disk.read(place), Recorder(place)
    ended = watched(lambda: way.saver(SMALL)(place / way.file, NEW), place, recorder)
    assert ended.said is None, ended.said

    def load_all() -> list[object]:
        """In one child, because loading may start threads."""
        lost, tried_ = [], 0
        for returned, disk in states(before, recorder.steps, most):
            disk.lay_out(place)
            held = found(way, place)
            tried_ += 1
            if held not in ({OLD}, {NEW}) or (returned and held != {NEW}):
                lost.append(f"state {tried_}{' after the save' * returned}: found {held}")
        return [tried_, lost]

    done, lost = in_child(load_all)
    return done, lost


def _outcome(ways: tuple[Way, ...], others: tuple[Way, ...], most: int) -> Outcome:
    broken, counts = tried(ways, cut, most)
    _, theirs = tried(others, cut, most)
    states_of = ", ".join(f"{name} {done}" for name, (_, done) in counts.items())
    return Outcome(
        sum(done for _, done in counts.values()), tuple(broken), f"{len(broken)} lost ({states_of})", told(theirs)
    )


def _ours(most: int) -> Outcome:
    return _outcome(POLYAK, OTHERS if most > 200 else OTHERS[:1], most)


def _tensorflow(most: int) -> Outcome:
    return _outcome(TENSORFLOW[:2], (*TENSORFLOW[2:], *OTHERS_TENSORFLOW), most)


CAMPAIGNS = (
    (
        Campaign("3a", "Whatever a power cut leaves of a save loads as the old file or the new one", _ours, 60, 1000),
        Campaign("3b", "So it is with what TensorFlow writes for polyak", _tensorflow, 60, 1000),
    )
    if AVAILABLE
    else ()
)
