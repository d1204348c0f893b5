"""Floating-point numbers of HDF5 that NumPy has no name for: their bits are read as they lie in the file.

HDF5 lets a writer make a type of any fields. HDF5 itself would make wider numbers of them, and lose what is in a NaN.
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np

from polyak.errors import UnknownFormat
from polyak.snapshot import Array
from polyak.weights import numpy_dtype

# By their places in bits (sign, exponent, its width, mantissa, its width) and the bias of the exponent. An exponent of
# ones alone is infinity or NaN to HDF5: of an E4M3, which has no infinity, it cannot say so, and there are several.
_KNOWN = {(2, (15, 7, 8, 0, 7), 127): "bfloat16", (1, (7, 2, 5, 0, 2), 15): "float8_e5m2"}


def dtype_of(dataset: h5py.Dataset, where: str) -> str | None:
    """The name of such a dtype; None for all other numbers. Raises UnknownFormat: it is none that polyak knows."""
    kind = dataset.id.get_type()
    if not isinstance(kind, h5py.h5t.TypeFloatID) or kind.get_size() == dataset.dtype.itemsize:
        return None
    fields, bias = kind.get_fields(), kind.get_ebias()
    name = _KNOWN.get((kind.get_size(), fields, bias))
    if name is None or kind.get_order() != h5py.h5t.ORDER_LE:
        order = "big-endian" if kind.get_order() != h5py.h5t.ORDER_LE else "little-endian"
        raise UnknownFormat(
            f"{where}: expected numbers that NumPy has, received {order} numbers of {kind.get_size()} bytes with "
            f"{fields[2]} bits of exponent (bias {bias}) and {fields[4]} of mantissa",
            hint="write it again as float32",
        )
    return name


def bits(dataset: Any, dtype: str) -> Array:
    """The array, bit for bit."""
    made: Array = np.empty(dataset.shape, numpy_dtype(dtype))
    plain = made.view(f"u{made.dtype.itemsize}")
    if made.size:
        dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, plain, mtype=dataset.id.get_type())
    return made
