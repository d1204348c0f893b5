"""Which arrays of a tree of JAX are the network and which are an average: files that flax and Orbax wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyak
from polyak.snapshot import Snapshot

pytest.importorskip("tensorstore")

Opened = Callable[[Any], Snapshot]


@pytest.fixture(params=["flax", "orbax"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """What polyak reads of a tree that the real tool wrote."""

    def by_flax(tree: Any) -> Snapshot:
        path = tmp_path / "tree.msgpack"
        path.write_bytes(pytest.importorskip("flax.serialization").to_bytes(tree))
        return polyak.open(path)

    def by_orbax(tree: Any) -> Snapshot:
        with pytest.importorskip("orbax.checkpoint").StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "tree", tree, force=True)
        return polyak.open(tmp_path / "tree")

    return by_flax if request.param == "flax" else by_orbax


def array(*shape: int) -> Any:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 1


def moved(tree: Any) -> Any:
    return {k: moved(v) for k, v in tree.items()} if isinstance(tree, dict) else tree * np.float32(0.5)


def flat(tree: Any, start: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {start: tree}
    return {p: a for k, v in tree.items() for p, a in flat(v, f"{start}/{k}" if start else k).items()}


def assert_sets(held: Snapshot, **sets: Any) -> None:
    """The weights have these roles, names and bits."""
    assert set(held.roles) - {"optimizer", "training"} == set(sets)
    for role, tree in sets.items():
        part, wanted = held.select(role=role), flat(tree)
        assert set(part) == set(wanted)
        assert {n: part[n].tobytes() for n in wanted} == {n: a.tobytes() for n, a in wanted.items()}


# --- names -----------------------------------------------------------------------------------------------------------

ATTENTION = {"attn": {n: array(4, 4) for n in ("query", "key", "value", "out")}, "w": array(4, 2)}
CRITIC = {"policy": array(4, 4), "value": array(4, 1)}
CRITIC_BELOW = {"policy": {"kernel": array(4, 4)}, "critic": {"value": array(4, 1)}}


@pytest.mark.parametrize("weights", [ATTENTION, CRITIC, CRITIC_BELOW])
def test_a_weight_that_is_called_value_keeps_its_name(weights: Any, opened: Opened, tmp_path: Path) -> None:
    state = {"0": {"count": np.asarray(3), "mu": weights, "nu": weights}}
    held = opened({"params": weights, "opt_state": state})
    assert_sets(held, raw=weights)
    assert {f"opt_state/0/mu/{n}" for n in flat(weights)} <= set(held.select(role="optimizer"))
    polyak.average([held, held], role="raw", out=tmp_path / "mean.npz")
    assert set(polyak.open(tmp_path / "mean.npz")) == set(flat(weights))


@pytest.mark.parametrize("weights", [ATTENTION, CRITIC, CRITIC_BELOW])
def test_a_weight_that_is_called_value_has_its_average(weights: Any, opened: Opened) -> None:
    assert_sets(opened({"params": weights, "ema_params": moved(weights)}), raw=weights, average=moved(weights))
    assert_sets(opened(weights), raw=weights)


def test_variables_of_nnx_have_the_names_of_their_weights(opened: Opened) -> None:
    weights = {"l": {"kernel": array(2, 3), "bias": array(3)}, "attn": {"value": {"kernel": array(2, 2)}}}
    stored = {k: {n: {"value": a} for n, a in v.items()} for k, v in weights.items() if k == "l"}
    stored["attn"] = {"value": {"kernel": {"value": weights["attn"]["value"]["kernel"]}}}
    held = opened({"model": stored, "ema": moved(stored), "step": np.asarray(7)})
    assert_sets(held, raw=weights, average=moved(weights))
