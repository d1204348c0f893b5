"""A conversion into the layout of PyTorch takes every array, or refuses: none is left behind unsaid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import polyak
from polyak.errors import MissingWeight, PolyakError, UnexpectedWeight, WeightError
from polyak.snapshot import Snapshot


def of_keras(*sets: str, **arrays: Any) -> Snapshot:
    """Weights in the layout of Keras, of layers whose class nothing tells."""
    named = {path.replace("__", "/"): array for path, array in arrays.items()}
    items = [i for role in sets or ("raw",) for i in Snapshot.from_arrays(named, role).items_by_path.values()]
    written = msgspec.structs.replace(Snapshot.from_arrays(named).manifest, layout="keras")
    return Snapshot(items, {}, "file 'x'", written=written)


KERNEL = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize("sets", [("raw",), ("raw", "average")])
@pytest.mark.parametrize(
    "name", ["Dense", "BatchNormalization", "LSTM", "GRU", "MultiHeadAttention", "SeparableConv2D"]
)
def test_an_array_that_its_class_has_no_name_for_is_refused(name: str, sets: tuple[str, ...], tmp_path: Path) -> None:
    """Keras' own files count the arrays of a layer."""
    held = of_keras(*sets, net__vars__0=KERNEL, net__vars__1=np.ones(3, np.float32))
    with pytest.raises(UnexpectedWeight, match=f"'net/vars/0' of file 'x': expected a name that {name}.* received '0'"):
        polyak.convert(held, tmp_path / "a.pt", layout="torch", layers={"net/*": name})
    assert list(tmp_path.iterdir()) == []


def test_one_more_array_than_the_class_has_is_refused(tmp_path: Path) -> None:
    held = of_keras(net__kernel=KERNEL, net__bias=np.ones(3, np.float32), net__scale=np.ones(3, np.float32))
    with pytest.raises(UnexpectedWeight, match="'net/scale' of file 'x': expected a name that Dense of Keras gives"):
        polyak.convert(held, tmp_path / "a.pt", layout="torch", layers={"net": "Dense"})
    polyak.convert(held, tmp_path / "a.pt", layout="torch", layers={"net": "same"})
    assert len(polyak.open(tmp_path / "a.pt")) == 3


@pytest.mark.parametrize(
    ("layers", "error", "said"),
    [
        ({"net": "Dens"}, WeightError, "expected a class of Keras layers that has a rule, or 'same'; nearest: 'Dense'"),
        ({"nett": "Dense"}, MissingWeight, "layers='nett': expected a layer, received a glob that matches none"),
    ],
)
def test_classes_and_globs_that_mean_nothing_are_refused(
    layers: dict[str, str], error: type[PolyakError], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        polyak.convert(of_keras(net__kernel=KERNEL), tmp_path / "a.pt", layout="torch", layers=layers)


def test_an_array_without_a_name_is_left_out_by_its_name_in_keras(tmp_path: Path) -> None:
    held = of_keras(net__kernel=KERNEL, net__extra=np.ones(3, np.float32), o__kernel=KERNEL)
    asked: dict[str, Any] = {"layout": "torch", "layers": {"*": "Dense"}}
    with pytest.raises(UnexpectedWeight) as error:
        polyak.convert(held, tmp_path / "a.pt", **asked)
    assert 'exclude="net/extra"' in error.value.hint
    for choosing, names in (
        ({"exclude": "net/extra"}, ["net.weight", "o.weight"]),
        ({"exclude": ["net/extra", "o.*"]}, ["net.weight"]),
        ({"exclude": "net*"}, ["o.weight"]),  # all of the layer, in either layout
        ({"include": "o*"}, ["o.weight"]),
    ):
        polyak.convert(held, tmp_path / "a.pt", **asked, **choosing)
        assert list(polyak.open(tmp_path / "a.pt")) == names
