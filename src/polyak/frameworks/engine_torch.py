"""The tensors of PyTorch: shadows that are written in place, a few tensors at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from polyak.frameworks.engine import Arrays, Engine, Held, Program
from polyak.frameworks.exchange import Hands
from polyak.snapshot import Array
from polyak.weights import numpy_dtype

# Elements that are moved together: the distances of so many fit into a core's cache.
_TOGETHER = 2**18


class TorchEngine(Engine):
    """Keras variables that hold tensors of PyTorch."""

    def __init__(self) -> None:
        self.hands = Hands(take=lambda v: self.value(v).clone(), put=lambda variable, value: variable.assign(value))

    def value(self, variable: Any) -> Any:
        return variable.value.detach()

    def start(self, array: Any, dtype: str, zeros: bool) -> Any:
        return torch.zeros_like(array, dtype=_dtype(dtype)) if zeros else self.cast(array, dtype)

    def cast(self, array: Any, dtype: str) -> Any:
        return array.detach().to(_dtype(dtype), copy=True)

    def to_numpy(self, array: Any) -> Array:
        host = array.detach().cpu().contiguous()
        name = str(host.dtype).removeprefix("torch.")
        # NumPy has no bfloat16 of its own: the bits are handed over as bytes.
        value: Array = host.reshape(-1).view(torch.uint8).numpy().copy().view(numpy_dtype(name))
        return value.reshape(tuple(host.shape))

    def from_numpy(self, value: Array, like: Any) -> Any:
        flat = torch.from_numpy(np.array(value, order="C").reshape(-1).view(np.uint8))
        return flat.view(like.dtype).reshape(value.shape).to(like.device)

    def is_finite(self, array: Any) -> bool:
        return bool(torch.isfinite(array).all())

    def counter(self, value: int, beside: Any) -> int:
        return value

    @torch.no_grad()
    def step(self, program: Program, held: Held, values: Arrays) -> Held:
        weights = [float(rule.weight(float(held.count + 1))) for rule, _ in program.moved]
        moving = any(w > 0 for w in weights) or not weights
        if moving and not _are_safe([values[path] for path in program.guarded]):
            return Held(held.shadows, held.count, held.skipped + 1)
        if moving:
            for (_, paths), w in zip(program.moved, weights, strict=True):
                for some in _chunks(paths, held.shadows):
                    _move([held.shadows[p] for p in some], [values[p] for p in some], w)
            for path in program.copied:
                held.shadows[path].copy_(values[path])
        return Held(held.shadows, held.count + 1, held.skipped)

    def pure_step(self, program: Program, held: Held, values: Arrays) -> Held:
        copies = {path: shadow.clone() for path, shadow in held.shadows.items()}
        new: Held = self.step(program, Held(copies, held.count, held.skipped), values)
        return new

    def refuse_traced(self, array: Any) -> None:
        """PyTorch runs what it is told at once."""


def _move(shadows: list[Any], values: Sequence[Any], w: float) -> None:
    """The two-sided kernel in place. PyTorch's own lerp rounds once where NumPy rounds twice."""
    if w <= 0.0:
        return
    values = [v.to(a.dtype) for a, v in zip(shadows, values, strict=True)]
    if w >= 1.0:
        torch._foreach_copy_(shadows, values)
    elif w < 0.5:
        steps = torch._foreach_sub(shadows, values)
        torch._foreach_mul_(steps, w)
        torch._foreach_sub_(shadows, steps)
    else:
        steps = torch._foreach_sub(values, shadows)
        torch._foreach_mul_(steps, 1.0 - w)
        torch._foreach_copy_(shadows, torch._foreach_sub(values, steps))


def _are_safe(values: list[Any]) -> bool:
    """Whether all are finite and below half of the range, so that no difference of two overflows."""
    for value in values:
        wide = value if value.dtype == torch.float64 else value.float()
        if value.numel() and not bool(wide.abs().max() <= torch.finfo(wide.dtype).max / 2):
            return False
    return True


def _chunks(paths: Sequence[str], shadows: Arrays) -> Iterator[list[str]]:
    """Paths in runs of about so many elements that work on them stays in the cache."""
    chunk: list[str] = []
    size = 0
    for path in paths:
        chunk.append(path)
        size += shadows[path].numel()
        if size >= _TOGETHER:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _dtype(name: str) -> Any:
    return getattr(torch, name)
