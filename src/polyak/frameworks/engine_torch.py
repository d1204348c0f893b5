"""The tensors of PyTorch: shadows written in place, in host memory by blocks, elsewhere some tensors at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import keras
import numpy as np
import torch

from polyak.frameworks.engine import Arrays, Engine, Held, Program
from polyak.frameworks.exchange import Hands
from polyak.frameworks.torch_kernel import are_tame, is_served, move_all
from polyak.frameworks.torch_layout import Layout, Paths, Shadows, laid_out
from polyak.frameworks.torch_target import copied, dtype_of, home_of, put, to_torch, view
from polyak.snapshot import Array

Flats = Mapping[Paths, Any]
P = ParamSpec("P")
R = TypeVar("R")


def _plainly(method: Callable[P, R]) -> Callable[P, R]:
    """A method that makes or writes shadows: none of them may be one that is written in inference mode alone."""

    @wraps(method)
    def plainly(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(False), torch.no_grad():
            return method(*args, **kwargs)

    return plainly


class TorchEngine(Engine):
    """Keras variables that hold tensors of PyTorch."""

    def __init__(self) -> None:
        self.hands = Hands(
            take=lambda v: copied(self.value(v)), put=_put, mark=_mark, same=lambda put, found: put.mark == found
        )

    def value(self, variable: Any) -> Any:
        return variable._value.detach()

    def dtype_of(self, variable: Any) -> str:
        """A module's own methods (``model.double()``) change it without Keras' knowledge; unsigned ones are widened."""
        return dtype_of(variable._value)

    def values(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Not detached one by one: what reads them records no gradients."""
        return {path: variable._value for path, variable in variables.items()}

    @_plainly
    def start(self, array: Any, dtype: str, zeros: bool) -> Any:
        return torch.zeros_like(array, dtype=_dtype(dtype)) if zeros else self.cast(array, dtype)

    @_plainly
    def cast(self, array: Any, dtype: str) -> Any:
        return copied(array) if array.dtype == _dtype(dtype) else array.detach().to(_dtype(dtype))

    def records(self, inputs: Any, left: Sequence[Any]) -> bool:
        """What PyTorch keeps for gradients must not be written before they are asked for."""
        reads = [*keras.tree.flatten(inputs), *(variable._value for variable in left)]
        return torch.is_grad_enabled() and any(torch.is_tensor(one) and one.requires_grad for one in reads)

    def readable(self, shadow: Any, variable: Any) -> Any:
        held = variable._value
        fits = shadow.dtype == held.dtype and shadow.device == held.device
        return shadow if fits else self.as_weight(shadow, variable)

    def apart_from(self, shadows: Iterable[Any], found: Any) -> Any:
        own = {shadow.untyped_storage().data_ptr() for shadow in shadows}

        def apart(one: Any) -> Any:
            shares = torch.is_tensor(one) and one.untyped_storage().data_ptr() in own
            return one.clone() if shares else one

        return keras.tree.map_structure(apart, found)

    def lent(self, shadow: Any, variable: Any) -> Any:
        """The shadow itself: a variable copies what it is given, in its own dtype."""
        del variable
        return shadow

    def view(self, array: Any) -> Array:
        return view(array)

    def home(self, variable: Any) -> object:
        return home_of(variable._value)

    def wrapped(self, value: Array, like: Any) -> Any:
        return to_torch(value, like.dtype)

    @_plainly
    def from_numpy(self, value: Array, like: Any) -> Any:
        return to_torch(np.array(value, order="C"), like.dtype).to(like.device)

    @_plainly
    def beside(self, array: Any, like: Any) -> Any:
        return self.from_numpy(array, like) if isinstance(array, np.ndarray) else copied(array).to(like.device)

    def is_fit(self, array: Any) -> bool:
        return _is_within(array)

    def counter(self, value: int, beside: Any) -> int:
        return value

    @_plainly
    def step(self, programs: Sequence[Program], held: Sequence[Held], values: Arrays) -> list[Held]:
        turns = [_Turn.of(program, one, values) for program, one in zip(programs, held, strict=True)]
        moving = [turn for turn in turns if turn.moving]
        packs = dict.fromkeys(paths for turn in moving for paths in turn.shadows.packs())
        flats = {paths: _flattened(values, paths) for paths in packs}
        looked = {turn.program.guarded: turn.shadows for turn in moving}
        safe = {guarded: _are_safe(guarded, shadows, values, flats) for guarded, shadows in looked.items()}
        going = [turn for turn in moving if safe[turn.program.guarded]]
        _move_all(going, values, flats)
        for turn in going:
            _copy([turn.shadows[p] for p in turn.program.copied], [values[p] for p in turn.program.copied])
        return [turn.after(safe.get(turn.program.guarded, True)) for turn in turns]

    @_plainly
    def pure_step(self, program: Program, held: Held, values: Arrays) -> Held:
        copies = {path: copied(shadow) for path, shadow in held.shadows.items()}
        new: Held = self.step([program], [Held(copies, held.count, held.skipped)], values)[0]
        return new

    def refuse_traced(self, array: Any) -> None:
        """PyTorch runs what it is told at once."""


class TorchHostEngine(TorchEngine):
    """Weights may be on an accelerator; shadows are in the host's memory and move there."""

    apart = True

    def start(self, array: Any, dtype: str, zeros: bool) -> Any:
        return super().start(array.detach().cpu(), dtype, zeros)

    def as_weight(self, shadow: Any, variable: Any) -> Any:
        return self.cast(shadow, self.dtype_of(variable)).to(self.value(variable).device)

    def step(self, programs: Sequence[Program], held: Sequence[Held], values: Arrays) -> list[Held]:
        new: list[Held] = super().step(programs, held, _on_host(values))
        return new


def _on_host(values: Arrays) -> Arrays:
    """All copies are under way before the first is waited for. Memory that is pinned takes them without a detour."""
    elsewhere = {value.device for value in values.values() if value.device.type == "cuda"}
    if not elsewhere:
        return {path: value.detach().cpu() for path, value in values.items()}
    copies = {
        path: torch.empty_like(value, device="cpu", pin_memory=True).copy_(value.detach(), non_blocking=True)
        for path, value in values.items()
    }
    for device in elsewhere:
        torch.cuda.current_stream(device).synchronize()
    return copies


@dataclass(frozen=True, slots=True)
class _Turn:
    """One average at one update: the layouts that move, each with the weight of the newest value."""

    program: Program
    held: Held
    shadows: Shadows
    moved: Sequence[tuple[Layout, float]]

    @classmethod
    def of(cls, program: Program, held: Held, values: Arrays) -> _Turn:
        shadows = laid_out(program, held.shadows, values)
        weights = [float(rule.weight(float(held.count + 1))) for rule, _ in program.moved]
        moved = [(layout, w) for layout, w in zip(shadows.layouts, weights, strict=True) if w > 0]
        return cls(program, held, shadows, moved)

    @property
    def moving(self) -> bool:
        return bool(self.moved) or not self.program.moved

    def after(self, safe: bool) -> Held:
        """The counts one update later."""
        held, done = self.held, safe or not self.moving
        return Held(self.shadows, held.count + done, held.skipped + (not done))


def _move_all(turns: Sequence[_Turn], values: Arrays, flats: Flats) -> None:
    """All averages in one pass over the values: in host memory by blocks, elsewhere by chunks."""
    blocks: dict[Any, list[tuple[Any, float]]] = {}
    chunks: dict[Paths, list[tuple[Shadows, float]]] = {}
    for turn in turns:
        for layout, w in turn.moved:
            for paths, flat in layout.packs.items():
                blocks.setdefault(paths, []).append((flat, w))
            for path in layout.blocked:
                blocks.setdefault(path, []).append((turn.shadows[path], w))
            for chunk in layout.chunks:
                chunks.setdefault(chunk, []).append((turn.shadows, w))
    _move_by_blocks([(flats[at] if at in flats else values[at], moves) for at, moves in blocks.items()])
    for chunk, moves in chunks.items():
        for shadows, w in moves:
            _move([shadows[p] for p in chunk], [values[p] for p in chunk], w)


def _move_by_blocks(work: Sequence[tuple[Any, Sequence[tuple[Any, float]]]]) -> None:
    """Packs may lie elsewhere, where blocks would only be more calls."""
    move_all([(value, moves) for value, moves in work if is_served(value)])
    for value, moves in work:
        if not is_served(value):
            for shadow, w in moves:
                _move([shadow], [value], w)


def _flattened(values: Arrays, paths: Paths) -> Any:
    """Values one after another in a new tensor."""
    return torch._utils._flatten_dense_tensors([values[path] for path in paths])


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


def _copy(shadows: list[Any], values: list[Any]) -> None:
    if shadows:
        torch._foreach_copy_(shadows, values)


def _are_safe(guarded: Paths, shadows: Shadows, values: Arrays, flats: Flats) -> bool:
    """Whether all are finite and below half of the range, so that no difference of two overflows.

    A finite sum of squares proves it in one quick pass. If it is not finite, a square may only have overflowed, and the
    values themselves are looked at.
    """
    looked = [*(values[path] for path in shadows.loose), *(flats[paths] for paths in shadows.packs())]
    return _are_tame(looked) or all(_is_within(values[path]) for path in guarded)


def _are_tame(values: Sequence[Any]) -> bool:
    here = [value for value in values if is_served(value)]
    return are_tame(here) and _norms_are_finite([value for value in values if not is_served(value)])


def _norms_are_finite(values: Sequence[Any]) -> bool:
    wide = [v if v.dtype == torch.float64 else v.float() for v in values if v.numel()]
    norms: dict[Any, list[Any]] = {}
    for norm in torch._foreach_norm(wide) if wide else ():
        norms.setdefault((norm.dtype, norm.device), []).append(norm)
    return all(bool(torch.stack(alike).isfinite().all()) for alike in norms.values())


def _is_within(value: Any) -> bool:
    wide = value if value.dtype == torch.float64 else value.float()
    return not value.numel() or bool(wide.abs().max() <= torch.finfo(wide.dtype).max / 2)


def _put(variable: Any, value: Any) -> None:
    """Keras' own ``assign`` casts to the dtype that the variable was made with, and loses bits of a wider tensor."""
    put(variable._value, value)


def _mark(variable: Any) -> tuple[int, int]:
    """Where the tensor is, and PyTorch's own count of writes into it, which those through ``.data`` are not in."""
    tensor = variable._value
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _dtype(name: str) -> Any:
    return getattr(torch, name)
