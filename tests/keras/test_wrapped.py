"""Modules of PyTorch in a Keras model: their names, their statistics, and what runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from tests.keras.peers import BACKEND

import polyak
from polyak.errors import ModelError
from polyak.keras import Averaging

pytestmark = pytest.mark.skipif(BACKEND != "torch", reason="Keras runs modules of PyTorch there alone")
INPUTS = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
NAMES = ["0/weight", "1/weight", "2/weight", "2/bias", "2/running_mean", "2/running_var", "2/num_batches_tracked"]


def net() -> Any:
    from torch import nn

    return nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6))


def wrapped(module: Any) -> Any:
    model = keras.Sequential([keras.Input((6,)), layers.TorchModuleWrapper(module)])
    model(INPUTS)
    return model


def answers(model: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(model(INPUTS, training=False)))


def test_tensors_have_the_names_of_their_module_and_statistics_are_weights() -> None:
    weights = polyak.snapshot(wrapped(net())).weights
    assert [w.path for w in weights] == [f"torch_module_wrapper/{name}" for name in NAMES]
    assert [w.kind.value for w in weights] == ["trainable"] * 4 + ["statistic"] * 2 + ["counter"]
    assert [w.evidence.position for w in weights if w.evidence] == list(range(7))


@pytest.mark.parametrize("by_file", [False, True])
def test_what_is_frozen_changes_no_pair(by_file: bool, tmp_path: Path) -> None:
    one, other = net(), net()
    one[0].weight.requires_grad_(False)
    source, target = wrapped(one), wrapped(other)
    source(3.0 * INPUTS + 2.0, training=True)  # moves the statistics
    if by_file:
        polyak.save(source, tmp_path / "net.safetensors")
    polyak.transfer(tmp_path / "net.safetensors" if by_file else source, target)
    for name, tensor in one.state_dict().items():
        assert tensor.equal(other.state_dict()[name]), name
    np.testing.assert_array_equal(answers(source), answers(target))


def test_a_weight_that_is_frozen_at_first_is_averaged_once_it_is_trained() -> None:
    module = net()
    module[0].weight.requires_grad_(False)
    ema = polyak.EMA(wrapped(module), decay=0.75, start="initial")
    before = module[0].weight.detach().clone().numpy()
    module[0].weight.data += 1.0
    ema.update()
    np.testing.assert_allclose(ema.values()["torch_module_wrapper/0/weight"], before + 0.25, rtol=1e-6)


def test_a_file_of_keras_with_both_sets_goes_into_another_instance(tmp_path: Path) -> None:
    model, other = wrapped(net()), wrapped(net())
    model.compile("sgd", "mse")
    averaging = Averaging("ema:0.5", evaluate="both")
    history = model.fit(INPUTS, INPUTS, 4, 2, verbose=0, validation_data=(INPUTS, INPUTS), callbacks=[averaging])
    assert {"val_loss", "val_average_loss"} <= history.history.keys()
    model.save(tmp_path / "both.keras")
    for role, expected in (("raw", answers(model)), ("average", applied(averaging.average, model))):
        polyak.transfer(tmp_path / "both.keras", other, weights=role)
        np.testing.assert_array_equal(answers(other), expected)
    with averaging.average.applied():
        polyak.transfer(model, other)
        np.testing.assert_array_equal(answers(other), answers(model))


def applied(average: Any, model: Any) -> np.ndarray:
    with average.applied():
        return answers(model)


@pytest.mark.parametrize("verb", ["__call__", "predict", "stateless_call"])
def test_a_module_is_not_run_with_its_raw_weights_instead_of_the_average(verb: str) -> None:
    ema = polyak.EMA(wrapped(net()), decay=0.5)
    given = (ema.tree(), INPUTS) if verb == "stateless_call" else (INPUTS,)
    with pytest.raises(ModelError, match=r"'torch_module_wrapper.*', a module of PyTorch") as refused:
        getattr(ema, verb)(*given)
    assert "with ema.applied()" in str(refused.value)


def test_a_module_without_tensors_is_run() -> None:
    from torch import nn

    model = keras.Sequential([keras.Input((6,)), layers.Dense(2), layers.TorchModuleWrapper(nn.ReLU())])
    ema = polyak.EMA(model, decay=0.5)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(ema(INPUTS)), answers(model))


def test_a_layer_that_is_exchanged_within_a_module_is_refused() -> None:
    from torch import nn

    module = net()
    model = wrapped(module)
    ema = polyak.EMA(model, decay=0.5)
    module[1] = nn.Linear(6, 6, bias=False)
    for verb in (ema.refresh, lambda: polyak.snapshot(model), lambda: polyak.transfer(model, wrapped(net()))):
        with pytest.raises(
            ModelError, match=r"the parameters with which its module was wrapped, received a new '1.weight'"
        ):
            verb()
    module[1] = nn.Identity()
    with pytest.raises(ModelError, match="received fewer"):
        ema.refresh()


def test_a_wrapped_module_and_a_plain_one_are_paired_by_name_and_nothing_is_turned() -> None:
    from torch import nn

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.head = net(), nn.Linear(6, 6)

    class Mixed(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.head = layers.TorchModuleWrapper(net()), layers.Dense(6)

        def call(self, x: Any, training: bool = False) -> Any:
            return self.head(self.net(x, training=training))

    plain, mixed = Plain(), Mixed()
    mixed(INPUTS, training=True)
    polyak.transfer(mixed, plain)
    for name, tensor in mixed.net.module.state_dict().items():
        assert tensor.equal(plain.net.state_dict()[name]), name
    np.testing.assert_array_equal(plain.head.weight.detach().numpy().T, keras.ops.convert_to_numpy(mixed.head.kernel))
    other = Mixed()
    other(INPUTS)
    polyak.transfer(plain, other)
    np.testing.assert_array_equal(answers(other), answers(mixed))


def test_one_parameter_in_two_layers_is_refused() -> None:
    from torch import nn

    shared, other = nn.Linear(6, 6), nn.Linear(6, 6)
    other.weight = shared.weight
    model = keras.Sequential([keras.Input((6,)), layers.TorchModuleWrapper(shared), layers.TorchModuleWrapper(other)])
    with pytest.raises(ModelError, match="expected each parameter in one layer") as refused:
        polyak.track(model, "ema:0.5")
    assert "wrap all modules that share it as one" in str(refused.value)


def test_a_module_that_the_rule_leaves_out_is_run() -> None:
    model = keras.Sequential([keras.Input((6,)), layers.TorchModuleWrapper(net(), name="body"), layers.Dense(2)])
    model(INPUTS)
    ema = polyak.track(model, {"body/*": None, "*": "ema:0.5"})
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(ema(INPUTS, training=False)), answers(model))


def test_a_pure_update_reads_the_buffers_of_the_module() -> None:
    module = net()
    model = wrapped(module)
    ema = polyak.EMA(model, decay=0.5)
    module[2].running_mean.fill_(3.0)
    values = ([v.value for v in variables] for variables in (model.trainable_variables, model.non_trainable_variables))
    tree = ema.stateless_update(ema.tree(), *values)
    assert tree["shadows"]["torch_module_wrapper/2/running_mean"].tolist() == [3.0] * 6


def test_a_buffer_that_is_gone_or_has_another_shape_is_named() -> None:
    import torch

    module = net()
    ema = polyak.EMA(wrapped(module), decay=0.5)
    for tensor, received in ((torch.zeros(1), r"received \(1,\)"), (None, "received none")):
        module[2].running_mean = tensor
        with pytest.raises(ModelError, match=f"buffer '2.running_mean': .* {received}"):
            ema.update()
        ema.refresh()
        ema.update()


def test_a_class_of_ones_own_may_have_weights_beside_its_module() -> None:
    class Scaled(layers.TorchModuleWrapper):  # type: ignore[misc]
        def __init__(self, module: Any) -> None:
            super().__init__(module)
            self.gains = [self.add_weight(name="gain", shape=(), initializer="ones")]

    model = keras.Sequential([keras.Input((6,)), Scaled(net())])
    assert "scaled/gain" in polyak.track(model, "mean").values()


def test_statistics_of_a_module_are_not_recalibrated_and_that_is_said() -> None:
    model = wrapped(net())
    for source in (model, polyak.EMA(model, decay=0.5)):
        with pytest.raises(ModelError, match="received PyTorch's in 'torch_module_wrapper"):
            polyak.recalibrate(source, INPUTS)
