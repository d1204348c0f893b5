"""Which arrays of a tree of JAX are the network and which are an average: files that flax and Orbax wrote."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyak
from polyak.errors import ImmatureWarning
from polyak.snapshot import Snapshot
from polyak.weights import Kind

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


# --- layers that are alike, and averages -----------------------------------------------------------------------------

NET = {"d": {"kernel": array(2, 3)}, "e": {"bias": array(3)}}
STATS = {"bn": {"mean": array(3), "var": array(3)}}
HEADS = {n: {"kernel": array(4, 2), "bias": array(2)} for n in ("student_head", "teacher_head")}
HEADS = {"backbone": {"kernel": array(4, 4), "bias": array(4)}, **HEADS}
PROJECTIONS = {n: {"kernel": array(4, 4), "bias": array(4)} for n in ("proj", "avg_proj")} | {"body": array(4, 4)}
MOMENTUM = {n: {"kernel": array(4, 4)} for n in ("proj", "ema_proj")} | {"body": array(4, 4)}


@pytest.mark.parametrize("weights", [HEADS, PROJECTIONS, MOMENTUM])
def test_layers_that_are_alike_are_one_network_whatever_they_are_called(weights: Any, opened: Opened) -> None:
    assert_sets(opened({"params": weights, "step": np.asarray(3)}), raw=weights)
    held = opened(weights)
    assert_sets(held, raw=weights)
    assert held.manifest.confidence == "unknown"
    assert "is called an average" in held.manifest.evidence[1]
    assert_sets(opened({"params": weights, "ema_params": moved(weights)}), raw=weights, average=moved(weights))


@pytest.mark.parametrize("names", [("student", "teacher"), ("net", "net_ema")])
def test_two_networks_below_params_are_a_set_and_its_average(names: tuple[str, str], opened: Opened) -> None:
    net = {"d": {"kernel": array(2, 2)}}
    held = opened({"params": {names[0]: net, names[1]: moved(net)}, "step": np.asarray(3)})
    assert_sets(held, raw=net, average=moved(net))


def test_weights_beside_a_set_and_its_average_are_named(opened: Opened) -> None:
    held = opened({"gen": NET, "gen_ema": moved(NET), "disc": NET, "step": np.asarray(3)})
    assert_sets(held, raw=NET, average=moved(NET))
    assert held.manifest.note == "left with the state of the training: 'disc' (2 arrays)"


def test_an_average_of_a_part_says_so_and_the_rest_is_trained_weights(opened: Opened) -> None:
    net = {"encoder": {"l0": {"kernel": array(4, 4)}}, "head": {"kernel": array(4, 2)}}
    part = moved({"encoder": net["encoder"]})
    held = opened({"params": net, "ema_params": part})
    assert_sets(held, raw=net, average={**part, "head": net["head"]})
    assert "the names and shapes of 1 of the 2 weights of 'params'" in held.manifest.evidence[0]
    assert {w.kind for role in ("raw", "average") for w in held.select(role=role).weights} == {Kind.TRAINABLE}


def test_an_average_of_one_part_below_params_leaves_the_other_parts_in_both_sets(opened: Opened) -> None:
    net = {"actor": NET, "critic": {"c": {"kernel": array(3, 1)}}}
    wanted = {"actor": moved(NET), "critic": net["critic"]}
    assert_sets(opened({"params": net, "ema_actor": moved(NET)}), raw=net, average=wanted)
    state = biased(NET, 5)
    held = opened({"params": net, "ema": state})
    assert_sets(held, raw=net, average={**net, "actor": state["ema"]})
    assert "2 of the 3 weights of 'params'" in held.manifest.evidence[0]


def test_statistics_that_an_average_alone_has_are_not_lost(opened: Opened) -> None:
    held = opened({"params": NET, "ema_params": moved(NET), "ema_batch_stats": STATS})
    assert_sets(held, raw=NET, average={**moved(NET), **STATS})
    assert {w.path for w in held.select(role="average").weights if w.kind is Kind.STATISTIC} == {"bn/mean", "bn/var"}
    state = biased({"params": NET, "batch_stats": STATS}, 5)
    held = opened({"params": NET, "ema": state})
    assert_sets(held, raw=NET, average={**state["ema"]["params"], **state["ema"]["batch_stats"]})


@pytest.mark.parametrize(
    "average",
    [
        {"decay": np.float32(0.9), "params": moved(NET), "count": np.asarray(4)},
        {"shadow": moved(NET), "decay": np.float32(0.9)},
        {"shadow": moved(NET), "beta": np.float32(0.9)},
        {"step": np.asarray(3), "params": moved(NET)},
    ],
)
def test_numbers_beside_an_average_are_no_weights(average: Any, opened: Opened) -> None:
    held = opened({"params": NET, "ema": average, "step": np.asarray(3)})
    assert_sets(held, raw=NET, average=moved(NET))
    assert {f"ema/{n}" for n in average if n not in ("params", "shadow")} <= set(held.select(role="training"))


OF_GRADIENTS = [("ema_grads",), ("exp_avg", "exp_avg_sq"), ("grad_ema", "ema_var"), ("momentum/ema",)]


@pytest.mark.parametrize("names", OF_GRADIENTS)
def test_averages_of_gradients_are_none_of_weights(names: tuple[str, ...], opened: Opened) -> None:
    weights = {"a": {"kernel": array(3, 2)}, "b": {"kernel": array(2, 2)}}
    average, beside = moved(weights), dict[str, Any]()
    for name in names:
        first, _, last = name.partition("/")
        beside[first] = {last: moved(weights)} if last else moved(weights)
    assert set(opened({"params": weights, **beside}).roles) == {"raw"}
    assert_sets(opened({"params": weights, "ema_params": average, **beside}), raw=weights, average=average)
    assert set(opened({"grads": weights, "ema_params": average}).roles) == {"raw"}


@pytest.mark.parametrize("name", ["momentum_encoder", "gradient_net"])
def test_a_network_that_is_called_after_gradients_has_its_average(name: str, opened: Opened) -> None:
    assert_sets(opened({name: NET, f"{name}_ema": moved(NET)}), raw=NET, average=moved(NET))
    assert_sets(opened({name: {"params": NET, "ema": moved(NET)}}), raw=NET, average=moved(NET))


def test_a_state_of_optax_over_gradients_is_no_average_of_weights(opened: Opened) -> None:
    weights = {"a": {"kernel": array(3, 2)}, "b": {"kernel": array(2, 2)}}
    state = {"count": np.asarray(3, np.int32), "ema": moved(weights)}
    assert set(opened({"params": weights, "grad_ema": state}).roles) == {"raw"}
    assert set(opened({"params": weights, "weights_ema": state}).roles) == {"raw", "average", "training"}


def test_a_single_number_may_be_a_weight(opened: Opened) -> None:
    net = {"model": NET, "logit_scale": np.float32(2)}
    assert_sets(opened({"params": net, "ema_params": moved(net)}), raw=net, average=moved(net))


def test_averages_in_a_list_are_several(opened: Opened) -> None:
    slow = moved(moved(NET))
    held = opened({"params": NET, "ema_params": {"0": moved(NET), "1": slow}})
    assert_sets(held, **{"raw": NET, "average:ema_params/0": moved(NET), "average:ema_params/1": slow})
    by_decay = opened({"params": NET, "ema_params": {"0.999": moved(NET), "0.9999": slow}})
    assert_sets(by_decay, **{"raw": NET, "average:ema_params/0.999": moved(NET), "average:ema_params/0.9999": slow})
    layers = {"0": {"w": array(2)}, "1": {"w": array(2)}}
    assert_sets(opened({"params": layers, "ema_params": moved(layers)}), raw=layers, average=moved(layers))


def test_two_states_of_a_training_are_weights_and_their_average(opened: Opened) -> None:
    def state(weights: Any) -> Any:
        return {"step": np.asarray(3), "params": weights, "opt_state": {"0": {"trace": weights}}}

    held = opened({"state": state(NET), "ema_state": state(moved(NET))})
    assert_sets(held, raw=NET, average=moved(NET))


def test_what_is_called_an_average_and_is_taken_for_none_is_named(opened: Opened) -> None:
    networks = {n: {"params": {f"{n}_d": array(2)}, "ema_params": {f"{n}_d": array(2)}} for n in ("gen", "disc")}
    evidence = "; ".join(opened(networks).manifest.evidence)
    assert "'gen/ema_params' is called an average and has the names and shapes of 'gen/params'" in evidence
    assert "'disc/ema_params' is called an average and has the names and shapes of 'disc/params'" in evidence
    other = opened({"params": NET, "ema": {"other": array(7)}})
    assert "'ema' is called an average, and no one set beside it has its names and shapes" in other.manifest.evidence


def test_many_places_that_are_called_averages_are_none(opened: Opened) -> None:
    held = opened({f"avg_{n}": {"kernel": array(2)} for n in range(17)} | {"body": {"kernel": array(2)}})
    assert held.roles == ("raw",)
    assert "17 places are called averages: none is taken for one" in held.manifest.evidence
    held = opened({"params": {f"avg_{n}": {"kernel": array(2)} for n in range(17)} | {"body": {"kernel": array(2)}}})
    assert held.roles == ("raw",)


def normalised(*layers: str) -> Any:
    """What ``haiku.BatchNorm`` keeps."""
    kept = {"average": array(1, 4), "hidden": array(1, 4), "counter": np.asarray(3)}
    return {f"net/~/{layer}/~/{name}": kept for layer in layers for name in ("mean_ema", "var_ema")}


@pytest.mark.parametrize("layers", [("bn0",), ("bn0", "bn1")])
def test_statistics_of_haikus_layers_are_no_averages_of_weights(layers: tuple[str, ...], opened: Opened) -> None:
    net = {"net/~/linear": {"w": array(4, 2)}} | {f"net/~/{layer}": {"scale": array(1, 4)} for layer in layers}
    state = normalised(*layers)
    assert opened({"params": net, "state": state}).roles == ("raw",)
    held = opened({"params": net, "ema_params": moved(net), "state": state})
    assert_sets(held, raw=net, average=moved(net))
    mangled = {n: moved(w) for n, w in flat(net).items()}
    kept = {"average": None, "hidden": array(1), "counter": np.asarray(3)}
    tree = {
        n.replace("/", "__").replace("~", "_tilde_"): {**kept, "average": w, "hidden": w} for n, w in mangled.items()
    }
    held = opened({"params": net, "state": state, "ema_state": {"ema_params_tree": tree}})
    assert_sets(held, raw=net, average=moved(net))


# --- optax.ema -------------------------------------------------------------------------------------------------------


def biased(weights: Any, updates: int) -> Any:
    """The state of ``optax.ema`` after so many updates with the same weights."""
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    ema = optax.ema(0.9)
    _, state = jax.lax.fori_loop(0, updates, lambda _, s: ema.update(weights, s[1]), (weights, ema.init(weights)))
    return {"count": np.asarray(state.count), "ema": jax.tree.map(np.asarray, state.ema)}


def test_an_average_of_optax_beside_weights_at_the_root_is_of_these(opened: Opened) -> None:
    state = biased(NET, 5)
    held = opened({**NET, "ema": state, "step": np.asarray(5)})
    assert_sets(held, raw=NET, average=state["ema"])
    assert set(held.select(role="training")) == {"ema/count", "step"}
    assert "the names and shapes of the weights around it" in held.manifest.evidence[0]
    critic = {"c": {"kernel": array(3, 1)}}
    held = opened({**NET, "critic": critic, "ema": state})
    assert_sets(held, raw={**NET, "critic": critic}, average={**state["ema"], "critic": critic})
    assert "the names and shapes of 2 of the 3 weights around it" in held.manifest.evidence[0]


@pytest.mark.parametrize("root", ["", "variables"])
def test_an_average_of_optax_over_all_variables_is_one_of_the_weights_and_the_statistics(
    root: str, opened: Opened
) -> None:
    variables = {"params": NET, "batch_stats": STATS}
    state = biased(variables, 5)
    held = opened({**({root: variables} if root else variables), "ema": state})
    averaged = {**state["ema"]["params"], **state["ema"]["batch_stats"]}
    assert_sets(held, raw={**NET, **STATS}, average=averaged)
    kinds = {w.path: w.kind for w in held.select(role="average").weights}
    assert kinds["bn/mean"] is Kind.STATISTIC
    assert kinds["d/kernel"] is Kind.TRAINABLE
    alone = opened({"params": NET, "ema": biased({"params": NET}, 5)})
    assert_sets(alone, raw=NET, average=biased(NET, 5)["ema"])


@pytest.mark.parametrize("place", ["", "ema_state"])
def test_a_state_of_optax_alone_is_a_biased_average(place: str, opened: Opened) -> None:
    state = biased(NET, 5)
    held = opened({place: state} if place else state)
    assert_sets(held, average=state["ema"])
    with pytest.warns(ImmatureWarning, match=r"divide by 1 - decay\*\*5"):
        polyak.snapshot(held)


@pytest.mark.parametrize(
    "tree",
    [
        {"params": {"a": NET, "b": NET}, "ema_a": biased(NET, 5), "ema_b": biased(NET, 7)},
        {"ema": biased(NET, 5), "head": {"kernel": array(7, 7)}},
        {"one": NET, "two": NET, "ema": biased(NET, 5)},
    ],
)
def test_states_of_optax_that_are_not_paired_are_told_to_be_biased(tree: Any, opened: Opened, tmp_path: Path) -> None:
    held = opened(tree)
    assert held.roles == ("raw",)
    with pytest.warns(ImmatureWarning, match=r"ema' \(counter 5\).* is stored as optax.ema keeps it, without its"):
        polyak.convert(held, tmp_path / "out.npz")


def test_of_several_sets_an_average_of_optax_is_of_the_one_that_it_is_named_after(opened: Opened) -> None:
    held = opened({"params": NET, "previous": moved(NET), "ema": biased(NET, 5)})
    assert_sets(held, raw=NET, average=biased(NET, 5)["ema"])


def test_averages_of_optax_in_a_list_are_told_to_be_biased(opened: Opened, tmp_path: Path) -> None:
    held = opened({"params": NET, "emas": {"0": biased(NET, 5), "1": biased(NET, 7)}})
    assert {role for role in held.roles if role.startswith("average")} == {"average:emas/0/ema", "average:emas/1/ema"}
    with pytest.warns(ImmatureWarning, match=r"'emas/0/ema' \(counter 5\), 'emas/1/ema' \(counter 7\)"):
        polyak.convert(held, tmp_path / "out.npz")


def test_a_state_of_optax_that_has_not_moved_is_told_to_hold_zeros(opened: Opened) -> None:
    held = opened({"params": NET, "ema": biased(NET, 0)})
    with pytest.warns(ImmatureWarning, match="it has not moved, and holds zeros") as caught:
        polyak.snapshot(held, "average")
    assert "from_arrays" not in str(caught[0].message)


def test_after_a_million_updates_nothing_is_said_of_the_bias(opened: Opened) -> None:
    state = biased(NET, 3) | {"count": np.asarray(1_000_000, np.int32)}
    held = opened({"params": NET, "ema": state})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        polyak.snapshot(held, "average")
    assert "below 0.01% for decays up to 0.99999" in held.manifest.note
