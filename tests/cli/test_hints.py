"""A hint of a command can be typed as it stands: it names options that there are, and what it proposes works."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

import polyak
from polyak.cli import main
from polyak.cli.hints import as_options
from polyak.errors import WeightError, argument
from polyak.manifest import Manifest, State
from polyak.snapshot import Snapshot


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def hinted(answer: Result, begin: str) -> list[str]:
    """The words of a hint behind where it begins, up to the next semicolon."""
    assert answer.exit_code == 2
    hint = answer.stderr.partition("\nhint: ")[2].strip()
    return shlex.split(hint.partition(begin)[2].partition(";")[0])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def held(role: str = "raw", **arrays: Any) -> Snapshot:
    return Snapshot.from_arrays(arrays, role, State({"rule": "mean"}, 3) if role == "average" else None)


def two_sets(path: str, **arrays: Any) -> None:
    items = [i for role in ("raw", "average") for i in held(role, **arrays).items_by_path.values()]
    polyak.save(Snapshot(items, {"average": State({"rule": "mean"}, 3)}), path)


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        (
            'rename={"a*": "b*", "c": "d"}; or by="position"',
            r"--rename '^a(.*)$=b\1' --rename '^c$=d'; or --by position",
        ),
        ('leave them out with exclude=["*/a", "b c"]', "leave them out with --exclude '*/a' --exclude 'b c'"),
        ("include= and exclude= are compared, after rename=", "--include and --exclude are compared, after --rename"),
        ("""exclude='say "x"', or""", """--exclude 'say "x"', or"""),
        ('exclude="say "x""', """--exclude 'say "x"'"""),
        ('layers={"d": "Dense" or "Conv1D"}, or "same"', '--layers d=Dense or --layers d=Conv1D, or "same"'),
        ('rename={"a*": "b*2"}', r"--rename '^a(.*)$=b\g<1>2'"),
        ('polyak.convert(member, path, exclude="q"); or', "polyak convert MEMBER PATH --exclude q; or"),
        ('polyak.transfer(source, "a.pt", like=target), and', "polyak transfer SOURCE a.pt --like TARGET, and"),
        ('polyak.track(model, {"head/*": rule}); cast="x"', 'polyak.track(model, {"head/*": rule}); --cast x'),
        (
            "snapshot.select(role=...), at=40, a larger largest_norm=",
            "snapshot.select(role=...), --at 40, a larger --largest-norm",
        ),
        ("polyak.open(", "polyak.open("),
    ],
)
def test_arguments_are_options_and_calls_are_commands(hint: str, said: str) -> None:
    assert as_options(hint) == said


@pytest.mark.parametrize(
    ("odd", "target"),
    [
        (np.zeros((0, 2), np.float32), "x.orbax"),
        (np.ones(2, ml_dtypes.float8_e3m4), "x.orbax"),
        (np.ones(2, ml_dtypes.float8_e3m4), "x.pt"),
        (np.ones(2, ml_dtypes.float8_e3m4), "x.safetensors"),
        (np.ones(2, ml_dtypes.float8_e3m4), "x.safetensors.index.json"),
    ],
)
def test_a_weight_of_two_sets_is_left_out_by_its_path(odd: Any, target: str) -> None:
    two_sets("two.npz", w=np.ones(2, np.float32), z=odd)
    words = hinted(call("convert", "two.npz", target), "leaves it out with ")
    assert words == ["--exclude", "z"]
    assert call("convert", "two.npz", target, *words).exit_code == 0


def test_a_name_with_quotes_is_left_out_as_the_hint_says() -> None:
    polyak.save(held(w=np.ones(2, np.float32), **{'say "x"': np.ones(2, ml_dtypes.float8_e3m4)}), "odd.npz")
    words = hinted(call("convert", "odd.npz", "x.pt"), "leaves it out with ")
    assert call("convert", "odd.npz", "x.pt", *words).exit_code == 0
    with pytest.raises(WeightError) as refused:
        polyak.convert("odd.npz", "y.pt")
    said = str(refused.value.hint).partition("exclude=")[2]
    polyak.convert("odd.npz", "y.pt", exclude=eval(said))


@pytest.mark.parametrize(
    ("old", "new"),
    [("a=b/kernel", "c=d/kernel"), ('q"x/w', 'r"x/w'), ("a\\d/w", "b\\d/w"), ("a\\1/w", "b'\\1=/w")],
)
def test_odd_names_are_paired_and_left_out_as_the_hint_says(old: str, new: str) -> None:
    polyak.save(held(**{old: np.ones(3, np.float32)}), "a.npz")
    polyak.save(held(**{new: np.ones(3, np.float32)}), "like.npz")
    asked = ("transfer", "a.npz", "b.npz", "--like", "like.npz")
    words = hinted(call(*asked), "pair them with ")[:2]
    assert words[0] == "--rename"
    assert call(*asked, words[0], words[1].rstrip(",")).exit_code == 0
    assert list(polyak.open("b.npz")) == [new]
    polyak.save(held(w=np.ones(2, np.float32), **{new: np.ones(3, np.float32)}), "more.npz")
    polyak.save(held(w=np.ones(2, np.float32)), "few.npz")
    asked = ("transfer", "more.npz", "c.npz", "--like", "few.npz")
    assert call(*asked, *hinted(call(*asked), "leave it out with ")).exit_code == 0


def test_a_hint_of_many_names_is_told_at_once() -> None:
    names = [f"layer/{i}/kernel" for i in range(2000)]
    begun = time.perf_counter()
    assert as_options(argument("exclude", names)) == " ".join(f"--exclude {name}" for name in names)
    assert time.perf_counter() - begun < 2


@pytest.mark.parametrize(
    ("dtype", "other", "option"),
    [
        ("int32", "int64", "--exclude 'n x'"),
        ("int32", "float32", "--exclude 'n x'"),
        ("float32", "float16", "--cast float32"),
    ],
)
def test_members_of_two_dtypes_are_made_alike_as_the_hint_says(dtype: str, other: str, option: str) -> None:
    for name, chosen in (("a.npz", dtype), ("b.npz", other)):
        polyak.save(held(w=np.ones(2, np.float32), **{"n x": np.ones(2, chosen)}), name)
    answer = call("average", "a.npz", "b.npz", "-o", "mean.npz")
    words = hinted(answer, "polyak convert MEMBER PATH ")
    assert words == shlex.split(option)
    for name in "ab":
        assert call("convert", f"{name}.npz", f"{name}2.npz", *words).exit_code == 0
    assert call("average", "a2.npz", "b2.npz", "-o", "mean.npz").exit_code == 0


def test_members_that_differ_in_codes_are_written_without_them_as_the_hint_says() -> None:
    for i, name in enumerate("ab"):
        polyak.save(held(w=np.ones(2, np.float32), q=np.int8([[1, i]])), f"{name}.npz")
    words = hinted(call("average", "a.npz", "b.npz", "-o", "mean.npz"), "polyak convert MEMBER PATH ")
    assert words == ["--exclude", "q"]


def test_members_of_two_layouts_are_both_put_into_that_of_pytorch() -> None:
    for layout in ("keras", "torch"):
        made = held(w=np.ones(2, np.float32))
        polyak.save(Snapshot(made.items_by_path.values(), {}, written=_in_layout(made, layout)), f"{layout}.npz")
    for order in (("keras.npz", "torch.npz"), ("torch.npz", "keras.npz")):
        answer = call("average", *order, "-o", "mean.npz")
        assert hinted(answer, "polyak convert MEMBER PATH ") == ["--layout", "torch"]


def test_the_class_of_a_layer_is_told_as_the_hint_says() -> None:
    made = held(**{"my net/kernel": np.ones((2, 3), np.float32), "my net/bias": np.ones(3, np.float32)})
    polyak.save(Snapshot(made.items_by_path.values(), {}, written=_in_layout(made, "keras")), "a.npz")
    asked = ("convert", "a.npz", "b.npz", "--layout", "torch")
    words = hinted(call(*asked), "say how it lies: ")[:2]
    assert words == ["--layers", "my net=Dense"]
    assert call(*asked, *words).exit_code == 0
    assert {name: array.shape for name, array in polyak.open("b.npz").items()} == {
        "my net.weight": (3, 2),
        "my net.bias": (3,),
    }
    for wrong in ("Dense", "=Dense", "my net="):
        assert "expected GLOB=CLASS" in call(*asked, "--layers", wrong).stderr
    assert "received 'n' twice" in call(*asked, "--layers", "n=Dense", "--layers", "n=same").stderr
    assert "--layers needs --layout torch" in call("convert", "a.npz", "c.npz", "--layers", "n=same").stderr
    assert "--layers needs --like FILE" in call("transfer", "a.npz", "c.npz", "--layers", "n=same").stderr


def _in_layout(made: Snapshot, layout: str) -> Manifest:
    return msgspec.structs.replace(made.manifest, layout=layout)


def test_shares_are_not_called_weights_which_is_another_option() -> None:
    polyak.save(held(w=np.ones(2, np.float32)), "a.npz")
    for shares in ("1,1", "-1", "0"):
        answer = call("average", "a.npz", "-o", "mean.npz", "--member-weights", shares)
        assert answer.exit_code == 2
        assert "shares" in answer.stderr
        assert "weights" not in answer.stderr


def test_synthesize_is_told_its_own_options() -> None:
    for n in (40, 80):
        polyak.save(Snapshot.from_arrays({"w": np.float32([n])}, "average", State({"rule": "mean"}, n)), f"{n}.npz")
    asked = ("synthesize", "40.npz", "80.npz", "--dry-run", "--rule")
    assert re.search(r"nearest snapshot: --at 40; or keep", call(*asked, "ema:0.9", "--at", "50").stderr)
    assert "accept it with a larger --tolerance\n" in call(*asked, "ema:0.9").stderr
    answer = call(*asked, "mean,after=40", "--largest-norm", "1", "--tolerance", "9")
    assert "accept it with a larger --largest-norm\n" in answer.stderr


def in_a_shell(command: str) -> list[str]:
    """The words that a shell makes of a command."""
    said = subprocess.run(["sh", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True)
    return said.stdout.decode().split("\0")[:-1]


def test_averages_that_two_tools_call_otherwise_are_averaged_as_the_hint_says() -> None:
    """As Keras' files and TensorFlow's checkpoints do of one model."""
    for n, names in enumerate((("avs/slow", "avs/fast"), ("model/avs/slow", "model/avs/fast")), 1):
        roles = [f"average:{name}" for name in names]
        sets = [i for role in roles for i in held(role, w=np.float32([n])).items_by_path.values()]
        polyak.save(Snapshot(sets, dict.fromkeys(roles, State({"rule": "mean"}, 3))), f"{n}.npz")
    words = hinted(call("average", "1.npz", "2.npz", "-o", "m.npz", "--weights", "average:avs/slow"), "convert MEMBER ")
    for n, name in ((1, "average:avs/slow"), (2, "average:model/avs/slow")):
        assert words == ["PATH", "--weights", "..."]
        assert call("convert", f"{n}.npz", f"one{n}.npz", "--weights", name).exit_code == 0
    assert call("average", "one1.npz", "one2.npz", "-o", "m.npz").exit_code == 0
    assert polyak.open("m.npz")["w"].tolist() == [1.5]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
@pytest.mark.parametrize(
    "name", ["it's", "it's $HOME", "q'u`id`\"e", "sp ace", "st*r", "x[0]", "a\\b", "new\n[0]line", "-dash", "ä"]
)
def test_what_doctor_says_can_be_typed_whatever_a_weight_is_called(name: str) -> None:
    """The name in single quotes of Python's would be another one, or several, or a program."""
    polyak.save(held(**{name: np.float32([np.nan]), "ok": np.float32([1])}), "bad.safetensors")
    mend = call("doctor", "bad.safetensors").stdout.partition("leave them out: ")[2].partition("\n\n")[0]
    words = in_a_shell(mend)
    assert words[:4] == ["polyak", "convert", "bad.safetensors", "OUT.safetensors"]
    assert call(*words[1:]).exit_code == 0
    assert list(polyak.open("OUT.safetensors")) == ["ok"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
def test_doctor_names_an_average_as_a_shell_takes_it() -> None:
    one, other = held(w=np.float32([1])), held("average:it's slow", w=np.float32([2]))
    sets = [item for made in (one, other) for item in made.items_by_path.values()]
    polyak.save(Snapshot(sets, {"average:it's slow": State({"rule": "mean"}, 3)}), "two.npz")
    said = call("doctor", "two.npz").stdout.partition("where you load it: ")[2].partition("\n")[0]
    assert call(*in_a_shell(said)[1:]).exit_code == 0
    assert polyak.open("OUT.safetensors").roles == ("average:it's slow",)


def test_one_of_several_averages_and_one_of_several_parts_are_taken_as_the_hints_say() -> None:
    slow, fast = (State({"rule": "mean"}, n) for n in (40, 80))
    roles = ("average:slow", "average:fast")
    sets = [i for role in roles for i in held(role, w=np.float32([1])).items_by_path.values()]
    polyak.save(Snapshot(sets, {"average:slow": slow, "average:fast": fast}), "two.npz")
    rule = {"parts": [["enc/*", {"rule": "mean"}], ["*", {"rule": "ema", "decay": 0.9}]]}
    arrays = {"enc/w": np.float32([1]), "head/w": np.float32([2])}
    polyak.save(Snapshot.from_arrays(arrays, "average", State(rule, 40)), "parts.npz")
    for path, begin in (("two.npz", "take one of them: "), ("parts.npz", "each part for itself: ")):
        words = hinted(call("synthesize", path, "--dry-run", "--rule", "mean"), begin)
        assert words[:4] == ["polyak", "convert", "SOURCE", "PATH"]
        assert call("convert", path, "one.npz", *words[4:], "--force").exit_code == 0
        answer = call("synthesize", "one.npz", "--dry-run", "--rule", "mean")
        assert (answer.exit_code, answer.stderr) == (0, "")
