"""What doctor says of files that the real tools wrote: findings that only such files can have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import polyak
from polyak.combine.finding import Finding

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
X = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
Y = X.sum(1, keepdims=True)


def findings(path: Path) -> dict[str, Finding]:
    return {finding.what: finding for finding in polyak.doctor(path)}


def net() -> Any:
    layers = [keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dense(1)]
    return keras.Sequential([keras.Input((3,)), *layers])


def trained(optimizer: Any, updates: int, tmp_path: Path, rule: str = "ema:0.5") -> Path:
    """A checkpoint of eight steps and so many updates of the average."""
    model = net()
    ema = polyak.track(model, rule)
    for step in range(8):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(X, training=True) - Y) ** 2)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        if step < updates:
            ema.update()
    return Path(tf.train.Checkpoint(model=model, optimizer=optimizer, ema=ema).write(str(tmp_path / "ckpt")))


def test_an_average_that_missed_steps_is_stale(tmp_path: Path) -> None:
    found = findings(trained(keras.optimizers.SGD(0.01), 5, tmp_path))
    assert found["average is stale against the step counter"].evidence.startswith("5 updates; 8 in ")


def test_an_average_of_every_step_is_not_stale(tmp_path: Path) -> None:
    for updates in (8, 7):
        assert not [
            what for what in findings(trained(keras.optimizers.SGD(0.01), updates, tmp_path)) if "stale" in what
        ]


def test_the_interval_of_a_rule_is_part_of_its_count(tmp_path: Path) -> None:
    assert not [
        w for w in findings(trained(keras.optimizers.SGD(0.01), 8, tmp_path, "ema:0.5,every=4")) if "stale" in w
    ]


def test_an_average_that_moved_more_often_than_the_optimizer(tmp_path: Path) -> None:
    model, optimizer = net(), keras.optimizers.SGD(0.01, gradient_accumulation_steps=4)
    ema = polyak.track(model, "ema:0.5")
    for _ in range(8):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(X, training=True) - Y) ** 2)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        ema.update()
    path = tf.train.Checkpoint(optimizer=optimizer, ema=ema).write(str(tmp_path / "ckpt"))
    held = polyak.open(path)
    steps = next(int(held[n]) for n, i in held.items_by_path.items() if i.role == "optimizer" and "iterations" in n)
    assert ("updated more often than there were steps" in "".join(findings(Path(path)))) == (steps < 7)


def test_statistics_that_belong_to_the_raw_weights(tmp_path: Path) -> None:
    """Keras' use_ema averages what is trained and leaves the moving statistics of the run."""
    model = net()
    model.compile(keras.optimizers.SGD(0.01, use_ema=True, ema_momentum=0.5), "mse")
    for i in range(3):
        model.train_on_batch(X + i, Y)
    model.save(tmp_path / "m.keras")
    finding = findings(tmp_path / "m.keras")["the BatchNorm statistics of average belong to the raw weights"]
    assert finding.evidence.startswith("the bits are those of raw in 2 weights, such as average/layers/batch_norm")
    assert "measure them anew" in finding.mend
    ema_of_all = polyak.track(model, "ema:0.5", kinds={"*moving*": "trainable"})
    for i in range(3):
        model.train_on_batch(X - i, Y)
        ema_of_all.update()
    polyak.save(ema_of_all, tmp_path / "both.safetensors", "both")
    assert not [what for what in findings(tmp_path / "both.safetensors") if "BatchNorm" in what]


def test_a_start_at_zero_without_correction_is_biased(tmp_path: Path) -> None:
    found = findings(trained(keras.optimizers.SGD(0.01), 3, tmp_path, "ema:0.5,start=zero"))
    assert found["average is biased towards zero"].evidence == "3 updates; 12.5% of it is what it started from: zeros"
    assert "average is biased towards zero" not in findings(
        trained(keras.optimizers.SGD(0.01), 3, tmp_path, "ema:0.5,start=debiased")
    )


def test_the_state_of_optax_is_biased() -> None:
    finding = findings(GOLDEN / "jax" / "optax")["average is biased towards zero"]
    assert "without its correction for the start at zero" in finding.evidence


def test_a_bare_file_is_said_to_be_unknown(tmp_path: Path) -> None:
    model = net()
    np.savez(tmp_path / "w.npz", *model.get_weights())
    model.save_weights(tmp_path / "w.weights.h5")
    tf.train.Checkpoint(model=model).write(str(tmp_path / "ckpt"))
    for name in ("w.npz", "w.weights.h5", "ckpt"):
        found = findings(tmp_path / name)
        assert polyak.open(tmp_path / name).roles == ("raw",)
        assert "raw or average: unknown" in found, name
        assert "no average" not in found


def test_sets_that_a_tool_may_have_exchanged_are_ambiguous() -> None:
    """use_ema in a .keras file: SwapEMAWeights may have been on while it was written."""
    for name in ("lightning.ckpt", "timm.pt"):
        assert "raw and average may be exchanged: ambiguous" not in findings(GOLDEN / "torch" / name)
    found = findings(GOLDEN / "torch" / "mmengine.pt")
    assert "choose by role" in found["written while the average was swapped in"].mend
    exchanged = [p for p in (GOLDEN / "keras").glob("*.keras") if "average" in polyak.open(p).roles]
    assert exchanged
    for path in exchanged:
        assert "SwapEMAWeights" in findings(path)["raw and average may be exchanged: ambiguous"].evidence
