"""Live PyTorch modules: parameters and persistent buffers under the names of ``state_dict()``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import distributed, nn
from torch.optim.swa_utils import AveragedModel

from polyak.averaging.parts import Parts
from polyak.averaging.rules import Rule
from polyak.errors import ModelError, UnbuiltModel
from polyak.frameworks.base import Average, Framework, Tracking
from polyak.frameworks.company import ALONE, Company
from polyak.frameworks.torch_target import Tensors, dtype_of
from polyak.manifest import AVERAGE, RAW, State
from polyak.weights import Evidence, Kind, Weight, is_floating

_NUMBERED = (nn.Sequential, nn.ModuleList)
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_COMPILED = "_orig_mod"
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

    def owns(self, obj: object) -> bool:
        return isinstance(obj, nn.Module)

    def target(self, model: Any) -> Tensors:
        """The weights, tied ones once, in the order of ``state_dict()``.

        Raises:
            UnbuiltModel: a lazy parameter has no shape yet, or a tensor is on the meta device.
            ModelError: there are no weights, a tensor is sparse or quantised, or Keras' layers are among the modules.
        """
        module = _bare(model)
        _refuse_keras(model, module)
        first: dict[int, Found] = {}
        aliases: dict[str, str] = {}
        for found in _walk(module, "", "", frozenset()):
            _refuse_unbuilt(module, found)
            kept = first.setdefault(id(found.tensor), found)
            if kept.name != found.name:
                aliases[found.name] = kept.name
        if not first:
            raise ModelError(f"{type(module).__name__}: expected at least one weight, received none")
        weights = [_weight(f, i) for i, f in enumerate(first.values())]
        return Tensors(type(module).__name__, {f.name: f.tensor for f in first.values()}, weights, aliases)

    def role(self, model: Any) -> tuple[str, State | None]:
        """Raw weights; an ``AveragedModel`` holds an average, whose rule nothing says."""
        return (AVERAGE if isinstance(model, AveragedModel) else RAW), None

    def moving(self, averages: Sequence[Any]) -> NoReturn:
        raise AssertionError("there are no averages of torch modules")

    def track(self, model: Any, rule: Rule | Parts, tracking: Tracking) -> Average:
        _refuse_keras(model, _bare(model))
        raise ModelError(
            f"{type(model).__name__}: expected a Keras model or a tf.Module to track, received a torch module",
            hint="average it with torch.optim.swa_utils.AveragedModel; polyak.save(averaged, path) saves the result, "
            'and polyak.transfer(averaged, module, rename={"module.*": "*"}, exclude="n_averaged") hands it over',
        )

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
        if isinstance(model, _WRAPPERS):
            model = model.module
        elif _COMPILED in model._modules and len(model._modules) == 1:
            model = model._modules[_COMPILED]
        else:
            return model


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
        yield from _walk(child, f"{name}{key}.", f"{structure}{steps[key]}.", above | {id(module)})


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
            else 'create its values first, for example with module.to_empty(device="cpu")',
        )
    if found.tensor.layout is not torch.strided or found.tensor.is_quantized:
        _refuse_form(module, found)


def _refuse_form(module: nn.Module, found: Found) -> NoReturn:
    form = "a quantised tensor" if found.tensor.is_quantized else f"one of layout {found.tensor.layout}"
    raise ModelError(f"{type(module).__name__}: weight {found.name!r}: expected a dense tensor, received {form}")


FRAMEWORK = TorchFramework()
