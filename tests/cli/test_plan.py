"""plan and transfer on the command line, word for word: a plan is written, edited, checked anew and carried out."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from click.testing import CliRunner, Result

import polyak
from polyak.averaging import rules
from polyak.cli import main, options, output
from polyak.manifest import State
from polyak.snapshot import Snapshot
from polyak.transfer.match import Key

OLD = State(rules.EMA(0.9).to_json(), 500)
ASKED = ("--rename", "^net/=", "--rename", "^enc/=encoder/", "--cast", "target")


def call(*arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(main, arguments, input=given)


def lines(*expected: str) -> str:
    return "\n".join(expected) + "\n"


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source, and a file of the structure that is wanted."""
    monkeypatch.chdir(tmp_path)
    ours = {"net/enc/kernel": np.float32([[1, 2]]), "net/enc/bias": np.float32([3, 4]), "net/steps": np.int64(7)}
    theirs = {"encoder/kernel": np.float16([[0, 0]]), "encoder/bias": np.float32([0, 0]), "steps": np.int64(0)}
    polyak.save(Snapshot.from_arrays(ours, "average", OLD), "a.safetensors")
    np.savez("like.npz", **theirs)


def planned() -> dict[str, Any]:
    answer = call("plan", "a.safetensors", "like.npz", *ASKED)
    assert (answer.exit_code, answer.stderr) == (0, "")
    made: dict[str, Any] = json.loads(answer.stdout)
    return made


def test_plan_answers_on_standard_output() -> None:
    made = planned()
    assert (made["role"], made["target"]) == ("average", "the structure of file 'like.npz'")
    assert made["moves"][0] == {
        "source": "net/enc/kernel",
        "target": "encoder/kernel",
        "shape": [1, 2],
        "source_dtype": "float32",
        "dtype": "float16",
        "kind": "trainable",
    }
    assert json.loads(call("plan", "a.safetensors", "like.npz", *ASKED, "-o", "-").stdout) == made


def test_plan_writes_a_file_and_shows_it() -> None:
    answer = call("plan", "a.safetensors", "like.npz", *ASKED, "-o", "plan.json")
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert answer.stdout == lines(
        "average weights: file 'a.safetensors' -> the structure of file 'like.npz'",
        "  net/enc/kernel -> encoder/kernel  (1, 2) float32 -> float16",
        "  net/enc/bias -> encoder/bias  (2,) float32",
        "  net/steps -> steps  () int64",
    )
    assert json.loads(Path("plan.json").read_text()) == planned()
    again = call("plan", "a.safetensors", "like.npz", *ASKED, "-o", "plan.json")
    assert again.stderr == lines("error: file 'plan.json': it exists already", "hint: write over it with --force")
    forced = call("plan", "a.safetensors", "like.npz", *ASKED, "-o", "plan.json", "--force", "--json")
    assert json.loads(forced.stdout) == planned()


def test_plan_says_what_does_not_fit_and_which_option_mends_it() -> None:
    answer = call("plan", "a.safetensors", "like.npz", "--rename", "^net/=")
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert answer.stderr == lines(
        "error: weight 'encoder/kernel': expected (1, 2) float16 for the structure of file 'like.npz', received "
        "nothing from file 'a.safetensors' (and 1 more); nearest: 'net/enc/kernel'",
        r"hint: pair them with --rename '^net/enc/(.*)$=encoder/\1'",
    )
    mended = call("plan", "a.safetensors", "like.npz", "--rename", r"^net/enc/(.*)$=encoder/\1", "--rename", "^net/=")
    assert "nothing" not in mended.stderr
    answer = call("plan", "a.safetensors", "like.npz", *ASKED[:-2])
    assert answer.stderr == lines(
        "error: weight 'encoder/kernel': expected float16, received float32 from file 'a.safetensors'",
        "hint: allow the narrower dtype with --cast target",
    )


def test_transfer_carries_out_a_plan() -> None:
    Path("plan.json").write_text(json.dumps(planned()))
    answer = call("transfer", "a.safetensors", "out.npz", "--plan", "plan.json")
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert answer.stdout.splitlines()[:2] == [
        "average weights after 500 updates: file 'a.safetensors' -> file 'out.npz'",
        "  3 weights (20 bytes) moved and verified, 1 cast, 3 renamed, 0 skipped as asked",
    ]
    assert np.load("out.npz")["encoder/kernel"].tolist() == [[1, 2]]


def test_transfer_reads_an_edited_plan_from_standard_input() -> None:
    made = planned()
    del made["moves"][0]
    answer = call("transfer", "a.safetensors", "o.npz", "--plan", "-", "--like", "like.npz", given=json.dumps(made))
    assert answer.exit_code == 0
    assert answer.stdout.splitlines()[1].endswith("0 cast, 2 renamed, 1 skipped as asked")
    made["moves"][0]["source"] = "net/enc/bia"
    answer = call("transfer", "a.safetensors", "p.npz", "--plan", "-", given=json.dumps(made))
    assert answer.stderr == lines(
        "error: weight 'net/enc/bia': the plan names it, file 'a.safetensors' does not have it; "
        "nearest: 'net/enc/bias'",
        "hint: correct the name in the plan, or make the plan anew",
    )
    assert call("transfer", "a.safetensors", "p.npz", "--plan", "-", given="{").exit_code == 2
    assert not Path("p.npz").exists()


def test_transfer_like_another_file_does_both_at_once() -> None:
    receipt = json.loads(call("transfer", "a.safetensors", "out.npz", "--like", "like.npz", *ASKED, "--json").stdout)
    assert [m["target"] for m in receipt["moved"]] == ["encoder/kernel", "encoder/bias", "steps"]
    np.savez("other.npz", a=np.zeros(3, np.float32))
    answer = call("transfer", "a.safetensors", "x.npz", "--like", "other.npz", "--rename", "net/enc/bias=a")
    assert answer.stderr == lines(
        "error: weight 'net/enc/kernel': expected no such weight for the structure of file 'other.npz', received "
        "(1, 2) float32 from file 'a.safetensors' (and 1 more)",
        "hint: leave it out with --exclude net/enc/kernel",
    )


def test_transfer_says_what_it_would_do() -> None:
    dry = ("transfer", "a.safetensors", "out.npz", "--like", "like.npz", *ASKED, "--dry-run")
    answer = call(*dry)
    assert answer.stdout == lines(
        "file 'a.safetensors' -> file 'out.npz' (npz); nothing is written",
        "",
        "weight          becomes         dtype              bytes",
        "net/enc/kernel  encoder/kernel  float32 | float16      4",
        "net/enc/bias    encoder/bias    float32                8",
        "net/steps       steps           int64                  8",
    )
    assert json.loads(call(*dry, "--json").stdout)["format"] == "npz"
    plain = call("transfer", "a.safetensors", "b.pt", "--dry-run", "--exclude", "*steps")
    assert plain.stdout.splitlines()[0].endswith("file 'b.pt' (torch); nothing is written")
    assert plain.stdout.splitlines()[-1] == "skipped as asked: net/steps"
    assert sorted(p.name for p in Path().iterdir()) == ["a.safetensors", "like.npz"]


def test_transfer_chooses_and_renames() -> None:
    answer = call("transfer", "a.safetensors", "out.safetensors", "--include", "*bias", "--rename", "^net/enc/=")
    assert answer.stdout.splitlines()[1] == (
        "  1 weight (8 bytes) moved and verified, 0 cast, 1 renamed, 2 skipped as asked"
    )
    assert list(polyak.open("out.safetensors")) == ["bias"]
    answer = call("transfer", "a.safetensors", "x.npz", "--rename", "(=")
    assert (answer.exit_code, "expected a regular expression, received '('" in answer.stderr) == (2, True)
    answer = call("transfer", "a.safetensors", "x.npz", "--by", "position")
    assert answer.exit_code == 2
    assert answer.stderr.endswith("Error: --by needs --like FILE: without it weights are taken as they are\n")
    answer = call("transfer", "a.safetensors", "x.npz", "--plan", "-", "--cast", "target")
    assert answer.exit_code == 2
    assert answer.stderr.endswith("--cast does not go with --plan: edit the plan, or make it anew with it\n")


def test_a_source_is_never_its_own_target() -> None:
    answer = call("transfer", "a.safetensors", "./a.safetensors", "--force", "--include", "*bias")
    assert answer.stderr == lines(
        "error: file './a.safetensors': it is one of the sources", "hint: give the result another name"
    )


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("transfer", "a.safetensors", "out.npz"), 3),
        (("convert", "a.safetensors", "out.npz"), 3),
        (("doctor", "a.safetensors"), 3),
        (("verify", "a.safetensors"), 3),
        (("diff", "a.safetensors", "a.safetensors"), 3),
    ],
)
def test_long_work_says_how_far_it_is(arguments: tuple[str, ...], names: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr(output, "progress", lambda: nullcontext(lambda *what: told.append(what)))
    assert call(*arguments).exit_code == 0
    assert {(done, total) for _, done, total in told} == {(i, 3) for i in range(names)}


def test_the_evidence_to_choose_from_is_that_of_transfer() -> None:
    assert get_args(Key) == options.EVIDENCE


@pytest.mark.parametrize("out", ["a.safetensors", "like.npz"])
def test_a_plan_does_not_take_the_place_of_what_it_is_about(out: str) -> None:
    before = Path(out).read_bytes()
    answer = call("plan", "a.safetensors", "like.npz", *ASKED, "-o", out, "--force")
    assert answer.stderr == lines(
        f"error: file {out!r}: it is one of the sources", "hint: give the result another name"
    )
    assert Path(out).read_bytes() == before


def test_a_dry_run_refuses_what_the_transfer_refuses() -> None:
    for target, said in (
        ("like.npz", "it exists already"),
        ("no/x.npz", "its directory does not exist"),
        ("x.weights.h5", "expected a place in Keras' files, received none"),
    ):
        for more in (["--dry-run"], []):
            answer = call("transfer", "a.safetensors", target, *more)
            assert (answer.exit_code, answer.stdout) == (2, "")
            assert said in answer.stderr


def test_a_dry_run_names_what_is_not_taken_as_the_transfer_does() -> None:
    np.savez("b.npz", **{"encoder/kernel": np.ones((1, 2), np.float16), "words": np.array(["x"])})
    np.savez("small.npz", **{"encoder/kernel": np.ones((1, 2), np.float16)})
    asked = ("transfer", "b.npz", "out.npz", "--like", "small.npz", "--json")
    for more in (["--dry-run"], []):
        assert json.loads(call(*asked, *more).stdout)["unread"] == {"words": "an array of <U1"}
