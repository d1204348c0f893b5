"""Layers in the order of a file: of a model's, of numbers, and of the alphabet, which tells nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyak
from polyak.errors import AmbiguousMatch, MissingWeight

torch = pytest.importorskip("torch")
serialization = pytest.importorskip("flax.serialization")


def dense(number: int) -> dict[str, Any]:
    drawn = np.random.default_rng(number)
    return {"kernel": drawn.normal(size=(3, 3)).astype("f"), "bias": np.full(3, number, np.float32)}


def flax_file(path: Path, names: Sequence[str]) -> Path:
    """Layers as Flax writes them, in this order; that of trees that JAX has made is sorted."""
    path.write_bytes(serialization.to_bytes({"params": {name: dense(n) for n, name in enumerate(names)}}))
    return path


def linears(count: int) -> Any:
    return torch.nn.Sequential(*[torch.nn.Linear(3, 3) for _ in range(count)])


def test_numbers_in_sorted_names_are_numbers(tmp_path: Path) -> None:
    names = sorted(f"Dense_{n}" for n in range(12))
    source, target = flax_file(tmp_path / "f.msgpack", names), linears(12)
    with pytest.raises(MissingWeight) as refused:
        polyak.transfer(source, target, layout="keras")
    assert 'by="position"' in refused.value.hint
    polyak.transfer(source, target, layout="keras", by="position")
    for n in range(12):
        held = dense(names.index(f"Dense_{n}"))
        np.testing.assert_array_equal(target[n].weight.detach().numpy().T, held["kernel"])
        np.testing.assert_array_equal(target[n].bias.detach().numpy(), held["bias"])


def test_a_safetensors_file_of_many_layers_keeps_their_order(tmp_path: Path) -> None:
    source, target = linears(12), linears(12)
    arrays = {f"{n}/kernel": source[n].weight.detach().numpy().T.copy() for n in range(12)}
    arrays |= {f"{n}/bias": source[n].bias.detach().numpy() for n in range(12)}
    pytest.importorskip("safetensors.numpy").save_file(arrays, tmp_path / "m.safetensors")
    assert next(iter(polyak.open(tmp_path / "m.safetensors"))) == "0/bias"
    polyak.transfer(tmp_path / "m.safetensors", target, layout="keras", by="position")
    for n in range(12):
        torch.testing.assert_close(target[n].weight, source[n].weight, rtol=0, atol=0)


@pytest.mark.parametrize("names", [("dec", "enc"), ("block_0/attn", "block_0/mlp")])
def test_an_order_of_the_alphabet_is_refused_and_not_proposed(names: tuple[str, ...], tmp_path: Path) -> None:
    source, target = flax_file(tmp_path / "f.msgpack", names), linears(2)
    before = {n: a.clone() for n, a in target.state_dict().items()}
    with pytest.raises(MissingWeight) as missing:
        polyak.transfer(source, target, layout="keras")
    assert "position" not in missing.value.hint
    with pytest.raises(AmbiguousMatch, match=f"order of the alphabet.*'{names[0]}' or '{names[1]}' is the first"):
        polyak.transfer(source, target, layout="keras", by="position")
    assert all(torch.equal(before[n], a) for n, a in target.state_dict().items())
    renamed = dict(zip(names, ("1", "0"), strict=True))
    polyak.transfer(source, target, layout="keras", rename=renamed)
    assert target[0].bias[0] == 1


def test_the_order_of_a_file_that_is_not_sorted_is_that_of_its_model(tmp_path: Path) -> None:
    target = linears(3)
    polyak.transfer(flax_file(tmp_path / "f.msgpack", ("stem", "body", "head")), target, layout="keras", by="position")
    assert [int(layer.bias[0]) for layer in target] == [0, 1, 2]


def test_the_order_of_all_layers_counts_and_not_that_of_those_that_are_left(tmp_path: Path) -> None:
    target = linears(2)
    source = flax_file(tmp_path / "f.msgpack", ("stem_3", "body_10", "body_2"))
    polyak.transfer(source, target, layout="keras", by="position", exclude="stem_3/*")
    assert [int(layer.bias[0]) for layer in target] == [1, 2]


def test_layers_of_other_shapes_have_the_order_that_shapes_give(tmp_path: Path) -> None:
    layers = {"a": {"kernel": np.ones((3, 4), np.float32)}, "b": {"kernel": np.ones((4, 2), np.float32)}}
    path, target = tmp_path / "f.msgpack", torch.nn.Sequential()
    path.write_bytes(serialization.to_bytes({"params": layers}))
    target.append(torch.nn.Linear(3, 4, bias=False)).append(torch.nn.Linear(4, 2, bias=False))
    assert len(polyak.transfer(path, target, layout="keras", by="position").moved) == 2
