"""The two-sided kernel in place over PyTorch's tensors in host memory, block by block, each value read once.

A block of a value, of a shadow and of their distance fits into the caches of the cores that share the block. It moves
in two passes, because PyTorch's ``lerp``, which takes one, rounds once where each framework's kernel rounds twice.
Gradients must not be recorded meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch

# Numbers of a block for each thread. PyTorch gives a thread no less than 2**15.
_SHARE = 2**16
# Half of what float32 holds: no difference of two numbers within it overflows.
_FAR = torch.finfo(torch.float32).max / 2

Moves = Sequence[tuple[Any, float]]


def is_served(tensor: Any) -> bool:
    """Whether it lies where this kernel works."""
    return bool(tensor.device.type == "cpu")


def move_all(work: Iterable[tuple[Any, Moves]]) -> None:
    """Move shadows towards the values that they follow, with the bits of ``polyak.averaging.kernel.lerp``.

    Args:
        work: each value with the shadows that follow it: (shadow, w), w in (0, 1]. Shadows are contiguous and written
            in place, in their own dtype, float32 or float64. No difference of the numbers that they and the values
            hold overflows.
    """
    for value, moves in work:
        parts = [(_blocks(shadow), w) for shadow, w in moves]
        for i, block in enumerate(_blocks(value)):
            for shadows, w in parts:
                _move(shadows[i], block, w)


def are_tame(values: Iterable[Any]) -> bool:
    """Whether one quick pass proves that all numbers are finite, and that no difference of two overflows.

    False proves nothing: squares overflow before the numbers do.
    """
    return all(_is_tame(value) for value in values if value.numel())


def _move(shadow: Any, value: Any, w: float) -> None:
    if w >= 1.0:
        shadow.copy_(value)
        return
    cast = value.to(shadow.dtype)
    if w < 0.5:
        # Only memory that a cast has made may be written: without one, this is the weight itself.
        room = None if value.dtype == shadow.dtype else cast
        _step(shadow, torch.sub(shadow, cast, out=room), w, shadow)
    else:
        _step(cast, cast - shadow, 1.0 - w, shadow)


def _step(near: Any, distance: Any, share: float, out: Any) -> None:
    """``near - share * distance``, in which the product is rounded."""
    if _rounds_twice(distance.dtype):
        torch.addcmul(near, distance, _one(distance.dtype), value=-share, out=out)
    else:
        torch.sub(near, distance.mul_(share), out=out)


def _blocks(tensor: Any) -> Sequence[Any]:
    """Flat, unless it is a block as it is."""
    size = _SHARE * torch.get_num_threads()
    return (tensor,) if tensor.numel() <= size else tensor.reshape(-1).split(size)


def _is_tame(value: Any) -> bool:
    """Sums of squares are the quickest; of two bytes a number PyTorch has them slowly, and the two ends quickly."""
    if value.dtype in (torch.bfloat16, torch.float16):
        least, most = (end.item() for end in torch.aminmax(value))
        return bool(least >= -_FAR and most <= _FAR)
    wide = value if value.dtype in (torch.float32, torch.float64) else value.float()
    flat = wide.reshape(-1)
    return math.isfinite(torch.dot(flat, flat).item())


@cache
def _one(dtype: Any) -> Any:
    return torch.ones((), dtype=dtype)


@cache
def _rounds_twice(dtype: Any) -> bool:
    """Whether this build of PyTorch rounds the product in ``addcmul`` before it adds it.

    Processors can do both at once, and compilers may use that. The numbers fill vectors and leave a rest.
    """
    near = torch.linspace(1.0, 2.0, 2**10 + 7, dtype=dtype)
    distance = torch.linspace(-0.3, 0.7, 2**10 + 7, dtype=dtype)
    product = distance * -0.1
    return bool(torch.equal(torch.addcmul(near, distance, _one(dtype), value=-0.1), near + product))
