"""Names, numbers and shapes that fit where the weights do not: refused, with a hint that gives right numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

import polyak
from polyak.errors import AmbiguousMatch, MissingWeight, PolyakError, ShapeMismatch
from polyak.transfer.match import are_of_two_frameworks

torch = pytest.importorskip("torch")

WIDTH = 4
X = np.random.default_rng(1).standard_normal((3, WIDTH)).astype(np.float32)


def module() -> Any:
    torch.manual_seed(0)
    made = torch.nn.Module()
    made.fc, made.out = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, WIDTH)
    return made


def model() -> Any:
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(WIDTH, name=name) for name in ("fc", "out")]
    return keras.Sequential([keras.Input((WIDTH,)), *layers])


def answers(made: Any) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(made.out(made.fc(torch.from_numpy(X))))


# How the axes lie


def test_a_norm_before_the_first_kernel_is_not_to_be_paired_with_a_bias_of_the_other_framework(tmp_path: Path) -> None:
    """Its gamma has the shape of PyTorch's bias, which is the nearest by name."""
    source = torch.nn.ModuleDict({"norm": torch.nn.LayerNorm(WIDTH), "fc": torch.nn.Linear(WIDTH, WIDTH)})
    target = keras.Sequential(
        [keras.Input((WIDTH,)), keras.layers.LayerNormalization(name="norm"), keras.layers.Dense(WIDTH, name="fc")]
    )
    save_file({name: value.numpy() for name, value in source.state_dict().items()}, tmp_path / "foreign.safetensors")
    with pytest.raises(MissingWeight, match=r"'norm/gamma': .* received nothing from") as caught:
        polyak.transfer(tmp_path / "foreign.safetensors", target)
    assert caught.value.hint == 'say how the source lies: layout="torch"'
    polyak.transfer(tmp_path / "foreign.safetensors", target, layout="torch")


def test_a_rename_does_not_stand_for_a_transposition(tmp_path: Path) -> None:
    """The kernels are square, so that a wrong one fits: as they lie the outputs would be others."""
    source, target = module(), model()
    path = tmp_path / "foreign.safetensors"
    save_file({name: value.numpy() for name, value in source.state_dict().items()}, path)
    with pytest.raises(MissingWeight, match=r"'fc/kernel'.*nearest: 'fc\.weight'") as caught:
        polyak.transfer(path, target)
    assert caught.value.hint == 'say how the source lies: layout="torch"'
    renamed = {"*.weight": "*/kernel", "*.bias": "*/bias"}
    with pytest.raises(
        AmbiguousMatch, match=r"'fc/kernel' \(4, 4\): expected two sides that say in which layout"
    ) as told:
        polyak.transfer(path, target, rename=renamed)
    assert told.value.hint == 'say it: layout="torch" turns it, layout="keras" takes it as it is'
    polyak.transfer(path, target, layout="torch")
    np.testing.assert_allclose(np.asarray(target(X).numpy()), answers(source), atol=1e-6)
    polyak.transfer(path, target, layout="keras", rename=renamed)
    np.testing.assert_array_equal(target.layers[0].kernel.numpy(), source.fc.weight.detach().numpy())


def test_nor_does_one_on_the_way_to_pytorch(tmp_path: Path) -> None:
    source, target = model(), module()
    path = tmp_path / "foreign.npz"
    np.savez(path, **{f"{layer.name}/{w.name}": np.asarray(w) for layer in source.layers for w in layer.weights})
    with pytest.raises(AmbiguousMatch, match=r"'fc.weight' \(4, 4\)") as told:
        polyak.transfer(path, target, rename={"*/kernel": "*.weight", "*/bias": "*.bias"})
    assert told.value.hint == 'say it: layout="keras" turns it, layout="torch" takes it as it is'
    polyak.transfer(path, target, layout="keras")
    np.testing.assert_allclose(answers(target), np.asarray(source(X).numpy()), atol=1e-6)


class OwnLinear(torch.nn.Linear):
    """A user's own: polyak knows its base class alone, which a model of another code could have changed."""


@pytest.mark.parametrize("to_torch", [True, False])
def test_the_hint_for_a_class_of_ones_own_turns_its_kernel(to_torch: bool) -> None:
    made, target = model(), module()
    target.fc = OwnLinear(WIDTH, WIDTH)
    ends = (made, target) if to_torch else (target, made)
    with pytest.raises(AmbiguousMatch, match="no layout rule is known for these two classes") as refused:
        polyak.transfer(*ends)
    assert 'layers={"fc": "Dense"}, or "same" if the arrays lie alike' in str(refused.value)
    polyak.transfer(*ends, layers={"fc": "Dense"})
    np.testing.assert_allclose(answers(target), np.asarray(made(X)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("end", [".weights.h5", ".keras"])
def test_places_in_a_file_of_keras_are_none_of_pytorch(end: str, tmp_path: Path) -> None:
    """They lie as in Keras, whatever names they are given; the way into PyTorch is the model that has the names."""
    path, source, target = tmp_path / f"model{end}", model(), module()
    source.save(path) if end == ".keras" else source.save_weights(path)
    places = {f"layers/{layer}/vars/{i}": i for layer in ("dense", "dense_1") for i in (0, 1)}
    names = dict(zip(places, ("fc.weight", "fc.bias", "out.weight", "out.bias"), strict=True))
    with pytest.raises(PolyakError):
        polyak.transfer(path, target, rename=names)
    polyak.transfer(path, (again := model()))
    polyak.transfer(again, target)
    np.testing.assert_allclose(answers(target), np.asarray(source(X)), rtol=1e-5)


def test_arrays_without_names_do_not_say_how_they_lie(tmp_path: Path) -> None:
    path, source, target = tmp_path / "list.npz", model(), module()
    np.savez(path, *source.get_weights())
    names = {f"arr_{i}": name for i, name in enumerate(("fc.weight", "fc.bias", "out.weight", "out.bias"))}
    with pytest.raises(AmbiguousMatch, match=r"weight 'fc.weight' \(4, 4\): expected two sides that say") as refused:
        polyak.transfer(path, target, rename=names)
    assert 'layout="torch" takes it as it is' in str(refused.value)
    names = {f"arr_{i}": name for i, name in enumerate(("fc/kernel", "fc/bias", "out/kernel", "out/bias"))}
    polyak.transfer(path, (again := model()), rename=names, layout="keras")
    np.testing.assert_array_equal(np.asarray(again(X)), np.asarray(source(X)))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("r.weight_ih_l0", "r/cell/kernel"),
        ("r.weight_hh_l1_reverse", "r/cell/recurrent_kernel"),
        ("s.pointwise.weight", "s/pointwise_kernel"),
        ("a.in_proj_weight", "a/query/kernel"),
    ],
)
def test_every_kernel_is_told_from_every_weight(ours: str, theirs: str) -> None:
    for names in ((ours, theirs), (theirs, ours)):
        assert are_of_two_frameworks(*names)
    assert not are_of_two_frameworks(ours, ours)
    assert not are_of_two_frameworks("e.weight", "e/embeddings")


def test_a_file_without_a_layout_stands_for_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "like.npz", **{"fc/kernel": np.zeros((WIDTH, WIDTH), np.float32)})
    plain = polyak.Snapshot.from_arrays({"fc.weight": np.ones((WIDTH, WIDTH), np.float32)})
    sides = {"like": tmp_path / "like.npz", "rename": {"fc.weight": "fc/kernel"}}
    for source, left in ((module(), ["*bias", "out*"]), (plain, [])):
        with pytest.raises(AmbiguousMatch, match="expected two sides that say") as told:
            polyak.transfer(source, tmp_path / "out.npz", **sides, exclude=left)
        assert "rename= without like=" in str(told.value.hint)
    assert not (tmp_path / "out.npz").exists()


def test_slopes_of_each_channel_are_none_of_each_place() -> None:
    source = torch.nn.Sequential(torch.nn.PReLU(6))
    target = keras.Sequential([keras.Input((2, 3)), keras.layers.PReLU()])
    with pytest.raises(ShapeMismatch, match=r"'alpha' of shape \(2, 3\): expected all axes but the channels shared"):
        polyak.transfer(source, target, rename={"0": "p_re_lu"}, layout="torch")


# Numbers


def blocks(count: int) -> Any:
    torch.manual_seed(count)
    made = torch.nn.Module()
    made.body = torch.nn.Sequential(
        *(
            torch.nn.Sequential(torch.nn.Conv2d(WIDTH, WIDTH, 1, bias=False), torch.nn.BatchNorm2d(WIDTH))
            for _ in range(count)
        )
    )
    made.head = torch.nn.Linear(WIDTH, 2)
    return made


def listed(made: Any, path: Path) -> Path:
    """As torch-ema keeps an average: the parameters alone, by their number."""
    shadows = [p.detach() + 1 for p in made.parameters()]
    torch.save({"decay": 0.9, "num_updates": 5, "shadow_params": shadows, "collected_params": None}, path)
    return path


@pytest.mark.parametrize("include", ["*", "body.1.*", "head.*"])
def test_a_list_of_parameters_leaves_statistics_out_of_its_numbers(include: str, tmp_path: Path) -> None:
    source, target = blocks(4), blocks(4)
    expected = {name: p.detach() + 1 for name, p in source.named_parameters()}
    left = [g for g in ("*running*", "*num_batches*") if include != "head.*"]
    chosen = {"include": include, "exclude": left}
    polyak.transfer(listed(source, tmp_path / "ema.pt"), target, weights="average", **chosen)
    moved = {n: p for n, p in target.named_parameters() if include == "*" or n.startswith(include.removesuffix("*"))}
    assert moved
    for name, parameter in moved.items():
        assert torch.equal(parameter, expected[name]), name


def test_the_hint_for_a_list_of_parameters_names_all_statistics(tmp_path: Path) -> None:
    source, target = blocks(4), blocks(4)
    path = listed(source, tmp_path / "ema.pt")
    with pytest.raises(MissingWeight) as refused:
        polyak.transfer(path, target, weights="average")
    exclude = ["*running_mean", "*running_var", "*num_batches_tracked"]
    assert f"exclude={json.dumps(exclude)}" in str(refused.value)
    polyak.transfer(path, target, weights="average", exclude=exclude)
    assert torch.equal(target.head.weight, source.head.weight + 1)


def test_numbers_that_are_given_names_go_by_these_alone(tmp_path: Path) -> None:
    source, target = blocks(4), blocks(1)
    path = listed(source, tmp_path / "ema.pt")
    names, left = {"#12": "head.weight", "#13": "head.bias"}, [f"#{i}" for i in range(12)]
    polyak.transfer(path, target, weights="average", rename=names, include="head.*", exclude=left)
    assert torch.equal(target.head.weight, source.head.weight + 1)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"by": "position", "include": "head.*"},
        {"include": "head.*"},
        {"include": "body.0.*", "exclude": "*running*"},
    ],
)
def test_numbers_of_another_model_mean_nothing_whatever_is_asked_for(asked: dict[str, Any], tmp_path: Path) -> None:
    target = blocks(3)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(AmbiguousMatch, match="expected weights by name, or a list of all"):
        polyak.transfer(listed(blocks(4), tmp_path / "ema.pt"), target, weights="average", **asked)
    for name, value in target.state_dict().items():
        assert torch.equal(value, before[name])


# Places in Keras' files


class Private(keras.Model):
    """Keras stores layers by attribute, private ones last; TensorFlow keeps lists of its own among these."""

    def __init__(self) -> None:
        super().__init__()
        self._trunk, self._value, self._action = (keras.layers.Dense(WIDTH) for _ in range(3))

    def call(self, x: Any) -> Any:
        return self._value(keras.ops.tanh(self._trunk(x))) - self._action(x)


def attending() -> Any:
    inputs = keras.Input((5, WIDTH))
    return keras.Model(inputs, keras.layers.GroupQueryAttention(3, 4, 2)(inputs, inputs))


@pytest.mark.parametrize(("make", "shape"), [(Private, (3, WIDTH)), (attending, (3, 5, WIDTH))])
def test_layers_in_private_attributes_come_from_a_file_of_keras(make: Any, shape: Any, tmp_path: Path) -> None:
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    source, target = make(), make()
    expected = np.asarray(source(x))
    assert not np.array_equal(np.asarray(target(x)), expected)
    source.save_weights(tmp_path / "m.weights.h5")
    polyak.transfer(tmp_path / "m.weights.h5", target)
    np.testing.assert_array_equal(np.asarray(target(x)), expected)
    polyak.save(source, tmp_path / "p.weights.h5")
    (again := make())(x)
    again.load_weights(tmp_path / "p.weights.h5")
    np.testing.assert_array_equal(np.asarray(again(x)), expected)
