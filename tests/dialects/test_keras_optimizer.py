"""Averages of Keras' ``use_ema`` in files that Keras wrote: found where it is proved, else said to be unknown."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tf_keras
from keras import layers
from keras import optimizers as new
from tf_keras import optimizers as old

import polyak
from polyak.averaging.rules import from_json
from polyak.errors import DamagedFile

X = np.linspace(-1, 1, 48, dtype=np.float32).reshape(16, 3)
Y = np.stack([X.sum(1), X.prod(1)], 1)


def model(k: Any = keras) -> Any:
    start = k.Input((3,)) if k is keras else k.layers.InputLayer((3,))
    inner = k.Sequential([k.layers.Dense(4), k.layers.Dense(4)])
    return k.Sequential([start, k.layers.Dense(4), k.layers.BatchNormalization(), inner, k.layers.Dense(2)])


def saved(net: Any, optimizer: Any, path: Path, steps: int = 6) -> Path:
    """Trained step by step: the end of ``fit`` would write the average over the weights."""
    net.compile(optimizer, "mse")
    for _ in range(steps):
        net.train_on_batch(X, Y)
    net.save(str(path))
    return path


def schedule() -> Any:
    return new.schedules.ExponentialDecay(0.1, 10, 0.9)


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "adam": lambda: new.Adam(use_ema=True),
    "amsgrad": lambda: new.Adam(use_ema=True, amsgrad=True),
    "adamw": lambda: new.AdamW(use_ema=True),
    "sgd": lambda: new.SGD(use_ema=True),
    "momentum": lambda: new.SGD(momentum=0.9, use_ema=True),
    "rmsprop": lambda: new.RMSprop(use_ema=True),
    "centered": lambda: new.RMSprop(use_ema=True, centered=True, momentum=0.5),
    "adagrad": lambda: new.Adagrad(use_ema=True),
    "adadelta": lambda: new.Adadelta(use_ema=True),
    "adamax": lambda: new.Adamax(use_ema=True),
    "lion": lambda: new.Lion(use_ema=True),
    "schedule": lambda: new.Adam(schedule(), use_ema=True),
    "loss scale": lambda: new.LossScaleOptimizer(new.Adam(use_ema=True)),
    "accumulation": lambda: new.Adam(use_ema=True, gradient_accumulation_steps=2),
    "legacy adam": lambda: old.Adam(use_ema=True),
    "legacy sgd": lambda: old.SGD(use_ema=True),
    "legacy momentum": lambda: old.SGD(momentum=0.9, use_ema=True),
    "legacy rmsprop": lambda: old.RMSprop(use_ema=True),
}


def shadows(net: Any, optimizer: Any) -> list[np.ndarray]:
    """In the order of the model's weights: averages where there are, the weights themselves where not."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    averages = iter(inner._model_variables_moving_average)
    trained = {id(v) for v in net.trainable_variables}
    return [(next(averages) if id(v) in trained else v).numpy() for v in net.weights]


NAMED = ("adam", "schedule", "loss scale", "accumulation", "legacy adam", "legacy momentum")


@pytest.mark.parametrize(("name", "suffix"), [*((n, ".keras") for n in OPTIMIZERS), *((n, ".h5") for n in NAMED)])
def test_the_averages_reach_another_instance(tmp_path: Path, name: str, suffix: str) -> None:
    k = tf_keras if name.startswith("legacy") else keras
    net, optimizer, other = model(k), OPTIMIZERS[name](), model(k)
    path = saved(net, optimizer, tmp_path / f"a{suffix}")
    by = {"by": "position"} if suffix == ".h5" else {}  # a legacy file does not say how nested layers are held
    polyak.transfer(path, other, weights="average", **by)
    expected = shadows(net, optimizer)
    assert any(not np.array_equal(a, b) for a, b in zip(expected, net.get_weights(), strict=True))
    for value, shadow in zip(other.get_weights(), expected, strict=True):
        assert value.tobytes() == shadow.tobytes()


def test_rule_and_count_are_those_of_the_optimizer(tmp_path: Path) -> None:
    snap = polyak.open(saved(model(), new.Adam(use_ema=True, ema_momentum=0.75), tmp_path / "a.keras"))
    state = snap.manifest.roles["average"]
    assert state is not None
    assert state.count == 6
    assert str(from_json(state.rule)) == "ema:0.75,start=copy"
    assert snap.manifest.confidence == "inferred"
    assert "10 averages of Adam with use_ema" in snap.manifest.evidence[0]


def test_with_accumulation_the_count_is_not_known(tmp_path: Path) -> None:
    snap = polyak.open(saved(model(), OPTIMIZERS["accumulation"](), tmp_path / "a.keras"))
    assert snap.manifest.roles["average"] is None


def unknown(path: Path, why: str) -> None:
    snap = polyak.open(path)
    assert snap.roles == ("raw", "optimizer")
    assert snap.manifest.confidence == "unknown"
    assert why in snap.manifest.evidence[0]


def test_weights_alone_do_not_say_whether_there_are_averages(tmp_path: Path) -> None:
    net = model()
    saved(net, new.Adam(use_ema=True), tmp_path / "a.keras")
    net.save_weights(str(tmp_path / "a.weights.h5"))
    unknown(tmp_path / "a.weights.h5", "only the config.json of a .keras file says")


def edited(path: Path, member: str, edit: Callable[[bytes], bytes]) -> Path:
    """A copy of the archive with one member rewritten."""
    made = path.with_name(f"edited-{path.name}")
    with zipfile.ZipFile(path) as held, zipfile.ZipFile(made, "w") as new_one:
        for name in held.namelist():
            content = held.read(name)
            new_one.writestr(name, edit(content) if name == member else content)
    return made


@pytest.mark.parametrize("kind", ["", "LossScaleOptimizer"])
def test_an_optimizer_that_the_configuration_does_not_describe_is_not_guessed(tmp_path: Path, kind: str) -> None:
    path = saved(model(), new.Adam(use_ema=True), tmp_path / "a.keras")
    said = f'"class_name": "{kind}"'.encode()
    changed = edited(path, "config.json", lambda held: held.replace(b'"class_name": "Adam"', said))
    unknown(changed, "config.json does not describe the optimizer")


@pytest.mark.parametrize(
    ("number", "why"),
    [(5, "some of its variables are missing"), (31, "its variables do not have the layout of Adam")],
)
def test_an_optimizer_that_lacks_a_variable_is_not_guessed(tmp_path: Path, number: int, why: str) -> None:
    def edit(content: bytes) -> bytes:
        held = io.BytesIO(content)
        with h5py.File(held, "r+") as file:
            assert len(file["optimizer/vars"]) == 32  # its count, its rate, and three for each of ten weights
            del file[f"optimizer/vars/{number}"]
        return held.getvalue()

    path = saved(model(), new.Adam(use_ema=True), tmp_path / "a.keras")
    unknown(edited(path, "model.weights.h5", edit), why)


def test_a_legacy_file_that_lacks_a_weight_it_lists_is_refused(tmp_path: Path) -> None:
    path = saved(model(), new.Adam(use_ema=True), tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        layer = next(name for name in file["model_weights"] if name.startswith("batch_norm"))
        name = file[f"model_weights/{layer}"].attrs["weight_names"][0]
        del file[f"model_weights/{layer}/{name}"]
    with pytest.raises(DamagedFile, match=f"{name}': expected by the list of names, received nothing"):
        polyak.open(path)


def test_a_frozen_layer_among_equal_ones_is_not_guessed(tmp_path: Path) -> None:
    """Two averages for three layers: which of them was frozen when the optimizer was built is not in the file."""
    net = keras.Sequential([keras.Input((3,)), *(layers.Dense(3, use_bias=False) for _ in range(3))])
    net.layers[1].trainable = False
    net.compile(new.Adam(use_ema=True), "mse")
    net.train_on_batch(X, X)
    net.save(str(tmp_path / "a.keras"))
    unknown(tmp_path / "a.keras", "more than one assignment")


def test_a_frozen_layer_of_its_own_shape_is_told_by_it(tmp_path: Path) -> None:
    net = keras.Sequential([keras.Input((3,)), layers.Dense(4), layers.Dense(5), layers.Dense(2)])
    net.layers[0].trainable = False
    optimizer = new.Adam(use_ema=True)
    path, other = saved(net, optimizer, tmp_path / "a.keras"), keras.models.clone_model(net)
    polyak.transfer(path, other, weights="average")
    for value, shadow in zip(other.get_weights(), shadows(net, optimizer), strict=True):
        assert value.tobytes() == shadow.tobytes()


def test_without_use_ema_there_is_no_average(tmp_path: Path) -> None:
    """Gradient accumulation has the layout of averages; the configuration tells them apart."""
    for optimizer in (new.Adam(), new.Adam(gradient_accumulation_steps=2)):
        snap = polyak.open(saved(model(), optimizer, tmp_path / "a.keras"))
        assert snap.roles == ("raw", "optimizer")
        assert snap.manifest.evidence[0] == "optimizer: Adam without use_ema, by config.json: stated"


@pytest.mark.parametrize("optimizer", [new.Nadam, new.Ftrl])
def test_an_optimizer_of_unknown_layout_is_not_guessed(tmp_path: Path, optimizer: Any) -> None:
    unknown(saved(model(), optimizer(use_ema=True), tmp_path / "a.keras"), "is not known")


@keras.saving.register_keras_serializable("polyak-tests")
class Own(keras.Model):
    def __init__(self, widths: tuple[int, ...] = (4, 5, 2), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts = [layers.Dense(w) for w in widths]

    def call(self, x: Any) -> Any:
        for part in self.parts:
            x = part(x)
        return x


def test_a_configuration_with_an_infinite_number_is_read(tmp_path: Path) -> None:
    """Python's JSON has them, and Keras writes them."""
    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    net.compile(keras.optimizers.SGD(use_ema=True, clipvalue=float("inf")), "mse")
    net.fit(np.ones((8, 4), np.float32), np.ones((8, 2), np.float32), verbose=0)
    net.save(tmp_path / "a.keras")
    assert "Infinity" in zipfile.ZipFile(tmp_path / "a.keras").read("config.json").decode()
    assert polyak.open(tmp_path / "a.keras").roles == ("raw", "average", "optimizer")


def test_in_a_model_of_ones_own_class_shapes_must_tell_all(tmp_path: Path) -> None:
    net, optimizer, other = Own(), new.Adam(use_ema=True), Own()
    path = saved(net, optimizer, tmp_path / "a.keras")
    other(X)
    polyak.transfer(path, other, weights="average")
    for value, shadow in zip(other.get_weights(), shadows(net, optimizer), strict=True):
        assert value.tobytes() == shadow.tobytes()
    unknown(saved(Own((4, 4, 2)), new.Adam(use_ema=True), tmp_path / "b.keras"), "more than one assignment")


def test_a_legacy_file_of_many_layers_is_read_as_one_of_few(tmp_path: Path) -> None:
    net = keras.Sequential([keras.Input((3,)), *(layers.Dense(4) for _ in range(100)), layers.Dense(2)])
    net.compile(new.Adam(use_ema=True), "mse", run_eagerly=True)  # compiling so many layers takes minutes
    net.train_on_batch(np.ones((2, 3), np.float32), np.ones((2, 2), np.float32))
    net.save(tmp_path / "a.h5")
    snap = polyak.open(tmp_path / "a.h5")
    assert snap.roles == ("raw", "average", "optimizer")
    assert len(snap.select("average").weights) == len(net.weights)


def test_names_that_collide_in_a_legacy_file_are_not_guessed(tmp_path: Path) -> None:
    """``a_b/c`` and ``a/b_c`` are both ``a_b_c_average``; Keras itself cannot write the two, so one is renamed here."""
    net = keras.Sequential([keras.Input((3,)), layers.Dense(3, name="x"), layers.Dense(2, name="y")], name="net")
    saved(net, new.SGD(use_ema=True), tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["model_weights/y/net_x/kernel"] = file["model_weights/x/net/x/kernel"][()]
        file["model_weights/y"].attrs["weight_names"] = [b"net_x/kernel", b"net/y/bias"]
    snap = polyak.open(tmp_path / "a.h5")
    assert snap.roles == ("raw", "optimizer")
    assert "may be the average of several weights" in snap.manifest.evidence[0]
