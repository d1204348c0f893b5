"""Weights between Keras and PyTorch: both models run on the same input and answer the same.

The greatest difference of each comparison is printed (``pytest -s``) and recorded as a property of the test.
"""

from __future__ import annotations

import fnmatch
import itertools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyak
from polyak.errors import (
    AmbiguousMatch,
    MissingWeight,
    ShapeMismatch,
    UnbuiltModel,
    UnexpectedWeight,
    WeightError,
)

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")

layers, nn = keras.layers, torch.nn
TOLERANCE = 1e-5
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def first(x: np.ndarray) -> np.ndarray:
    """Channels behind the batch, as PyTorch has them."""
    return np.moveaxis(x, -1, 1)


def last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1)


def same(x: np.ndarray) -> np.ndarray:
    return x


@dataclass(frozen=True)
class Case:
    """One layer in both frameworks: how to make it, the input that Keras takes, and how to hand it to PyTorch."""

    keras: Callable[[], Any]
    torch: Callable[[], Any]
    shape: tuple[int, ...]
    enter: Callable[[np.ndarray], np.ndarray] = same
    leave: Callable[[np.ndarray], np.ndarray] = same
    run: Callable[[Any, Any], Any] = field(default=lambda layer, x: layer(x))
    call: Callable[[Any, Any], Any] = field(default=lambda layer, x: layer(x))
    whole: bool = False  # integers as input


def recurrent(layer: Any, x: Any) -> Any:
    return layer(x)[0]


def attend(layer: Any, x: Any) -> Any:
    return layer(x, x, x)[0]


def tables(size: int) -> Callable[[Any, Any], Any]:
    """Query, key and value of different widths."""
    return lambda layer, x: layer(x, x[..., :size], x[..., : size - 1])


L = layers
CASES: dict[str, Case] = {
    "dense": Case(lambda: L.Dense(5), lambda: nn.Linear(7, 5), (3, 7)),
    "dense square": Case(lambda: L.Dense(7), lambda: nn.Linear(7, 7), (3, 7)),
    "dense without bias": Case(lambda: L.Dense(5, use_bias=False), lambda: nn.Linear(7, 5, bias=False), (3, 7)),
    "conv1d": Case(lambda: L.Conv1D(5, 3), lambda: nn.Conv1d(4, 5, 3), (2, 9, 4), first, last),
    "conv2d": Case(lambda: L.Conv2D(5, 3), lambda: nn.Conv2d(4, 5, 3), (2, 9, 8, 4), first, last),
    "conv2d oblong": Case(lambda: L.Conv2D(4, (2, 3)), lambda: nn.Conv2d(4, 4, (2, 3)), (2, 9, 8, 4), first, last),
    "conv2d groups": Case(
        lambda: L.Conv2D(6, 3, groups=2), lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 9, 8, 4), first, last
    ),
    "conv3d": Case(lambda: L.Conv3D(5, (1, 2, 3)), lambda: nn.Conv3d(4, 5, (1, 2, 3)), (2, 5, 6, 7, 4), first, last),
    "conv1d transpose": Case(
        lambda: L.Conv1DTranspose(5, 3, strides=2), lambda: nn.ConvTranspose1d(4, 5, 3, 2), (2, 6, 4), first, last
    ),
    "conv2d transpose": Case(
        lambda: L.Conv2DTranspose(5, 3, strides=2), lambda: nn.ConvTranspose2d(4, 5, 3, 2), (2, 6, 5, 4), first, last
    ),
    "conv3d transpose": Case(
        lambda: L.Conv3DTranspose(5, 2, strides=2), lambda: nn.ConvTranspose3d(4, 5, 2, 2), (2, 3, 4, 5, 4), first, last
    ),
    "depthwise1d": Case(
        lambda: L.DepthwiseConv1D(3, depth_multiplier=2), lambda: nn.Conv1d(4, 8, 3, groups=4), (2, 9, 4), first, last
    ),
    "depthwise2d": Case(
        lambda: L.DepthwiseConv2D((3, 2), depth_multiplier=2),
        lambda: nn.Conv2d(4, 8, (3, 2), groups=4),
        (2, 9, 8, 4),
        first,
        last,
    ),
    "separable1d": Case(
        lambda: L.SeparableConv1D(5, 3, depth_multiplier=2),
        lambda: nn.Sequential(nn.Conv1d(4, 8, 3, groups=4, bias=False), nn.Conv1d(8, 5, 1)),
        (2, 9, 4),
        first,
        last,
    ),
    "separable2d": Case(
        lambda: L.SeparableConv2D(5, 3, depth_multiplier=2),
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.Conv2d(8, 5, 1)),
        (2, 9, 8, 4),
        first,
        last,
    ),
    "batch norm": Case(
        lambda: L.BatchNormalization(epsilon=1e-5), lambda: nn.BatchNorm2d(4).eval(), (2, 5, 6, 4), first, last
    ),
    "layer norm": Case(lambda: L.LayerNormalization(epsilon=1e-5), lambda: nn.LayerNorm(6), (3, 6)),
    "rms norm": Case(lambda: L.RMSNormalization(epsilon=1e-5), lambda: nn.RMSNorm(6, eps=1e-5), (3, 6)),
    "group norm": Case(
        lambda: L.GroupNormalization(2, epsilon=1e-5), lambda: nn.GroupNorm(2, 4), (2, 5, 6, 4), first, last
    ),
    "embedding": Case(lambda: L.Embedding(9, 9), lambda: nn.Embedding(9, 9), (3, 4), whole=True),
    "prelu": Case(lambda: L.PReLU(shared_axes=[1, 2]), lambda: nn.PReLU(4), (2, 5, 6, 4), first, last),
    "simple rnn": Case(
        lambda: L.SimpleRNN(5, return_sequences=True),
        lambda: nn.RNN(5, 5, batch_first=True),
        (2, 6, 5),
        run=recurrent,
    ),
    "lstm": Case(
        lambda: L.LSTM(5, return_sequences=True), lambda: nn.LSTM(5, 5, batch_first=True), (2, 6, 5), run=recurrent
    ),
    "lstm without bias": Case(
        lambda: L.LSTM(5, return_sequences=True, use_bias=False),
        lambda: nn.LSTM(4, 5, batch_first=True, bias=False),
        (2, 6, 4),
        run=recurrent,
    ),
    "gru": Case(
        lambda: L.GRU(5, return_sequences=True), lambda: nn.GRU(4, 5, batch_first=True), (2, 6, 4), run=recurrent
    ),
    "bidirectional simple rnn": Case(
        lambda: L.Bidirectional(L.SimpleRNN(5, return_sequences=True)),
        lambda: nn.RNN(4, 5, batch_first=True, bidirectional=True),
        (2, 6, 4),
        run=recurrent,
    ),
    "bidirectional lstm": Case(
        lambda: L.Bidirectional(L.LSTM(5, return_sequences=True)),
        lambda: nn.LSTM(4, 5, batch_first=True, bidirectional=True),
        (2, 6, 4),
        run=recurrent,
    ),
    "bidirectional gru": Case(
        lambda: L.Bidirectional(L.GRU(5, return_sequences=True)),
        lambda: nn.GRU(4, 5, batch_first=True, bidirectional=True),
        (2, 6, 4),
        run=recurrent,
    ),
    "attention": Case(
        lambda: L.MultiHeadAttention(2, 4),
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        (2, 6, 8),
        run=attend,
        call=lambda layer, x: layer(x, value=x, key=x),
    ),
    "attention of other widths": Case(
        lambda: L.MultiHeadAttention(2, 4),
        lambda: nn.MultiheadAttention(8, 2, kdim=6, vdim=5, batch_first=True),
        (2, 6, 8),
        run=lambda layer, x: layer(x, x[..., :6], x[..., :5])[0],
        call=lambda layer, x: layer(x, value=x[..., :5], key=x[..., :6]),
    ),
    "attention without bias": Case(
        lambda: L.MultiHeadAttention(2, 4, use_bias=False),
        lambda: nn.MultiheadAttention(8, 2, bias=False, batch_first=True),
        (2, 6, 8),
        run=attend,
        call=lambda layer, x: layer(x, value=x, key=x),
    ),
}
each_case = pytest.mark.parametrize("name", CASES)


class KerasHolder(keras.Model):
    """A layer under the name that the module has on the other side."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.inner = case.keras()
        self.case = case

    def call(self, x: Any) -> Any:
        return self.case.call(self.inner, x)


class TorchHolder(nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.inner = case.torch()
        self.case = case

    def forward(self, x: Any) -> Any:
        return self.case.run(self.inner, x)


def randomised_keras(model: Any) -> Any:
    """Values with which no two arrays or places can be exchanged unseen; variances are positive."""
    for v in model.weights:
        value = normal(*v.shape) * 0.5
        v.assign(np.abs(value) + 0.5 if v.name == "moving_variance" else value)
    return model


def randomised_torch(module: Any) -> Any:
    with torch.no_grad():
        for name, t in module.state_dict().items():
            if t.dtype.is_floating_point:
                value = torch.from_numpy(normal(*t.shape) * 0.5)
                t.copy_(value.abs() + 0.5 if name.endswith("running_var") else value)
    return module


def pair(name: str) -> tuple[Any, Any, np.ndarray]:
    case = CASES[name]
    x = RNG.integers(0, 9, case.shape) if case.whole else normal(*case.shape)
    model, module = KerasHolder(case), TorchHolder(case)
    model(x)
    return randomised_keras(model), randomised_torch(module), x


def difference(name: str, model: Any, module: Any, x: np.ndarray) -> float:
    case = CASES[name]
    with torch.no_grad():
        theirs = case.leave(module(torch.from_numpy(np.ascontiguousarray(case.enter(x)))).numpy())
    return float(np.abs(np.asarray(model(x)) - theirs).max())


def told(found: float, what: str, record_property: Any) -> None:
    print(f"{what}: greatest difference {found:.2g}")
    record_property("difference", found)
    assert found < TOLERANCE


@each_case
def test_a_keras_layer_with_the_weights_of_pytorch_answers_the_same(name: str, record_property: Any) -> None:
    model, module, x = pair(name)
    assert difference(name, model, module, x) > 0.01
    polyak.transfer(module, model)
    told(difference(name, model, module, x), f"PyTorch -> Keras, {name}", record_property)


@each_case
def test_a_pytorch_layer_with_the_weights_of_keras_answers_the_same(name: str, record_property: Any) -> None:
    model, module, x = pair(name)
    polyak.transfer(model, module)
    told(difference(name, model, module, x), f"Keras -> PyTorch, {name}", record_property)


@each_case
def test_there_and_back_keeps_every_bit(name: str) -> None:
    model, module, _ = pair(name)
    before = polyak.snapshot(model)
    polyak.transfer(model, module)
    other = KerasHolder(CASES[name])
    other(np.zeros(CASES[name].shape, np.int64 if CASES[name].whole else np.float32))
    polyak.transfer(module, other)
    after = polyak.snapshot(other)
    assert {n: a.tobytes() for n, a in before.items() if "seed" not in n} == {
        n: a.tobytes() for n, a in after.items() if "seed" not in n
    }


@each_case
def test_names_and_layout_of_pytorch_need_no_module(name: str, tmp_path: Path) -> None:
    """The separable convolutions have no module of their own in PyTorch, and get names that say what they are."""
    model, module, _ = pair(name)
    polyak.convert(model, tmp_path / "a.safetensors", layout="torch")
    polyak.transfer(model, module)
    wanted, made = polyak.snapshot(module), polyak.open(tmp_path / "a.safetensors")
    names = {n.replace("inner.0.", "inner.depthwise.").replace("inner.1.", "inner.pointwise."): n for n in wanted}
    names = (
        {n: old for n, old in names.items() if not n.endswith("num_batches_tracked")} if name == "batch norm" else names
    )
    assert set(made) == set(names)
    for n, old in names.items():
        assert made[n].tobytes() == wanted[old].tobytes(), n


# --- models ----------------------------------------------------------------------------------------------------------


class KerasNet(keras.Model):
    """A small residual network with batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = L.Conv2D(8, 3, padding="same", use_bias=False)
        self.bn1 = L.BatchNormalization(epsilon=1e-5)
        self.conv2 = L.Conv2D(8, 3, padding="same", use_bias=False)
        self.bn2 = L.BatchNormalization(epsilon=1e-5)
        self.depthwise = L.DepthwiseConv2D(3, padding="same")
        self.head = L.Dense(8)

    def call(self, x: Any, training: bool = False) -> Any:
        x = tf.nn.relu(self.bn1(self.stem(x), training=training))
        x = x + tf.nn.relu(self.bn2(self.conv2(x), training=training))
        return self.head(tf.reduce_mean(self.depthwise(x), axis=[1, 2]))


class TorchNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 8)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.bn1(self.stem(x)))
        x = x + torch.relu(self.bn2(self.conv2(x)))
        return self.head(self.depthwise(x).mean((2, 3)))


class KerasBlock(keras.Model):
    """A transformer block under names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = L.Embedding(11, 8)
        self.attention = L.MultiHeadAttention(2, 4)
        self.norms = [L.LayerNormalization(epsilon=1e-5), L.LayerNormalization(epsilon=1e-5)]
        self.mlp = keras.Sequential([L.Dense(16, activation="relu", name="up"), L.Dense(8, name="down")])

    def call(self, x: Any) -> Any:
        x = self.tokens(x)
        x = self.norms[0](x + self.attention(x, x))
        return self.norms[1](x + self.mlp(x))


class TorchBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.layer(self.tokens(x))


BLOCK_NAMES = {
    "layer.self_attn": "attention",
    "layer.linear1": "mlp/up",
    "layer.linear2": "mlp/down",
    "layer.norm1": "norms/0",
    "layer.norm2": "norms/1",
}
IMAGES = normal(4, 7, 6, 3)
WORDS = RNG.integers(0, 11, (3, 5))


def built(model: Any, x: Any) -> Any:
    model(x)
    return randomised_keras(model)


def answers(module: Any, x: np.ndarray) -> np.ndarray:
    module.eval()
    with torch.no_grad():
        return module(torch.from_numpy(np.ascontiguousarray(x))).numpy()


def trained_torch(steps: int = 4) -> tuple[Any, Any]:
    """A network and its average after real steps, by PyTorch's own tool."""
    module = randomised_torch(TorchNet())
    averaged = torch.optim.swa_utils.AveragedModel(
        module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.6), use_buffers=True
    )
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.from_numpy(first(normal(*IMAGES.shape)).copy())).square().mean().backward()
        optimizer.step()
        averaged.update_parameters(module)
    return module, averaged


def test_the_average_in_a_file_of_pytorch_starts_a_keras_model(tmp_path: Path, record_property: Any) -> None:
    module, averaged = trained_torch()
    torch.save({"model": module.state_dict(), "ema": averaged.state_dict()}, tmp_path / "ema.pt")
    model = built(KerasNet(), IMAGES)
    receipt = polyak.transfer(tmp_path / "ema.pt", model, weights="average")
    told(
        float(np.abs(np.asarray(model(IMAGES)) - answers(averaged.module, first(IMAGES))).max()),
        "AveragedModel of PyTorch in a file -> Keras, residual network",
        record_property,
    )
    assert receipt.left == ("bn1.num_batches_tracked", "bn2.num_batches_tracked")
    assert "(in the layout of Keras)" in receipt.source


def test_the_average_of_a_keras_model_starts_a_module_of_pytorch(tmp_path: Path, record_property: Any) -> None:
    model = built(KerasNet(), IMAGES)
    ema = polyak.EMA(model, decay=0.6)
    for _ in range(3):
        randomised_keras(model)
        ema.update()
    module = TorchNet()
    counted = int(module.bn1.num_batches_tracked)
    receipt = polyak.transfer(ema, module)
    difference = np.abs(np.asarray(ema(IMAGES)) - answers(module, first(IMAGES))).max()
    told(float(difference), "EMA of Keras -> PyTorch, residual network", record_property)
    assert receipt.left == ("bn1.num_batches_tracked", "bn2.num_batches_tracked")
    assert receipt.role == "average"
    assert receipt.count == 3
    assert int(module.bn1.num_batches_tracked) == counted


@pytest.mark.parametrize("end", [".pt", ".safetensors"])
def test_the_average_of_a_keras_model_is_a_state_dict_that_pytorch_loads(tmp_path: Path, end: str) -> None:
    model = built(KerasNet(), IMAGES)
    ema = polyak.EMA(model, decay=0.6)
    randomised_keras(model)
    ema.update()
    path = tmp_path / f"ema{end}"
    polyak.convert(ema, path, layout="torch")
    fresh = TorchNet()
    if end == ".pt":
        fresh.load_state_dict(torch.load(path, weights_only=True), strict=True)
        torch.load(path, weights_only=True, mmap=True)
    else:
        loaded = pytest.importorskip("safetensors.torch").load_file(path)
        assert fresh.load_state_dict(loaded, strict=False).missing_keys in (
            [],
            ["bn1.num_batches_tracked", "bn2.num_batches_tracked"],
        )
    assert np.abs(np.asarray(ema(IMAGES)) - answers(fresh, first(IMAGES))).max() < TOLERANCE
    held = polyak.open(path)
    assert (held.roles, held.state.count, held.manifest.layout) == (("average",), 1, "torch")
    other = built(KerasNet(), IMAGES)
    polyak.transfer(path, other)
    np.testing.assert_array_equal(np.asarray(other(IMAGES)), np.asarray(ema(IMAGES)))


def test_the_average_of_polyak_comes_back_from_a_module_as_a_file_of_keras(tmp_path: Path) -> None:
    """A live module is the template: its names are the file's."""
    model, module = built(KerasNet(), IMAGES), TorchNet()
    polyak.transfer(model, module)
    polyak.save(module, tmp_path / "module.pt")
    TorchNet().load_state_dict(torch.load(tmp_path / "module.pt", weights_only=True), strict=True)
    other = built(KerasNet(), IMAGES)
    polyak.transfer(tmp_path / "module.pt", other)
    np.testing.assert_array_equal(np.asarray(other(IMAGES)), np.asarray(model(IMAGES)))


def test_a_transformer_block_goes_both_ways_by_the_names_of_its_layers(record_property: Any) -> None:
    model, module = built(KerasBlock(), WORDS), randomised_torch(TorchBlock())
    polyak.transfer(module, model, rename=BLOCK_NAMES)
    found = float(np.abs(np.asarray(model(WORDS)) - answers(module, WORDS)).max())
    told(found, "PyTorch -> Keras, transformer block", record_property)
    randomised_keras(model)
    polyak.transfer(model, module, rename={new: old for old, new in BLOCK_NAMES.items()})
    found = float(np.abs(np.asarray(model(WORDS)) - answers(module, WORDS)).max())
    told(found, "Keras -> PyTorch, transformer block", record_property)


def test_an_average_of_keras_takes_the_values_of_pytorch() -> None:
    model, module = built(KerasNet(), IMAGES), randomised_torch(TorchNet())
    ema = polyak.EMA(model, decay=0.5)
    polyak.transfer(module, ema)
    assert np.abs(np.asarray(ema(IMAGES)) - answers(module, first(IMAGES))).max() < TOLERANCE
    assert ema.count == 0


def test_narrow_dtypes_go_over_bit_for_bit() -> None:
    model = keras.Sequential([L.Dense(5, dtype="bfloat16", name="inner")])
    model.build((None, 7))
    module = nn.Sequential()
    module.add_module("inner", nn.Linear(7, 5, dtype=torch.bfloat16))
    polyak.transfer(module, model)
    kernel = polyak.snapshot(model)["inner/kernel"]
    assert kernel.dtype.name == "bfloat16"
    assert kernel.T.tobytes() == polyak.snapshot(module)["inner.weight"].tobytes()


# --- pairing ---------------------------------------------------------------------------------------------------------


def chain(*units: int, names: tuple[str, ...] = ()) -> Any:
    made = [L.Dense(n, name=name) for n, name in zip(units[1:], names or (None,) * len(units), strict=False)]
    model = keras.Sequential(made)
    model.build((None, units[0]))
    return randomised_keras(model)


def linears(*units: int) -> Any:
    pairs = itertools.pairwise(units)
    return randomised_torch(nn.Sequential(*[m for a, b in pairs for m in (nn.Linear(a, b), nn.Identity())]))


def test_layers_pair_in_order_when_asked() -> None:
    model, module, x = chain(4, 6, 6, 3), linears(4, 6, 6, 3), normal(2, 4)
    with pytest.raises(MissingWeight, match="expected a layer of this name") as refused:
        polyak.transfer(module, model)
    assert 'by="position"' in refused.value.hint
    assert 'rename={"0": "dense"}' in refused.value.hint
    polyak.transfer(module, model, by="position")
    np.testing.assert_allclose(np.asarray(model(x)), answers(module, x), atol=TOLERANCE)


def test_an_order_that_shapes_or_counts_speak_against_is_refused_with_both_sides() -> None:
    with pytest.raises(AmbiguousMatch, match=r"number 1 do not fit: '2' \(Linear\).*'dense_1' \(Dense\)"):
        polyak.transfer(linears(4, 6, 5, 6), chain(4, 6, 6, 6), by="position")
    with pytest.raises(AmbiguousMatch, match=r"received 3 from .* and 2 for"):
        polyak.transfer(linears(4, 6, 6, 6), chain(4, 6, 6), by="position")


def test_layers_pair_by_new_names_in_dots_or_slashes_or_of_weights() -> None:
    module, x = linears(4, 6, 3), normal(2, 4)
    for rename in (
        {"0": "a", "2": "b"},
        {"0.*": "a/*", "2.*": "b.*"},
        {"0": "a", "2": "b"}.get,
        lambda n: "ab"[int(n) // 2],
    ):
        model = chain(4, 6, 3, names=("a", "b"))
        named = rename if isinstance(rename, dict) else lambda n, r=rename: r(n) or n
        polyak.transfer(module, model, rename=named)
        np.testing.assert_allclose(np.asarray(model(x)), answers(module, x), atol=TOLERANCE)
    with pytest.raises(MissingWeight, match="rename='nowhere'"):
        polyak.transfer(module, model, rename={"nowhere": "a"})


def test_parts_are_moved_by_globs_of_either_side() -> None:
    module, model = linears(4, 6, 3), chain(4, 6, 5, names=("a", "b"))
    before = polyak.snapshot(model)
    for chosen in ({"include": "a/*"}, {"exclude": "b/*"}):
        receipt = polyak.transfer(module, model, rename={"0": "a", "2": "b"}, **chosen)
        assert {m.target for m in receipt.moved} == {"a/kernel", "a/bias"}
        np.testing.assert_array_equal(polyak.snapshot(model)["b/kernel"], before["b/kernel"])
    with pytest.raises(ShapeMismatch, match=r"weight 'b/kernel': expected \(6, 5\), received \(6, 3\)"):
        polyak.transfer(module, model, rename={"0": "a", "2": "b"})
    with pytest.raises(MissingWeight, match="exclude='typo/"):
        polyak.transfer(module, model, rename={"0": "a", "2": "b"}, exclude="typo/*")


def test_what_only_the_source_has_is_refused_or_left_out_when_asked() -> None:
    module, model = linears(4, 6, 3), chain(4, 6, names=("a",))
    with pytest.raises(UnexpectedWeight, match="layer '2'"):
        polyak.transfer(module, model, rename={"0": "a"})
    polyak.transfer(module, model, rename={"0": "a"}, exclude="2.*")
    with pytest.raises(UnexpectedWeight, match="'bias'"):
        polyak.transfer(nn.ModuleDict({"a": nn.Linear(4, 6)}), biasless())


def biasless() -> Any:
    model = keras.Sequential([L.Dense(6, use_bias=False, name="a")])
    model.build((None, 4))
    return model


def test_two_layers_of_a_recurrent_module_are_two_layers_of_keras(record_property: Any) -> None:
    module = randomised_torch(nn.ModuleDict({"rnn": nn.LSTM(4, 5, 2, batch_first=True)}))
    model = keras.Sequential([L.LSTM(5, return_sequences=True), L.LSTM(5, return_sequences=True)])
    x = normal(2, 6, 4)
    model(x)
    with torch.no_grad():
        wanted = module["rnn"](torch.from_numpy(x))[0].numpy()
    polyak.transfer(module, model, rename={"rnn.l0": "lstm", "rnn.l1": "lstm_1"})
    told(float(np.abs(np.asarray(model(x)) - wanted).max()), "PyTorch -> Keras, two LSTMs", record_property)
    polyak.transfer(model, module, by="position")


def test_separable_convolutions_pair_in_order_too() -> None:
    case = CASES["separable2d"]
    model = keras.Sequential([case.keras(), L.Dense(5)])
    x = normal(*case.shape)
    model(x)
    randomised_keras(model)
    module = nn.Sequential(*case.torch(), nn.Linear(5, 5))
    polyak.transfer(model, module, by="position")
    with torch.no_grad():
        inner = last(module[1](module[0](torch.from_numpy(first(x).copy()))).numpy())
        theirs = module[2](torch.from_numpy(inner.copy())).numpy()
    np.testing.assert_allclose(np.asarray(model(x)), theirs, atol=TOLERANCE)


# Globs of arrays in Keras and of those in PyTorch that stand for the same.
APART = [
    ("dense", "kernel", "weight"),
    ("depthwise2d", "kernel", "weight"),
    ("depthwise2d", "bias", "bias"),
    ("separable2d", "depthwise_kernel", "0.weight"),
    ("separable2d", "pointwise_kernel", "1.weight"),
    ("separable2d", "bias", "1.bias"),
    ("lstm", "cell/bias", "bias_*"),
    ("gru", "cell/kernel", "weight_ih_l0"),
    ("gru", "cell/bias", "bias_*"),
    ("attention", "[!a]*", "in_proj_*"),
    ("attention", "[!a]*/kernel", "in_proj_weight"),
    ("attention", "[!a]*/bias", "in_proj_bias"),
    ("attention", "attention_output/kernel", "out_proj.weight"),
    ("attention", "attention_output/bias", "out_proj.bias"),
    ("attention", "attention_output/*", "out_proj.*"),
]


@pytest.mark.parametrize("to_torch", [True, False])
@pytest.mark.parametrize(("name", "of_keras", "of_torch"), APART)
def test_a_layer_goes_over_less_the_arrays_that_are_excluded(
    name: str, of_keras: str, of_torch: str, to_torch: bool
) -> None:
    model, module, _ = pair(name)
    source, target = (model, module) if to_torch else (module, model)
    before = polyak.snapshot(target)
    polyak.transfer(source, target, exclude=[f"inner/{of_keras}", f"inner.{of_torch}"])
    some = polyak.snapshot(target)
    polyak.transfer(source, target)
    out = f"inner.{of_torch}" if to_torch else f"inner/{of_keras}"
    for path, array in polyak.snapshot(target).items():
        wanted = before[path] if fnmatch.fnmatchcase(path, out) else array
        assert some[path].tobytes() == wanted.tobytes(), path


def test_a_recurrent_layer_of_narrow_numbers_has_the_sum_of_both_biases_rounded_once() -> None:
    model = keras.Sequential([L.LSTM(5, recurrent_initializer="zeros", dtype="bfloat16", name="inner")])
    model.build((None, 6, 4))
    module = randomised_torch(nn.ModuleDict({"inner": nn.LSTM(4, 5, dtype=torch.bfloat16)}))
    polyak.transfer(module, model)
    bias = polyak.snapshot(model)["inner/cell/bias"]
    wide = (module["inner"].bias_ih_l0.float() + module["inner"].bias_hh_l0.float()).to(torch.bfloat16)
    assert bias.dtype.name == "bfloat16"
    np.testing.assert_array_equal(bias.astype(np.float32), wide.float().detach().numpy())


def test_a_depthwise_convolution_of_keras_2_goes_over_under_its_own_name() -> None:
    tf_keras = pytest.importorskip("tf_keras")
    model = tf_keras.Sequential([tf_keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="inner")])
    images = normal(2, 9, 8, 4)
    built(model, images)
    assert "inner/depthwise_kernel" in polyak.snapshot(model)
    module = nn.Sequential()
    module.add_module("inner", nn.Conv2d(4, 8, 3, groups=4))
    polyak.transfer(model, module)
    assert np.abs(np.asarray(model(images)) - last(answers(module, first(images)))).max() < TOLERANCE


def test_classes_are_said_by_several_globs_and_in_order_too() -> None:
    module = nn.ModuleDict({"a": Theirs(4, 4), "b": Theirs(4, 4)})
    for asked in ({}, {"by": "position"}):
        model = keras.Sequential([Own(name="a"), Own(name="b")])
        model.build((None, 4))
        with pytest.raises(AmbiguousMatch):
            polyak.transfer(module, model, layers={"a": "same"}, **asked)
        polyak.transfer(module, model, layers={"a": "same", "b": "same"}, **asked)
        np.testing.assert_array_equal(polyak.snapshot(model)["b/weight"], polyak.snapshot(module)["b.weight"])


def test_weights_that_lie_as_in_pytorch_are_written_as_they_are(tmp_path: Path) -> None:
    module = linears(4, 6, 3)
    polyak.convert(module, tmp_path / "a.pt", layout="torch")
    held, wanted = polyak.open(tmp_path / "a.pt"), polyak.snapshot(module)
    assert {n: a.tobytes() for n, a in held.items()} == {n: a.tobytes() for n, a in wanted.items()}


# --- what is refused -------------------------------------------------------------------------------------------------


class Own(keras.layers.Layer):
    """A layer of the user's, whose layout nobody knows."""

    def build(self, shape: Any) -> None:
        self.weight = self.add_weight(shape=(shape[-1], 4), name="weight")

    def call(self, x: Any) -> Any:
        return x @ self.weight


class Theirs(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(normal(*shape)))


def own(size: int) -> Any:
    model = keras.Sequential([Own(name="own")])
    model.build((None, size))
    return model


def test_a_square_array_of_an_unknown_class_is_refused_until_its_layout_is_said() -> None:
    module = nn.ModuleDict({"own": Theirs(4, 4)})
    with pytest.raises(AmbiguousMatch, match="the other way round without anybody seeing it") as refused:
        polyak.transfer(module, own(4))
    assert 'layers={"own": "Dense"}' in refused.value.hint
    model = own(4)
    polyak.transfer(module, model, layers={"own": "same"})
    np.testing.assert_array_equal(polyak.snapshot(model)["own/weight"], polyak.snapshot(module)["own.weight"])


def test_an_oblong_array_of_an_unknown_class_goes_over_only_as_it_is() -> None:
    module, model = nn.ModuleDict({"own": Theirs(3, 4)}), own(3)
    polyak.transfer(module, model)
    np.testing.assert_array_equal(polyak.snapshot(model)["own/weight"], polyak.snapshot(module)["own.weight"])
    with pytest.raises(AmbiguousMatch, match="no layout rule is known"):
        polyak.transfer(nn.ModuleDict({"own": Theirs(4, 3)}), own(3))


def test_classes_without_a_common_rule_are_refused_with_both() -> None:
    model = keras.Sequential([L.Dense(4, name="x")])
    model.build((None, 4))
    with pytest.raises(AmbiguousMatch, match=r"'x' \(Embedding\) -> 'x' \(Dense\)"):
        polyak.transfer(nn.ModuleDict({"x": nn.Embedding(4, 4)}), model)


def test_a_gru_that_pytorch_cannot_compute_is_refused() -> None:
    for use_bias in (True, False):
        model = keras.Sequential([L.GRU(5, reset_after=False, use_bias=use_bias, name="gru")])
        model.build((None, 6, 4))
        module = nn.ModuleDict({"gru": nn.GRU(4, 5, bias=use_bias)})
        error = ShapeMismatch if use_bias else AmbiguousMatch
        for source, target in ((model, module), (module, model)):
            with pytest.raises(error, match="reset_after"):
                polyak.transfer(source, target)
    model = keras.Sequential([L.GRU(5, use_bias=False, name="gru")])
    model.build((None, 6, 4))
    polyak.transfer(module, model, layers={"gru": "GRU"})


def test_a_prelu_with_a_number_for_each_place_is_refused() -> None:
    model = keras.Sequential([L.PReLU(name="act")])
    model.build((None, 5, 4))
    module = nn.ModuleDict({"act": nn.PReLU(4)})
    for source, target in ((model, module), (module, model)):
        with pytest.raises(ShapeMismatch, match="all axes but the channels shared"):
            polyak.transfer(source, target)


def test_mistakes_in_what_is_asked_are_named() -> None:
    module, model = linears(4, 6), chain(4, 6)
    for asked, text in (
        ({"layers": {"0": "Dens"}}, "nearest: 'Dense'"),
        ({"layers": {"nothing": "Dense"}}, "a glob that matches none"),
        ({"by": "structure"}, 'expected "path" or "position"'),
        ({"layout": "keras"}, "expected 'torch', as"),
    ):
        with pytest.raises(WeightError, match=text):
            polyak.transfer(module, model, **asked)
    with pytest.raises(WeightError, match="expected two layouts"):
        polyak.transfer(model, chain(4, 6), layers={"dense": "Dense"})


def test_a_file_that_does_not_say_its_layout_needs_the_word(tmp_path: Path) -> None:
    saved = pytest.importorskip("safetensors.torch")
    module, model, x = linears(4, 4), chain(4, 4, names=("only",)), normal(2, 4)
    saved.save_file({f"only.{n[2:]}": t for n, t in module.state_dict().items()}, tmp_path / "a.safetensors")
    with pytest.raises(MissingWeight):
        polyak.transfer(tmp_path / "a.safetensors", model)
    polyak.transfer(tmp_path / "a.safetensors", model, layout="torch")
    np.testing.assert_allclose(np.asarray(model(x)), answers(module, x), atol=TOLERANCE)


def test_a_layer_of_the_users_own_needs_a_word_to_be_named_for_pytorch(tmp_path: Path) -> None:
    with pytest.raises(AmbiguousMatch, match="own/weight"):
        polyak.convert(own(3), tmp_path / "a.pt", layout="torch")
    polyak.convert(own(3), tmp_path / "a.pt", layout="torch", layers={"own": "same"})
    assert list(polyak.open(tmp_path / "a.pt")) == ["own.weight"]


def test_a_module_that_is_not_built_is_refused() -> None:
    with pytest.raises(UnbuiltModel, match="lazy"):
        polyak.transfer(chain(4, 6, names=("0",)), nn.Sequential(nn.LazyLinear(6)))


@pytest.mark.parametrize("template", ["module", "file"])
def test_a_module_or_file_of_pytorch_gives_the_names_of_what_is_written(tmp_path: Path, template: str) -> None:
    model, module = built(KerasBlock(), WORDS), randomised_torch(TorchBlock())
    torch.save(module.state_dict(), tmp_path / "like.pt")
    like = module if template == "module" else tmp_path / "like.pt"
    names = {new: old for old, new in BLOCK_NAMES.items()}
    polyak.transfer(model, tmp_path / "out.pt", like=like, rename=names)
    fresh = TorchBlock()
    fresh.load_state_dict(torch.load(tmp_path / "out.pt", weights_only=True), strict=True)
    assert np.abs(np.asarray(model(WORDS)) - answers(fresh, WORDS)).max() < TOLERANCE


@pytest.mark.parametrize("name", ["conv2d", "depthwise2d", "separable2d", "gru", "attention", "prelu", "embedding"])
def test_arrays_with_another_number_of_axes_are_refused(name: str, tmp_path: Path) -> None:
    model, module, _ = pair(name)
    for shape in ((3,), (), (3, 3, 3, 3, 3)):
        state = {n: torch.zeros(shape) for n in module.state_dict()}
        torch.save(state, tmp_path / "a.pt")
        before = polyak.snapshot(model)
        with pytest.raises(WeightError):
            polyak.transfer(tmp_path / "a.pt", model)
        assert {n: a.tobytes() for n, a in polyak.snapshot(model).items()} == {
            n: a.tobytes() for n, a in before.items()
        }


def state_file(path: Path, **arrays: tuple[int, ...]) -> Path:
    """A file of PyTorch with zeros of these shapes; two underscores stand for a dot."""
    torch.save({name.replace("__", "."): torch.zeros(shape) for name, shape in arrays.items()}, path)
    return path


def holder(name: str) -> Any:
    return pair(name)[0]


@pytest.mark.parametrize(
    ("name", "arrays", "text"),
    [
        ("dense without bias", {"inner__weight": (5, 7, 1)}, r"expected 2 axes, received \(5, 7, 1\)"),
        ("conv2d", {"inner__weight": (5,), "inner__bias": (5,)}, r"expected 4 axes, received \(5,\)"),
        ("prelu", {"inner__weight": (5,)}, r"expected a weight that makes \(1, 1, 4\), received \(5,\)"),
        (
            "attention",
            {"inner__in_proj_weight": (8, 8), "inner__out_proj__weight": (8, 8)},
            r"expected query, key and value in one array, received \(8, 8\)",
        ),
        (
            "gru",
            {"inner__weight_ih_l0": (10, 4), "inner__weight_hh_l0": (10, 5)},
            r"expected three gates, received \(10, 4\)",
        ),
        (
            "gru",
            {"inner__weight_ih_l0": (15, 4), "inner__bias_ih_l0": (10,), "inner__bias_hh_l0": (10,)},
            r"expected three gates, received \(10,\)",
        ),
    ],
)
def test_an_array_that_no_such_layer_has_is_refused_with_what_is_wrong_about_it(
    name: str, arrays: dict[str, tuple[int, ...]], text: str, tmp_path: Path
) -> None:
    with pytest.raises(ShapeMismatch, match=f"layer 'inner' -> 'inner' .*: {text}"):
        polyak.transfer(state_file(tmp_path / "a.pt", **arrays), holder(name), layout="torch")


@pytest.mark.parametrize("layer", ["DepthwiseConv2D", "PReLU"])
def test_a_class_that_the_keras_layer_is_not_is_refused_with_what_it_has(layer: str) -> None:
    with pytest.raises(ShapeMismatch, match="expected a Keras layer with this weight, received one with weight"):
        polyak.transfer(nn.ModuleDict({"own": Theirs(4, 4)}), own(4), layers={"own": layer})


@pytest.mark.parametrize("layer", ["DepthwiseConv2D", "SeparableConv2D", "PReLU", "MultiHeadAttention", "Dense"])
def test_a_class_whose_rule_knows_no_such_array_is_refused(layer: str) -> None:
    with pytest.raises(UnexpectedWeight, match=r"weight 'own/weight': 'own' .* has nothing for it"):
        polyak.transfer(own(4), nn.ModuleDict({"own": Theirs(4, 4)}), layers={"own": layer})


def test_a_prelu_of_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnexpectedWeight, match=r"weight 'inner.slope': 'inner' .* has nothing for it"):
        polyak.transfer(state_file(tmp_path / "a.pt", inner__slope=(4,)), holder("prelu"), layout="torch")


@pytest.mark.parametrize("to_torch", [True, False])
def test_what_is_left_of_an_array_that_is_made_of_several_is_refused(to_torch: bool) -> None:
    model, module, _ = pair("attention" if to_torch else "lstm")
    if to_torch:
        with pytest.raises(UnexpectedWeight, match=r"weight 'inner/key/kernel': 'inner' .* has nothing for it"):
            polyak.transfer(model, module, exclude=["inner/query/kernel", "inner.in_proj_weight"])
    else:
        with pytest.raises(UnexpectedWeight, match=r"weight 'inner.bias_ih_l0': 'inner' .* has nothing for it"):
            polyak.transfer(module, model, exclude=["inner.bias_hh_l0", "inner/cell/bias"])


def test_a_separable_convolution_of_keras_has_one_bias_and_both_kernels() -> None:
    model = holder("separable2d")
    biased = nn.ModuleDict({"inner": nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 5, 1))})
    for exclude in ((), ("inner.0.weight", "inner/depthwise_kernel")):
        with pytest.raises(UnexpectedWeight, match=r"weight 'inner.0.bias': 'inner' .* has nothing for it"):
            polyak.transfer(biased, model, exclude=exclude)


def test_two_layers_under_one_name_are_refused_with_both() -> None:
    with pytest.raises(AmbiguousMatch, match=r"expected one layer 'a', received '0' \(Linear\) and '2' \(Linear\)"):
        polyak.transfer(linears(4, 6, 6), chain(4, 6, names=("a",)), rename={"0": "a", "2": "a"})


def test_a_layer_that_is_missing_is_shown_with_the_nearest_even_of_another_size() -> None:
    with pytest.raises(MissingWeight, match=r"layer 'a' \(Dense\).*nearest: '0' \(Linear\)"):
        polyak.transfer(linears(4, 7), chain(4, 6, names=("a",)))
    with pytest.raises(MissingWeight, match=r"layer 'b' \(Dense\)") as refused:
        polyak.transfer(linears(4, 6), chain(4, 6, 6, names=("a", "b")), rename={"0": "a"})
    assert "nearest" not in refused.value.message
    assert "rename" not in refused.value.hint


def test_a_glob_of_the_source_is_no_glob_of_what_is_written() -> None:
    model = chain(4, 6, names=("a",))
    with pytest.raises(MissingWeight, match="include='0") as refused:
        polyak.transfer(linears(4, 6), model, include="0.*")
    assert "0.weight" not in str(refused.value)


def test_a_separable_convolution_needs_two_modules() -> None:
    model = holder("separable2d")
    for module in (nn.Conv2d(4, 5, 3), nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 1))):
        with pytest.raises((AmbiguousMatch, MissingWeight), match="'inner'"):
            polyak.transfer(model, nn.ModuleDict({"inner": module}))


def test_an_order_in_which_classes_or_axes_do_not_fit_is_refused(tmp_path: Path) -> None:
    two = chain(4, 6, 6)
    with pytest.raises(AmbiguousMatch, match=r"received 1 from .* and 2 for"):
        polyak.transfer(linears(4, 6), two, by="position")
    with pytest.raises(AmbiguousMatch, match=r"number 0 do not fit: 'x' \(Embedding\)"):
        polyak.transfer(nn.ModuleDict({"x": nn.Embedding(4, 6)}), chain(4, 6), by="position")
    odd = state_file(tmp_path / "a.pt", x__weight=(6, 4, 1), x__bias=(6,))
    with pytest.raises(AmbiguousMatch, match=r"number 0 do not fit: 'x' weight \(6, 4, 1\)"):
        polyak.transfer(odd, chain(4, 6), by="position", layout="torch")


def of_names(path: Path, model: Any) -> Path:
    """A file of names in the layout of Keras, which does not tell the classes of layers."""
    saved = pytest.importorskip("safetensors.numpy")
    saved.save_file({n: np.ascontiguousarray(a) for n, a in polyak.snapshot(model).items() if "seed" not in n}, path)
    return path


@pytest.mark.parametrize(
    ("layer", "shape", "module", "classes"),
    [
        (L.Conv2D(1, 3), (None, 9, 8, 1), nn.Conv2d(1, 1, 3), '"Conv2D" or "DepthwiseConv2D"'),
        (L.Dense(6), (None, 4), nn.Conv2d(4, 6, 3), '"Conv2D" or "DepthwiseConv2D"'),
    ],
)
def test_names_alone_that_fit_several_rules_or_none_are_refused(
    layer: Any, shape: tuple[int, ...], module: Any, classes: str, tmp_path: Path
) -> None:
    layer.name = "x"
    model = keras.Sequential([layer])
    model.build(shape)
    with pytest.raises(AmbiguousMatch, match="no layout rule is known") as refused:
        polyak.transfer(of_names(tmp_path / "a.safetensors", model), nn.ModuleDict({"x": module}), layout="keras")
    assert classes in refused.value.hint


def test_names_alone_of_a_gru_without_bias_do_not_show_what_it_computes(tmp_path: Path) -> None:
    model = keras.Sequential([L.GRU(5, use_bias=False, name="gru")])
    model.build((None, 6, 4))
    path = of_names(tmp_path / "a.safetensors", model)
    module = nn.ModuleDict({"gru": nn.GRU(4, 5, bias=False)})
    with pytest.raises(AmbiguousMatch, match="reset_after") as refused:
        polyak.transfer(path, module, layout="keras")
    assert refused.value.hint == 'if it is True, say so with layers={"gru": "GRU"}'
    polyak.transfer(path, module, layout="keras", layers={"gru": "GRU"})


def test_only_weights_of_keras_are_named_for_pytorch(tmp_path: Path) -> None:
    arrays = polyak.Snapshot.from_arrays({"x/kernel": np.zeros((4, 4), np.float32)})
    for source, layout, received in ((arrays, "torch", "without a word on their layout"), (own(3), "keras", "keras")):
        with pytest.raises(WeightError, match=f'layout={layout!r}: expected "torch" and weights of a Keras model'):
            polyak.convert(source, tmp_path / "a.pt", layout=layout)
        with pytest.raises(WeightError, match=received):
            polyak.convert(source, tmp_path / "a.pt", layout=layout)
    assert not (tmp_path / "a.pt").exists()


class KerasMixed(keras.Model):
    """One layer of each kind that PyTorch's class alone does not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = L.Conv2D(8, 3)
        self.depthwise = L.DepthwiseConv2D(3)
        self.norm = L.BatchNormalization(epsilon=1e-5)
        self.attention = L.MultiHeadAttention(2, 4)
        self.lstm = L.LSTM(8)
        self.both = L.Bidirectional(L.LSTM(8))
        self.gru = L.GRU(8)
        self.head = L.Dense(8)

    def call(self, x: Any) -> Any:
        x = tf.reshape(self.norm(self.depthwise(self.conv(x))), (4, -1, 8))
        return self.head(self.lstm(self.attention(x, x))) + self.gru(x) + self.both(x)[:, :8]


class TorchMixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.lstm = nn.LSTM(8, 8)
        self.both = nn.LSTM(8, 8, bidirectional=True)
        self.gru = nn.GRU(8, 8)
        self.head = nn.Linear(8, 8)


def test_a_file_of_names_alone_in_the_layout_of_keras_fits_a_module(tmp_path: Path) -> None:
    saved = pytest.importorskip("safetensors.numpy")
    model, module, wanted = built(KerasMixed(), IMAGES), TorchMixed(), TorchMixed()
    arrays = {n: np.ascontiguousarray(a) for n, a in polyak.snapshot(model).items() if "seed" not in n}
    saved.save_file(arrays, tmp_path / "names.safetensors")
    polyak.transfer(tmp_path / "names.safetensors", module, layout="keras")
    polyak.transfer(model, wanted)
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor), name


def test_the_commands_know_the_layouts(tmp_path: Path) -> None:
    model, module = built(KerasNet(), IMAGES), TorchNet().eval()
    polyak.save(model, tmp_path / "keras.safetensors")
    torch.save(module.state_dict(), tmp_path / "like.pt")

    def run(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "polyak", *arguments], check=True, capture_output=True, cwd=tmp_path)

    run("convert", "keras.safetensors", "a.pt", "--layout", "torch")
    run("transfer", "keras.safetensors", "b.pt", "--like", "like.pt")
    for name in ("a.pt", "b.pt"):
        module.load_state_dict(torch.load(tmp_path / name, weights_only=True), strict=True)
        assert np.abs(np.asarray(model(IMAGES)) - answers(module, first(IMAGES))).max() < TOLERANCE


def square_pair() -> tuple[Any, Any]:
    model = keras.Sequential([layers.Dense(4, name="x")])
    model.build((None, 4))
    return model, nn.ModuleDict({"x": nn.Linear(4, 4)})


def test_a_plan_between_layouts_is_not_stored_and_its_hint_leads_on(tmp_path: Path) -> None:
    """Data says which array goes where; a square one would go over unturned."""
    model, module = square_pair()
    with pytest.raises(WeightError, match="expected two sides in one layout to store it") as refused:
        polyak.plan(model, module).to_json()
    assert "like=target" in str(refused.value)
    path = tmp_path / "as_target.safetensors"
    polyak.transfer(model, path, like=module)
    text = polyak.plan(path, module).to_json()
    polyak.transfer(path, module, plan=polyak.StoredPlan.from_json(text))
    x = normal(3, 4)
    theirs = module["x"](torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(np.asarray(model(x)), theirs, atol=TOLERANCE)


def test_a_stored_plan_never_goes_between_layouts() -> None:
    """Also one that was made for others, or written by hand."""
    model, module = square_pair()
    before = polyak.snapshot(module)
    text = polyak.plan(nn.ModuleDict({"x": nn.Linear(4, 4)}), module).to_json()
    for made in (
        text,
        text.replace('"source":"x.weight"', '"source":"x/kernel"').replace('"source":"x.', '"source":"x/'),
    ):
        with pytest.raises(WeightError, match="two sides in one layout"):
            polyak.transfer(model, module, plan=polyak.StoredPlan.from_json(made))
    np.testing.assert_array_equal(polyak.snapshot(module)["x.weight"], before["x.weight"])


def test_a_plan_and_a_receipt_say_what_has_no_twin() -> None:
    made = polyak.plan(built(KerasNet(), IMAGES), TorchNet())
    assert "  only on one side: bn1.num_batches_tracked" in str(made)
    assert "2 only on one side" in str(made.apply())


class Turned(nn.Module):
    """What transformers calls Conv1D: a linear layer whose weight lies as in Keras."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(normal(inputs, outputs)))
        self.bias = nn.Parameter(torch.from_numpy(normal(outputs)))

    def forward(self, x: Any) -> Any:
        return x @ self.weight + self.bias


class TurnedPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.square = Turned(4, 12), Turned(4, 4)

    def forward(self, x: Any) -> Any:
        return torch.cat([self.wide(x), self.square(x)], -1)


class DensePair(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.square = L.Dense(12), L.Dense(4)

    def call(self, x: Any) -> Any:
        return keras.ops.concatenate([self.wide(x), self.square(x)], -1)


@pytest.mark.parametrize("by", [None, "position"])
@pytest.mark.parametrize("from_file", [True, False])
def test_a_linear_layer_that_lies_as_in_keras_is_taken_as_it_is(from_file: bool, by: Any, tmp_path: Path) -> None:
    module, x = TurnedPair(), normal(3, 4)
    model = built(DensePair(), x)
    torch.save(module.state_dict(), tmp_path / "a.pt")
    polyak.transfer(tmp_path / "a.pt" if from_file else module, model, layers={"*": "same"}, by=by)
    assert np.abs(np.asarray(model(x)) - answers(module, x)).max() < TOLERANCE
    randomised_keras(model)
    polyak.transfer(model, module, layers={"*": "same"}, by=by)
    assert np.abs(np.asarray(model(x)) - answers(module, x)).max() < TOLERANCE


def test_a_file_with_such_layers_says_how_to_take_them_and_lets_no_square_one_through_unsaid(tmp_path: Path) -> None:
    model = built(DensePair(), normal(3, 4))
    torch.save(TurnedPair().state_dict(), tmp_path / "a.pt")
    with pytest.raises(ShapeMismatch, match=r"'wide[.]weight': expected one that is .* once it is turned") as refused:
        polyak.transfer(tmp_path / "a.pt", model)
    assert 'layers={"wide": "same"}' in str(refused.value.hint)
    with pytest.raises(AmbiguousMatch, match=r"layer 'square' .* is square .* 'wide' was said to lie alike"):
        polyak.transfer(tmp_path / "a.pt", model, layers={"wide": "same"})
    polyak.transfer(tmp_path / "a.pt", model, layers={"wide": "same", "square": "Dense"})
    polyak.transfer(tmp_path / "a.pt", model, include="*bias")


def test_a_list_of_numbers_leads_over_the_module_that_it_is_of(tmp_path: Path) -> None:
    """torch-ema and diffusers keep averages by position, and only layers tell how their arrays are turned."""
    module, x = nn.Sequential(nn.Linear(4, 12), nn.Linear(4, 4)), normal(3, 4)
    shadows = [torch.full_like(p, i) for i, p in enumerate(module.parameters())]
    torch.save({"decay": 0.9, "num_updates": 3, "shadow_params": shadows, "collected_params": None}, tmp_path / "a.pt")
    model = built(DensePair(), x)
    with pytest.raises(AmbiguousMatch, match="received 4 numbers") as refused:
        polyak.transfer(tmp_path / "a.pt", model)
    assert "transfer them into the module that they are of" in str(refused.value.hint)
    polyak.transfer(tmp_path / "a.pt", module)
    polyak.transfer(module, model, rename={"0": "wide", "1": "square"})
    assert np.asarray(model.square.kernel).tolist() == np.full((4, 4), 2.0).tolist()


def test_an_attention_whose_heads_share_keys_is_none_of_pytorch(tmp_path: Path) -> None:
    class Shared(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.inner = L.GroupQueryAttention(2, 4, 2)

        def call(self, x: Any) -> Any:
            return self.inner(x, x)

    model = built(Shared(), normal(2, 5, 8))
    with pytest.raises(ShapeMismatch, match=r"layer 'inner' .* expected one number of heads"):
        polyak.convert(model, tmp_path / "a.pt", layout="torch")
    assert not (tmp_path / "a.pt").exists()


@pytest.mark.parametrize(("rename", "said"), [(3, "expected a mapping of names or a function"), ({"a": 3}, "are text")])
def test_what_renames_nothing_is_refused_between_layouts_too(rename: Any, said: str) -> None:
    model = keras.Sequential([keras.Input((3,)), L.Dense(4)])
    with pytest.raises(WeightError, match=said):
        polyak.transfer(nn.Sequential(nn.Linear(3, 4)), model, rename=rename)
