"""Live PyTorch modules: parameters and persistent buffers under the names of ``state_dict()``."""

from __future__ import annotations

import re
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import distributed, nn
from torch.optim.swa_utils import AveragedModel

from polyak.averaging.parts import Parts
from polyak.averaging.rules import Rule
from polyak.errors import ModelError, UnbuiltModel, argument
from polyak.frameworks.base import Average, Framework, Tracking
from polyak.frameworks.company import ALONE, Company
from polyak.frameworks.torch_added import added
from polyak.frameworks.torch_target import Tensors, dtype_of, memory_of
from polyak.manifest import AVERAGE, RAW, State
from polyak.weights import Evidence, Kind, Weight, is_floating

_NUMBERED = (nn.Sequential, nn.ModuleList)
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_COMPILED = "_orig_mod"
_UNNAMED = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # steps that state_dict() leaves out
# PyTorch's own modules that keep their weights packed; those of reference keep them as they are.
_QUANTISED = re.compile(r"torch\.(ao\.)?nn\.(\w+\.)*quantized\b(?!\.reference)")
_OF_KERAS = "_torch_params"  # where a layer of Keras on PyTorch keeps its variables


@dataclass(frozen=True, slots=True)
class Found:
    """One tensor of a module: its name in the ``state_dict``, its place by structure, its owner and its own name."""

    name: str
    structure: str
    owner: nn.Module
    local: str
    tensor: torch.Tensor
    trained: bool


class TorchFramework(Framework):
    """``torch.nn.Module`` and everything built on it, except Keras' own models."""

    aside_hint = "hand it over with set_extra_state(), or hold its tensors as buffers"

    def owns(self, obj: object) -> bool:
        return isinstance(obj, nn.Module)

    def target(self, model: Any) -> Tensors:
        """The weights, tied ones once, in the order of ``state_dict()``.

        Raises:
            UnbuiltModel: a lazy parameter has no shape yet, or a tensor is on the meta device.
            ModelError: there are no weights, a tensor is sparse or quantised, Keras' layers are among the modules, or
                each process has a part of the parameters now.
        """
        _refuse_sharded(model)
        module = _bare(model)
        _refuse_keras(model, module)
        _refuse_packed(module)
        first: dict[Hashable, Found] = {}
        aliases: dict[str, str] = {}
        for found in _walk(module, "", "", frozenset()):
            _refuse_unbuilt(module, found)
            kept = first.setdefault(memory_of(found.tensor), found)
            if kept.name != found.name:
                aliases[found.name] = kept.name
        if not first:
            raise ModelError(f"{type(module).__name__}: expected at least one weight, received none")
        weights = [_weight(f, i) for i, f in enumerate(first.values())]
        return Tensors(type(module).__name__, {f.name: f.tensor for f in first.values()}, weights, aliases)

    def role(self, model: Any) -> tuple[str, State | None]:
        """Raw weights; an ``AveragedModel`` holds an average, whose rule nothing says."""
        return (AVERAGE if isinstance(_bare(model), AveragedModel) else RAW), None

    def moving(self, averages: Sequence[Any]) -> NoReturn:
        raise AssertionError("there are no averages of torch modules")

    def track(self, model: Any, rule: Rule | Parts, tracking: Tracking) -> Average:
        _refuse_keras(model, _bare(model))
        names = argument("rename", {f"module.{_before(model)}*": "*"})
        raise ModelError(
            f"{type(model).__name__}: expected a Keras model or a tf.Module to track, received a torch module",
            hint="average it with torch.optim.swa_utils.AveragedModel; polyak.save(averaged, path) saves the result, "
            f'and polyak.transfer(averaged, module, {names}, exclude="n_averaged") hands it over',
        )

    def aside(self, model: Any) -> list[str]:
        """Modules with a state beside their tensors, and tensors that only a ``state_dict()`` of their own has."""
        module = _bare(model)
        named = ((name, inner) for name, inner in module.named_modules() if _has_extra_state(inner))
        extra = [f"module {name!r} ({type(inner).__name__}) has an extra state" for name, inner in named]
        known = {found.name: found.tensor for found in _walk(module, "", "", frozenset())}
        own = [f"tensor {name!r} of its state_dict() is no parameter and no buffer" for name in added(module, known)]
        return extra + own

    def company(self, model: Any) -> Company:
        return company()

    def build(self, model: Any, sample: Any) -> None:
        """Run lazy modules once, without gradients and as in evaluation, so that no statistic moves."""
        if isinstance(sample, tuple) and all(n is None or isinstance(n, int) for n in sample):
            sample = torch.zeros([1 if n is None else n for n in sample])
        modes = [(m, m.training) for m in model.modules()]
        model.eval()
        try:
            with torch.no_grad():
                model(torch.as_tensor(sample))
        finally:
            for module, training in modes:
                module.training = training


def company() -> Company:
    """The processes of ``torch.distributed``, if this one has joined them."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return ALONE
    return Company(distributed.get_rank(), distributed.get_world_size())


def _bare(model: Any) -> nn.Module:
    """The module within what only runs it: the names of its weights are its own."""
    while True:
        key = _runs(model)
        if key is None:
            return model
        model = model._modules[key]


def _runs(model: nn.Module) -> str | None:
    """What a module calls the one that it only runs."""
    if isinstance(model, _WRAPPERS):
        return "module"
    key = next(iter(model._modules.keys()), "")
    return key if len(model._modules) == 1 and key in (_COMPILED, *_UNNAMED) else None


def _before(model: nn.Module) -> str:
    """What ``state_dict()`` has before the names of the module within what only runs it."""
    key = _runs(model)
    return "" if key is None else ("" if key in _UNNAMED else f"{key}.") + _before(model._modules[key])


def _has_extra_state(module: nn.Module) -> bool:
    return type(module).get_extra_state is not nn.Module.get_extra_state


def _refuse_sharded(model: nn.Module) -> None:
    """Raise ModelError for a FullyShardedDataParallel that shows a part of its parameters, or all as a flat one."""
    loaded = sys.modules.get("torch.distributed.fsdp")  # to load it takes seconds
    if loaded is None:
        return
    for name, inner in model.named_modules():
        if isinstance(inner, loaded.FullyShardedDataParallel) and inner._handle and not _is_whole(inner._handle):
            where = f"module {name!r}" if name else "the module itself"
            raise ModelError(
                f"{type(model).__name__}: expected whole parameters, received those of {where}, which "
                "FullyShardedDataParallel keeps flat and in parts, one for each process",
                hint="do it in all processes within FullyShardedDataParallel.summon_full_params(model)",
            )


def _is_whole(handle: Any) -> bool:
    """Whether the parameters are there as the module had them, to read and to stay.

    Not so after a pass that leaves them gathered: the next one takes the parts anew, and may compute in another dtype.
    """
    summoned = handle._training_state.name == "SUMMON_FULL_PARAMS"
    lasting = summoned or (handle._use_orig_params and not handle.uses_sharded_strategy)
    return lasting and handle.flat_param.shape == handle.flat_param._unpadded_unsharded_size


def _refuse_packed(module: nn.Module) -> None:
    """Raise ModelError for quantised modules that keep their weights elsewhere than in tensors of their own."""
    for name, inner in module.named_modules():
        packs = type(inner)._save_to_state_dict is not nn.Module._save_to_state_dict
        if packs and _QUANTISED.match(type(inner).__module__):
            raise ModelError(
                f"{type(module).__name__}: expected tensors, received module {name!r} ({type(inner).__name__}), which "
                "keeps quantised weights in a form of its own",
                hint="transfer between modules that are not quantised yet, and quantise the result",
            )


def _refuse_keras(model: Any, module: nn.Module) -> None:
    """Raise ModelError for layers of Keras: their arrays lie as in Keras, under names that differ between instances."""
    found = next((name for name, inner in module.named_modules() if _OF_KERAS in inner._modules), None)
    if found is None:
        return
    if found == "" and module is not model:
        raise ModelError(
            f"{type(model).__name__}: expected the Keras model itself, received what runs it",
            hint="give the model that was wrapped: its weights are those that the wrapper trains",
        )
    raise ModelError(
        f"{type(model).__name__}: expected modules of PyTorch, received one with layers of Keras in it: {found!r}",
        hint=f"give the Keras layer itself, such as module.{found}, and the modules beside it one by one; or hold all "
        "in a keras.Model, with keras.layers.TorchModuleWrapper around those of PyTorch",
    )


def _walk(module: nn.Module, name: str, structure: str, above: frozenset[int]) -> Iterator[Found]:
    """Parameters, then persistent buffers, then what is in the modules within: the order of ``state_dict()``."""
    own = [(n, t, True) for n, t in module._parameters.items()]
    own += [(n, t, False) for n, t in module._buffers.items() if n not in module._non_persistent_buffers_set]
    for local, tensor, trained in own:
        if tensor is not None:
            yield Found(f"{name}{local}", f"{structure}{local}", module, local, tensor, trained)
    inner = {key: child for key, child in module._modules.items() if child is not None and id(child) not in above}
    steps = _steps(module, inner)
    for key, child in inner.items():
        below, place = ("", "") if key in _UNNAMED else (f"{key}.", f"{steps[key]}.")
        yield from _walk(child, name + below, structure + place, above | {id(module)})


def _steps(module: nn.Module, inner: Mapping[str, nn.Module]) -> dict[str, str]:
    """In a list, the index among the modules that own weights: one without weights may come or go."""
    if not isinstance(module, _NUMBERED):
        return {key: key for key in inner}
    owning = [key for key, child in inner.items() if any(True for _ in _walk(child, "", "", frozenset()))]
    return {key: f"#{owning.index(key)}" if key in owning else key for key in inner}


def _weight(found: Found, position: int) -> Weight:
    dtype = dtype_of(found.tensor)
    evidence = Evidence(
        found.structure, found.name, found.name, type(found.owner).__name__, found.local, position, dtype
    )
    return Weight(found.name, tuple(found.tensor.shape), dtype, _kind(found, dtype), evidence)


def _kind(found: Found, dtype: str) -> Kind:
    if not is_floating(dtype):
        return Kind.COUNTER
    return Kind.TRAINABLE if found.trained else Kind.STATISTIC


def _refuse_unbuilt(module: nn.Module, found: Found) -> None:
    lazy = torch.nn.parameter.is_lazy(found.tensor)
    if lazy or found.tensor.is_meta:
        raise UnbuiltModel(
            f"{type(module).__name__}: weight {found.name!r}: expected values, received "
            f"{'a lazy parameter without a shape' if lazy else 'a tensor on the meta device'}",
            hint="call the module once on a batch; a transfer into it takes sample=, an input shape or a sample input"
            if lazy
            else "build the module anew, off the meta device: to_empty() leaves buffers that no file holds without "
            "values, and unties what was tied",
        )
    if (form := _odd_form(found.tensor)) is not None:
        raise ModelError(
            f"{type(module).__name__}: weight {found.name!r}: expected a dense tensor, received {form[0]}", hint=form[1]
        )


def _odd_form(tensor: torch.Tensor) -> tuple[str, str] | None:
    """What a tensor is whose numbers do not lie in memory of its own, and what to do instead."""
    if hasattr(tensor, "full_tensor"):
        gathered = "gather it first: tensor.full_tensor(); files of torch.distributed.checkpoint are read as they are"
        return f"a {type(tensor.data).__name__}, of which each process has a part", gathered
    whole = "transfer before it gets this form"
    if tensor.is_quantized:
        return "a quantised tensor", whole
    if hasattr(tensor, "__tensor_flatten__"):  # the protocol of those that are made of other tensors
        return f"a {type(tensor.data).__name__}", whole
    return None if tensor.layout is torch.strided else (f"one of layout {tensor.layout}", whole)


FRAMEWORK = TorchFramework()
