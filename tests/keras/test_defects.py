"""K3, K4, K6, K9 to K13, K15, K18, K19, K21, K22: Keras' own averages and files, and polyak in the same situation."""

from __future__ import annotations

import re
import warnings
import zipfile
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from tests.keras.peers import (
    BACKEND,
    Record,
    X,
    adam,
    averaging_adam,
    by_position,
    close,
    network,
    one_ema,
    same,
    slots,
    still_fails,
    train,
)

import polyak
from polyak.errors import AmbiguousMatch, PolyakError, ShapeMismatch, WeightsChanged
from polyak.keras import Averaging


def moved_by_one(**settings: Any) -> tuple[Any, Any]:
    """An optimizer whose every update adds one to its weight, which begins at zero."""
    weight = keras.Variable(np.zeros(2, np.float32))
    optimizer = keras.optimizers.SGD(1.0, use_ema=True, **settings)
    optimizer.build([weight])
    return weight, optimizer


def step(weight: Any, optimizer: Any, gradient: float = -1.0) -> None:
    optimizer.apply([keras.ops.convert_to_tensor(np.full(2, gradient), dtype=weight.dtype)], [weight])


def average_of(optimizer: Any) -> float:
    return float(keras.ops.convert_to_numpy(optimizer._model_variables_moving_average[0]).astype(np.float64)[0])


def test_k3_keras_moves_the_average_at_every_micro_step() -> None:
    weight, optimizer = moved_by_one(ema_momentum=0.9, gradient_accumulation_steps=4)
    for _ in range(12):
        step(weight, optimizer)
    right = 0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 3
    still_fails("K3", not np.isclose(average_of(optimizer), right, atol=1e-3))
    assert average_of(optimizer) == pytest.approx(0.9 * (1.1 * 0.9**3 + 2 * (1 - 0.9**3)) + 0.1 * 3, abs=1e-5)


def test_k3_polyak_counts_real_updates() -> None:
    model, record = network(adam(gradient_accumulation_steps=4)), Record()
    averaging = Averaging("ema:0.9,start=copy")
    train(model, 12, averaging, record)
    assert averaging.average.count == 3
    assert close(by_position(averaging.average), one_ema(record.steps[3::4]))


def test_k4_keras_average_of_a_narrow_weight_never_moves() -> None:
    weight = keras.Variable(np.ones(2), dtype="bfloat16")
    optimizer = keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.999)
    optimizer.build([weight])
    step(weight, optimizer, 0.0)
    weight.assign(np.full(2, 1.25, np.float32))
    for _ in range(100):
        step(weight, optimizer, 0.0)
    still_fails("K4", average_of(optimizer) == 1.0)


def test_k4_polyak_average_of_a_narrow_weight_moves_in_float32() -> None:
    layer = layers.Dense(2, dtype="bfloat16")
    layer.build((None, 2))
    layer.set_weights([np.ones((2, 2)), np.ones(2)])
    ema = polyak.EMA(layer, 0.999, start="copy")
    ema.update()
    layer.set_weights([np.full((2, 2), 1.25), np.full(2, 1.25)])
    for _ in range(100):
        ema.update()
    value = ema.values()["kernel"]
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, 1.25 - 0.25 * 0.999**100, rtol=1e-6)


def test_k6_keras_after_freezing_a_layer_pairs_the_wrong_average_or_fails_at_the_end() -> None:
    one, other = layers.Dense(3), layers.Dense(3)
    model = keras.Sequential([keras.Input((3,)), one, other])
    model.compile(averaging_adam(), "mse", run_eagerly=True)
    model.fit(X, X, verbose=0)
    one.trainable = False
    of_the_frozen = slots(model)[0]
    if BACKEND == "tensorflow":
        model.fit(X, X, verbose=0)
        still_fails("K6", np.allclose(other.get_weights()[0], of_the_frozen, atol=1e-5))
    else:
        raised = None
        try:
            model.fit(X, X, verbose=0)
        except (ValueError, IndexError, KeyError) as error:
            raised = error
        still_fails("K6", raised is not None)


def test_k6_polyak_keeps_pairs_when_a_layer_is_frozen() -> None:
    model, record = network(adam()), Record()
    averaging = Averaging("ema:0.9,start=copy")
    train(model, 3, averaging, record)
    model.layers[0].trainable = False
    model.compile(adam(), "mse", run_eagerly=True)
    train(model, 3, averaging, record)
    frozen_to_the_end = [*model.layers[0].weights, *model.layers[1].weights, *model.layers[2].weights]
    order = [[id(v) for v in model.weights].index(id(v)) for v in frozen_to_the_end]
    values = averaging.average.values()
    names = ["a/kernel", "a/bias", "b/kernel", "b/bias", "head/kernel", "head/bias"]
    # Keras lists frozen weights last; the record is in the order of its time.
    turned = [record.steps[i] if i < 3 else [record.steps[i][j] for j in order] for i in range(6)]
    assert averaging.average.count == 6
    assert close([values[n] for n in names], one_ema(turned))


def old_checkpoint(path: Any) -> Any:
    """A run without an average, and its file."""
    model = network(adam())
    train(model, 4)
    model.save_weights(path)
    return model


def test_k9_keras_drops_the_optimizers_state_when_an_average_is_switched_on(tmp_path: Any) -> None:
    old_checkpoint(tmp_path / "old.weights.h5")
    model = network(averaging_adam())
    model.optimizer.build(model.trainable_variables)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.load_weights(tmp_path / "old.weights.h5")
    dropped = [str(w.message) for w in said if "Skipping variable loading for optimizer" in str(w.message)]
    still_fails("K9", bool(dropped) and int(model.optimizer.iterations.numpy()) == 0)


def test_k9_polyak_begins_an_average_on_an_old_checkpoint_with_its_optimizer(tmp_path: Any) -> None:
    old = old_checkpoint(tmp_path / "old.weights.h5")
    model, averaging, record = network(adam()), Averaging("ema:0.9,start=copy"), Record()
    model.optimizer.build(model.trainable_variables)
    model.load_weights(tmp_path / "old.weights.h5")
    for mine, own in zip(model.optimizer.variables, old.optimizer.variables, strict=True):
        np.testing.assert_array_equal(mine.numpy(), own.numpy())
    train(model, 3, averaging, record)
    assert int(model.optimizer.iterations.numpy()) == 7
    assert averaging.average.count == 3
    assert close(by_position(averaging.average), one_ema(record.steps))


def test_k10_keras_starts_a_fresh_average_at_zero_when_steps_were_counted() -> None:
    weight, optimizer = moved_by_one(ema_momentum=0.9)
    weight.assign(np.full(2, 10.0, np.float32))
    optimizer.iterations.assign(1000)
    step(weight, optimizer)
    still_fails("K10", np.isclose(average_of(optimizer), 1.1, atol=1e-4))


def test_k10_polyaks_own_count_decides() -> None:
    model, averaging, record = network(adam()), Averaging("ema:0.9,start=copy"), Record()
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(1000)
    train(model, 1, averaging, record)
    assert averaging.average.count == 1
    assert same(by_position(averaging.average), record.steps[0])


def test_k11_keras_average_stays_on_the_old_weights() -> None:
    model = network()
    train(model, 2)
    before = slots(model)
    model.set_weights([np.zeros_like(w) for w in model.get_weights()])
    still_fails("K11", same(slots(model), before))


def test_k11_polyak_starts_again_from_new_weights() -> None:
    model, averaging = network(adam()), Averaging("ema:0.9,start=copy")
    train(model, 2, averaging)
    model.set_weights([np.full_like(w, 7.0) for w in model.get_weights()])
    averaging.average.reset()
    assert averaging.average.count == 0
    assert same(by_position(averaging.average), model.get_weights())


def test_k11_polyak_says_that_weights_have_jumped() -> None:
    model, averaging = network(adam()), Averaging("ema:0.9,start=copy")
    train(model, 2, averaging)
    with warnings.catch_warnings():
        warnings.simplefilter("error", WeightsChanged)
        train(model, 2, averaging)
    model.set_weights([np.full_like(w, 7.0) for w in model.get_weights()])
    with pytest.warns(WeightsChanged, match="6 of 6 weights .* have been changed since the last update"):
        train(model, 2, averaging)


def test_k12_pairing_by_zip_with_a_frozen_teacher_pairs_nothing() -> None:
    student, teacher = network(adam()), network(adam())
    teacher.trainable = False
    paired = list(zip(student.trainable_variables, teacher.trainable_variables, strict=False))
    still_fails("K12", paired == [])


def test_k12_polyak_pairs_a_frozen_teacher_whole_and_refuses_a_part() -> None:
    student, teacher = network(adam()), network(adam())
    teacher.trainable = False
    assert len(polyak.transfer(student, teacher).moved) == 6
    assert same([w.numpy() for w in student.weights], [w.numpy() for w in teacher.weights])
    smaller = keras.Sequential([keras.Input((3,)), layers.Dense(3, name="a")])
    raw = smaller.get_weights()
    with pytest.raises(PolyakError):
        polyak.transfer(student, smaller)
    assert same(smaller.get_weights(), raw)


class Branches(keras.Model):
    """Two layers of one shape in a dictionary, in the order of the argument."""

    def __init__(self, names: tuple[str, str]) -> None:
        super().__init__()
        self.branches = {name: layers.Dense(3) for name in names}
        self.build((None, 3))

    def build(self, shape: Any) -> None:
        for layer in self.branches.values():
            layer.build(shape)
        self.built = True

    def call(self, x: Any) -> Any:
        return self.branches["one"](x) - self.branches["two"](x)

    def kernel(self, name: str) -> Any:
        return self.branches[name].get_weights()[0]


def test_k13_keras_files_exchange_layers_of_one_shape_in_another_order(tmp_path: Any) -> None:
    source, target = Branches(("one", "two")), Branches(("two", "one"))
    source.save_weights(tmp_path / "w.weights.h5")
    target.load_weights(tmp_path / "w.weights.h5")
    still_fails("K13", np.array_equal(target.kernel("one"), source.kernel("two")))


@pytest.mark.parametrize("way", ["live", "file", "average"])
def test_k13_polyak_matches_layers_of_one_shape_by_structure(way: str, tmp_path: Any) -> None:
    source, target = Branches(("one", "two")), Branches(("two", "one"))
    given: Any = source
    if way == "file":
        polyak.save(source, tmp_path / "w.safetensors")
        given = tmp_path / "w.safetensors"
    elif way == "average":
        given = polyak.EMA(source, 0.9, start="copy")
        given.update()
    polyak.transfer(given, target)
    for name in ("one", "two"):
        np.testing.assert_array_equal(target.kernel(name), source.kernel(name))


def test_k15_keras_names_repeat_and_paths_differ_between_instances() -> None:
    def made() -> Any:
        return keras.Sequential([keras.Input((3,)), layers.Dense(3), layers.Dense(3)])

    one, other = made(), made()
    still_fails("K15", len({v.name for v in one.weights}) == 2 < len(one.weights))
    still_fails("K15", {v.path for v in one.weights} != {v.path for v in other.weights})
    paths = [[w.path for w in polyak.snapshot(m).weights] for m in (one, other)]
    assert paths[0] == paths[1] == ["dense/kernel", "dense/bias", "dense_1/kernel", "dense_1/bias"]


def narrower() -> tuple[Any, Any]:
    """Two models that differ in the last layer's shape alone."""
    models = [keras.Sequential([keras.Input((3,)), layers.Dense(3), layers.Dense(units)]) for units in (1, 2)]
    return models[0], models[1]


def test_k18_keras_has_written_a_part_when_it_raises() -> None:
    source, target = narrower()
    before = target.get_weights()
    with pytest.raises(ValueError, match="not compatible"):
        target.set_weights(source.get_weights())
    still_fails("K18", not same(target.get_weights(), before))


def test_k18_polyak_writes_all_or_nothing() -> None:
    source, target = narrower()
    before = target.get_weights()
    with pytest.raises(ShapeMismatch, match=re.escape("dense_1/kernel")):
        polyak.transfer(source, target)
    assert same(target.get_weights(), before)


def test_k19_keras_seeks_backwards_in_an_archive_and_polyak_reads_it_once(tmp_path: Any, monkeypatch: Any) -> None:
    model = network(adam())
    model.save(tmp_path / "m.keras")
    backwards = []
    seek = zipfile.ZipExtFile.seek

    def counted(file: Any, offset: int, whence: int = 0) -> int:
        backwards.append(whence == 0 and offset < file.tell())
        return seek(file, offset, whence)

    monkeypatch.setattr(zipfile.ZipExtFile, "seek", counted)
    polyak.open(tmp_path / "m.keras").copy()
    assert not any(backwards)
    model.load_weights(tmp_path / "m.keras")
    still_fails("K19", sum(backwards) > 3)


def summed(first: str) -> Any:
    """Two named branches whose sum is written in either order."""
    x = keras.Input((3,))
    branches = {name: layers.Dense(3, name=name)(x) for name in ("left", "right")}
    pair = [branches[first], branches["left" if first == "right" else "right"]]
    return keras.Model(x, layers.Add()(pair))


def test_k21_keras_files_exchange_named_branches_and_polyak_does_not(tmp_path: Any) -> None:
    source, target = summed("left"), summed("right")
    source.save_weights(tmp_path / "w.weights.h5")
    target.load_weights(tmp_path / "w.weights.h5")
    kernels = {m: {n: m.get_layer(n).get_weights()[0] for n in ("left", "right")} for m in (source, target)}
    still_fails("K21", np.array_equal(kernels[target]["left"], kernels[source]["right"]))
    polyak.transfer(source, target)
    for name in ("left", "right"):
        np.testing.assert_array_equal(target.get_layer(name).get_weights()[0], kernels[source][name])


class Listed(keras.Model):
    """Layers of one shape in a list, with a dropout among them or without."""

    def __init__(self, *, dropout: bool) -> None:
        super().__init__()
        dense = [layers.Dense(3) for _ in range(3)]
        self.blocks = [dense[0], layers.Dropout(0.5), *dense[1:]] if dropout else dense
        self.dense = tuple(dense)

    def call(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return x


def test_k21_an_index_in_a_list_alone_pairs_wrong_weights_and_polyak_refuses_with_both_candidates() -> None:
    plain, other = Listed(dropout=False), Listed(dropout=True)
    for model in (plain, other):
        model(np.zeros((1, 3), np.float32))
    # The attribute path "blocks/2" is the third dense layer of one and the second of the other.
    assert plain.blocks[2] is plain.dense[2]
    assert other.blocks[2] is other.dense[1]
    before = [w.numpy() for w in other.weights]
    candidates = "'blocks/2/kernel' by path and 'blocks/1/kernel' by structure"
    with pytest.raises(AmbiguousMatch, match=candidates):
        polyak.transfer(plain, other)
    assert same([w.numpy() for w in other.weights], before)
    polyak.transfer(plain, other, by="structure")
    for one, two in zip(plain.dense, other.dense, strict=True):
        np.testing.assert_array_equal(one.get_weights()[0], two.get_weights()[0])


@pytest.mark.skipif(BACKEND != "torch", reason="an array that aliases the live weight is of the torch backend alone")
def test_k22_an_array_of_a_torch_weight_changes_with_it() -> None:
    layer = layers.Dense(2)
    layer.build((None, 2))
    seen = np.asarray(layer.kernel.value.detach())
    layer.kernel.assign(np.full((2, 2), 5.0, np.float32))
    still_fails("K22", bool((seen == 5.0).all()))


@pytest.mark.skipif(BACKEND != "jax", reason="arrays are deleted by donation on the JAX backend alone")
def test_k22_a_kept_jax_array_is_deleted_by_fit() -> None:
    model = network(adam())
    model.compile(adam(), "mse")
    kept = model.weights[0].value
    train(model, 1)
    still_fails("K22", kept.is_deleted())


def test_k22_polyaks_snapshots_and_values_are_copies() -> None:
    model = network(adam())
    model.compile(adam(), "mse", jit_compile=BACKEND == "jax")
    averaging = Averaging("ema:0.9,start=copy")
    averaging.set_model(model)
    snap, values = polyak.snapshot(model), averaging.average.values()
    held = {path: snap[path].tobytes() for path in snap}
    train(model, 2, averaging)
    assert {path: snap[path].tobytes() for path in snap} == held
    assert {path: value.tobytes() for path, value in values.items()} == held


def test_k22_a_buffer_that_was_handed_over_may_change_afterwards() -> None:
    model = network(adam())
    ema = polyak.EMA(model, 0.9, start="copy")
    given = {path: np.full_like(value, 2.0) for path, value in ema.values().items()}
    ema.set_values(given)
    for value in given.values():
        value[...] = -1.0
    assert all((value == 2.0).all() for value in ema.values().values())
