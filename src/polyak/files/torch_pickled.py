"""The pickle of a file of PyTorch: a dictionary of tensors, as ``torch.save`` writes it, in the operations it needs.

Only names, numbers and the few globals that ``torch.load(weights_only=True)`` knows are written.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from polyak.errors import DtypeMismatch, argument
from polyak.manifest import Stored
from polyak.weights import numpy_dtype

_STORAGES = {
    "float32": "FloatStorage", "float64": "DoubleStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage",
    "int64": "LongStorage", "int32": "IntStorage", "int16": "ShortStorage", "int8": "CharStorage",
    "uint8": "ByteStorage", "bool": "BoolStorage", "complex64": "ComplexFloatStorage",
    "complex128": "ComplexDoubleStorage",
}  # fmt: skip
_UNTYPED = frozenset((
    "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
    "float8_e8m0fnu",
))  # fmt: skip

_START, _STOP = b"\x80\x02", b"."
_EMPTY_DICT, _MARK, _SET_ITEMS = b"}", b"(", b"u"
_TUPLE, _EMPTY_TUPLE, _FALSE, _CALL, _STORED = b"t", b")", b"\x89", b"R", b"Q"


@dataclass(frozen=True, slots=True)
class Described:
    """A tensor that the file holds: the key of its storage, its shape in elements, its dtype by name."""

    key: str
    shape: tuple[int, ...]
    dtype: str


Nest = Mapping[str, "Described | Nest"]


def pickled(nest: Nest) -> bytes:
    """The pickle of nested dictionaries of tensors.

    Raises:
        DtypeMismatch: PyTorch has no such dtype.

    Example:
        >>> import pickletools
        >>> text = pickled({"w": Described("0", (2, 3), "float32")})
        >>> [op.name for op, _, _ in pickletools.genops(text)][:4]
        ['PROTO', 'EMPTY_DICT', 'MARK', 'BINUNICODE']
    """
    return _START + _dict(nest) + _STOP


def refuse_unknown(stored: Stored) -> None:
    """Raise DtypeMismatch for a dtype that PyTorch does not have."""
    path, dtype = stored.weight.path, stored.weight.dtype
    if dtype not in _STORAGES and dtype not in _UNTYPED:
        raise DtypeMismatch(
            f"weight {stored.name!r}: expected a dtype that PyTorch has, received {dtype}",
            hint=f"cast it first; polyak.convert leaves it out with {argument('exclude', path)}",
        )


def _dict(nest: Nest) -> bytes:
    parts = (_text(name) + (_tensor(v) if isinstance(v, Described) else _dict(v)) for name, v in nest.items())
    return _EMPTY_DICT + _MARK + b"".join(parts) + _SET_ITEMS


def _tensor(held: Described) -> bytes:
    """A call of torch's function that makes a tensor of a storage: offset, shape, strides, no gradient, no hooks."""
    typed = held.dtype in _STORAGES
    function = _global("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3")
    place = _storage(held) + _int(0) + _ints(held.shape) + _ints(_strides(held.shape))
    hooks = _global("collections", "OrderedDict") + _EMPTY_TUPLE + _CALL
    dtype = b"" if typed else _global("torch", held.dtype)
    return function + _MARK + place + _FALSE + hooks + dtype + _TUPLE + _CALL


def _storage(held: Described) -> bytes:
    size = math.prod(held.shape)
    if held.dtype in _STORAGES:
        kind = _global("torch", _STORAGES[held.dtype])
    else:
        kind, size = _global("torch.storage", "UntypedStorage"), size * numpy_dtype(held.dtype).itemsize
    return _MARK + _text("storage") + kind + _text(held.key) + _text("cpu") + _int(size) + _TUPLE + _STORED


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Elements from one index to the next, in C order; an empty axis counts as one of a single element."""
    return tuple(math.prod(max(n, 1) for n in shape[i + 1 :]) for i in range(len(shape)))


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _ints(values: tuple[int, ...]) -> bytes:
    return _MARK + b"".join(_int(v) for v in values) + _TUPLE


def _int(value: int) -> bytes:
    """A whole number of four bytes, or of eight where it is larger."""
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)
