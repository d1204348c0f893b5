"""Random streams of stacked layers: no weights, so that means take those of the last member."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import polyak
from polyak.errors import DtypeMismatch
from polyak.snapshot import Snapshot


def test_streams_of_stacked_layers_are_those_of_the_last(tmp_path: Path) -> None:
    """Flax counts what each of the layers has drawn, so that two checkpoints of one run differ in it."""
    nnx = pytest.importorskip("flax.nnx")
    jax = pytest.importorskip("jax")

    @nnx.split_rngs(splits=6)
    @nnx.vmap
    def layers(rngs):  # type: ignore[no-untyped-def]
        return nnx.Dropout(0.5, rngs=rngs)

    for seed in (0, 1):
        state = nnx.to_pure_dict(nnx.state(layers(nnx.Rngs(seed)), nnx.RngState))
        flat = {f"drop/{'/'.join(path)}": leaf for path, leaf in nnx.traversals.flatten_mapping(state).items()}
        keys = {n: jax.random.key_data(x) if n.endswith("/key") else x + seed for n, x in flat.items()}
        held = {name: np.asarray(value) for name, value in keys.items()} | {"w": np.float32([seed])}
        save_file(held, tmp_path / f"{seed}.safetensors")
    mean = polyak.average([tmp_path / "0.safetensors", tmp_path / "1.safetensors"], out=tmp_path / "mean.safetensors")
    assert len(mean.moved) == 3
    made, last = (polyak.open(tmp_path / f"{name}.safetensors") for name in ("mean", "1"))
    assert made["w"].tolist() == [0.5]
    streams = [name for name in last if name != "w"]
    assert {last.items_by_path[name].weight.shape for name in streams} == {(6,), (6, 2)}
    assert all(np.array_equal(made[name], last[name]) for name in streams)


@pytest.mark.parametrize("dot", ["/", "."])
@pytest.mark.parametrize("width", [2, 4])
def test_keys_of_both_algorithms_of_jax_are_known_by_the_count_beside_them(dot: str, width: int) -> None:
    key, number = f"a{dot}rngs{dot}key", f"a{dot}rngs{dot}count"
    arrays = [{key: np.full((3, 5, width), i, np.uint32), number: np.full((3, 5), i, np.uint32)} for i in (1, 2)]
    mean = polyak.average([Snapshot.from_arrays(a) for a in arrays])
    assert (int(mean[key].max()), int(mean[number].min())) == (2, 2)


@pytest.mark.parametrize(
    "arrays",
    [
        {"a/key": np.uint32([[1, 2]] * 6)},
        {"a/key": np.uint32([[1, 2, 3]] * 6), "a/count": np.uint32([0] * 6)},
        {"a/key": np.uint32([[1, 2]] * 6), "a/count": np.uint32([0] * 5)},
        {"a/key": np.uint32([[1, 2]] * 6), "b/count": np.uint32([0] * 6)},
        {"a/key": np.int32([[1, 2]] * 6), "a/count": np.int32([0] * 6)},
        {"a/monkey": np.uint32([[1, 2]] * 6), "a/moncount": np.uint32([0] * 6)},
    ],
)
def test_what_only_looks_like_a_stream_is_a_weight(arrays: dict[str, np.ndarray]) -> None:
    """Packed weights may be called keys, too."""
    other = {name: value + value.dtype.type(1) for name, value in arrays.items()}
    mean = polyak.average([Snapshot.from_arrays(arrays), Snapshot.from_arrays(other)])
    with pytest.raises(DtypeMismatch, match="differ between the members"):
        _ = [mean[name] for name in mean]
