"""What an attack is, and the tools that make files which no honest program writes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from polyak.errors import DamagedFile, PolyakError

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CANARY = "canary"
Build = Callable[[Path], Path]


@dataclass(frozen=True)
class Attack:
    """A file that polyak must survive.

    Attributes:
        name: format and what is wrong with it.
        build: makes the file in an empty directory, and says what is to be opened.
        said: a regular expression for what the error says beside the file's name; None: it may be read, inertly.
        error: the class of the error.
        bomb: it asks for so much memory that it is opened in a process with a limit.
    """

    name: str
    build: Build
    said: str | None
    error: type[PolyakError] = DamagedFile
    bomb: bool = False


@dataclass(frozen=True)
class Member:
    """One member of a zip, with every claim in it open to lies.

    Attributes:
        name, content: as they are stored; ``packed`` is the content deflated.
        size: the claimed size of the content; its own by default.
        at: the claimed place of its header; its own by default.
    """

    name: str
    content: bytes
    packed: bool = False
    size: int | None = None
    at: int | None = None
    crc: int | None = None

    @property
    def stored(self) -> bytes:
        if not self.packed:
            return self.content
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
        return deflate.compress(self.content) + deflate.flush()


@dataclass
class Zip:
    """A zip in the making; nothing is checked."""

    data: bytearray = field(default_factory=bytearray)
    directory: bytearray = field(default_factory=bytearray)
    count: int = 0

    def add(self, m: Member) -> None:
        name, stored, start = m.name.encode(), m.stored, len(self.data)
        crc = zlib.crc32(m.content) if m.crc is None else m.crc
        size = len(m.content) if m.size is None else m.size
        packed = len(stored) if m.packed else size
        common = struct.pack("<HHHHHIII", 20, 0, 8 if m.packed else 0, 0, 33, crc, packed, size)
        self.data += b"PK\3\4" + common + struct.pack("<HH", len(name), 0) + name + stored
        place = struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, start if m.at is None else m.at)
        self.directory += b"PK\1\2" + struct.pack("<H", 20) + common + place + name
        self.count += 1

    def finish(self) -> bytes:
        end = struct.pack("<HHHHIIH", 0, 0, self.count, self.count, len(self.directory), len(self.data), 0)
        return bytes(self.data + self.directory) + b"PK\5\6" + end


def zipped(members: Iterable[Member]) -> bytes:
    made = Zip()
    for member in members:
        made.add(member)
    return made.finish()


def one_file(name: str, content: bytes | Callable[[], bytes]) -> Build:
    """An attack of one file of these bytes."""

    def build(directory: Path) -> Path:
        path = directory / name
        path.write_bytes(content if isinstance(content, bytes) else content())
        return path

    return build


def npy(shape: str, data: bytes = b"", descr: str = "<f4", version: int = 1) -> bytes:
    """An .npy array whose header says what it likes."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + data
