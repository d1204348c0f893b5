"""Distributed checkpoints of PyTorch whose list contradicts itself, or whose chunks are not what the list says."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.files.jax_golden import GOLDEN
from tests.files.test_torch_dcp import changed

from polyak.errors import DamagedFile, FileError
from polyak.files import torch_dcp

torch = pytest.importorskip("torch")
pytest.importorskip("torch.distributed.checkpoint")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "dcp_sharded", tmp_path / "dcp_sharded"))


def moved(
    metadata: Any, key: str, sizes: tuple[int, ...] | None = None, offsets: tuple[int, ...] | None = None
) -> None:
    """Give the first chunk of a tensor other sizes or offsets, in the list of tensors and in that of places."""
    chunk = metadata.state_dict_metadata[key].chunks[0]
    index = next(i for i in metadata.storage_data if (i.fqn, i.offset) == (key, chunk.offsets))
    chunk.sizes = torch.Size(chunk.sizes if sizes is None else sizes)
    chunk.offsets = torch.Size(chunk.offsets if offsets is None else offsets)
    metadata.storage_data[replace(index, offset=chunk.offsets)] = metadata.storage_data.pop(index)


def renamed(metadata: Any) -> None:
    """Two names, one of them in steps, that are one path."""
    entries = metadata.state_dict_metadata
    for old, new in (("whole", "a.b"), ("rows", "a/b")):
        entries[new] = entries.pop(old)
        for index in [i for i in metadata.storage_data if i.fqn == old]:
            metadata.storage_data[replace(index, fqn=new)] = metadata.storage_data.pop(index)
    metadata.planner_data = {"a.b": ("a", "b"), "a/b": ("a/b",)}


def with_entry(value: Any) -> Callable[[Any], None]:
    return lambda metadata: metadata.state_dict_metadata.__setitem__("whole", value)


def with_field(name: str, value: Any) -> Callable[[Any], None]:
    return lambda metadata: setattr(metadata.state_dict_metadata["whole"], name, value)


def with_place(name: str, value: Any) -> Callable[[Any], None]:
    def change(metadata: Any) -> None:
        for place in metadata.storage_data.values():
            setattr(place, name, value)

    return change


LISTS: dict[str, tuple[Callable[[Any], None], str]] = {
    "one path": (renamed, "two values 'a/b'"),
    "a number for a tensor": (with_entry(3), "expected a TensorStorageMetadata, received int"),
    "a shape for a tensor": (
        with_entry(torch.distributed.checkpoint.metadata.ChunkStorageMetadata(torch.Size([1]), torch.Size([1]))),
        r"expected a TensorStorageMetadata, received torch\.distributed\.checkpoint\.metadata\.ChunkStorageMetadata",
    ),
    "a number for a chunk": (with_field("chunks", [3]), "expected a ChunkStorageMetadata, received int"),
    "a number for a name": (lambda m: m.state_dict_metadata.__setitem__(3, None), "a tensor without a name"),
    "fewer axes": (lambda m: moved(m, "whole", sizes=(35,), offsets=(0,)), r"'whole': a chunk of \(35,\) in \(7, 5\)"),
    "fewer sizes": (lambda m: moved(m, "whole", sizes=(35,)), r"'whole': a chunk of \(35,\) in \(7, 5\)"),
    "a chunk beyond its tensor": (
        lambda m: moved(m, "whole", offsets=(1, 0)), r"'whole': a chunk of \(7, 5\) at \(1, 0\) in \(7, 5\)"
    ),
    "no properties": (with_field("properties", None), "a tensor without a dtype"),
    "a text as dtype": (
        lambda m: setattr(m.state_dict_metadata["whole"].properties, "dtype", "float32"), "a tensor without a dtype"
    ),
    "a class as dtype": (
        lambda m: setattr(m.state_dict_metadata["whole"].properties, "dtype", Path), "a tensor without a dtype"
    ),
    "a number as shape": (with_field("size", 35), "no shape"),
    "too many axes": (with_field("size", (1,) * 33), "no shape"),
    "a broken size": (with_field("size", (7.0, 5)), "float as a size or place"),
    "a size below zero": (with_field("size", (-7, -5)), "int as a size or place"),
    "a place below zero": (with_place("offset", -1), "int as a size or place"),
    "an endless length": (with_place("length", 2**60), "int as a size or place"),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_a_list_that_contradicts_itself_is_refused(sharded: Path, name: str) -> None:
    change, match = LISTS[name]
    changed(sharded, change)
    with pytest.raises(DamagedFile, match=rf"\.metadata does not describe a distributed checkpoint: .*{match}"):
        torch_dcp.read(sharded)


def test_a_list_that_is_too_long_for_any_checkpoint_is_not_read(sharded: Path) -> None:
    with (sharded / ".metadata").open("r+b") as file:
        file.truncate(50_000_001)
    with pytest.raises(DamagedFile, match=r"\.metadata: expected at most 50,000,000 bytes"):
        torch_dcp.read(sharded)


def as_chunk(checkpoint: Path, stored: bytes) -> None:
    """Put these bytes in the place of the tensor ``whole``."""
    (checkpoint / "whole.distcp").write_bytes(stored)

    def place(metadata: Any) -> None:
        index = next(i for i in metadata.storage_data if i.fqn == "whole")
        held = metadata.storage_data[index]
        metadata.storage_data[index] = replace(held, relative_path="whole.distcp", offset=0, length=len(stored))

    changed(checkpoint, place)


def saved() -> dict[str, bytes]:
    """The members of what ``torch.save`` writes of a tensor."""
    file = io.BytesIO()
    torch.save(torch.arange(35, dtype=torch.float32).reshape(7, 5), file)
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def test_a_chunk_that_torch_saves_alone_is_read(sharded: Path) -> None:
    as_chunk(sharded, packed(saved()))
    assert torch_dcp.read(sharded).tensors["whole"].read().ravel().tolist() == list(range(35))


@pytest.mark.parametrize("before", [b"\0", b"#!/bin/sh\n"])
def test_a_chunk_that_does_not_begin_as_an_archive_is_refused(sharded: Path, before: bytes) -> None:
    as_chunk(sharded, before + packed(saved()))
    with pytest.raises(
        DamagedFile, match=r"weight 'whole'.*expected an archive of torch\.save, received something else"
    ):
        torch_dcp.read(sharded).tensors["whole"].read()


def test_a_chunk_whose_storage_is_too_short_is_refused(sharded: Path) -> None:
    members = {name: raw[:-4] if "/data/" in name else raw for name, raw in saved().items()}
    as_chunk(sharded, packed(members))
    with pytest.raises(DamagedFile, match="weight 'whole': expected a storage of 140 bytes, received 136"):
        torch_dcp.read(sharded).tensors["whole"].read()


def test_a_list_without_chunks_is_recognised_and_refused(sharded: Path) -> None:
    for chunk in sharded.glob("*.distcp"):
        chunk.unlink()
    assert torch_dcp.recognises(sharded)
    with pytest.raises(FileError, match="is missing"):
        torch_dcp.read(sharded)


def test_an_object_that_is_large_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_dcp, "_LARGEST_OBJECT", 0)
    held = torch_dcp.read(GOLDEN / "dcp")
    assert held.unread["note"] == "a large or coded object"
    assert "note" not in held.facts
