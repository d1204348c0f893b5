"""The three backends against each other: the same numbers in, the same average out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.keras.cross_backend import BACKENDS, FILES, RULE, SEEDED, STEPS, start
from tests.keras.zoo import BACKEND, assert_same_bits, replay

import polyak

pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="runs once, with a process for each backend")

PART = Path(__file__).with_name("cross_backend.py")
STATISTICS = {"batch_normalization/moving_mean", "batch_normalization/moving_variance"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every backend trained and wrote, and what every backend read of it."""
    made = tmp_path_factory.mktemp("runs")
    np.savez(made / "start.npz", **start())
    for part in ("train", "read"):
        processes = {b: _process(part, made, b) for b in BACKENDS}
        for backend, process in processes.items():
            words, _ = process.communicate(timeout=300)
            assert process.returncode == 0, f"{part} on {backend}: {words}"
    return made


def _process(part: str, folder: Path, backend: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "KERAS_BACKEND": backend}
    command = [sys.executable, str(PART), part, str(folder)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def rows(folder: Path, backend: str, role: str) -> list[dict[str, Any]]:
    """By step the weights of one role by path."""
    held = np.load(folder / f"{backend}.npz")
    found: list[dict[str, Any]] = [{} for _ in range(STEPS)]
    for name in held.files:
        kind, step, path = name.split(" ")
        if kind == role:
            found[int(step)][path] = held[name]
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_from_the_recorded_weights_each_average_is_the_numpy_kernel_bit_for_bit(folder: Path, backend: str) -> None:
    """Equal inputs, equal bits: thereby the three kernels are equal to each other."""
    first = {path: value for path, value in np.load(folder / "start.npz").items() if path not in ("x", "y")}
    raw, average = rows(folder, backend, "raw"), rows(folder, backend, "average")
    for step in range(STEPS):
        expected = replay(polyak.parse(RULE), first, raw[: step + 1], set(first) - STATISTICS)
        assert_same_bits(average[step], expected)


@pytest.mark.parametrize("other", ["jax", "torch"])
def test_the_same_training_gives_the_same_average_but_for_the_rounding_of_the_training(
    folder: Path, other: str
) -> None:
    """Backends sum products in different orders: a gradient of some dozens of terms of order one differs by some units
    of 2**-24 of its largest term. Ten steps at rate 0.1 with momentum 0.9, whose factors add up to at most ten each,
    sum at most 10 * 10 * 0.1 such differences: 10 * 16 * 2**-24 = 1e-5. The average, a mean of them, has no more.
    """
    for role in ("raw", "average"):
        for mine, theirs in zip(rows(folder, "tensorflow", role), rows(folder, other, role), strict=True):
            assert mine.keys() == theirs.keys()
            for path, value in mine.items():
                np.testing.assert_allclose(theirs[path], value, rtol=0, atol=1e-5, err_msg=f"{role} {path}")
    raw, average = (rows(folder, other, role)[-1] for role in ("raw", "average"))
    assert np.abs(raw["head/kernel"] - average["head/kernel"]).max() > 1e-3


@pytest.mark.parametrize("reader", BACKENDS)
@pytest.mark.parametrize("writer", BACKENDS)
def test_a_file_of_one_backend_is_read_on_every_other(folder: Path, writer: str, reader: str) -> None:
    arrived, last = np.load(folder / f"read by {reader}.npz"), rows(folder, writer, "average")[-1]
    for form in FILES:
        name = form.format(writer)
        assert int(arrived[f"{name} count"]) == STEPS
        for role in ("model", "average"):
            assert_same_bits({path: arrived[f"{name} {role} {path}"] for path in last}, last)


@pytest.mark.parametrize("reader", BACKENDS)
@pytest.mark.parametrize("writer", BACKENDS)
def test_a_model_with_random_seeds_moves_to_every_other_backend_seeds_and_all(
    folder: Path, writer: str, reader: str
) -> None:
    arrived, raw = np.load(folder / f"read by {reader}.npz"), np.load(folder / f"{writer}-seeded.npz")
    own = {"tensorflow": "int64", "jax": "uint32", "torch": "int32"}
    for form in SEEDED:
        for role in ("raw",) if "plain" in form else ("raw", "average"):
            for kind in ("model", "average"):
                name = f"{form.format(writer)} {role} {kind}"
                seed = arrived[f"{name} dropout/seed_generator/state"]
                assert seed.dtype.name == own[reader]
                if "plain" in form:
                    assert seed.tolist() == [7, 0]
                elif role == "raw" and kind == "model" and form.endswith(".safetensors"):  # Keras' own leave seeds out
                    assert seed.tolist() == raw["dropout/seed_generator/state"].tolist() != [7, 0]
                    kernel = raw["hidden/kernel"]
                    assert_same_bits({"hidden/kernel": arrived[f"{name} hidden/kernel"]}, {"hidden/kernel": kernel})
