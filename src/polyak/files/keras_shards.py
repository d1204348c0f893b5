"""Keras 3 sharded weights: the index ``NAME.weights.json`` and the shards ``NAME_00000.weights.h5`` beside it."""

from __future__ import annotations

from pathlib import Path

from polyak.contents import Contents, Tensor
from polyak.errors import DamagedFile, FileError
from polyak.files.beside import refuse_leading_out
from polyak.files.json_cursor import Cursor
from polyak.files.keras_h5 import facts, first_bytes
from polyak.files.keras_hdf5 import MAGIC, Hdf5
from polyak.files.limits import MOST_HEADER, MOST_TENSORS

_MOST_PARTS = 1000
_START = 1 << 16


def recognises(path: Path) -> bool:
    """Whether this is the index of HDF5 shards. Raises FileError: the file cannot be read."""
    if path.suffix != ".json" or not path.is_file():
        return False
    start = first_bytes(path, _START)
    return start.lstrip()[:1] == b"{" and b'"weight_map"' in start and b'.h5"' in start


def read(path: Path) -> Contents:
    """Open all shards; only their structure is read. Raises DamagedFile, FileError."""
    origin = f"file {str(path)!r}"
    groups = _groups(path, origin)
    names = dict.fromkeys(shard for shards in groups.values() for shard in shards)
    shards = {name: _opened(path, name, origin) for name in names}
    tensors: dict[str, Tensor] = {}
    for name, shard in shards.items():
        for key, tensor in shard.tensors.items():
            if name not in groups.get(key.rpartition("/")[0], ()) or key in tensors:
                times = "two shards" if key in tensors else f"{name}, where the index does not have it"
                raise DamagedFile(
                    f"{origin}: weight {key!r}: expected in one shard of the index, received from {times}"
                )
            tensors[key] = tensor
    _refuse_empty(groups, tensors, origin)
    held = {k: v for shard in shards.values() for k, v in facts(shard).items()}
    checked = all(shard.checked for shard in shards.values())
    unread = {f"{name}: {k}": what for name, shard in shards.items() for k, what in shard.unread.items()}
    beside = {f"{name}: {k}": what for name, shard in shards.items() for k, what in shard.beside.items()}
    integrity = "fletcher32" if checked else "none"
    return Contents(origin, "keras_shards", tensors, integrity, facts=held, unread=unread, beside=beside)


def _groups(path: Path, origin: str) -> dict[str, list[str]]:
    """The names of the shards that hold each group."""
    if (size := path.stat().st_size) > MOST_HEADER:
        raise DamagedFile(f"{origin}: expected an index of shards of at most {MOST_HEADER:,} bytes, received {size:,}")
    cursor = Cursor(path.read_bytes(), f"{origin}: the index of shards")
    entries: dict[str, list[str]] = {}
    for part in cursor.names(_MOST_PARTS):
        if part == "weight_map":
            entries = {group: list(cursor.texts(MOST_TENSORS)) for group in cursor.names(MOST_TENSORS)}
        elif part == "metadata":
            for _ in cursor.names(_MOST_PARTS):
                cursor.value()
        else:
            cursor.value()
    cursor.finish()
    return {group.strip("/"): _shards(group, names, origin) for group, names in entries.items()}


def _shards(group: str, names: list[str], origin: str) -> list[str]:
    for name in names:
        # A name, not a path: an index from a stranger must not lead out of its directory.
        if not name.endswith(".h5") or len(name) > 255 or set(name) & set("/\\:\0"):
            raise DamagedFile(
                f"{origin}: group {group!r}: expected the name of a shard beside the index, received {name!r:.100}",
                hint="the index is damaged or hostile",
            )
    return names


def _opened(path: Path, name: str, origin: str) -> Hdf5:
    shard = path.with_name(name)
    refuse_leading_out(shard, path, origin)
    if not shard.is_file():
        raise FileError(f"{origin}: expected the shard {name!r} beside it, received none", hint="copy all shards")
    if first_bytes(shard, len(MAGIC)) != MAGIC:
        raise DamagedFile(f"{origin}: shard {name!r}: expected an HDF5 file, received something else")
    return Hdf5(shard.open("rb"), f"file {str(shard)!r}")


def _refuse_empty(groups: dict[str, list[str]], tensors: dict[str, Tensor], origin: str) -> None:
    held = {key.rpartition("/")[0] for key in tensors}
    for group in groups:
        if group not in held:
            raise DamagedFile(f"{origin}: group {group!r}: expected weights in {groups[group]}, received none")
