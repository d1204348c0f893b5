"""What lies beside a model in a file of PyTorch: other networks are kept, the state of a training is left and told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import polyak

State = Mapping[str, Any]


def states(seed: int = 0) -> tuple[State, State]:
    """A model and a head of it."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict(), nn.Linear(3, 1).state_dict()


def saved(path: Path, **held: Any) -> polyak.Snapshot:
    torch.save(held, path)
    return polyak.open(path)


def optimizer_state() -> State:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(1, 2)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize(("model", "other"), [("model", "head"), ("state_dict", "projector"), ("net", "discriminator")])
def test_two_networks_are_one_set_and_their_mean_has_both(model: str, other: str, tmp_path: Path) -> None:
    members = [states(seed) for seed in (1, 2)]
    paths = [tmp_path / f"{i}.pt" for i in (1, 2)]
    for path, (first, second) in zip(paths, members, strict=True):
        saved(path, **{model: first, other: second, "epoch": 1})
    polyak.average(paths, out=tmp_path / "mean.safetensors")
    mean = polyak.open(tmp_path / "mean.safetensors")
    for place, (a, b) in zip((model, other), zip(*members, strict=True), strict=True):
        for name in a:
            if a[name].is_floating_point():
                wanted = (a[name].double() + b[name].double()) / 2
                assert np.allclose(mean[f"{place}/{name}"], wanted, atol=1e-7)
    assert {name.partition("/")[0] for name in mean} == {model, other}
    assert f"{other!r} may be a network beside {model!r}" in polyak.open(paths[0]).manifest.evidence[-1]


def test_two_networks_of_a_distributed_checkpoint_are_one_set(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    model, head = states()
    dcp.save({"model": model, "head": head}, checkpoint_id=tmp_path / "dcp")
    held = polyak.open(tmp_path / "dcp")
    assert held.roles == ("raw",)
    assert set(held) == {f"model/{n}" for n in model} | {f"head/{n}" for n in head}


def test_one_of_two_networks_goes_into_its_model_once_the_other_is_left_out(tmp_path: Path) -> None:
    model, head = states()
    saved(tmp_path / "a.pt", model=model, head=head)
    target = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with pytest.raises(polyak.errors.UnexpectedWeight, match="'head/weight': expected no such weight"):
        polyak.transfer(tmp_path / "a.pt", target)
    polyak.transfer(tmp_path / "a.pt", target, exclude="head/*")
    assert all(torch.equal(v, model[n]) for n, v in target.state_dict().items())


BESIDE = {
    "optimizer": optimizer_state(),
    "lr_scheduler": {"last_lr": torch.ones(2)},
    "scaler": {"scale": torch.tensor(2.0)},
    "rng_state": torch.get_rng_state(),
    "cuda_rng_states": [torch.get_rng_state()],
    "hyper_parameters": {"class_weights": torch.ones(3)},
    "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(1.0), "k": torch.ones(2)}},
    "MNISTDataModule": {"offset": torch.ones(3)},
    "obs_rms": {"mean": torch.ones(3), "var": torch.ones(3), "count": torch.ones(1)},
    "state_preprocessor": {"running_mean": torch.ones(3), "running_variance": torch.ones(3)},
    "loss_fn": {"weight": torch.ones(3)},
    "class_weights": torch.ones(3),
    "ema": {"decay": 0.9, "shadow": {"of another model": torch.ones(7)}},
}
UNTOLD = {"optimizer", "scaler", "rng_state", "cuda_rng_states"}  # no arrays that may be weights


@pytest.mark.parametrize("beside", BESIDE)
def test_a_model_beside_the_state_of_its_training_has_its_own_names(beside: str, tmp_path: Path) -> None:
    model, _ = states()
    held = saved(tmp_path / "a.pt", state_dict=model, **{beside: BESIDE[beside]})
    assert set(held.select("raw")) == set(model)
    assert ("left with the state of the training:" in held.manifest.note) is (beside in held.manifest.note)
    assert (beside in held.manifest.note) is (beside not in UNTOLD)


def test_what_is_left_with_the_training_is_told(tmp_path: Path) -> None:
    model, _ = states()
    held = saved(tmp_path / "a.pt", model=model, **BESIDE)
    assert set(held.select("raw")) == set(model)
    assert held.manifest.note == (
        "left with the state of the training: 'lr_scheduler' (1 array), 'hyper_parameters' (1 array), "
        "\"callbacks/ModelCheckpoint{'monitor': 'loss'}\" (1 array) and 6 more"
    )
    assert any(held.manifest.note == finding.evidence for finding in polyak.doctor(held))


def test_a_network_beside_a_model_with_an_average_is_told(tmp_path: Path) -> None:
    model, head = states()
    held = saved(tmp_path / "a.pt", g=model, g_ema=states(1)[0], d=head)
    assert held.roles == ("raw", "average", "training")
    assert set(held.select("raw")) == set(held.select("average")) == set(model)
    assert held.manifest.note == "left with the state of the training: 'd' (2 arrays)"


def test_networks_with_an_average_each_are_two_sets(tmp_path: Path) -> None:
    (model, head), (model_ema, head_ema) = states(0), states(1)
    held = saved(tmp_path / "a.pt", g=model, d=head, g_ema=model_ema, ema_d=head_ema)
    assert held.roles == ("raw", "average")
    for role, sets in (("raw", (model, head)), ("average", (model_ema, head_ema))):
        part = held.select(role)
        assert set(part) == {f"{key}/{n}" for key, s in zip("gd", sets, strict=True) for n in s}
        assert all(np.array_equal(part[f"{k}/{n}"], v) for k, s in zip("gd", sets, strict=True) for n, v in s.items())


def test_the_only_network_is_an_average_beside_the_state_of_the_training(tmp_path: Path) -> None:
    model, _ = states()
    held = saved(tmp_path / "a.pt", ema=model, class_weights=torch.ones(3))
    assert held.roles == ("average", "training")
    assert set(held.select("average")) == set(model)


def test_a_name_that_begins_or_ends_with_a_slash_is_a_weight_of_its_own(tmp_path: Path) -> None:
    values = {"lead": torch.full((2,), 2.0), "/lead": torch.full((2,), 1.0), "lead/": torch.full((2,), 3.0)}
    torch.save(values, tmp_path / "a.pt")
    held = polyak.open(tmp_path / "a.pt")
    assert held.roles == ("raw",)
    assert {name: held[name].tolist() for name in held} == {name: v.tolist() for name, v in values.items()}


@pytest.mark.parametrize("key", ["optimized_model", "optimal", "optim_wrapper_model"])
def test_a_model_whose_key_begins_like_optimizer_is_no_optimizer(key: str, tmp_path: Path) -> None:
    model, _ = states()
    held = saved(tmp_path / "a.pt", **{key: model})
    assert (held.roles, set(held)) == (("raw",), set(model))
    held = saved(tmp_path / "b.pt", **{key: model, "ema": states(1)[0]})
    assert np.array_equal(held[f"raw/{next(iter(model))}"], next(iter(model.values())))


@pytest.mark.parametrize(
    "key", ["optimizer", "optim", "optimizers", "optimizer_state_dict", "optimizerG_state_dict", "g_optim"]
)
def test_what_is_called_an_optimizer_is_one_whatever_it_keeps(key: str, tmp_path: Path) -> None:
    model, _ = states()
    held = saved(tmp_path / "a.pt", model=model, **{key: {"fp32_from_fp16": [torch.ones(3)], "m": dict(model)}})
    assert set(held.roles) == {"raw", "optimizer"}


def test_an_optimizer_of_any_name_is_known_by_what_it_keeps(tmp_path: Path) -> None:
    model, _ = states()
    by_name = {"state": {"0.weight": {"exp_avg": torch.ones(3, 2)}}, "param_groups": [{"lr": torch.ones(1)}]}
    held = saved(tmp_path / "a.pt", model=model, optim_of_generator=by_name, adam=optimizer_state())
    assert set(held.roles) == {"raw", "optimizer"}
    assert set(held.select("raw")) == set(model)


@pytest.mark.parametrize(
    "key", ["exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "grad_avg", "momentum_buffer"]
)
@pytest.mark.parametrize("average", [{}, {"ema": states(1)[0]}])
def test_the_moments_of_an_optimizer_are_no_average_of_the_weights(key: str, average: State, tmp_path: Path) -> None:
    """An optimizer of one's own may keep them by the names of the weights, in whatever it is called."""
    model, _ = states()
    moments = {n: torch.ones_like(v) for n, v in model.items() if v.is_floating_point()}
    held = saved(tmp_path / "a.pt", model=model, **average, adam={key: moments, "step": 3})
    assert set(held.roles) == {"raw", "optimizer", *("average" for _ in average)}
    assert not held.manifest.note
    part = held.select("raw")
    assert set(part) == set(model)
    assert all(np.array_equal(part[n], v) for n, v in model.items())


@pytest.mark.parametrize("key", ["grad_ema", "ema_grads", "avg_gradient", "gradients"])
def test_an_average_of_gradients_is_none_of_the_weights(key: str, tmp_path: Path) -> None:
    model, _ = states()
    held = saved(tmp_path / "a.pt", model=model, **{key: {n: v * 0 for n, v in model.items()}})
    assert held.roles == ("raw", "training")
    assert set(held.select("raw")) == set(model)
    assert repr(key) in held.manifest.note


@pytest.mark.parametrize("key", ["grad_net", "momentum"])
def test_the_average_of_a_network_that_is_called_after_gradients_is_one(key: str, tmp_path: Path) -> None:
    model, other = states()[0], states()[0]
    held = saved(tmp_path / "a.pt", **{key: {"model": model, "ema": other}})
    assert held.roles == ("raw", "average")
    assert all(np.array_equal(held.select("average")[n], v) for n, v in other.items())


@pytest.mark.parametrize("key", ["gradient_net", "MomentumEncoder", "squared_model"])
def test_a_network_that_is_called_after_gradients_has_its_average_beside_it(key: str, tmp_path: Path) -> None:
    model, other = states()[0], states(1)[0]
    held = saved(tmp_path / "a.pt", **{key: model, f"{key}_ema": other})
    assert held.roles == ("raw", "average")
    assert all(np.array_equal(held.select("average")[n], v) for n, v in other.items())


@pytest.mark.parametrize("key", ["", "state_dict"])
def test_the_weights_of_a_parameter_list_are_weights(key: str, tmp_path: Path) -> None:
    source, target = (nn.ParameterList([torch.rand(2, 3), torch.rand(4)]) for _ in range(2))
    torch.save({key: source.state_dict()} if key else source.state_dict(), tmp_path / "a.pt")
    assert polyak.open(tmp_path / "a.pt").roles == ("raw",)
    polyak.transfer(tmp_path / "a.pt", target)
    assert all(torch.equal(a, b) for a, b in zip(source, target, strict=True))


DATA = {
    "predictions": {"val": torch.ones(3, 2)},
    "batch": {"x": torch.ones(3, 2), "y": torch.ones(3)},
    "samples": [torch.ones(3, 2), torch.ones(2)],
    "pretrained_embeddings": {"glove": torch.ones(5, 3)},
    "observations": {"obs.mean": torch.ones(3), "obs.std": torch.ones(3)},
}


@pytest.mark.parametrize("beside", DATA)
def test_data_beside_a_model_is_no_network(beside: str, tmp_path: Path) -> None:
    model, head = states()
    held = saved(tmp_path / "a.pt", model=model, **{beside: DATA[beside]})
    assert set(held.select("raw")) == set(model)
    assert f"left with the state of the training: {beside!r}" in held.manifest.note
    held = saved(tmp_path / "b.pt", model=model, head=head, **{beside: DATA[beside]})
    assert set(held.select("raw")) == {f"model/{n}" for n in model} | {f"head/{n}" for n in head}


@pytest.mark.parametrize(
    "key",
    [
        "normalizing_flow",
        "random_encoder",
        "metric_fc",
        "history_encoder",
        "meta_net",
        "loss_net",
        "log_var_net",
        "config_encoder",
        "gradient_net",
    ],
)
def test_a_network_whose_key_has_a_word_of_a_training_is_kept(key: str, tmp_path: Path) -> None:
    model, head = states()
    held = saved(tmp_path / "a.pt", model=model, **{key: head})
    assert set(held.select("raw")) == {f"model/{n}" for n in model} | {f"{key}/{n}" for n in head}


@pytest.mark.parametrize("key", ["loss_fn", "criterion_state_dict", "train_config", "lr_scheduler_1", "metrics"])
def test_the_state_of_a_training_is_known_by_the_end_of_its_key(key: str, tmp_path: Path) -> None:
    model, head = states()
    assert set(saved(tmp_path / "a.pt", model=model, **{key: head}).select("raw")) == set(model)


@pytest.mark.parametrize("keys", [("a", "b", "a_ema", "b_ema"), ("net1", "net2", "ema_net1", "net2-EMA")])
def test_networks_of_one_architecture_are_paired_with_their_averages_by_keys(keys: Any, tmp_path: Path) -> None:
    values = [states(seed)[0] for seed in range(4)]
    held = saved(tmp_path / "a.pt", **dict(zip(keys, values, strict=True)))
    for role, of in (("raw", values[:2]), ("average", values[2:])):
        part = held.select(role)
        assert set(part) == {f"{key}/{n}" for key in keys[:2] for n in values[0]}
        for key, state in zip(keys, of, strict=False):
            assert all(np.array_equal(part[f"{key}/{n}"], v) for n, v in state.items())


def test_averages_that_no_key_pairs_are_raw_and_told(tmp_path: Path) -> None:
    held = saved(tmp_path / "a.pt", **{key: states()[0] for key in ("a", "b", "first_ema", "second_ema")})
    assert held.roles == ("raw",)
    assert held.manifest.evidence[-1] == (
        "called averages by their writer: 'first_ema', 'second_ema'; "
        "neither names, shapes nor keys tell of which weights, so they are taken as raw"
    )


def test_lists_of_several_averages_are_told(tmp_path: Path) -> None:
    """torch-ema and diffusers number their weights: several lists in one file belong to nobody knows whom."""
    model, _ = states()
    listed = {"decay": 0.9, "num_updates": 1, "shadow_params": [torch.ones(3, 2), torch.ones(3)]}
    held = saved(tmp_path / "a.pt", model=model, fast=listed, slow=listed)
    assert held.roles == ("raw", "training")
    said = "left with the state of the training: 'fast/shadow_params' (2 arrays), 'slow/shadow_params' (2 arrays)"
    assert held.manifest.note == said


def test_hundreds_of_layers_that_lie_each_in_a_dictionary_are_paired_by_keys(tmp_path: Path) -> None:
    """Every layer is a set of its own, of the names and shapes of all others."""

    def tree(value: float) -> State:
        return {f"layer{i}": {"weight": torch.full((2,), value + i), "bias": torch.ones(1)} for i in range(200)}

    held = saved(tmp_path / "a.pt", params=tree(0), ema_params=tree(0.5))
    assert held.roles == ("raw", "average")
    for role, value in (("raw", 0), ("average", 0.5)):
        part = held.select(role)
        assert all(part[f"params/layer{i}/weight"].tolist() == [value + i] * 2 for i in range(200))
