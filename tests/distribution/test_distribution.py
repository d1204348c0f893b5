"""Averages of models that are spread over devices or processes: equal on all replicas, one file, any number after.

Each program runs in processes of its own, because devices are made before a framework starts.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import polyak
from polyak.errors import ImmatureWarning
from polyak.frameworks import framework_of
from polyak.frameworks.company import Company

HERE = Path(__file__).parent
# Partial sums are added in another order on several devices; SGD with these few steps keeps the difference small.
CLOSE = 1e-5


def start(program: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    given = {**os.environ, "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "", **environment}
    command = [sys.executable, "-W", "ignore", str(HERE / program), *arguments]
    return subprocess.Popen(command, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    found: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return found


def small() -> Any:
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])


def assert_values(average: Any, expected: dict[str, Any]) -> None:
    for path, value in average.values().items():
        assert value.tolist() == expected[path], path


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What a run on two devices has left and said."""
    folder = tmp_path_factory.mktemp("mirrored")
    return folder, answer(start("mirrored.py", "2", str(folder)))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run on one device of JAX has said."""
    return answer(start("sharded.py", "one", str(tmp_path_factory.mktemp("one")), KERAS_BACKEND="jax"))


def assert_one_average(found: dict[str, Any]) -> None:
    assert found["count"] == 8
    assert found["counts of the loop"] == [4, 4]
    assert found["same on all replicas"]
    assert found["restored"]
    assert found["called against applied"] < CLOSE
    assert found["against one device"] < CLOSE
    assert found["inside against outside"] == 0.0


def test_two_replicas_have_one_average_bit_for_bit(mirrored: tuple[Path, dict[str, Any]]) -> None:
    assert_one_average(mirrored[1])


@pytest.mark.slow
def test_four_replicas_have_one_average_bit_for_bit(tmp_path: Path) -> None:
    assert_one_average(answer(start("mirrored.py", "4", str(tmp_path))))


def test_a_mirrored_run_goes_on_on_one_device(mirrored: tuple[Path, dict[str, Any]]) -> None:
    folder, found = mirrored
    model = small()
    average = polyak.track(model, "ema:0.9,start=copy")
    tf.train.Checkpoint(model=model, average=average).read(str(folder / "checkpoint")).assert_existing_objects_matched()
    assert average.count == 8
    assert_values(average, found["values"])
    again = polyak.track(small(), "ema:0.9,start=copy")
    polyak.transfer(folder / "average.safetensors", again)
    assert again.count == 8
    assert_values(again, found["values"])


def test_each_update_counts_once_also_where_the_average_was_made_elsewhere_than_the_weights() -> None:
    found = answer(start("placed.py"))
    assert found["late"]["count"] == 4
    assert found["late"]["off"] < CLOSE
    assert found["restored"] == [2, 2]
    for shared in (found["plain"], found["central"]):
        assert "expected counts and averaged values beside each of the 2 replicas" in shared["said"]
        assert shared["left"] == [[1.0, 2.0], 0]
        assert shared["outside"] == [[5.0, 5.5], 1]


def assert_written_once(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Both processes have saved to one path: both hold a receipt for the one file that the first has written."""
    assert first["count"] == second["count"] == 8
    assert first["digests"] == second["digests"] == first["receipt"] == second["receipt"]
    assert first["file"] == second["file"]


def test_statistics_are_those_of_the_first_replica_and_what_drifts_is_refused(tmp_path: Path) -> None:
    """BatchNormalization keeps statistics for each replica: files have those of the first, as Keras' own do."""
    found = answer(start("replicated.py", "2", str(tmp_path)))
    assert found["replicas"] == [2, 2]
    assert found["statistics differ by"] > 0.01
    assert found["copied beside each"]
    assert found["raw is Keras' own"]
    assert found["raw is the first"]
    assert found["average is the first"]
    for refused in found["refused"].values():
        assert refused.startswith(
            "weight 'dense/kernel' of Sequential 'sequential': expected one value on all replicas"
        )
    assert not found["written"]
    assert found["kept"] == ["", 8]


def test_two_workers_have_one_average_bit_for_bit(tmp_path: Path) -> None:
    ports = free_ports(2)
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    configs = [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": i}}) for i in range(2)]
    first, second = (answer(p) for p in [start("workers.py", str(tmp_path), TF_CONFIG=c) for c in configs])
    assert_written_once(first, second)
    assert second["drift"].startswith(
        f"file '{tmp_path / 'average.safetensors'}': process 1 of 2 expected process 0 to "
    )
    assert "weight 'dense/kernel' has other bits" in second["drift"]
    held = polyak.open(tmp_path / "average.safetensors")
    assert held.state is not None
    assert held.state.count == 8


@pytest.mark.parametrize("manner", [pytest.param("data", marks=pytest.mark.slow), "model"])
def test_shadows_on_jax_are_spread_as_their_weights_are(tmp_path: Path, alone: dict[str, Any], manner: str) -> None:
    found = answer(start("sharded.py", manner, str(tmp_path), KERAS_BACKEND="jax"))
    assert found["devices"] == 8
    assert found["pieces"] == (4 if manner == "model" else 1)
    assert found["placed"]
    assert found["gathers"] == {"all-gather": 0, "all-to-all": 0, "collective-permute": 0}
    assert found["count"] == alone["count"] == 9
    assert found["drift"].startswith(
        "weight 'dense/kernel' of Sequential 'sequential': expected one value on all devices"
    )
    assert alone["drift"] == ""
    for path, value in alone["values"].items():
        assert np.allclose(found["values"][path], value, rtol=0, atol=CLOSE), path
    assert polyak.open(tmp_path / f"{manner}.safetensors").roles == ("average",)


def test_processes_of_distributed_data_parallel_have_one_average_bit_for_bit(tmp_path: Path) -> None:
    running = [start("ddp.py", str(rank), str(tmp_path), KERAS_BACKEND="torch") for rank in range(2)]
    first, second = (answer(p) for p in running)
    assert_written_once(first, second)
    model = small()
    with pytest.warns(ImmatureWarning):
        receipt = polyak.transfer(tmp_path / "average.safetensors", model)
    assert {m.target: m.digest for m in receipt.moved} == first["digests"]


def test_a_process_that_saves_to_a_path_of_its_own_is_told_what_it_waits_for_and_how_to_save_alone(
    tmp_path: Path,
) -> None:
    running = [start("ranked.py", str(rank), str(tmp_path), KERAS_BACKEND="torch") for rank in range(2)]
    first, second = (answer(p) for p in running)
    assert {(said["failed"], *said["told"]) for said in first.values()} == {("",)}
    alone = "a file of its own for each waits for nobody: polyak.save(polyak.snapshot(source), path)"
    for name, said in second.items():
        file = f"file '{tmp_path / name}_1.safetensors'"
        lacks = f"{file}: there is nothing at this path"
        warned = (
            f"{file}: process 1 of 2 waits for process 0 to write what it has, too, so far for 0.25 seconds and for 1 "
            f"at most: {lacks}; hint: let process 0 save to this path, too; {alone}"
        )
        assert said["told"] == [["PolyakWarning", warned, "ranked.py"]]
        assert said["failed"] == (
            f"{file}: process 1 of 2 expected process 0 to write what it has, too; received none of it in 1 seconds: "
            f"{lacks}\nhint: they have drifted apart, or each sees a disk of its own: there save in process 0 alone; "
            f"{alone}"
        )
    copies = {f"copy of {name}_{rank}.safetensors" for name in first for rank in range(2)}
    assert {path.name for path in tmp_path.glob("copy of *")} == copies


def test_a_process_that_waits_for_the_first_one_has_its_receipt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = small(), tmp_path / "average.safetensors"
    average = polyak.track(model, "mean")
    average.update()
    first = polyak.save(average, path)
    monkeypatch.setattr(type(framework_of(model)), "company", lambda framework, model: Company(1, 2))
    assert polyak.save(average, path) == first


@pytest.mark.parametrize("manner", ["original", "flat"])
def test_fully_sharded_parameters_are_refused_and_whole_ones_are_saved_under_their_own_names(
    tmp_path: Path, manner: str
) -> None:
    for rank, found in enumerate(
        [answer(p) for p in [start("fsdp.py", str(r), str(tmp_path), manner) for r in (0, 1)]]
    ):
        for said in found["refused"]:
            assert said.startswith("FullyShardedDataParallel: expected whole parameters, received those of the module")
            assert said.endswith("within FullyShardedDataParallel.summon_full_params(model)")
        assert not found["written"]
        assert found["names"]
        assert found["saved"]
        assert found["transferred"]
        assert bool(found["rank 0 alone"]) is (rank == 1)
        assert "received a DTensor" in found["second"][0]
        assert found["second"][1]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("localhost", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def joined(manner: str, folder: Path) -> list[dict[str, Any]]:
    """What two processes of JAX have said."""
    address = f"localhost:{free_ports(1)[0]}"
    programs = [start("joined.py", manner, str(rank), address, str(folder), KERAS_BACKEND="jax") for rank in range(2)]
    return [answer(program) for program in programs]


def test_processes_of_jax_have_one_average_bit_for_bit(tmp_path: Path) -> None:
    first, second = joined("data", tmp_path)
    assert (first["devices"], first["here"]) == (4, 2)
    for found in (first, second):
        assert found["parted"].startswith("weight 'wide/bias' of Sequential 'sequential': expected a value that this")
    assert_written_once(first, second)


@pytest.mark.slow
def test_a_weight_that_other_processes_hold_parts_of_is_refused(tmp_path: Path) -> None:
    for said in joined("model", tmp_path):
        assert said["refused"].startswith(
            "weight 'wide/kernel' of ema:0.9,start=copy of Sequential: expected a value that"
        )
        assert said["count"] == 8
    assert not (tmp_path / "average.safetensors").exists()
