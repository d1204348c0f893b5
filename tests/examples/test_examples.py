"""The example programs show what they say, quickly."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def output(name: str, *arguments: str) -> str:
    """What a program prints in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def figure(text: str, name: str) -> float:
    found = re.search(rf"^{name}:? +(-?[\d.]+)", text, re.MULTILINE)
    assert found, text
    return float(found[1])


def test_every_program_is_run_here() -> None:
    here = Path(__file__).read_text()
    assert [p.name for p in EXAMPLES.glob("*.py") if f'"{p.name}"' not in here] == []


def test_a_mean_teacher_helps_its_student() -> None:
    said = output("mean_teacher.py")
    alone, taught, teacher = (
        figure(said, name) for name in ("student, labels alone", "student with a teacher", "teacher")
    )
    assert min(taught, teacher) > alone + 0.02
    assert alone > 0.6


def test_a_q_network_with_a_target_reaches_the_optimal_return() -> None:
    assert figure(output("dqn_target.py"), "return of the greedy policy") == -13.0


def test_a_momentum_encoder_learns_features_without_labels() -> None:
    said = output("momentum_encoder.py")
    untrained, online, momentum = (figure(said, name) for name in ("untrained", "online", "momentum"))
    assert min(online, momentum) > untrained + 0.02


# --- the study: a small run, and the figures that the page shows ---

KEPT = EXAMPLES.parent / "docs" / "images" / "does-it-help"


def test_the_study_compares_averages_with_raw_weights_of_the_same_run(tmp_path: Path) -> None:
    asked = ["--tasks", "digits", "--seeds", "2", "--steps", "100", "--folder", str(tmp_path)]
    said = output("does_it_help.py", *asked)
    found = json.loads((tmp_path / "figures.json").read_text())["digits"]
    assert (tmp_path / "tables.md").read_text(encoding="utf-8") == said
    assert {len(scores) for rows in found.values() for scores in rows.values()} == {2}
    for rows in found.values():
        # So far all windows are a tenth of the run, whatever the decay; and 0.999**99 of a copied start is left.
        assert rows["ema:0.99"] == rows["ema:0.999"]
        assert max(rows["ema:0.999, start=copy"]) < 60 < min(rows["raw"] + rows["ema:0.999"])
        assert rows["last 5 of 20 checkpoints"] != rows["raw"]
    assert found["constant"]["raw"] != found["falling"]["raw"]
    assert "ema:0.999, start=copy</text>" in (tmp_path / "picture.svg").read_text(encoding="utf-8")


def test_the_page_of_the_study_shows_the_figures_that_are_kept(tmp_path: Path) -> None:
    output("does_it_help.py", "--from", str(KEPT / "figures.json"), "--folder", str(tmp_path))
    tables = (tmp_path / "tables.md").read_text(encoding="utf-8")
    page = (EXAMPLES.parent / "docs" / "does-it-help.md").read_text(encoding="utf-8")
    assert page.split("<!-- made by examples/does_it_help.py -->\n")[1].split("<!-- end -->")[0] == tables
    assert tables == (KEPT / "tables.md").read_text(encoding="utf-8")
    made, kept = (re.findall(r">([^<>]+)</text>", (f / "picture.svg").read_text("utf-8")) for f in (tmp_path, KEPT))
    assert made == kept
    scores = [
        s
        for task in json.loads((KEPT / "figures.json").read_text()).values()
        for r in task.values()
        for s in r.values()
    ]
    assert (len(scores), {len(s) for s in scores}) == (3 * 2 * 10, {10})
