"""Checkpoints of a model and of another that is called its average."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import polyak
from polyak.errors import AmbiguousRole


class Custom(keras.Model):
    """A model of the user's own, with statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = (
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(2),
        )

    def call(self, x: Any, training: bool = False) -> Any:
        return self.last(self.norm(self.first(x), training=training))


def built(seed: int, make: Any = Custom) -> Any:
    model = make()
    model(np.ones((1, 3), np.float32))
    dice = np.random.default_rng(seed)
    for variable in model.variables:
        variable.assign(dice.random(variable.shape))
    return model


def module(seed: int) -> Any:
    dice = np.random.default_rng(seed)
    made = tf.Module()
    made.kernel, made.bias = (tf.Variable(dice.random(shape), dtype=tf.float32) for shape in [(3, 2), (2,)])
    return made


def saved(tmp_path: Path, **held: Any) -> Path:
    return Path(tf.train.Checkpoint(**held).save(str(tmp_path / "ckpt")))


def values(model: Any) -> list[Any]:
    return [np.asarray(v) for v in model.variables]


def same(model: Any, other: Any) -> None:
    for mine, theirs in zip(values(model), values(other), strict=True):
        np.testing.assert_array_equal(mine, theirs)


NAMES = [
    ("model", "ema_model"),
    ("net", "net_ema"),
    ("student", "teacher"),
    ("model", "averaged"),
    ("generator", "ema_generator"),
]


@pytest.mark.parametrize(("raw", "average"), NAMES)
@pytest.mark.parametrize("make", [built, module])
def test_what_is_called_an_average_is_one(make: Any, raw: str, average: str, tmp_path: Path) -> None:
    model, ema = make(0), make(1)
    optimizer = keras.optimizers.Adam()
    optimizer.build(list(model.trainable_variables))
    path = saved(tmp_path, **{raw: model, average: ema}, optimizer=optimizer)
    held = polyak.open(path)
    assert {"raw", "average"} < set(held.roles)
    assert any(f"{average!r} has the names and shapes of {raw!r}" in line for line in held.manifest.evidence)
    assert held.manifest.confidence == "inferred"
    for role, of in (("raw", model), ("average", ema)):
        other = make(2)
        polyak.transfer(path, other, weights=role)
        same(other, of)
    with pytest.raises(AmbiguousRole):
        polyak.transfer(path, make(2))


def parts(held: Any, role: str) -> set[str]:
    return {w.path.partition("/")[0] for w in held.select(role).weights}


def test_another_model_beside_them_is_raw(tmp_path: Path) -> None:
    path = saved(tmp_path, generator=built(0), generator_ema=built(1), critic=module(2))
    held = polyak.open(path)
    assert parts(held, "average") == {"generator"}
    assert parts(held, "raw") == {"generator", "critic"}


def test_several_averages_have_a_name_each(tmp_path: Path) -> None:
    path = saved(tmp_path, model=module(0), ema_model=module(1), swa_model=module(2))
    assert {r for r in polyak.open(path).roles if r != "training"} == {"raw", "average:ema_model", "average:swa_model"}
    other = module(3)
    polyak.transfer(path, other, weights="average:swa_model")
    same(other, module(2))


def untouched(path: Path) -> set[str]:
    return {r for r in polyak.open(path).roles if r.startswith(("raw", "average"))}


def test_parts_of_one_model_stay_its_parts(tmp_path: Path) -> None:
    """As in Keras' example of a diffusion model, whose ``ema_network`` a model of the same class wants, too."""

    class Diffusion(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.ema_network = keras.layers.Dense(2), keras.layers.Dense(2)

        def call(self, x: Any) -> Any:
            return self.network(x) + self.ema_network(x)

    model = built(0, Diffusion)
    for number, checkpoint in enumerate([tf.train.Checkpoint(model=model), tf.train.Checkpoint(model)]):
        path = Path(checkpoint.save(str(tmp_path / str(number))))
        assert untouched(path) == {"raw"}
        other = built(1, Diffusion)
        polyak.transfer(path, other)
        same(other, model)


def test_models_that_are_not_alike_or_not_named_after_each_other_are_raw(tmp_path: Path) -> None:
    wide = tf.Module()
    wide.kernel, wide.bias = tf.Variable(tf.ones((3, 3))), tf.Variable(tf.ones(3))
    more = module(1)
    more.extra = tf.Variable(1.0)
    for number, held in enumerate(
        [
            {"model": module(0), "ema_model": wide},
            {"model": module(0), "ema_model": more},
            {"head": module(0), "ema": module(1)},
            {"model": module(0), "target": module(1)},
            {"ema_model": module(1)},
            {"model": module(0), "non_ema_model": module(1)},
            {"model": module(0), "ema_model": module(1), "ema_head": more},
        ]
    ):
        assert untouched(saved(tmp_path / str(number), **held)) == {"raw"}, list(held)


def test_models_that_share_a_weight_are_raw(tmp_path: Path) -> None:
    model, ema = module(0), module(1)
    ema.bias = model.bias
    assert untouched(saved(tmp_path, model=model, ema_model=ema)) == {"raw"}


def test_a_saved_model_is_one_model(tmp_path: Path) -> None:
    pair = tf.Module()
    pair.model, pair.ema_model = module(0), module(1)
    tf.saved_model.save(pair, str(tmp_path / "pair"))
    assert untouched(tmp_path / "pair") == {"raw"}


def test_beside_an_average_of_polyaks_they_are_raw(tmp_path: Path) -> None:
    model = module(0)
    path = saved(tmp_path, model=model, ema_model=module(1), average=polyak.track(model, "ema:0.9"))
    assert untouched(path) == {"raw", "average"}


def test_a_step_beside_models_is_no_weight_of_theirs(tmp_path: Path) -> None:
    """As TensorFlow's guide to checkpoints has it."""
    model, ema = built(0), built(1)
    path = saved(tmp_path, step=tf.Variable(7), epoch=tf.Variable(2, dtype=tf.int64), net=model, ema_net=ema)
    held = polyak.open(path)
    assert {w.path for w in held.select("training").weights} == {"step", "epoch", "save_counter"}
    for role, of in (("raw", model), ("average", ema)):
        other = built(2)
        polyak.transfer(path, other, weights=role)
        same(other, of)


def test_whole_numbers_among_variables_that_are_given_one_by_one_are_weights(tmp_path: Path) -> None:
    whole = module(0)
    whole.seen = tf.Variable(7)
    held: list[dict[str, Any]] = [{"kernel": whole.kernel, "bias": whole.bias, "seen": whole.seen}, {"root": whole}]
    for number, given in enumerate(held):
        other = module(1)
        other.seen = tf.Variable(0)
        polyak.transfer(saved(tmp_path / str(number), **given), other)
        same(other, whole)
    assert untouched(saved(tmp_path / "more", net=module(0), rate=tf.Variable(0.5))) == {"raw"}
    assert "rate" in polyak.open(tmp_path / "more" / "ckpt-1").select("raw")
