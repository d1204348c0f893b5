"""Recipe d: SavedModels that serve the average, and weights out of SavedModels."""

import keras
import nets
import numpy as np
import pytest
import tensorflow as tf

import polyak
import polyak.tensorflow
from polyak.errors import AmbiguousMatch, Applied


def _served(directory: object, inputs: np.ndarray) -> np.ndarray:
    signature = tf.saved_model.load(str(directory)).signatures["serving_default"]
    return next(iter(signature(tf.constant(inputs)).values())).numpy()


def test_the_export_serves_the_averaged_weights(trained, tmp_path):
    model, fast, _ = trained
    raw = nets.weights(model)
    polyak.tensorflow.export(fast, tmp_path / "served", nets.INPUTS)
    served = _served(tmp_path / "served", nets.INPUTS)
    np.testing.assert_allclose(served, fast(nets.INPUTS).numpy(), rtol=1e-5, atol=1e-6)
    assert np.abs(served - model(nets.INPUTS).numpy()).max() > 1e-4
    nets.assert_same(nets.weights(model), raw)


def test_what_was_exported_says_what_it_is_and_goes_into_a_live_model(trained, fresh, tmp_path):
    _, fast, _ = trained
    polyak.tensorflow.export(fast, tmp_path / "served", tf.TensorSpec((None, 3)))
    snap = polyak.open(tmp_path / "served")
    assert snap.roles == ("average",)
    assert snap.state == fast.state
    polyak.transfer(tmp_path / "served", fresh)
    nets.assert_same(nets.weights(fresh), nets.averaged(fast))


def test_a_module_is_exported_too(tmp_path):
    class Affine(tf.Module):
        def __init__(self):
            super().__init__()
            self.w, self.b = tf.Variable([[2.0]]), tf.Variable([1.0])

        @tf.function
        def __call__(self, x):
            return x @ self.w + self.b

    module = Affine()
    ema = polyak.EMA(module, decay=0.5)
    for _ in range(4):
        module.w.assign_add([[1.0]])
        ema.update()
    polyak.tensorflow.export(ema, tmp_path / "served", tf.ones((1, 1)))
    assert _served(tmp_path / "served", np.ones((3, 1), np.float32)).tolist() == ema(tf.ones((3, 1))).numpy().tolist()
    other = Affine()
    polyak.transfer(tmp_path / "served", other)
    assert other.w.numpy().tobytes() == ema.values()["w"].tobytes()
    assert float(module.w[0, 0]) == 6.0


class Stepping(tf.Module):
    """A module that holds its average and moves it in a traced step of its own."""

    def __init__(self, several=False):
        super().__init__()
        self.w = tf.Variable(tf.zeros((2,)))
        self.ema = polyak.Averages(self, {"slow": "ema:0.5"}) if several else polyak.EMA(self, 0.5)

    def __call__(self, x):
        return x + self.w

    @tf.function(input_signature=[tf.TensorSpec((2,))])
    def step(self, x):
        self.w.assign_add(x)
        self.ema.update()
        return self(x)

    @tf.function(input_signature=[tf.TensorSpec((2,))])
    def averaged(self, x):
        return self.slow()(x)

    def slow(self):
        return self.ema["slow"] if isinstance(self.ema, polyak.Averages) else self.ema


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_a_module_with_a_traced_step_is_saved_with_the_average_that_the_step_moves(tmp_path, several):
    module, x = Stepping(several), tf.constant([1.0, 2.0])
    module.step(x)
    tf.saved_model.save(module, str(tmp_path / "saved"))
    held = polyak.open(tmp_path / "saved")
    average = module.slow()
    assert {r.partition(":")[0]: held.select(role=r)["w"].tolist() for r in held.roles} == {
        "raw": [1.0, 2.0],
        "average": average.values()["w"].tolist(),
    }
    assert held.select(role=held.roles[1]).state == average.state
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    assert loaded.step(x).numpy().tolist() == module.step(x).numpy().tolist()
    assert loaded.averaged(x).numpy().tolist() == module.averaged(x).numpy().tolist()
    with average.applied(), pytest.raises(Applied, match="would hold averaged values as raw weights"):
        tf.saved_model.save(module, str(tmp_path / "applied"))


def _two_inputs(several):
    one, two = keras.Input((2,), name="one"), keras.Input((3,), name="two")
    head = keras.layers.Dense(1)(keras.layers.Concatenate()([one, two]))
    ema = polyak.EMA(keras.Model(several(one=one, two=two), head), decay=0.9)
    ema.update()
    return ema


def test_a_model_of_named_inputs_is_served_by_their_names(tmp_path):
    ema = _two_inputs(dict)
    inputs = {"one": np.ones((1, 2), "float32"), "two": np.ones((1, 3), "float32")}
    polyak.tensorflow.export(ema, tmp_path / "served", inputs)
    served = tf.saved_model.load(str(tmp_path / "served")).signatures["serving_default"]
    batch = {name: tf.constant(np.repeat(x, 5, axis=0)) for name, x in inputs.items()}
    (answer,) = served(**batch).values()
    np.testing.assert_allclose(answer, ema(batch), rtol=1e-6)


def test_a_model_of_a_list_of_inputs_is_served(tmp_path):
    ema = _two_inputs(lambda one, two: [one, two])
    inputs = [np.ones((1, 2), "float32"), tf.TensorSpec((None, 3), name="two")]
    polyak.tensorflow.export(ema, tmp_path / "served", inputs)
    served = tf.saved_model.load(str(tmp_path / "served")).signatures["serving_default"]
    batch = [tf.ones((5, 2)), tf.ones((5, 3))]
    (answer,) = served(inputs_0=batch[0], two=batch[1]).values()
    np.testing.assert_allclose(answer, ema(batch), rtol=1e-6)


class Keyed(keras.Model):
    def __init__(self, key):
        super().__init__()
        self.heads = {key: keras.layers.Dense(1)}

    def call(self, x):
        for head in self.heads.values():
            x = head(x)
        return x


def with_table():
    class Embedding(tf.Module):
        def __init__(self):
            super().__init__()
            self.w = tf.Variable([[1.0], [2.0], [4.0]])
            words = tf.lookup.KeyValueTensorInitializer(["a", "b"], [1, 2])
            self.words = tf.lookup.StaticHashTable(words, 0)

        def __call__(self, x):
            return tf.gather(self.w, self.words.lookup(x))

    return Embedding()


def looking_up():
    words = keras.Input((1,), dtype="string")
    numbers = keras.layers.StringLookup(vocabulary=["a", "b"])(words)
    return keras.Model(words, keras.layers.Embedding(3, 2)(numbers))


@pytest.mark.parametrize("made", [with_table, looking_up])
def test_a_model_that_looks_words_up_is_exported(made, tmp_path):
    ema = polyak.EMA(made(), 0.5)
    polyak.tensorflow.export(ema, tmp_path / "served", tf.constant([["a"]]))
    served = tf.saved_model.load(str(tmp_path / "served")).signatures["serving_default"]
    (found,) = served(tf.constant([["b"]])).values()
    np.testing.assert_array_equal(found, ema(tf.constant([["b"]])))


@pytest.mark.parametrize("key", ["größe", "_private", "a b", "*"])
def test_weights_of_any_path_are_exported(tmp_path, key):
    x = np.ones((1, 3), "float32")
    model, other = Keyed(key), Keyed(key)
    model(x), other(x)
    ema = polyak.EMA(model, decay=0.5)
    polyak.tensorflow.export(ema, tmp_path / "served", x)
    polyak.transfer(tmp_path / "served", other)
    nets.assert_same(nets.weights(other), nets.averaged(ema))


def test_an_export_without_a_sample_asks_for_one(trained, tmp_path):
    _, fast, _ = trained
    with pytest.raises(polyak.errors.ModelError) as caught:
        polyak.tensorflow.export(fast, tmp_path / "served")
    assert (
        caught.value.hint == "export(average, directory, x) with a batch x of inputs, or a tf.TensorSpec for each input"
    )


def test_an_export_is_of_an_average(trained, tmp_path):
    model, fast, _ = trained
    for other in (model, fast.snapshot()):
        with pytest.raises(polyak.errors.ModelError, match="expected an average of a TensorFlow model, received"):
            polyak.tensorflow.export(other, tmp_path / "served", nets.INPUTS)
    assert list(tmp_path.iterdir()) == []


def test_an_export_takes_no_directory_in_use(trained, tmp_path):
    _, fast, _ = trained
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(polyak.errors.FileError, match="expected no or an empty directory"):
        polyak.tensorflow.export(fast, tmp_path, nets.INPUTS)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("how", ["keras", "tensorflow"])
def test_weights_in_a_foreign_saved_model_go_into_a_live_model(trained, fresh, tmp_path, how):
    """Keras' export numbers the weights, TensorFlow's names them: both arrive."""
    model, fast, _ = trained
    with fast.applied():
        if how == "keras":
            model.export(str(tmp_path / "m"), verbose=False)
        else:
            tf.saved_model.save(model, str(tmp_path / "m"))
    polyak.transfer(tmp_path / "m", fresh)
    nets.assert_same(nets.weights(fresh), nets.averaged(fast))


class _Unnamed(keras.layers.Layer):
    """Variables without names, which Keras numbers through the whole process."""

    def __init__(self):
        super().__init__()
        self.scale = keras.Variable(np.ones(3, "float32"))
        self.shifts = [keras.Variable(np.zeros(3, "float32")), keras.Variable(np.zeros(3, "float32"))]

    def call(self, x):
        return x * self.scale + self.shifts[0] - self.shifts[1]


def test_variables_without_names_in_an_export_of_keras_go_into_a_live_model(tmp_path):
    model, other = (keras.Sequential([keras.Input((3,)), _Unnamed(), keras.layers.Dense(3)]) for _ in range(2))
    for i, variable in enumerate(model.weights):
        variable.assign(np.full(variable.shape, i, "float32"))
    model.export(str(tmp_path / "m"), verbose=False)
    polyak.transfer(tmp_path / "m", other)
    nets.assert_same(nets.weights(other), nets.weights(model))


def _chain(*names: str | None) -> keras.Model:
    layers = [keras.layers.Dense(3, name=n, bias_initializer="normal") for n in names]
    return keras.Sequential([keras.layers.Input((3,)), layers[0], keras.layers.Dropout(0.1), *layers[1:]])


@pytest.mark.parametrize("names", [(None, None, None), ("one", "two", "head")], ids=["automatic", "explicit"])
def test_a_sequential_saved_model_pairs_by_its_names(tmp_path, names):
    source, target = _chain(*names), _chain(*names)
    tf.saved_model.save(source, str(tmp_path / "m"))
    polyak.transfer(tmp_path / "m", target)
    for a, b in zip(source.get_weights(), target.get_weights(), strict=True):
        assert a.tobytes() == b.tobytes()


def test_numbered_names_that_could_be_automatic_pair_by_place_and_are_heard(tmp_path):
    names = ("block_1", "block_2", "block_3")
    source, target = _chain(*names), _chain(*names)
    tf.saved_model.save(source, str(tmp_path / "m"))
    polyak.transfer(tmp_path / "m", target)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(source.get_weights(), target.get_weights(), strict=True))
    other = _chain("block_2", "block_1", "block_3")
    before = other.get_weights()
    with pytest.raises(polyak.errors.WeightError, match="names of the layers"):
        polyak.transfer(tmp_path / "m", other)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(before, other.get_weights(), strict=True))
    polyak.transfer(tmp_path / "m", other, by="name")
    by_name = {layer.name: layer.get_weights() for layer in source.layers}
    for layer in (layer for layer in other.layers if layer.weights):
        assert all(np.array_equal(a, b) for a, b in zip(layer.get_weights(), by_name[layer.name], strict=True))


def test_what_is_beside_a_list_called_variables_is_read(tmp_path):
    """Keras' export has such a list, and so may any checkpoint: what is in no list keeps its name."""
    listed, other = [tf.Variable([1.0]), tf.Variable([2.0])], tf.Variable([3.0])
    held = polyak.open(tf.train.Checkpoint(variables=listed, scale=other).write(str(tmp_path / "a")))
    assert {n: held.select(role="raw")[n].tolist() for n in held.select(role="raw")} == {
        "scale": [3.0],
        "#0": [1.0],
        "#1": [2.0],
    }


def test_metrics_in_a_saved_model_of_keras_2_are_state_of_training(tmp_path):
    import tf_keras

    model = tf_keras.Sequential([tf_keras.layers.InputLayer((2,)), tf_keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
    model.save(tmp_path / "a", save_format="tf")
    held = polyak.open(tmp_path / "a")
    assert len(held.select(role="raw")) == 2
    assert [w.path for w in held.select(role="training").weights] == [
        f"keras_api/metrics/{i}/{name}" for i in range(2) for name in ("count", "total")
    ]
    assert held.manifest.note == ""


def test_a_file_of_a_module_is_not_said_to_lack_layers_of_keras(tmp_path):
    module = tf.Module()
    module.w = tf.Variable([1.0])
    held = polyak.open(tf.train.Checkpoint(module=module).write(str(tmp_path / "a")))
    assert held.manifest.note.startswith("if a Keras 3 model is in it: ")
    assert "its writer may leave something out" in [f.what for f in polyak.doctor(held)]


def _crossing(order):
    """Three layers of one shape, applied in this order."""
    layers = {name: keras.layers.Dense(4, name=name) for name in "abc"}
    x = inputs = keras.Input((4,))
    for name in order:
        x = layers[name](x)
    return keras.Model(inputs, x)


def test_an_export_that_numbers_its_weights_is_not_paired_against_the_names_of_its_layers(tmp_path):
    model, other = _crossing("abc"), _crossing("cab")
    model.export(tmp_path / "served", verbose=False)
    before = nets.weights(other)
    with pytest.raises(AmbiguousMatch, match=r"'c/kernel'.*'#0' by position and '#4' by name") as caught:
        polyak.transfer(tmp_path / "served", other)
    assert 'by="position" or by="name"' in caught.value.hint
    nets.assert_same(nets.weights(other), before)
    polyak.transfer(tmp_path / "served", other, by="name")
    for name in "abc":
        np.testing.assert_array_equal(other.get_layer(name).kernel, model.get_layer(name).kernel)
    polyak.transfer(tmp_path / "served", other, by="position")
    np.testing.assert_array_equal(other.get_layer("c").kernel, model.get_layer("a").kernel)


def test_an_export_of_automatic_names_goes_into_another_instance(tmp_path):
    def made():
        inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(4)])
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), inner, keras.layers.Dense(4, name="head")])

    model, other = made(), made()
    model.export(tmp_path / "served", verbose=False)
    polyak.transfer(tmp_path / "served", other)
    nets.assert_same(nets.weights(other), nets.weights(model))
