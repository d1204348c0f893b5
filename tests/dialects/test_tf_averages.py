"""Slots called ``average`` in TF2 checkpoints, as TensorFlow Addons and TF Models lay them out.

Neither can be imported on today's TensorFlow; the optimizers here are Keras 2's own, with the slots, the tracked
children and the hyperparameters that those two add to them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import polyak
from polyak.errors import AmbiguousRole

Legacy = tf_keras.optimizers.legacy.Optimizer


class Averaging(Legacy):  # type: ignore[misc]
    """An optimizer around another, with an average of each variable in a slot."""

    def __init__(self, inner: Any, child: str | None, decay: float, name: str = "Averaging") -> None:
        super().__init__(name)
        self.inner, self.decay = inner, decay
        self._track_trackable(inner, child or "_optimizer")
        if child is None:
            self._set_hyper("average_decay", decay)

    def _create_slots(self, var_list: Any) -> None:
        self.inner._create_all_weights(var_list)
        for var in var_list:
            self.add_slot(var, "average", var.read_value())

    def apply_gradients(self, pairs: Any) -> None:
        held = list(pairs)
        self._create_all_weights([var for _, var in held])
        self.inner.apply_gradients(held)
        for _, var in held:
            slot = self.get_slot(var, "average")
            slot.assign_add((1 - self.decay) * (var - slot))

    def get_config(self) -> dict[str, Any]:
        return {}


def written(child: str | None, tmp_path: Path) -> tuple[Path, Any, Any]:
    layers = [
        tf_keras.layers.Dense(4, input_shape=(3,)),
        tf_keras.layers.BatchNormalization(),
        tf_keras.layers.Dense(4),
    ]
    model = tf_keras.Sequential(layers)
    optimizer = Averaging(tf_keras.optimizers.legacy.Adam(0.1), child, 0.75)
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(tf.ones((2, 3)), training=True))
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_weights), model.trainable_weights, strict=True)
        )
    path = tf.train.Checkpoint(model=model, optimizer=optimizer).write(str(tmp_path / "ckpt"))
    return Path(path), model, optimizer


@pytest.mark.parametrize(
    ("child", "said", "words"),
    [(None, 0, "as TensorFlow Addons keeps them: decay 0.75"), ("ema_base_optimizer", 0, "as TF Models keeps them")],
)
def test_slots_are_the_average_and_other_slots_are_the_optimizers(
    child: str | None, said: int, words: str, tmp_path: Path
) -> None:
    path, model, optimizer = written(child, tmp_path)
    held = polyak.open(path)
    assert {r for r in held.roles if r.startswith(("raw", "average"))} == {"raw", "average"}
    assert {"slot:m", "slot:v"} < set(held.roles)
    assert "slot:average" not in held.roles
    assert held.manifest.confidence == "inferred"
    assert words in held.manifest.evidence[said]
    average = held.select("average")
    expected = [optimizer.get_slot(w, "average") for w in model.trainable_weights]
    trained = [name for name, i in average.items_by_path.items() if i.weight.kind == "trainable"]
    assert len(trained) == len(expected)
    for value in expected:
        assert any(np.array_equal(average[name], value.numpy()) for name in trained)
    statistics = {name for name, i in average.items_by_path.items() if i.weight.kind == "statistic"}
    assert {name.rpartition("/")[2] for name in statistics} == {"moving_mean", "moving_variance"}


def test_the_average_arrives_in_a_keras_3_twin(tmp_path: Path) -> None:
    import keras

    path, model, optimizer = written(None, tmp_path)
    layers = [keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dense(4)]
    twin = keras.Sequential([keras.Input((3,)), *layers])
    with pytest.raises(AmbiguousRole, match="'raw' and 'average'"):
        polyak.transfer(path, twin)
    polyak.transfer(path, twin, weights="average")
    expected = [optimizer.get_slot(w, "average").numpy() if w.trainable else w.numpy() for w in model.weights]
    for ours, theirs in zip(twin.get_weights(), expected, strict=True):
        assert np.array_equal(ours, theirs)


def test_tf_models_may_have_written_them_exchanged(tmp_path: Path) -> None:
    path, _, _ = written("ema_base_optimizer", tmp_path)
    found = {finding.what: finding for finding in polyak.doctor(path)}
    assert "the file cannot tell" in found["raw and average may be exchanged: ambiguous"].evidence
    plain, _, _ = written(None, tmp_path)
    assert "raw and average may be exchanged: ambiguous" not in {finding.what for finding in polyak.doctor(plain)}


def stepped(layers: list[Any], build: bool = False) -> tuple[Any, Any]:
    """A model of Keras 2 after two steps of an optimizer of 2.11 or later, which lists what it keeps."""
    model = tf_keras.Sequential(layers)
    optimizer = tf_keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
    if build:
        optimizer.build(model.trainable_variables)
    for _ in range(2):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(tf.ones((2, 3)), training=True) ** 2)
        grads = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(grads, model.trainable_variables, strict=True))
    return model, optimizer


@pytest.mark.parametrize("build", [False, True], ids=["built by a step", "built before"])
@pytest.mark.parametrize("name", ["first", "average"])
def test_use_ema_of_keras_2_is_found_by_the_names_of_its_averages(name: str, build: bool, tmp_path: Path) -> None:
    layers = [
        tf_keras.layers.Dense(3, input_shape=(3,), name=name),
        tf_keras.layers.BatchNormalization(),
        tf_keras.layers.Dense(3),
    ]
    model, optimizer = stepped(layers, build)
    path = tf.train.Checkpoint(net=model, opt=optimizer).write(str(tmp_path / "a"))
    held = polyak.open(path)
    assert set(held.roles) == {"raw", "average", "optimizer"}
    twin = tf_keras.Sequential([type(layer).from_config(layer.get_config()) for layer in layers])
    twin(tf.ones((1, 3)))
    polyak.transfer(path, twin, weights="average")
    optimizer.finalize_variable_values(model.trainable_variables)
    for found, wanted in zip(twin.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_averages_whose_names_do_not_tell_whose_they_are_are_not_taken(tmp_path: Path) -> None:
    """Two layers of one name, which only a subclassed model may hold."""

    class Twins(tf_keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (tf_keras.layers.Dense(3, name="same") for _ in range(2))

        def call(self, x: Any) -> Any:
            return self.b(self.a(x))

    model, optimizer = stepped([Twins()])
    held = polyak.open(tf.train.Checkpoint(model=model, optimizer=optimizer).write(str(tmp_path / "a")))
    assert "average" not in held.roles
    assert "no names that tell whose each is" in held.manifest.evidence[0]


def _tree(**held: Any) -> tf.Module:
    made = tf.Module()
    for name, value in held.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("average", [["a", "b"], [3.0, 4.0, 5.0]])
@pytest.mark.parametrize("steps", [[1.0, 2.0], "text", True])
def test_what_only_looks_like_an_optimizer_is_no_trap(average: Any, steps: Any, tmp_path: Path) -> None:
    weight = tf.Variable([1.0, 2.0])
    listed = {"_trainable_variables": [weight], "_model_variables_moving_average": [tf.Variable(average)]}
    optimizer = _tree(_iterations=tf.Variable(steps), _learning_rate=tf.Variable(1.0), **listed)
    path = tf.train.Checkpoint(model=_tree(w=weight), optimizer=optimizer).write(str(tmp_path / "a"))
    held = polyak.open(path)
    assert "average" not in held.roles
    np.testing.assert_array_equal(held.select("raw")["model/w"], [1.0, 2.0])


def tracked_by_tensorflow(net: Any) -> tuple[Any, list[Any]]:
    """A Keras 3 model and what tf.train.ExponentialMovingAverage made of it."""
    variables = [v.value for v in net.trainable_variables]
    ema = tf.train.ExponentialMovingAverage(0.5)
    ema.apply(variables)
    for v in variables:
        v.assign_add(tf.ones_like(v))
    ema.apply(variables)
    return net, [ema.average(v) for v in variables]


def _net() -> Any:
    inner = keras.Sequential([keras.layers.Dense(3), keras.layers.BatchNormalization()])
    return keras.Sequential([keras.Input((3,)), inner, keras.layers.Dense(3)])


@pytest.mark.parametrize("with_model", [True, False])
def test_averages_that_tensorflow_made_are_found_by_their_names(with_model: bool, tmp_path: Path) -> None:
    net, shadows = tracked_by_tensorflow(_net())
    held = {"shadows": shadows, **({"model": net} if with_model else {})}
    path = tf.train.Checkpoint(**held).write(str(tmp_path / "a"))
    found = polyak.open(path)
    assert found.roles == (("raw", "average") if with_model else ("average",))
    assert "tf.train.ExponentialMovingAverage" in found.manifest.evidence[0]
    target = _net()
    before = [v.numpy() for v in target.non_trainable_variables]
    polyak.transfer(path, target, weights="average", exclude=() if with_model else ["*moving_*"])
    for variable, shadow in zip(target.trainable_variables, shadows, strict=True):
        np.testing.assert_array_equal(variable.numpy(), shadow.numpy())
    statistics = [v.numpy() for v in net.non_trainable_variables] if with_model else before
    for variable, value in zip(target.non_trainable_variables, statistics, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_averages_of_variables_of_one_name_are_not_guessed(tmp_path: Path) -> None:
    one, other = (tf.Variable([v], name="kernel") for v in (1.0, 2.0))
    ema = tf.train.ExponentialMovingAverage(0.5)
    ema.apply([one, other])
    shadows = [ema.average(one), ema.average(other)]
    for held in ({"model": [one, other], "shadows": shadows}, {"shadows": shadows}):
        found = polyak.open(tf.train.Checkpoint(**held).write(str(tmp_path / "a")))
        assert found.roles == ("raw",)
        assert "no names that tell whose each is" in found.manifest.evidence[0]


def test_two_averages_of_the_same_variables_are_not_guessed(tmp_path: Path) -> None:
    weight = tf.Variable([1.0], name="kernel")
    averages = [tf.train.ExponentialMovingAverage(decay) for decay in (0.5, 0.9)]
    for ema in averages:
        ema.apply([weight])
    held = {f"e{i}": ema.average(weight) for i, ema in enumerate(averages)}
    found = polyak.open(tf.train.Checkpoint(w=weight, **held).write(str(tmp_path / "a")))
    assert found.roles == ("raw",)
    assert "two averages beside it" in found.manifest.evidence[0]


def test_beside_the_numbered_list_of_an_export_an_optimizer_lists_no_weights(tmp_path: Path) -> None:
    """Numbers mean the order of all weights there, which names would break."""
    weight, other = tf.Variable([1.0, 2.0]), tf.Variable([3.0])
    optimizer = _tree(_iterations=tf.Variable(1), _learning_rate=tf.Variable(1.0), _trainable_variables=[weight, other])
    held = polyak.open(tf.train.Checkpoint(variables=[weight], optimizer=optimizer).write(str(tmp_path / "a")))
    assert list(held.select("raw")) == ["#0"]
