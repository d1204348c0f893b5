"""The example programs show what they say, quickly."""

from __future__ import annotations

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
