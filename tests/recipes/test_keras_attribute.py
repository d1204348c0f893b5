"""Recipe f: a Keras model that holds its average as an attribute."""

import keras
import nets
import pytest
import tensorflow as tf

import polyak


@pytest.fixture(scope="module")
def fitted():
    keras.utils.set_random_seed(4)
    model = nets.Averaged()
    model.compile("sgd", "mse")
    model.fit(nets.INPUTS, nets.TARGETS, epochs=3, batch_size=4, verbose=0)
    assert model.ema.count == 12
    return model


def _assert_arrived(model: nets.Averaged, fitted: nets.Averaged) -> None:
    assert model is not fitted
    assert model.ema.count == fitted.ema.count
    nets.assert_same(nets.averaged(model.ema), nets.averaged(fitted.ema))
    nets.assert_same(nets.weights(model), nets.weights(fitted))


def test_save_and_load_model(fitted, tmp_path):
    fitted.save(tmp_path / "model.keras")
    _assert_arrived(keras.models.load_model(tmp_path / "model.keras"), fitted)


@pytest.mark.parametrize("name", ["m.weights.h5", "m.weights.json"])
def test_save_and_load_weights(fitted, tmp_path, name):
    sharded = {"max_shard_size": 0.001} if name.endswith("json") else {}
    fitted.save_weights(tmp_path / name, **sharded)
    model = nets.built(nets.Averaged)
    model.load_weights(tmp_path / name)
    _assert_arrived(model, fitted)


def test_the_loaded_model_trains_on(fitted, tmp_path):
    fitted.save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    model.fit(nets.INPUTS, nets.TARGETS, epochs=1, batch_size=4, verbose=0)
    assert model.ema.count == fitted.ema.count + 4


def test_the_average_is_no_weight_of_the_model(fitted):
    assert len(fitted.weights) == len(nets.built().weights)
    assert {w.path for w in fitted.ema.source.weights} == set(polyak.snapshot(nets.built()))


def test_plain_keras_loads_the_raw_weights_of_such_a_file(fitted, tmp_path):
    fitted.save_weights(tmp_path / "m.weights.h5")
    plain = nets.built()
    plain.load_weights(tmp_path / "m.weights.h5")
    nets.assert_same(nets.weights(plain), nets.weights(fitted))


def test_a_file_without_the_average_is_refused_not_restarted_in_silence(fitted, tmp_path):
    nets.built().save_weights(tmp_path / "old.weights.h5")
    model = nets.built(nets.Averaged)
    before = model.ema.values()
    with pytest.raises(Exception, match="holds no average"):
        model.load_weights(tmp_path / "old.weights.h5")
    nets.assert_same(model.ema.values(), before)


def test_tensorflow_may_find_the_average_beside_the_model_too(fitted, tmp_path):
    """As after `fit`, whose callback leaves the average in the model."""
    path = tf.train.Checkpoint(model=fitted, ema=fitted.ema).write(str(tmp_path / "ckpt"))
    assert polyak.open(path).roles == ("raw", "optimizer", "average")
    for role, held in (("raw", nets.weights(fitted)), ("average", nets.averaged(fitted.ema))):
        other = nets.built()
        polyak.transfer(path, other, weights=role)
        nets.assert_same(nets.weights(other), held)


def test_a_model_that_is_never_saved_swapped(fitted, tmp_path):
    with fitted.ema.applied(), pytest.raises(polyak.errors.Applied, match="averaged values as raw"):
        fitted.save(tmp_path / "model.keras")
