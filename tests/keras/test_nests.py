"""Weights and averages out of TensorFlow's own checkpoints of nested Keras models, into another instance."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from tests.keras.nests import NESTS, WIDTH, built, dense, expected
from tests.keras.zoo import BACKEND, as_weights, assert_same_bits, values

import polyak
from polyak.errors import AmbiguousMatch, MissingWeight

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::polyak.errors.ImmatureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints, which only Keras on TensorFlow writes."""
    pytest.importorskip("tensorflow")
    made = tmp_path_factory.mktemp("nests")
    command = [sys.executable, "-m", "tests.keras.nests", str(made)]
    env = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return made


def _seeds_aside(held: Any) -> dict[str, Any]:
    return {path: value for path, value in dict(held).items() if not path.endswith("seed_generator/state")}


@pytest.mark.parametrize("role", ["raw", "average"])
@pytest.mark.parametrize("name", NESTS)
def test_every_weight_arrives_in_another_instance(name: str, role: str, folder: Path) -> None:
    model = built(name)
    polyak.transfer(folder / name, model, weights=role)
    assert_same_bits(_seeds_aside(values(model)), _seeds_aside(expected(name, role, folder)))


def test_weights_arrive_in_a_live_average(folder: Path) -> None:
    ema = polyak.track(built("Subclassed"), "ema:0.9")
    polyak.transfer(folder / "Subclassed", ema, weights="raw")
    assert_same_bits(_seeds_aside(ema.values()), _seeds_aside(expected("Subclassed", "raw", folder)))


def test_a_part_of_the_model_can_be_asked_for(folder: Path) -> None:
    model = built("functional_in_functional")
    before = values(model)
    polyak.transfer(folder / "functional_in_functional", model, weights="average", include="tail/*")
    wanted = expected("functional_in_functional", "average", folder)
    mixed = {path: wanted[path] if path.startswith("tail/") else value for path, value in before.items()}
    assert_same_bits(values(model), mixed)


def test_the_file_says_what_it_holds(folder: Path) -> None:
    held = polyak.open(folder / "functional_of_blocks")
    assert set(held.roles) == {"raw", "average", "optimizer"}
    assert "use_ema" in held.manifest.evidence[0]
    assert held.manifest.confidence == "inferred"


# --- what only TensorFlow can write -----------------------------------------------------------------------------------

writes = pytest.mark.skipif(BACKEND != "tensorflow", reason="only Keras on TensorFlow writes TensorFlow's checkpoints")


def _written(path: Path, **held: Any) -> str:
    import tensorflow as tf

    return str(tf.train.Checkpoint(**held).write(str(path)))


def _branches(first: str, second: str) -> Any:
    x = keras.Input((WIDTH,))
    one, two = (keras.Sequential([keras.Input((WIDTH,)), dense(), dense()], name=n) for n in (first, second))
    return keras.Model(x, keras.layers.Subtract()([one(x), two(x)]))


@writes
def test_named_models_that_changed_places_are_told_by_their_names(tmp_path: Path) -> None:
    path = _written(tmp_path / "a", model=_branches("left", "right"))
    target = _branches("right", "left")
    before = values(target)
    with pytest.raises(AmbiguousMatch, match="names of the layers"):
        polyak.transfer(path, target)
    assert_same_bits(values(target), before)
    polyak.transfer(path, _branches("left", "right"))


def _parts(order: tuple[int, int]) -> Any:
    parts = [keras.Sequential([keras.Input((WIDTH,)), dense(), dense()]) for _ in range(2)]
    return keras.Sequential([keras.Input((WIDTH,)), *(parts[i] for i in order)])


@writes
def test_models_that_were_made_in_another_order_are_refused(tmp_path: Path) -> None:
    path = _written(tmp_path / "a", model=_parts((0, 1)))
    with pytest.raises(AmbiguousMatch, match="names of the layers"):
        polyak.transfer(path, _parts((1, 0)))
    polyak.transfer(path, _parts((0, 1)))


@writes
def test_of_two_models_of_one_structure_one_must_be_left_out(tmp_path: Path) -> None:
    left, right, target = (built("sequential_in_sequential") for _ in range(3))
    path = _written(tmp_path / "a", left=left, right=right)
    with pytest.raises(AmbiguousMatch, match="'left/', 'right/'") as error:
        polyak.transfer(path, target)
    assert 'exclude="right/*"' in error.value.hint
    polyak.transfer(path, target, exclude="right/*")
    assert_same_bits(values(target), values(left))


@writes
def test_a_model_that_is_called_the_average_of_another_is_one(tmp_path: Path) -> None:
    student, teacher, target = (built("sequential_in_sequential") for _ in range(3))
    path = _written(tmp_path / "a", student=student, teacher=teacher)
    for role, model in (("average", teacher), ("raw", student)):
        polyak.transfer(path, target, weights=role)
        assert_same_bits(values(target), values(model))


@writes
def test_a_model_that_lacks_a_layer_of_the_file_is_refused(tmp_path: Path) -> None:
    path = _written(tmp_path / "a", model=built("functional_of_blocks"))
    x = keras.Input((WIDTH,))
    with pytest.raises(MissingWeight):
        polyak.transfer(path, keras.Model(x, keras.Sequential([dense(), dense()])(x)))


@writes
def test_averages_that_have_not_moved_are_not_offered(tmp_path: Path) -> None:
    """Keras' averages are zero until the first step."""
    model = built("sequential_in_sequential")
    model.compile(optimizer := keras.optimizers.SGD(use_ema=True), "mse")
    optimizer.build(model.trainable_variables)
    held = polyak.open(_written(tmp_path / "a", model=model, optimizer=optimizer))
    assert "average" not in held.roles
    assert "have not moved" in held.manifest.evidence[0]


@writes
def test_averages_under_a_scaled_loss_are_found(tmp_path: Path) -> None:
    model = built("functional_of_blocks")
    inner = keras.optimizers.Adam(0.1, use_ema=True)
    model.compile(keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0), "mse")
    model.train_on_batch(np.ones((4, WIDTH)), np.ones((4, WIDTH)))
    held = polyak.open(_written(tmp_path / "a", model=model, optimizer=model.optimizer)).select("average")
    wanted = {m.numpy().tobytes() for m in inner._model_variables_moving_average}
    assert wanted == {value.tobytes() for value in held.values()}


@writes
def test_two_optimizers_keep_averages_of_their_own_weights(tmp_path: Path) -> None:
    model = built("sequential_in_sequential")
    held = {}
    for name, part in (("first", model.layers[0]), ("second", model.layers[2])):
        held[name] = keras.optimizers.SGD(0.5, use_ema=True)
        held[name].build(part.trainable_variables)
        held[name].apply([v * 0 + 1 for v in part.trainable_variables])
    path = _written(tmp_path / "a", model=model, **held)
    average = polyak.open(path).select("average")
    wanted = {m.numpy().tobytes() for o in held.values() for m in o._model_variables_moving_average}
    assert wanted <= {value.tobytes() for value in average.values()}
    polyak.transfer(path, built("sequential_in_sequential"), weights="average")


class Listed(keras.Model):
    """Layers in a list, which TensorFlow leaves out, and one in an attribute."""

    def __init__(self, normalized: bool = False) -> None:
        super().__init__()
        self.hidden = [dense(), dense(), *([keras.layers.BatchNormalization()] if normalized else [])]
        self.head = dense()

    def call(self, x: Any) -> Any:
        for layer in (*self.hidden, self.head):
            x = layer(x)
        return x


def _trained(model: Any) -> Any:
    data = np.random.default_rng(1).normal(size=(2, 8, WIDTH)).astype(np.float32)
    model.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), "mse")
    for _ in range(2):
        model.train_on_batch(*data)
    return model


def _built(model: Any) -> Any:
    model(np.ones((1, WIDTH), np.float32))
    return model


@writes
def test_layers_in_lists_are_found_in_the_list_of_the_optimizer(tmp_path: Path) -> None:
    model = _trained(Listed())
    path = _written(tmp_path / "a", model=model, optimizer=model.optimizer)
    for role in ("raw", "average"):
        target = _built(Listed())
        polyak.transfer(path, target, weights=role)
        if role == "average":
            model.optimizer.finalize_variable_values(model.trainable_variables)
        assert_same_bits(values(target), values(model))


@writes
def test_what_no_optimizer_updates_of_layers_in_lists_is_not_in_the_file(tmp_path: Path) -> None:
    model, target = _trained(Listed(normalized=True)), _built(Listed(normalized=True))
    path = _written(tmp_path / "a", model=model, optimizer=model.optimizer)
    before = values(target)
    with pytest.raises(MissingWeight, match="lists and dictionaries"):
        polyak.transfer(path, target, weights="average")
    assert_same_bits(values(target), before)
    polyak.transfer(path, target, weights="raw", exclude=["*/moving_*"])
    kept = {name: value for name, value in before.items() if "moving" in name}
    assert_same_bits(values(target), {**values(model), **kept})


@writes
@pytest.mark.parametrize("change", ["another layer is trained", "a layer is frozen", "the order is another"])
def test_numbers_that_mean_other_weights_here_are_refused(change: str, tmp_path: Path) -> None:
    model, target = _trained(Listed()), _built(Listed())
    if change == "another layer is trained":
        target = _built(Listed(normalized=True))
    elif change == "a layer is frozen":
        target.hidden[0].trainable = False
    else:
        target.head, target.hidden = target.hidden[0], [target.hidden[1], target.head]
    before = values(target)
    with pytest.raises((MissingWeight, AmbiguousMatch)):
        polyak.transfer(_written(tmp_path / "a", model=model, optimizer=model.optimizer), target, weights="average")
    assert_same_bits(values(target), before)


@writes
def test_what_an_optimizer_updates_beside_the_model_is_left(tmp_path: Path) -> None:
    model, target, beside = (built("sequential_in_sequential") for _ in range(3))
    optimizer = keras.optimizers.SGD()
    optimizer.build([*model.trainable_variables, *beside.trainable_variables])
    receipt = polyak.transfer(_written(tmp_path / "a", model=model, optimizer=optimizer), target, weights="raw")
    assert_same_bits(values(target), values(model))
    assert len([path for path in receipt.left if path.startswith("optimizer/")]) == len(beside.trainable_variables)


@writes
def test_an_average_of_polyak_s_stands_beside_that_of_the_optimizer(tmp_path: Path) -> None:
    model = _trained(built("sequential_in_sequential"))
    ema = polyak.EMA(model, decay=0.9)
    ema.update()
    path = _written(tmp_path / "a", model=model, optimizer=model.optimizer, ema=ema)
    assert set(polyak.open(path).roles) == {"raw", "average", "average:optimizer", "optimizer"}
    target = built("sequential_in_sequential")
    polyak.transfer(path, target, weights="average")
    assert_same_bits(values(target), as_weights(ema, model))
    polyak.transfer(path, target, weights="average:optimizer")
    model.optimizer.finalize_variable_values(model.trainable_variables)
    assert_same_bits(values(target), values(model))
