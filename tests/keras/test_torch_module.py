"""Keras on PyTorch, saved as a module with ``torch.save``: its file goes into a Keras model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import polyak
from polyak.errors import DamagedFile, MissingWeight, PolyakError

pytestmark = pytest.mark.skipif(keras.backend.backend() != "torch", reason="Keras models are modules there alone")


def sequential() -> Any:
    layers = [keras.layers.Dense(4, name="a"), keras.layers.BatchNormalization(), keras.layers.Dropout(0.1)]
    return keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(4), keras.layers.Dense(4)])


def functional() -> Any:
    inputs = keras.Input((4,))
    inner = keras.Sequential([keras.layers.Dense(4), keras.layers.Dense(4)])
    return keras.Model(inputs, keras.layers.Dense(4, name="head")(inner(keras.layers.Dense(4)(inputs))))


def flat() -> Any:
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(4)(inputs)
    return keras.Model(inputs, keras.layers.Dense(4)(hidden))


class Subclassed(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.enc, self.out = keras.layers.Dense(4), keras.layers.Dense(4)

    def call(self, x: Any) -> Any:
        return self.out(self.enc(x))


def subclassed() -> Any:
    model = Subclassed()
    model(np.zeros((1, 4), np.float32))
    return model


def filled(model: Any) -> Any:
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


def saved(path: Path, held: Any) -> Path:
    import torch

    torch.save(held, path)
    return path


@pytest.mark.parametrize("build", [sequential, functional])
@pytest.mark.parametrize("key", ["", "model"])
def test_its_file_goes_into_another_instance(build: Any, key: str, tmp_path: Path) -> None:
    model, twin = filled(build()), build()
    held = {key: model.state_dict(), "epoch": 1} if key else model.state_dict()
    path = saved(tmp_path / "a.pt", held)
    known = polyak.open(path).manifest
    assert (known.tool, known.layout, known.confidence) == ("Keras", "keras", "unknown")
    polyak.transfer(path, twin)
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), twin.get_weights(), strict=True))


def test_a_model_beside_its_average_has_roles(tmp_path: Path) -> None:
    model, target = filled(flat()), flat()
    average = keras.models.clone_model(model)
    average.set_weights([2 * w for w in model.get_weights()])
    path = saved(tmp_path / "a.pt", {"model": model.state_dict(), "ema": average.state_dict(), "epoch": 1})
    assert polyak.open(path).roles == ("raw", "average")
    for role, source in (("raw", model), ("average", average)):
        polyak.transfer(path, target, weights=role)
        assert all(np.array_equal(a, b) for a, b in zip(source.get_weights(), target.get_weights(), strict=True))


def test_an_average_whose_variables_have_other_names_is_left_and_told(tmp_path: Path) -> None:
    model, other, target = filled(flat()), flat(), flat()
    path = saved(tmp_path / "a.pt", {"model": model.state_dict(), "ema": other.state_dict()})
    held = polyak.open(path)
    assert (held.roles, held.manifest.layout) == (("raw", "training"), "keras")
    assert held.manifest.note == "left with the state of the training: 'ema' (4 arrays)"
    polyak.transfer(path, target)
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), target.get_weights(), strict=True))


@pytest.mark.parametrize("build", [sequential, flat])
@pytest.mark.parametrize("wrapper", ["AveragedModel", "DataParallel"])
def test_a_model_within_a_wrapper_goes_into_another_instance(build: Any, wrapper: str, tmp_path: Path) -> None:
    from torch import nn, optim

    model, twin = filled(build()), build()
    wrap: Any = {"AveragedModel": optim.swa_utils.AveragedModel, "DataParallel": nn.DataParallel}[wrapper]
    path = saved(tmp_path / "a.pt", wrap(model).state_dict())
    held = polyak.open(path)
    assert ("average" in held.roles, held.manifest.layout) == (wrapper == "AveragedModel", "keras")
    polyak.transfer(path, twin)
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), twin.get_weights(), strict=True))


def test_two_models_are_one_set_with_their_keys(tmp_path: Path) -> None:
    model, other = filled(functional()), filled(sequential())
    path = saved(tmp_path / "a.pt", {"model": model.state_dict(), "critic": other.state_dict()})
    held = polyak.open(path)
    assert (held.roles, held.manifest.layout) == (("raw",), "keras")
    assert set(held) == {f"{key}/{v.path}" for key, m in (("model", model), ("critic", other)) for v in m.variables}


def test_layers_under_attributes_need_a_renaming(tmp_path: Path) -> None:
    model, twin = filled(subclassed()), subclassed()
    path = saved(tmp_path / "a.pt", model.state_dict())
    with pytest.raises(MissingWeight, match="hint: pair them with rename="):
        polyak.transfer(path, twin)
    names = [w.path.rpartition("/")[0] for w in model.weights[::2]]
    polyak.transfer(path, twin, rename={f"{names[0]}/*": "enc/*", f"{names[1]}/*": "out/*"})
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), twin.get_weights(), strict=True))


def test_two_names_of_one_variable_have_one_value(tmp_path: Path) -> None:
    held = {name: value.detach().clone() for name, value in filled(sequential()).state_dict().items()}
    name = next(n for n in held if n.startswith("_functional.") and n.endswith("/a/kernel"))
    held[name] += 1
    path = saved(tmp_path / "a.pt", held)
    with pytest.raises(DamagedFile, match=r"by which Keras calls the same variable"):
        polyak.transfer(path, sequential())


def test_modules_of_pytorch_within_it_are_refused(tmp_path: Path) -> None:
    import torch

    class Mixed(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = keras.layers.TorchModuleWrapper(torch.nn.Linear(4, 4))
            self.out = keras.layers.Dense(2)

        def call(self, x: Any) -> Any:
            return self.out(self.inner(x))

    models = [Mixed(), Mixed()]
    for model in models:
        model(np.zeros((1, 4), np.float32))
    path = saved(tmp_path / "a.pt", models[0].state_dict())
    with pytest.raises(PolyakError, match="expected a layer of this name"):
        polyak.transfer(path, models[1])
