"""Orbax checkpoints: every bit comes back, Orbax restores what polyak wrote, damage and malice are refused.

The golden files are the real tools'; see tests/golden/make_jax.py. Read without JAX and without Orbax.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tests.files.bounded import file_sizes, unwritable
from tests.files.jax_golden import GOLDEN, assert_same, expected

import polyak
from polyak.errors import (
    DamagedFile,
    DtypeMismatch,
    FileError,
    PolyakError,
    ShapeMismatch,
    UnexpectedWeight,
    UnknownFormat,
)
from polyak.files import orbax, orbax_store, orbax_write
from polyak.files.orbax_write import NOTE
from polyak.files.partial import PARTIAL, SET_ASIDE, hidden
from polyak.manifest import State
from polyak.snapshot import Item, Snapshot
from polyak.weights import Kind, Weight

pytest.importorskip("tensorstore")

DTYPES = (
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16", "float32",
    "float64", "float8_e4m3fn", "float8_e5m2", "complex64", "complex128",
)  # fmt: skip


@pytest.fixture
def arrays() -> dict[str, Any]:
    made: dict[str, Any] = {f"kinds/{d}": np.array([[0, 1, 1], [1, 0, 1]]).astype(d) for d in DTYPES}
    made |= {"scalar": np.array(2**62 + 1), "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    return made | {"encoder.0.weight": np.zeros(3, np.float32), "a b/ü": np.float32([np.nan, -0.0])}


def copy(name: str, to: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / name, to / name, symlinks=True))


def described(directory: Path, change: Callable[[dict[str, Any]], None], name: str) -> None:
    """Change a JSON file of a checkpoint."""
    held = json.loads((directory / name).read_text())
    change(held)
    (directory / name).write_text(json.dumps(held))


# --- what Orbax wrote ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kinds", "plain_zarr", "plain_zarr3", "ocdbt_zarr3"])
def test_every_sort_of_array_has_orbaxs_bits(name: str) -> None:
    held, wanted = orbax.read(GOLDEN / name).tensors, expected(name)
    assert set(held) == set(wanted)
    for key, array in wanted.items():
        assert (held[key].shape, held[key].dtype) == (array.shape, array.dtype.name)
        assert_same(held[key].read(), array)


def test_texts_are_facts_and_empty_containers_are_nothing() -> None:
    assert orbax.read(GOLDEN / "plain_zarr").facts == {"text": "hello"}


def test_of_several_steps_the_newest_is_opened_and_named() -> None:
    newest = polyak.open(GOLDEN / "steps")
    assert "step 10, the newest of 2 (9, 10)" in newest.origin
    assert newest["w"].tolist() == [10]


@pytest.mark.parametrize("place", ["steps/9", "steps/9/state"])
def test_a_step_that_is_given_is_opened(place: str) -> None:
    assert polyak.open(GOLDEN / place)["w"].tolist() == [9]


def test_two_newest_steps_of_one_number_are_refused(tmp_path: Path) -> None:
    steps = copy("steps", tmp_path)
    last = max((p for p in steps.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))
    shutil.copytree(last, steps / f"00{last.name}")
    with pytest.raises(UnknownFormat, match=f"expected one step {last.name}, received '00{last.name}' and") as refused:
        polyak.open(steps)
    assert str(last) in (refused.value.hint or "")
    assert len(polyak.open(last))


def test_items_of_a_step_that_are_no_arrays_are_named(tmp_path: Path) -> None:
    ocp = pytest.importorskip("orbax.checkpoint")
    state, more = ocp.args.StandardSave({"w": np.ones(2)}), ocp.args.JsonSave({"words": ["a"]})
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, args=ocp.args.Composite(state=state, tokens=more))
        manager.wait_until_finished()
    held = polyak.open(tmp_path / "run")
    assert (list(held), held.manifest.unread) == (["w"], {"tokens": "an item that is no tree of arrays"})


def test_items_of_a_step_keep_their_names_where_several_hold_arrays(tmp_path: Path) -> None:
    step = copy("steps", tmp_path) / "9"
    shutil.copytree(step / "state", step / "other")
    assert set(orbax.read(step).tensors) == {"state/w", "other/w"}


def test_a_step_that_is_being_written_does_not_count(tmp_path: Path) -> None:
    steps = copy("steps", tmp_path)
    shutil.copytree(steps / "10", steps / "11.orbax-checkpoint-tmp")
    assert "step 10" in orbax.read(steps).origin


def test_arrays_without_a_description_have_their_stored_names(tmp_path: Path) -> None:
    for name in ("plain_zarr", "ocdbt_zarr3"):
        (copy(name, tmp_path) / "_METADATA").unlink()
        assert set(orbax.read(tmp_path / name).tensors) == set(expected(name))


def test_neither_jax_nor_orbax_is_loaded() -> None:
    script = (
        "import sys, polyak; s = polyak.open(sys.argv[1]); dict(s); "
        "sys.exit(bool({'jax', 'orbax', 'flax', 'zarr'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script, str(GOLDEN / "kinds")], check=False).returncode == 0


def test_without_tensorstore_the_error_says_what_to_install() -> None:
    script = "import sys; sys.modules['tensorstore'] = None; import polyak; polyak.open(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", script, str(GOLDEN / "kinds")], capture_output=True, text=True, check=False
    )
    assert "expected the package tensorstore" in done.stderr
    assert 'pip install "polyak[orbax]"' in done.stderr


# --- what polyak wrote -----------------------------------------------------------------------------------------------


def test_every_bit_and_the_manifest_come_back(tmp_path: Path, arrays: dict[str, Any]) -> None:
    raw, average = (Snapshot.from_arrays(arrays, role) for role in ("raw", "average"))
    state = State({"rule": "mean"}, 2)
    orbax.write(
        Snapshot([*raw.items_by_path.values(), *average.items_by_path.values()], {"average": state}), tmp_path / "x"
    )
    back = polyak.open(tmp_path / "x")
    assert (back.roles, back.integrity) == (("raw", "average"), "xxh3-128")
    assert back.select(role="average").state == state
    for role in back.roles:
        for name, array in arrays.items():
            assert_same(back[f"{role}/{name}"], np.ascontiguousarray(array).reshape(array.shape))


def test_convert_writes_it_by_format_and_by_name(tmp_path: Path, arrays: dict[str, Any]) -> None:
    snapshot = Snapshot.from_arrays(arrays)
    for target, asked in (("x.orbax", None), ("y", "orbax")):
        polyak.convert(snapshot, tmp_path / target, format=asked)
        assert set(polyak.open(tmp_path / target)) == set(arrays)


@pytest.mark.parametrize("sort", ["StandardCheckpointer()", "PyTreeCheckpointer()"])
def test_orbax_restores_every_bit(tmp_path: Path, arrays: dict[str, Any], sort: str) -> None:
    pytest.importorskip("orbax.checkpoint")
    orbax.write(Snapshot.from_arrays(arrays), tmp_path / "x")
    script = f"""
import sys, numpy as np, orbax.checkpoint as ocp
tree = ocp.{sort}.restore(sys.argv[1] + "/x")
held = {{}}
for name in sys.argv[2:]:
    leaf = tree
    for step in name.split("/"):
        leaf = leaf[step]
    leaf = np.asarray(leaf)
    held[name.replace("/", "|")] = np.frombuffer(leaf.tobytes(), "u1")
    held[name.replace("/", "|") + "!"] = np.array([leaf.dtype.name, str(leaf.shape)])
np.savez(sys.argv[1] + "/held.npz", **held)
"""
    run = [sys.executable, "-c", script, str(tmp_path), *arrays]
    subprocess.run(run, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True)
    with np.load(tmp_path / "held.npz") as held:
        for name, array in arrays.items():
            key = name.replace("/", "|")
            assert held[key].tobytes() == array.tobytes()
            assert held[f"{key}!"].tolist() == [array.dtype.name, str(array.shape)]


def test_large_arrays_are_cut_into_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyak.files.orbax_write._PART", 64)
    value = np.arange(70, dtype=np.float32).reshape(14, 5)
    orbax.write(Snapshot.from_arrays({"w": value}), tmp_path / "x")
    assert_same(polyak.open(tmp_path / "x")["w"], value)


def test_arrays_are_committed_in_batches(
    tmp_path: Path, arrays: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyak.files.orbax_write._BATCH", 24)
    orbax.write(Snapshot.from_arrays(arrays), tmp_path / "x")
    found = polyak.open(tmp_path / "x")
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert_same(found[name], array)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
def test_what_the_system_refuses_is_an_error_and_nothing_stays(tmp_path: Path) -> None:
    message = r"^checkpoint '.*x': cannot be written: .*Failed writing"
    with file_sizes() as bound, pytest.raises(FileError, match=message):
        orbax.write(unwritable(bound), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_another_checkpoint_is_replaced_whole(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        orbax.write(Snapshot.from_arrays({f"w{value:.0f}": np.float32([value])}), tmp_path / "x")
    assert dict(polyak.open(tmp_path / "x"))["w2"].tolist() == [2.0]
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("kind", [PARTIAL, SET_ASIDE])
def test_what_polyak_has_not_finished_or_has_replaced_is_no_item_of_the_directory(tmp_path: Path, kind: str) -> None:
    for name in ("a.orbax", "b.orbax"):
        polyak.save(Snapshot.from_arrays({"w": np.float32([1])}), tmp_path / name)
    left = hidden(tmp_path / "b.orbax", kind)
    (tmp_path / "b.orbax").rename(left)
    (left / "away").symlink_to("/etc")
    assert list(polyak.open(tmp_path)) == ["w"]
    shutil.rmtree(tmp_path / "a.orbax")
    with pytest.raises(UnknownFormat, match="received a directory without a checkpoint"):
        polyak.open(tmp_path)


def test_checkpoints_beside_each_other_are_no_items_of_one(tmp_path: Path) -> None:
    for name in ("a.orbax", "b.orbax"):
        polyak.save(Snapshot.from_arrays({"w": np.float32([1])}), tmp_path / name)
    with pytest.raises(UnknownFormat, match="expected one checkpoint, received 2 beside each other") as error:
        polyak.open(tmp_path)
    assert str(tmp_path / "a.orbax") in error.value.hint


def test_a_directory_holds_a_checkpoint_once_while_the_one_that_it_replaced_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.orbax"
    polyak.save(Snapshot.from_arrays({"w": np.float32([1])}), path)
    opened = polyak.open(path)
    polyak.save(Snapshot.from_arrays({"w": np.float32([2])}), path)
    assert len(list(tmp_path.iterdir())) == 2
    assert {name: array.tolist() for name, array in polyak.open(tmp_path).items()} == {"w": [2.0]}
    assert opened["w"].tolist() == [1.0]


def test_an_array_of_a_hidden_name_is_an_array(tmp_path: Path) -> None:
    tree = copy("plain_zarr", tmp_path)
    name = hidden(tree / "a").name
    (tree / "_METADATA").unlink()
    (tree / "w").rename(tree / name)
    assert name in set(orbax.read(tree).tensors)
    (tree / name / "away").symlink_to("/etc")
    with pytest.raises(FileError, match="received 'away', a link to"):
        orbax.read(tree)


def test_a_failure_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    orbax.write(Snapshot.from_arrays({"w": np.float32([1])}), tmp_path / "x")

    def fails() -> Any:
        raise RuntimeError("no value")

    broken = Snapshot([Item("raw", Weight("w", (1,), "float32", Kind.TRAINABLE), fails)])
    with pytest.raises(RuntimeError, match="no value"):
        orbax.write(broken, tmp_path / "x")
    assert polyak.open(tmp_path / "x")["w"].tolist() == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_what_is_no_single_tree_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    copy("steps", tmp_path)
    (tmp_path / "file").write_text("keep me")
    for name in ("mine", "steps", "file"):
        with pytest.raises(FileError, match="received something else"):
            orbax.write(Snapshot.from_arrays({"w": np.float32([1])}), tmp_path / name)
    assert (tmp_path / "mine" / "notes.txt").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "mine", "steps"]


@pytest.mark.parametrize("name", [".", "..", "", "/".join("x" * 129)], ids=["dot", "dots", "empty", "deep"])
def test_a_name_that_no_array_can_have_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnexpectedWeight, match=r"weight '.*: expected a path of at most 128 steps"):
        orbax.write(Snapshot.from_arrays({name: np.float32([1])}), tmp_path / "m.orbax")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("names", [("a", "a/b"), ("a.b", "a/b")])
def test_names_that_a_tree_cannot_hold_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    with pytest.raises(UnexpectedWeight, match="cannot hold it beside"):
        orbax.write(Snapshot.from_arrays(dict.fromkeys(names, np.float32([1]))), tmp_path / "x")
    assert not any(tmp_path.iterdir())


def test_a_dtype_that_orbax_does_not_store_is_refused(tmp_path: Path) -> None:
    held = polyak.Snapshot.from_arrays({"w": np.ones(2, ml_dtypes.uint4)})
    with pytest.raises(DtypeMismatch, match="weight 'w': expected a dtype that Orbax stores, received uint4"):
        polyak.save(held, tmp_path / "m.orbax")
    assert list(tmp_path.iterdir()) == []


def test_arrays_without_elements_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeMismatch, match="stores no empty arrays"):
        orbax.write(Snapshot.from_arrays({"w": np.zeros((0, 3), np.float32)}), tmp_path / "x")


@pytest.mark.parametrize("name", ["../outside", "/etc/x", "a/../../b"])
def test_a_name_leads_nowhere(tmp_path: Path, name: str) -> None:
    orbax.write(Snapshot.from_arrays({name: np.float32([1])}), tmp_path / "run" / ".." / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert polyak.open(tmp_path / "x")[name].tolist() == [1]


# --- damage and malice -----------------------------------------------------------------------------------------------


def test_an_unfinished_checkpoint_is_refused(tmp_path: Path) -> None:
    made = copy("kinds", tmp_path).rename(tmp_path / "kinds.orbax-checkpoint-tmp")
    with pytest.raises(FileError, match="its writer never finished"):
        polyak.open(made)
    renamed = made.rename(tmp_path / "renamed")
    for name in ("manifest.ocdbt", "_METADATA"):
        (renamed / name).unlink()
    with pytest.raises(FileError, match="its writer never finished"):
        polyak.open(renamed)


def test_a_missing_part_is_no_run_of_zeros(tmp_path: Path) -> None:
    made = copy("plain_zarr", tmp_path)
    (made / "w" / "0.0").unlink()
    with pytest.raises(DamagedFile, match="weight 'w'"):
        dict(polyak.open(made))


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    made = copy("plain_zarr", tmp_path)
    shutil.rmtree(made / "w")
    with pytest.raises(DamagedFile, match="weight 'w': expected an array by the tree"):
        polyak.open(made)


@pytest.mark.parametrize("change", [{"shape": [2**40, 2**7]}, {"chunks": [2**40, 4]}, {"chunks": [0, 4]}])
def test_an_absurd_header_is_refused_at_once(tmp_path: Path, change: dict[str, Any]) -> None:
    made = copy("plain_zarr", tmp_path)
    described(made, lambda held: held.update(change), "w/.zarray")
    begun = time.monotonic()
    with pytest.raises(DamagedFile, match="weight 'w': its header is not readable"):
        polyak.open(made)
    assert time.monotonic() - begun < 5


def test_dust_is_refused(tmp_path: Path) -> None:
    made = copy("plain_zarr", tmp_path)
    described(made, lambda held: held.update(shape=[2**13, 2**13], chunks=[1, 1]), "w/.zarray")
    with pytest.raises(DamagedFile, match="more than 1048576 parts"):
        polyak.open(made)


@pytest.mark.parametrize("step", ["..", "../../../../etc", "/etc"])
def test_a_step_leads_nowhere(tmp_path: Path, step: str) -> None:
    made = copy("plain_zarr", tmp_path)
    (tmp_path / "w").mkdir()
    shutil.copy(made / "w" / ".zarray", tmp_path / "w" / ".zarray")

    def lead_out(held: dict[str, Any]) -> None:
        held["tree_metadata"]["('w',)"]["key_metadata"] = [{"key": f"{step}/w", "key_type": 2}]

    described(made, lead_out, "_METADATA")
    with pytest.raises(DamagedFile):
        dict(polyak.open(made))


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    made = copy("plain_zarr", tmp_path)
    (tmp_path / "secret").write_bytes((made / "w" / "0.0").read_bytes())
    (made / "w" / "0.0").unlink()
    (made / "w" / "0.0").symlink_to(tmp_path / "secret")
    with pytest.raises(FileError, match="a link to"):
        polyak.open(made)
    (made / "w" / "0.0").unlink()
    (made / "w" / "more").symlink_to(made)
    with pytest.raises(FileError, match="a link to"):
        polyak.open(made)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    made = copy("plain_zarr", tmp_path)
    os.mkfifo(made / "w" / "1.0")
    with pytest.raises(DamagedFile, match="a device or a pipe"):
        polyak.open(made)


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"tree_metadata": 3}', '{"a":' * 100_000, "\xff"])
def test_an_unreadable_description_is_refused(tmp_path: Path, text: str) -> None:
    made = copy("kinds", tmp_path)
    (made / "_METADATA").write_bytes(text.encode("latin-1"))
    with pytest.raises(DamagedFile):
        polyak.open(made)


def test_two_leaves_of_one_name_are_refused(tmp_path: Path) -> None:
    made = copy("plain_zarr", tmp_path)

    def double(held: dict[str, Any]) -> None:
        held["tree_metadata"]["again"] = held["tree_metadata"]["('w',)"]

    described(made, double, "_METADATA")
    with pytest.raises(DamagedFile, match="expected one value 'w', received two"):
        polyak.open(made)


@pytest.mark.parametrize("name", ["kinds", "plain_zarr", "ocdbt_zarr3"])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str) -> None:
    files = sorted(p.relative_to(GOLDEN / name) for p in (GOLDEN / name).rglob("*") if p.is_file())
    told = {"commit_success.txt", "_sharding", "process_0", "_CHECKPOINT_METADATA"}
    for number, file in enumerate(f for f in files if f.name not in told and "process_0" not in str(f.parent)):
        made = copy(name, tmp_path / str(number))
        (made / file).write_bytes((made / file).read_bytes()[:-1])
        with pytest.raises(PolyakError):
            dict(polyak.open(made))


def test_no_flipped_bit_of_polyaks_own_passes(tmp_path: Path) -> None:
    values = {"w": np.arange(64, dtype=np.float32).reshape(8, 8), "b": np.float32([1, 2, 3])}
    orbax.write(Snapshot.from_arrays(values), tmp_path / "x")
    files = [p for p in sorted((tmp_path / "x").rglob("*")) if p.is_file()]
    rng = random.Random(0)
    for _ in range(150):
        file = rng.choice(files)
        whole = file.read_bytes()
        at = rng.randrange(len(whole))
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        try:
            held = dict(polyak.open(tmp_path / "x"))
        except PolyakError:
            pass
        else:
            assert {n: a.tobytes() for n, a in held.items()} == {n: a.tobytes() for n, a in values.items()}
        file.write_bytes(whole)


def test_a_manifest_of_other_arrays_is_refused(tmp_path: Path) -> None:
    for name in ("x", "y"):
        orbax.write(Snapshot.from_arrays({name: np.float32([1])}), tmp_path / name)
    shutil.copy(tmp_path / "y" / NOTE, tmp_path / "x" / NOTE)
    with pytest.raises(DamagedFile, match="by the manifest"):
        polyak.open(tmp_path / "x")


def test_nothing_is_a_checkpoint_of_nothing(tmp_path: Path) -> None:
    orbax.write(Snapshot([]), tmp_path / "m.orbax")
    assert len(polyak.open(tmp_path / "m.orbax")) == 0


def test_arrays_are_committed_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orbax_write, "_BATCH", 100)
    held = {f"w{i}": np.full(10, i, np.float32) for i in range(5)}
    orbax.write(Snapshot.from_arrays(held), tmp_path / "m.orbax")
    assert {name: int(value[0]) for name, value in polyak.open(tmp_path / "m.orbax").items()} == {
        f"w{i}": i for i in range(5)
    }


def test_a_weight_that_changes_while_it_is_written_is_refused(tmp_path: Path) -> None:
    item = Item("raw", Weight("w", (3,), "float32", Kind.TRAINABLE), lambda: np.zeros(4, np.float32))
    with pytest.raises(ShapeMismatch, match=r"weight 'w': expected \(3,\) float32, received \(4,\)"):
        orbax.write(Snapshot([item]), tmp_path / "m.orbax")
    assert not list(tmp_path.iterdir())


def test_the_cost_of_an_array_does_not_grow_with_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database is opened once, whatever is read of it, and the size of a description is looked at a few times."""
    sizes, databases = [0], [0]
    nbytes, base = Weight.nbytes, orbax_store.base

    def counted(weight: Weight) -> int:
        sizes[0] += 1
        return int(nbytes.fget(weight))  # type: ignore[attr-defined]

    def opened(directory: Path) -> dict[str, Any]:
        databases[0] += 1
        return dict(base(directory))

    monkeypatch.setattr(Weight, "nbytes", property(counted))
    held = Snapshot.from_arrays({f"layer/{i}": np.float32([i]) for i in range(300)})
    polyak.save(held, tmp_path / "a.orbax")
    assert sizes[0] <= 10 * 300
    monkeypatch.setattr(orbax_store, "base", opened)
    found = polyak.open(tmp_path / "a.orbax")
    assert all(found[f"layer/{i}"][0] == i for i in range(300))
    assert databases == [1]


def test_what_cannot_be_written_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    def unread() -> Any:
        raise AssertionError("it was read")

    def of(*shape: int) -> Snapshot:
        return Snapshot([Item("raw", Weight("w", shape, "float32", Kind.TRAINABLE), unread)], {})

    orbax.refuse(of(2), tmp_path / "a")
    with pytest.raises(ShapeMismatch, match="weight 'w': expected elements"):
        orbax.refuse(of(0), tmp_path / "a")
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(FileError, match="received something else"):
        orbax.refuse(of(2), tmp_path / "file")
    with pytest.raises(FileError, match="bytes are free; it needs 1,125,899,906,842,624 bytes"):
        orbax.refuse(of(1 << 48), tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
