"""PyTorch's first format: files as PyTorch made them, with pax headers, and those that contradict themselves."""

from __future__ import annotations

import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tests.files.test_torch_tar import Keyed, Made, dumped, entry, named, refused, write

import polyak
from polyak.errors import DamagedFile
from polyak.files import torch_pt, torch_tar

torch = pytest.importorskip("torch")

FLOATS = named("torch", "FloatStorage")


@pytest.fixture
def made() -> Made:
    return Made({7: np.arange(6, dtype=np.float32)}, [], {1: (7, (2, 3), (3, 1), 0)}, {"w": Keyed("1")})


def as_pytorch(made: Made, path: Path, sized: bool = False) -> Path:
    """An archive of files from the disk, as PyTorch made it: ``tarfile`` notes their times in headers before theirs.

    sized: and their sizes, as for members of 8 GiB and more.
    """
    with tarfile.open(write(made, path)) as plain:
        plain.extractall(path.parent / "members", filter="data")
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            member = archive.gettarinfo(path.parent / "members" / name, name)
            member.mtime = 1479254400.25
            member.pax_headers = {"size": str(member.size)} if sized else {}
            with (path.parent / "members" / name).open("rb") as file:
                archive.addfile(member, file)
    return path


def with_header(path: Path, member: str, at: int, value: bytes) -> Path:
    """Change the header of a member, and its checksum with it."""
    with tarfile.open(path) as archive:
        start = archive.getmember(member).offset_data - 512
    raw = bytearray(path.read_bytes())
    head = bytearray(raw[start : start + 512])
    head[at : at + len(value)] = value
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    raw[start : start + 512] = head
    path.write_bytes(raw)
    return path


def test_a_file_with_the_headers_that_pytorch_wrote_is_read_as_pytorch_reads_it(made: Made, tmp_path: Path) -> None:
    path = as_pytorch(made, tmp_path / "old.pth")
    assert path.read_bytes().startswith(b"././@PaxHeader")
    wanted = torch.load(path, weights_only=False)["w"].numpy()
    assert polyak.open(path)["w"].tobytes() == wanted.tobytes()


def test_the_size_of_a_large_member_stands_in_the_header_before_it(made: Made, tmp_path: Path) -> None:
    path = with_header(as_pytorch(made, tmp_path / "old.pth", sized=True), "storages", 124, b"00000000000\0")
    wanted = torch.load(path, weights_only=False)["w"].numpy()
    assert polyak.open(path)["w"].tobytes() == wanted.tobytes()


def test_a_member_that_is_there_twice_is_refused(made: Made, tmp_path: Path) -> None:
    path = write(made, tmp_path / "old.pth")
    with tarfile.open(path, "a:") as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    with pytest.raises(DamagedFile, match=r"member b'pickle' at byte .*: expected once"):
        torch_pt.read(path)


def test_a_member_that_is_longer_than_the_file_is_refused(made: Made, tmp_path: Path) -> None:
    path = with_header(write(made, tmp_path / "old.pth"), "storages", 124, b"00007777777\0")
    with pytest.raises(DamagedFile, match=r"member b'storages' at byte .*: expected once and 2097151 bytes, received"):
        torch_pt.read(path)


@pytest.mark.parametrize("digits", [b"0000000009z\0", bytes(12), b"\x80" + bytes(11)])
def test_a_size_that_is_no_number_is_refused(made: Made, tmp_path: Path, digits: bytes) -> None:
    path = with_header(write(made, tmp_path / "old.pth"), "storages", 124, digits)
    with pytest.raises(DamagedFile, match="a header of the archive is damaged"):
        torch_pt.read(path)


def test_a_flipped_bit_in_a_header_is_noticed_wherever_it_is(made: Made, tmp_path: Path) -> None:
    path = write(made, tmp_path / "old.pth")
    whole = path.read_bytes()
    for at in range(512, 1024 + 512, 3):
        head = whole[at // 512 * 512 :][:512]
        if head[257:262] == b"ustar" and not 148 <= at % 512 < 156:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(DamagedFile, match="a header of the archive is damaged"):
                torch_pt.read(path)


def test_two_values_of_one_key_are_refused(made: Made, tmp_path: Path) -> None:
    made.tensors[7] = (7, (6,), (1,), 0)
    refused(made, tmp_path, "two values of the key '7'")


def storage(count: int, content: bytes, kind: bytes = FLOATS) -> bytes:
    """A member with one storage."""
    return dumped(1) + entry(7, "cpu", kind) + struct.pack("<q", count) + content


DESCRIBED = {
    "a storage beyond its member": (
        {"storages": storage(7, bytes(24))}, "member 'storages' at byte .*: expected 28 bytes, received 24"
    ),
    "a storage of less than nothing": (
        {"storages": storage(-1, bytes(24))}, "member 'storages' at byte .*: expected -4 bytes, received 24"
    ),
    "a tensor without numbers": (
        {"tensors": dumped(1) + entry(1, 7, named("torch", "FloatTensor"))},
        "member 'tensors' at byte .*: expected 8 bytes, received 0",
    ),
    "a storage of a sort that is not read": (
        {"storages": storage(24, bytes(24), named("torch", "QInt8Storage"))},
        r"a tensor in torch\.QInt8Storage, whose size is not known: refused",
    ),
    "a number for a storage": (
        {"storages": dumped(1) + dumped(5) + bytes(64)},
        "expected the description of a storage or tensor, received something else",
    ),
    "a storage of two values": (
        {"storages": dumped(1) + dumped((7, "cpu")) + bytes(64)},
        "expected the description of a storage or tensor, received something else",
    ),
    "a number for a tensor": (
        {"tensors": dumped(1) + dumped(5) + bytes(64)},
        "expected the description of a tensor, received something else",
    ),
    "a tensor of two values": (
        {"tensors": dumped(1) + dumped((1, 7)) + bytes(64)},
        "expected the description of a tensor, received something else",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DESCRIBED)
def test_what_is_not_described_as_it_must_be_is_refused(made: Made, tmp_path: Path, name: str) -> None:
    members, match = DESCRIBED[name]
    refused(made, tmp_path, match, **members)


@pytest.mark.parametrize(
    ("view", "match"),
    [
        (5, "a part of a storage without a description"),
        ((8, 7, 0), "a part of a storage without a description"),
        ((8, 7, -2, 3), "a part of something that is no storage"),
        ((8, 7, 0, 2.5), "a part of something that is no storage"),
        ((8, 9, 0, 1), "the tensor '9', which there is not"),
    ],
)
def test_a_part_of_a_storage_must_be_described_and_lie_in_it(
    made: Made, tmp_path: Path, view: object, match: str
) -> None:
    made.views = [view]
    refused(made, tmp_path, match)


def test_a_tensor_of_a_tensor_is_refused(made: Made, tmp_path: Path) -> None:
    made.tensors[2] = (1, (2,), (1,), 0)
    refused(made, tmp_path, "a tensor without a storage")


def test_a_module_beside_its_source_is_a_class_by_name(made: Made, tmp_path: Path) -> None:
    made.tree = {"w": Keyed("1"), "made by": Keyed((3, "source of it"))}
    assert torch_pt.read(write(made, tmp_path / "m.pth")).facts == {"made by": 3}


def test_a_tensor_where_none_can_be_is_refused(made: Made, tmp_path: Path) -> None:
    refused(made, tmp_path, "a tensor where there is none", storages=dumped(Keyed("1")))


def test_an_archive_of_members_without_end_is_read_to_a_bound(made: Made, tmp_path: Path) -> None:
    many = {f"more {i}": b"" for i in range(torch_tar._MOST_HEADERS)}
    assert set(torch_pt.read(write(made, tmp_path / "m.pth", **many)).tensors) == {"w"}
