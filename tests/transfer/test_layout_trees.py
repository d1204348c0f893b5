"""Trees of JAX beside Keras and PyTorch: Flax' own layers answer as those that were given their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import polyak
import polyak.tensorflow
from polyak.errors import AmbiguousMatch, MissingWeight

jax = pytest.importorskip("jax")
linen = pytest.importorskip("flax.linen")
serialization = pytest.importorskip("flax.serialization")

X = np.random.default_rng(0).normal(size=(2, 5, 5, 4)).astype(np.float32)


def drawn(module: Any, x: Any) -> Any:
    """Variables of a module of Flax, no two alike."""
    rng = np.random.default_rng(1)
    made = module.init(jax.random.key(0), x)
    return jax.tree.map(lambda a: rng.uniform(0.1, 1, size=a.shape).astype(a.dtype), made)


def written(path: Path, variables: Any) -> Path:
    path.write_bytes(serialization.to_bytes(variables))
    return path


def upsampling() -> Any:
    return keras.Sequential([keras.Input((5, 5, 4)), keras.layers.Conv2DTranspose(4, 3, 2, "same", name="up")])


@pytest.mark.parametrize("converted", [False, True])
def test_a_transposed_convolution_of_flax_is_not_taken_as_it_is_unasked(tmp_path: Path, converted: bool) -> None:
    module = linen.ConvTranspose(4, (3, 3), (2, 2))
    held = drawn(module, X)
    path, model = written(tmp_path / "up.msgpack", {"params": {"up": held["params"]}}), upsampling()
    if converted:
        polyak.convert(path, tmp_path / "up.safetensors")
        path = tmp_path / "up.safetensors"
    before = polyak.snapshot(model)["up/kernel"].copy()
    with pytest.raises(AmbiguousMatch, match=r"'up/kernel'.* beside the kernel of Conv2DTranspose") as refused:
        polyak.transfer(path, model)
    assert np.array_equal(polyak.snapshot(model)["up/kernel"], before)
    assert "kernel[::-1, ::-1].swapaxes(-1, -2) of Flax" in str(refused.value.hint)
    turned = dict(polyak.open(path))
    turned["up/kernel"] = turned["up/kernel"][::-1, ::-1].swapaxes(-1, -2)
    polyak.transfer(polyak.Snapshot.from_arrays(turned), model)
    assert np.abs(np.asarray(model(X)) - np.asarray(module.apply(held, X))).max() < 1e-4


@pytest.mark.parametrize(
    ("kernel", "rename"),
    [
        ("params/up/kernel", None),
        ("ConvTranspose_0/kernel", {"ConvTranspose_0/*": "up/*"}),
        ("conv2_d_transpose/w", {f"conv2_d_transpose/{a}": f"up/{b}" for a, b in (("w", "kernel"), ("bias", "bias"))}),
    ],
)
def test_arrays_with_the_names_of_jax_need_the_word_too(tmp_path: Path, kernel: str, rename: Any) -> None:
    arrays = {kernel: np.ones((3, 3, 4, 4), np.float32), kernel.rpartition("/")[0] + "/bias": np.ones(4, np.float32)}
    np.savez(tmp_path / "up.npz", **arrays)  # type: ignore[arg-type]
    model = upsampling()
    with pytest.raises(AmbiguousMatch, match="beside the kernel of Conv2DTranspose"):
        polyak.transfer(tmp_path / "up.npz", model, rename=rename)
    polyak.transfer(tmp_path / "up.npz", model, rename=rename, layout="keras")
    assert np.array_equal(polyak.snapshot(model)["up/kernel"], arrays[kernel])


def test_a_layer_of_keras_that_is_called_as_flax_calls_its_own_needs_no_word(tmp_path: Path) -> None:
    model, other = (keras.Sequential([keras.layers.Conv2DTranspose(4, 3, 2, "same", name="Up_1")]) for _ in "ab")
    for each in (model, other):
        each(X[..., :4])
    np.savez(tmp_path / "up.npz", **polyak.snapshot(model))
    polyak.tensorflow.save_tf1(model, tmp_path / "up", rename={"Up_1/*": "Net_1/up/*"})
    for file, rename in (("up.npz", None), ("up", {"Net_1/up/*": "Up_1/*"})):
        polyak.transfer(polyak.Snapshot.from_arrays({k: 0 * v for k, v in polyak.snapshot(other).items()}), other)
        polyak.transfer(tmp_path / file, other, rename=rename)
        assert polyak.diff(model, other).same


def test_a_tree_of_jax_has_a_mean_with_keras_but_for_transposed_convolutions(tmp_path: Path) -> None:
    dense = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="up")])
    for model, module, x in ((dense, linen.Dense(4), X), (upsampling(), linen.ConvTranspose(4, (3, 3), (2, 2)), X)):
        tree = written(tmp_path / "up.msgpack", {"params": {"up": drawn(module, x)["params"]}})
        members = polyak.open(tree), polyak.snapshot(model)
        if model is dense:
            mean = polyak.average(members)
            assert mean.manifest.layout == "keras"
            assert np.allclose(mean["up/kernel"], (members[0]["up/kernel"] + members[1]["up/kernel"]) / 2)
            continue
        for order in (members, members[::-1]):
            with pytest.raises(AmbiguousMatch, match=r"'up/kernel'.*a tree of JAX.*the kernel of Conv2DTranspose"):
                polyak.average(order)


def test_a_tree_of_jax_has_no_mean_with_pytorch_under_its_names(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tree = written(tmp_path / "a.msgpack", {"params": {"fc.weight": np.ones((2, 2), np.float32)}})
    members = polyak.open(tree), polyak.snapshot(torch.nn.ModuleDict({"fc": torch.nn.Linear(2, 2, bias=False)}))
    with pytest.raises(AmbiguousMatch, match="expected members of one layout, received 'torch'") as refused:
        polyak.average(members)
    assert "transfer each into a model of one framework" in str(refused.value.hint)


def test_a_transposed_convolution_of_flax_that_lies_as_in_keras_is_taken_with_a_word(tmp_path: Path) -> None:
    module = linen.ConvTranspose(4, (3, 3), (2, 2), transpose_kernel=True)
    held = drawn(module, X)
    path, model = written(tmp_path / "up.msgpack", {"params": {"up": held["params"]}}), upsampling()
    with pytest.raises(AmbiguousMatch, match='layout="keras" takes it as it is'):
        polyak.transfer(path, model)
    polyak.transfer(path, model, layout="keras")
    assert np.abs(np.asarray(model(X)) - np.asarray(module.apply(held, X))).max() < 1e-4
    with pytest.raises(AmbiguousMatch, match="beside the kernel of Conv2DTranspose"):
        polyak.transfer(model, tmp_path / "back.npz", like=path)
    polyak.transfer(model, tmp_path / "back.npz", like=path, layout="keras")


class _Net(linen.Module):  # type: ignore[misc]
    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.Conv(4, (3, 3), name="conv")(x)
        x = linen.BatchNorm(use_running_average=True, name="norm")(x)
        return linen.Dense(4, name="head")(x.mean((1, 2)))


def module_of_pytorch() -> Any:
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(4, 4, 3, padding=1)
            self.norm = torch.nn.BatchNorm2d(4)
            self.head = torch.nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            return self.head(self.norm(self.conv(x)).mean((2, 3)))

    return Net().eval()


def answered(net: Any) -> Any:
    torch = pytest.importorskip("torch")
    return net(torch.from_numpy(np.moveaxis(X, -1, 1).copy())).detach().numpy()


def test_what_a_module_of_pytorch_misses_is_turned_and_not_left_out(tmp_path: Path) -> None:
    module, net = _Net(), module_of_pytorch()
    held = drawn(module, X)
    path = written(tmp_path / "net.msgpack", held)
    with pytest.raises(MissingWeight, match=r"'conv\.weight'") as refused:
        polyak.transfer(path, net)
    assert refused.value.hint == 'say how the source lies: layout="keras"'
    polyak.transfer(path, net, layout="keras")
    assert np.abs(answered(net) - np.asarray(module.apply(held, X))).max() < 1e-4


def test_a_module_of_pytorch_is_written_as_a_tree_of_flax(tmp_path: Path) -> None:
    module, net = _Net(), module_of_pytorch()
    held = drawn(module, X)
    path = written(tmp_path / "net.msgpack", held)
    polyak.transfer(net, tmp_path / "new.npz", like=path)
    new = polyak.open(tmp_path / "new.npz")
    made = jax.tree_util.tree_map_with_path(lambda at, _: new["/".join(step.key for step in at[1:])], held)
    assert np.abs(answered(net) - np.asarray(module.apply(made, X))).max() < 1e-4


def test_a_transposed_convolution_of_pytorch_is_written_as_no_tree_of_flax(tmp_path: Path) -> None:
    nn = pytest.importorskip("torch").nn
    held = drawn(linen.ConvTranspose(4, (3, 3)), X)["params"]
    path = written(tmp_path / "up.msgpack", {"params": {"up": held}})
    with pytest.raises(AmbiguousMatch, match="Keras and Flax keep such kernels in another order"):
        polyak.transfer(nn.ModuleDict({"up": nn.ConvTranspose2d(4, 4, 3)}), tmp_path / "up.npz", like=path)


class _Attending(linen.Module):  # type: ignore[misc]
    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.MultiHeadDotProductAttention(num_heads=2, name="attention")(x)


def attending() -> Any:
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.attention(x, x, x)[0]

    return Net().eval()


def test_the_attention_of_flax_is_that_of_pytorch_both_ways(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    x = X.reshape(2, -1)[:, :96].reshape(2, 12, 8)
    held = drawn(_Attending(), x)
    path, net, other = written(tmp_path / "attention.msgpack", held), attending(), attending()
    polyak.transfer(path, net, layout="keras")
    expected = np.asarray(_Attending().apply(held, x))
    assert np.abs(net(torch.from_numpy(x.copy())).detach().numpy() - expected).max() < 1e-5
    polyak.transfer(net, tmp_path / "back.npz", like=path)
    polyak.transfer(tmp_path / "back.npz", other, layout="keras")
    assert np.array_equal(other(torch.from_numpy(x.copy())).detach(), net(torch.from_numpy(x.copy())).detach())


def test_plain_layers_that_are_called_as_those_of_an_attention_stay_layers() -> None:
    nn = pytest.importorskip("torch").nn
    names = ("query", "key", "value", "out")
    held = {f"a/{name}/kernel": np.full((3, 2), n, np.float32) for n, name in enumerate(names)}
    net = nn.ModuleDict({"a": nn.ModuleDict({name: nn.Linear(3, 2, bias=False) for name in names})})
    polyak.transfer(polyak.Snapshot.from_arrays(held), net, layout="keras")
    assert [net["a"][name].weight[0, 0].item() for name in names] == [0, 1, 2, 3]


@pytest.mark.parametrize("by", ["position", "structure", "name"])
def test_a_tree_that_has_names_alone_is_paired_by_nothing_else(tmp_path: Path, by: Any) -> None:
    held = {name: {"kernel": np.ones((4, 4), np.float32)} for name in ("Dense_0", "Dense_1")}
    path = written(tmp_path / "net.msgpack", {"params": held})
    layers = [keras.layers.Dense(4, use_bias=False) for _ in held]
    model = keras.Sequential([keras.Input((4,)), *layers])
    with pytest.raises(AmbiguousMatch, match=f'by="{by}": expected weights of which the {by} is known') as refused:
        polyak.transfer(path, model, by=by)
    assert "rename=" in str(refused.value.hint)
    polyak.transfer(path, model, by=by, rename={"Dense_0/*": "dense/*", "Dense_1/*": "dense_1/*"})


@pytest.mark.parametrize("by", ["position", "structure", "name"])
def test_nothing_is_written_like_a_tree_of_names_alone_by_something_else(tmp_path: Path, by: Any) -> None:
    path = written(tmp_path / "net.msgpack", {"params": {"Dense_0": {"kernel": np.ones((4, 4), np.float32)}}})
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, use_bias=False)])
    with pytest.raises(AmbiguousMatch, match=rf'by="{by}": expected .* received names alone from the structure'):
        polyak.transfer(model, tmp_path / "new.npz", like=path, by=by)
    assert not (tmp_path / "new.npz").exists()
