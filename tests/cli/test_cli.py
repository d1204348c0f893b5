"""The command line as people meet it: its answers word for word, its errors, its exit statuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import polyak
from polyak.averaging import rules
from polyak.cli import COMMANDS, main, output
from polyak.errors import ImmatureWarning, PolyakError
from polyak.manifest import State
from polyak.report.tables import ABSENT, table

HEAVY = ("tensorflow", "keras", "torch", "jax", "sklearn", "rich", "h5py", "polyak.demo")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def lines(*expected: str) -> str:
    return "\n".join(expected) + "\n"


@pytest.fixture
def arrays() -> dict[str, np.ndarray[Any, Any]]:
    return {"head/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "steps": np.array(7, np.int64)}


@pytest.fixture
def average(tmp_path: Path, arrays: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    state = State(rules.EMA(0.99).to_json(), 1200, 3)
    polyak.save(polyak.Snapshot.from_arrays(arrays, "average", state), "a.safetensors")
    return "a.safetensors"


@pytest.fixture
def both(average: str, arrays: dict[str, Any]) -> str:
    """A file of two sets."""
    items = polyak.open(average).items_by_path.values()
    raw = polyak.Snapshot.from_arrays(arrays).items_by_path.values()
    polyak.save(polyak.Snapshot([*raw, *items], {"average": polyak.open(average).state}), "both.safetensors")
    return "both.safetensors"


# --- what it loads ---------------------------------------------------------------------------------------------------


def run_python(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["demo", "--help"], ["profile", "mean"]])
def test_loads_nothing_heavy(arguments: list[str]) -> None:
    script = f"""
import sys
from polyak.cli import main
try:
    main({arguments})
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", [m for m in {HEAVY} if m in sys.modules])
"""
    assert run_python(script).splitlines()[-1] == "loaded: []"


def test_a_verb_is_loaded_when_it_is_asked_for() -> None:
    script = """
import sys
from polyak.cli import COMMANDS, main
main(["profile", "mean"], standalone_mode=False)
print([c for c in COMMANDS if f"polyak.cli.{c}" in sys.modules])
"""
    assert run_python(script).splitlines()[-1] == "['profile']"


def test_help_names_every_verb() -> None:
    answer = call("--help")
    assert answer.exit_code == 0
    assert [line.split()[0] for line in answer.stdout.split("Commands:\n")[1].splitlines()] == list(COMMANDS)


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_says_what_it_does_and_answers_in_json(verb: str) -> None:
    answer = call(verb, "--help")
    assert answer.exit_code == 0
    assert "--json" in answer.stdout
    assert main.get_command(None, verb).short_help.endswith(".")


def test_version() -> None:
    assert call("--version").stdout == f"polyak {polyak.__version__}\n"


# --- errors ----------------------------------------------------------------------------------------------------------


def test_an_error_names_the_file_and_the_next_step(average: str) -> None:
    answer = call("inspect", "b.safetensors")
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert answer.stderr == lines(
        "error: file 'b.safetensors': there is nothing at this path", "hint: nearest: 'a.safetensors'"
    )


def test_an_error_without_a_hint_is_one_line() -> None:
    with pytest.raises(SystemExit) as end, output.reporting():
        raise PolyakError("weight 'a': no")
    assert end.value.code == 2


def test_a_hint_speaks_of_options(both: str) -> None:
    answer = call("transfer", both, "new.safetensors")
    assert answer.exit_code == 2
    assert answer.stderr.endswith("hint: say which: --weights raw or --weights average\n")
    assert not Path("new.safetensors").exists()


def test_an_unknown_verb_is_bad_input() -> None:
    answer = call("diffuse")
    assert answer.exit_code == 2
    assert "No such command 'diffuse'" in answer.stderr


def test_an_error_of_the_system_names_the_file() -> None:
    with pytest.raises(SystemExit) as end, output.reporting():
        raise PermissionError(13, "Permission denied", "secret.bin")
    assert end.value.code == 2


def test_an_interruption_is_no_difference() -> None:
    with pytest.raises(SystemExit) as end, output.reporting():
        raise KeyboardInterrupt
    assert end.value.code == 130


def test_warnings_of_polyak_are_lines_and_others_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        with output.reporting():
            warnings.warn(ImmatureWarning("too young"), stacklevel=1)
            warnings.warn("theirs", UserWarning, stacklevel=1)
    assert [str(other.message) for other in others] == ["theirs"]
    assert capsys.readouterr() == ("", "warning: too young\n")


@pytest.mark.parametrize(
    ("settings", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colour_only_where_it_is_wanted(
    settings: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert (output._mark("error:", "red") == "error:") is not coloured
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert output._mark("error:", "red") == "error:"


def test_no_bar_where_no_terminal_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress() as watch:
        watch("working", 1, 2)
    assert capsys.readouterr() == ("", "")


# --- profile ---------------------------------------------------------------------------------------------------------


def test_profile_shows_what_a_rule_remembers() -> None:
    answer = call("profile", "ema:0.5,start=initial", "mean", "--steps", "3", "--steps", "2000")
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert answer.stdout.startswith(
        lines(
            "rule                   steps  mean age  half-life  effective samples  immaturity %",
            "ema:0.5,start=initial      3    0.5714      0.875              2.333         12.50",
            "ema:0.5,start=initial  2,000         1          1                  3          0.00",
            "mean                       3         1        1.5                  3         33.33",
            "mean                   2,000     999.5      1,000              2,000          0.05",
            "",
            "share of each 60th of the run, after 2,000 updates",
            "",
            "ema:0.5,start=initial",
        )
    )


def test_profile_in_json() -> None:
    answer = call("profile", "ema:half_life=1", "--steps", "0", "--json")
    assert json.loads(answer.stdout) == [
        {
            "rule": "ema:0.5",
            "steps": 0,
            "mean_age": None,
            "half_life": None,
            "effective_samples": 0.0,
            "immaturity": 1.0,
        }
    ]


def test_profile_draws_in_plain_characters_where_there_are_no_others() -> None:
    answer = CliRunner(charset="ascii").invoke(main, ["profile", "mean", "--steps", "100"])
    assert answer.exit_code == 0
    assert answer.stdout.splitlines()[-4:] == [
        f"        |{'#' * 60}",
        f"        |{'#' * 60}",
        f"        +{'-' * 60}",
        f"         start{'100 (now)':>55}",
    ]


def test_profile_writes_pictures_and_keeps_those_that_exist(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = {kind: tmp_path / f"a.{kind}" for kind in ("png", "svg", "html")}
    options = [text for kind, path in paths.items() for text in (f"--{kind}", str(path))]
    answer = call("profile", "ema:0.99", "--steps", "500", *options, "--json")
    assert answer.exit_code == 0, answer.stderr
    assert answer.stderr == lines(*(f"{kind.upper()}: {path}" for kind, path in paths.items()))
    assert json.loads(answer.stdout)[0]["steps"] == 500
    assert all(path.stat().st_size > 5_000 for path in paths.values())
    again = call("profile", "mean", "--svg", str(paths["svg"]))
    assert (again.exit_code, "it exists already" in again.stderr) == (2, True)


def test_profile_of_no_rule() -> None:
    answer = call("profile", "mean", "emma:0.9")
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert answer.stderr.startswith("error: ")
    assert "'emma'" in answer.stderr
    assert "\nhint: " in answer.stderr


# --- inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_shows_one_set(average: str) -> None:
    answer = call("inspect", average)
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert answer.stdout == lines(
        "file 'a.safetensors'",
        "integrity: xxh3-128",
        "",
        "holds    rule      updates  skipped  weights  bytes",
        "average  ema:0.99    1,200        3        2     32",
        "",
        "weight       shape   dtype    kind       in       bytes",
        "head/kernel  2 x 3   float32  trainable  average     24",
        "steps        scalar  int64    counter    average      8",
    )


def test_inspect_shows_two_sets_in_one_table(both: str) -> None:
    assert call("inspect", both).stdout == lines(
        "file 'both.safetensors'",
        "integrity: xxh3-128",
        "",
        "holds    rule      updates  skipped  weights  bytes",
        "raw      -               -        -        2     32",
        "average  ema:0.99    1,200        3        2     32",
        "",
        "weight       shape   dtype    kind       in            bytes",
        "head/kernel  2 x 3   float32  trainable  raw, average     24",
        "steps        scalar  int64    counter    raw, average      8",
    )


def test_a_rule_of_ones_own_is_shown_where_its_class_is_not_known(average: str, arrays: dict[str, Any]) -> None:
    for count in (1, 2):
        state = State({"rule": "harmonic", "lag": 3.0}, count, 0)
        polyak.save(polyak.Snapshot.from_arrays(arrays, "average", state), f"own-{count}.safetensors")
    answer = call("inspect", "own-1.safetensors")
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert 'average  {"rule": "harmonic", "lag": 3.0}        1        0        2     32' in answer.stdout
    answer = call("diff", "own-1.safetensors", "own-2.safetensors")
    assert (answer.exit_code, answer.stderr) == (1, "")
    assert 'average: {"rule": "harmonic", "lag": 3.0} after 1 update in A' in answer.stdout


def test_inspect_in_json_gives_the_manifest(average: str) -> None:
    manifest = json.loads(call("inspect", average, "--json").stdout)
    assert manifest["roles"]["average"] == {
        "rule": {"rule": "ema", "decay": 0.99, "start": "warm"},
        "count": 1200,
        "skipped": 3,
    }
    assert [w["weight"]["path"] for w in manifest["weights"]] == ["head/kernel", "steps"]
    assert all(len(w["digest"]) == 32 for w in manifest["weights"])


# --- transfer --------------------------------------------------------------------------------------------------------


def test_transfer_moves_the_set_that_was_asked_for(both: str, arrays: dict[str, Any]) -> None:
    answer = call("transfer", both, "new.safetensors", "--weights", "average")
    assert answer.exit_code == 0, answer.stderr
    held = polyak.open("new.safetensors")
    assert held.roles == ("average",)
    assert held.state is not None
    assert held.state.count == 1200
    assert {name: value.tobytes() for name, value in held.items()} == {n: a.tobytes() for n, a in arrays.items()}
    assert answer.stdout.startswith("average weights after 1,200 updates: file 'both.safetensors' -> ")


def test_transfer_answers_with_a_receipt_in_json(average: str) -> None:
    receipt = json.loads(call("transfer", average, "new.safetensors", "--json").stdout)
    assert (receipt["role"], receipt["count"], receipt["nbytes"]) == ("average", 1200, 32)


def test_transfer_keeps_a_file_that_exists(average: str) -> None:
    target = Path("old.safetensors")
    target.write_text("precious")
    answer = call("transfer", average, str(target))
    assert (answer.exit_code, answer.stdout, target.read_text()) == (2, "", "precious")
    assert answer.stderr == lines(
        "error: file 'old.safetensors': it exists already", "hint: write over it with --force"
    )
    assert call("transfer", average, str(target), "--force").exit_code == 0
    assert polyak.open(target).roles == ("average",)


# --- verify ----------------------------------------------------------------------------------------------------------


def test_verify_reads_every_byte(average: str) -> None:
    answer = call("verify", average)
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert answer.stdout == "file 'a.safetensors': 2 weights (32 bytes) are as they were written (xxh3-128)\n"
    assert json.loads(call("verify", average, "--json").stdout) == {
        "file": average,
        "weights": 2,
        "bytes": 32,
        "integrity": "xxh3-128",
    }


def test_verify_finds_one_flipped_bit(average: str) -> None:
    content = bytearray(Path(average).read_bytes())
    content[-1] ^= 1  # of the last array, wherever the format puts it
    Path(average).write_bytes(content)
    answer = call("verify", average)
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert re.match(
        "error: file 'a.safetensors': weight '(head/kernel|steps)': expected bytes with digest", answer.stderr
    )
    assert answer.stderr.endswith("\nhint: the file is damaged; restore it from a copy\n")


def test_verify_says_when_there_is_nothing_to_compare_with(tmp_path: Path, arrays: dict[str, Any]) -> None:
    from safetensors.numpy import save_file

    save_file(arrays, tmp_path / "plain.safetensors")
    answer = call("verify", str(tmp_path / "plain.safetensors"))
    assert answer.exit_code == 0
    assert answer.stdout.endswith("can be read; the file holds no checksums to compare them with\n")


# --- tables ----------------------------------------------------------------------------------------------------------


def test_a_table_is_aligned_and_ends_no_line_with_blanks() -> None:
    assert table(["a", "long head", "n"], [["wide cell", "b", "1"], ["", ABSENT, "10"]], left=2) == (
        "a          long head   n\nwide cell  b           1\n           -          10"
    )
