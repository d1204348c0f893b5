"""safetensors in several files with an index, ``model.safetensors.index.json``, as the Hugging Face Hub keeps them.

The index maps each weight to its shard. polyak's manifest of the whole is in the index's metadata; each shard is a
polyak file of its own. Written so that the index's name holds the old model or the new one: the shards go into a
fresh directory beside it, and the index takes its name last, in one rename.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import xxhash

from polyak.contents import Contents, Tensor
from polyak.errors import DamagedFile, FileError, UnknownFormat
from polyak.files import safetensors
from polyak.files.atomic import replacing, sync_directory
from polyak.manifest import Manifest, Stored
from polyak.snapshot import Item, Snapshot, tool, versions

SHARD_BYTES = 5_000_000_000
_END = ".safetensors.index.json"
_INDEX_LIMIT = 100_000_000
_LONGEST_NAME = 255  # of a file or directory, in bytes; no system allows more
_KEY, _KEY_DIGEST = "polyak", "polyak.digest"


def recognises(path: Path) -> bool:
    """Whether the path is an index of safetensors files, or a directory with just one.

    Raises:
        FileError: the file cannot be read.
    """
    index = _index_of(path)
    if index is None:
        return False
    with _failures_named(index), index.open("rb") as file:
        if file.read(256).lstrip()[:1] != b"{" or index.stat().st_size > _INDEX_LIMIT:
            return False
    return index.name.endswith(_END) or _leads_to_safetensors(index)


def read(path: Path) -> Contents:
    """Open an index; the headers of all shards are read. Raises DamagedFile, UnknownFormat, FileError."""
    index = _index_of(path) or path
    origin = f"file {str(index)!r}"
    body = _parsed(index, origin)
    weight_map = body["weight_map"]
    shards = {name: _shard(index, name, origin) for name in sorted(set(weight_map.values()))}
    tensors = {weight: _tensor(weight, name, shards[name], origin) for weight, name in weight_map.items()}
    _refuse_unlisted(weight_map, shards, origin)
    manifest = _manifest(body.get("metadata"), tensors, origin)
    return Contents(origin, "safetensors-sharded", tensors, "none" if manifest is None else "xxh3-128", manifest)


def write(snapshot: Snapshot, path: str | PathLike[str], shard_bytes: int = SHARD_BYTES) -> Manifest:
    """Write a snapshot in shards, array by array, and the index last.

    Memory: the largest array. The shards of a model that was under this name before stay where they are.

    Args:
        path: of the index; its name ends in ``.safetensors.index.json``.
        shard_bytes: most bytes of weights in a shard; a larger weight has one of its own.

    Raises:
        FileError: the path cannot be written.
        UnknownFormat: the name has another end.
        DtypeMismatch, UnexpectedWeight: safetensors cannot hold a weight's dtype, or its name.
    """
    index = Path(path)
    if not index.name.endswith(_END):
        raise UnknownFormat(f"file {str(path)!r}: expected a name that ends in {_END}", hint=f"such as model{_END}")
    stem = index.name.removesuffix(_END)
    directory = index.parent / f"{stem}-{secrets.token_hex(8)}"
    try:
        with replacing(index) as file, _failures_named(index, "written"):
            directory.mkdir()
            manifest, weight_map = _write_shards(snapshot, directory, stem, shard_bytes)
            sync_directory(directory)
            file.write(_index(manifest, weight_map))
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return manifest


@contextmanager
def _failures_named(path: Path, done: str = "read") -> Iterator[None]:
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"file {str(path)!r}: cannot be {done}: {error.strerror or error}") from error


def _index_of(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix == ".json" else None
    found = sorted(path.glob(f"*{_END}")) if path.is_dir() else []
    return found[0] if len(found) == 1 else None


def _leads_to_safetensors(index: Path) -> bool:
    try:
        body = json.loads(index.read_bytes())
        return all(str(name).endswith(".safetensors") for name in body["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _parsed(index: Path, origin: str) -> dict[str, Any]:
    """The index as JSON, with a weight map of texts to names of files beside or below it."""

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise DamagedFile(f"{origin}: a name occurs twice in the index")
        return dict(pairs)

    try:
        with _failures_named(index):
            body = json.loads(index.read_bytes(), object_pairs_hook=no_duplicates)
        shards = set(body["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFile(
            f"{origin}: expected a weight_map of names to files, received something else: {error!r:.120}"
        ) from error
    for name in shards:
        if not isinstance(name, str) or not _stays(name):
            raise DamagedFile(f"{origin}: shard {name!r:.120}: expected a file in the index's directory")
    return dict(body)


def _stays(name: str) -> bool:
    """Whether a name leads into the directory. Links are followed: the Hub's cache consists of them."""
    parts = PurePosixPath(name).parts
    short = all(len(part.encode(errors="replace")) <= _LONGEST_NAME for part in parts)
    return bool(parts) and short and not name.startswith("/") and ".." not in parts and not set(name) & set("\\\0:")


def _shard(index: Path, name: str, origin: str) -> Contents:
    path = index.parent / name
    if not path.is_file():
        raise FileError(f"{origin}: shard {name!r} is missing", hint=f"download or copy it to {str(path.parent)!r}")
    if not safetensors.recognises(path):
        raise DamagedFile(f"{origin}: shard {name!r}: expected a safetensors file, received something else")
    return safetensors.read(path)


def _tensor(weight: str, name: str, shard: Contents, origin: str) -> Tensor:
    if weight not in shard.tensors:
        raise DamagedFile(
            f"{origin}: weight {weight!r}: expected in shard {name!r}, which does not hold it",
            hint="index and shards are of different models, or one is damaged; copy them again",
        )
    return shard.tensors[weight]


def _refuse_unlisted(weight_map: Mapping[str, str], shards: Mapping[str, Contents], origin: str) -> None:
    for name, shard in shards.items():
        for weight in shard.tensors:
            if weight_map.get(weight) != name:
                raise DamagedFile(
                    f"{origin}: weight {weight!r}: shard {name!r} holds it, the index does not say so",
                    hint="index and shards are of different models; copy them again",
                )


def _manifest(metadata: Any, tensors: Mapping[str, Tensor], origin: str) -> Manifest | None:
    """Polyak's own description of the whole, which must be of these weights."""
    if not isinstance(metadata, dict) or not {_KEY, _KEY_DIGEST} & metadata.keys():
        return None
    text = str(metadata.get(_KEY, ""))
    if xxhash.xxh3_128_hexdigest(text.encode(errors="surrogatepass")) != metadata.get(_KEY_DIGEST):
        raise DamagedFile(f"{origin}: the manifest does not have its digest", hint="restore the index from a copy")
    manifest = Manifest.from_json(text.encode(errors="surrogatepass"), origin)
    described = {s.name: (s.weight.shape, s.weight.dtype) for s in manifest.weights}
    for name in sorted({*described, *tensors}):
        found = (tensors[name].shape, tensors[name].dtype) if name in tensors else None
        if described.get(name) != found:
            raise DamagedFile(
                f"{origin}: weight {name!r}: expected {described.get(name)} by the manifest, received {found}",
                hint="restore index and shards from a copy",
            )
    return manifest


def _write_shards(snapshot: Snapshot, directory: Path, stem: str, limit: int) -> tuple[Manifest, dict[str, str]]:
    """Each shard under the names that the whole has, and where each name went."""
    digests: dict[str, str] = {}
    weight_map: dict[str, str] = {}
    groups = _grouped(snapshot.manifest.weights, limit)
    for number, group in enumerate(groups, 1):
        path = directory / f"{stem}-{number:05}-of-{len(groups):05}.safetensors"
        part = safetensors.write(_part(snapshot, group), path)
        digests |= {s.name: s.digest for s in part.weights}
        weight_map |= dict.fromkeys(digests.keys() - weight_map.keys(), f"{directory.name}/{path.name}")
    weights = [msgspec.structs.replace(s, digest=digests[s.name]) for s in snapshot.manifest.weights]
    known = snapshot.manifest
    return _stamped(known, weights, snapshot.origin), {s.name: weight_map[s.name] for s in weights}


def _stamped(known: Manifest, weights: list[Stored], source: str) -> Manifest:
    return msgspec.structs.replace(
        known, tool=tool(), versions=versions(), source=source, integrity="xxh3-128", weights=tuple(weights)
    )


def _grouped(weights: tuple[Stored, ...], limit: int) -> list[list[Stored]]:
    """Weights in their order, in groups of up to so many bytes; one group, empty, of no weights."""
    groups: list[list[Stored]] = [[]]
    room = limit
    for stored in weights:
        if groups[-1] and stored.weight.nbytes > room:
            groups.append([])
            room = limit
        groups[-1].append(stored)
        room -= stored.weight.nbytes
    return groups


def _part(snapshot: Snapshot, group: list[Stored]) -> Snapshot:
    """Some of the arrays, under the names that they have in the whole.

    Those start with the role where the whole holds several; a part that happens to hold one keeps it in its paths.
    """
    alone = len({s.role for s in group}) == 1 < len(snapshot.roles)
    items = [
        Item(s.role, replace(s.weight, path=s.name) if alone else s.weight, partial(snapshot.__getitem__, s.name))
        for s in group
    ]
    return Snapshot(items, snapshot.manifest.roles, snapshot.origin)


def _index(manifest: Manifest, weight_map: dict[str, str]) -> bytes:
    text = manifest.to_json()
    total = sum(s.weight.nbytes for s in manifest.weights)
    metadata = {"total_size": total, _KEY: text, _KEY_DIGEST: xxhash.xxh3_128_hexdigest(text.encode())}
    return json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=1).encode()
