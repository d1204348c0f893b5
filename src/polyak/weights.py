"""What a weight is: path, shape, dtype, kind, the evidence of its identity, and selection by glob."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

import ml_dtypes  # noqa: F401 - registers bfloat16, float8 and others with NumPy
import numpy as np

Globs = str | Sequence[str]
_DTYPE = re.compile(r"[a-z]\w*", re.ASCII | re.IGNORECASE)
_TRANSPOSED = re.compile(r"Conv[123]DTranspose")


class Kind(StrEnum):
    """What a weight is for; it decides whether an average moves or copies it."""

    TRAINABLE = "trainable"
    STATISTIC = "statistic"
    COUNTER = "counter"
    SEED = "seed"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What else is known of a weight's identity, beside its structural path.

    Attributes:
        structure: the path with every unnamed step replaced by its index among the siblings that own weights.
        name: the path with every explicitly named layer replaced by that name, and unnamed steps marked by ``~``.
        creation: the path with every unnamed step replaced by its rank in the order of creation.
        layer: class of the layer that owns the weight.
        local: name of the weight within its layer.
        position: index among the weights of the model in the framework's own order, random seeds not counted; -1
            where a file does not tell.
        dtype: dtype of the live weight; a shadow may be wider.
        saved: the path at which Keras stores the weight in its files, or "".
        names: explicit names of the layers on that path; of a file all names, because it does not tell which are.
        again: further paths at which Keras stores it: that of a weight which several layers hold.
    """

    structure: str
    name: str
    creation: str
    layer: str
    local: str
    position: int
    dtype: str
    saved: str = ""
    names: tuple[str, ...] = ()
    again: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Weight:
    """One named array of a model, an average or a file. ``shape`` is in elements, ``nbytes`` in bytes.

    Example:
        >>> Weight("head/kernel", (64, 10), "float32", Kind.TRAINABLE).nbytes
        2560
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    kind: Kind
    evidence: Evidence | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * numpy_dtype(self.dtype).itemsize

    @property
    def floating(self) -> bool:
        return is_floating(self.dtype)


@cache
def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of a name, the extended ones (bfloat16, float8) included.

    Example:
        >>> numpy_dtype("bfloat16").itemsize
        2
    """
    if not _DTYPE.fullmatch(name):  # NumPy would take it for a list of several, and evaluate what is in it
        raise TypeError(f"{name!r:.120}: expected the name of a dtype")
    return np.dtype(name)


@cache
def is_floating(name: str) -> bool:
    """Whether values of this dtype can be averaged (real floating-point)."""
    dtype = numpy_dtype(name)
    return dtype.kind == "f" or (dtype.kind == "V" and name.startswith(("bfloat", "float")))


@cache
def is_numeric(name: str) -> bool:
    """Whether NumPy has a dtype of this name, with what ml_dtypes adds, that holds numbers or truth values.

    Example:
        >>> is_numeric("bfloat16"), is_numeric("bool"), is_numeric("string"), is_numeric("qint8")
        (True, True, False, False)
    """
    try:
        dtype = numpy_dtype(name)
    except TypeError:
        return False
    return dtype.kind in "biufcV" and not dtype.fields


def widens(source: str, target: str) -> bool:
    """Whether every value of one floating or integer dtype exists in another of the same sort.

    Example:
        >>> widens("bfloat16", "float32"), widens("float16", "bfloat16"), widens("int32", "float64")
        (True, False, False)
    """
    a, b = numpy_dtype(source), numpy_dtype(target)
    same_sort = (is_floating(source) and is_floating(target)) or (a.kind in "iu" and b.kind in "iu")
    return same_sort and bool(np.can_cast(a, b, "safe"))


def transposed_convolution(*sides: Weight) -> str:
    """The class of Keras' layer, as either side says it, of which this is the kernel; "" where it is of another layer.

    Shapes do not show how such a kernel lies: each tool of JAX keeps it in its own way.
    """
    classes = (w.evidence.layer for w in sides if w.evidence)
    layer = next((c for c in classes if c), "")
    return layer if _TRANSPOSED.fullmatch(layer) and len(sides[0].shape) > 2 else ""


def glob_match(path: str, globs: Globs) -> bool:
    """Whether a path matches any of the globs, or is one of them; ``*`` also crosses ``/``.

    Example:
        >>> glob_match("encoder/0/kernel", ["head/*", "encoder/*"])
        True
    """
    return any(path == glob or _pattern(glob).fullmatch(path) for glob in as_globs(globs))


def as_globs(globs: Globs) -> tuple[str, ...]:
    """One glob or many, as a tuple."""
    return (globs,) if isinstance(globs, str) else tuple(globs)


def select(paths: Iterable[str], include: Globs = "*", exclude: Globs = ()) -> list[str]:
    """The paths that match ``include`` and not ``exclude``, in their order."""
    return [p for p in paths if glob_match(p, include) and not glob_match(p, exclude)]


def unmatched_globs(paths: Iterable[str], globs: Globs) -> list[str]:
    """The globs that match none of the paths: most often a typing error."""
    known = list(paths)
    return [g for g in as_globs(globs) if not any(glob_match(p, g) for p in known)]


@cache
def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(glob))
