"""Checkpoints that TF Models writes of averages as the model are told by their name alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

import polyak


def written(path: Path) -> Path:
    module = tf.Module()
    module.kernel = tf.Variable([[1.0, 2.0]])
    return Path(tf.train.Checkpoint(model=module).write(str(path)))


def test_the_name_says_that_the_weights_are_averages(tmp_path: Path) -> None:
    held = polyak.open(written(tmp_path / "ema_checkpoints" / "average_weights-120"))
    assert held.roles == ("average",)
    assert held.manifest.confidence == "inferred"
    assert "'average_weights-120'" in held.manifest.evidence[0]
    np.testing.assert_array_equal(held["model/kernel"], [[1.0, 2.0]])


def test_any_other_name_says_nothing(tmp_path: Path) -> None:
    assert polyak.open(written(tmp_path / "ema_checkpoints" / "ckpt-120")).roles == ("raw",)
