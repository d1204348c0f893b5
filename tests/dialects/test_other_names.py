"""Files of Keras 2 and TF1, made by those, into Keras 3 models of the same build."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import polyak
from polyak.errors import AmbiguousMatch, MissingWeight

v1 = tf.compat.v1


def sequential(k: Any) -> Any:
    layers = [k.layers.Conv2D(4, 3), k.layers.BatchNormalization(), k.layers.Flatten()]
    model = k.Sequential([*layers, *(k.layers.Dense(8) for _ in range(2)), k.layers.Dense(3)])
    model.build((None, 8, 8, 1))
    return model


def functional(k: Any) -> Any:
    inputs = k.Input((6,))
    x = k.layers.Dense(6)(inputs)
    return k.Model(inputs, k.layers.Add()([k.layers.Dense(6, name="head")(x), k.layers.Dense(6)(x)]))


def nested(k: Any) -> Any:
    inputs = k.Input((6,))
    inner = k.Sequential([k.layers.Dense(6), k.layers.Dense(6), k.layers.LayerNormalization()])
    return k.Model(inputs, k.layers.Dense(6)(inner(inputs)))


def recurrent(k: Any) -> Any:
    inputs = k.Input((4, 6))
    x = k.layers.Bidirectional(k.layers.LSTM(3, return_sequences=True))(inputs)
    x = k.layers.MultiHeadAttention(2, 3)(x, x)
    return k.Model(inputs, k.layers.GRU(3)(x))


def subclassed(k: Any, widths: tuple[int, ...] = (4, 5)) -> Any:
    class Net(k.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.enc = k.layers.Dense(6)
            self.blocks = [k.layers.Dense(n) for n in widths]
            self.out = k.layers.Dense(2)

        def call(self, x: Any) -> Any:
            for layer in (self.enc, *self.blocks, self.out):
                x = layer(x)
            return x

    model = Net()
    model(np.zeros((1, 3), np.float32))
    return model


def filled(model: Any) -> Any:
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape).astype(np.float32) for w in model.get_weights()])
    return model


def old(build: Callable[[Any], Any], before: int = 3) -> Any:
    """A Keras 2 model whose automatic names do not begin at zero."""
    for _ in range(before):
        tf_keras.layers.Dense(2).build((1, 1))
    return filled(build(tf_keras))


WRITERS: dict[str, Callable[[Any, Path], Path]] = {
    "save_weights": lambda m, p: _saved(m.save_weights, p / "w"),
    "checkpoint": lambda m, p: _saved(tf.train.Checkpoint(model=m).write, p / "c"),
    "root": lambda m, p: _saved(tf.train.Checkpoint(m).write, p / "r"),
    "legacy": lambda m, p: _saved(m.save_weights, p / "w.h5"),
    "SavedModel": lambda m, p: _saved(lambda path: m.save(path, save_format="tf"), p / "s"),
}


def _saved(write: Callable[[str], Any], path: Path) -> Path:
    write(str(path))
    return path


@pytest.mark.filterwarnings("ignore:You are saving")
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("build", [sequential, functional, nested, recurrent, subclassed])
def test_a_keras_2_file_loads_into_its_keras_3_twin_without_help(
    build: Callable[[Any], Any], writer: str, tmp_path: Path
) -> None:
    model = old(build)
    twin = build(keras)
    polyak.transfer(WRITERS[writer](model, tmp_path), twin, weights="raw")
    for ours, theirs in zip(twin.get_weights(), model.get_weights(), strict=True):
        assert np.array_equal(ours, theirs)


def composed(k: Any, chains: int) -> Any:
    """A model that holds Sequential ones, whose layers have one shape and the name of an attribute of its own."""

    class Net(k.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.last = [k.Sequential([k.layers.Dense(6), k.layers.Dense(6)]) for _ in range(chains - 1)]
            self.first = k.Sequential([k.layers.Dense(6), k.layers.Dense(6)])
            self.dense = k.layers.Dense(6)

        def call(self, x: Any) -> Any:
            for layer in (self.first, *self.last, self.dense):
                x = layer(x)
            return x

    model = Net()
    model(np.zeros((1, 6), np.float32))
    return model


@pytest.mark.filterwarnings("ignore:You are saving")
@pytest.mark.parametrize("package", [keras, tf_keras], ids=["keras", "tf_keras"])
@pytest.mark.parametrize("writer", ["save_weights", "checkpoint", "root", "SavedModel"])
@pytest.mark.parametrize("chains", [1, 2])
def test_sequential_models_within_a_model_keep_the_attributes_that_hold_them(
    chains: int, writer: str, package: Any, tmp_path: Path
) -> None:
    model = old(lambda k: composed(k, chains))
    twin = composed(package, chains)
    polyak.transfer(WRITERS[writer](model, tmp_path), twin, weights="raw")
    x = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    np.testing.assert_allclose(twin(x), model(x), rtol=1e-5, atol=1e-5)
    found, wanted = polyak.snapshot(twin), polyak.snapshot(model)
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[path], wanted[path]) for path in wanted)


def attending(k: Any, beside: str = "output_dense") -> Any:
    """TensorFlow has the layers of an attention by their attributes, such as ``_query_dense``; Keras says ``query``."""

    class Net(k.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.attention = k.layers.MultiHeadAttention(2, 4)
            self.blocks = [k.layers.MultiHeadAttention(2, 4)]
            self.query_dense = k.layers.Dense(8)
            setattr(self, beside, k.layers.Dense(8))

        def call(self, x: Any) -> Any:
            for layer in (self.attention, *self.blocks):
                x = layer(x, x)
            return getattr(self, beside)(self.query_dense(x))

    model = Net()
    model(np.zeros((1, 5, 8), np.float32))
    return model


def nested_attention(k: Any) -> Any:
    inner = k.Input((5, 8))
    within = k.Model(inner, k.layers.Dense(8)(k.layers.MultiHeadAttention(2, 4)(inner, inner)))
    outer = k.Input((5, 8))
    return k.Model(outer, k.layers.Dense(3)(within(outer)))


@pytest.mark.filterwarnings("ignore:You are saving")
@pytest.mark.parametrize("package", [keras, tf_keras], ids=["keras", "tf_keras"])
@pytest.mark.parametrize("writer", ["save_weights", "checkpoint", "root"])
@pytest.mark.parametrize(("build", "held"), [(attending, 20), (nested_attention, 12)])
def test_an_attention_under_an_attribute_or_in_a_model_within_a_model_needs_no_rename(
    build: Any, held: int, writer: str, package: Any, tmp_path: Path
) -> None:
    model, twin = old(build), build(package)
    polyak.transfer(WRITERS[writer](model, tmp_path), twin, weights="raw")
    assert len(model.get_weights()) == held
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), twin.get_weights(), strict=True))


def test_layers_of_the_users_own_that_are_called_like_an_attentions_are_not_mixed_up(
    tmp_path: Path,
) -> None:
    path = WRITERS["checkpoint"](old(lambda k: attending(k, "query")), tmp_path)
    twin = attending(tf_keras, "query")
    with pytest.raises(MissingWeight):
        polyak.transfer(path, twin, weights="raw")


def test_layers_of_one_shape_under_attributes_are_refused_with_a_rename(tmp_path: Path) -> None:
    build = lambda k: subclassed(k, (6, 6))  # noqa: E731 - a builder like the others
    path = WRITERS["legacy"](old(build), tmp_path)
    with pytest.raises(MissingWeight, match="nearest: 'dense/kernel'\nhint: pair them with rename="):
        polyak.transfer(path, build(keras))


def test_another_count_or_shape_is_never_paired(tmp_path: Path) -> None:
    path = WRITERS["save_weights"](old(nested), tmp_path)
    inputs = keras.Input((6,))
    inner = keras.Sequential([keras.layers.Dense(6), keras.layers.LayerNormalization(), keras.layers.Dense(6)])
    with pytest.raises(MissingWeight):
        polyak.transfer(path, keras.Model(inputs, keras.layers.Dense(6)(inner(inputs))))


def test_layers_of_another_width_are_never_paired(tmp_path: Path) -> None:
    def two(k: Any, width: int) -> Any:
        return k.Sequential([k.Input((3,)), k.layers.Dense(6), k.layers.Dense(width)])

    tf1(tmp_path / "m", later(lambda k: two(k, 5), 3))
    with pytest.raises(MissingWeight, match=r"weight 'dense/kernel'.*nearest: 'dense_3/kernel'"):
        polyak.transfer(tmp_path / "m", two(keras, 4))


def in_itself(k: Any) -> Any:
    """A layer under the attribute that its owner is under, too: one step of its path follows another of its name."""

    class Inner(k.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = k.layers.Dense(6)
            self.others = [k.layers.Dense(6), k.layers.LayerNormalization(), k.layers.Dense(6)]

        def call(self, x: Any) -> Any:
            for layer in (self.inner, *self.others):
                x = layer(x)
            return x

    class Net(k.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def call(self, x: Any) -> Any:
            return self.inner(x)

    model = Net()
    model(np.zeros((1, 6), np.float32))
    return model


def numbered() -> polyak.Snapshot:
    """As many weights as the nested model has, of which nothing is known but numbers and shapes."""
    return polyak.Snapshot.from_arrays({f"w{i}": a for i, a in enumerate(nested(keras).get_weights())})


def test_weights_of_which_too_little_is_known_are_never_paired(tmp_path: Path) -> None:
    path, out = WRITERS["save_weights"](old(nested), tmp_path), tmp_path / "out.safetensors"
    for source, like in ((path, numbered()), (numbered(), path), (path, in_itself(keras))):
        with pytest.raises(MissingWeight):
            polyak.transfer(source, out, like=like)
    assert not out.exists()


def branches(k: Any, swapped: bool) -> Any:
    inputs = k.Input((6,))
    one, two = k.layers.Dense(6)(inputs), k.layers.Dense(6)(inputs)
    return k.Model(inputs, k.layers.Add()([two, one] if swapped else [one, two]))


def test_branches_that_were_created_in_another_order_are_refused(tmp_path: Path) -> None:
    path = WRITERS["save_weights"](filled(branches(tf_keras, False)), tmp_path)
    with pytest.raises(AmbiguousMatch, match="'dense_1/kernel' by creation"):
        polyak.transfer(path, branches(keras, True))


# --- TF1 -------------------------------------------------------------------------------------------------------------


def tf1(path: Path, build: Callable[[Any], Any], scope: str = "", decay: float | None = None) -> dict[str, Any]:
    """A graph of Keras 2 layers under a scope, saved by TF1's Saver; the values by the names of their variables."""
    with tf.Graph().as_default(), v1.Session() as session:
        with v1.variable_scope(scope) if scope else v1.name_scope(""):
            v1.get_variable("unused", [1])
            model = build(tf_keras)
        step = v1.train.get_or_create_global_step()
        session.run(v1.global_variables_initializer())
        filled_here(model, session)
        variables = [*model.weights, step]
        if decay is not None:
            average = v1.train.ExponentialMovingAverage(decay)
            update = average.apply(model.trainable_weights)
            session.run(v1.variables_initializer([average.average(w) for w in model.trainable_weights]))
            session.run(update)
            variables += [average.average(w) for w in model.trainable_weights]
        v1.train.Saver(variables).save(session, str(path), write_meta_graph=False)
        return {w.name: session.run(w) for w in model.weights}


def later(build: Callable[[Any], Any], before: int) -> Callable[[Any], Any]:
    """A model that is built after other layers: its automatic names do not begin at zero."""

    def made(k: Any) -> Any:
        for _ in range(before):
            k.layers.Dense(2).build((1, 1))
        return build(k)

    return made


def filled_here(model: Any, session: Any) -> None:
    rng = np.random.default_rng(0)
    for w in model.weights:
        w.load(rng.normal(size=w.shape).astype(np.float32), session)


@pytest.mark.parametrize("build", [sequential, functional, recurrent])
@pytest.mark.parametrize("before", [0, 3])
def test_a_tf1_saver_loads_into_the_keras_3_twin_without_help(
    build: Callable[[Any], Any], before: int, tmp_path: Path
) -> None:
    held = tf1(tmp_path / "m", later(build, before))
    twin = build(keras)
    receipt = polyak.transfer(tmp_path / "m", twin)
    assert len(receipt.moved) == len(held)
    for ours, theirs in zip(twin.get_weights(), held.values(), strict=True):
        assert np.array_equal(ours, theirs)


def test_the_average_of_tf1_arrives_the_same_way(tmp_path: Path) -> None:
    held = tf1(
        tmp_path / "m", lambda k: k.Sequential([k.layers.Dense(4, input_shape=(3,)), k.layers.Dense(4)]), "", 0.5
    )
    twin = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(4)])
    polyak.transfer(tmp_path / "m", twin, weights="average")
    values = dict(polyak.open(tmp_path / "m").select("average"))
    for ours, name in zip(twin.get_weights(), held, strict=True):
        assert np.array_equal(ours, values[name.removesuffix(":0")])


def test_variables_of_the_users_own_names_need_a_rename(tmp_path: Path) -> None:
    with tf.Graph().as_default(), v1.Session() as session:
        names = ("net/fc1/w", "net/fc1/b", "net/fc2/w", "net/fc2/b")
        shapes = ((3, 3), (3,), (3, 3), (3,))
        made = [v1.get_variable(n, s) for n, s in zip(names, shapes, strict=True)]
        session.run(v1.global_variables_initializer())
        v1.train.Saver(made).save(session, str(tmp_path / "m"), write_meta_graph=False)
    twin = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3), keras.layers.Dense(3)])
    with pytest.raises(MissingWeight, match="hint: pair them with rename="):
        polyak.transfer(tmp_path / "m", twin)
    rename = {"net/fc1/w": "dense/kernel", "net/fc1/b": "dense/bias", "net/fc2/w": "dense_1/kernel"}
    receipt = polyak.transfer(tmp_path / "m", twin, rename=rename | {"net/fc2/b": "dense_1/bias"})
    assert len(receipt.renamed) == 4


def test_branches_in_another_order_than_their_numbers_are_refused_with_both_readings(tmp_path: Path) -> None:
    held = tf1(tmp_path / "m", later(lambda k: branches(k, False), 3))
    assert {name.partition("/")[0] for name in held} == {"dense_3", "dense_4"}
    twin = branches(keras, True)
    with pytest.raises(AmbiguousMatch, match=r"'dense/kernel'.* two .*'dense_4/kernel' by order of the") as refused:
        polyak.transfer(tmp_path / "m", twin)
    assert "'dense_3/kernel' by order of the layers" in refused.value.message
    assert 'rename={"dense_4/kernel": "dense/kernel"}' in refused.value.hint
    receipt = polyak.transfer(tmp_path / "m", twin, rename={"dense_3/*": "dense/*", "dense_4/*": "dense_1/*"})
    assert len(receipt.renamed) == 4
