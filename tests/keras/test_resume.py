"""A run that is killed at any moment and resumed ends with the bits of one that nobody disturbed."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import pytest

BACKEND = keras.backend.backend()
KILLS = int(os.environ.get("POLYAK_KILLS", "30"))
VARIANTS = ("fit-steps", "fit-epochs", "fit-several", "saved")
FORMATS = (".npz", ".pt", ".orbax", ".weights.h5", ".safetensors.index.json")


def campaign(variant: str, backend: str, count: int) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name("kills.py")), variant, "--count", str(count)]
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=3600)
    assert done.stdout, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("variant", ["saved", "managed"] if BACKEND == "tensorflow" else ["saved"])
def test_a_run_that_was_killed_ends_as_one_that_was_not(variant: str) -> None:
    found = campaign(variant, BACKEND, 2)
    assert (found["kills"], found["equal"]) == (2, found["runs"])


# One session starts all of them: `make kill`.
if BACKEND == "tensorflow":

    @pytest.mark.kill
    @pytest.mark.parametrize(
        ("variant", "backend"),
        [
            *((v, b) for v in VARIANTS for b in ("tensorflow", "jax", "torch")),
            ("managed", "tensorflow"),
            *((f"saved{end}", backend) for end, backend in zip(FORMATS, itertools.cycle(("jax", "torch")))),
        ],
    )
    def test_runs_that_were_killed_many_times_end_as_one_that_was_not(variant: str, backend: str) -> None:
        found = campaign(variant, backend, KILLS)
        assert (found["kills"], found["equal"]) == (KILLS, found["runs"])
        print(found)
