"""Mutations of files that know how the files are made: they reach the parser behind the lengths and the checksums."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import xxhash
from tests.attacks.cases_tensorflow import number, table

from polyak.errors import PolyakError
from polyak.files.protobuf import WireError
from polyak.files.sstable import read_table

Mutation = Callable[[bytes, random.Random], bytes]
_NUMBERS = (0, 1, 2, 3, 7, 64, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1,
            2**63, 2**64 - 1)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    *_NUMBERS, -1, -(2**63), 2**64, 10**30, 0.5, 1e308, float("nan"), float("inf"), True, None, "",
    "a", "../a", "/", ".",
    "\0", "é\ud800", "F32", "BF16", "float32", "bfloat16", "object", "S3", "V2", "<f4", ">f8", "|O", "average",
    "raw",    [], {}, [[]],
    [0], [-1], [2**62, 2**62], {"a": {}}, "x" * 5000,
)  # fmt: skip
_SEPARATORS = b'{}[]",:\\ 0.\x00\xff()'


def bytes_changed(content: bytes, dice: random.Random) -> bytes:
    """A few bytes are others, most often where the structure is: at both ends."""
    held = bytearray(content)
    for _ in range(dice.choice((1, 1, 1, 2, 4, 16))):
        if held:
            held[_place(len(held), dice)] = dice.choice((dice.randrange(256), dice.choice(_SEPARATORS)))
    return bytes(held)


def bit_flipped(content: bytes, dice: random.Random) -> bytes:
    held = bytearray(content or b"\0")
    held[_place(len(held), dice)] ^= 1 << dice.randrange(8)
    return bytes(held)


def number_set(content: bytes, dice: random.Random) -> bytes:
    """A length, an offset or a count somewhere is one that parsers stumble over."""
    width = dice.choice((1, 2, 4, 8))
    raw = (dice.choice(_NUMBERS) % (1 << 8 * width)).to_bytes(width, dice.choice(("little", "big")))
    at = _place(len(content), dice)
    return content[:at] + raw + content[at + width :]


def piece_moved(content: bytes, dice: random.Random) -> bytes:
    """A piece is lost, doubled, or stands elsewhere."""
    start, size = _place(len(content), dice), dice.choice((1, 2, 4, 8, 16, 64, 512))
    piece, rest = content[start : start + size], content[:start] + content[start + size :]
    at = _place(len(rest), dice)
    return dice.choice((rest, content[:start] + piece + content[start:], rest[:at] + piece + rest[at:]))


def cut(content: bytes, dice: random.Random) -> bytes:
    return content[: dice.randrange(len(content) + 1)]


PLAIN: tuple[Mutation, ...] = (bytes_changed, bit_flipped, number_set, piece_moved, cut)


def any_plain(content: bytes, dice: random.Random) -> bytes:
    return dice.choice(PLAIN)(content, dice)


def json_changed(content: bytes, dice: random.Random) -> bytes:
    """A value in a JSON text is another, is lost, or has another name."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return any_plain(content, dice)
    for _ in range(dice.choice((1, 1, 2))):
        _change(tree, dice)
    return json.dumps(tree).encode()


def _change(tree: Any, dice: random.Random) -> None:
    """Descend to a random place, and change what is there."""
    while isinstance(tree, (dict, list)) and tree:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        key = dice.choice(keys)
        if isinstance(tree[key], (dict, list)) and tree[key] and dice.random() < 0.8:
            tree = tree[key]
            continue
        kind = dice.randrange(4)
        if kind == 0:
            del tree[key]
        elif kind == 1 and isinstance(tree, dict):
            tree[dice.choice(("", "polyak", "__metadata__", f"{key}x", key[:-1]))] = tree.pop(key)
        elif kind == 2 and isinstance(tree[key], int):
            tree[key] += dice.choice((-1, 1, 8, 2**31))
        else:
            tree[key] = dice.choice(_VALUES)
        return


def safetensors_changed(content: bytes, dice: random.Random) -> bytes:
    """The header is another one, with its right length; sometimes the manifest in it, with its right digest."""
    size = int.from_bytes(content[:8], "little")
    raw = content[8 : 8 + size]
    if dice.random() < 0.5:
        raw = _manifest_changed(raw, dice)
    else:
        raw = dice.choice((json_changed, any_plain))(raw, dice)
    return struct.pack("<Q", len(raw)) + raw + content[8 + size :]


def _manifest_changed(raw: bytes, dice: random.Random) -> bytes:
    try:
        header = json.loads(raw)
        told = header["__metadata__"]
        text = dice.choice((json_changed, any_plain))(told["polyak"].encode(), dice).decode(errors="replace")
    except (ValueError, KeyError, TypeError):
        return json_changed(raw, dice)
    told["polyak"], told["polyak.digest"] = text, xxhash.xxh3_128_hexdigest(text.encode(errors="surrogatepass"))
    return json.dumps(header).encode()


def index_changed(content: bytes, dice: random.Random) -> bytes:
    """An index whose manifest, or else, is another one; or a note with its digest."""
    try:
        body = json.loads(content)
        held = body.get("metadata", body)
        text = json_changed(held["polyak"].encode(), dice).decode(errors="replace")
    except (ValueError, KeyError, TypeError, AttributeError):
        return json_changed(content, dice)
    if dice.random() < 0.5:
        return json_changed(content, dice)
    digest = "polyak.digest" if "polyak.digest" in held else "digest"
    held["polyak"], held[digest] = text, xxhash.xxh3_128_hexdigest(text.encode(errors="surrogatepass"))
    return json.dumps(body).encode()


def zip_member_changed(content: bytes, dice: random.Random) -> bytes:
    """One member has another content, with its right checksum."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(m, archive.read(m)) for m in archive.infolist()]
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return any_plain(content, dice)
    told = [i for i, (m, _) in enumerate(members) if not m.filename.split("/")[-1].isdigit()]
    chosen = dice.choice(told or range(len(members)))
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w") as made:
            for i, (info, raw) in enumerate(members):
                made.writestr(_info(info), _member_changed(info.filename, raw, dice) if i == chosen else raw)
        return buffer.getvalue()


def _info(info: zipfile.ZipInfo) -> zipfile.ZipInfo:
    fresh = zipfile.ZipInfo(info.filename)
    fresh.compress_type = info.compress_type
    return fresh


def _member_changed(name: str, raw: bytes, dice: random.Random) -> bytes:
    if name.endswith(".pkl"):
        return pickle_changed(raw, dice)
    if name.endswith(".json"):
        return json_changed(raw, dice)
    if name.endswith("polyak.json.npy"):
        return raw[:128] + json_changed(raw[128:], dice)
    if name.endswith(".npy"):
        return any_plain(raw[:128], dice) + raw[128:]
    return any_plain(raw, dice)


def pickle_changed(content: bytes, dice: random.Random) -> bytes:
    """An operation of a pickle is another one, is lost, doubled, or has another argument."""
    try:
        places = [at for _, _, at in pickletools.genops(content) if at is not None]
    except (ValueError, IndexError, pickle.UnpicklingError, OverflowError, UnicodeDecodeError):
        return any_plain(content, dice)
    held = content
    for _ in range(dice.choice((1, 1, 2, 3))):
        i = dice.randrange(len(places))
        start, end = places[i], places[i + 1] if i + 1 < len(places) else len(held)
        op = dice.choice(pickletools.opcodes).code.encode("latin-1")
        whole = held[start:end]
        swapped = op + whole[1:]
        argument = whole[:1] + any_plain(whole[1:], dice)
        held = held[:start] + dice.choice((b"", whole + whole, swapped, op + whole, argument)) + held[end:]
    return held


def table_changed(content: bytes, dice: random.Random) -> bytes:
    """A key or a message of a TensorFlow index is another one, under right checksums."""
    pairs = _pairs(content)
    if not pairs:
        return any_plain(content, dice)
    key = dice.choice(list(pairs))
    if dice.random() < 0.1:
        del pairs[key]
    else:
        pairs[key] = _message_changed(pairs[key], dice)
    return table(dict(sorted(pairs.items())))


def _pairs(content: bytes) -> dict[bytes, bytes]:
    import tempfile
    from pathlib import Path

    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            return dict(read_table(Path(file.name)))
        except (PolyakError, WireError):
            return {}


def _message_changed(raw: bytes, dice: random.Random) -> bytes:
    if dice.random() < 0.5 or not raw:
        return any_plain(raw or b"\0", dice)
    at = dice.randrange(len(raw))
    return raw[:at] + number(dice.choice(_NUMBERS) % 2**64) + raw[at + 1 :]


def _place(size: int, dice: random.Random) -> int:
    """A place in so many bytes; the first and the last of them are met most often."""
    near = min(size, dice.choice((64, 512, 4096)))
    where = dice.randrange(3)
    if size <= 1 or where == 0:
        return dice.randrange(max(size, 1))
    return dice.randrange(near) if where == 1 else size - 1 - dice.randrange(near)


# Which mutations a file is given, by the end of its name; every file is given the plain ones, too.
KNOWING: Sequence[tuple[str, Mutation]] = (
    (".safetensors", safetensors_changed),
    (".json", index_changed),
    ("_METADATA", json_changed),
    (".npz", zip_member_changed),
    (".keras", zip_member_changed),
    (".pt", zip_member_changed),
    (".index", table_changed),
    (".metadata", pickle_changed),
    ("zarr.json", json_changed),
    (".zarray", json_changed),
)


def mutated(name: str, content: bytes, dice: random.Random) -> tuple[bytes, bool]:
    """A mutation of a file of this name, and whether its checksums were left as they were."""
    knowing = [mutation for end, mutation in KNOWING if name.endswith(end)]
    if knowing and dice.random() < 0.7:
        return knowing[0](content, dice), False
    return any_plain(content, dice), True
