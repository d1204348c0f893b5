"""HDF5 files from strangers: the arrays and texts in them, read lazily, and everything refused that HDF5 could do.

An HDF5 file can point at other files, run filters of its own, declare more than it stores and link groups in circles.
What Keras writes needs none of that.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO

import h5py
import numpy as np

from polyak.contents import Tensor
from polyak.errors import DamagedFile, FileError, UnknownFormat
from polyak.files import hdf5_beside, hdf5_floats
from polyak.files.hdf5_chunks import runs
from polyak.files.hdf5_stream import Watched
from polyak.files.limits import FREE_INFLATION, MOST_INFLATION, MOST_TENSORS
from polyak.files.stamp import Stamp, stamp
from polyak.snapshot import Array
from polyak.weights import Kind, Weight, numpy_dtype

NOTE, NOTE_DIGEST = "polyak", "polyak.digest"
MAGIC = b"\x89HDF\r\n\x1a\n"
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}
_MOST_EXPANSION = 1100  # deflate reaches 1032
_FREE_GROUPS = 2000
_GROUPS_OF_AN_ARRAY = 8
_FLOOR = 1 << 20
_LARGEST_TEXT = 1 << 22
_LARGEST_LIST = 1 << 28
_DEEPEST = 64
_NO_LINKS = "Keras and its like give each array one name: save it again without links"


def again(weight: Weight) -> tuple[str, ...]:
    """Where else a file of polyak's holds an array: Keras asks each layer that has the weight for it."""
    return () if weight.evidence is None or weight.kind is Kind.SEED else weight.evidence.again


class Hdf5:
    """An open HDF5 file.

    It is read through a Python file object: HDF5 itself would lock the path, and Keras could not write to it again in
    this process for as long as a snapshot of it is alive.

    Attributes:
        groups: every group, the file itself as "".
        tensors: every array of numbers by its path.
        unread: what the other arrays are.
        beside: attributes that are none of Keras', by path and name.
        checked: every array of numbers carries a Fletcher-32 checksum, which HDF5 verifies.
    """

    def __init__(self, file: BinaryIO, origin: str) -> None:
        self.origin = origin
        self.groups: list[str] = []
        self._raw = file
        self._stamp = _stamp(file)
        self._size = file.seek(0, os.SEEK_END)
        self._letters = 0
        self.beside: dict[str, str] = {}
        self._arrays = 0
        self._described: set[str] = set()
        weakref.finalize(self, file.close)
        with self._damage():
            self._stream = Watched(file, origin)
            self._file = h5py.File(self._stream, "r")
            self._lists: tuple[Watched, h5py.File] | None = None
            weakref.finalize(self, self._file.close)  # called before the other
            found = dict(self._walk(self._file, "", set()))
            _refuse_shared(found, self._size, origin)
            self.unread = {name: what for name, d in found.items() if (what := hdf5_beside.no_numbers(d)) is not None}
            for name in self.unread:
                del found[name]
            self.tensors = {name: self._tensor(name, d) for name, d in found.items()}
            _refuse_inflated(found, self._size, origin)
            self.checked = bool(found) and all(d.fletcher32 or not d.nbytes for d in found.values())

    def texts(self, group: str) -> dict[str, str | tuple[str, ...]]:
        """The text attributes of a group, lists as tuples; others are left out."""
        if group not in self._described:
            return {}
        with self._damage():
            held = {name: self._text(group, name) for name in _attributes(self._file, group)}
        texts = {name: text for name, text in held.items() if text is not None}
        self._letters += sum(len(t) for text in texts.values() for t in (text if isinstance(text, tuple) else (text,)))
        if self._letters > _LARGEST_TEXT + 4 * self._size:
            raise DamagedFile(
                f"{self.origin}: group {group!r}: expected texts of its own, received one again and again"
            )
        return texts

    def _text(self, group: str, name: str) -> str | tuple[str, ...] | None:
        held = _attributes(self._file, group).get_id(name)
        if not _is_text(held):
            return None
        lie_elsewhere = held.shape != () and held.dtype.kind != "S"
        return _text(_attributes(self._listing(held.shape[0]) if lie_elsewhere else self._file, group), name)

    def _listing(self, count: int) -> h5py.File:
        """The file for a list of so many texts of no fixed length, which might all be one and the same long text.

        HDF5 takes memory for all of them at once. Opened once more, so that the heaps which are looked through are
        those of lists alone, and not those of a model's description, which may be long.
        """
        if self._lists is None:
            stream = Watched(self._raw, self.origin)
            self._lists = stream, h5py.File(stream, "r")
            weakref.finalize(self, self._lists[1].close)
        stream, file = self._lists
        stream.refuse_longer(_LARGEST_LIST // max(count, 1))
        return file

    def runs(self, name: str) -> list[tuple[int, int]] | None:
        """Where an array's bytes lie, for who reads them past HDF5; None where HDF5 has to. Raises as reading does."""
        self._refuse_rewritten()
        with self._damage(name):
            return runs(self._file[name], self._size)

    @contextmanager
    def _damage(self, name: str = "") -> Iterator[None]:
        subject = f"weight {name!r:.120}: " if name else ""
        try:
            yield
        except FileError:
            raise
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError) as error:
            self._refuse_rewritten()  # which is no damage
            raise DamagedFile(
                f"{self.origin}: {subject}expected an HDF5 file, received one that HDF5 cannot read: {error!s:.200}",
                hint="it is truncated or damaged; restore it from a copy",
            ) from error

    def _walk(self, group: h5py.Group, prefix: str, above: set[int]) -> Iterator[tuple[str, h5py.Dataset]]:
        address = h5py.h5o.get_info(group.id).addr
        if address in above or prefix.count("/") > _DEEPEST:
            raise DamagedFile(
                f"{self.origin}: group {prefix!r}: expected a tree of groups, received a second link to one",
                hint=_NO_LINKS,
            )
        above.add(address)
        self._enter(group, prefix.rstrip("/"))
        for encoded, kind in _links(group):
            name = encoded.decode(errors="surrogateescape")
            if kind != h5py.h5l.TYPE_HARD:
                raise _elsewhere(kind, f"{self.origin}: {prefix + name!r}")
            held = h5py.h5o.open(group.id, encoded)
            if isinstance(held, h5py.h5g.GroupID):
                yield from self._walk(h5py.Group(held), f"{prefix}{name}/", above)
            elif isinstance(held, h5py.h5d.DatasetID):
                dataset = h5py.Dataset(held)
                self._refuse_second_name(dataset, prefix + name, above)
                self._arrays += 1
                self.beside |= hdf5_beside.attributes(dataset, prefix + name)
                yield prefix + name, dataset
            else:
                self.beside[prefix + name] = "a type with a name"

    def _enter(self, group: h5py.Group, path: str) -> None:
        self.groups.append(path)
        if h5py.h5a.get_num_attrs(group.id):
            self._described.add(path)
            self.beside |= hdf5_beside.attributes(group, path)
        # Layers without weights have groups, too, but not thousands of them for each weight.
        if len(self.groups) > _FREE_GROUPS + _GROUPS_OF_AN_ARRAY * self._arrays or self._arrays > MOST_TENSORS:
            raise DamagedFile(
                f"{self.origin}: expected a file of weights, received {len(self.groups):,} groups and "
                f"{self._arrays:,} arrays"
            )

    def _refuse_second_name(self, dataset: h5py.Dataset, name: str, seen: set[int]) -> None:
        address = h5py.h5o.get_info(dataset.id).addr
        if address in seen:
            raise DamagedFile(
                f"{self.origin}: weight {name!r}: expected an array of its own, received a second name of another",
                hint=_NO_LINKS,
            )
        seen.add(address)

    def _tensor(self, name: str, dataset: h5py.Dataset) -> Tensor:
        where = f"{self.origin}: weight {name!r}"
        odd = hdf5_floats.dtype_of(dataset, where)
        dtype = odd or _dtype_name(dataset, where)
        _refuse_foreign(dataset, where)
        shape = tuple(int(n) for n in dataset.shape or ())
        _refuse_bomb(dataset, math.prod(shape) * dataset.id.get_type().get_size(), self._size, where)
        read = _value if odd is None else partial(hdf5_floats.bits, dtype=odd)
        return Tensor(shape, dtype, partial(self._read, name, dtype, read))

    def _read(self, name: str, dtype: str, read: Callable[[h5py.Dataset], Any]) -> Array:
        self._refuse_rewritten()
        with self._damage(name):
            dataset = self._file[name]
            with self._stream.values():
                array = read(dataset)
        self._refuse_rewritten()
        array = np.asarray(array)
        return (
            array.view(numpy_dtype(dtype)) if array.dtype.kind == "V" else array.astype(numpy_dtype(dtype), copy=False)
        )

    def _refuse_rewritten(self) -> None:
        if _stamp(self._raw) != self._stamp:
            raise FileError(f"{self.origin}: it was written again after it was opened", hint="open it once more")


def _links(group: h5py.Group) -> list[tuple[bytes, int]]:
    """The names of a group and what kind of link each is, in their order, in one walk."""
    is_ordered = group.id.get_create_plist().get_link_creation_order() & h5py.h5p.CRT_ORDER_TRACKED
    held: list[tuple[bytes, int]] = []
    group.id.links.iterate(
        lambda name, link: held.append((name, link.type)),
        idx_type=h5py.h5.INDEX_CRT_ORDER if is_ordered else h5py.h5.INDEX_NAME,
        info=True,
    )
    return held


def _elsewhere(kind: int, where: str) -> FileError:
    """A soft link is another name of something in the file; other links lead to what is not in it."""
    if kind == h5py.h5l.TYPE_SOFT:
        return UnknownFormat(f"{where}: expected an array or a group, received a soft link", hint=_NO_LINKS)
    sort = "an external link" if kind == h5py.h5l.TYPE_EXTERNAL else "a link of a kind of its own"
    return DamagedFile(
        f"{where}: expected an array or a group, received {sort}",
        hint="it may lead to any file: do not open this one with other tools unless you trust who made it",
    )


def _value(dataset: h5py.Dataset) -> Any:
    return dataset[()]


def _stamp(file: BinaryIO) -> Stamp | None:
    try:
        return stamp(os.fstat(file.fileno()))
    except OSError:  # held in memory
        return None


def _attributes(file: h5py.File, group: str) -> Any:
    return (file[group] if group else file).attrs


def _is_text(held: Any) -> bool:
    """Whether an attribute is a text or a list of texts, of no more bytes than a list of names has."""
    if held.get_type().get_class() != h5py.h5t.STRING or held.get_space().get_simple_extent_type() == h5py.h5s.NULL:
        return False
    return len(held.shape) <= 1 and math.prod(held.shape) * held.dtype.itemsize <= _LARGEST_TEXT


def _text(attributes: Any, name: str) -> str | tuple[str, ...]:
    value = attributes[name]
    return tuple(map(_decoded, value)) if isinstance(value, np.ndarray) else _decoded(value)


def _decoded(value: Any) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _dtype_name(dataset: h5py.Dataset, where: str) -> str:
    dtype = dataset.dtype
    if dtype.kind in "biufc" and dtype.itemsize <= 16:
        return str(dtype.newbyteorder("=").name)
    if dtype == np.dtype("V2") and _states(dataset, "bfloat16"):
        return "bfloat16"
    raise UnknownFormat(
        f"{where}: expected numbers, received HDF5 data of type {dtype!s:.60}", hint="polyak reads arrays of numbers"
    )


def _states(dataset: h5py.Dataset, dtype: str) -> bool:
    """Whether Keras has noted this dtype beside the bytes."""
    if "dtype" not in dataset.attrs:
        return False
    held = dataset.attrs.get_id("dtype")
    return held.shape == () and _is_text(held) and _text(dataset.attrs, "dtype") == dtype


def _refuse_foreign(dataset: h5py.Dataset, where: str) -> None:
    plan = dataset.id.get_create_plist()
    kinds = {plan.get_filter(i)[0] for i in range(plan.get_nfilters())}
    if kinds - _FILTERS:
        raise UnknownFormat(
            f"{where}: expected bytes that are plain or packed with gzip or lzf, received HDF5 filter "
            f"{min(kinds - _FILTERS)}",
            hint="write it again without this filter",
        )
    if dataset.is_virtual or dataset.external:
        kind = "a virtual dataset" if dataset.is_virtual else "external storage"
        raise DamagedFile(f"{where}: expected bytes in this file, received {kind}, which is in another")


def _refuse_shared(datasets: Mapping[str, h5py.Dataset], size: int, origin: str) -> None:
    """Arrays cannot store more than the file is long, unless they share bytes."""
    stored = sum(dataset.id.get_storage_size() for dataset in datasets.values())
    if stored > size:
        raise DamagedFile(f"{origin}: expected arrays that lie apart, received {stored:,} bytes in a file of {size:,}")


def _refuse_inflated(datasets: Mapping[str, h5py.Dataset], size: int, origin: str) -> None:
    """All arrays together may not unpack to far more than the file's size; chunks that are missing count as packed."""
    declared = {name: math.prod(d.shape or ()) * d.dtype.itemsize for name, d in datasets.items() if d.chunks}
    if sum(declared.values()) > max(FREE_INFLATION, MOST_INFLATION * size):
        name = max(declared, key=declared.__getitem__)
        raise DamagedFile(
            f"{origin}: weight {name!r}: expected at most {MOST_INFLATION} bytes for each of the file's {size:,}, "
            f"received {declared[name]:,} bytes by its shape",
            hint="it was never filled, or the file is damaged or hostile",
        )


def _refuse_bomb(dataset: h5py.Dataset, declared: int, size: int, where: str) -> None:
    """A dataset may declare gigabytes and store nothing; reading it would take the memory."""
    stored = dataset.id.get_storage_size()
    chunk = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
    most = stored if dataset.chunks is None else _MOST_EXPANSION * stored
    if stored > size or declared > most or chunk > max(declared, _FLOOR):
        raise DamagedFile(
            f"{where}: expected {declared:,} bytes by its shape, received {stored:,} bytes in a file of {size:,}",
            hint="it was never filled, or the file is damaged or hostile",
        )
