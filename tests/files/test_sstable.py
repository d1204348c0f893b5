"""Tables: plain and compressed ones as TensorFlow reads them; hostile ones refused in bounded memory and time."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c
import pytest

from polyak.errors import DamagedFile, FileError, UnknownFormat
from polyak.files.protobuf import WireError
from polyak.files.sstable import has_magic, masked_crc32c, read_table, snappy_decompress

Pairs = list[tuple[bytes, bytes]]
MAGIC = bytes.fromhex("57fb808b247547db")


def number(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + number(value >> 7)


def record(shared: int, suffix: bytes, value: bytes) -> bytes:
    return number(shared) + number(len(suffix)) + number(len(value)) + suffix + value


def block(records: Iterable[bytes], restarts: tuple[int, ...] = (0,)) -> bytes:
    tail = b"".join(offset.to_bytes(4, "little") for offset in (*restarts, len(restarts)))
    return b"".join(records) + tail


def plain(pairs: Pairs) -> bytes:
    return block(record(0, key, value) for key, value in pairs)


def shared(pairs: Pairs) -> bytes:
    """Each key without the prefix that it has in common with the one before it."""
    records, last = [], b""
    for key, value in pairs:
        same = next((i for i, (a, b) in enumerate(zip(key, last, strict=False)) if a != b), min(len(key), len(last)))
        records.append(record(same, key[same:], value))
        last = key
    return block(records)


def snappy(data: bytes) -> bytes:
    """Literals, and copies of the three kinds wherever four bytes were seen before."""
    out, at, seen, literal = bytearray(number(len(data))), 0, {}, bytearray()

    def flush() -> None:
        if literal:
            size = len(literal) - 1
            width = (size.bit_length() + 7) // 8
            out.extend([size << 2] if size < 60 else [59 + width << 2, *size.to_bytes(width, "little")])
            out.extend(literal)
            literal.clear()

    while at < len(data):
        chunk = data[at : at + 4]
        start = seen.get(chunk) if len(chunk) == 4 else None
        seen[chunk] = at
        if start is None:
            literal.append(data[at])
            at += 1
            continue
        flush()
        size = next((n for n in range(4, 64) if data[start + n : start + n + 1] != data[at + n : at + n + 1]), 64)
        size, offset = min(size, len(data) - at), at - start
        if size < 12 and offset < 1 << 11:
            out.extend([1 | size - 4 << 2 | offset >> 8 << 5, offset & 255])
        elif offset < 1 << 16:
            out.extend([2 | size - 1 << 2, *offset.to_bytes(2, "little")])
        else:
            out.extend([3 | size - 1 << 2, *offset.to_bytes(4, "little")])
        at += size
    flush()
    return bytes(out)


@dataclass
class Table:
    """A table file in the making; every part can be replaced by a wrong one, with right checksums."""

    data: bytearray = field(default_factory=bytearray)

    def add(self, content: bytes, kind: int = 0) -> tuple[int, int]:
        handle = (len(self.data), len(content))
        crc = google_crc32c.value(content + bytes([kind]))
        masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
        self.data += content + bytes([kind]) + masked.to_bytes(4, "little")
        return handle

    def finish(self, path: Path, index: bytes) -> Path:
        handles = (*self.add(block([])), *self.add(index))
        footer = b"".join(map(number, handles)).ljust(40, b"\0") + MAGIC
        path.write_bytes(bytes(self.data) + footer)
        return path


def write(path: Path, blocks: list[Pairs], form: Callable[[Pairs], bytes] = shared, *, compress: bool = False) -> Path:
    table, index = Table(), []
    for pairs in blocks:
        content = form(pairs)
        offset, size = table.add(snappy(content), 1) if compress else table.add(content)
        index.append((pairs[-1][0], number(offset) + number(size)))
    return table.finish(path, plain(index))


PAIRS = [(f"key/{'x' * (i % 7)}/{i:05d}".encode(), bytes(range(i % 11))) for i in range(300)]
PAIRS.sort()


@pytest.mark.parametrize("form", [plain, shared])
@pytest.mark.parametrize("compress", [False, True])
def test_pairs_come_back_in_order(tmp_path: Path, form: Callable[[Pairs], bytes], compress: bool) -> None:
    path = write(tmp_path / "t", [PAIRS[:1], PAIRS[1:200], PAIRS[200:]], form, compress=compress)
    assert list(read_table(path).items()) == PAIRS
    assert has_magic(path)


def test_tensorflow_reads_our_compressed_tables_too(tmp_path: Path) -> None:
    """So the writer of these tests, and with it the reader, follows the format and not itself."""
    tf = pytest.importorskip("tensorflow")
    names = [f"model/layer_{i}/kernel" for i in range(300)]
    tensors = [tf.fill((i % 5,), float(i)) for i in range(300)]
    tf.raw_ops.SaveV2(prefix=str(tmp_path / "a"), tensor_names=names, shape_and_slices=[""] * 300, tensors=tensors)
    pairs = list(read_table(tmp_path / "a.index").items())
    (tmp_path / "a.data-00000-of-00001").rename(tmp_path / "b.data-00000-of-00001")
    write(tmp_path / "b.index", [pairs[:100], pairs[100:]], compress=True)
    assert (tmp_path / "b.index").stat().st_size < 0.9 * (tmp_path / "a.index").stat().st_size
    reader = tf.train.load_checkpoint(str(tmp_path / "b"))
    assert reader.get_tensor("model/layer_299/kernel").tolist() == [299.0] * 4
    assert list(read_table(tmp_path / "b.index").items()) == pairs


# --- Snappy ------------------------------------------------------------------------------------------------------


def test_snappy_round_trip() -> None:
    generator = random.Random(1)
    for size in (0, 1, 3, 59, 60, 61, 255, 256, 257, 5000, 70_000, 200_000):
        for letters in (b"a", b"ab", bytes(range(256))):
            data = bytes(generator.choices(letters, k=size))
            assert snappy_decompress(snappy(data)) == data
    far = generator.randbytes(90_000)
    assert snappy_decompress(snappy(far + far)) == far + far
    assert len(snappy(far + far)) < 100_000


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "expected a varint"),
        ("05", "expected at most 22 bytes|expected 5 bytes of Snappy data, received 0"),
        ("ffffffff0f00", "expected at most 132 bytes of Snappy data, received 4294967295"),
        ("040c6162", "expected 4 more bytes, received 2"),
        ("0400610505", "expected a Snappy copy from at most 1 bytes back, received 5"),
        ("0400610500", "expected a Snappy copy from at most 1 bytes back, received 0"),
        ("04006106", "expected 2 more bytes, received 0"),
        ("02006101", "expected 1 more bytes, received 0"),
        ("0200610501", "expected 2 bytes of Snappy data, received 6"),
        ("01fcffffffff", "expected 4294967296 more bytes, received 0"),
    ],
)
def test_bytes_that_are_no_snappy(data: str, message: str) -> None:
    with pytest.raises(WireError, match=message):
        snappy_decompress(bytes.fromhex(data))


def test_any_bytes_are_decompressed_or_refused() -> None:
    generator = random.Random(2)
    outcomes = set()
    for _ in range(5000):
        good = bytearray(snappy(bytes(generator.choices(b"ab", k=60))))
        good[generator.randrange(len(good))] = generator.randrange(256)
        try:
            outcomes.add(len(snappy_decompress(bytes(good))) <= 22 * len(good))
        except WireError:
            outcomes.add(None)
    assert outcomes == {True, None}


# --- hostile tables ----------------------------------------------------------------------------------------------


def one(path: Path, content: bytes, kind: int = 0) -> Path:
    table = Table()
    offset, size = table.add(content, kind)
    return table.finish(path, plain([(b"z", number(offset) + number(size))]))


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (plain([(b"b", b""), (b"a", b"")]), 0, "expected a key after b'b', received b'a'"),
        (plain([(b"a", b""), (b"a", b"")]), 0, "expected a key after b'a', received b'a'"),
        (block([record(1, b"", b"")]), 0, "shares at most 0 bytes, received 1"),
        (block([b"\0\x09\0abc"]), 0, "expected 9 more bytes, received 3"),
        (block([b"\0\0\x09abc"]), 0, "expected 9 more bytes, received 3"),
        (b"", 0, "expected room for 0 restart points, received a block of 0 bytes"),
        ((1 << 31).to_bytes(4, "little"), 0, "expected room for 2147483648 restart points"),
        (plain([]), 2, r"expected compression 0 \(none\) or 1 \(snappy\), received 2"),
        (b"\xff\xff\xff\xff\x0f", 1, "of Snappy data, received 4294967295"),
    ],
)
def test_a_block_that_contradicts_itself(tmp_path: Path, content: bytes, kind: int, message: str) -> None:
    path = one(tmp_path / "t", content, kind)
    with pytest.raises(DamagedFile, match=f"^file '.*t': .*{message}") as caught:
        read_table(path)
    assert caught.value.hint == "copy or download the checkpoint again"


@pytest.mark.parametrize("handle", [(0, 1 << 62), (1 << 62, 8), (1 << 20, 8), (0, 60)])
def test_a_block_outside_the_file(tmp_path: Path, handle: tuple[int, int]) -> None:
    table = Table()
    table.add(plain([(b"a", b"")]))
    with pytest.raises(DamagedFile, match="expected an end at or before byte"):
        read_table(table.finish(tmp_path / "t", plain([(b"a", number(handle[0]) + number(handle[1]))])))


def test_a_flipped_bit_and_a_cut_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "t", [PAIRS])
    good = path.read_bytes()
    path.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    with pytest.raises(DamagedFile, match="block at byte 0: expected CRC32C"):
        read_table(path)
    path.write_bytes(b"\0\0" + good[2:-20])
    with pytest.raises(DamagedFile, match="; the file is truncated"):
        read_table(path)


def test_one_block_named_many_times_is_read_once(tmp_path: Path) -> None:
    table = Table()
    offset, size = table.add(plain([(b"a", b"")] * 1))
    index = plain([(b"%d" % i, number(offset) + number(size)) for i in range(1000)])
    with pytest.raises(DamagedFile, match="expected a block at or after byte 17, received byte 0"):
        read_table(table.finish(tmp_path / "t", index))


def test_shared_prefixes_cannot_multiply_memory(tmp_path: Path) -> None:
    long = b"k" * 200_000
    records = [record(0, long, b""), *(record(len(long), number(1 << 20 | i), b"") for i in range(20_000))]
    path = one(tmp_path / "t", block(records))
    tracemalloc.start()
    with pytest.raises(DamagedFile, match="expected a key that shares at most"):
        read_table(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * path.stat().st_size < 200_000 * 20_000


def test_files_that_are_missing_empty_or_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be read: No such file"):
        read_table(tmp_path / "none")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(DamagedFile, match="expected data, received an empty file"):
        read_table(tmp_path / "empty")
    assert not has_magic(tmp_path / "empty")
    (tmp_path / "short").write_bytes(MAGIC)
    with pytest.raises(UnknownFormat, match="expected the table magic"):
        read_table(tmp_path / "short")


def test_the_checksum_of_the_standard_example() -> None:
    """CRC32C of 32 zero bytes is 0x8a9136aa (RFC 3720, B.4)."""
    assert masked_crc32c(bytes(32)) == ((0x8A9136AA >> 15 | 0x8A9136AA << 17) + 0xA282EAD8) & 0xFFFFFFFF
