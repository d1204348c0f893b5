"""What a result may take the place of: never a file that is read for it, whatever path leads there."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file

import polyak
from polyak.cli import main
from polyak.errors import FileError

FIRST, INDEX = "model-00001-of-00002.safetensors", "model.safetensors.index.json"


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folders of the Hub with shards, "a" and "b", and two with one file, "c" and "d"."""
    monkeypatch.chdir(tmp_path)
    for value, name in enumerate("abcd", 1):
        Path(name).mkdir()
        Path(name, "config.json").write_text('{"model_type": "x"}')
        arrays = {"u": np.full(4, value, np.float32), "v": np.full(3, value, np.float32)}
        (_sharded if name in "ab" else _whole)(Path(name), arrays)


def _sharded(folder: Path, arrays: dict[str, Any]) -> None:
    shards = {name: f"model-0000{i}-of-00002.safetensors" for i, name in enumerate(arrays, 1)}
    for name, shard in shards.items():
        save_file({name: arrays[name]}, folder / shard, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 28}, "weight_map": shards}))


def _whole(folder: Path, arrays: dict[str, Any]) -> None:
    save_file(arrays, folder / "model.safetensors")


def contents() -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(Path().rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("a", f"a/{FIRST}"),
        ("a/", f"./b/../a/{FIRST}"),
        ("a", f"a/{INDEX}"),
        (f"a/{INDEX}", f"a/{FIRST}"),
        ("c", "c/model.safetensors"),
        ("c", "c/config.json"),
        ("c/model.safetensors", "c/config.json"),
    ],
)
def test_a_part_of_a_source_is_not_written_over(source: str, target: str) -> None:
    before = contents()
    said = f"error: file {target!r}: it is a part of {source!r}, which is one of the sources\n"
    for arguments in (
        ("convert", source, target),
        ("average", "d", source, "-o", target),
        ("transfer", source, target),
    ):
        answer = call(*arguments, "--force", *(["--format", "safetensors"] if arguments[0] == "convert" else []))
        assert (answer.exit_code, answer.stderr) == (2, f"{said}hint: give the result another name\n")
    assert contents() == before


def test_a_checkpoint_of_tensorflow_is_known_by_each_of_its_names() -> None:
    """Its prefix, its index, its data and its directory; nothing of it is opened to see that."""
    Path("run").mkdir()
    for name in ("checkpoint", "ck-1.index", "ck-1.data-00000-of-00001"):
        Path("run", name).write_bytes(b"")
    for source in ("run", "run/ck-1", "run/ck-1.index", "run/ck-1.data-00000-of-00001"):
        for target in ("run/ck-1.index", "run/ck-1.data-00000-of-00001"):
            answer = call("convert", source, target, "--format", "npz", "--force")
            assert "one of the sources" in answer.stderr
            assert Path(target).read_bytes() == b""


def test_a_result_does_not_take_away_the_shards_that_it_is_made_of() -> None:
    polyak.convert("c", f"out{INDEX}")
    shard = next(Path().glob("out*/*.safetensors"))
    answer = call("convert", str(shard), f"out{INDEX}", "--force")
    assert answer.stderr.startswith(f"error: file 'out{INDEX}': the source {str(shard)!r} is a part of it\n")
    assert shard.exists()


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("a", "a/model.safetensors"),
        ("c", f"c/{INDEX}"),
        ("tree.orbax", "tree.orbax/x.npz"),
        ("run/ck-1.index", "run/ck-1"),
        ("run", "run/ck-2.index"),
    ],
)
def test_what_would_be_read_for_a_source_is_not_made_anew(source: str, target: str) -> None:
    """A folder with shards and a file of weights is refused, and so is a tree with what is not its own."""
    polyak.convert("c", "tree.orbax")
    Path("run").mkdir()
    for name in ("checkpoint", "ck-1.index", "ck-1.data-00000-of-00001"):
        Path("run", name).write_bytes(b"")
    before = contents()
    for verb in ("convert", "transfer"):
        answer = call(verb, source, target, *(["--format", "npz"] if verb == "convert" else []))
        assert answer.stderr.startswith(f"error: file {target!r}: it is a part of {source!r}, which is one of the sour")
    assert contents() == before


def test_python_keeps_the_parts_of_a_source_as_the_commands_do() -> None:
    before = contents()
    for write in (
        lambda: polyak.convert("a", f"a/{FIRST}"),
        lambda: polyak.convert(Path("a", INDEX), f"a/{FIRST}"),
        lambda: polyak.average((path for path in ("a", "b")), out=f"b/{FIRST}"),
        lambda: polyak.average("a", out="a/model.safetensors"),
        lambda: polyak.save("a", f"a/{FIRST}"),
        lambda: polyak.transfer("a", f"a/{FIRST}"),
        lambda: polyak.transfer("a", f"a/{FIRST}", like="b"),
        lambda: polyak.Saver().save("a", f"a/{FIRST}"),
    ):
        with pytest.raises(FileError, match=r"it is a part of .*, which is one of the sources"):
            write()
    assert contents() == before
    polyak.convert("c/model.safetensors", "c/model.safetensors", cast="float16")
    assert polyak.open("c")["u"].dtype == np.float16


@pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links")
def test_links_in_a_source_are_followed() -> None:
    """As in the Hub's cache, where the files of a folder lead to blobs."""
    Path("blob").write_bytes(Path("c/model.safetensors").read_bytes())
    Path("c/model.safetensors").unlink()
    Path("c/model.safetensors").symlink_to("../blob")
    for target in ("blob", "c/model.safetensors"):
        answer = call("convert", "c", target, "--format", "safetensors", "--force")
        assert "it is a part of 'c', which is one of the sources" in answer.stderr


def test_beside_the_parts_of_a_source_there_is_room() -> None:
    """A new name, and a file that no directory is read from."""
    Path("c/sub").mkdir()
    polyak.convert("d", "tree", format="orbax")
    for _ in range(2):
        for arguments in (
            ("average", "a", "b", "-o", "a/mean.safetensors"),
            ("convert", "c", "c/copy.npz"),
            ("convert", "c", "c/sub/model.safetensors"),
            ("convert", "c", "c/out.orbax"),
            ("convert", "c", "tree", "--format", "orbax"),
            ("plan", "c", "d", "-o", "c/plan.json"),
            ("extract", "c", "u", "-o", "c/u.npy"),
        ):
            assert (call(*arguments, "--force").exit_code, arguments) == (0, arguments)


def test_the_distances_are_those_of_the_members_that_were_averaged() -> None:
    answer = call("average", "c/model.safetensors", "d", "-o", "mean.safetensors", "--json")
    assert [m["distance"] for m in json.loads(answer.stdout)["members"]] == pytest.approx([1 / 7, 1 / 7])


def test_a_directory_is_no_file_to_write_over() -> None:
    for arguments in (["--force"], []):
        answer = call("convert", "c", "d", "--format", "npz", *arguments)
        assert answer.stderr.startswith("error: file 'd': expected a file to write, received a directory\n")
        assert "hint: add a file name\n" in answer.stderr
        assert "--force" not in answer.stderr
    Path("x.orbax").mkdir()
    Path("x.orbax/_METADATA").write_bytes(b"{}")
    assert "hint: write over it with --force" in call("convert", "c", f"x.orbax{os.sep}").stderr


def test_nothing_within_a_tree_of_arrays_is_written_over() -> None:
    polyak.convert("c", "tree.orbax")
    inside = next(p for p in Path("tree.orbax").rglob("*") if p.is_file() and p.parent != Path("tree.orbax"))
    for source in ("tree.orbax", "."):
        answer = call("convert", source, str(inside), "--format", "npz", "--force")
        assert "which is one of the sources" in answer.stderr


def test_two_pictures_do_not_share_a_name() -> None:
    answer = call("profile", "ema:0.9", "--svg", "x.html", "--html", "./x.html")
    said = "error: file './x.html': expected one picture there, received --svg and --html\n"
    assert (answer.exit_code, answer.stderr) == (2, f"{said}hint: give each a name of its own\n")
    assert not Path("x.html").exists()
