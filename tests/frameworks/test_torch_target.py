"""Live modules of PyTorch as sources and targets: every bit arrives, or nothing has changed."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyak
from polyak.errors import (
    AmbiguousMatch,
    ModelError,
    NonFinite,
    NotAWeight,
    PolyakError,
    ShapeMismatch,
    UnbuiltModel,
)
from polyak.weights import Kind

torch = pytest.importorskip("torch")
nn = torch.nn
view = import_module("polyak.frameworks.torch_target").view


class Net(nn.Module):
    """Parameters, statistics, a counter, a buffer that is not kept, and a weight with two names."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.blocks = nn.ModuleList([nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4)])
        self.encoder = nn.Linear(4, 5, bias=False)
        self.decoder = nn.Linear(4, 5, bias=False)
        self.decoder.weight = self.encoder.weight
        self.register_buffer("mask", torch.rand(2), persistent=False)

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return self.decoder(x)


def holding(*tensors: Any) -> Any:
    """A module with these as ``a``, ``b`` and so on."""
    module = nn.Module()
    for name, tensor in zip("abc", tensors, strict=False):
        module.register_buffer(name, tensor)
    return module


def bits(module: Any) -> dict[str, bytes]:
    return {n: t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for n, t in module.state_dict().items()}


def test_weights_are_described_in_the_names_of_the_state_dict() -> None:
    held = polyak.snapshot(Net())
    assert set(held) == set(Net().state_dict())
    kinds = {w.path: w.kind for w in held.weights}
    assert kinds["blocks.0.weight"] is Kind.TRAINABLE
    assert kinds["blocks.2.running_mean"] is Kind.STATISTIC
    assert kinds["blocks.2.num_batches_tracked"] is Kind.COUNTER
    evidence = {w.path: w.evidence for w in held.weights}["blocks.2.weight"]
    assert (evidence.structure, evidence.layer, evidence.local) == ("blocks.#1.weight", "BatchNorm1d", "weight")
    assert (held.roles, held.manifest.layout) == (("raw",), "torch")


def test_weights_arrive_in_another_instance_bit_for_bit() -> None:
    source, target = Net(0), Net(1)
    source.train()(torch.rand(8, 3))
    parameter = target.encoder.weight
    receipt = polyak.transfer(source, target)
    assert bits(source) == bits(target)
    assert target.encoder.weight is parameter is target.decoder.weight
    assert [m.target for m in receipt.moved].count("encoder.weight") == 1
    assert "decoder.weight" not in {m.target for m in receipt.moved}


@pytest.mark.parametrize("end", [".pt", ".safetensors", ".npz"])
def test_a_file_has_all_names_of_a_shared_weight_and_loads_back(tmp_path: Path, end: str) -> None:
    source, target = Net(0), Net(1)
    polyak.save(source, tmp_path / f"a{end}")
    assert set(polyak.open(tmp_path / f"a{end}")) == set(source.state_dict())
    polyak.transfer(tmp_path / f"a{end}", target)
    assert bits(source) == bits(target)


def test_a_file_that_pytorch_wrote_loads_though_it_names_the_shared_weight_twice(tmp_path: Path) -> None:
    source, target = Net(0), Net(1)
    torch.save(source.state_dict(), tmp_path / "a.pt")
    polyak.transfer(tmp_path / "a.pt", target)
    assert bits(source) == bits(target)


def test_two_values_for_a_shared_weight_are_refused(tmp_path: Path) -> None:
    state = {n: t.clone() for n, t in Net(0).state_dict().items()}
    state["decoder.weight"] += 1
    torch.save(state, tmp_path / "a.pt")
    target = Net(1)
    before = bits(target)
    with pytest.raises(AmbiguousMatch, match=r"'encoder\.weight' and 'decoder\.weight'"):
        polyak.transfer(tmp_path / "a.pt", target)
    assert bits(target) == before
    polyak.transfer(tmp_path / "a.pt", target, exclude="decoder.weight")
    assert bits(target) == bits(Net(0))


def test_a_file_with_the_other_name_of_a_shared_weight_alone_is_enough(tmp_path: Path) -> None:
    state = dict(Net(0).state_dict())
    del state["encoder.weight"]
    torch.save(state, tmp_path / "a.pt")
    target = Net(1)
    polyak.transfer(tmp_path / "a.pt", target)
    assert bits(target) == bits(Net(0))


def test_reads_are_copies() -> None:
    module = nn.Linear(2, 2)
    held = polyak.snapshot(module)
    before = held["weight"].copy()
    with torch.no_grad():
        module.weight.add_(1)
    np.testing.assert_array_equal(held["weight"], before)
    held["weight"][:] = 9
    assert not (module.weight == 9).any()


@pytest.mark.parametrize(
    "dtype", ["float64", "float16", "bfloat16", "complex64", "int8", "uint16", "bool", "float8_e4m3fn"]
)
def test_every_dtype_keeps_its_bits(dtype: str) -> None:
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        module = nn.Module()
        module.register_buffer("x", (torch.rand(3, 2) * 9).to(getattr(torch, dtype)))
        module.register_buffer("scalar", torch.tensor(seed).to(getattr(torch, dtype)))
        made.append(module)
    polyak.transfer(made[0], made[1])
    assert bits(made[0]) == bits(made[1])
    assert polyak.snapshot(made[0])["x"].dtype.name == dtype


def test_a_parameter_that_is_not_contiguous_is_read_and_written_in_its_place() -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    target.weight = nn.Parameter(torch.zeros(3, 2).T)
    storage = target.weight.data_ptr()
    polyak.transfer(source, target)
    assert torch.equal(source.weight, target.weight)
    assert (target.weight.data_ptr(), target.weight.stride()) == (storage, (1, 2))


def test_a_failure_in_the_middle_leaves_every_bit_as_it_was() -> None:
    target = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        target[0].weight[0, 0] = float("nan")
    before = bits(target)
    source = {n: np.ones(tuple(t.shape), np.float32) for n, t in target.state_dict().items()}
    source["1.bias"][0] = np.inf
    with pytest.raises(NonFinite, match=r"1\.bias"):
        polyak.transfer(polyak.Snapshot.from_arrays(source), target)
    assert bits(target) == before
    source["1.bias"] = np.ones(3, np.float32)
    with pytest.raises(ShapeMismatch):
        polyak.transfer(polyak.Snapshot.from_arrays(source), target)
    assert bits(target) == before


def test_a_tensor_made_in_inference_mode_is_written_and_put_back() -> None:
    with torch.inference_mode():
        frozen = nn.Linear(2, 2)
    mixed = nn.ModuleList([nn.Linear(2, 2), frozen])
    source = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    before = bits(mixed)
    spoiled = {n: t.numpy() for n, t in source.state_dict().items()}
    spoiled["1.bias"] = np.full(2, np.nan, np.float32)
    with pytest.raises(NonFinite):
        polyak.transfer(polyak.Snapshot.from_arrays(spoiled), mixed)
    assert bits(mixed) == before
    polyak.transfer(source, mixed)
    assert bits(mixed) == bits(source)
    assert frozen.weight.is_inference()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_module_that_packs_its_weights_is_refused_also_if_it_is_one_of_several() -> None:
    made = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    packed = torch.ao.quantization.quantize_dynamic(made, {nn.Linear}, dtype=torch.qint8)
    for verb in (polyak.snapshot, lambda module: polyak.transfer(made, module)):
        with pytest.raises(ModelError, match=r"module '0' \(Linear\), which keeps quantised weights") as error:
            verb(packed)
        assert "quantise the result" in error.value.hint


class Own(nn.Linear):
    """A module of somebody's own, in a package of such a name, which saves more than its tensors."""

    __module__ = "mine.quantized.layers"

    def _save_to_state_dict(self, *args: Any) -> None:
        super()._save_to_state_dict(*args)


def test_a_module_of_plain_tensors_is_none_that_packs_whatever_it_is_called() -> None:
    source, target = nn.Sequential(Own(2, 2)), nn.Sequential(Own(2, 2))
    polyak.transfer(source, target)
    assert torch.equal(source[0].weight, target[0].weight)


class Counting(nn.Linear):
    calls = 0

    def get_extra_state(self) -> Any:
        return {"calls": self.calls}

    def set_extra_state(self, state: Any) -> None:
        self.calls = state["calls"]


def test_an_extra_state_is_said_to_stay_where_it_is() -> None:
    source, target = nn.Sequential(Counting(2, 2)), nn.Sequential(Counting(2, 2))
    with pytest.warns(NotAWeight, match=r"module '0' \(Counting\) has an extra state: it is neither"):
        polyak.transfer(source, target)


class Saving(nn.Linear):
    """Keeps a tensor as ``state_dict()`` asks for it, and neither as a parameter nor as a buffer."""

    scale = torch.ones(2)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}scale"] = self.scale


def hooked() -> nn.Module:
    module = nn.Linear(2, 2)
    module.register_state_dict_post_hook(lambda _, state, prefix, __: state.update({f"{prefix}scale": torch.ones(2)}))
    return module


@pytest.mark.parametrize("make", [lambda: Saving(2, 2), hooked])
@pytest.mark.parametrize("around", [lambda module: module, torch.compile])
def test_a_tensor_that_only_the_state_dict_has_is_said_to_stay(make: Any, around: Any, tmp_path: Path) -> None:
    source, target = (around(nn.Sequential(make(), nn.BatchNorm1d(2))) for _ in range(2))
    said = r"tensor '0\.scale' of its state_dict\(\) is no parameter and no buffer: it is neither"
    with pytest.warns(NotAWeight, match=said):
        polyak.transfer(source, target)
    with pytest.warns(NotAWeight, match=said):
        polyak.save(source, tmp_path / "a.safetensors")


def renaming() -> nn.Module:
    module = nn.Linear(2, 2)
    hook = lambda _, state, prefix, __: state.update({f"{prefix}w": state.pop(f"{prefix}weight")})  # noqa: E731
    module.register_state_dict_post_hook(hook)
    return module


def failing() -> nn.Module:
    module = nn.Linear(2, 2)
    module.register_state_dict_pre_hook(lambda *_: 1 / 0)
    return module


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.utils.spectral_norm(nn.Linear(2, 2)),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
        renaming,
        failing,
    ],
)
def test_hooks_that_add_no_tensor_are_silent(make: Any) -> None:
    source, target = nn.Sequential(make()), nn.Sequential(make())
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotAWeight)
        polyak.transfer(source, target)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_what_a_weight_is_computed_from_is_paired_with_no_plain_weight() -> None:
    """A direction without its length is another weight, of the same shape."""
    plain, parts = nn.Linear(3, 2), nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    for source, target in ((plain, parts), (parts, plain)):
        with pytest.raises(PolyakError) as error:
            polyak.transfer(source, target)
        assert "remove_parametrizations(layer, name)" in error.value.hint
        assert "rename" not in error.value.hint
    named = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    with pytest.raises(PolyakError) as error:
        polyak.transfer(parts, named)
    assert 'rename={"*": "0.*"}' in error.value.hint
    nn.utils.parametrize.remove_parametrizations(parts, "weight")
    polyak.transfer(parts, plain)
    assert torch.equal(parts.weight, plain.weight)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:.*weight_norm:DeprecationWarning")
@pytest.mark.parametrize("way", ["spectral_norm", "weight_norm", "prune"])
def test_what_a_weight_was_computed_from_of_old_is_paired_with_no_plain_weight(way: str, tmp_path: Path) -> None:
    prune = import_module("torch.nn.utils.prune")
    ways = {
        "spectral_norm": (nn.utils.spectral_norm, nn.utils.remove_spectral_norm),
        "weight_norm": (nn.utils.weight_norm, nn.utils.remove_weight_norm),
        "prune": (
            lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
            lambda layer: prune.remove(layer, "weight"),
        ),
    }
    make, remove = ways[way]
    named = "torch.nn.utils.prune.remove" if way == "prune" else f"torch.nn.utils.remove_{way}"
    plain, parts = nn.Linear(4, 4), make(nn.Linear(4, 4))
    torch.save(parts.state_dict(), tmp_path / "a.pt")
    for source, target in ((plain, parts), (parts, plain), (tmp_path / "a.pt", plain)):
        with pytest.raises(PolyakError) as error:
            polyak.transfer(source, target)
        assert f"{named}(layer, name)" in error.value.hint
        assert "rename" not in error.value.hint
    remove(parts)
    polyak.transfer(parts, plain)
    assert torch.equal(parts.weight, plain.weight)


def test_counters_of_other_names_are_not_taken_for_each_other(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    torch.save(averaged.module.state_dict(), tmp_path / "plain.pt")
    with pytest.raises(PolyakError, match="weight 'n_averaged': expected") as error:
        polyak.transfer(tmp_path / "plain.pt", averaged)
    assert "set 'n_averaged' yourself" in error.value.hint


def test_a_tensor_of_which_each_process_has_a_part_is_refused(tmp_path: Path) -> None:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_module

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        parted = distribute_module(nn.Linear(2, 2), init_device_mesh("cpu", (1,)))
        for verb in (polyak.snapshot, lambda module: polyak.transfer(nn.Linear(2, 2), module)):
            with pytest.raises(ModelError, match=r"weight 'weight': .* received a DTensor") as error:
                verb(parted)
            assert "full_tensor()" in error.value.hint
    finally:
        distributed.destroy_process_group()


def test_an_expanded_tensor_is_refused_and_read() -> None:
    norm = nn.BatchNorm1d(3)
    norm.running_mean = torch.zeros(1).expand(3)
    with pytest.raises(ModelError, match=r"weight 'running_mean': expected memory for each element, .* expanded"):
        polyak.transfer(nn.BatchNorm1d(3), norm)
    assert polyak.transfer(norm, nn.BatchNorm1d(3)).nbytes > 0  # as a source it is read


@pytest.mark.parametrize(
    "lying",
    [
        lambda base: (base[:3], base[1:]),
        lambda base: (base, base[2:4]),
        lambda base: (base, base.view(2, 2)),
        lambda base: (base[::2], base[2:]),
        lambda base: (base.view(2, 2).T, base.view(2, 2)[:, 1]),
        lambda base: (base, base.view(torch.int32)),
        lambda base: (torch.from_numpy(base.numpy()[:3]), torch.from_numpy(base.numpy()[2:])),
        lambda base: (base.as_strided((2, 2), (2, 1)), base.as_strided((2,), (2,), 1)),
    ],
)
def test_weights_that_share_memory_in_part_are_refused_by_name(lying: Any) -> None:
    target = holding(*lying(torch.zeros(4)))
    before = bits(target)
    arrays = {n: np.ones(t.shape, t.numpy().dtype) for n, t in target.state_dict().items()}
    for asked in ({}, {"include": "b"}):
        with pytest.raises(
            ModelError, match=r"weight '[ab]': expected memory of its own, received some of weight"
        ) as e:
            polyak.transfer(polyak.Snapshot.from_arrays(arrays), target, **asked)
        assert "one parameter under two names" in e.value.hint
    assert bits(target) == before
    polyak.transfer(target, holding(*(t.clone() for t in target.buffers())))  # as a source it is read


@pytest.mark.parametrize(
    "lying",
    [
        lambda base: base.split([3, 5, 4]),
        lambda base: base.view(4, 3).unbind(1),
        lambda base: (base[::2], base[1::2], base[12:]),
        lambda base: (base.as_strided((3, 2), (2, 3)), base[8:10], base[1:2]),
    ],
)
def test_weights_in_one_memory_that_do_not_overlap_are_written(lying: Any) -> None:
    target = holding(*lying(torch.zeros(12)))
    source = holding(*(torch.rand(t.shape) for t in target.buffers()))
    polyak.transfer(source, target)
    assert bits(target) == bits(source)


@pytest.mark.parametrize("size", [(3, 2), (2, 3)])
def test_a_window_that_slides_over_itself_is_refused_and_read(size: tuple[int, int]) -> None:
    target, source = holding(torch.arange(6.0).as_strided(size, (1, 1))), holding(torch.ones(size))
    with pytest.raises(ModelError, match=r"weight 'a': expected memory for each element, .* windows that overlap"):
        polyak.transfer(source, target)
    polyak.transfer(target, source)
    assert torch.equal(source.a, target.a)


def test_two_parameters_in_one_memory_are_one_weight(tmp_path: Path) -> None:
    def made() -> Any:
        module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), holding(torch.ones(0), torch.ones(0)))
        module[1].weight.data = module[0].weight.data
        return module

    torch.manual_seed(1)
    source, target = made(), made()
    before = bits(target)
    with pytest.raises(AmbiguousMatch, match=r"weights '0\.weight' and '1\.weight': expected one value, because"):
        polyak.transfer(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), source[2]), target)
    assert bits(target) == before
    polyak.save(source, tmp_path / "a.pt")
    assert set(polyak.open(tmp_path / "a.pt")) == set(source.state_dict())
    polyak.transfer(tmp_path / "a.pt", target)
    assert bits(target) == bits(source) != before


def test_a_module_whose_list_has_shifted_is_not_paired_by_guess() -> None:
    source = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Linear(2, 2))
    target = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with pytest.raises(polyak.PolyakError):
        polyak.transfer(source, target)
    polyak.transfer(source, target, by="structure")
    assert torch.equal(source[2].weight, target[1].weight)


def test_wrappers_do_not_change_the_names() -> None:
    module = Net(0)
    assert set(polyak.snapshot(nn.DataParallel(module))) == set(module.state_dict())
    assert set(polyak.snapshot(torch.compile(module))) == set(module.state_dict())


def test_a_module_that_only_computes_anew_does_not_change_the_names_within() -> None:
    wrap = import_module("torch.distributed.algorithms._checkpoint.checkpoint_wrapper").checkpoint_wrapper
    wrapped = nn.Sequential(wrap(nn.Linear(2, 2)), nn.ReLU(), wrap(nn.BatchNorm1d(2)))
    held = polyak.snapshot(wrapped)
    assert list(held) == list(wrapped.state_dict())
    structures = [w.evidence.structure for w in held.weights]
    assert structures[:3] == ["#0.weight", "#0.bias", "#1.weight"]
    assert set(polyak.snapshot(wrap(nn.Linear(2, 2)))) == {"weight", "bias"}


@pytest.mark.filterwarnings("ignore:FSDP|.*NO_SHARD", "ignore::FutureWarning")
@pytest.mark.parametrize("original", [True, False])
def test_parameters_that_fsdp_keeps_flat_are_refused_until_they_are_summoned(tmp_path: Path, original: bool) -> None:
    from torch import distributed
    from torch.distributed.fsdp import FullyShardedDataParallel

    def parted(module: Any) -> Any:
        return FullyShardedDataParallel(module, device_id=torch.device("cpu"), use_orig_params=original)

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        source, target = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.Sequential(nn.Linear(2, 2))
        target.append(nn.BatchNorm1d(2))
        model = parted(nn.Sequential(parted(target[0]), target[1]))
        if not original:
            for verb in (polyak.snapshot, lambda module: polyak.transfer(source, module)):
                with pytest.raises(ModelError, match="expected whole parameters, received those of") as error:
                    verb(model)
                assert "within FullyShardedDataParallel.summon_full_params(model)" in error.value.hint
        with FullyShardedDataParallel.summon_full_params(model):
            assert set(polyak.snapshot(model)) == set(source.state_dict())
            polyak.transfer(source, model)
        with FullyShardedDataParallel.summon_full_params(model):
            polyak.transfer(model, restored := nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
        assert bits(restored) == bits(source)
    finally:
        distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("loaded", [False, True])
def test_a_module_of_torchscript_is_a_target_and_a_source(loaded: bool, tmp_path: Path) -> None:
    def network() -> Any:
        return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)))

    source, served, back = network(), torch.jit.script(network()), network()
    if loaded:
        torch.jit.save(served, tmp_path / "serving.pt")
        served = torch.jit.load(tmp_path / "serving.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        polyak.transfer(source, served)
        polyak.transfer(served, back)
    assert bits(served) == bits(source) == bits(back)


def test_an_averaged_model_holds_an_average(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2))
    assert polyak.snapshot(averaged).roles == ("average",)
    target = nn.Linear(2, 2)
    polyak.transfer(averaged, target, rename={"module.*": "*"}, exclude="n_averaged")
    assert torch.equal(target.weight, averaged.module.weight)


def test_modules_without_values_yet_are_refused_and_built_with_a_sample() -> None:
    with pytest.raises(UnbuiltModel, match="a lazy parameter without a shape"):
        polyak.snapshot(nn.Sequential(nn.LazyLinear(2)))
    with pytest.raises(UnbuiltModel, match="meta device") as refused:
        polyak.snapshot(nn.Linear(2, 2, device="meta"))
    assert "build the module anew, off the meta device" in str(refused.value.hint)
    source, target = nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.LazyLinear(2))
    polyak.transfer(source, target, sample=(None, 3))
    assert bits(source) == bits(target)


def test_building_moves_no_statistic() -> None:
    target = nn.Sequential(nn.LazyLinear(2), nn.BatchNorm1d(2))
    before = target[1].running_var.clone()
    polyak.transfer(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), target, sample=torch.rand(4, 3))
    assert target.training
    assert target[1].training
    assert torch.equal(target[1].running_var, before)
    assert int(target[1].num_batches_tracked) == 0


def test_what_cannot_be_read_or_tracked_is_refused() -> None:
    with pytest.raises(ModelError, match="at least one weight"):
        polyak.snapshot(nn.ReLU())
    module = nn.Module()
    module.register_buffer("x", torch.eye(2).to_sparse())
    with pytest.raises(ModelError, match="expected a dense tensor"):
        polyak.snapshot(module)


def test_a_state_dict_is_no_model_and_the_hint_says_what_is_given_for_it(tmp_path: Path) -> None:
    source, target = Net(1), Net(2)
    state = source.state_dict()
    for refused in (lambda: polyak.transfer(state, target), lambda: polyak.average([state, state])):
        with pytest.raises(ModelError, match=r"received collections\.OrderedDict") as raised:
            refused()
        assert "module.load_state_dict(state)" in str(raised.value.hint)
        assert "torch.save(state, path)" in str(raised.value.hint)
    torch.save(state, tmp_path / "state.pt")
    polyak.transfer(tmp_path / "state.pt", target)
    assert bits(target) == bits(source)


@pytest.mark.parametrize("around", [lambda module: module, torch.compile, nn.DataParallel])
def test_a_module_is_not_tracked_and_the_hint_says_what_is_done_instead(around: Any) -> None:
    model, module = around(nn.Linear(2, 2)), nn.Linear(2, 2)
    with pytest.raises(ModelError, match="torch module") as refused:
        polyak.track(model, "ema:0.9")
    averaged = torch.optim.swa_utils.AveragedModel(model)
    call = re.search(r"polyak\.transfer\(.*?\)", refused.value.hint)
    assert call is not None
    assert "AveragedModel" in refused.value.hint
    assert eval(call[0], {"polyak": polyak, "averaged": averaged, "module": module}).role == "average"
    assert torch.equal(module.weight, next(averaged.parameters()))


def test_nothing_but_pytorch_is_loaded_for_a_module(tmp_path: Path) -> None:
    script = (
        "import sys, torch, polyak; polyak.save(torch.nn.Linear(2, 2), sys.argv[1]); "
        "assert not {'tensorflow', 'keras', 'jax'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.pt")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(15.0).reshape(5, 3)[1:2, 0],
        torch.arange(16.0).reshape(4, 4)[1:2, 1:2],
        torch.from_numpy(np.zeros(0, np.float32)).as_strided((0,), (0,)),
        torch.arange(15.0).reshape(5, 3)[1:2, 0].to(torch.bfloat16),
    ],
    ids=["one", "one by one", "none", "one in bfloat16"],
)
def test_a_tensor_of_one_element_or_none_may_have_any_stride(value: Any, tmp_path: Path) -> None:
    """PyTorch calls it contiguous, and still gives no bytes of it as it is."""
    source, target = nn.Module(), nn.Module()
    source.scale = nn.Parameter(value)
    target.scale = nn.Parameter(torch.ones(value.shape, dtype=value.dtype))
    assert value.stride() not in {(1,), (1, 1)}
    polyak.transfer(source, target)
    assert torch.equal(target.scale, value)
    with torch.no_grad():
        target.scale += 1
    polyak.save(target, tmp_path / "saved.safetensors")
    polyak.transfer(tmp_path / "saved.safetensors", source)
    assert torch.equal(source.scale, target.scale)


@pytest.mark.parametrize("numel", [0, 3, 2**19])
def test_memory_that_was_read_or_written_may_be_freed_by_its_owner(numel: int, tmp_path: Path) -> None:
    """FSDP frees what it has gathered by resizing its storage, and fills it again."""
    module, other = nn.Module(), nn.Module()
    module.w, other.w = nn.Parameter(torch.ones(numel)), nn.Parameter(torch.zeros(numel))
    polyak.save(module, tmp_path / "a.pt")
    polyak.transfer(module, other)
    polyak.transfer(other, module)
    for held in (module, other):
        held.w.untyped_storage().resize_(0)
        held.w.untyped_storage().resize_(4 * numel)


def test_a_view_keeps_the_memory_that_it_shows() -> None:
    tensor = torch.arange(5.0)
    shown = view(tensor)
    tensor += 1
    assert shown.tolist() == [1, 2, 3, 4, 5]
    del tensor
    torch.zeros(5)
    assert shown.tolist() == [1, 2, 3, 4, 5]
