"""The demo as a new user runs it, once; and what it says when one bit does not arrive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import polyak
from polyak import demo
from polyak.cli import demo as cli_demo
from polyak.cli import main
from polyak.demo import ROUTES, Arrival, Context, Held, Route, place, routes, training
from polyak.demo.model import fresh
from polyak.errors import FileError, ModelError, TransferError


@dataclass(frozen=True)
class Done:
    process: int
    status: int
    stdout: str
    stderr: str
    directory: Path

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.directory / "report.json").read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """``polyak demo`` with nothing set, in an empty directory."""
    place_of_user = tmp_path_factory.mktemp("user")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TF_CPP", "CUDA_VIS", "KERAS_"))}
    command = [sys.executable, "-c", "from polyak.cli import main; main()", "demo"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=place_of_user, env=environment, **pipes) as process:
        stdout, stderr = process.communicate(timeout=300)
    return Done(process.pid, process.returncode, stdout, stderr, place_of_user / "polyak-demo")


def test_the_demo_succeeds_and_is_silent_beside_its_answer(done: Done) -> None:
    assert (done.status, done.stderr) == (0, "")
    assert [path.name for path in done.directory.parent.iterdir()] == ["polyak-demo"]


def test_every_route_brings_every_bit(done: Done) -> None:
    rows = done.report["rows"]
    assert [row["route"] for row in rows] == [route.name for route in ROUTES]
    assert [row["differences"] for row in rows] == [[]] * len(ROUTES)
    assert done.report["same"] is True
    assert all(row["weights"] >= 20 and row["nbytes"] > 77_000 for row in rows)


def test_accuracies_are_the_same_before_and_after(done: Done) -> None:
    before = done.report["accuracy"]
    assert before.keys() == {"raw", "fast", "slow"}
    assert min(before.values()) > 0.9
    for row in done.report["rows"]:
        assert row["accuracy"]
        assert row["accuracy"] == {role: before[role] for role in row["accuracy"]}


def test_the_second_process_was_another_one(done: Done) -> None:
    told = json.loads((done.directory / "second-process.json").read_text())
    assert told["process"] not in (done.process, os.getpid())
    assert told["slow"]["held"]["count"] == done.report["steps"]
    assert len(told["slow"]["held"]["values"]) == 20


def test_the_table_shows_the_report(done: Done) -> None:
    lines = done.stdout.splitlines()
    assert lines[2].split() == ["weights", "bytes", "seconds", "raw", "fast", "slow", "bits"]
    assert max(map(len, lines[2:14])) <= 80
    shown = {line.strip()[:24].strip(): line.split() for line in lines}
    for row in done.report["rows"]:
        cells = shown[row["route"]]
        assert cells[-1] == "same"
        assert f"{row['nbytes']:,}" in cells
        assert cells[-2] == f"{100 * row['accuracy']['slow']:.2f}"


def test_a_receipt_is_shown(done: Done) -> None:
    receipt = done.report["receipt"]
    assert f"digest {receipt['digest']}" in done.stdout
    assert receipt["count"] == done.report["steps"]


def test_files_are_left_that_polyak_opens(done: Done) -> None:
    assert done.stdout.endswith("files: polyak-demo/\n")
    held = polyak.open(done.directory / "slow.safetensors")
    assert held.roles == ("raw", "average")
    slow = held.select(role="average")
    for name in ("tf1/model", "saved_model"):
        other = polyak.open(done.directory / name).select(role="average")
        assert sum(slow[path].tobytes() == value.tobytes() for path, value in _unscoped(other).items()) >= 17
    assert {p.name for p in done.directory.iterdir()} > {"model.keras", "model.weights.h5", "checkpoint", "report.json"}


def _unscoped(held: polyak.Snapshot) -> dict[str, Any]:
    return {path.removeprefix(f"{routes.SCOPE}/"): value for path, value in held.items()}


# --- one bit ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "EPOCHS", 1)


def flip(held: Held, path: str) -> Held:
    """Another lowest bit in the last number."""
    changed = np.array(held.values[path])
    changed.reshape(-1).view(np.uint8)[-changed.itemsize] ^= 1
    return replace(held, values={**held.values, path: changed})


def flipped(context: Context) -> list[Arrival]:
    (arrival,) = routes.into_a_model(context)
    return [replace(arrival, got=flip(arrival.got, "blocks/1/convolution/kernel"))]


GOOD = Route("good", routes.into_averages)


@pytest.mark.usefixtures("short")
def test_one_flipped_bit_ends_with_one_and_names_path_and_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "run", partial(demo.run, routes=[GOOD, Route("bent", flipped)]))
    answer = CliRunner().invoke(main, ["demo", "--directory", str(tmp_path / "made")])
    assert answer.exit_code == 1
    (line,) = answer.stderr.splitlines()
    assert line.startswith(
        "different: bent: slow weight 'blocks/1/convolution/kernel': expected float32 (3, 3, 32, 32)"
    )
    verdicts = {words[0]: words[-1] for row in answer.stdout.splitlines() if (words := row.split())}
    assert (verdicts["good"], verdicts["bent"]) == ("same", "differ")


def lost(context: Context) -> list[Arrival]:
    (arrival,) = routes.into_a_model(context)
    return [replace(arrival, got=arrival.got.without("head/*"))]


def counted_anew(context: Context) -> list[Arrival]:
    *others, slow = routes.into_averages(context)
    return [*others, replace(slow, got=replace(slow.got, count=0))]


def other_answer(context: Context) -> list[Arrival]:
    (arrival,) = routes.into_a_model(context)
    return [replace(arrival, outputs=(np.zeros(3, np.float32), np.ones(3, np.float32)))]


def other_dtype(context: Context) -> list[Arrival]:
    (arrival,) = routes.into_a_model(context)
    values = {**arrival.got.values, "head/bias": np.asarray(arrival.got.values["head/bias"]).view(np.int32)}
    return [replace(arrival, got=Held(values))]


@pytest.mark.usefixtures("short")
def test_every_kind_of_difference_is_told(tmp_path: Path) -> None:
    carries = {"lost": lost, "count": counted_anew, "answer": other_answer, "dtype": other_dtype, "none": lambda c: []}
    report = demo.run(tmp_path / "made", 1, [Route(name, carry) for name, carry in carries.items()])
    assert not report.same
    told = "\n".join(report.differences)
    assert told.count("\n") == 5
    assert "lost: slow weight 'head/kernel': expected float32 (512, 10)" in told
    assert "lost: slow weight 'head/bias': expected float32 (10,)" in told
    assert ", received nothing" in told
    assert "count: slow count: expected 56, received 0" in told
    assert "answer: slow outputs: expected float32 (3,)" in told
    assert "dtype: slow weight 'head/bias': expected float32 (10,)" in told
    assert told.endswith("none: nothing arrived")


@pytest.mark.usefixtures("short")
def test_a_fresh_instance_is_another_one_until_it_has_received(tmp_path: Path) -> None:
    report = demo.run(tmp_path / "made", 0, [Route("idle", lambda c: c.whole_of(fresh()))])
    told = "\n".join(report.differences)
    for role in ("raw", "fast", "slow"):
        for path in ("stem/convolution/kernel", "blocks/1/normalization/moving_mean", "head/bias"):
            assert f"idle: {role} weight {path!r}: expected float32" in told
    assert "idle: fast count: expected 56, received 0" in told


@pytest.mark.usefixtures("short")
def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    digests = [demo.run(tmp_path / "made", seed, [Route("r", routes.into_a_model)]) for seed in (3, 3, 4)]
    first, again, other = (report.receipt.digest for report in digests if report.receipt)
    assert first == again != other


@pytest.mark.usefixtures("short")
def test_recalibrated_averages_are_shown_beside_those_with_copied_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "run", partial(demo.run, routes=[GOOD]))
    place_of_demo = tmp_path / "made"
    answer = CliRunner().invoke(main, ["demo", "--directory", str(place_of_demo), "--recalibrate"])
    assert answer.exit_code == 0, answer.output
    told = json.loads((place_of_demo / "report.json").read_text())
    found = told["recalibrated"]
    assert found.keys() == {"fast", "slow"}
    assert found["slow"] != told["accuracy"]["slow"]
    (line,) = [line for line in answer.stdout.splitlines() if "statistics recomputed" in line]
    assert line.split()[-3:] == ["-", *(f"{100 * found[role]:.2f}" for role in ("fast", "slow"))]
    plain = demo.run(place_of_demo, 0)
    assert (plain.recalibrated, plain.accuracy) == ({}, told["accuracy"])


def test_a_second_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(TransferError, match="the second process ended with 1") as caught:
        routes.run_second(str(tmp_path / "nothing"), tmp_path / "answer.json")
    assert "polyak.demo.second" in str(caught.value.hint)


def test_what_is_not_installed_is_named() -> None:
    script = "import sys; sys.modules['sklearn'] = None; from polyak.cli import main; main(['demo'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the demo needs sklearn")
    assert done.stderr.endswith("hint: pip install 'polyak[demo]'\n")


# --- the directory ---------------------------------------------------------------------------------------------------


def test_only_its_own_directory_is_made_anew(tmp_path: Path) -> None:
    mine = tmp_path / "deep" / "mine"
    (place.make(mine) / "old").write_text("old")
    assert [path.name for path in place.make(mine).iterdir()] == [place.MARKER]


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    assert (place.make(tmp_path) / place.MARKER).is_file()


@pytest.mark.parametrize("kind", ["directory", "file", "link"])
def test_what_it_did_not_make_stays(tmp_path: Path, kind: str) -> None:
    theirs = tmp_path / "theirs"
    if kind == "directory":
        theirs.mkdir()
        (theirs / "thesis.tex").write_text("years")
    elif kind == "file":
        theirs.write_text("years")
    else:
        theirs.symlink_to(place.make(tmp_path / "mine"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileError, match="expected nothing or the files of an earlier demo"):
        place.make(theirs)
    assert sorted(tmp_path.rglob("*")) == before
    answer = CliRunner().invoke(main, ["demo", "--directory", str(theirs)])
    assert answer.exit_code == 2
    assert answer.stderr.endswith("hint: choose another place with --directory\n")


@pytest.mark.parametrize(
    ("missing", "error"), [("polyak.demo.routes", ModuleNotFoundError), ("sklearn.datasets", ModelError)]
)
def test_what_is_not_installed_is_named_and_a_part_of_polyak_is_never_to_be_installed(
    monkeypatch: pytest.MonkeyPatch, missing: str, error: type[Exception]
) -> None:
    for name in [n for n in sys.modules if n.startswith("polyak.demo")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(polyak, "demo")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(error, match=missing):
        cli_demo._package()
