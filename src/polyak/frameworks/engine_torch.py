"""The tensors of PyTorch: shadows written in place, by blocks of large tensors or a few small ones at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from polyak.averaging import host
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
        return variable._value.detach()

    def start(self, array: Any, dtype: str, zeros: bool) -> Any:
        return torch.zeros_like(array, dtype=_dtype(dtype)) if zeros else self.cast(array, dtype)

    def cast(self, array: Any, dtype: str) -> Any:
        return array.detach().to(_dtype(dtype), copy=True)

    def lent(self, shadow: Any, dtype: str) -> Any:
        """The shadow itself: a variable copies what it is given, in its own dtype."""
        del dtype
        return shadow

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
    def step(self, programs: Sequence[Program], held: Sequence[Held], values: Arrays) -> list[Held]:
        turns = [_Turn.of(program, one) for program, one in zip(programs, held, strict=True)]
        looked = dict.fromkeys(turn.program.guarded for turn in turns if turn.moving)
        safe = {guarded: _are_safe([values[path] for path in guarded]) for guarded in looked}
        going = [turn for turn in turns if turn.moving and safe[turn.program.guarded]]
        _move_all(going, values)
        for turn in going:
            for path in turn.program.copied:
                turn.held.shadows[path].copy_(values[path])
        return [turn.after(safe.get(turn.program.guarded, True)) for turn in turns]

    def pure_step(self, program: Program, held: Held, values: Arrays) -> Held:
        copies = {path: shadow.clone() for path, shadow in held.shadows.items()}
        new: Held = self.step([program], [Held(copies, held.count, held.skipped)], values)[0]
        return new

    def refuse_traced(self, array: Any) -> None:
        """PyTorch runs what it is told at once."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """One average at one update: the weight of the newest value for each path that it moves."""

    program: Program
    held: Held
    weights: Mapping[str, float]
    moving: bool

    @classmethod
    def of(cls, program: Program, held: Held) -> _Turn:
        found = [(float(rule.weight(float(held.count + 1))), paths) for rule, paths in program.moved]
        weights = {path: w for w, paths in found for path in paths if w > 0}
        return cls(program, held, weights, bool(weights) or not program.moved)

    def alike(self, paths: Sequence[str]) -> Iterable[tuple[float, list[str]]]:
        """Those of the paths that move, by their weight."""
        found: dict[float, list[str]] = {}
        for path in paths:
            if path in self.weights:
                found.setdefault(self.weights[path], []).append(path)
        return found.items()

    def after(self, safe: bool) -> Held:
        """The counts one update later."""
        held, done = self.held, safe or not self.moving
        return Held(held.shadows, held.count + done, held.skipped + (not done))


def _move_all(turns: Sequence[_Turn], values: Arrays) -> None:
    """All averages in one pass over the values: large tensors in host memory by blocks, others by chunks."""
    paths = dict.fromkeys(path for turn in turns for path in turn.weights)
    followers = {path: [turn for turn in turns if path in turn.weights] for path in paths}
    large = [p for p in paths if _are_blocks(values[p], *(turn.held.shadows[p] for turn in followers[p]))]
    host.move_all((_flat(values[p]), [(_flat(t.held.shadows[p]), t.weights[p]) for t in followers[p]]) for p in large)
    for some in _chunks([path for path in paths if path not in set(large)], values):
        for turn in turns:
            for w, own in turn.alike(some):
                _move([turn.held.shadows[p] for p in own], [values[p] for p in own], w)


def _are_blocks(value: Any, *shadows: Any) -> bool:
    """Whether it pays to move them by blocks with NumPy, which sees float32 and float64 in host memory."""
    wide = value.dtype in (torch.float32, torch.float64)
    return wide and value.numel() >= _TOGETHER and all(_is_flat(tensor) for tensor in (value, *shadows))


def _is_flat(tensor: Any) -> bool:
    return bool(tensor.is_contiguous() and tensor.device.type == "cpu")


def _flat(tensor: Any) -> Any:
    """The memory of a tensor as a flat array of NumPy."""
    return tensor.view(-1).numpy()


def _move(shadows: list[Any], values: Sequence[Any], w: float) -> None:
    """The two-sided kernel in place. PyTorch's own lerp rounds once where NumPy rounds twice."""
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


def _are_safe(values: Sequence[Any]) -> bool:
    """Whether all are finite and below half of the range, so that no difference of two overflows.

    A finite norm proves it in one quick pass. If it is not finite, its square may only have overflowed, and the values
    themselves are looked at.
    """
    wide = [v if v.dtype == torch.float64 else v.float() for v in values if v.numel()]
    if not wide:
        return True
    norms: dict[Any, list[Any]] = {}
    for norm in torch._foreach_norm(wide):
        norms.setdefault((norm.dtype, norm.device), []).append(norm)
    if all(bool(torch.stack(alike).isfinite().all()) for alike in norms.values()):
        return True
    return all(bool(v.abs().max() <= torch.finfo(v.dtype).max / 2) for v in wide)


def _chunks(paths: Sequence[str], arrays: Arrays) -> Iterator[list[str]]:
    """Paths in runs of about so many elements that work on them stays in the cache."""
    chunk: list[str] = []
    size = 0
    for path in paths:
        chunk.append(path)
        size += arrays[path].numel()
        if size >= _TOGETHER:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _dtype(name: str) -> Any:
    return getattr(torch, name)
