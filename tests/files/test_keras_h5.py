"""HDF5, .keras and sharded files: what is refused, and what plain HDF5 cannot notice."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
from tests.files.bounded import file_sizes

import polyak
from polyak.errors import DamagedFile, FileError, UnknownFormat
from polyak.files import keras_archive, keras_h5
from polyak.files.hdf5_stream import Watched
from polyak.files.keras_hdf5 import Hdf5

VALUE = np.arange(12, dtype=np.float32).reshape(3, 4)


def written(path: Path, **more: Any) -> Path:
    with h5py.File(path, "w") as file:
        file["layers/dense/vars/0"] = VALUE
        file["layers/dense/vars"].attrs["name"] = "head"
        for name, value in more.items():
            file[f"layers/dense/vars/{name}"] = value
    return path


def chunked(path: Path, value: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("w", data=value, chunks=(100,), compression="gzip")
    return path


def test_arrays_are_read_by_their_place(tmp_path: Path) -> None:
    snap = polyak.open(written(tmp_path / "a.h5", b=VALUE.astype(np.float16)))
    assert list(snap) == ["layers/dense/vars/0", "layers/dense/vars/b"]
    assert snap["layers/dense/vars/0"].tobytes() == VALUE.tobytes()
    assert snap["layers/dense/vars/b"].dtype == np.float16


def test_a_file_of_plain_hdf5_says_that_nothing_protects_it(tmp_path: Path) -> None:
    assert polyak.open(written(tmp_path / "a.h5")).integrity == "none"


def test_bfloat16_is_read_as_such(tmp_path: Path) -> None:
    value = VALUE.astype(ml_dtypes.bfloat16)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("vars/0", data=value).attrs["dtype"] = "bfloat16"
    found = polyak.open(tmp_path / "a.h5")["vars/0"]
    assert found.dtype == ml_dtypes.bfloat16
    assert found.tobytes() == value.tobytes()


def test_big_endian_values_arrive_in_the_order_of_this_machine(tmp_path: Path) -> None:
    found = polyak.open(written(tmp_path / "a.h5", big=VALUE.astype(">f4")))["layers/dense/vars/big"]
    assert found.tobytes() == VALUE.tobytes()


def test_a_file_in_use_can_be_written_again_and_the_old_snapshot_says_so(tmp_path: Path) -> None:
    snap = polyak.open(written(tmp_path / "a.h5"))
    written(tmp_path / "a.h5", other=VALUE)
    with pytest.raises(FileError, match="it was written again after it was opened"):
        snap["layers/dense/vars/0"]


@pytest.mark.parametrize("still_hdf5", [True, False])
def test_a_file_that_is_written_again_during_a_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, still_hdf5: bool
) -> None:
    """Whether HDF5 then finds other numbers, or nothing that it can unpack."""
    path, whole = chunked(tmp_path / "a.h5", np.ones(1000)), Watched.readinto
    other = chunked(tmp_path / "b.h5", np.full(1000, 5.0)).read_bytes()
    after = other if still_hdf5 else bytes(len(other))
    os.utime(path, ns=(0, 0))  # long ago: clocks of file systems are coarse
    tensor = keras_h5.read(path).tensors["w"]

    def then_written(held: Watched, buffer: memoryview) -> int:
        got = whole(held, buffer)
        if not held.watching:
            path.write_bytes(after)
        return got

    monkeypatch.setattr(Watched, "readinto", then_written)
    with pytest.raises(FileError, match="it was written again after it was opened"):
        tensor.read()


def test_hdf5_is_not_asked_for_anything_of_a_file_that_was_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = chunked(tmp_path / "a.h5", np.ones(1000))
    os.utime(path, ns=(0, 0))
    tensor = keras_h5.read(path).tensors["w"]
    path.write_bytes(path.read_bytes())
    monkeypatch.setattr(Watched, "readinto", lambda held, buffer: pytest.fail("it was read"))
    with pytest.raises(FileError, match="it was written again after it was opened"):
        tensor.read()


def test_threads_read_one_snapshot_of_values_that_look_like_heaps_of_texts(
    tmp_path: Path, quick_switches: None
) -> None:
    """Only the structure of a file is looked through for damaged heaps, whoever else reads values meanwhile."""
    value = np.frombuffer(bytes(40_000) + (b"GCOL\x01\0\0\0" + b"\xff" * 8) * 200 + bytes(40_000), np.uint8)
    held = polyak.open(written(tmp_path / "a.h5", **{f"w{i}": value for i in range(40)}))
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(lambda _: [held[name].tobytes() for name in list(held)[1:]], range(8)))
    assert read == [[value.tobytes()] * 40] * 8


@pytest.fixture
def quick_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    path = written(tmp_path / "a.h5")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DamagedFile, match="truncated or damaged"):
        polyak.open(path)


def external_link(file: h5py.File) -> None:
    file["vars/0"] = h5py.ExternalLink("other.h5", "/secret")


def soft_link(file: h5py.File) -> None:
    file["vars/0"] = h5py.SoftLink("/elsewhere")


def circle(file: h5py.File) -> None:
    file["layers/again"] = file["/"]


def external_storage(file: h5py.File) -> None:
    file.create_dataset("vars/0", (4,), "f4", external=[("raw.bin", 0, 16)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3, 4), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (3, 4))
    file.create_virtual_dataset("vars/0", layout)


def never_filled(file: h5py.File) -> None:
    file.create_dataset("vars/0", (2**32,), "f4")


def hollow_chunks(file: h5py.File) -> None:
    file.create_dataset("vars/0", (2**32,), "f4", chunks=(2**16,), compression="gzip")


def huge_chunk(file: h5py.File) -> None:
    file.create_dataset("vars/0", (4,), "f4", maxshape=(None,), chunks=(2**29,), compression="gzip")


def second_name(file: h5py.File) -> None:
    file["vars/0"] = VALUE
    file["vars/1"] = file["vars/0"]


def many_groups(file: h5py.File) -> None:
    for number in range(2100):
        file.create_group(f"layers/{number}")


def packed_zeros(file: h5py.File) -> None:
    file.create_dataset("vars/0", data=np.zeros(5 << 20, np.float32), chunks=(1 << 18,), compression="gzip")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (external_link, "received an external link"),
        (circle, "expected a tree of groups"),
        (external_storage, "received external storage"),
        (virtual, "received a virtual dataset"),
        (never_filled, "expected 17,179,869,184 bytes by its shape, received 0 bytes"),
        (hollow_chunks, "expected 17,179,869,184 bytes by its shape, received 0 bytes"),
        (huge_chunk, "by its shape"),
        (second_name, "weight 'vars/1': expected an array of its own, received a second name of another"),
        (many_groups, r"expected a file of weights, received 2,\d+ groups and 0 arrays"),
        (
            packed_zeros,
            r"weight 'vars/0': expected at most 20 bytes for each of the file's \d\d,\d+, received 20,971,520",
        ),
    ],
)
def test_what_keras_does_not_write_is_refused_before_it_is_read(
    tmp_path: Path, make: Callable[[h5py.File], None], said: str
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        make(file)
    with pytest.raises(DamagedFile, match=said):
        polyak.open(tmp_path / "a.h5")


def test_arrays_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    path, size = tmp_path / "a.h5", 1 << 20
    with h5py.File(path, "w") as file:
        file["vars/0"] = np.ones(size, np.uint8)
        address = file["vars/0"].id.get_offset()
        for number in (1, 2):
            file.create_dataset(f"vars/{number}", (size,), np.uint8)
    nowhere, there = (
        (3, 1, *place, *size.to_bytes(8, "little")) for place in (b"\xff" * 8, address.to_bytes(8, "little"))
    )
    content = path.read_bytes()
    assert content.count(bytes(nowhere)) == 2
    path.write_bytes(content.replace(bytes(nowhere), bytes(there)))
    with pytest.raises(
        DamagedFile, match=r"expected arrays that lie apart, received 3,145,728 bytes in a file of 1,\d+"
    ):
        polyak.open(path)


def test_one_text_that_stands_for_many_is_refused(tmp_path: Path) -> None:
    """HDF5 stores a text that has no fixed length elsewhere; here every group refers to the same one."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["vars/0"] = VALUE
        file.attrs["name"] = "x" * (1 << 20)
        for number in range(20):
            file.create_group(f"layers/{number}").attrs["name"] = "y" * 7
    _make_all_one(path, 20)
    with pytest.raises(DamagedFile, match="expected texts of its own, received one again and again"):
        polyak.open(path)


def test_a_list_whose_names_are_all_one_long_text_is_refused(tmp_path: Path) -> None:
    """HDF5 would take memory for each of them at once."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["vars/0"] = VALUE
        file.attrs["name"] = "x" * (1 << 20)
        file.attrs["layer_names"] = ["y" * 7] * 300
    _make_all_one(path, 300)
    with pytest.raises(DamagedFile, match="received texts of up to 1,048,576 bytes in a list of many"):
        polyak.open(path)


def test_long_lists_of_names_are_read_in_large_files_and_beside_long_texts(tmp_path: Path) -> None:
    path, names = tmp_path / "a.h5", tuple(f"layer_{number}" for number in range(1_000))
    with h5py.File(path, "w") as file:
        file["vars/0"] = np.zeros(1 << 20, np.float32)
        file.attrs["model_config"] = "x" * 300_000
        file.attrs["layer_names"] = list(names)
    with path.open("rb") as raw:
        texts = Hdf5(raw, "a.h5").texts("")
    assert texts["layer_names"] == names
    assert texts["model_config"] == "x" * 300_000


def _make_all_one(path: Path, texts: int) -> None:
    """So many texts of seven letters become references to the one of a mebibyte."""
    content = path.read_bytes()
    large, small = (_references(content, size) for size in (1 << 20, 7))
    assert (len(large), len(small)) == (1, texts)
    for reference in small:
        content = content.replace(reference, large[0])
    path.write_bytes(content)


def _references(content: bytes, size: int) -> list[bytes]:
    """All references to texts of so many bytes: the size, the address of a heap, and the text's number in it."""
    found, at = [], -1
    while (at := content.find(size.to_bytes(4, "little"), at + 1)) >= 0:
        heap = int.from_bytes(content[at + 4 : at + 12], "little")
        if content[heap : heap + 4] == b"GCOL":
            found.append(content[at : at + 16])
    return found


def test_a_filter_of_its_own_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("vars/0", data=np.arange(64), scaleoffset=0, chunks=(64,))
    with pytest.raises(UnknownFormat, match="received HDF5 filter 6"):
        polyak.open(tmp_path / "a.h5")


def put(file: h5py.File, value: Any) -> None:
    file["x"] = value


def times(file: h5py.File) -> None:
    h5py.h5d.create(file.id, b"x", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((2,)))


def lists(file: h5py.File) -> None:
    file.create_dataset("x", (2,), h5py.vlen_dtype(np.int32))[0] = [1, 2]


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda file: put(file, "text"), "a text"),
        (lambda file: put(file, ["a", "bc"]), "an array of texts"),
        (lambda file: put(file, np.array([b"a", b"bc"])), "an array of texts"),
        (lambda file: put(file, file.ref), "an array of references"),
        (lambda file: put(file, np.zeros(2, [("a", "f4"), ("b", "i4")])), "an array of records"),
        (lambda file: put(file, np.void(b"abc")), "an array of bytes"),
        (lambda file: put(file, h5py.Empty("f4")), "an array without a shape"),
        (lists, "an array of lists"),
        (times, "an array of times"),
    ],
)
def test_what_holds_no_numbers_is_named_and_the_weights_beside_it_are_read(
    tmp_path: Path, make: Callable[[h5py.File], None], what: str
) -> None:
    with h5py.File(written(tmp_path / "a.h5", z=np.array([1 + 2j])), "r+") as file:
        make(file)
    held = polyak.open(tmp_path / "a.h5")
    assert list(held) == ["layers/dense/vars/0", "layers/dense/vars/z"]
    assert held["layers/dense/vars/0"].tobytes() == VALUE.tobytes()
    assert held.manifest.unread == {"x": what}
    assert held.manifest.note == f"not read: x ({what})"


def test_types_and_attributes_that_keras_has_not_are_named(tmp_path: Path) -> None:
    with h5py.File(written(tmp_path / "a.h5"), "r+") as file:
        file["a_type"] = np.dtype("f4")
        file.attrs.update({"number": 3, "reference": file.ref, "text": "kept", "nothing": h5py.Empty("f4")})
        file["layers/dense/vars/0"].attrs["scale"] = 0.5
    found = keras_h5.read(tmp_path / "a.h5")
    assert list(found.tensors) == ["layers/dense/vars/0"]
    assert found.facts == {"text": "kept", "layers/dense/vars/name": "head"}
    named = ["@nothing", "@number", "@reference", "@text", "layers/dense/vars/0@scale"]
    assert found.beside == {"a_type": "a type with a name", **dict.fromkeys(named, "an attribute")}


def test_other_members_of_an_archive_are_named(tmp_path: Path) -> None:
    made = archive(tmp_path / "a.keras", **{"assets/words.txt": b"a", "assets/": b""})
    assert polyak.open(made).manifest.unread == {"assets/words.txt": "a member of the archive"}


def archive(path: Path, compression: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    weights = written(path.with_suffix(".h5")).read_bytes()
    held = {"config.json": b"{}", "metadata.json": b'{"keras_version": "3.15.1"}', "model.weights.h5": weights}
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in {**held, **{k.replace("_json", ".json"): v for k, v in members.items()}}.items():
            file.writestr(name, data)
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_is_read_packed_or_not(tmp_path: Path, compression: int) -> None:
    snap = polyak.open(archive(tmp_path / "a.keras", compression))
    assert snap["layers/dense/vars/0"].tobytes() == VALUE.tobytes()
    assert snap.integrity == "crc32"
    assert snap.manifest.tool == "Keras 3.15.1"


def test_every_flipped_byte_of_the_weights_in_an_archive_is_noticed(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.keras")
    data = bytearray(path.read_bytes())
    start = data.index(b"\x89HDF")
    for at in range(start, start + len(written(tmp_path / "b.h5").read_bytes()), 97):
        data[at] ^= 4
        path.write_bytes(data)
        with pytest.raises(DamagedFile, match="cannot be unpacked: Bad CRC-32"):
            polyak.open(path)
        data[at] ^= 4


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_weights_are_copied_out_of_an_archive_only_if_they_are_packed(
    packing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = []
    monkeypatch.setattr(keras_archive, "_IN_MEMORY", 0)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda make=tempfile.TemporaryFile: copies.append(1) or make())
    value = np.random.default_rng(0).random(100_000, np.float32)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["layers/dense/vars/0"] = value
    with zipfile.ZipFile(tmp_path / "m.keras", "w", packing) as made:
        made.writestr("config.json", "{}")
        made.write(tmp_path / "w.h5", "model.weights.h5")
    held = polyak.open(tmp_path / "m.keras")
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: held["layers/dense/vars/0"], range(8)):
            assert found.tobytes() == value.tobytes()
    assert len(copies) == (packing != zipfile.ZIP_STORED)


def test_a_wrong_checksum_of_weights_that_are_read_in_place_is_noticed(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.keras")
    data = bytearray(path.read_bytes())
    data[data.index(VALUE.tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedFile, match=r"Bad CRC-32 of model\.weights\.h5: expected 0x"):
        polyak.open(path)


def test_a_failure_of_the_copy_that_is_no_lack_of_room_is_said_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> Any:
        raise OSError(errno.EIO, "Input/output error")

    path = archive(tmp_path / "a.keras", zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(keras_archive, "_IN_MEMORY", 0)
    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    with pytest.raises(FileError, match="Input/output error") as error:
        polyak.open(path)
    assert "temporary file" not in str(error.value)


def test_an_archive_that_is_written_again_is_told(tmp_path: Path) -> None:
    held = polyak.open(archive(tmp_path / "a.keras"))
    data = (tmp_path / "a.keras").read_bytes()
    (tmp_path / "a.keras").write_bytes(data + b"more")
    with pytest.raises(FileError, match="written again after it was opened"):
        next(iter(held.values()))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_archive_is_refused(tmp_path: Path, share: float) -> None:
    path = archive(tmp_path / "a.keras")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DamagedFile, match="cannot be unpacked"):
        polyak.open(path)


def test_a_zip_bomb_is_refused_by_what_it_declares(tmp_path: Path) -> None:
    """A megabyte of zeros packs to a kilobyte; the directory of the zip claims four gigabytes of the same bytes."""
    path = archive(tmp_path / "a.keras", zipfile.ZIP_DEFLATED, config_json=b"0" * 2**20)
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = (2**32 - 2).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(
        DamagedFile,
        match=r"config\.json': expected at most 20 bytes for each of the file's 1,\d\d\d, received 4,294,967,294",
    ):
        polyak.open(path)


def test_a_text_that_is_too_long_for_one_is_not_read(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "a.keras",
        zipfile.ZIP_DEFLATED,
        config_json=b" " * (2**24 + 1),
        other=random.Random(0).randbytes(2**20),
    )
    with pytest.raises(DamagedFile, match=r"config\.json: expected a text, received one of more than 16,777,216 bytes"):
        polyak.open(path)


def test_an_archive_without_weights_is_no_model(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as file:
        file.writestr("config.json", "{}")
    with pytest.raises(UnknownFormat, match=r"expected model\.weights\.h5 in the archive"):
        polyak.open(tmp_path / "a.keras")


@pytest.mark.parametrize("place", ["", "nothing.keras"])
def test_an_archive_that_cannot_be_read_is_named(tmp_path: Path, place: str) -> None:
    with pytest.raises(FileError, match=r"file '.*': cannot be read: (Is a directory|No such file or directory)"):
        keras_archive.read(tmp_path / place)


def shards(path: Path, weight_map: object) -> Path:
    written(path.with_name("a_00000.weights.h5"))
    path.write_text(json.dumps({"metadata": {"total_size": 48}, "weight_map": weight_map}))
    return path


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    path = shards(tmp_path / "a.weights.json", {"/layers/dense/vars": "a_00000.weights.h5"})
    path.write_text(path.read_text().replace('{"metadata"', '{"of_a_later_keras": [1], "metadata"'))
    assert polyak.open(path)["layers/dense/vars/0"].tobytes() == VALUE.tobytes()


def test_the_name_of_a_shard_is_a_text(tmp_path: Path) -> None:
    path = shards(tmp_path / "a.weights.json", {"/layers/dense/vars": [5, "a_00000.weights.h5"]})
    with pytest.raises(DamagedFile, match="the index of shards is not readable: expected a text at byte 71"):
        polyak.open(path)


@pytest.mark.parametrize("name", ["../a_00000.weights.h5", "/etc/a.h5", "..\\a.h5", "C:a.h5"])
def test_a_shard_lies_beside_its_index(tmp_path: Path, name: str) -> None:
    path = shards(tmp_path / "a.weights.json", {"/layers/dense/vars": [name, "a_00000.weights.h5"]})
    with pytest.raises(DamagedFile, match="expected the name of a shard beside the index"):
        polyak.open(path)


def test_an_index_of_any_length_is_refused_unread(tmp_path: Path) -> None:
    path = shards(tmp_path / "a.weights.json", {"/layers/dense/vars": "a_00000.weights.h5"})
    os.truncate(path, 2**42)  # more than any memory; the file system stores the beginning alone
    with pytest.raises(DamagedFile, match=r"expected an index of shards of at most 50,000,000 bytes, received 4,398,0"):
        polyak.open(path)


def test_an_index_with_more_behind_it_is_refused(tmp_path: Path) -> None:
    path = shards(tmp_path / "a.weights.json", {"/layers/dense/vars": "a_00000.weights.h5"})
    path.write_text(path.read_text() + "}")
    with pytest.raises(DamagedFile, match="the index of shards is not readable"):
        polyak.open(path)


def test_a_shard_that_is_a_link_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = shards(tmp_path / "in" / "a.weights.json", {"/layers/dense/vars": "a_00000.weights.h5"})
    (tmp_path / "in" / "a_00000.weights.h5").rename(tmp_path / "out.h5")
    (tmp_path / "in" / "a_00000.weights.h5").symlink_to(tmp_path / "out.h5")
    with pytest.raises(FileError, match="a link that leads out"):
        polyak.open(path)


def test_a_shard_that_is_no_hdf5_is_named(tmp_path: Path) -> None:
    path = shards(tmp_path / "a.weights.json", {"/layers/dense/vars": "a_00000.weights.h5"})
    (tmp_path / "a_00000.weights.h5").write_bytes(b"x" * 4096)
    with pytest.raises(DamagedFile, match=r"shard 'a_00000\.weights\.h5': expected an HDF5 file, received something"):
        polyak.open(path)


@pytest.mark.parametrize(
    ("weight_map", "error", "said"),
    [
        ({"/layers/dense/vars": "a_00001.weights.h5"}, FileError, "expected the shard 'a_00001.weights.h5' beside it"),
        ({"/layers/other/vars": "a_00000.weights.h5"}, DamagedFile, "where the index does not have it"),
        (
            {"/layers/dense/vars": "a_00000.weights.h5", "/b/vars": "a_00000.weights.h5"},
            DamagedFile,
            "group 'b/vars': expected weights",
        ),
        (["a_00000.weights.h5"], DamagedFile, "the index of shards is not readable"),
    ],
)
def test_an_index_that_does_not_agree_with_its_shards_is_refused(
    tmp_path: Path, weight_map: object, error: type[FileError], said: str
) -> None:
    with pytest.raises(error, match=said):
        polyak.open(shards(tmp_path / "a.weights.json", weight_map))


def test_reading_loads_no_framework(tmp_path: Path) -> None:
    code = (
        f"import sys, polyak; dict(polyak.open({str(archive(tmp_path / 'a.keras'))!r}));"
        "print([m for m in ('keras', 'tensorflow', 'tf_keras') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_soft_link_is_refused_without_a_word_of_damage(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        soft_link(file)
    with pytest.raises(UnknownFormat) as refused:
        polyak.open(tmp_path / "a.h5")
    assert str(refused.value) == (
        f"file {str(tmp_path / 'a.h5')!r}: 'vars/0': expected an array or a group, received a soft link\n"
        "hint: Keras and its like give each array one name: save it again without links"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such bounds")
def test_no_room_for_the_copy_of_an_archives_weights_is_said_of_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.keras"
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["layers/dense/vars/0"] = np.arange(100_000, dtype=np.float32)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.write(tmp_path / "w.h5", "model.weights.h5")
    monkeypatch.setattr(keras_archive, "_IN_MEMORY", 1000)
    said = r"file '.*m\.keras': its weights cannot be unpacked into a temporary file: File too large; it needs 40\d,\d+"
    with file_sizes() as longest:
        longest(100_000)
        with pytest.raises(FileError, match=said) as refused:
            polyak.open(path)
    assert "TMPDIR" in str(refused.value.hint)
    assert polyak.open(path)["layers/dense/vars/0"][7] == 7
