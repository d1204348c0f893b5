"""Flax' msgpack files: every bit comes back, and what is damaged or hostile is refused at once.

The golden files are the real tool's; see tests/golden/make_jax.py.
"""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.files.jax_golden import GOLDEN, assert_same, expected

import polyak
from polyak.errors import DamagedFile, PolyakError, UnknownFormat
from polyak.files import flax_msgpack
from polyak.files.flax_msgpack_tree import Malformed, Parser

FILES = ("kinds.msgpack", "train_state.msgpack", "variables.msgpack", "chunked.msgpack")


def packed(shape: bytes, name: bytes, data: bytes, sort: int = 1) -> bytes:
    """An array as Flax writes it, from its three parts."""
    inner = b"\x93" + shape + bytes([0xA0 | len(name)]) + name + b"\xc6" + struct.pack(">I", len(data)) + data
    return b"\xc9" + struct.pack(">Ib", len(inner), sort) + inner


def chunked(shape: bytes, chunks: bytes) -> bytes:
    """An array as Flax cuts it, from its two maps."""
    return b"\x83\xb9__msgpack_chunked_array__\xc3\xa5shape" + shape + b"\xa6chunks" + chunks


def tree(value: bytes, key: bytes = b"w") -> bytes:
    return b"\x81" + bytes([0xA0 | len(key)]) + key + value


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["kinds.msgpack", "chunked.msgpack"])
def test_every_sort_of_array_has_flaxs_bits(name: str) -> None:
    held, wanted = flax_msgpack.read(GOLDEN / name).tensors, expected(name)
    assert set(held) == set(wanted)
    for key, array in wanted.items():
        assert (held[key].shape, held[key].dtype) == (array.shape, array.dtype.name)
        assert_same(held[key].read(), array)


def test_plain_values_are_facts() -> None:
    facts = flax_msgpack.read(GOLDEN / "kinds.msgpack").facts
    assert facts == {
        "plain/int": -3, "plain/float": 0.5, "plain/yes": True, "plain/complex": 1 + 2j, "plain/text": "hello"
    }  # fmt: skip


def test_flax_is_not_loaded() -> None:
    loaded = "{'jax', 'flax', 'msgpack'} & set(sys.modules)"
    script = f"import sys, polyak; dict(polyak.open(sys.argv[1])); sys.exit(bool({loaded}))"
    run = [sys.executable, "-c", script, str(GOLDEN / "kinds.msgpack")]
    assert subprocess.run(run, check=False).returncode == 0


def test_what_flax_writes_now_is_read(tmp_path: Path) -> None:
    serialization = pytest.importorskip("flax.serialization")
    held = {"a": {"w": np.arange(6, dtype=np.int16).reshape(2, 3), "s": np.float64(0.1)}}
    path = written(tmp_path / "x", serialization.to_bytes(held))
    found = flax_msgpack.read(path).tensors
    assert_same(found["a/w"].read(), held["a"]["w"])
    assert_same(found["a/s"].read(), np.asarray(held["a"]["s"]))


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_refused(tmp_path: Path, name: str) -> None:
    whole = (GOLDEN / name).read_bytes()
    for end in {*range(2, min(200, len(whole))), *range(200, len(whole), 37), len(whole) - 1}:
        path = written(tmp_path / "x", whole[:end])
        if flax_msgpack.recognises(path):
            with pytest.raises(DamagedFile, match="at byte"):
                flax_msgpack.read(path)


def test_a_truncated_file_says_where(tmp_path: Path) -> None:
    path = written(tmp_path / "x", (GOLDEN / "kinds.msgpack").read_bytes()[:-5])
    with pytest.raises(DamagedFile, match=r"file '.*x': not readable at byte \d+: .* left in the file"):
        polyak.open(path)


def test_more_bytes_behind_the_tree_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "x", (GOLDEN / "variables.msgpack").read_bytes() + b"\0")
    with pytest.raises(DamagedFile, match="1 more bytes behind the tree"):
        flax_msgpack.read(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xdf\xff\xff\xff\xff\xa1w\xc0", "bytes, with"),
        (tree(b"\xdd\xff\xff\xff\xff"), "bytes, with"),
        (tree(b"\xdb\xff\xff\xff\xff"), "texts|long|bytes, with"),
        (tree(b"\xc6\xff\xff\xff\xff"), "bytes, with"),
        (tree(b"\xc9\xff\xff\xff\xff\x01\x93"), "bytes, with"),
        (tree(b"\x91" * 100_000), "levels"),
        (tree(b"\x81\xa1a" * 100_000), "levels"),
        (tree(packed(b"\x92\xcf\x7f" + b"\xff" * 7 + b"\x02", b"float32", b"1234")), "4 bytes for an array"),
        (tree(packed(b"\x91\x02", b"float32", b"1234")), "4 bytes for an array"),
        (tree(packed(b"\x91\xff", b"float32", b"1234")), "no shape"),
        (tree(packed(b"\xdc\x00\x40" + b"\x01" * 64, b"float32", b"1234")), "no shape"),
        (tree(packed(b"\x01", b"float32", b"1234")), "no shape"),
        (tree(b"\xc7\x01\x01\x90"), "without shape"),
        (tree(b"\xc7\x01\x02\xc0"), "without two parts"),
        # What an extension does not use would be read as the next entry of the map.
        (b"\x82\xa1w\xc7\x05\x02\x92\x01\x02\xa1b\x05", "an extension that ends at byte 9 instead of 11"),
        (tree(b"\xc7\x06\x01\x93\x91\x01\x05\xc4\x00"), "without a dtype"),
        (b"\x82\xa1a\xc0\xa1w\xc1", "begins no value"),
        (tree(b"\xa1\xff"), "not UTF-8"),
        (b"\x82\xa1w\xc0\xa1w\xc0", "two values of the key 'w'"),
        (b"\x82\xa1w\xc0\x90\xc0", "a key that is no name"),
        (tree(chunked(b"\x80", b"\x80")), "do not make its shape"),
        (tree(chunked(b"\x81\xa10\x01", b"\x81\xa10\xc0")), "chunks that are no arrays"),
        (tree(chunked(b"\x81\xa10\xff", b"\x80")), "chunks that are no arrays"),
        (tree(chunked(b"\xc0", b"\x81\xa11\xc0")), "chunks that are no arrays"),
    ],
)
def test_what_is_hostile_is_refused_at_once(tmp_path: Path, content: bytes, words: str) -> None:
    path = written(tmp_path / "x", content)
    assert flax_msgpack.recognises(path)
    tracemalloc.start()
    begun = time.monotonic()
    with pytest.raises(DamagedFile, match=words):
        flax_msgpack.read(path)
    assert time.monotonic() - begun < 2
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_a_file_that_became_shorter_is_refused(tmp_path: Path) -> None:
    parser = Parser(io.BytesIO(b"\x92\x01"), 100)
    with pytest.raises(Malformed, match="the end of the file"):
        parser.value()


def test_names_that_meet_are_refused(tmp_path: Path) -> None:
    value = packed(b"\x91\x01", b"float32", b"1234")
    path = written(tmp_path / "x", b"\x82\xa3a/b" + value + b"\xa1a" + tree(value, b"b"))
    with pytest.raises(UnknownFormat, match="expected one value 'a/b', received two"):
        flax_msgpack.read(path)


def test_arrays_of_no_numbers_are_named_and_not_read(tmp_path: Path) -> None:
    path = written(tmp_path / "x", tree(packed(b"\x91\x01", b"str32", b"1234")))
    assert flax_msgpack.read(path).unread == {"w": "an array of no numbers"}


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (b"\xc4\x01x", "bytes"),
        (b"\xdb" + struct.pack(">I", 65_537) + b"a" * 65_537, "a long text"),
        (b"\xd4\x05x", "an extension of type 5"),
    ],
)
def test_other_values_are_named_and_not_read(tmp_path: Path, value: bytes, what: str) -> None:
    path = written(tmp_path / "x", b"\x82\xa1v" + value + b"\xa1w" + packed(b"\x91\x01", b"float32", bytes(4)))
    held = flax_msgpack.read(path)
    assert held.unread == {"v": what}
    assert held.tensors["w"].read().tolist() == [0]


@given(st.binary(max_size=300))
def test_any_bytes_are_a_tree_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = written(tmp_path_factory.getbasetemp() / "any", b"\x81\xa1w" + content)
    with contextlib.suppress(PolyakError):
        for tensor in flax_msgpack.read(path).tensors.values():
            assert tensor.read().shape == tensor.shape


@pytest.mark.parametrize("content", [b"", b"\x80", b"\x80\x04\x95", b"PK\x03\x04", b"\x89HDF\r\n", b"{}", b"\x81\x01"])
def test_other_files_are_not_taken_for_it(tmp_path: Path, content: bytes) -> None:
    assert not flax_msgpack.recognises(written(tmp_path / "x", content))
    assert not flax_msgpack.recognises(tmp_path)


@pytest.mark.parametrize("key", ["", "k", "k" * 40, "k" * 300, "k" * 4000, "\u6743" * 1300, "a" + "\u6743" * 1300])
@pytest.mark.parametrize("inner", [True, False], ids=["a map", "an array"])
def test_the_first_key_may_be_of_any_length(key: str, inner: bool, tmp_path: Path) -> None:
    serialization = pytest.importorskip("flax.serialization")
    value = np.float32([1, 2])
    content = serialization.to_bytes({key: {"w": value} if inner else value, "z": value})
    found = polyak.open(written(tmp_path / "a.msgpack", content))
    assert sorted(found) == sorted([f"{key}/w" if inner else key, "z"])


def test_an_empty_first_key_proves_little(tmp_path: Path) -> None:
    assert not flax_msgpack.recognises(written(tmp_path / "a", b"\x81\xa0\x01"))
