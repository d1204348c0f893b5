"""An average of one's own with ``shadow`` and ``backup``, in files that were written while it was in the model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import polyak
from polyak.errors import AmbiguousRole


class Shadowed:
    """The class that many a program has copied."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.decay = model, 0.9
        self.shadow = {n: p.detach().clone() for n, p in model.named_parameters()}
        self.backup: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        for name, value in self.model.named_parameters():
            self.shadow[name].lerp_(value, 1 - self.decay)

    @torch.no_grad()
    def apply_shadow(self) -> None:
        self.backup = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        for name, value in self.model.named_parameters():
            value.copy_(self.shadow[name])

    @torch.no_grad()
    def restore(self, *, emptying: bool = True) -> None:
        for name, value in self.model.named_parameters():
            value.copy_(self.backup[name])
        self.backup = {} if emptying else self.backup

    def held(self, names: tuple[str, str] = ("shadow", "backup")) -> dict[str, Any]:
        return dict(zip(("decay", *names), (self.decay, self.shadow, self.backup), strict=True))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def trained(steps: int = 3) -> tuple[nn.Module, Shadowed]:
    torch.manual_seed(0)
    model = network()
    average = Shadowed(model)
    step(model, average, steps)
    return model, average


def step(model: nn.Module, average: Shadowed, times: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(times):
        optimizer.zero_grad()
        model(torch.rand(8, 3)).square().sum().backward()
        optimizer.step()
        average.update()


def arrives(path: Path, role: str, wanted: dict[str, torch.Tensor]) -> None:
    target = network()
    polyak.transfer(path, target, weights=role)
    assert all(torch.equal(value, wanted[name]) for name, value in target.named_parameters())


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("owner", ["ema", "callbacks/EMA", ""])
def test_what_was_put_aside_is_raw_while_the_model_holds_the_average(owner: str, prefix: str, tmp_path: Path) -> None:
    model, average = trained()
    raw = copy.deepcopy(dict(model.named_parameters()))
    average.apply_shadow()
    held: Any = average.held()
    for key in reversed(owner.split("/") if owner else []):
        held = {key: held}
    torch.save({"model": {prefix + n: t for n, t in model.state_dict().items()}, **held}, tmp_path / "best.pt")
    file = polyak.open(tmp_path / "best.pt")
    assert file.roles == ("raw", "average")
    assert "the raw weights put aside" in file.manifest.evidence[-1]
    arrives(tmp_path / "best.pt", "raw", raw)
    arrives(tmp_path / "best.pt", "average", average.shadow)
    with pytest.raises(AmbiguousRole):
        polyak.transfer(tmp_path / "best.pt", network())
    for role in file.roles:
        assert torch.equal(torch.from_numpy(file[f"{role}/1.running_mean"]), model[1].running_mean)


@pytest.mark.parametrize(
    "names",
    [("shadow", "backup"), ("shadow", "original"), ("shadow_weights", "saved"), ("shadow_params", "collected_params")],
)
def test_what_was_put_aside_is_old_once_the_model_has_its_weights_back(names: tuple[str, str], tmp_path: Path) -> None:
    model, average = trained()
    average.apply_shadow()
    average.restore(emptying=False)
    step(model, average, 1)
    torch.save({"model": model.state_dict(), "ema": average.held(names)}, tmp_path / "last.pt")
    file = polyak.open(tmp_path / "last.pt")
    assert file.roles == ("raw", "average", "training")
    assert f"left with the state of the training: 'ema/{names[1]}' (6 arrays)" in file.manifest.note
    arrives(tmp_path / "last.pt", "raw", dict(model.named_parameters()))
    arrives(tmp_path / "last.pt", "average", average.shadow)


def test_a_whole_state_that_was_put_aside_brings_its_buffers(tmp_path: Path) -> None:
    model, average = trained()
    state = copy.deepcopy(model.state_dict())
    average.apply_shadow()
    model.train()(torch.rand(8, 3) + 5)
    average.backup = state
    torch.save({"model": model.state_dict(), "ema": average.held()}, tmp_path / "best.pt")
    target = network()
    polyak.transfer(tmp_path / "best.pt", target, weights="raw")
    assert all(torch.equal(value, state[name]) for name, value in target.state_dict().items())


def test_it_is_said_where_the_values_do_not_tell(tmp_path: Path) -> None:
    model, average = trained(steps=0)
    average.apply_shadow()
    torch.save({"model": model.state_dict(), "ema": average.held()}, tmp_path / "first.pt")
    file = polyak.open(tmp_path / "first.pt")
    assert "exchanged for the average; the file cannot tell" in file.manifest.evidence[-1]


def test_without_a_model_what_was_put_aside_is_no_average(tmp_path: Path) -> None:
    _, average = trained()
    average.apply_shadow()
    torch.save({"ema": average.held()}, tmp_path / "ema.pt")
    file = polyak.open(tmp_path / "ema.pt")
    assert file.roles == ("average", "training")
    assert "raw weights that were put aside" in file.manifest.evidence[-1]
    assert all(torch.equal(torch.from_numpy(file[f"average/{n}"]), t) for n, t in average.shadow.items())


def test_an_empty_place_for_it_changes_nothing(tmp_path: Path) -> None:
    model, average = trained()
    average.apply_shadow()
    average.restore()
    torch.save({"model": model.state_dict(), "ema": average.held()}, tmp_path / "last.pt")
    assert polyak.open(tmp_path / "last.pt").roles == ("raw", "average")
    arrives(tmp_path / "last.pt", "raw", dict(model.named_parameters()))


@pytest.mark.parametrize(
    "keys",
    [
        ("ema/shadow", "ema/model_backup"),
        ("ema/ema_weights", "ema/original_weights"),
        ("ema/averaged", "ema/stored"),
        ("ema/ema", "ema/backup"),
        ("ema/state_dict", "ema/backup"),
        ("swa/model", "swa/original"),
        ("ema", "backup"),
        ("model_ema", "model_original"),
        ("swa_state_dict", "saved_state_dict"),
    ],
)
@pytest.mark.parametrize("back", [False, True])
def test_other_words_for_the_two_mean_the_same(keys: tuple[str, str], back: bool, tmp_path: Path) -> None:
    """Neither what was put aside nor the average in the model is taken for what the other is."""
    model, average = trained()
    raw = copy.deepcopy(dict(model.named_parameters()))
    average.apply_shadow()
    if back:
        average.restore(emptying=False)
        step(model, average, 1)
        raw = dict(model.named_parameters())
    held: dict[str, Any] = {"model": model.state_dict()}
    for key, state in zip(keys, (average.shadow, average.backup), strict=True):
        owner, _, name = key.rpartition("/")
        (held.setdefault(owner, {}) if owner else held)[name] = state
    torch.save(held, tmp_path / "run.pt")
    arrives(tmp_path / "run.pt", "raw", raw)
    arrives(tmp_path / "run.pt", "average", average.shadow)


def test_what_is_called_original_is_the_model_where_there_is_no_other(tmp_path: Path) -> None:
    model, average = trained()
    torch.save({"original": model.state_dict(), "ema": average.shadow}, tmp_path / "run.pt")
    arrives(tmp_path / "run.pt", "raw", dict(model.named_parameters()))
    arrives(tmp_path / "run.pt", "average", average.shadow)


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("exchanged", [True, False])
def test_the_model_in_an_average_of_ones_own_is_no_average(beside: bool, exchanged: bool, tmp_path: Path) -> None:
    """The class holds the model that it follows; pickled, or by its ``__dict__``, it is in the file a second time."""
    model, average = trained()
    raw = copy.deepcopy(dict(model.named_parameters()))
    if exchanged:
        average.apply_shadow()
    held = {"model": model.state_dict()} if beside else {}
    torch.save({**held, "ema": average}, tmp_path / "run.pt")
    assert polyak.open(tmp_path / "run.pt").roles[:2] == ("raw", "average")
    arrives(tmp_path / "run.pt", "raw", raw)
    arrives(tmp_path / "run.pt", "average", average.shadow)


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize(
    "keys", [("model", "ema_model"), ("online_model", "ema_model"), ("student", "teacher"), ("online", "module")]
)
def test_what_holds_a_model_and_its_average_may_be_called_an_average_as_a_whole(
    keys: tuple[str, str], beside: bool, tmp_path: Path
) -> None:
    model, average = trained()
    held = dict(zip(keys, (model.state_dict(), average.shadow), strict=True))
    other = {"model": model.state_dict()} if beside else {}
    torch.save({"trainer": {"ema": held}, **other}, tmp_path / "run.pt")
    arrives(tmp_path / "run.pt", "raw", dict(model.named_parameters()))
    arrives(tmp_path / "run.pt", "average", average.shadow)
