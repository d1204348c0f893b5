"""Orbax checkpoints: directories of arrays that JAX, Flax and Keras write; read and written with TensorStore alone.

Read as Orbax writes them: a tree, a step with several items, or a directory of steps; arrays in one OCDBT database or
each in a directory, in either version of Zarr. Orbax protects no value; what polyak wrote has its digests beside.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from polyak.contents import Contents, Tensor, plain
from polyak.errors import DamagedFile
from polyak.files.ahead import Ahead
from polyak.files.failures import failures_named
from polyak.files.orbax_path import find, is_checkpoint
from polyak.files.orbax_store import Header, Store
from polyak.files.orbax_tree import read_tree
from polyak.files.orbax_write import NOTE, refuse, write
from polyak.files.pinned import Pinned
from polyak.manifest import Manifest, decode_note, longest_manifest
from polyak.snapshot import Array

__all__ = ["FORMAT", "read", "recognises", "refuse", "write"]

FORMAT = "orbax"
_MOST_AHEAD = 1 << 28  # bytes of an array that is read before it is asked for


def recognises(path: Path) -> bool:
    """Whether a directory has what Orbax leaves in each. Raises FileError."""
    return is_checkpoint(path)


def read(path: Path) -> Contents:
    """Open a checkpoint; headers are read, values are not.

    Names are paths with slashes; of a step with several items the item's name comes first. Strings are
    facts. Of a directory of steps the newest one is opened; name another as
    ``directory/step``.

    Raises:
        FileError: it is not finished, a link leads out of it, or TensorStore is not installed.
        DamagedFile: it contradicts itself.
    """
    found = find(path)
    tensors: dict[str, Tensor] = {}
    facts: dict[str, object] = {}
    unread: dict[str, str] = {}
    held = {item: _opened(tree, found.origin, found.size) for item, tree in found.trees.items()}
    several = sum(bool(t) for t, *_ in held.values()) > 1
    for item, (arrays, texts, odd) in held.items():
        prefix = f"{item}/" if item and (several or not arrays) else ""
        tensors |= {prefix + name: tensor for name, tensor in arrays.items()}
        facts |= {prefix + name: text for name, text in texts.items()}
        unread |= {prefix + name: what for name, what in odd.items()}
    trees = list(found.trees.values())
    manifest = _manifest(trees[0], tensors, found.origin) if len(trees) == 1 else None
    integrity = "none" if manifest is None else manifest.integrity
    beside = {} if manifest else plain(facts)
    beside |= dict.fromkeys(found.others, "an item that is no tree of arrays")
    return Contents(found.origin, FORMAT, tensors, integrity, manifest, facts=facts, unread=unread, beside=beside)


def _opened(directory: Path, origin: str, size: int) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """The arrays of a tree, the texts beside them, and what is not read."""
    held = Pinned(directory)
    tree = read_tree(held.path, origin)
    if tree.leaves == ():
        return {}, tree.texts, {}
    store = Store(held.path, origin, size, tree.complete)
    headers = store.headers(None if tree.leaves is None else [leaf.stored for leaf in tree.leaves])
    paths = {name: name for name in headers} if tree.leaves is None else {x.stored: x.path for x in tree.leaves}
    unread = {paths[n]: "an array of no numbers" for n, h in headers.items() if not h.dtype}
    order = [n for n, h in headers.items() if h.dtype and h.nbytes <= _MOST_AHEAD]
    readings = Ahead(lambda name: store.begin(name, headers[name]), order)
    tensors = {
        paths[name]: Tensor(header.shape, header.dtype, partial(_read, held, store, readings, name, header))
        for name, header in headers.items()
        if header.dtype
    }
    return tensors, tree.texts, unread


def _read(held: Pinned, store: Store, readings: Ahead[Any], name: str, header: Header) -> Array:
    """An array; the directory stays open for as long as it can be asked for."""
    del held
    return store.values(readings.of(name), name, header)


def _manifest(directory: Path, tensors: dict[str, Tensor], origin: str) -> Manifest | None:
    """Polyak's own description, which must be of these arrays."""
    path = directory / NOTE
    with failures_named(path, "read"):
        if not path.is_file():
            return None
        if (size := path.stat().st_size) > 2 * longest_manifest(len(tensors)):  # quotes in it are escaped
            raise DamagedFile(
                f"{origin}: {NOTE}: expected the manifest of {len(tensors):,} arrays, received {size:,} bytes"
            )
        raw = path.read_bytes()
    manifest = decode_note(raw, f"{origin}: {NOTE}", len(tensors))
    described = {s.name: (s.weight.shape, s.weight.dtype) for s in manifest.weights}
    for name in sorted({*described, *tensors}):
        received = (tensors[name].shape, tensors[name].dtype) if name in tensors else None
        if described.get(name) != received:
            raise DamagedFile(
                f"{origin}: weight {name!r:.120}: expected {described.get(name)} by the manifest, received {received}",
                hint="restore the checkpoint from a copy",
            )
    return manifest
