"""Files of objects that wrap a model: its weights for everybody, and for such an object its own names and counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import polyak
from polyak.errors import MissingWeight, UnexpectedWeight


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def averaged(updates: int, seed: int = 0) -> AveragedModel:
    made = AveragedModel(network(seed), multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for i in range(updates):
        made.update_parameters(network(100 + i))
    return made


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(v, theirs[n]) for n, v in ours.items())


@pytest.mark.parametrize("key", ["", "swa_model"])
def test_a_file_of_an_averaged_model_goes_back_into_one_with_its_count(key: str, tmp_path: Path) -> None:
    source, target = averaged(5), averaged(0, seed=1)
    held = {"model": network(7).state_dict(), key: source.state_dict(), "epoch": 3} if key else source.state_dict()
    torch.save(held, tmp_path / "a.pt")
    polyak.transfer(tmp_path / "a.pt", target, weights="average")
    assert same(source, target)
    for each in (source, target):
        each.update_parameters(network(9))
    assert int(target.n_averaged) == 6
    assert same(source, target)


def test_it_still_goes_into_the_bare_model(tmp_path: Path) -> None:
    source, target = averaged(5), network(1)
    torch.save(source.state_dict(), tmp_path / "a.pt")
    polyak.transfer(tmp_path / "a.pt", target)
    assert same(source.module, target)
    assert set(polyak.open(tmp_path / "a.pt")) == set(target.state_dict())


def test_a_plan_for_an_averaged_model_can_be_stored(tmp_path: Path) -> None:
    source, target = averaged(5), averaged(0, seed=1)
    torch.save(source.state_dict(), tmp_path / "a.pt")
    (tmp_path / "plan.json").write_text(polyak.plan(tmp_path / "a.pt", target).to_json())
    polyak.transfer(tmp_path / "a.pt", target, plan=tmp_path / "plan.json")
    assert same(source, target)


def test_a_renaming_is_of_the_models_names(tmp_path: Path) -> None:
    source, target = averaged(5), averaged(0, seed=1)
    torch.save(source.state_dict(), tmp_path / "a.pt")
    plan = polyak.plan(tmp_path / "a.pt", target, rename={"*": "module.*"}, exclude="n_averaged")
    (tmp_path / "plan.json").write_text(plan.to_json())
    polyak.transfer(tmp_path / "a.pt", target, plan=tmp_path / "plan.json")
    assert same(source.module, target.module)
    assert int(target.n_averaged) == 0


def test_a_model_that_was_not_averaged_lacks_the_count(tmp_path: Path) -> None:
    target = averaged(0)
    torch.save(network(1).state_dict(), tmp_path / "a.pt")
    with pytest.raises(MissingWeight, match="'n_averaged'"):
        polyak.transfer(tmp_path / "a.pt", target)
    polyak.transfer(tmp_path / "a.pt", target, exclude="n_averaged")
    assert same(target.module, network(1))


class Wrap(nn.Module):
    """What timm's ModelEma is, too: a model under ``module``, and nothing that is counted."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.module = network(seed)


@pytest.mark.parametrize("form", ["own", "bare", "timm"])
def test_a_module_called_module_gets_its_file_and_that_of_its_model(form: str, tmp_path: Path) -> None:
    source, target = Wrap(0), Wrap(1)
    bare = source.module.state_dict()
    forms = {"own": source.state_dict(), "bare": bare}
    timm = {"state_dict": network(3).state_dict(), "state_dict_ema": bare, "arch": "a", "version": 2}
    torch.save(forms.get(form, timm), tmp_path / "a.pt")
    polyak.transfer(tmp_path / "a.pt", target, weights="average" if form == "timm" else None)
    assert same(source, target)


def test_what_the_object_does_not_have_is_refused(tmp_path: Path) -> None:
    torch.save(network(0).state_dict(), tmp_path / "a.pt")
    target = Wrap(1)
    del target.module[2]
    with pytest.raises(UnexpectedWeight, match=r"'module\.2\.weight'"):
        polyak.transfer(tmp_path / "a.pt", target)


def test_a_part_of_a_snapshot_has_the_models_names(tmp_path: Path) -> None:
    torch.save(averaged(5).state_dict(), tmp_path / "a.pt")
    part = polyak.open(tmp_path / "a.pt").select("average", include="0.*")
    assert part.named_as(["module.0.weight"]) is part
    assert set(part) == {"0.weight", "0.bias"}


class Ema(nn.Module):
    """What ema-pytorch's EMA is, by the names in its ``state_dict()``."""

    def __init__(self, seed: int, count: int) -> None:
        super().__init__()
        self.ema_model, self.online_model = network(seed), network(seed + 50)
        self.register_buffer("initted", torch.tensor(count > 0))
        self.register_buffer("step", torch.tensor(count))


def test_a_file_of_ema_pytorch_goes_back_whole(tmp_path: Path) -> None:
    source, target = Ema(0, 6), Ema(1, 0)
    torch.save(source.state_dict(), tmp_path / "a.pt")
    polyak.transfer(tmp_path / "a.pt", target, weights="average")
    assert same(source, target)
    polyak.transfer(tmp_path / "a.pt", bare := network(9), weights="average")
    assert same(source.ema_model, bare)


# Each the way to an object around the average, or around the model in it, from the network itself.
AROUND = {
    "average": AveragedModel,
    "average of compiled": lambda model: AveragedModel(torch.compile(model)),
    "average of parallel": lambda model: AveragedModel(nn.DataParallel(model)),
    "compiled average": lambda model: torch.compile(AveragedModel(model)),
    "parallel average": lambda model: nn.DataParallel(AveragedModel(model)),
    "parallel compiled average": lambda model: nn.DataParallel(torch.compile(AveragedModel(model))),
}


def within(model: nn.Module) -> tuple[nn.Module, AveragedModel | None]:
    """The network in such an object, and the average around it."""
    average = None
    while not isinstance(model, nn.Sequential):
        average = model if isinstance(model, AveragedModel) else average
        model = next(iter(model.children()))
    return model, average


@pytest.mark.parametrize("source", AROUND)
@pytest.mark.parametrize("target", ["network", *AROUND])
def test_a_file_of_an_average_goes_into_any_other_wrapped_or_not(source: str, target: str, tmp_path: Path) -> None:
    model = network(1)
    written = AROUND[source](network(0))
    within(written)[1].n_averaged.fill_(7)
    torch.save({"model": model.state_dict(), "ema": written.state_dict()}, tmp_path / "a.pt")
    held = polyak.open(tmp_path / "a.pt")
    assert (held.manifest.tool, held.roles) == ("PyTorch AveragedModel", ("raw", "average"))
    read = AROUND.get(target, lambda model: model)(network(2))
    polyak.transfer(tmp_path / "a.pt", read, weights="average")
    inner, average = within(read)
    assert same(inner, within(written)[0])
    assert average is None or int(average.n_averaged) == 7
    polyak.transfer(tmp_path / "a.pt", plain := network(2), weights="raw")
    assert same(plain, model)


@pytest.mark.parametrize("source", AROUND)
def test_an_average_is_saved_as_one_whatever_is_around_it(source: str, tmp_path: Path) -> None:
    written = AROUND[source](network(0))
    polyak.save(written, tmp_path / "a.safetensors")
    assert polyak.open(tmp_path / "a.safetensors").roles == ("average",)
    names = [n for n in polyak.open(tmp_path / "a.safetensors") if n != "n_averaged"]
    before = next(iter(names)).removesuffix("0.weight")
    receipt = polyak.transfer(written, network(1), rename={f"{before}*": "*"}, exclude="n_averaged")
    assert str(receipt).startswith("average weights")


def test_each_of_several_averages_of_a_model_has_its_role(tmp_path: Path) -> None:
    model, fast, slow = network(1), averaged(2), averaged(3)
    states = {"model": model.state_dict(), "ema_fast": fast.state_dict(), "slow": slow.state_dict()}
    torch.save(states, tmp_path / "a.pt")
    assert polyak.open(tmp_path / "a.pt").roles == ("raw", "average:ema_fast", "average:slow")
    for key, source in (("ema_fast", fast), ("slow", slow)):
        polyak.transfer(tmp_path / "a.pt", target := averaged(0, seed=5), weights=f"average:{key}")
        assert same(source, target)
    polyak.transfer(tmp_path / "a.pt", plain := network(2), weights="raw")
    assert same(plain, model)


def test_averages_of_two_networks_are_side_by_side_with_them(tmp_path: Path) -> None:
    a, b = averaged(2), AveragedModel(nn.Linear(3, 1))
    states = {"g": a.module.state_dict(), "d": b.module.state_dict(), "avg_g": a.state_dict(), "avg_d": b.state_dict()}
    torch.save(states, tmp_path / "a.pt")
    held = polyak.open(tmp_path / "a.pt")
    assert held.roles == ("raw", "average")
    assert {name.partition("/")[0] for name in held.select("average")} == {"g", "d"}


def test_of_several_sets_alike_the_one_called_the_model_is_raw(tmp_path: Path) -> None:
    model, average = network(1), averaged(2)
    states = {"best": network(3).state_dict(), "model": model.state_dict(), "ema": average.state_dict()}
    torch.save(states, tmp_path / "a.pt")
    held = polyak.open(tmp_path / "a.pt")
    assert held.roles == ("raw", "average", "training")
    assert "and so has 'best'" in "; ".join(held.manifest.evidence)
    polyak.transfer(tmp_path / "a.pt", plain := network(2), weights="raw")
    assert same(plain, model)


def test_of_several_sets_alike_none_is_raw_where_no_key_says_so(tmp_path: Path) -> None:
    states = {"best": network(3).state_dict(), "last": network(1).state_dict(), "ema": averaged(2).state_dict()}
    torch.save(states, tmp_path / "a.pt")
    held = polyak.open(tmp_path / "a.pt")
    assert held.roles == ("average", "training")
    assert "'best', 'last' have the same names and shapes: which is the model is not told" in held.manifest.evidence


def test_several_averages_without_a_model_keep_their_keys(tmp_path: Path) -> None:
    torch.save({"a": averaged(1).state_dict(), "b": AveragedModel(nn.Linear(1, 1)).state_dict()}, tmp_path / "a.pt")
    held = polyak.open(tmp_path / "a.pt")
    assert held.roles == ("average:a", "average:b")
    assert set(held.select("average:b")) == {"weight", "bias"}


def test_an_average_by_its_key_beside_one_by_its_count_is_no_model(tmp_path: Path) -> None:
    model = network(1)
    states = {"model": model.state_dict(), "model_ema": network(2).state_dict(), "swa": averaged(2).state_dict()}
    torch.save(states, tmp_path / "a.pt")
    assert polyak.open(tmp_path / "a.pt").roles == ("raw", "average:swa", "average:model_ema")


def of_ema_pytorch(seed: int, *, online: bool, prefix: str = "") -> dict[str, torch.Tensor]:
    state = network(seed).state_dict()
    held = {f"ema_model.{n}": t for n, t in state.items()} | {
        "initted": torch.tensor([True]),
        "step": torch.tensor([3]),
    }
    held |= {f"online_model.{n}": t + 1 for n, t in state.items()} if online else {}
    return {prefix + n: t for n, t in held.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("online", [True, False])
def test_ema_pytorch_is_found_in_what_runs_it(online: bool, prefix: str, tmp_path: Path) -> None:
    torch.save({"ema": of_ema_pytorch(1, online=online, prefix=prefix)}, tmp_path / "a.pt")
    held = polyak.open(tmp_path / "a.pt")
    assert held.roles == (("raw", "average") if online else ("average",))
    assert "step = 3" in held.manifest.evidence[0]
    polyak.transfer(tmp_path / "a.pt", target := network(2), weights="average")
    assert same(target, network(1))


@pytest.mark.parametrize("online", [True, False])
def test_several_of_ema_pytorch_have_the_model_beside_them(online: bool, tmp_path: Path) -> None:
    averages = {f"ema_{i}": of_ema_pytorch(i, online=online) for i in (1, 2)}
    torch.save({"model": network(0).state_dict(), **averages}, tmp_path / "a.pt")
    held = polyak.open(tmp_path / "a.pt")
    assert [r for r in held.roles if r != "training"] == ["raw", "average:ema_1", "average:ema_2"]
    assert ("left with the state of the training: 'ema_1' (8 arrays)" in held.manifest.note) is online
    for role, seed in (("raw", 0), ("average:ema_1", 1), ("average:ema_2", 2)):
        polyak.transfer(tmp_path / "a.pt", target := network(5), weights=role)
        assert same(target, network(seed))
