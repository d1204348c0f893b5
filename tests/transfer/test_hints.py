"""Whoever follows hints to the letter ends with the right model or at a refusal, and never with a wrong model.

Two sides of one architecture under other names. Each weight of the source is filled with a number of its own; what its
number must come to on the other side is said by hand.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_letters
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
import keras

import polyak
from polyak.errors import AmbiguousMatch, MissingWeight, PolyakError, UnbuiltModel, UnexpectedWeight
from polyak.transfer.kinship import by_names
from polyak.transfer.nearest import partner
from polyak.weights import Kind, Weight

layers = keras.layers
_STEPS = 40  # hints that are followed at most
_ARGUMENT = re.compile(r"""(rename|layout|exclude|by)=(\{.*?\}|\[.*?\]|".*?")""")


# Models and files whose weights are all square or of one size, so that shapes tell nothing.


def module(*names: str) -> nn.Module:
    made = nn.Module()
    for name in names:
        setattr(made, name, nn.Linear(4, 4))
    return made


def listed(name: str, count: int, last: str) -> nn.Module:
    made = nn.Module()
    setattr(made, name, nn.ModuleList([nn.Linear(4, 4) for _ in range(count)]))
    setattr(made, last, nn.Linear(4, 4))
    return made


def sequential(*kept: int) -> nn.Module:
    return nn.Sequential(*[nn.Linear(4, 4) if i in kept else nn.Tanh() for i in range(max(kept) + 1)])


def chain(*names: str | None) -> Any:
    return keras.Sequential([keras.Input((4,)), *[layers.Dense(4, name=name) for name in names]])


def headed(*names: str | None, head: Any) -> Any:
    """A chain, and another layer after it."""
    return keras.Sequential([keras.Input((4,)), keras.Sequential([layers.Dense(4, name=name) for name in names]), head])


def subclassed(*names: str) -> Any:
    class Model(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            for name in names:
                setattr(self, name, layers.Dense(4))

        def call(self, x: Any) -> Any:
            for name in names:
                x = getattr(self, name)(x)
            return x

    model = Model()
    model(tf.zeros((1, 4)))
    return model


def normed(*names: str) -> Any:
    return keras.Sequential([keras.Input((4,)), *[layers.BatchNormalization(name=name) for name in names]])


def variables(*names: str) -> tf.Module:
    made = tf.Module()
    for name in names:
        inner = tf.Module()
        inner.w = tf.Variable(tf.zeros((4, 4)))
        setattr(made, name, inner)
    return made


def arrays(*names: str) -> dict[str, Any]:
    return {name: np.zeros(4 if name.endswith(("scale", "bias", "mean", "var")) else (4, 4), "f") for name in names}


def flax(*norms: str) -> dict[str, Any]:
    """As the file of a JAX program, in the order of the alphabet."""
    return arrays(*(f"{norm}/{name}" for norm in sorted(norms) for name in ("bias", "mean", "scale", "var")))


def denses(*names: str, others: tuple[str, ...] = ()) -> dict[str, Any]:
    return arrays(*(f"{name}/{end}" for name in names for end in ("bias", "kernel")), *others)


BATCH_NORM = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}


def norms(pairs: Mapping[str, str]) -> dict[str, str]:
    return {f"{new}/{a}": f"{old}/{b}" for new, old in pairs.items() for a, b in BATCH_NORM.items()}


@dataclass(frozen=True)
class Case:
    """Source, target, and by layer or weight of the target what of the source it is."""

    source: Callable[[], Any]
    target: Callable[[], Any]
    meant: Mapping[str, str]
    succeeds: bool = True


QKV = {"query": "q", "key": "k", "value": "v"}
CASES = {
    "a norm of Flax": Case(
        lambda: flax("BatchNorm_0"), lambda: normed("BatchNorm_0"), norms({"BatchNorm_0": "BatchNorm_0"})
    ),
    "a norm of another name": Case(lambda: flax("n"), lambda: normed("bn"), norms({"bn": "n"})),
    "two norms of other names in a sorted file": Case(
        lambda: flax("late", "early"),
        lambda: normed("first", "second"),
        norms({"first": "early", "second": "late"}),
        False,
    ),
    "a Keras model without names and a list": Case(
        lambda: chain(None, None, None), lambda: sequential(0, 1, 2), {"0": "dense", "1": "dense_1", "2": "dense_2"}
    ),
    "a list and a Keras model without names": Case(
        lambda: sequential(0, 2, 4), lambda: chain(None, None, None), {"dense": "0", "dense_1": "2", "dense_2": "4"}
    ),
    "names and a list": Case(
        lambda: chain("enc", "mid", "out"), lambda: sequential(0, 2, 4), {"0": "enc", "2": "mid", "4": "out"}
    ),
    "another order in Keras and PyTorch": Case(
        lambda: subclassed("query", "key", "value"),
        lambda: module("k_proj", "q_proj", "v_proj"),
        {"k_proj": "key", "q_proj": "query", "v_proj": "value"},
    ),
    "another order of layers of which one is renamed": Case(
        lambda: module("q", "k", "out"), lambda: subclassed("k", "q", "proj"), {"k": "k", "q": "q", "proj": "out"}
    ),
    "query and k_proj": Case(
        lambda: module("query", "key", "value"),
        lambda: module("k_proj", "q_proj", "v_proj"),
        {"k_proj": "key", "q_proj": "query", "v_proj": "value"},
    ),
    "k_proj and query": Case(
        lambda: module("k_proj", "q_proj", "v_proj"),
        lambda: module("query", "key", "value"),
        {"key": "k_proj", "query": "q_proj", "value": "v_proj"},
    ),
    "letters": Case(
        lambda: module("query", "key", "value"),
        lambda: module("kk", "qq", "vv"),
        {"kk": "key", "qq": "query", "vv": "value"},
        False,
    ),
    "Keras models in another order": Case(lambda: subclassed(*"qkv"), lambda: subclassed("value", "key", "query"), QKV),
    "lists and heads": Case(
        lambda: listed("layers", 3, "head"),
        lambda: listed("blocks", 3, "classifier"),
        {"blocks.0": "layers.0", "blocks.1": "layers.1", "blocks.2": "layers.2", "classifier": "head"},
    ),
    "a numbering that begins later": Case(
        lambda: module("fc2", "fc3"), lambda: module("fc1", "fc2"), {"fc1": "fc2", "fc2": "fc3"}, False
    ),
    "a numbering that begins later in a file that holds more": Case(
        lambda: denses("dense_1", "dense_2", "dense_3", others=("extra/kernel",)),
        lambda: subclassed("dense", "dense_1", "dense_2"),
        {"dense": "dense_1", "dense_1": "dense_2", "dense_2": "dense_3"},
        False,
    ),
    "shortened names in another order": Case(
        lambda: module("decoder", "encoder"), lambda: module("enc", "dec"), {"enc": "encoder", "dec": "decoder"}
    ),
    "modules that list their attributes by the alphabet": Case(
        lambda: variables("up", "down"), lambda: variables("first", "second"), {"first": "up", "second": "down"}, False
    ),
    "a model in another one, with a new head": Case(
        lambda: chain(None, None, None),
        lambda: headed(None, None, head=layers.Dense(7, name="new")),
        {"sequential/dense": "dense", "sequential/dense_1": "dense_1"},
        False,
    ),
    "a model in another one, with a new head of a known name": Case(
        lambda: chain(None, None, None),
        lambda: headed(None, None, head=layers.Dense(7)),
        {"sequential/dense": "dense", "sequential/dense_1": "dense_1"},
        False,
    ),
    "a model in another one, with a new head of a known name and shape": Case(
        lambda: chain(None, None, None),
        lambda: headed(None, None, head=layers.Dense(4)),
        {"sequential/dense": "dense", "sequential/dense_1": "dense_1"},
        False,
    ),
    "a part whose names the rest has, too": Case(
        lambda: headed(None, None, head=layers.Dense(4)),
        lambda: chain(None, None),
        {"dense": "sequential/dense", "dense_1": "sequential/dense_1"},
        False,
    ),
    "names of one weight that a side has twice": Case(
        lambda: denses("ema/a", "ema/b", "online/a", "online/b"),
        lambda: chain("a", "b"),
        {"a": "ema/a", "b": "ema/b"},
        False,
    ),
}


def filled(source: Any) -> tuple[Any, dict[str, float]]:
    """The source with a number of its own in each weight, and the numbers."""
    held = source if isinstance(source, dict) else dict(polyak.snapshot(source))
    numbers = {path: float(i + 1) for i, path in enumerate(held)}
    values = polyak.Snapshot.from_arrays({path: np.full(held[path].shape, n, "f") for path, n in numbers.items()})
    if isinstance(source, dict):
        return values, numbers
    polyak.transfer(values, source)
    return source, numbers


def wanted(meant: Mapping[str, str], path: str) -> str:
    """The path of the weight that belongs to a target's path, with any mark."""
    if path in meant:
        return meant[path]
    start, mark, local = re.fullmatch(r"(.*)([/.])(.*)", path).groups()  # type: ignore[union-attr]
    return f"{meant[start]}{mark}{local}"


def plain(path: str) -> str:
    return path.replace(".", "/").replace("weight", "kernel")


def suggested(error: PolyakError, asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What each argument in a hint makes of what was asked before."""
    for name, text in _ARGUMENT.findall(error.hint or ""):
        value = ast.literal_eval(text)
        if name == "rename":
            value = asked.get("rename", {}) | value
        if name == "exclude":
            value = [*asked.get("exclude", []), *([value] if isinstance(value, str) else value)]
        if asked.get(name) != value:
            yield asked | {name: value}


def ends(source: Any, target: Callable[[], Any]) -> Iterator[tuple[Any, polyak.Receipt, dict[str, Any]]]:
    """The targets of all ways that hints lead to."""
    ways: list[dict[str, Any]] = [{}]
    for _ in range(_STEPS):
        if not ways:
            return
        asked = ways.pop()
        made = target()
        try:
            yield made, polyak.transfer(source, made, **asked), asked
        except PolyakError as error:
            ways += suggested(error, asked)


def follow(case: Case, source: Any, numbers: Mapping[str, float]) -> bool:
    """Whether any way moved all weights; each was the right one on every way."""
    known = {plain(path): n for path, n in numbers.items()}
    whole = False
    for made, receipt, asked in ends(source, case.target):
        held = polyak.snapshot(made)
        for move in receipt.moved:
            assert (held[move.target] == known[plain(wanted(case.meant, move.target))]).all(), (move.target, asked)
        whole = whole or not receipt.skipped
    return whole


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_hints_lead_to_the_right_model_or_to_a_refusal(case: Case) -> None:
    keras.backend.clear_session()
    source, numbers = filled(case.source())
    assert follow(case, source, numbers) or not case.succeeds


STATE_DICTS = [
    name for name, case in CASES.items() if case.source.__code__.co_names[0] in ("module", "listed", "sequential")
]


@pytest.mark.parametrize("name", STATE_DICTS)
def test_so_do_hints_about_files(name: str, tmp_path: Path) -> None:
    """One format keeps the order of the layers, the other sorts them."""
    keras.backend.clear_session()
    source, numbers = filled(CASES[name].source())
    torch.save(source.state_dict(), tmp_path / "ordered.pt")
    save_file(source.state_dict(), tmp_path / "sorted.safetensors")
    assert follow(CASES[name], tmp_path / "ordered.pt", numbers) or not CASES[name].succeeds
    follow(CASES[name], tmp_path / "sorted.safetensors", numbers)


def test_several_that_fit_are_listed_without_a_pair() -> None:
    source = polyak.Snapshot.from_arrays(denses("one", "three", "two"))
    with pytest.raises(MissingWeight) as error:
        polyak.transfer(source, subclassed("x", "y", "z"))
    assert error.value.hint == (
        "names do not tell which it is of 'one/kernel', 'three/kernel', 'two/kernel': name the pairs with rename="
    )
    assert "nearest" not in error.value.message


def test_names_of_many_layers_are_compared_number_by_number() -> None:
    """Of more than can be compared no order is taken, either."""

    def side(start: str, *names: str) -> polyak.Snapshot:
        return polyak.Snapshot.from_arrays(arrays(*(f"{start}/{i}/{n}/kernel" for i in range(120) for n in names)))

    source, target = side("layers", "q", "k", "v"), side("blocks", "key", "query", "value")
    with pytest.raises(MissingWeight) as error:
        polyak.plan(source, target)
    assert error.value.hint == 'pair them with rename={"layers/0/k/kernel": "blocks/0/key/kernel"}'
    plain = polyak.Snapshot.from_arrays(arrays(*(f"{'zyx'[i % 3]}{i:03}/kernel" for i in range(360))))
    with pytest.raises(MissingWeight) as error:
        polyak.plan(source, plain)
    assert "rename={" not in error.value.hint


def test_a_word_that_two_names_share_does_not_pair_them_against_the_order(tmp_path: Path) -> None:
    """The norm of an attention stands before it in one model's names, and after it in the other's."""

    def side(*names: str) -> nn.Module:
        return nn.ModuleList(nn.ModuleDict({name: nn.LayerNorm(4, bias=False) for name in names}) for _ in range(2))

    source, target = side("input_layernorm", "post_attention_layernorm"), side("attention_norm", "ffn_norm")
    torch.save(source.state_dict(), tmp_path / "a.pt")
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    for known in (source, tmp_path / "a.pt", tmp_path / "a.safetensors"):
        with pytest.raises(MissingWeight) as error:
            polyak.plan(known, target)
        assert "rename={" not in error.value.hint
        assert "of '0.input_layernorm.weight', '0.post_attention_layernorm.weight'" in error.value.hint


def test_names_of_all_layers_together_are_too_many_to_be_compared() -> None:
    ours, theirs = ([f"{i}/{word}{c}" for i in range(50) for c in ascii_letters] for word in ("a", "b"))
    assert by_names(ours[:104], theirs[:104]) is not None
    assert by_names(ours, theirs) is None


def test_what_is_unexpected_is_read_as_often_however_much_there_is() -> None:
    """A refusal of many weights takes seconds, not minutes."""

    class Read(list[Weight]):
        times = 0

        def __iter__(self) -> Iterator[Weight]:
            self.times += 1
            return super().__iter__()

    def read(count: int) -> int:
        ours, theirs = (
            [Weight(f"{i}/{n}/kernel", (4, 4), "float32", Kind.TRAINABLE) for i in range(count) for n in names]
            for names in (("query", "key"), ("q", "k"))
        )
        unexpected = Read(theirs)
        assert partner(ours[0], ours, unexpected) == theirs[0]
        return unexpected.times

    assert read(20) == read(2)


@pytest.mark.parametrize("mark", ["/", "."])
def test_a_part_of_which_the_target_has_nothing_is_left_out_at_once(mark: str) -> None:
    def hint(*names: str, **asked: Any) -> str | None:
        with pytest.raises(UnexpectedWeight) as error:
            polyak.plan(polyak.Snapshot.from_arrays(arrays(*names)), chain("a"), **asked)
        return error.value.hint

    body = ("a/kernel", "a/bias")
    kernel, bias = f"head{mark}b/kernel", f"head{mark}b/bias"
    assert hint(*body, kernel, bias) == f'leave all of them out with exclude="head{mark}*"'
    assert hint(*body, kernel) == f'leave it out with exclude="{kernel}"'
    assert hint(*body, kernel, bias, "tail/kernel") == f'leave it out with exclude="{kernel}"'
    assert hint(*body, "a/b/kernel", "a/b/bias") == 'leave it out with exclude="a/b/kernel"'
    assert hint(*body, "b", "b2") == 'leave it out with exclude="b"'
    renamed = {f"head{mark}a/kernel": "a/kernel"}
    assert (
        hint(f"head{mark}a/kernel", "a/bias", kernel, bias, rename=renamed) == f'leave it out with exclude="{kernel}"'
    )


@pytest.mark.parametrize("sample", [(1, 4), np.ones((1, 4), "f")], ids=["shape", "input"])
def test_a_sample_builds_what_an_average_follows(sample: Any, tmp_path: Path) -> None:
    def network() -> Any:
        return keras.Sequential([layers.Dense(4, name="a")])

    model = network()
    model.build((None, 4))
    average = polyak.EMA(model, decay=0.5)
    average.update()
    polyak.save(average, tmp_path / "a.safetensors")
    plan = polyak.plan(average, average).to_json()
    (tmp_path / "plan.json").write_text(plan)
    for source, asked in ((average, {}), (tmp_path / "a.safetensors", {}), (average, {"plan": tmp_path / "plan.json"})):
        target = polyak.EMA(network(), decay=0.5)
        with pytest.raises(UnbuiltModel, match="sample="):
            polyak.transfer(source, target, **asked)
        polyak.transfer(source, target, sample=sample, **asked)
        assert target.count == 1
        assert np.array_equal(target.values()["a/kernel"], average.values()["a/kernel"])


def test_a_state_dict_of_a_keras_model_is_taken_as_keras_has_it(tmp_path: Path) -> None:
    names = ("a/kernel", "a/bias", "bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance", "b/kernel", "b/bias")
    held = {
        f"_torch_params.net/{n}": torch.full((4, 4) if "kernel" in n else (4,), float(i)) for i, n in enumerate(names)
    }
    held["_torch_params.net/a/kernel"] = torch.arange(16.0).reshape(4, 4)
    torch.save(held, tmp_path / "a.pt")

    def network() -> Any:
        ends = [layers.Dense(4, name="a"), layers.BatchNormalization(name="bn"), layers.Dense(4, name="b")]
        return keras.Sequential([keras.Input((4,)), *ends])

    found = list(ends(tmp_path / "a.pt", network))
    assert any(not receipt.skipped for _, receipt, _ in found)
    for made, _, _ in found:
        values = polyak.snapshot(made)
        assert all(np.array_equal(values[name], held[f"_torch_params.net/{name}"].numpy()) for name in names)


def test_names_of_keras_in_a_file_of_pytorch_are_told(tmp_path: Path) -> None:
    torch.save(
        {f"{n}/kernel": torch.zeros(4, 4) for n in "ab"} | {f"{n}/bias": torch.zeros(4) for n in "ab"},
        tmp_path / "a.pt",
    )
    with pytest.raises(
        AmbiguousMatch, match=r"'a/kernel': expected a name of PyTorch in .* received one of Keras"
    ) as error:
        polyak.transfer(tmp_path / "a.pt", chain("a", "b"))
    assert 'layout="keras", if a model of Keras wrote it' in error.value.hint
    polyak.transfer(tmp_path / "a.pt", chain("a", "b"), layout="keras")


class EMA(nn.Module):
    """The weights that ema-pytorch's module of this name has."""

    def __init__(self) -> None:
        super().__init__()
        self.ema_model = nn.Linear(2, 2)
        self.register_buffer("initted", torch.tensor(False))
        self.register_buffer("step", torch.tensor(0))


@pytest.mark.parametrize(
    ("average", "inner", "counts"),
    [
        (lambda: AveragedModel(nn.Linear(2, 2)), "module", "'n_averaged'"),
        (EMA, "ema_model", "'initted' and 'step'"),
        (lambda: nn.ModuleDict({"ema": AveragedModel(nn.Linear(2, 2))}), "ema.module", "'ema.n_averaged'"),
    ],
    ids=["AveragedModel", "ema-pytorch", "within another"],
)
def test_the_count_of_an_average_is_never_to_be_left_out(average: Callable[[], Any], inner: str, counts: str) -> None:
    source, target = nn.Linear(2, 2), average()
    with pytest.raises(MissingWeight) as error:
        polyak.transfer(source, target)
    assert error.value.hint == (
        f"transfer into its {inner!r} alone, and set {counts} yourself: if they stay as they are, the next update "
        "overwrites the average"
    )
    polyak.transfer(source, target.get_submodule(inner))
    assert torch.equal(target.get_submodule(inner).weight, source.weight)


def test_names_of_flax_are_turned_for_pytorch() -> None:
    """Its kernels lie as those of Keras; a norm has words of its own for all that it holds."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.Dense_0, self.BatchNorm_0, self.LayerNorm_0 = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.LayerNorm(4)
            self.Embed_0 = nn.Embedding(4, 4)

    rng = np.random.default_rng(0)
    held = {
        n: rng.normal(size=4).astype("f") for n in flax("BatchNorm_0") | arrays("LayerNorm_0/scale", "LayerNorm_0/bias")
    }
    held |= {n: rng.normal(size=(4, 4)).astype("f") for n in ("Dense_0/kernel", "Embed_0/embedding")}
    held["Dense_0/bias"] = np.ones(4, "f")
    found = list(ends(polyak.Snapshot.from_arrays(held), Net))
    assert found
    for made, receipt, _ in found:
        assert not receipt.skipped
        values = polyak.snapshot(made)
        for theirs, ours in {
            "BatchNorm_0/scale": "BatchNorm_0.weight",
            "BatchNorm_0/bias": "BatchNorm_0.bias",
            "BatchNorm_0/mean": "BatchNorm_0.running_mean",
            "BatchNorm_0/var": "BatchNorm_0.running_var",
            "LayerNorm_0/scale": "LayerNorm_0.weight",
            "LayerNorm_0/bias": "LayerNorm_0.bias",
            "Embed_0/embedding": "Embed_0.weight",
            "Dense_0/bias": "Dense_0.bias",
        }.items():
            assert np.array_equal(values[ours], held[theirs])
        assert np.array_equal(values["Dense_0.weight"], held["Dense_0/kernel"].T)


def test_a_transposed_convolution_that_flax_would_keep_otherwise_is_asked_about() -> None:
    held = {"up/kernel": np.ones((2, 2, 3, 3), "f"), "up/bias": np.ones(3, "f")}
    source = polyak.Snapshot.from_arrays(held)
    target = nn.ModuleDict({"up": nn.ConvTranspose2d(3, 3, 2)})
    with pytest.raises(AmbiguousMatch, match="Keras and Flax keep such kernels in another order") as error:
        polyak.transfer(source, target, layout="keras")
    assert error.value.hint.startswith('layers={"up": "Conv2DTranspose"} says that it lies as in Keras')
    polyak.transfer(source, target, layout="keras", layers={"up": "Conv2DTranspose"})
    wide = {"up/kernel": np.ones((2, 2, 5, 3), "f"), "up/bias": np.ones(5, "f")}
    polyak.transfer(
        polyak.Snapshot.from_arrays(wide), nn.ModuleDict({"up": nn.ConvTranspose2d(3, 5, 2)}), layout="keras"
    )
