"""Keras 3 sharded weights: the index ``NAME.weights.json`` and the shards ``NAME_00000.weights.h5`` beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from polyak.contents import Contents, Tensor
from polyak.errors import DamagedFile, FileError
from polyak.files.keras_h5 import facts, first_bytes
from polyak.files.keras_hdf5 import MAGIC, Hdf5

_LARGEST_INDEX = 1 << 27
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
    return Contents(origin, "keras_shards", tensors, "fletcher32" if checked else "none", facts=held)


def _groups(path: Path, origin: str) -> dict[str, list[str]]:
    """The names of the shards that hold each group."""
    if path.stat().st_size > _LARGEST_INDEX:
        raise DamagedFile(f"{origin}: expected an index of shards, received more than {_LARGEST_INDEX:,} bytes")

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a name occurs twice")
        return dict(pairs)

    try:
        entries = json.loads(path.read_bytes(), object_pairs_hook=no_duplicates)["weight_map"]
        if not isinstance(entries, dict):
            raise TypeError(f"weight_map is a {type(entries).__name__}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedFile(f"{origin}: the index of shards is not readable: {error!r:.200}") from error
    return {group.strip("/"): _shards(group, value, origin) for group, value in entries.items()}


def _shards(group: str, value: Any, origin: str) -> list[str]:
    names = value if isinstance(value, list) else [value]
    for name in names:
        # A name, not a path: an index from a stranger must not lead out of its directory.
        if not isinstance(name, str) or not name.endswith(".h5") or len(name) > 255 or set(name) & set("/\\:\0"):
            raise DamagedFile(
                f"{origin}: group {group!r}: expected the name of a shard beside the index, received {name!r:.100}",
                hint="the index is damaged or hostile",
            )
    return names


def _opened(path: Path, name: str, origin: str) -> Hdf5:
    shard = path.with_name(name)
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
