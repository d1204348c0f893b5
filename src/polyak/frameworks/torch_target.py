"""PyTorch tensors as the target of a transfer."""

from __future__ import annotations

import ctypes
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial, reduce

import numpy as np
import torch

from polyak.errors import ModelError
from polyak.snapshot import Array
from polyak.transfer.target import PutBack, Target
from polyak.weights import Weight, numpy_dtype

_LARGE = 2**20  # bytes
_ADDRESSED = ("cpu", "cuda")  # devices whose data_ptr() is an address


class Tensors(Target):
    """PyTorch tensors under the names of ``state_dict()``. They are read as copies and written in place."""

    layout = "torch"

    def __init__(
        self, label: str, tensors: Mapping[str, torch.Tensor], weights: Sequence[Weight], aliases: Mapping[str, str]
    ) -> None:
        self.label = label
        self.tensors = dict(tensors)
        self.aliases = dict(aliases)
        self._weights = tuple(weights)

    @property
    def weights(self) -> tuple[Weight, ...]:
        return self._weights

    def read(self, path: str) -> Array:
        return to_numpy(self.tensors[path])

    def view(self, path: str) -> Array:
        return view(self.tensors[path])

    @cached_property
    def _shared(self) -> Mapping[str, str]:
        return shared(self.tensors)

    def home(self, path: str) -> object:
        return home_of(self.tensors[path])

    def write(self, path: str, value: Array) -> None:
        tensor = self.tensors[path]
        put(tensor, to_torch(value, tensor.dtype))

    def hold(self, path: str) -> PutBack:
        """A copy on the tensor's own device; copying it back keeps every bit.

        Raises:
            ModelError: PyTorch does not write this tensor in place, or another weight would change with it.
        """
        tensor = self.tensors[path]
        _refuse_fixed(self.label, path, tensor)
        if path in self._shared:
            raise ModelError(
                f"{self.label}: weight {path!r}: expected memory of its own, received some of weight "
                f"{self._shared[path]!r}, which would change with it",
                hint="clone() one of the two in the module, or make them one parameter under two names",
            )
        held = copied(tensor)

        return partial(put, tensor, held)


def _refuse_fixed(label: str, path: str, tensor: torch.Tensor) -> None:
    """Raise ModelError for a tensor that PyTorch does not write in place: it could not be put back, either."""
    if _lies_on_itself(tensor):
        raise ModelError(
            f"{label}: weight {path!r}: expected memory for each element, received an expanded tensor or one of "
            "windows that overlap",
            hint="clone() it in the module first",
        )


def _lies_on_itself(tensor: torch.Tensor) -> bool:
    """Whether two elements are in one place. They are not where each step is longer than all shorter ones together."""
    reach, axes = 0, sorted((step, n) for step, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1)
    for step, n in axes if tensor.numel() else ():
        if step <= reach:
            return bool(step == 0 or _places(axes) < tensor.numel())
        reach += step * (n - 1)
    return False


def _places(axes: Sequence[tuple[int, int]]) -> int:
    """In how many places the elements are."""
    return int(np.unique(reduce(np.add.outer, (step * np.arange(n) for step, n in axes))).size)


@dataclass(frozen=True, slots=True)
class _Outline:
    """Where a tensor lies, from its first byte to its last, and an array in that place, to compare and not to read."""

    path: str
    start: int
    end: int
    array: Array


def shared(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Of tensors that lie in the memory of others, the path of another one, by their own."""
    found: dict[str, str] = {}
    near: list[_Outline] = []
    outlines = [_outline(p, t) for p, t in tensors.items() if t.numel() and t.device.type in _ADDRESSED]
    for own in sorted(outlines, key=lambda outline: outline.start):
        near = [other for other in near if other.end > own.start]
        for other in (n.path for n in near if np.shares_memory(own.array, n.array)):
            found.setdefault(own.path, other), found.setdefault(other, own.path)
        near.append(own)
    return found


def _outline(path: str, tensor: torch.Tensor) -> _Outline:
    steps = [step * tensor.itemsize for step in tensor.stride()]
    size = sum(step * (n - 1) for step, n in zip(steps, tensor.shape, strict=True)) + tensor.itemsize
    start = tensor.data_ptr()
    memory = (ctypes.c_char * size).from_address(start)
    return _Outline(path, start, start + size, np.ndarray(tensor.shape, f"V{tensor.itemsize}", memory, strides=steps))


def dtype_of(tensor: torch.Tensor) -> str:
    """The name of a tensor's dtype, which NumPy knows, too. Raises ModelError."""
    name = str(tensor.dtype).removeprefix("torch.")
    try:
        numpy_dtype(name)
    except TypeError:
        raise ModelError(f"a tensor of {tensor.dtype}: expected a dtype of numbers that NumPy can hold") from None
    return name


def put(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Write a value into the tensor's memory. What was made in inference mode is written in none but that."""
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        tensor.copy_(value)


def home_of(tensor: torch.Tensor) -> object:
    """Where the memory begins that the tensor is a part of."""
    return tensor.untyped_storage().data_ptr()


def memory_of(tensor: torch.Tensor) -> Hashable:
    """What tensors have in common that show the same memory in the same way: they are one weight."""
    if not tensor.numel() or not tensor.data_ptr():
        return id(tensor)
    kind = tensor.device, tensor.dtype, tensor.is_conj(), tensor.is_neg()
    return tensor.data_ptr(), tensor.shape, tensor.stride(), kind


def to_numpy(tensor: torch.Tensor) -> Array:
    """A copy in C order."""
    return np.array(view(tensor))


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy. On the host NumPy makes large ones: it asks the system for large pages, which are there much sooner."""
    plain = tensor.detach()
    if plain.device.type != "cpu" or plain.nbytes < _LARGE or not plain.is_contiguous():
        return plain.clone()
    return to_torch(np.array(view(plain)), plain.dtype)


def view(tensor: torch.Tensor) -> Array:
    """The tensor's own memory if it lies on the host in C order, else a copy.

    The bytes are taken as they are, because NumPy has no bfloat16 of its own. They are asked for by DLPack: what
    ``tensor.numpy()`` has seen PyTorch never resizes again, and FSDP resizes what it gathers.
    """
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    # Of one element or none PyTorch calls any stride contiguous, also one with which it gives no bytes.
    raw: Array = np.from_dlpack(plain.as_strided((plain.numel(),), (1,)).view(torch.uint8))
    return raw.view(numpy_dtype(dtype_of(tensor))).reshape(tuple(tensor.shape))


def to_torch(value: Array, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of the array's bytes: in the array's own memory if it lies in C order and may be written."""
    raw = np.require(value, requirements=["C", "W"]).reshape(-1).view(np.uint8)
    return torch.from_numpy(raw).view(dtype).reshape(value.shape)
