"""A snapshot in another form: some of its arrays, under other names, in another dtype. A view; nothing is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypedDict

import numpy as np

from polyak.combine.blocks import Array, count_nonfinite
from polyak.errors import DtypeMismatch, MissingWeight, UnexpectedWeight, UnknownFormat, argument
from polyak.numbers import rounded
from polyak.renaming import Rename, apply_rename, refuse_unused_renames
from polyak.snapshot import Item, Snapshot, refuse_unmatched
from polyak.weights import Globs, glob_match, is_floating, numpy_dtype

# The formats that polyak writes, and the ends of names that mean them; the longer end comes first.
FORMATS = {
    "safetensors-sharded": ".safetensors.index.json",
    "safetensors": ".safetensors",
    "keras": ".weights.h5",
    "npz": ".npz",
    "torch": ".pt",
    "orbax": ".orbax",
}
_ALSO = {".pth": "torch"}
_WRITERS = {"keras": "keras_write", "torch": "torch_write", "safetensors-sharded": "safetensors_sharded"}


class Choosing(TypedDict, total=False):
    """Which arrays, and how.

    Attributes:
        include, exclude: globs of weights, by their old paths.
        rename: old name to new name: a mapping of globs or of compiled regular expressions, or a function; see
            ``polyak.renaming``.
        cast: a floating-point dtype for every floating-point array; narrower ones round, and refuse what would
            become infinite.
        layout: "torch" writes weights of Keras under names and in the layout of PyTorch; the other choices are of these
            names then. ``layers`` gives the Keras class of layers by glob, where it is not known.
    """

    include: Globs
    exclude: Globs
    rename: Rename | None
    cast: str | None
    layout: Literal["torch"] | None
    layers: Mapping[str, str]


def format_of(path: str, asked: str | None = None) -> str:
    """The format to write: as asked, or as the name ends.

    Raises:
        UnknownFormat: polyak writes no such format.

    Example:
        >>> format_of("run.npz"), format_of("model.safetensors.index.json")
        ('npz', 'safetensors-sharded')
    """
    if asked is not None and asked in FORMATS:
        return asked
    if asked is None:
        for name, end in (*FORMATS.items(), *((name, end) for end, name in _ALSO.items())):
            if path.endswith(end):
                return name
    raise UnknownFormat(
        f"file {path!r}: expected the name or format of something that polyak writes, received {asked or path!r}",
        hint=f"end the name in {', '.join(FORMATS.values())}, or choose a format: {', '.join(FORMATS)}",
    )


def writer_of(format: str) -> str:
    """The module of ``polyak.files`` that writes a format."""
    return _WRITERS.get(format, format)


@dataclass(frozen=True, slots=True)
class Converted:
    """A view of a snapshot in another form.

    Attributes:
        snapshot: the view.
        sources: of each name in it, the name and dtype in the source.
        skipped: names of the source that were left out as asked.
        unread: what else is in the source's file, by its path there.
    """

    snapshot: Snapshot
    sources: Mapping[str, tuple[str, str]]
    skipped: tuple[str, ...]
    unread: Mapping[str, str] = field(default_factory=dict)


def converted(held: Snapshot, choosing: Choosing) -> Converted:
    """The view; nothing is read.

    Raises:
        MissingWeight: a glob matches nothing.
        WeightError: a name, glob or expression to rename matches nothing.
        UnexpectedWeight: two arrays would have one name.
        DtypeMismatch: the dtype is no floating-point one; when an array is read, that a value is out of its range.

    Example:
        >>> held = Snapshot.from_arrays({"net.head.bias": np.float32([1]), "net.steps": np.int64(3)})
        >>> view = converted(held, {"exclude": "*steps", "rename": {"net.*.*": "*/*"}, "cast": "float16"})
        >>> {name: array.dtype.name for name, array in view.snapshot.items()}
        {'head/bias': 'float16'}
    """
    for name in choosing.keys() - Choosing.__optional_keys__:
        raise TypeError(
            f"a conversion has no argument {name!r}; it has {', '.join(sorted(Choosing.__optional_keys__))}"
        )
    include, exclude = choosing.get("include", "*"), choosing.get("exclude", ())
    paths = [w.path for w in held.weights]
    refuse_unmatched(paths, include, exclude, held.origin)
    rename = _renamer(paths, choosing.get("rename"), held.origin)
    cast = _castable(choosing.get("cast"))
    kept = [n for n, i in held.items_by_path.items() if _wanted(i.weight.path, include, exclude)]
    if paths and not kept:
        raise MissingWeight(f"{held.origin}: expected at least one weight to take, received none of {len(paths):,}")
    items = [_item(held, name, rename, cast) for name in kept]
    _refuse_nameless(held, zip(kept, items, strict=True))
    _refuse_twins(items, held.origin)
    view = Snapshot(items, held.states, held.origin, held.integrity, held.manifest, held.moment)
    chosen = set(kept)
    set_aside = [name for name in held if name not in chosen]
    old = [(name, held.items_by_path[name].weight.dtype) for name in kept]
    return Converted(view, dict(zip(view, old, strict=True)), tuple(set_aside), held.manifest.unread)


def _wanted(path: str, include: Globs, exclude: Globs) -> bool:
    return glob_match(path, include) and not glob_match(path, exclude)


def _item(held: Snapshot, name: str, rename: Callable[[str], str], cast: str | None) -> Item:
    item = held.items_by_path[name]
    weight = replace(item.weight, path=rename(item.weight.path))
    if cast is None or not weight.floating or weight.dtype == cast:
        return replace(item, weight=weight)
    # Read through the snapshot, which compares the bytes with their digest before they are changed.
    read = lambda: _narrowed(name, held[name], cast, held.origin)  # noqa: E731 - a closure over four names
    return Item(item.role, replace(weight, dtype=cast), read)


def _narrowed(name: str, array: Array, dtype: str, origin: str) -> Array:
    with np.errstate(over="ignore"):
        value = rounded(array, numpy_dtype(dtype))
    if count_nonfinite(value) != count_nonfinite(array):
        raise DtypeMismatch(
            f"weight {name!r}: expected values in the range of {dtype}, received larger ones from {origin}",
            hint="keep a wider dtype: the cast would make them infinite",
        )
    return value


def _castable(dtype: str | None) -> str | None:
    """By its own name: NumPy takes "half" and "f4", too, which no file does."""
    try:
        if dtype is None or is_floating(dtype):
            return dtype and numpy_dtype(dtype).name
    except TypeError:
        pass
    raise DtypeMismatch(f"cast={dtype!r}: expected a floating-point dtype", hint="such as float32, float16, bfloat16")


def _renamer(paths: list[str], rename: Rename | None, origin: str) -> Callable[[str], str]:
    """The new name of each path; every entry must match something."""
    refuse_unused_renames(paths, rename, origin)
    return {path: apply_rename(path, rename) for path in paths}.__getitem__


def _refuse_nameless(held: Snapshot, items: Iterable[tuple[str, Item]]) -> None:
    for name, item in items:
        if not item.weight.path:
            raise UnexpectedWeight(
                f"weight {name!r} of {held.origin}: expected a name, received none from rename=",
                hint=f"leave a weight out with {argument('exclude', held.items_by_path[name].weight.path)}",
            )


def _refuse_twins(items: list[Item], origin: str) -> None:
    seen: set[tuple[str, str]] = set()
    for item in items:
        key = (item.role, item.weight.path)
        if key in seen:
            raise UnexpectedWeight(
                f"weight {item.weight.path!r}: two weights of {origin} would have this name", hint="rename them apart"
            )
        seen.add(key)
