"""Tensors that a module of PyTorch has in its ``state_dict()`` alone: neither parameter nor buffer.

A module may add them by a method of its own, or by hooks. ``state_dict()`` is called only where there are such ones:
those of FullyShardedDataParallel wait for all processes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import nn

from polyak.frameworks.torch_target import memory_of

_METHODS = ("state_dict", "_save_to_state_dict")
_HOOKS = ("_state_dict_hooks", "_state_dict_pre_hooks")
_OF_PROCESSES = "torch.distributed."


def added(module: nn.Module, known: Mapping[str, torch.Tensor]) -> list[str]:
    """The names of such tensors. What is known under another name is none, nor is an extra state."""
    if not any(_has_own(inner) for inner in module.modules()) or any(_shares(m) for m in module.modules()):
        return []
    memory = {_memory(tensor) for tensor in known.values()}
    return [name for name, value in _state_of(module).items() if name not in known and _is_new(name, value, memory)]


def _state_of(module: nn.Module) -> Mapping[str, Any]:
    """What ``state_dict()`` returns; nothing if it fails, which is for its own caller to see."""
    try:
        held = module.state_dict(keep_vars=True)
    except Exception:
        return {}
    return held if isinstance(held, Mapping) else {}


def _is_new(name: str, value: Any, memory: set[Hashable]) -> bool:
    extra = name.rpartition(".")[2] == "_extra_state"
    return isinstance(value, torch.Tensor) and not extra and _memory(value) not in memory


def _memory(tensor: torch.Tensor) -> Hashable:
    """Where a tensor lies; itself where it lies in no memory of its own, as a sparse or a lazy one."""
    try:
        return memory_of(tensor)
    except (RuntimeError, ValueError, NotImplementedError):
        return id(tensor)


def _has_own(module: nn.Module) -> bool:
    own = any(getattr(type(module), method) is not getattr(nn.Module, method) for method in _METHODS)
    return own or any(getattr(module, hooks, None) for hooks in _HOOKS)


def _shares(module: nn.Module) -> bool:
    """Whether the module's state is one of several processes."""
    return any(kind.__module__.startswith(_OF_PROCESSES) for kind in type(module).__mro__)
