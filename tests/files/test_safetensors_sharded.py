"""Sharded safetensors: the Hub's layout opens, ours opens in the plain reader, and broken sets are refused."""

from __future__ import annotations

import json
import os
import stat
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.files.bounded import file_sizes, nobody, unwritable

import polyak
from polyak.errors import DamagedFile, DtypeMismatch, FileError, UnexpectedWeight, UnknownFormat
from polyak.files import safetensors_sharded as sharded
from polyak.manifest import State
from polyak.snapshot import Item, Snapshot
from polyak.weights import Kind, Weight

INDEX = "model.safetensors.index.json"


@pytest.fixture
def arrays() -> dict[str, Any]:
    return {f"layer/{i}": np.arange(10, dtype=np.float32) + i for i in range(5)} | {"steps": np.array(3, np.int64)}


@pytest.fixture
def hub(tmp_path: Path, arrays: dict[str, Any]) -> Path:
    """As the Hub's tools write it: names without a directory, and a total size."""
    names = list(arrays)
    parts = {"model-00001-of-00002.safetensors": names[:3], "model-00002-of-00002.safetensors": names[3:]}
    for shard, held in parts.items():
        save_file({n: arrays[n] for n in held}, tmp_path / shard)
    weight_map = {n: shard for shard, held in parts.items() for n in held}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 208}, "weight_map": weight_map}))
    return tmp_path


def edited(index: Path, **changes: Any) -> None:
    body = json.loads(index.read_text())
    index.write_text(json.dumps(body | changes))


def two(arrays: dict[str, Any]) -> Snapshot:
    raw, average = (Snapshot.from_arrays(arrays, role) for role in ("raw", "average"))
    state = State({"rule": "mean"}, 2)
    return Snapshot([*raw.items_by_path.values(), *average.items_by_path.values()], {"average": state})


@pytest.mark.parametrize("name", ["", INDEX])
def test_a_set_of_the_hub_opens_by_its_directory_or_index(name: str, hub: Path, arrays: dict[str, Any]) -> None:
    edited(hub / INDEX, of_a_later_hub=[1])
    found = polyak.open(hub / name)
    assert {n: a.tobytes() for n, a in found.items()} == {n: a.tobytes() for n, a in arrays.items()}
    assert (found.roles, found.integrity) == (("raw",), "none")


def test_an_index_of_another_name_is_known_by_its_content(hub: Path) -> None:
    (hub / INDEX).rename(hub / "weights.json")
    assert len(polyak.open(hub / "weights.json")) == 6
    for text in ("{}", '{"weight_map": {"w": "pytorch_model-1.bin"}}', "[1]", "{"):
        (hub / "other.json").write_text(text)
        assert not sharded.recognises(hub / "other.json")


@pytest.mark.parametrize("limit", [1, 50, 100, 10**9])
def test_written_shards_hold_everything(limit: int, arrays: dict[str, Any], tmp_path: Path) -> None:
    held = two(arrays)
    sharded.write(held, tmp_path / INDEX, limit)
    found = polyak.open(tmp_path)
    assert polyak.diff(held, found).equal
    assert found.manifest.roles == held.manifest.roles
    assert all(item.digest for item in found.items_by_path.values())
    body = json.loads((tmp_path / INDEX).read_text())
    assert body["metadata"]["total_size"] == 416
    plain = {n: load_file(tmp_path / body["weight_map"][n])[n] for n in body["weight_map"]}
    assert {n: a.tobytes() for n, a in plain.items()} == {n: a.tobytes() for n, a in held.items()}


def test_shards_are_as_large_as_asked(arrays: dict[str, Any], tmp_path: Path) -> None:
    sharded.write(Snapshot.from_arrays(arrays), tmp_path / INDEX, 100)
    shards = json.loads((tmp_path / INDEX).read_text())["weight_map"].values()
    names = sorted(set(shards))
    assert [list(shards).count(name) for name in names] == [2, 2, 2]
    assert [name.rpartition("/")[2] for name in names] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


def test_no_weights_make_one_empty_shard(tmp_path: Path) -> None:
    sharded.write(Snapshot([]), tmp_path / INDEX)
    assert len(polyak.open(tmp_path / INDEX)) == 0


def test_a_failure_leaves_the_old_set_and_nothing_else(arrays: dict[str, Any], tmp_path: Path) -> None:
    sharded.write(Snapshot.from_arrays(arrays), tmp_path / INDEX)
    before = sorted(tmp_path.rglob("*"))
    bad = Snapshot.from_arrays({"a": np.float32([1]), "z": np.complex128([1])})
    with pytest.raises(DtypeMismatch, match="weight 'z'"):
        sharded.write(bad, tmp_path / INDEX, 1)
    assert sorted(tmp_path.rglob("*")) == before
    assert len(polyak.open(tmp_path)) == 6


def test_a_new_set_takes_the_name_while_the_old_one_is_open(arrays: dict[str, Any], tmp_path: Path) -> None:
    sharded.write(Snapshot.from_arrays(arrays), tmp_path / INDEX)
    old = polyak.open(tmp_path / INDEX)
    sharded.write(Snapshot.from_arrays({"w": np.float32([1])}), tmp_path / INDEX)
    assert list(polyak.open(tmp_path / INDEX)) == ["w"]
    assert old["layer/4"].tobytes() == arrays["layer/4"].tobytes()


def test_another_end_of_the_name_and_a_missing_directory_are_refused(tmp_path: Path) -> None:
    held = Snapshot.from_arrays({"w": np.float32([1])})
    with pytest.raises(UnknownFormat, match=r"expected a name that ends in .safetensors.index.json"):
        sharded.write(held, tmp_path / "model.json")
    with pytest.raises(FileError, match="its directory does not exist"):
        sharded.write(held, tmp_path / "no" / INDEX)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_shard_is_named(hub: Path) -> None:
    (hub / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileError, match=r"shard 'model-00002-of-00002\.safetensors' is missing"):
        polyak.open(hub)


OUTSIDE = ["../x.safetensors", "/x.safetensors", "a/../../x.safetensors", "..\\x", "a\\../x", "", "a\0b"]


@pytest.mark.parametrize("shard", OUTSIDE)
def test_a_shard_outside_the_directory_is_refused(shard: str, hub: Path) -> None:
    save_file({"w": np.float32([1])}, hub.parent / "x.safetensors")
    edited(hub / INDEX, weight_map={"w": shard})
    with pytest.raises(DamagedFile, match="expected a file in the index's directory"):
        polyak.open(hub)


def test_a_shard_that_is_a_link_out_of_the_directory_is_refused(hub: Path, tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / INDEX).write_text((hub / INDEX).read_text())
    for shard in hub.glob("*.safetensors"):
        (inside / shard.name).symlink_to(shard)
    with pytest.raises(FileError, match="a link that leads out"):
        polyak.open(inside / INDEX)


def test_an_index_of_any_length_is_refused_unread(hub: Path) -> None:
    os.truncate(hub / INDEX, 2**42)  # more than any memory; the file system stores the beginning alone
    with pytest.raises(DamagedFile, match=r"expected an index of at most 50,000,000 bytes, received 4,398,0"):
        polyak.open(hub / INDEX)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"w": "model-00001-of-00002.safetensors"}, "weight 'w': expected in shard 'model-00001"),
        ({"layer/0": "model-00001-of-00002.safetensors"}, "weight 'layer/1': shard 'model-00001.* holds it, the index"),
        ([1], "the index is not readable: expected an object"),
        ({"w": ["x"]}, "the index is not readable: expected a text"),
        (None, "the index is not readable: expected an object"),
    ],
)
def test_an_index_that_contradicts_its_shards_is_refused(weight_map: Any, message: str, hub: Path) -> None:
    edited(hub / INDEX, weight_map=weight_map)
    with pytest.raises(DamagedFile, match=message):
        polyak.open(hub)


def test_doubles_and_broken_shards_are_refused(hub: Path) -> None:
    (hub / "model-00001-of-00002.safetensors").write_bytes(b"not one")
    with pytest.raises(DamagedFile, match=r"shard 'model-00001-of-00002\.safetensors': expected a safetensors file"):
        polyak.open(hub)
    (hub / INDEX).write_text('{"weight_map": {"w": "a", "w": "b"}}')
    with pytest.raises(DamagedFile, match="a name occurs twice"):
        polyak.open(hub)


def test_a_manifest_that_was_changed_is_refused(arrays: dict[str, Any], tmp_path: Path) -> None:
    sharded.write(Snapshot.from_arrays(arrays), tmp_path / INDEX)
    text = (tmp_path / INDEX).read_text()
    (tmp_path / INDEX).write_text(text.replace('\\"raw\\"', '\\"ema\\"'))
    with pytest.raises(DamagedFile, match="the manifest does not have its digest"):
        polyak.open(tmp_path)


def test_a_manifest_that_went_is_missed(arrays: dict[str, Any], tmp_path: Path) -> None:
    sharded.write(Snapshot.from_arrays(arrays), tmp_path / INDEX)
    edited(tmp_path / INDEX, metadata={"total_size": 208})
    with pytest.raises(DamagedFile, match=r"expected polyak's manifest, which shard '.*' was written with"):
        polyak.open(tmp_path)


def test_a_shard_of_another_model_is_refused(tmp_path: Path) -> None:
    shards = []
    for number in (2, 3):
        (tmp_path / str(number)).mkdir()
        sharded.write(Snapshot.from_arrays({"w": np.ones(number, np.float32)}), tmp_path / str(number) / INDEX)
        shards += (tmp_path / str(number)).rglob("*.safetensors")
    shards[0].write_bytes(shards[1].read_bytes())
    with pytest.raises(DamagedFile, match=r"weight 'w': expected \(\(2,\), 'float32'\) by the manifest, received"):
        polyak.open(tmp_path / "2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"metadata": {}}', r"expected a weight_map of names to files, received \['metadata'\]"),
        ('{"weight_map": {}} }', "the index is not readable"),
        (
            r'{"weight_map": {"w": "\ud800"}}',
            r"shard '\\ud800': expected the name of a file: 'utf-8' codec can't encode",
        ),
    ],
)
def test_an_index_is_one_object_with_a_map(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(DamagedFile, match=message):
        polyak.open(tmp_path / INDEX)


def test_a_flipped_bit_in_a_shard_is_found(arrays: dict[str, Any], tmp_path: Path) -> None:
    sharded.write(Snapshot.from_arrays(arrays), tmp_path / INDEX)
    (shard,) = tmp_path.rglob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    found = polyak.open(tmp_path)
    with pytest.raises(DamagedFile, match="expected bytes with digest"):
        _ = [found[name] for name in found]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
def test_a_shard_that_the_system_refuses_is_told_of_the_index(tmp_path: Path) -> None:
    """The directory of the shards is gone then: room can be made in that of the index."""
    message = rf"^file '[^']*/{INDEX}': cannot be written: File too large"
    with file_sizes() as bound, pytest.raises(FileError, match=message) as refused:
        sharded.write(unwritable(bound), tmp_path / INDEX)
    assert refused.value.hint == f"make room in {str(tmp_path)!r} or write elsewhere"
    assert list(tmp_path.iterdir()) == []


# --- who may read it --------------------------------------------------------------------------------------------------

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such rights")
as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
acls = pytest.mark.skipif(sys.platform != "linux", reason="access control lists are those of Linux")


def saved(path: Path, number: float = 1) -> list[Path]:
    """Save it under the usual umask; the directory of the shards, and a shard."""
    before = os.umask(0o022)
    try:
        sharded.write(Snapshot.from_arrays({"w": np.full(3, number, np.float32)}), path)
    finally:
        os.umask(before)
    (name,) = json.loads(path.read_text())["weight_map"].values()
    return [(path.parent / name).parent, path.parent / name]


def modes(paths: list[Path]) -> list[int]:
    return [stat.S_IMODE(p.stat().st_mode) for p in paths]


@posix
@pytest.mark.parametrize(("mode", "of_directory"), [(0o600, 0o700), (0o640, 0o750), (0o644, 0o755), (0o664, 0o775)])
def test_shards_are_open_to_whom_the_old_index_was(mode: int, of_directory: int, tmp_path: Path) -> None:
    index = tmp_path / INDEX
    saved(index)
    index.chmod(mode)
    for _ in range(2):
        assert modes([index, *saved(index)]) == [mode, of_directory, mode]
    assert polyak.open(index)["w"].tolist() == [1.0] * 3


@posix
@pytest.mark.parametrize(("part", "mode"), [(0, 0o700), (1, 0o600)])
def test_shards_stay_closed_where_the_index_is_not(part: int, mode: int, tmp_path: Path) -> None:
    saved(tmp_path / INDEX)[part].chmod(mode)
    assert modes([tmp_path / INDEX, *saved(tmp_path / INDEX)]) == [0o644, 0o700, 0o600]


@posix
def test_shards_of_another_tool_that_are_closed_are_followed_by_closed_ones(hub: Path) -> None:
    (hub / "model-00001-of-00002.safetensors").chmod(0o440)
    (hub / "model-00002-of-00002.safetensors").unlink()
    assert modes(saved(hub / INDEX)) == [0o750, 0o640]


@posix
@pytest.mark.parametrize("text", ["", '{"weight_map": {"w": "\\ud800"}}', '{"weight_map": {"w": "../x"}}'])
def test_an_index_that_is_damaged_is_replaced_with_its_rights(text: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(text)
    (tmp_path / INDEX).chmod(0o640)
    assert modes(saved(tmp_path / INDEX)) == [0o750, 0o640]


@posix
def test_shards_are_closed_while_they_are_written(tmp_path: Path) -> None:
    saved(tmp_path / INDEX)
    (tmp_path / INDEX).chmod(0o600)
    seen: list[int] = []

    def read() -> Any:
        seen.extend(modes([p for p in tmp_path.rglob("*") if p.name.startswith(".")]))
        return np.ones(3, np.float32)

    sharded.write(Snapshot([Item("raw", Weight("w", (3,), "float32", Kind.TRAINABLE), read)]), tmp_path / INDEX)
    assert seen == [0o600, 0o600]


@acls
@as_root
def test_shards_that_root_writes_are_the_owners_and_go_with_the_next_save(tmp_path: Path) -> None:
    index = tmp_path / INDEX
    saved(index)
    os.chown(index, 1234, 2345)
    os.setxattr(index, "user.note", b"mine")
    for number in range(3):
        parts = saved(index, number)
        assert [(p.stat().st_uid, p.stat().st_gid) for p in parts] == [(1234, 2345)] * 2
        assert [os.getxattr(p, "user.note") for p in parts] == [b"mine"] * 2
    assert sorted(tmp_path.iterdir()) == sorted([index, parts[0]])


def acl(path: Path, kind: str = "access") -> None:
    """Open it to nobody, beside its owner and its group."""
    entries = [(1, 6, -1), (2, 4, 65534), (4, 4, -1), (16, 4, -1), (32, 0, -1)]
    try:
        os.setxattr(
            path, f"system.posix_acl_{kind}", struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *e) for e in entries)
        )
    except OSError as error:
        pytest.skip(f"no access control lists here: {error}")


@acls
def test_whom_a_list_opens_the_index_to_reads_the_shards(tmp_path: Path) -> None:
    index = tmp_path / INDEX
    saved(index)
    acl(index)
    for above in (tmp_path, *tmp_path.parents):
        if Path(tempfile.gettempdir()) in above.parents:  # which are for their owner alone
            above.chmod(0o755)
    saved(index)
    with nobody():
        assert polyak.open(index)["w"].tolist() == [1.0] * 3
    assert modes([index, *saved(index)]) == [0o640, 0o750, 0o640]


@acls
def test_a_list_that_a_directory_gives_to_new_files_opens_none_that_was_closed(tmp_path: Path) -> None:
    index = tmp_path / INDEX
    saved(index)
    acl(tmp_path, "default")
    assert all(not os.listxattr(p) for p in [index, *saved(index)[1:]])


# --- other files of JSON beside it ------------------------------------------------------------------------------------


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory in which anybody may write."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


def closed(path: Path, content: str = "{}") -> None:
    path.write_text(content)
    path.chmod(0o600)


@as_root
def test_a_file_of_json_that_cannot_be_read_keeps_no_old_shards(shared: Path) -> None:
    closed(shared / "other.json")
    (shared / "closed").mkdir(0o700)
    (shared / "link.json").symlink_to(shared / "closed" / "other.json")
    with nobody():
        for number in range(3):
            saved(shared / INDEX, number)
    assert len(list(shared.glob("model-*"))) == 1


@as_root
def test_an_index_that_cannot_be_read_keeps_all_that_it_may_name(shared: Path) -> None:
    with nobody():
        saved(shared / INDEX)
    closed(shared / "best.safetensors.index.json", (shared / INDEX).read_text())
    with nobody():
        saved(shared / INDEX, 2)
    assert polyak.open(shared / "best.safetensors.index.json")["w"].tolist() == [1.0] * 3


@pytest.mark.parametrize("name", ["other.json", "other.safetensors.index.json"])
def test_a_failure_is_told_and_leaves_nothing_whatever_is_beside_it(name: str, shared: Path) -> None:
    closed(shared / name)
    with nobody(), pytest.raises(UnexpectedWeight, match="__metadata__"):
        sharded.write(Snapshot.from_arrays({"__metadata__": np.float32([1])}), shared / INDEX)
    assert [p.name for p in shared.iterdir()] == [name]


def test_a_file_of_json_that_is_no_index_keeps_no_old_shards(tmp_path: Path) -> None:
    directory, _ = saved(tmp_path / INDEX)
    (tmp_path / "log.json").write_text(json.dumps({"saved": directory.name}))
    (tmp_path / "best.json").write_text((tmp_path / INDEX).read_text())
    saved(tmp_path / INDEX, 2)
    assert polyak.open(tmp_path / "best.json")["w"].tolist() == [1.0] * 3
    (tmp_path / "best.json").unlink()
    saved(tmp_path / INDEX, 3)
    assert len([p for p in tmp_path.iterdir() if p.is_dir()]) == 1


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="no file has such a name on Windows")
@pytest.mark.parametrize("stem", ["2026-01-01T12:00", "a:b", "..\\x", "a\\b", "..", "", "a\nb", "ß" * 60, "%41 #?*"])
def test_what_is_saved_under_any_name_is_read(stem: str, tmp_path: Path) -> None:
    index = tmp_path / f"{stem}.safetensors.index.json"
    for number in (1, 2):
        saved(index, number)
        assert polyak.open(index)["w"].tolist() == [float(number)] * 3
    (name,) = json.loads(index.read_text())["weight_map"].values()
    assert not set(name) & set(":\\")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no file has such a name on Windows")
@pytest.mark.parametrize("shard", ["12:00.safetensors", "a\\b.safetensors", "C:x.safetensors"])
def test_shards_of_another_tool_may_have_names_that_windows_does_not_take(shard: str, tmp_path: Path) -> None:
    save_file({"w": np.float32([1])}, tmp_path / shard)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"w": shard}}))
    assert polyak.open(tmp_path)["w"].tolist() == [1.0]


def test_shards_stay_when_a_failure_comes_after_the_index_leads_to_them(
    arrays: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def refuse_last(handle: int) -> None:
        if (tmp_path / INDEX).exists():
            raise OSError(5, os.strerror(5))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse_last)
    with pytest.raises(FileError, match=r"the new one has its name, .*: Input/output error"):
        sharded.write(Snapshot.from_arrays(arrays), tmp_path / INDEX)
    assert {n: a.tobytes() for n, a in polyak.open(tmp_path).items()} == {n: a.tobytes() for n, a in arrays.items()}


def test_what_other_tools_say_beside_the_weights_is_named(hub: Path, arrays: dict[str, Any]) -> None:
    first = "model-00001-of-00002.safetensors"
    held = {name: arrays[name] for name in list(arrays)[:3]}
    save_file(held, hub / first, metadata={"format": "pt", "author": "somebody"})
    metadata = {"total_size": 208, "total_parameters": 51, "trained_by": "somebody", "run": {"id": 3}}
    edited(hub / INDEX, metadata=metadata, of_a_later_hub=[1])
    found = polyak.open(hub / INDEX).manifest
    assert found.unread == {
        "metadata/trained_by": "a text",
        "metadata/run": "a value",
        "of_a_later_hub": "a value",
        f"{first}: __metadata__/author": "a text",
    }
    assert found.note == ""


def test_what_no_shard_can_hold_is_refused_before_any_array_is_read(tmp_path: Path) -> None:
    weights = [Weight("a", (4,), "float32", Kind.TRAINABLE), Weight("b", (4,), "complex128", Kind.TRAINABLE)]
    held = Snapshot([Item("raw", weight, lambda: pytest.fail("was read")) for weight in weights])
    with pytest.raises(DtypeMismatch, match="weight 'b': expected a dtype that safetensors holds, received complex128"):
        sharded.write(held, tmp_path / "m.safetensors.index.json", shard_bytes=16)
    assert list(tmp_path.iterdir()) == []
