"""npz files: NumPy's own open, ours open in NumPy, and damaged or hostile ones are refused in bounded memory."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tests.attacks import attack

import polyak
from polyak.errors import DamagedFile, FileError, PolyakError, UnexpectedWeight, UnknownFormat
from polyak.files import npz
from polyak.manifest import State
from polyak.snapshot import Snapshot

INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
DTYPES = ["bool", *INTEGERS, "float16", "float32", "float64", "complex64", "complex128"]


def npy(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), **options)
    return buffer.getvalue()


def header(text: str) -> bytes:
    body = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(body)) + body


def shaped(shape: str) -> str:
    return f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}"


def zipped(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def arrays() -> dict[str, np.ndarray[Any, Any]]:
    return {f"x/{name}": np.arange(6).reshape(2, 3).astype(name) for name in DTYPES}


# --- NumPy is the oracle ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_files_of_numpy_open_as_numpy_opens_them(
    save: Callable[..., None], arrays: dict[str, Any], tmp_path: Path
) -> None:
    odd = {
        "big": np.arange(4, dtype=">f4"),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "scalar": np.float32(2.5),
        "empty": np.zeros((0, 3)),
    }
    save(tmp_path / "a.npz", **arrays, **odd)
    found = polyak.open(tmp_path / "a.npz")
    assert (found.integrity, found.roles) == ("crc32", ("raw",))
    with np.load(tmp_path / "a.npz") as expected:
        assert list(found) == expected.files
        for name in expected.files:
            assert found[name].dtype == expected[name].dtype.newbyteorder("=")
            assert found[name].shape == expected[name].shape
            assert np.array_equal(found[name], expected[name])


def test_ours_open_in_numpy_and_keep_every_bit_and_the_state(arrays: dict[str, Any], tmp_path: Path) -> None:
    state = State({"rule": "mean"}, 3)
    extended = {
        "bf": ml_dtypes.bfloat16, "f8": ml_dtypes.float8_e4m3fn, "f8_e5m2": ml_dtypes.float8_e5m2, "i4": ml_dtypes.int4
    }  # fmt: skip
    arrays |= {name: np.array([[1, -2, 3]], dtype) for name, dtype in extended.items()}
    arrays |= {"scalar": np.array(1, ml_dtypes.bfloat16), "empty": np.zeros((2, 0), np.float32)}
    held = Snapshot.from_arrays(arrays, "average", state)
    npz.write(held, tmp_path / "a.npz")
    found = polyak.open(tmp_path / "a.npz")
    assert polyak.diff(held, found).equal
    assert (found.state, found.integrity) == (state, "xxh3-128")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as plain:
        assert plain.files == [*arrays, "polyak.json"]
        assert np.array_equal(plain["x/float32"], arrays["x/float32"])
        assert np.array_equal(plain["bf"].view(ml_dtypes.bfloat16), arrays["bf"])


def test_equal_weights_make_equal_files(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        npz.write(Snapshot.from_arrays({"w": np.float32([1])}), tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_headers_alone_are_read_on_opening(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros(2_000_000), b=np.zeros(2_000_000))
    tracemalloc.start()
    assert len(polyak.open(tmp_path / "a.npz")) == 2
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()


def test_text_is_left_out_and_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.float32([1]), note=np.array("text"))
    contents = npz.read(tmp_path / "a.npz")
    assert (list(contents.tensors), dict(contents.unread)) == (["w"], {"note": "an array of <U4"})


@pytest.mark.parametrize("name", ["polyak.json", "a\0b", "a\nb", "x" * 70_000])
def test_names_that_a_zip_cannot_hold_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnexpectedWeight, match="rename it"):
        npz.write(Snapshot.from_arrays({name: np.float32([1])}), tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"PK\5\6" + b"\0" * 18, b"\x93NUMPY", b"\0" * 100])
def test_other_files_are_not_recognised(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    assert not npz.recognises(tmp_path / "a.npz")
    assert not npz.recognises(tmp_path)
    zipped(tmp_path / "b.npz", {"data.pkl": b"", "w.npy": npy(1)})
    assert not npz.recognises(tmp_path / "b.npz")


def test_what_holds_no_numbers_is_named_and_the_weights_beside_it_are_read(tmp_path: Path) -> None:
    beside = {"settings": None, "lists": np.array([{}], object), "pairs": np.zeros(2, "i4,f4"), "words": ["a", "b"]}
    np.savez(tmp_path / "a.npz", w=np.ones(3), **beside)
    held = polyak.open(tmp_path / "a.npz")
    assert list(held) == ["w"]
    assert held["w"].tolist() == [1, 1, 1]
    assert held.manifest.unread == {
        "settings": "pickled objects, which polyak never unpickles",
        "lists": "pickled objects, which polyak never unpickles",
        "pairs": "an array of records",
        "words": "an array of <U1",
    }


# --- damaged and hostile files ---------------------------------------------------------------------------------------

GOOD = npy(np.arange(1000.0))


def read_all(path: Path) -> None:
    for tensor in npz.read(path).tensors.values():
        tensor.read()


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (npy(np.ones(2, "V2")), UnknownFormat, "NumPy stores bfloat16 and float8 without their names"),
        (GOOD[:-1], DamagedFile, r"weight 'w' at byte 0: expected 8,128 bytes .* received 8,127"),
        (GOOD + b"\0", DamagedFile, "received 8,129"),
        (b"\x93NUMPY\x04\x00" + GOOD[8:], DamagedFile, r"expected .npy version 1.0, 2.0 or 3.0, received \(4, 0\)"),
        (b"no array", DamagedFile, "weight 'w': not readable"),
        (b"", DamagedFile, "weight 'w': not readable"),
        (GOOD[:50], DamagedFile, "weight 'w': not readable"),
        (header(shaped("(-1,)")), DamagedFile, "expected a shape"),
        (
            header(shaped(f"({1 << 60},)")),
            DamagedFile,
            "expected a shape",
        ),
        (
            header(shaped("(1000000000,)")),
            DamagedFile,
            "expected 8,000,000,",
        ),
        (header(shaped("(1,)*99")), DamagedFile, "not readable"),
        (header("__import__('os').abort()"), DamagedFile, "weight 'w': not readable"),
        (header("(" * 100), DamagedFile, "weight 'w': not readable"),
        (header("-" * 9000 + "1"), DamagedFile, "weight 'w': not readable: its header is too deep"),
        (
            b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b"[" * 20_000,
            DamagedFile,
            "weight 'w': not readable: expected an .npy header of at most",
        ),
    ],
)
def test_a_bad_member_is_refused_by_name(content: bytes, error: type[Exception], message: str, tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.npz", {"w.npy": content})
    tracemalloc.start()
    with pytest.raises(error, match=message) as caught:
        read_all(path)
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_every_flipped_byte_is_found_or_harmless(compression: int, tmp_path: Path) -> None:
    good = zipped(tmp_path / "a.npz", {"w.npy": npy(np.float32([1, 2, 3]))}, compression).read_bytes()
    expected = np.float32([1, 2, 3]).tobytes()
    bad = tmp_path / "b.npz"
    for position in range(len(good)):
        bad.write_bytes(good[:position] + bytes([good[position] ^ 0x55]) + good[position + 1 :])
        try:
            found = {name: t.read().tobytes() for name, t in npz.read(bad).tensors.items()}
        except PolyakError:
            continue
        assert list(found.values()) == [expected]  # a time or an attribute of the zip


def test_every_truncation_is_found(tmp_path: Path) -> None:
    good = zipped(tmp_path / "a.npz", {"w.npy": npy(np.float32([1, 2, 3]))}).read_bytes()
    for length in range(40, len(good)):
        (tmp_path / "b.npz").write_bytes(good[:length])
        with pytest.raises(DamagedFile, match=r"b\.npz"):
            polyak.open(tmp_path / "b.npz")


def test_a_flipped_byte_of_a_large_array_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.npz", {"w.npy": npy(np.arange(100_000.0))})
    content = bytearray(path.read_bytes())
    content[400_000] ^= 1
    path.write_bytes(content)
    tensor = npz.read(path).tensors["w"]
    with pytest.raises(DamagedFile, match="weight 'w': not readable: Bad CRC-32 of the bytes from"):
        tensor.read()


def test_a_packed_array_that_ends_early_is_refused(tmp_path: Path) -> None:
    short = GOOD[:-4000]
    path = tmp_path / "a.npz"
    path.write_bytes(attack.zipped([attack.Member("w.npy", short, packed=True, size=len(GOOD))]))
    tensor = npz.read(path).tensors["w"]
    with pytest.raises(DamagedFile, match="weight 'w': not readable: expected 8,000 bytes, received 4,000"):
        tensor.read()


def test_a_file_that_is_changed_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.npz", {"w.npy": npy(np.arange(100_000.0))})
    tensor, before = npz.read(path).tensors["w"], path.stat()
    with path.open("r+b") as file:
        file.seek(28)
        file.write(b"\xff\xff")  # the length of what lies before the array
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DamagedFile, match="weight 'w': not readable: expected 800,128 bytes at byte 65570, received"):
        tensor.read()


def test_a_bomb_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.npz", {"w.npy": npy(np.zeros(100_000))}, zipfile.ZIP_DEFLATED)
    content = path.read_bytes()
    for signature, offset in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        at = content.index(signature) + offset
        content = content[:at] + struct.pack("<I", 4_000_000_000) + content[at + 4 :]
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=r"member 'w\.npy': expected at most 20 bytes for each of the file's"):
        polyak.open(path)


def test_members_that_share_bytes_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.npz", {"a.npy": GOOD, "b.npy": GOOD})
    content = bytearray(path.read_bytes())
    second = content.index(b"PK\1\2", content.index(b"PK\1\2") + 1)
    content[second + 42 : second + 46] = struct.pack("<I", 0)
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=r"overlaps another|not readable"):
        read_all(path)


def test_doubles_encryption_and_strangers_are_refused(tmp_path: Path) -> None:
    content = zipped(tmp_path / "a.npz", {"w.npy": GOOD, "v.npy": GOOD}).read_bytes()
    (tmp_path / "a.npz").write_bytes(content.replace(b"v.npy", b"w.npy"))
    with pytest.raises(DamagedFile, match="a name occurs twice"):
        npz.read(tmp_path / "a.npz")
    zipped(tmp_path / "b.npz", {"w.npy": GOOD, "data.pkl": b"cos\nsystem\n"})
    with pytest.raises(UnknownFormat, match=r"member 'data\.pkl' at byte \d+: expected an .npy array"):
        npz.read(tmp_path / "b.npz")
    content = bytearray(zipped(tmp_path / "c.npz", {"w.npy": GOOD}).read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "c.npz").write_bytes(content)
    with pytest.raises(UnknownFormat, match="it is encrypted"):
        npz.read(tmp_path / "c.npz")


def test_a_manifest_of_other_weights_is_refused(tmp_path: Path) -> None:
    npz.write(Snapshot.from_arrays({"w": np.float32([1])}), tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as held:
        manifest = held["polyak.json"]
    for arrays, message in (
        ({"w": np.float32([1, 2])}, r"weight 'w': expected \(1,\) float32 by the manifest, received \(2,\) float32"),
        ({"v": np.float32([1])}, r"weight 'v': expected nothing by the manifest, received \(1,\) float32"),
        ({"w": np.float64([1])}, "received .* float64"),
    ):
        np.savez(tmp_path / "b.npz", **arrays, **{"polyak.json": manifest})
        with pytest.raises(DamagedFile, match=message):
            polyak.open(tmp_path / "b.npz")
    unknown = np.frombuffer(manifest.tobytes().replace(b'"float32"', b'"float31"'), np.uint8)
    np.savez(tmp_path / "b.npz", w=np.float32([1]), **{"polyak.json": unknown})
    with pytest.raises(DamagedFile, match=r"weight 'w': expected \(1,\) of an unknown dtype by the manifest, received"):
        polyak.open(tmp_path / "b.npz")
    np.savez(tmp_path / "b.npz", **{"polyak.json": np.float32([1])})
    with pytest.raises(DamagedFile, match="the manifest is not readable: expected a short text, received"):
        polyak.open(tmp_path / "b.npz")


def test_other_values_under_our_manifest_are_found(tmp_path: Path) -> None:
    npz.write(Snapshot.from_arrays({"w": np.float32([1])}), tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as held:
        np.savez(tmp_path / "b.npz", **{"polyak.json": held["polyak.json"], "w": np.float32([2])})
    with pytest.raises(DamagedFile, match="weight 'w': expected bytes with digest"):
        _ = polyak.open(tmp_path / "b.npz")["w"]


def test_a_path_with_nothing_there_is_told_from_a_file_of_no_known_format(tmp_path: Path) -> None:
    npz.write(Snapshot.from_arrays({"w": np.float32([1])}), tmp_path / "model.npz")
    with pytest.raises(FileError, match=r"modle\.npz': there is nothing at this path\nhint: nearest: '.*model\.npz'"):
        polyak.open(tmp_path / "modle.npz")
    (tmp_path / "notes.npz").write_text("no weights")
    with pytest.raises(UnknownFormat, match="expected weights, received a file of no known format"):
        polyak.open(tmp_path / "notes.npz")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"nothing\.npz'"):
        npz.read(tmp_path / "nothing.npz")


def test_a_header_of_version_three_is_read(tmp_path: Path) -> None:
    array = np.arange(3.0)
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(3, 0))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("below/w.npy", buffer.getvalue())
    held = polyak.open(tmp_path / "a.npz")
    assert held["below/w"].tobytes() == array.tobytes()
