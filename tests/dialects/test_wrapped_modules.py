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
