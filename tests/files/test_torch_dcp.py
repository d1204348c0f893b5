"""PyTorch's distributed checkpoints: chunks make the tensor again, nothing is run, damage and malice are refused.

The golden files are the real tool's; see tests/golden/make_jax.py.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.files.jax_golden import GOLDEN, assert_same, expected

import polyak
from polyak.errors import DamagedFile, FileError, PolyakError
from polyak.files import torch_dcp


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "dcp_sharded", tmp_path / "dcp_sharded"))


def changed(path: Path, change: Callable[[Any], None]) -> None:
    """Write the list of chunks anew after a change, with the real classes."""
    pytest.importorskip("torch.distributed.checkpoint")
    metadata = pickle.loads((path / ".metadata").read_bytes())
    change(metadata)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))


def test_tensors_that_two_processes_wrote_are_whole_again() -> None:
    held, wanted = torch_dcp.read(GOLDEN / "dcp_sharded").tensors, expected("dcp_sharded")
    assert set(held) == set(wanted)
    for name, array in wanted.items():
        assert_same(held[name].read(), array)


def test_names_dtypes_and_values_beside_tensors_are_as_in_a_file_of_torch() -> None:
    contents = torch_dcp.read(GOLDEN / "dcp")
    assert {"model/weight", "ema/module.weight", "optim/state/0/exp_avg"} < set(contents.tensors)
    extras = {n: contents.tensors[f"extras/{n}"] for n in ("bfloat16", "empty", "int64")}
    assert {n: (t.shape, t.dtype) for n, t in extras.items()} == {
        "bfloat16": ((3,), "bfloat16"), "empty": ((0, 3), "float32"), "int64": ((), "int64")
    }  # fmt: skip
    assert extras["bfloat16"].read().tolist() == [1, 1, 1]
    assert extras["empty"].read().shape == (0, 3)
    assert extras["int64"].read().item() == 2**40
    assert (contents.facts["step"], contents.facts["note"]) == (3, "hello")
    assert contents.facts["optim/param_groups/0/betas/1"] == 0.999


def test_the_average_is_told_apart_as_in_a_file_of_torch() -> None:
    held = polyak.open(GOLDEN / "dcp")
    assert held.manifest.tool == "PyTorch AveragedModel"
    for name, array in expected("dcp").items():
        assert_same(held[name], array)


def test_a_checkpoint_of_many_thousand_tensors_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    checkpoint = pytest.importorskip("torch.distributed.checkpoint")
    path = tmp_path / "many"
    checkpoint.save({str(i): torch.full((1, 1, 1, 1), i) for i in range(6000)}, checkpoint_id=path)
    held = torch_dcp.read(path).tensors
    assert len(held) == 6000
    assert held["5999"].read().item() == 5999


def test_torch_is_not_loaded() -> None:
    script = "import sys, polyak; dict(polyak.open(sys.argv[1])); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script, str(GOLDEN / "dcp")], check=False).returncode == 0


def test_what_torch_writes_now_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    value = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    dcp.save({"a": {"w.x": value, "turned": value.T}}, checkpoint_id=tmp_path / "x", no_dist=True)
    held = torch_dcp.read(tmp_path / "x").tensors
    assert_same(held["a/w.x"].read(), value.numpy())
    assert_same(held["a/turned"].read(), np.ascontiguousarray(value.T.numpy()))


def test_numbers_within_objects_are_named_as_not_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    pack = torch.nn.utils.rnn.pack_sequence([torch.ones(2)])
    dcp.save({"w": torch.ones(1), "n": np.ones(3), "p": pack}, checkpoint_id=tmp_path / "x", no_dist=True)
    held = torch_dcp.read(tmp_path / "x")
    assert list(held.tensors) == ["w"]
    within = "a tensor within an object"
    assert held.unread == {"n": "a NumPy array", "p/0": within, "p/1": within}


# --- what becomes of it while it is open ------------------------------------------------------------------------------

LATER = "expected the file as it was when the checkpoint was opened, received one that was written later"


def filled(path: Path, value: float) -> Path:
    torch = pytest.importorskip("torch")
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    dcp.save({"a": torch.full((3,), value), "b": torch.ones(2)}, checkpoint_id=path, no_dist=True)
    return path


def test_a_checkpoint_that_is_saved_again_is_refused_rather_than_mixed(tmp_path: Path) -> None:
    held = polyak.open(filled(tmp_path / "x", 1))
    assert held["a"].tolist() == [1, 1, 1]
    filled(tmp_path / "x", 5)
    for name in ("a", "b"):
        with pytest.raises(DamagedFile, match=LATER):
            held[name]
    assert polyak.open(tmp_path / "x")["a"].tolist() == [5, 5, 5]


@pytest.mark.parametrize("name", ["__0_0.distcp", "__1_0.distcp", ".metadata"])
def test_each_file_must_stay_the_one_that_was_opened(sharded: Path, name: str) -> None:
    held = polyak.open(sharded)
    raw, times = (sharded / name).read_bytes(), (sharded / name).stat()
    (sharded / "other").write_bytes(raw)
    os.utime(sharded / "other", ns=(times.st_atime_ns, times.st_mtime_ns))
    (sharded / "other").replace(sharded / name)
    with pytest.raises(DamagedFile, match=rf"'{name}': {LATER}"):
        dict(held)


def test_a_file_that_another_takes_the_place_of_while_it_is_read_is_refused(
    sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, read = polyak.open(sharded), os.preadv

    def meanwhile(handle: int, views: list[memoryview], place: int) -> int:
        for file in sharded.glob("*.distcp"):
            (sharded / "other").write_bytes(file.read_bytes())
            (sharded / "other").replace(file)
        return read(handle, views, place)

    monkeypatch.setattr(os, "preadv", meanwhile)
    with pytest.raises(DamagedFile, match=LATER):
        held["whole"]


def test_a_file_that_another_takes_the_place_of_as_it_is_opened_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers and texts are read at once: so it is for the last of them, after which nobody looks at the file."""
    path = shutil.copytree(GOLDEN / "dcp", tmp_path / "dcp")
    opened, seen, last = Path.open, [], 0

    def meanwhile(file: Path, *args: Any, **kwargs: Any) -> Any:
        if file.suffix == ".distcp":
            seen.append(file)
            if len(seen) == last:
                shutil.copyfile(file, path / "other")
                (path / "other").replace(file)
        return opened(file, *args, **kwargs)

    monkeypatch.setattr(Path, "open", meanwhile)
    torch_dcp.read(path)
    last = 2 * len(seen)
    with pytest.raises(DamagedFile, match=LATER):
        torch_dcp.read(path)


def test_what_is_no_file_any_more_is_not_opened(sharded: Path) -> None:
    held = polyak.open(sharded)
    for file in sharded.glob("*.distcp"):
        file.unlink()
        file.mkdir()
    with pytest.raises(DamagedFile, match=LATER):
        dict(held)


def test_a_file_that_is_written_while_it_is_read_is_refused(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = polyak.open(sharded)
    found = os.fstat

    def meanwhile(handle: int) -> os.stat_result:
        os.utime(handle, ns=(0, 0))
        return found(handle)

    monkeypatch.setattr(os, "fstat", meanwhile)
    with pytest.raises(DamagedFile, match=LATER):
        held["whole"]


def test_a_list_that_is_written_while_it_is_read_is_refused(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path.read_bytes

    def meanwhile(path: Path) -> bytes:
        raw = whole(path)
        os.utime(path, ns=(0, 0))
        return raw

    monkeypatch.setattr(Path, "read_bytes", meanwhile)
    with pytest.raises(DamagedFile, match=rf"'\.metadata': {LATER}"):
        polyak.open(sharded)


def test_a_file_that_is_gone_is_named_by_its_place(sharded: Path) -> None:
    held = polyak.open(sharded)
    (sharded / "__0_0.distcp").unlink()
    with pytest.raises(FileError, match=rf"file '{sharded}/__0_0\.distcp': cannot be read: No such file"):
        dict(held)


def test_a_relative_path_leads_to_the_checkpoint_that_it_led_to(
    tmp_path: Path, sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    held = polyak.open(Path(sharded.name))
    shutil.copytree(GOLDEN / "dcp", tmp_path / "elsewhere" / sharded.name)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert_same(held["whole"], expected("dcp_sharded")["whole"])


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is refused: no path leads through an open directory")
def test_a_directory_that_another_took_the_place_of_is_still_read(sharded: Path) -> None:
    held = polyak.open(sharded)
    sharded.rename(sharded.with_name("old"))
    filled(sharded, 5)
    for name, array in expected("dcp_sharded").items():
        assert_same(held[name], array)


# --- damage and malice -----------------------------------------------------------------------------------------------


def test_without_its_list_it_is_unfinished(sharded: Path) -> None:
    (sharded / ".metadata").unlink()
    with pytest.raises(FileError, match=r"expected \.metadata, which is written last"):
        polyak.open(sharded)


def test_a_missing_file_of_chunks_is_named(sharded: Path) -> None:
    (sharded / "__1_0.distcp").unlink()
    with pytest.raises(FileError, match=r"'__1_0\.distcp' is missing"):
        polyak.open(sharded)


def test_a_truncated_file_of_chunks_is_refused_when_it_is_opened(sharded: Path) -> None:
    file = sharded / "__1_0.distcp"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedFile, match=r"'__1_0\.distcp': expected \d+ bytes at byte"):
        polyak.open(sharded)


def test_a_truncated_list_is_refused(sharded: Path) -> None:
    whole = (sharded / ".metadata").read_bytes()
    for end in range(len(whole) - 1, 0, -61):
        (sharded / ".metadata").write_bytes(whole[:end])
        with pytest.raises(PolyakError):
            torch_dcp.read(sharded)


def test_no_flipped_bit_of_a_chunk_passes(sharded: Path) -> None:
    file, wanted = sharded / "__0_0.distcp", expected("dcp_sharded")
    whole = file.read_bytes()
    for at in range(7, len(whole), 23):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            held = {n: t.read() for n, t in torch_dcp.read(sharded).tensors.items()}
        except PolyakError:
            continue
        assert {n: a.tobytes() for n, a in held.items()} == {n: a.tobytes() for n, a in wanted.items()}


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../x", "c:x", ""])
def test_a_place_outside_of_the_directory_is_refused(sharded: Path, name: str) -> None:
    def lead_out(metadata: Any) -> None:
        for place in metadata.storage_data.values():
            place.relative_path = name

    changed(sharded, lead_out)
    with pytest.raises(DamagedFile, match="expected a file in the checkpoint's directory"):
        torch_dcp.read(sharded)


def test_a_link_that_leads_out_is_refused(sharded: Path, tmp_path: Path) -> None:
    (sharded / "__1_0.distcp").rename(tmp_path / "outside")
    (sharded / "__1_0.distcp").symlink_to(tmp_path / "outside")
    with pytest.raises(FileError, match="a link that leads out"):
        torch_dcp.read(sharded)


def test_an_absurd_shape_is_refused_before_anything_is_read(sharded: Path) -> None:
    torch = pytest.importorskip("torch")

    def grow(metadata: Any) -> None:
        entry = metadata.state_dict_metadata["whole"]
        entry.size = entry.chunks[0].sizes = torch.Size([2**40, 2**10])

    changed(sharded, grow)
    with pytest.raises(DamagedFile, match="'whole': a chunk of 4503599627370496 bytes"):
        torch_dcp.read(sharded)


def test_chunks_that_leave_a_hole_are_refused(sharded: Path) -> None:
    changed(sharded, lambda metadata: metadata.state_dict_metadata["rows"].chunks.pop())
    with pytest.raises(DamagedFile, match="'rows': chunks of 20 elements in all"):
        torch_dcp.read(sharded)


def test_chunks_that_overlap_are_refused(sharded: Path) -> None:
    torch = pytest.importorskip("torch")

    def twice(metadata: Any) -> None:
        entry = metadata.state_dict_metadata["rows"]
        entry.size = torch.Size([8, 5])
        entry.chunks[1] = entry.chunks[0]

    changed(sharded, twice)
    with pytest.raises(DamagedFile, match="weight 'rows': two chunks overlap"):
        torch_dcp.read(sharded).tensors["rows"].read()


def test_a_chunk_of_another_shape_is_refused(sharded: Path) -> None:
    def exchange(metadata: Any) -> None:
        of = {index.fqn: index for index in metadata.storage_data if index.offset == (0, 0)}
        metadata.storage_data[of["whole"]] = metadata.storage_data[of["rows"]]

    changed(sharded, exchange)
    with pytest.raises(DamagedFile, match=r"expected a chunk of \(7, 5\) float32, received \(4, 5\)"):
        torch_dcp.read(sharded).tensors["whole"].read()


def test_nothing_that_the_list_brings_is_run(sharded: Path, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return __import__("os").system, (f"touch {tmp_path}/run",)

    (sharded / ".metadata").write_bytes(pickle.dumps(["torch.distributed.checkpoint", Hostile()]))
    with pytest.raises(DamagedFile, match="which can run code"):
        torch_dcp.read(sharded)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [None, [], {"a": 1}, "torch.distributed.checkpoint"])
def test_another_pickle_is_refused(sharded: Path, value: Any) -> None:
    (sharded / ".metadata").write_bytes(pickle.dumps(value))
    with pytest.raises(DamagedFile, match="does not describe a distributed checkpoint"):
        torch_dcp.read(sharded)
