"""Small files that ask for much: refused within a second and 64 MiB, whatever they say. Row 22 of the table."""

from __future__ import annotations

import io
import json
import re
import struct
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import xxhash

from polyak import dialects, files
from polyak.combine.convert import FORMATS
from polyak.errors import PolyakError
from torture.campaign import Campaign, Outcome
from torture.children import MEBI, apart, in_fresh_process, verdicts
from torture.samples import OWN

Build = Callable[[Path], Path]


@dataclass(frozen=True)
class Bomb:
    """A hostile file: its name, what makes it in a directory, and whether it may be read."""

    name: str
    build: Build
    inert: bool = False


def one(name: str, make: Callable[[], bytes]) -> Build:
    def build(directory: Path) -> Path:
        path = directory / name
        path.write_bytes(make())
        return path

    return build


# --- safetensors -----------------------------------------------------------------------------------------------------


def header(body: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(body)) + body + data


def brackets(size: int) -> bytes:
    return header(b'{"a":[' + b"[],"[:3] * (size // 3) + b"[]]}")


def many_entries(count: int) -> bytes:
    entry = '"w%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    return header(b"{" + ",".join(entry % i for i in range(count)).encode() + b"}")


def many_texts() -> bytes:
    return header(b'{"__metadata__":{' + b",".join(b'"%d":""' % i for i in range(2_000_000)) + b"}}")


def told(text: str) -> bytes:
    """A file without weights whose manifest, with a right digest, is this text."""
    note = {"polyak": text, "polyak.digest": xxhash.xxh3_128_hexdigest(text.encode())}
    return header(json.dumps({"__metadata__": note}).encode())


def manifest(**parts: str) -> str:
    held = {"tool": '"x"', "roles": "{}", "weights": "[]", **parts}
    return "{" + ",".join(f'"{k}":{v}' for k, v in held.items()) + "}"


# --- zips ------------------------------------------------------------------------------------------------------------


def zipped(*members: tuple[str, bytes], level: int = 1) -> bytes:
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as made:
            for name, content in members:
                made.writestr(name, content)
        return buffer.getvalue()


def npy(shape: str, data: bytes = b"", pad: int = 0) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode() + b" " * pad + b"\n"
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text + data


def many_members() -> bytes:
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w") as made:
            for i in range(150_000):
                made.writestr(zipfile.ZipInfo(f"{i}.npy"), b"")
        return buffer.getvalue()


def inflating(name: str) -> bytes:
    return zipped((name, npy(f"({25 * MEBI},)", bytes(100 * MEBI))))


# --- pickles ---------------------------------------------------------------------------------------------------------


def torch(pickled: bytes, *members: tuple[str, bytes]) -> bytes:
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w") as made:
            for name, content in (("a/data.pkl", pickled), *members, ("a/version", b"3\n")):
                made.writestr(name, content)
        return buffer.getvalue()


def repeated(*opcodes: bytes, count: int) -> bytes:
    return torch(b"\x80\x02](" + b"".join(opcodes) * count + b"e.")


def laughs(levels: int) -> bytes:
    """Each list holds the one before it ten times."""
    parts = [b"\x80\x02](" + b"K\x01" * 10 + b"eq\x00"]
    parts += [b"](" + (b"h" + bytes([i])) * 10 + b"eq" + bytes([i + 1]) for i in range(levels)]
    return torch(b"".join(parts) + b".")


# --- HDF5 ------------------------------------------------------------------------------------------------------------


def h5(make: Callable[[h5py.File], None], **options: str) -> Callable[[], bytes]:
    def content() -> bytes:
        with io.BytesIO() as buffer:
            with h5py.File(buffer, "w", **options) as file:
                make(file)
            return buffer.getvalue()

    return content


def packed_zeros(file: h5py.File) -> None:
    file.create_dataset("layers/w", (2**28,), "f4", chunks=(2**20,), compression="gzip", compression_opts=1)
    file["layers/w"][: 2**27] = 0


def many_groups(file: h5py.File) -> None:
    for i in range(40_000):
        file.create_group(f"g{i}")


def long_attribute(file: h5py.File) -> None:
    file["layers/w"] = np.zeros(1)
    file.attrs["layer_names"] = np.array([b"x" * 1000] * 20_000)


def wide_chunk(file: h5py.File) -> None:
    file.create_dataset("w", (2**28,), "f4", chunks=(2**28,), compression="gzip", compression_opts=1)[:10] = 1


# --- others ----------------------------------------------------------------------------------------------------------


def orbax(metadata: bytes) -> Build:
    def build(directory: Path) -> Path:
        path = OWN["orbax"](directory)
        (path / "_METADATA").write_bytes(metadata)
        return path

    return build


def index(text: bytes, name: str = "model.safetensors.index.json") -> Build:
    return one(name, lambda: text)


def msgpack(*parts: bytes) -> bytes:
    return b"\x82\xa1a\x01\xa1b" + b"".join(parts)


def folder(config: bytes) -> Build:
    def build(directory: Path) -> Path:
        (directory / "config.json").write_bytes(config)
        (directory / "model.safetensors").write_bytes(many_entries(1))
        return directory

    return build


BRACKETS = b"[" + b"[]," * (8 * MEBI) + b"[]]"
BOMBS = (
    Bomb("safetensors: a header of 67 MB of entries", one("x.safetensors", lambda: many_entries(1_200_000))),
    Bomb("safetensors: a header of 24 MB of brackets", one("x.safetensors", lambda: brackets(24_000_000))),
    Bomb("safetensors: a header of 400,000 entries", one("x.safetensors", lambda: many_entries(400_000))),
    Bomb("safetensors: two million texts", one("x.safetensors", many_texts)),
    Bomb("safetensors: a shape of 2**62", one("x.safetensors", lambda: header(
        b'{"w":{"dtype":"F64","shape":[4611686018427387904],"data_offsets":[0,8]}}', bytes(8)))),
    Bomb("manifest: a rule of brackets", one("x.safetensors", lambda: told(
        manifest(roles='{"average":{"count":1,"rule":[' + "[]," * 6_000_000 + "[]]}}")))),
    Bomb("manifest: a million roles", one("x.safetensors", lambda: told(
        manifest(roles="{" + ",".join(f'"{i}":null' for i in range(1_200_000)) + "}")))),
    Bomb("manifest: a million sentences", one("x.safetensors", lambda: told(
        manifest(evidence="[" + '"",' * 6_000_000 + '""]')))),
    Bomb("manifest: 200,000 weights that are not there", one("x.safetensors", lambda: told(
        manifest(weights="[" + ",".join(
        ['{"name":"","role":"","weight":{"path":"","shape":[],"dtype":"","kind":"seed"}}'] * 200_000) + "]")))),
    Bomb("manifest: unknown fields of brackets", one("x.safetensors", lambda: told(
        manifest(future="[" + "[]," * 6_000_000 + "[]]")))),
    Bomb("sharded: an index of brackets", index(b'{"metadata":' + BRACKETS + b',"weight_map":{"a":"x.safetensors"}}')),
    Bomb("sharded: an index of 400,000 weights", index(b'{"weight_map":{' + b",".join(
        b'"%d":"x.safetensors"' % i for i in range(400_000)) + b"}}")),
    Bomb("keras sharded: an index of brackets", index(b'{"metadata":' + BRACKETS + b',"weight_map":{"a":"x.h5"}}',
         "m.weights.json")),
    Bomb("keras sharded: an index of ten million shards", index(b'{"weight_map":{"a":[' + b'"m_0.h5",' * 2_000_000
         + b'"x.h5"]}}', "m.weights.json")),
    Bomb("npz: 100 MB of zeros", one("x.npz", lambda: inflating("w.npy"))),
    Bomb("npz: a header of 32 MB of blanks", one("x.npz", lambda: zipped(("w.npy", npy("(1,)", bytes(4), 32 * MEBI))))),
    Bomb("npz: 150,000 members", one("x.npz", many_members)),
    Bomb("npz: a shape of 2**60", one("x.npz", lambda: zipped(("w.npy", npy(f"({2**60},)"))))),
    Bomb("npz: a shape of brackets", one("x.npz", lambda: zipped(("w.npy", npy("(" * 20_000 + ")" * 20_000))))),
    Bomb("torch: five million empty lists", one("x.pt", lambda: repeated(b"]", count=5_000_000))),
    Bomb("torch: a million empty dicts", one("x.pt", lambda: repeated(b"}", count=1_000_000))),
    Bomb("torch: a million sets", one("x.pt", lambda: repeated(b"\x8f", count=1_000_000))),
    Bomb("torch: two million short texts", one("x.pt", lambda: repeated(b"\x8c\x03abc", count=2_000_000))),
    Bomb("torch: a million calls", one("x.pt", lambda: repeated(b"ca\nb\n)R", count=1_000_000))),
    Bomb("torch: two million steps that leave nothing", one("x.pt", lambda: repeated(b"N0", count=2_000_000))),
    Bomb("torch: a memo of three million", one("x.pt", lambda: repeated(b"N\x94", count=1_500_000))),
    Bomb("torch: ten to the twelfth of ones", one("x.pt", lambda: laughs(12))),
    Bomb("torch: a wide integer", one("x.pt", lambda: torch(b"\x80\x02\x8b" + struct.pack("<i", 60 * MEBI)
         + b"\x01" * (60 * MEBI) + b"."))),
    Bomb("torch: a text of 60 MB", one("x.pt", lambda: torch(b"\x80\x02X" + struct.pack("<I", 60 * MEBI)
         + b"x" * (60 * MEBI) + b"."))),
    Bomb("torch: a line of 60 MB", one("x.pt", lambda: torch(b"\x80\x02c" + b"x" * (60 * MEBI) + b"\ny\n."))),
    Bomb("torch: a storage of 100 MB of zeros", one("x.pt", lambda: zipped(
        ("a/data.pkl", b"\x80\x02}."), ("a/data/0", bytes(100 * MEBI))))),
    Bomb("torch: nested lists", one("x.pt", lambda: torch(b"\x80\x02" + b"]" * 500_000 + b"a" * 499_999 + b"."))),
    Bomb("torch: nested tuples", one("x.pt", lambda: torch(b"\x80\x02)" + b"\x85" * 500_000 + b"."))),
    Bomb("keras: 100 MB of zeros", one("x.keras", lambda: zipped(
        ("config.json", b"{}"), ("model.weights.h5", bytes(100 * MEBI))))),
    Bomb("keras: a configuration of 100 MB", one("x.keras", lambda: zipped(
        ("config.json", b" " * 100 * MEBI), ("model.weights.h5", h5(lambda f: None)())))),
    Bomb("keras: a configuration of brackets", one("x.keras", lambda: zipped(
        ("config.json", BRACKETS), ("model.weights.h5", h5(lambda f: f.create_dataset("layers/w", data=[1.0]))())))),
    Bomb("hdf5: a gigabyte of packed zeros", one("x.weights.h5", h5(packed_zeros))),
    Bomb("hdf5: one chunk of a gigabyte", one("x.weights.h5", h5(wide_chunk))),
    Bomb("hdf5: an attribute of 20 MB", one("x.weights.h5", h5(long_attribute, libver="latest")), inert=True),
    Bomb("hdf5: 40,000 groups", one("x.weights.h5", h5(many_groups))),
    Bomb("orbax: a tree of brackets", orbax(b'{"tree_metadata":' + BRACKETS + b"}")),
    Bomb("orbax: a tree beside brackets", orbax(b'{"tree_metadata":{},"more":' + BRACKETS + b"}")),
    Bomb("orbax: 400,000 leaves", orbax(b'{"tree_metadata":{' + b",".join(
        b'"%d":{"key_metadata":[{"key":"%d"}],"value_metadata":{"value_type":"a"}}' % (i, i) for i in range(400_000))
         + b"}}")),
    Bomb("flax: a list of five million", one("x.msgpack", lambda: msgpack(b"\xdd" + struct.pack(">I", 5_000_000)
         + b"\xc0" * 5_000_000))),
    Bomb("flax: a million lists", one("x.msgpack", lambda: msgpack(b"\xdd" + struct.pack(">I", 1_000_000)
         + b"\x90" * 1_000_000))),
    Bomb("flax: a million maps", one("x.msgpack", lambda: msgpack(b"\xdd" + struct.pack(">I", 1_000_000)
         + b"\x80" * 1_000_000))),
    Bomb("flax: a million levels", one("x.msgpack", lambda: msgpack(b"\x91" * 1_000_000 + b"\xc0"))),
    Bomb("folder: a configuration of brackets", folder(b'{"a":' + BRACKETS[: 9 * MEBI] + b"]}")),
)  # fmt: skip


def _read(path: Path) -> str:
    """What reading everything says: nothing where it is read."""
    try:
        held = dialects.interpret(files.read(path))
        for name in held:
            _ = held[name]
    except PolyakError as error:
        return str(error)[:300]
    return ""


def _place(directory: Path, bomb: Bomb) -> Path:
    return directory / re.sub(r"\W+", "-", bomb.name)


def _prepare(directory: Path) -> None:
    """All bombs, each in a folder of its own with a note of what is to be opened, and a good file of each format."""
    for bomb in BOMBS:
        place = _place(directory, bomb)
        place.mkdir()
        built = bomb.build(place)
        (directory / f"{place.name}.path").write_text(str(built))
    for build in OWN.values():
        build(directory)


def measure(count: int) -> Outcome:
    """The first so many bombs, each in a forked child."""
    chosen = BOMBS[:count]
    with tempfile.TemporaryDirectory() as held:
        directory = Path(held)
        apart(lambda: _prepare(directory))
        paths = [Path(_place(directory, b).with_suffix(".path").read_text()) for b in chosen]
        good = [directory / f"model{end}" for end in FORMATS.values()]
        seen = list(verdicts(len(paths), lambda i: _read(paths[i]), lambda: [_read(p) for p in good]))
    broken = [f"{b.name}: {v.excess}" for b, v in zip(chosen, seen, strict=True) if v.excess]
    broken += [f"{b.name}: it was read" for b, v in zip(chosen, seen, strict=True) if not v.said and not b.inert]
    slowest, largest = max(v.seconds for v in seen), max(v.growth for v in seen)
    figure = f"{len(broken)} of {len(seen)} above the bounds; at most {slowest:.2f} s and {largest / MEBI:.0f} MiB"
    return Outcome(len(seen), tuple(broken), figure)


def _run(count: int) -> Outcome:
    return in_fresh_process("torture.bombs:measure", count)


CAMPAIGNS = (
    Campaign(
        "22",
        "a small file that asks for much is refused within a second and 64 MiB",
        _run,
        short=len(BOMBS),
        full=len(BOMBS),
    ),
)
