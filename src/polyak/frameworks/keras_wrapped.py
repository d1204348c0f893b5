"""Layers of Keras that run a module of PyTorch: its tensors, under the names that the module itself gives them.

Keras wraps each parameter in a variable without a name, those that are trained first, and passes over the buffers,
such as the statistics of batch normalisation.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary, ref

from polyak.errors import ModelError

_BUFFERS: WeakKeyDictionary[Any, dict[str, Buffer]] = WeakKeyDictionary()


class Buffer:
    """A buffer of a module, as the engine of PyTorch takes variables: whatever tensor the module holds under the name.

    Attributes:
        name: as ``state_dict()`` has it.
        shape: of the tensor that the module held at first.
    """

    trainable = False

    def __init__(self, owner: Any, local: str, name: str) -> None:
        self.name = self.path = name
        self.shape = tuple(owner._buffers[local].shape)
        self._owner, self._local = ref(owner), local

    @property
    def _value(self) -> Any:
        """Raises ModelError where the module has no such tensor any more."""
        owner = self._owner()
        tensor = None if owner is None else owner._buffers.get(self._local)
        if tensor is None or tuple(tensor.shape) != self.shape:
            raise ModelError(
                f"buffer {self.name!r}: expected a tensor of shape {self.shape}, as when the model was last looked at, "
                f"received {'none' if tensor is None else tuple(tensor.shape)}",
                hint="follow the model as it is now: ema.refresh()",
            )
        return tensor

    @property
    def dtype(self) -> str:
        return str(self._value.dtype).removeprefix("torch.")


def module_in(layer: Any) -> Any | None:
    """The module of PyTorch that a layer runs, or None."""
    keras, torch = sys.modules.get("keras"), sys.modules.get("torch")
    if keras is None or torch is None or not isinstance(layer, keras.layers.TorchModuleWrapper):
        return None
    return layer.module


def refuse_wrapped(model: Any, followed: Collection[Any]) -> None:
    """Raise ModelError for a model that would run raw weights where Keras gives it averages: modules ask nobody."""
    own = set(map(id, followed))
    layers = model._flatten_layers()
    found = next((x.name for x in layers if any(id(v) in own for v in tensors_of(x).values())), None)
    if found is not None:
        raise ModelError(
            f"{type(model).__name__}: expected layers of Keras, to run them with other weights than their own, "
            f"received {found!r}, a module of PyTorch, which reads its own",
            hint="use `with ema.applied(): model(x)`, or polyak.transfer(ema, other) and the other instance",
        )


def tensors_of(layer: Any) -> dict[str, Any]:
    """The layer's variables and buffers by the names in its module, in the module's order; none where it runs none.

    Raises:
        ModelError: the module has other parameters than when it was wrapped.
    """
    module = module_in(layer)
    if module is None:
        return {}
    held = {id(v._value): v for v in (*layer._trainable_variables, *layer._non_trainable_variables)}
    named = dict(module.named_parameters())
    _refuse_changed(layer, named, held)
    return {**{name: held[id(parameter)] for name, parameter in named.items()}, **dict(_buffers(module))}


def _refuse_changed(layer: Any, named: Mapping[str, Any], held: Mapping[int, Any]) -> None:
    new = [name for name, parameter in named.items() if id(parameter) not in held]
    # A class of the user's may have variables beside those of its module.
    gone = len(held) > len(named) and type(layer).__name__ == "TorchModuleWrapper"
    if new or gone:
        raise ModelError(
            f"{type(layer).__name__} {layer.name!r}: expected the parameters with which its module was wrapped, "
            f"received {f'a new {new[0]!r}' if new else 'fewer'}: Keras trains and saves the old ones",
            hint="wrap the changed module anew: keras.layers.TorchModuleWrapper(module)",
        )


def in_order(model: Any) -> list[Any]:
    """The model's variables; those of a module in its own order, which does not change with what is trained."""
    tensors = [list(tensors_of(layer).values()) for layer in model._flatten_layers()]
    _refuse_shared([v for alike in tensors for v in alike])
    together = {id(v): alike for alike in tensors for v in alike}
    ordered = [one for v in model.variables for one in together.get(id(v), [v])]
    return list({id(v): v for v in (*ordered, *(v for alike in tensors for v in alike))}.values())


def _refuse_shared(variables: Sequence[Any]) -> None:
    """Raise ModelError for a parameter that two layers wrap: Keras has two variables for it, and trains both."""
    seen: dict[int, Any] = {}
    for variable in variables:
        first = seen.setdefault(id(variable._value), variable)
        if first is not variable:
            raise ModelError(
                f"TorchModuleWrapper: expected each parameter in one layer, received {variable.name!r} in several, "
                "which Keras takes for variables of their own",
                hint="wrap all modules that share it as one: keras.layers.TorchModuleWrapper(torch.nn.ModuleList(...))",
            )


def _buffers(module: Any) -> Iterator[tuple[str, Buffer]]:
    """Those that ``state_dict()`` has."""
    for prefix, owner in module.named_modules():
        known = _BUFFERS.setdefault(owner, {})
        for local, tensor in owner._buffers.items():
            if tensor is not None and local not in owner._non_persistent_buffers_set:
                name = f"{prefix}.{local}" if prefix else local
                if local not in known or known[local].shape != tuple(tensor.shape):
                    known[local] = Buffer(owner, local, name)
                yield name, known[local]
