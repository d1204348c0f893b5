"""TensorFlow's checkpoints of both formats: right checksums over wrong contents, and directories that lead out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import google_crc32c
from tests.attacks.attack import GOLDEN, Attack, Build

from polyak.errors import FileError
from polyak.files.sstable import MAGIC, mask_crc32c

HERE = GOLDEN / "tensorflow"
FLOAT, INT32 = 1, 3


def number(value: int) -> bytes:
    """A varint."""
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def integer(field: int, value: int) -> bytes:
    return number(field << 3) + number(value % (1 << 64))


def message(field: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return number(field << 3 | 2) + number(len(content)) + content


def table(pairs: dict[bytes, bytes]) -> bytes:
    """A table of one block, its checksums right."""
    data, handles = b"", []
    block = b"".join(b"\0" + number(len(k)) + number(len(v)) + k + v for k, v in pairs.items())
    for content in (block, b"", b"\0" + number(1) + number(10) + b"\xff" + number(0).ljust(0) + b"%s"):
        if b"%s" in content:
            handle = number(handles[0][0]) + number(handles[0][1])
            content = b"\0" + number(1) + number(len(handle)) + b"\xff" + handle
        content += (0).to_bytes(4, "little") + (1).to_bytes(4, "little") + b"\0"
        handles.append((len(data), len(content) - 1))
        data += content + mask_crc32c(google_crc32c.value(content)).to_bytes(4, "little")
    footer = b"".join(number(n) for handle in handles[1:] for n in handle)
    return data + footer.ljust(40, b"\0") + MAGIC


def shape(*sizes: int) -> bytes:
    return message(2, *(message(2, integer(1, n)) for n in sizes))


def v1(described: list[bytes], parts: list[bytes]) -> Build:
    """A V1 file of these descriptions and these parts."""

    def build(directory: Path) -> Path:
        pairs = {b"": message(1, *(message(1, d) for d in described))}
        pairs |= {f"part{i:03}".encode(): message(2, p) for i, p in enumerate(parts)}
        (directory / "model.ckpt").write_bytes(table(pairs))
        return directory / "model.ckpt"

    return build


def described(name: str, *sizes: int, dtype: int = FLOAT) -> bytes:
    return message(1, name.encode()) + shape(*sizes) + integer(3, dtype)


def extent(start: int, length: int) -> bytes:
    return message(2, message(1, integer(1, start), integer(2, length)))


def floats(count: int) -> bytes:
    return message(3, integer(1, FLOAT), message(5, bytes(4 * count)))


def part(name: str, *rest: bytes) -> bytes:
    return message(1, name.encode()) + b"".join(rest)


def copied(*names: str, edit: Callable[[Path], object] = lambda directory: None) -> Build:
    """Kept files of TensorFlow, edited; the first is what is opened."""

    def build(directory: Path) -> Path:
        for name in names:
            for source in sorted(HERE.glob(f"{name}*")):
                if source.suffix == ".npz":
                    continue
                if source.is_dir():
                    shutil.copytree(source, directory / source.name)
                else:
                    shutil.copy(source, directory / source.name)
        edit(directory)
        return directory / names[0]

    return build


def state(text: str) -> Build:
    """A directory of a CheckpointManager with another state file; a good checkpoint lies above it."""

    def edit(directory: Path) -> None:
        for kept in (directory / "managed").glob("ckpt-900.*"):
            shutil.copy(kept, directory / kept.name)
        (directory / "managed" / "checkpoint").write_text(text)

    return copied("managed", edit=edit)


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        (directory / name).unlink()
        make(directory / name)

    return edit


def note(content: bytes) -> Build:
    def edit(directory: Path) -> None:
        (directory / "saved_model" / "assets.extra").mkdir()
        (directory / "saved_model" / "assets.extra" / "polyak.json").write_bytes(content)

    return copied("saved_model", edit=edit)


def sparse_note(directory: Path) -> Path:
    path = note(b"{")(directory)
    with (path / "assets.extra" / "polyak.json").open("r+b") as file:
        file.truncate(4 << 30)
    return path


DATA = "module.data-00000-of-00001"
W = described("w", 4)
ATTACKS = (
    Attack("v1: parts that overlap and leave a gap", v1([W], [
        part("w", extent(0, 2), floats(2)), part("w", extent(0, 2), floats(2))
    ]), "tensor 'w': .*overlap"),
    Attack("v1: a part without values", v1([W], [part("w", extent(0, 4))]), "tensor 'w'"),
    Attack("v1: a part of nothing", v1([W], [b""]), "tensor '': expected a part with values"),
    Attack("v1: a part beyond its tensor", v1([W], [part("w", extent(2, 4), floats(4))]), "tensor 'w'"),
    Attack("v1: a part of another size", v1([W], [part("w", extent(0, 4), floats(3))]), "tensor 'w'"),
    Attack("v1: a tensor without parts", v1([W], []), "tensor 'w': expected 4 values, received 0"),
    Attack("v1: values of half a number", v1([W], [
        part("w", extent(0, 4), message(3, integer(1, FLOAT), message(5, bytes(15))))
    ]), "tensor 'w'"),
    Attack("v1: values that are one wide number", v1([described("w", 1)], [
        part("w", extent(0, 1), message(3, integer(1, FLOAT), integer(5, 2**40)))
    ]), "tensor 'w'"),
    Attack("v1: integers without an end", v1([described("w", 4, dtype=INT32)], [
        part("w", extent(0, 4), message(3, integer(1, INT32), message(7, b"\xff" * 4)))
    ]), "tensor 'w'"),
    Attack("v1: a shape of 2**80", v1([described("w", 2**40, 2**40)], [part("w", floats(4))]), "tensor 'w'"),
    Attack("v1: a huge shape of nothing", v1([described("w", 2**62, 0)], [part("w", floats(0))]), "tensor 'w'"),
    Attack("v1: a shape of a hundred axes", v1([described("w", *[1] * 100)], [part("w", floats(1))]), "tensor 'w'"),
    Attack("v1: a negative shape", v1([described("w", -4)], []), "tensor 'w': expected a dtype and a shape"),
    Attack("v1: an unknown dtype", v1([described("w", 4, dtype=99)], []), "tensor 'w': expected a dtype and a shape"),
    Attack("v1: one name, two shapes", v1([W, described("w", 2)], [part("w", extent(0, 2), floats(2))]), "tensor 'w'"),
    Attack("v1: a part of an unknown tensor", v1([W], [
        part("w", extent(0, 4), floats(4)), part("v", extent(0, 4), floats(4))
    ]), "tensor 'v'"),
    Attack("v1: a name that is no text", v1([message(1, b"\xff\xfe") + shape(1) + integer(3, 1)], []), "UTF-8"),
    Attack("v2: data that never end", copied("module", edit=replaced(DATA, lambda p: p.symlink_to("/dev/zero"))),
           "expected data file 1 of 1, received none", FileError),
    Attack("v2: data that are a pipe", copied("module", edit=replaced(DATA, os.mkfifo)),
           "expected data file 1 of 1, received none", FileError),
    Attack("v2: data that are a link to themselves", copied("module", edit=replaced(DATA, lambda p: p.symlink_to(p))),
           "expected data file 1 of 1, received none", FileError),
    Attack("v2: data of another checkpoint", copied("module", "keras3", edit=lambda d: shutil.copy(
        d / "keras3.data-00000-of-00001", d / DATA
    )), "tensor .* at byte "),
    Attack("v2: an index that is a pipe", copied("module", edit=replaced("module.index", os.mkfifo)), "module",
           FileError),
    Attack("v2: a state file that leads up", state('model_checkpoint_path: "../ckpt-900"'),
           "expected a checkpoint in its own directory", FileError),
    Attack("v2: a state file that leads to the root", state('model_checkpoint_path: "/etc/passwd"'),
           "expected a checkpoint in its own directory", FileError),
    Attack("v2: a state file of escapes that lead up", state('model_checkpoint_path: "\\056\\056/ckpt-900"'),
           "expected a checkpoint in its own directory", FileError),
    Attack("v2: a state file that names itself", state('model_checkpoint_path: "checkpoint"'),
           "expected the checkpoint", FileError),
    Attack("v2: a state file of a million quotes", state('model_checkpoint_path: "' + '\\"' * 500_000),
           "expected model_checkpoint_path, received none"),
    Attack("saved model: a note of NaN", note(
        b'{"tool":"x","version":1,"roles":{"average":{"count":NaN}}}'
    ), "manifest"),
    Attack("saved model: a deep note", note(b'{"a":' * 200_000), "manifest"),
    Attack("saved model: a note of four gigabytes", sparse_note, "polyak.json", bomb=True),
)  # fmt: skip
