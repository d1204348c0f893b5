"""What an HDF5 file holds that is no array of numbers: texts, records, references, attributes that Keras has not."""

from __future__ import annotations

import re
from collections.abc import Iterator

import h5py

# What Keras says of groups and arrays; lists that are too long for one attribute are numbered.
_KERAS = re.compile(
    r"name|dtype|backend|keras_version|model_config|training_config|(?:layer|weight|top_level_weight)_names\d*|"
    r"polyak(?:\.digest)?"
)
_WORDS = {
    h5py.h5t.STRING: "an array of texts",
    h5py.h5t.COMPOUND: "an array of records",
    h5py.h5t.VLEN: "an array of lists",
    h5py.h5t.OPAQUE: "an array of bytes",
    h5py.h5t.REFERENCE: "an array of references",
    h5py.h5t.TIME: "an array of times",
}


def no_numbers(dataset: h5py.Dataset) -> str | None:
    """What an array is that holds no numbers, in words; None where it may hold some."""
    if dataset.id.get_space().get_simple_extent_type() == h5py.h5s.NULL:
        return "an array without a shape"
    kind = dataset.id.get_type()
    word = _WORDS.get(kind.get_class())
    if word is None or _is_complex(kind) or "dtype" in dataset.attrs:  # of bytes that Keras calls numbers
        return None
    return "a text" if kind.get_class() == h5py.h5t.STRING and dataset.shape == () else word


def attributes(held: h5py.Group | h5py.Dataset, path: str) -> Iterator[tuple[str, str]]:
    """The attributes that no file of Keras has, by ``path@name``."""
    if h5py.h5a.get_num_attrs(held.id):
        yield from ((f"{path}@{name}", "an attribute") for name in held.attrs if not _KERAS.fullmatch(name))


def _is_complex(kind: h5py.h5t.TypeID) -> bool:
    return bool(kind.get_class() == h5py.h5t.COMPOUND and kind.dtype.kind == "c")
