"""The verbs over files, word for word: diff, average, convert, extract, doctor; and the reference of all."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner, Result

import polyak
from polyak.averaging import rules
from polyak.cli import COMMANDS, convert, main, output
from polyak.cli.reference import reference
from polyak.combine.convert import FORMATS
from polyak.manifest import State
from polyak.snapshot import Snapshot

ROOT = Path(__file__).resolve().parents[2]
OLD = State(rules.EMA(0.9).to_json(), 5000)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def lines(*expected: str) -> str:
    return "\n".join(expected) + "\n"


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three members, an average, a file of two sets."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate("abc"):
        polyak.save(Snapshot.from_arrays(weights(i)), f"{name}.safetensors")
    average = Snapshot.from_arrays(weights(1), "average", OLD)
    polyak.save(average, "ema.safetensors")
    items = [*Snapshot.from_arrays(weights(0)).items_by_path.values(), *average.items_by_path.values()]
    polyak.save(Snapshot(items, {"average": OLD}), "both.safetensors")


def weights(i: int) -> dict[str, Any]:
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3) + i
    return {"head/kernel": kernel, "head/bias": np.ones(3, ml_dtypes.bfloat16), "steps": np.array(10 + i, np.int64)}


# --- diff ------------------------------------------------------------------------------------------------------------


def test_diff_of_the_same() -> None:
    answer = call("diff", "a.safetensors", "a.safetensors")
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert answer.stdout == lines(
        "A: file 'a.safetensors' (raw)", "B: file 'a.safetensors' (raw)", "", "same: 3 leaves"
    )


def test_diff_shows_leaf_by_leaf_what_differs() -> None:
    polyak.convert("b.safetensors", "d.npz", exclude="head/bias", rename={"steps": "step"})
    answer = call("diff", "a.safetensors", "d.npz")
    assert (answer.exit_code, answer.stderr) == (1, "")
    assert answer.stdout == lines(
        "A: file 'a.safetensors' (raw)",
        "B: file 'd.npz' (raw)",
        "",
        "leaf         differs in  shape  dtype    elements  max abs  max rel        max ulp",
        "head/kernel  values      2 x 3  float32         6        1        1  1,065,353,216",
        "head/bias    only in A   -      -               -        -        -              -",
        "steps        only in A   -      -               -        -        -              -",
        "step         only in B   -      -               -        -        -              -",
        "",
        "different: 1 leaf, 2 only in A, 1 only in B; 0 the same",
    )


def test_diff_of_shape_dtype_and_nan() -> None:
    one = {"d": np.float32([1, 2]), "n": np.float32([1]), "s": np.zeros((2, 3), np.float32)}
    other = {"d": np.float64([1, 2.5]), "n": np.float32([np.nan]), "s": np.zeros(6, np.float32)}
    for name, arrays in (("x.npz", one), ("y.npz", other)):
        np.savez(name, **arrays)
    assert call("diff", "x.npz", "y.npz").stdout.splitlines()[3:7] == [
        "leaf  differs in  shape      dtype              elements     max abs     max rel  max ulp",
        "d     dtype       2          float32 | float64         1         0.5         0.2        -",
        "n     values      1          float32                   1  not finite  not finite        -",
        "s     shape       2 x 3 | 6  float32                   -           -           -        -",
    ]


def test_diff_of_states() -> None:
    polyak.save(Snapshot.from_arrays(weights(1), "average", State(OLD.rule, 1)), "young.safetensors")
    answer = call("diff", "ema.safetensors", "young.safetensors")
    assert answer.exit_code == 1
    assert answer.stdout.splitlines()[3:] == [
        "average: ema:0.9 after 5,000 updates in A, ema:0.9 after 1 update in B",
        "",
        "different: 0 leaves, 0 only in A, 0 only in B; 3 the same",
    ]


def test_diff_with_a_tolerance_and_a_chosen_set() -> None:
    assert call("diff", "a.safetensors", "b.safetensors", "--atol", "1").exit_code == 0
    assert call("diff", "both.safetensors", "both.safetensors", "--weights", "average").exit_code == 0
    answer = call("diff", "both.safetensors", "ema.safetensors")
    assert answer.exit_code == 2
    assert answer.stderr == lines(
        "error: file 'both.safetensors': expected weights of one role, received 'raw' and 'average'",
        "hint: say which: --weights raw or --weights average",
    )


def test_a_file_that_does_not_say_what_it_holds_is_compared_with_any_set() -> None:
    """Its weights are raw by assumption alone. A file that says what it holds, and a word for no set, are refused."""
    held = polyak.open("ema.safetensors")
    np.savez("bare.npz", **{name: held[name] for name in held if name != "head/bias"})
    polyak.convert("both.safetensors", "two.npz", exclude="head/bias")
    assert "--weights raw or --weights average" in call("diff", "two.npz", "bare.npz").stderr
    for sides in (("two.npz", "bare.npz"), ("bare.npz", "two.npz")):
        assert call("diff", *sides, "--weights", "average").exit_code == 0
        assert call("diff", *sides, "--weights", "raw").exit_code == 1
        assert call("diff", *sides, "--weights", "averge").exit_code == 2
    answer = call("diff", "both.safetensors", "ema.safetensors", "--weights", "raw")
    assert "file 'ema.safetensors': expected weights of role 'raw', received 'average'" in answer.stderr
    assert polyak.diff("two.npz", "bare.npz", weights="average").roles == (("average",), ("raw",))
    for asked in ("average", "average:slow"):  # where neither says that it has one, nothing is compared
        assert call("diff", "bare.npz", "bare.npz", "--weights", asked).exit_code == 2


def test_diff_in_json() -> None:
    answer = call("diff", "a.safetensors", "b.safetensors", "--json")
    assert answer.exit_code == 1
    found = json.loads(answer.stdout)
    assert (found["equal"], found["same"], [c["name"] for c in found["changed"]]) == (
        False,
        1,
        ["head/kernel", "steps"],
    )


# --- average ---------------------------------------------------------------------------------------------------------


def test_average_answers_with_a_receipt_and_the_members() -> None:
    answer = call("average", "a.safetensors", "b.safetensors", "c.safetensors", "-o", "mean.safetensors")
    assert (answer.exit_code, answer.stderr) == (0, "")
    digest = answer.stdout.splitlines()[2]
    assert answer.stdout == lines(
        "average weights after 3 updates: mean of file 'a.safetensors', file 'b.safetensors', file 'c.safetensors' -> "
        "file 'mean.safetensors'",
        "  3 weights (38 bytes) moved and verified, 0 cast, 0 renamed, 0 skipped as asked",
        digest,
        "",
        "member                 share  distance",
        "file 'a.safetensors'  0.3333    0.2526",
        "file 'b.safetensors'  0.3333         0",
        "file 'c.safetensors'  0.3333    0.2526",
    )
    mean = polyak.open("mean.safetensors")
    assert np.array_equal(mean["head/kernel"], weights(1)["head/kernel"])
    assert int(mean["steps"]) == 12


def test_average_with_shares_in_json() -> None:
    members = ("a.safetensors", "b.safetensors", "c.safetensors")
    answer = call("average", *members, "-o", "mean.npz", "--member-weights", "1,2,1", "--json")
    assert answer.exit_code == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert [m["share"] for m in found["members"]] == [0.25, 0.5, 0.25]
    assert (found["role"], found["count"], len(found["moved"])) == ("average", None, 3)


def test_average_of_a_chosen_set() -> None:
    assert call("average", "both.safetensors", "-o", "m.safetensors", "--weights", "average").exit_code == 0
    answer = call("average", "both.safetensors", "-o", "n.safetensors")
    assert (answer.exit_code, answer.stderr.splitlines()[1]) == (
        2,
        "hint: say which: --weights raw or --weights average",
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.safetensors", "ema.safetensors"], "error: expected members of one role, received average from"),
        (["a.safetensors", "--member-weights", "1,-1"], "error: expected 1 shares, one for each member, received 2"),
        (["a.safetensors", "--member-weights", "1;2"], "Invalid value for --member-weights: expected numbers such as"),
        (["a.safetensors", "no.safetensors"], "error: file 'no.safetensors': there is nothing at this path"),
        ([], "Missing argument 'FILE...'"),
    ],
)
def test_average_of_bad_input_writes_nothing(arguments: list[str], said: str) -> None:
    answer = call("average", *arguments, "-o", "mean.safetensors")
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert said in answer.stderr
    assert not Path("mean.safetensors").exists()


def test_average_keeps_what_exists_and_never_replaces_a_member() -> None:
    before = Path("a.safetensors").read_bytes()
    answer = call("average", "b.safetensors", "-o", "a.safetensors")
    assert answer.stderr == lines("error: file 'a.safetensors': it exists already", "hint: write over it with --force")
    answer = call("average", "a.safetensors", "b.safetensors", "-o", "./a.safetensors", "--force")
    assert answer.stderr.startswith("error: file './a.safetensors': it is one of the sources\n")
    assert Path("a.safetensors").read_bytes() == before


def test_average_tells_a_bar_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr(output, "progress", lambda: nullcontext(lambda *what: told.append(what)))
    assert call("average", "a.safetensors", "-o", "mean.safetensors").exit_code == 0
    assert [(done, total) for _, done, total in told] == [(0, 3), (1, 3), (2, 3), (0, 1)]
    assert {name for name, _, _ in told} == {"head/kernel", "head/bias", "steps", "distances"}


# --- convert ---------------------------------------------------------------------------------------------------------


def test_convert_answers_with_a_receipt() -> None:
    answer = call(
        "convert", "both.safetensors", "x.npz", "--weights", "average", "--exclude", "steps", "--rename", "^head/="
    )
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert answer.stdout.splitlines()[:2] == [
        "average weights after 5,000 updates: file 'both.safetensors' -> file 'x.npz'",
        "  2 weights (30 bytes) moved and verified, 0 cast, 2 renamed, 1 skipped as asked",
    ]
    assert list(polyak.open("x.npz")) == ["kernel", "bias"]


def test_convert_says_what_it_would_do() -> None:
    dry = (
        "convert",
        "a.safetensors",
        "x.npz",
        "--dry-run",
        "--cast",
        "float16",
        "--exclude",
        "steps",
        "--rename",
        "head=h",
    )
    answer = call(*dry)
    assert answer.stdout == lines(
        "file 'a.safetensors' -> file 'x.npz' (npz); nothing is written",
        "",
        "weight       becomes   dtype               bytes",
        "head/kernel  h/kernel  float32 | float16      12",
        "head/bias    h/bias    bfloat16 | float16      6",
        "",
        "skipped as asked: steps",
    )
    assert json.loads(call(*dry, "--json").stdout)["moves"][0] == {
        "source": "head/kernel",
        "target": "h/kernel",
        "source_dtype": "float32",
        "dtype": "float16",
        "nbytes": 12,
    }
    assert not Path("x.npz").exists()


def test_convert_keeps_what_exists_and_knows_its_formats() -> None:
    assert call("convert", "a.safetensors", "b.safetensors").exit_code == 2
    assert call("convert", "a.safetensors", "b.safetensors", "--force", "--json").exit_code == 0
    answer = call("convert", "a.safetensors", "x.h5")
    assert answer.stderr == lines(
        "error: file 'x.h5': expected the name or format of something that polyak writes, received 'x.h5'",
        f"hint: end the name in {', '.join(FORMATS.values())}, or choose a format: {', '.join(FORMATS)}",
    )
    assert "expected REGEX=NEW, received 'x'" in call("convert", "a.safetensors", "x.npz", "--rename", "x").stderr
    assert set(convert.FORMATS) == set(FORMATS)


# --- extract ---------------------------------------------------------------------------------------------------------


def test_extract_writes_npy_to_standard_output_or_a_file() -> None:
    answer = call("extract", "a.safetensors", "head/kernel")
    assert np.array_equal(np.load(io.BytesIO(answer.stdout_bytes)), weights(0)["head/kernel"])
    answer = call("extract", "both.safetensors", "steps", "--weights", "average", "-o", "s.npy")
    assert (answer.exit_code, answer.stdout, int(np.load("s.npy"))) == (0, "", 11)
    assert call("extract", "a.safetensors", "steps", "-o", "s.npy").stderr.startswith("error: file 's.npy': it exists")


def test_extract_widens_what_npy_has_no_name_for() -> None:
    answer = call("extract", "a.safetensors", "head/bias")
    assert answer.stderr == "bfloat16 is written as float32\n"
    assert np.load(io.BytesIO(answer.stdout_bytes)).dtype == np.float32


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_extract_widens_every_float8(dtype: str) -> None:
    """NumPy counts one of them among its own sorts, and writes a file that it cannot read."""
    values = np.arange(6, dtype=np.float32)
    polyak.save(Snapshot.from_arrays({"w": values.astype(dtype)}), "small.safetensors")
    answer = call("extract", "small.safetensors", "w")
    assert answer.stderr == f"{dtype} is written as float32\n"
    assert np.array_equal(np.load(io.BytesIO(answer.stdout_bytes)), values)


def test_extract_describes_in_json_and_names_what_is_near() -> None:
    found = json.loads(call("extract", "a.safetensors", "steps", "--json").stdout)
    assert (found["name"], found["shape"], found["dtype"], len(found["digest"])) == ("steps", [], "int64", 32)
    answer = call("extract", "a.safetensors", "head/kernle")
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert "nearest: 'head/kernel'" in answer.stderr


# --- doctor ----------------------------------------------------------------------------------------------------------


def test_doctor_of_a_file_that_is_well() -> None:
    polyak.convert("ema.safetensors", "well.npz", cast="float32")
    answer = call("doctor", "well.npz")
    assert (answer.exit_code, answer.stdout, answer.stderr) == (0, "well.npz: 0 findings\n", "")


def test_doctor_says_what_why_and_what_mends_it() -> None:
    np.savez("plain.npz", w=np.float32([1, np.nan]))
    answer = call("doctor", "plain.npz")
    assert answer.exit_code == 1
    assert answer.stdout == lines(
        "plain.npz: 2 findings",
        "",
        "raw or average: unknown",
        "  evidence: a set of weights without a word on whether it is an average",
        "  mend:     ask the program that wrote it; polyak takes the weights for raw",
        "",
        "NaN or infinity in 1 weight",
        "  evidence: w (1 of 2)",
        "  mend:     go back to an earlier file, or leave them out: "
        "polyak convert plain.npz OUT.safetensors --exclude w",
    )


def test_doctor_in_json_and_of_no_file() -> None:
    found = json.loads(call("doctor", "both.safetensors", "--json").stdout)
    assert [f["what"] for f in found["findings"]] == ["several sets of weights", "average is stored in low precision"]
    assert call("doctor", "no.npz").exit_code == 2


# --- help ------------------------------------------------------------------------------------------------------------


def test_the_reference_is_that_of_the_help() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == reference(), "make it anew: python -m polyak.cli.reference > docs/cli.md"
    assert all(f"## polyak {verb}\n" in page for verb in COMMANDS)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([verb, "--help"] for verb in COMMANDS)])
def test_help_loads_no_numpy(arguments: list[str]) -> None:
    script = f"""
import sys
from polyak.cli import main
try:
    main({arguments})
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", [m for m in ("numpy", "h5py", "rich", "msgspec", "ml_dtypes") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "loaded: []", done.stderr


def test_the_public_face_is_whole_though_it_is_lazy() -> None:
    script = """
import polyak.transfer.plan, polyak.snapshot
import sys, types, polyak
assert all(getattr(polyak, name) is not None for name in polyak.__all__)
assert isinstance(polyak.transfer, types.FunctionType) and isinstance(polyak.snapshot, types.FunctionType)
assert set(polyak.__all__) <= set(dir(polyak))
try:
    polyak.nothing
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "module 'polyak' has no attribute 'nothing'\n", done.stderr


def test_a_file_whose_name_is_no_text_is_verified_as_data() -> None:
    path = Path(os.fsdecode(b"a\xff.safetensors"))
    try:
        Path("ema.safetensors").rename(path)
    except OSError:
        pytest.skip("the file system takes only names that are text")
    for verb in ("verify", "doctor", "inspect"):
        answer = call(verb, "--json", str(path))
        assert answer.exit_code in (0, 1), answer.stderr
        json.loads(answer.stdout)


def test_a_dry_run_says_names_that_are_no_text_as_data() -> None:
    target = os.fsdecode(b"b\xff.safetensors")
    for verb in ("convert", "transfer"):
        answer = call(verb, "ema.safetensors", target, "--dry-run", "--json")
        assert answer.exit_code == 0, answer.stderr
        assert json.loads(answer.stdout)["target"] == "b\\udcff.safetensors"


def in_a_shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    started = {**os.environ, "POLYAK": f"{sys.executable} -m polyak", **environment}
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=started, check=False)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such shell")
def test_a_reader_that_leaves_early_is_no_difference() -> None:
    done = in_a_shell("set -o pipefail; $POLYAK inspect a.safetensors | true")
    assert (done.returncode, done.stderr) in ((141, ""), (0, ""))  # 0 where the pipe has taken all before it broke


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such shell")
def test_a_name_that_the_terminal_cannot_show_is_escaped() -> None:
    polyak.save(Snapshot.from_arrays({"π": np.ones(1)}), "p.safetensors")
    done = in_a_shell("$POLYAK inspect p.safetensors", PYTHONIOENCODING="cp1252")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u03c0" in done.stdout


def test_what_polyak_did_not_expect_ends_with_status_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, output.reporting():
        raise ZeroDivisionError("by zero")
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "error: ZeroDivisionError: by zero\nhint: polyak did not expect this: please report it" in said


def test_an_option_without_a_value_is_not_left_out() -> None:
    assert call("convert", "a.safetensors", "x.npz", "--cast", "").exit_code == 2


# --- what is not taken -----------------------------------------------------------------------------------------------


def test_an_array_does_not_take_the_place_of_the_file_that_it_is_from() -> None:
    before = Path("a.safetensors").read_bytes()
    answer = call("extract", "a.safetensors", "head/kernel", "-o", "./a.safetensors", "--force")
    assert (answer.exit_code, answer.stderr) == (
        2,
        "error: file './a.safetensors': it is one of the sources\nhint: give the result another name\n",
    )
    assert Path("a.safetensors").read_bytes() == before


def test_what_a_file_holds_beside_its_weights_is_said() -> None:
    import torch

    held = {"model": {"w": torch.ones(2)}, "scores": np.ones(3), "epoch": 3, "run": "a", "seed": b"x", "at": {1, 2}}
    torch.save(held, "run.pt")
    said = (
        "not taken from file 'run.pt': scores (a NumPy array), seed (bytes), at (an object: __builtin__.set), "
        "epoch (a number), run (a text)\n"
    )
    wanted = {
        "scores": "a NumPy array",
        "seed": "bytes",
        "at": "an object: __builtin__.set",
        "epoch": "a number",
        "run": "a text",
    }
    for verb in (["inspect", "run.pt"], ["convert", "run.pt", "a.npz", "--dry-run"], ["convert", "run.pt", "a.npz"]):
        answer = call(*verb)
        assert (answer.exit_code, answer.stderr) == (0, said)
        answer = call(*verb, "--json", *(["--force"] if verb[-1] == "a.npz" else []))
        assert (answer.exit_code, answer.stderr, json.loads(answer.stdout)["unread"]) == (0, said, wanted)
    for verb, status in ((["verify"], 0), (["doctor"], 1), (["doctor", "--json"], 1)):
        assert (call(*verb, "run.pt").exit_code, call(*verb, "run.pt").stderr) == (status, said)
    assert call("extract", "run.pt", "w", "-o", "w.npy").stderr == said
    assert "unread" not in json.loads(call("inspect", "a.npz", "--json").stdout)


def test_what_the_members_of_a_mean_hold_beside_their_weights_is_said() -> None:
    for name, beside in (("one", {"words": ["x"]}), ("two", {"dates": ["y"]})):
        np.savez(f"{name}.npz", w=np.ones(2), **{key: np.array(value) for key, value in beside.items()})
    answer = call("average", "one.npz", "two.npz", "-o", "mean.safetensors", "--json")
    assert (answer.exit_code, answer.stderr.splitlines()) == (
        0,
        [
            "not taken from file 'one.npz': words (an array of <U1)",
            "not taken from file 'two.npz': dates (an array of <U1)",
        ],
    )
    assert json.loads(answer.stdout)["unread"] == {"words": "an array of <U1", "dates": "an array of <U1"}
    assert polyak.open("mean.safetensors").manifest.unread == {}


def test_of_many_that_are_not_taken_the_first_are_said() -> None:
    np.savez("m.npz", w=np.ones(2), **{f"t{i}": np.array(["x"]) for i in range(12)})
    answer = call("inspect", "m.npz", "--json")
    assert answer.stderr.endswith("t7 (an array of <U1) and 4 more; polyak inspect --json names all\n")
    assert len(json.loads(answer.stdout)["unread"]) == 12


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("a.safetensors", "b.safetensors", "file 'b.safetensors': it exists already"),
        ("a.safetensors", "a.safetensors", "file 'a.safetensors': it is one of the sources"),
        ("a.safetensors", "no/x.npz", "its directory does not exist"),
        ("a.safetensors", "", "file '': expected the name of a file to write, received an empty one"),
        ("a.safetensors", "x.weights.h5", "expected a place in Keras' files, received none"),
        ("both.safetensors", "x.weights.h5", "expected weights of one role, received raw, average"),
        ("odd.npz", "x.safetensors", "weight 'c': expected a dtype that safetensors holds, received complex128"),
        ("odd.npz", "x.safetensors.index.json", "weight 'c': expected a dtype that safetensors holds"),
        ("odd.npz", "x.orbax", "weight 'e': expected elements, received (0,); Orbax stores no empty arrays"),
        ("lines.safetensors", "x.npz", "expected a name that a zip can hold"),
        ("wide.npz", "x.pt", "expected a dtype that PyTorch has, received float128"),
    ],
)
def test_a_dry_run_refuses_what_the_conversion_refuses(source: str, target: str, said: str) -> None:
    np.savez("odd.npz", c=np.ones(1, np.complex128), e=np.ones(0, np.float32))
    np.savez("wide.npz", w=np.ones(1, np.longdouble))
    polyak.save(Snapshot.from_arrays({"two\nlines": np.ones(1, np.float32)}), "lines.safetensors")
    before = sorted(Path().rglob("*"))
    for more in (["--dry-run"], ["--dry-run", "--json"], []):
        answer = call("convert", source, target, *more)
        assert (answer.exit_code, answer.stdout) == (2, "")
        assert said in answer.stderr
    assert sorted(Path().rglob("*")) == before


def test_a_dry_run_says_that_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyak.files.place._free", lambda directory: 10)
    for end in FORMATS.values():
        answer = call("convert", "a.safetensors", f"x{end}", "--dry-run")
        assert answer.exit_code == 2
        assert end == ".weights.h5" or "10 bytes are free; it needs " in answer.stderr


def test_a_dry_run_looks_at_a_file_that_may_be_written_over() -> None:
    before = Path("b.safetensors").read_bytes()
    answer = call("convert", "a.safetensors", "b.safetensors", "--force", "--dry-run")
    assert (answer.exit_code, answer.stdout.splitlines()[0]) == (
        0,
        "file 'a.safetensors' -> file 'b.safetensors' (safetensors); nothing is written",
    )
    assert Path("b.safetensors").read_bytes() == before


def test_a_conversion_never_takes_the_place_of_its_source() -> None:
    before = Path("a.safetensors").read_bytes()
    answer = call("convert", "a.safetensors", "./a.safetensors", "--force", "--cast", "float16")
    assert answer.stderr == lines(
        "error: file './a.safetensors': it is one of the sources", "hint: give the result another name"
    )
    assert Path("a.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", ""),
        ("convert", "", "x.npz"),
        ("diff", "a.safetensors", ""),
        ("average", "a.safetensors", "", "-o", "x.npz"),
        ("transfer", "a.safetensors", "x.npz", "--like", ""),
    ],
)
def test_an_empty_name_is_not_the_current_directory(arguments: tuple[str, ...]) -> None:
    answer = call(*arguments)
    assert (answer.exit_code, answer.stderr) == (
        2,
        "error: file '': expected the name of a file to read, received an empty one\n",
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("transfer", "a.safetensors", ""),
        ("average", "a.safetensors", "-o", ""),
        ("extract", "a.safetensors", "steps", "-o", "", "--force"),
        ("plan", "a.safetensors", "b.safetensors", "-o", ""),
        ("synthesize", "ema.safetensors", "--rule", "ema:0.9", "-o", ""),
        ("profile", "ema:0.9", "--svg", ""),
    ],
)
def test_an_empty_name_is_no_target(arguments: tuple[str, ...]) -> None:
    answer = call(*arguments)
    assert (answer.exit_code, answer.stderr) == (
        2,
        "error: file '': expected the name of a file to write, received an empty one\n",
    )


def test_an_expression_that_is_given_twice_is_not_left_out() -> None:
    answer = call("convert", "a.safetensors", "x.npz", "--rename", "^h=a", "--rename", "e=x", "--rename", "^h=b")
    assert answer.exit_code == 2
    assert "Invalid value for --rename: expected each REGEX once, received '^h' twice" in answer.stderr
    assert not Path("x.npz").exists()


@pytest.fixture
def half() -> str:
    """A file with a name that is none in Unicode: JSON can write it, and other tools do."""
    described = {"dtype": "F32", "shape": [1]}
    header = {"\ud800": described | {"data_offsets": [0, 4]}, "w": described | {"data_offsets": [4, 8]}}
    text = json.dumps(header).encode()
    Path("half.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    return "half.safetensors"


@pytest.mark.parametrize(
    ("verb", "more", "status"),
    [
        ("inspect", (), 0),
        ("diff", ("a.safetensors",), 1),
        ("extract", ("\ud800", "-o", "x.npy"), 0),
        ("convert", ("x.npz", "--include", "w"), 0),
        ("convert", ("x.npz", "--rename", "\ud800=v", "--dry-run"), 0),
        ("transfer", ("x.npz", "--rename", "\ud800=v"), 0),
    ],
)
def test_half_a_character_in_a_name_is_told_as_data(half: str, verb: str, more: tuple[str, ...], status: int) -> None:
    """What was written is not called a failure because of what is told of it."""
    answer = call(verb, half, *more, "--json")
    assert answer.exit_code == status, answer.stderr
    assert repr(r"\ud800") in repr(json.loads(answer.stdout))


def test_a_plan_cannot_name_half_a_character(half: str) -> None:
    assert call("plan", half, half).stderr == lines(
        r"error: weight '\ud800': expected a name in Unicode, received half of a character", "hint: rename it"
    )


def test_links_that_lead_nowhere_are_said_to_be_some() -> None:
    Path("loop.safetensors").symlink_to("loop.safetensors")
    Path("nowhere.npz").symlink_to("nothing.npz")
    for name in ("loop.safetensors", "nowhere.npz"):
        answer = call("inspect", name)
        said = f"error: file {name!r}: there is nothing at this path but a link that leads nowhere\n"
        assert (answer.exit_code, answer.stderr.startswith(said), name in answer.stderr[len(said) :]) == (
            2,
            True,
            False,
        )
    for more in ((), ("--force",), ("--dry-run",)):
        answer = call("convert", "a.safetensors", "loop.safetensors", *more)
        assert (answer.exit_code, "received links that lead in a circle" in answer.stderr) == (2, True)
        assert len(answer.stderr.splitlines()) == 1


def test_a_link_in_a_circle_beside_a_checkpoint_hides_nothing() -> None:
    import h5py

    Path("folder").mkdir()
    with h5py.File("folder/x.h5", "w") as file:
        file["w"] = np.ones(1)
    Path("folder/loop").symlink_to("loop")
    said = call("inspect", "folder").stderr
    assert "expected weights, received a directory that does not say which of its files is meant: x.h5" in said


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize(
    ("verb", "status"),
    [
        ("diff a.safetensors a.safetensors", 0),
        ("diff a.safetensors b.safetensors", 1),
        ("diff a.safetensors no.safetensors", 2),
        ("verify a.safetensors", 0),
        ("convert a.safetensors b.safetensors", 2),
        ("profile mean >&-", 2),
    ],
)
def test_the_status_is_the_same_where_nobody_can_hear(verb: str, status: int, closed: str) -> None:
    """Status 1 means different; it must not also mean that a message could not be written."""
    command = f"{sys.executable} -m polyak {verb} {closed}"
    assert subprocess.run(command, shell=True, check=False, stdout=subprocess.DEVNULL).returncode == status


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    "verb",
    [
        "extract a.safetensors steps",
        "plan a.safetensors b.safetensors",
        "profile mean",
        "convert a.safetensors d.safetensors --dry-run",
    ],
)
def test_an_answer_that_goes_nowhere_is_not_done(verb: str) -> None:
    command = f"{sys.executable} -m polyak {verb} >&-"
    done = subprocess.run(command, shell=True, check=False, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "error: standard output: expected a place for the answer, received none: it is closed\n",
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    ("nowhere", "said"), [(">&-", ""), (">/dev/full", "warning: standard output: No space left on device\n")]
)
@pytest.mark.parametrize(
    ("verb", "status"),
    [
        ("convert a.safetensors w.npz", 0),
        ("average a.safetensors a.safetensors -o w.npz", 0),
        ("transfer a.safetensors w.npz --json", 0),
        ("extract a.safetensors steps -o w.npy --json", 0),
        ("plan a.safetensors a.safetensors -o w.json", 0),
        ("verify a.safetensors", 0),
        ("diff a.safetensors a.safetensors", 0),
        ("diff a.safetensors b.safetensors", 1),
    ],
)
def test_what_is_done_is_done_where_its_receipt_goes_nowhere(verb: str, status: int, nowhere: str, said: str) -> None:
    command = f"{sys.executable} -m polyak {verb} {nowhere}"
    done = subprocess.run(command, shell=True, check=False, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (status, said)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
@pytest.mark.parametrize(
    "verb", ["inspect a.safetensors --json", "extract a.safetensors steps", "profile ema:0.9", "--help"]
)
def test_an_answer_for_which_there_is_no_room_says_where(verb: str) -> None:
    command = f"{sys.executable} -m polyak {verb} >/dev/full"
    done = subprocess.run(command, shell=True, check=False, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "error: standard output: No space left on device\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_a_closed_standard_input_holds_no_plan() -> None:
    command = f"{sys.executable} -m polyak transfer a.safetensors x.npz --plan - <&-"
    done = subprocess.run(command, shell=True, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "error: standard input: expected a plan, received nothing: it is closed\n",
    )


def test_a_plan_of_any_length_is_not_taken_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyak.cli.reading._LARGEST", 1000)
    asked = ("transfer", "a.safetensors", "x.npz", "--plan", "-")
    answer = CliRunner().invoke(main, asked, input=b" " * 1001)
    assert answer.stderr == "error: standard input: expected at most 1,000 bytes, received more\n"
    assert not Path("x.npz").exists()


def test_a_synthesized_average_is_written_or_only_told_and_never_over_another_file() -> None:
    asked = ("synthesize", "ema.safetensors", "--rule", "ema:0.9")
    for also in ((), ("-o", "new.npz", "--dry-run")):
        answer = call(*asked, *also)
        assert (answer.exit_code, "expected either -o OUT or --dry-run" in answer.stderr) == (2, True)
    assert not Path("new.npz").exists()
    before = Path("a.safetensors").read_bytes()
    for out in ("a.safetensors", "ema.safetensors"):
        answer = call(*asked, "-o", out, *(("--force",) if out.startswith("ema") else ()))
        assert (answer.exit_code, out in answer.stderr) == (2, True)
    assert Path("a.safetensors").read_bytes() == before
    assert call(*asked, "-o", "a.safetensors", "--force").exit_code == 0
    assert polyak.open("a.safetensors").roles == ("average",)


def test_a_name_cannot_paint_the_terminal_or_begin_a_line() -> None:
    names = ["kernel", "kernel\x1b[31m", "two\nlines", "\r", "\x9b2J"]
    polyak.save(Snapshot.from_arrays({name: np.ones(1, np.float32) for name in names}), "odd.safetensors")
    shown = [line.split("  ")[0] for line in call("inspect", "odd.safetensors").stdout.splitlines()[7:]]
    assert shown == ["kernel", r"kernel\x1b[31m", r"two\nlines", r"\r", r"\x9b2J"]
    np.savez("odd.npz", **{"w": np.ones(1), "\x1b[2Jt": np.array(["x"])})
    assert call("inspect", "odd.npz").stderr == "not taken from file 'odd.npz': \\x1b[2Jt (an array of <U1)\n"
    told = json.loads(call("inspect", "odd.safetensors", "--json").stdout)
    assert [w["name"] for w in told["weights"]] == names


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal")
def test_a_name_is_no_markup_for_the_bar() -> None:
    polyak.save(Snapshot.from_arrays({"block[/0]\x1b[2J": np.ones(1, np.float32)}), "odd.safetensors")
    terminal, end = os.openpty()
    try:
        asked = [sys.executable, "-m", "polyak", "convert", "odd.safetensors", "x.safetensors"]
        done = subprocess.run(asked, check=False, stderr=end, stdout=subprocess.PIPE)
        os.close(end)
        seen = os.read(terminal, 1 << 16)
    finally:
        os.close(terminal)
    assert (done.returncode, b"1 weight (4 bytes) moved" in done.stdout) == (0, True)
    assert b"\x1b[2J" not in seen


def test_doctor_names_the_file_so_that_a_shell_takes_it() -> None:
    for name, quoted in (("my model's.npz", """'my model'"'"'s.npz'"""), ("-x.npz", "./-x.npz")):
        np.savez(name, w=np.float32([np.nan]))
        found = json.loads(call("doctor", "--json", "--", name).stdout)
        commands = [f["mend"] for f in found["findings"] if "polyak convert" in f["mend"]]
        assert commands
        assert all(f"polyak convert {quoted} OUT" in command for command in commands)
        assert found["file"] == name


def test_what_holds_checkpoints_without_being_one_says_what_to_open() -> None:
    Path("run").mkdir()
    for name in ("average_weights-3.index", "average_weights-7.index"):
        Path("run", name).write_bytes(b"")
    assert call("inspect", "run").stderr == lines(
        "error: file 'run': expected weights, received a directory that does not say which checkpoint is meant",
        "hint: name one of the checkpoints in it, such as 'run/average_weights-7'",
    )
    Path("pytorch_model.bin.index.json").write_text('{"weight_map": {"w": "pytorch_model-00001-of-00001.bin"}}')
    assert call("inspect", "pytorch_model.bin.index.json").stderr == lines(
        "error: file 'pytorch_model.bin.index.json': expected weights, received an index of PyTorch's shards",
        "hint: open the shards one by one, or save the model anew as safetensors",
    )
