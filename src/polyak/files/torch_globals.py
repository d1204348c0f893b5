"""The globals that pickles of PyTorch name: what each would make, as plain data. Nothing is imported or called."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from polyak.files.torch_values import Budget, Name, Refused, Stub, set_key, shown
from polyak.weights import numpy_dtype

MOST_AXES = 32
_STORAGES = {
    "Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
    "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool",
    "ComplexFloat": "complex64", "ComplexDouble": "complex128", "Untyped": "uint8", "Typed": "uint8",
}  # fmt: skip
_DTYPES = {
    "float32": "float32", "float": "float32", "float64": "float64", "double": "float64", "float16": "float16",
    "half": "float16", "bfloat16": "bfloat16", "int64": "int64", "long": "int64", "int32": "int32", "int": "int32",
    "int16": "int16", "short": "int16", "int8": "int8", "uint8": "uint8", "uint16": "uint16", "uint32": "uint32",
    "uint64": "uint64", "bool": "bool", "complex64": "complex64", "cfloat": "complex64", "complex128": "complex128",
    "cdouble": "complex128", "float8_e4m3fn": "float8_e4m3fn", "float8_e5m2": "float8_e5m2",
    "float8_e4m3fnuz": "float8_e4m3fnuz", "float8_e5m2fnuz": "float8_e5m2fnuz", "float8_e8m0fnu": "float8_e8m0fnu",
}  # fmt: skip
_NUMBERS = frozenset(("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"))
_NOT_READ = {
    "_rebuild_qtensor": "a quantised tensor",
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_meta_tensor_no_storage": "a tensor without values",
    "_rebuild_wrapper_subclass": "a tensor of a class of its own",
    "_rebuild_device_tensor_from_numpy": "a tensor of another device",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
}
_UNREAD_WIDTHS = {"QInt8": 1, "QUInt8": 1, "QInt32": 4}
_NESTED, _JAGGED = "a nested tensor", "torch.nested._internal.nested_tensor._rebuild_njt"
# Modules that can run, load or delete something. Objects of all other unknown classes are inert notes.
_FORBIDDEN = frozenset((
    "os", "posix", "nt", "subprocess", "_posixsubprocess", "sys", "runpy", "importlib", "_frozen_importlib",
    "imp", "shutil", "socket", "ctypes", "_ctypes", "code", "codeop", "commands", "pty", "webbrowser", "pickle",
    "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "pdb", "bdb", "timeit", "cProfile", "profile",
    "trace", "pip", "pydoc", "platform", "signal", "gc", "tempfile", "urllib", "urllib2", "http", "httplib",
    "ftplib", "smtplib", "requests", "multiprocessing", "threading", "asyncio", "zipimport", "ensurepip", "venv",
    "site", "atexit", "inspect", "linecache",
))  # fmt: skip
_BUILTINS = ("builtins", "__builtin__")
_HARMLESS = frozenset((
    "getattr", "set", "frozenset", "list", "dict", "tuple", "complex", "int", "float", "bool", "str", "bytes",
    "bytearray", "object", "slice", "range", "long", "unicode",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of ``size`` elements under a key of the file; ``start`` elements behind the start of what lies there."""

    key: str
    dtype: str
    size: int
    start: int = 0


@dataclass(frozen=True, slots=True)
class View:
    """A tensor as the file describes it, within its storage. Offset and strides are in elements.

    ``attributes``: what the program has attached to it, in whatever form; no part of its values.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    conjugate: bool = False
    negative: bool = False
    attributes: Any = field(default=None, compare=False, repr=False)

    @property
    def reach(self) -> int:
        """Elements of the storage from its start to the last one in the view."""
        if 0 in self.shape:
            return 0
        return self.offset + 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))


@dataclass(frozen=True, slots=True)
class NotRead:
    """A tensor of a sort that is not read."""

    what: str


def find(module: str, name: str) -> Name:
    """The name of a global, unless it could run something. Raises Refused."""
    steps = name.split(".")
    forbidden = module.split(".")[0] in _FORBIDDEN or ("." in name and not _FORBIDDEN.isdisjoint(steps))
    if forbidden or (module in _BUILTINS and steps[0] not in _HARMLESS):
        raise Refused(f"{f'{module}.{name}':.120}, which can run code")
    return Name(module, name)


def call(function: Name, args: tuple[Any, ...], budget: Budget) -> Any:
    """What calling a global would make, where that is data; else an inert note of the call."""
    name = function.name
    if function.module == "torch._utils" and name in _NOT_READ:
        return NotRead(_NOT_READ[name])
    maker = _MAKERS.get(str(function))
    if maker is None:
        return Stub(str(function), args)
    return maker(args, budget)


def storage(identity: Any) -> Any:
    """The storage that a persistent id describes. Raises Refused."""
    if not isinstance(identity, tuple) or len(identity) < 2:
        raise Refused("a storage without a description")
    if identity[0] == "module":
        return identity[1]
    if identity[0] != "storage" or len(identity) not in (5, 6):
        raise Refused("a storage without a description")
    _, kind, key, _, size = identity[:5]
    view = identity[5] if len(identity) == 6 else None
    start, size = (0, size) if view is None else view[1:]
    dtype = storage_dtype(kind)
    if dtype is None:
        return NotRead(f"a tensor in {kind!s:.60}")
    return Storage(storage_key(key), dtype, _natural(size), _natural(start))


def storage_key(key: Any) -> str:
    """The key of a storage as text. Raises Refused."""
    if not isinstance(key, (str, int)):
        raise Refused("a storage without a key")
    return str(key)


def storage_dtype(kind: Any) -> str | None:
    """The dtype of a class of storages; None for those that are not read. Raises Refused."""
    if not isinstance(kind, Name) or kind.module.split(".")[0] != "torch" or not kind.name.endswith("Storage"):
        raise Refused("a storage of no type of torch")
    return _STORAGES.get(kind.name.removesuffix("Storage"))


def unread_width(kind: Any) -> int | None:
    """The bytes of an element in a class of storages that are not read, where they are known."""
    return _UNREAD_WIDTHS.get(kind.name.removesuffix("Storage")) if isinstance(kind, Name) else None


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**60:
        raise Refused(f"a tensor with {shown(value)} as a size or place")
    return value


def _naturals(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > MOST_AXES:
        raise Refused("a tensor of no shape")
    return tuple(_natural(v) for v in values)


def _view(args: tuple[Any, ...], dtype: str | None, metadata: Any) -> Any:
    held, offset, shape, strides = args
    if isinstance(held, NotRead):
        return held
    if not isinstance(held, Storage):
        raise Refused("a tensor without a storage")
    flags = metadata if isinstance(metadata, dict) else {}
    signs = (flags.get("conj") is True, flags.get("neg") is True)
    view = View(held, dtype or held.dtype, _natural(offset), _naturals(shape), _naturals(strides), *signs)
    if len(view.shape) != len(view.strides) or math.prod(n for n in view.shape if n) >= 2**58:
        raise Refused("a tensor of no shape")
    wide = numpy_dtype(view.dtype).itemsize
    if view.reach * wide > held.size * numpy_dtype(held.dtype).itemsize:
        raise Refused(f"a tensor of {view.reach} elements in a storage of {held.size}")
    return view


def tensor(held: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """A tensor in a storage, which must reach so far. Raises Refused."""
    return _view((held, offset, shape, strides), None, None)


def _tensor(args: tuple[Any, ...], budget: Budget) -> Any:
    return _view(args[:4], None, args[6] if len(args) > 6 else None)


def _tensor_v3(args: tuple[Any, ...], budget: Budget) -> Any:
    named = args[6]
    if not isinstance(named, Name) or named.module != "torch":
        raise Refused("a tensor without a dtype")
    dtype = _DTYPES.get(named.name)
    if dtype is None:
        return NotRead(f"a tensor of {named!s:.60}")
    return _view(args[:4], dtype, args[7] if len(args) > 7 else None)


def _parameter(args: tuple[Any, ...], budget: Budget) -> Any:
    return _with(args[0], args[3:])


def _of_type(args: tuple[Any, ...], budget: Budget) -> Any:
    """A tensor with attributes, or of a subclass: the tensor itself."""
    function, _, inner = args[:3]
    if not isinstance(function, Name) or not isinstance(inner, tuple) or function.module.split(".")[0] != "torch":
        raise Refused("a tensor that a function of its own makes")
    if function.module != "torch._utils":
        return NotRead(_NESTED if str(function) == _JAGGED else f"a tensor of {function!s:.80}")
    return _with(call(function, inner, budget), args[3:])


def _with(held: Any, states: tuple[Any, ...]) -> Any:
    """A tensor with the attributes that its state gives, if there are any."""
    state = states[0] if states else None
    return replace(held, attributes=state) if isinstance(held, View) and state else held


def _mapping(args: tuple[Any, ...], budget: Budget) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    pairs = args[-1] if args else ()
    pairs = list(pairs.items()) if isinstance(pairs, dict) else pairs
    for pair in pairs if isinstance(pairs, (list, tuple)) else ():
        budget.charge()
        key, value = pair
        set_key(made, key, value)
    return made


def _sequence(args: tuple[Any, ...], budget: Budget) -> list[Any]:
    given = args[0] if args else ()
    budget.charge(len(given))
    return list(given)


def _size(args: tuple[Any, ...], budget: Budget) -> tuple[Any, ...]:
    return tuple(_sequence(args, budget))


def _complex(args: tuple[Any, ...], budget: Budget) -> complex:
    return complex(*args)


def _text_bytes(args: tuple[Any, ...], budget: Budget) -> bytes:
    """Bytes as the second protocol writes them: a text, and the name of its encoding."""
    text, encoding = args
    budget.charge(len(text) // 64)
    if encoding not in ("latin1", "latin-1"):
        raise Refused(f"the encoding {shown(encoding)}")
    return bytes(text, "latin-1")


def _scalar(args: tuple[Any, ...], budget: Budget) -> Any:
    """A NumPy number as a Python one; dates, texts and records stay notes."""
    kind, raw = args if len(args) == 2 else (None, None)
    if not isinstance(kind, Stub) or not isinstance(raw, bytes) or _code(kind) not in _NUMBERS:
        return Stub("numpy.scalar", args)
    order = kind.state[1] if isinstance(kind.state, tuple) and len(kind.state) > 1 else "<"
    dtype = np.dtype(_code(kind)).newbyteorder(">" if order == ">" else "<")
    return np.frombuffer(raw, dtype, 1)[0].item()


def _code(kind: Stub) -> str:
    """The short name of a NumPy dtype, or nothing."""
    return kind.args[0] if kind.args and isinstance(kind.args[0], str) else ""


def _attribute(args: tuple[Any, ...], budget: Budget) -> Stub:
    """Methods as values: mmengine's statistics are pickled as ``getattr(HistoryBuffer, "mean")``. It stays a note."""
    owner, name = args
    if not isinstance(owner, Name) or not isinstance(name, str) or name.startswith("_") or "." in name:
        raise Refused(f"builtins.getattr of {shown(name)}, which can run code")
    return Stub(f"{owner}.{name}")


def _reconstructed(args: tuple[Any, ...], budget: Budget) -> Stub:
    budget.charge(len(args))
    return Stub(str(args[0]) if isinstance(args[0], Name) else "an object", args[1:])


_MAKERS: Mapping[str, Callable[[tuple[Any, ...], Budget], Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.Size": _size,
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": _mapping,
    "collections.Counter": _mapping,
    "builtins.dict": _mapping,
    "__builtin__.dict": _mapping,
    "builtins.list": _sequence,
    "builtins.complex": _complex,
    "builtins.getattr": _attribute,
    "__builtin__.getattr": _attribute,
    "_codecs.encode": _text_bytes,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "copyreg._reconstructor": _reconstructed,
    "copy_reg._reconstructor": _reconstructed,
}
