"""safetensors in several files with an index, ``model.safetensors.index.json``, as the Hugging Face Hub keeps them.

The index maps each weight to its shard. polyak's manifest of the whole is in the index's metadata; each shard is a
polyak file of its own. Written so that the index's name holds the old model or the new one: the shards go into a
fresh directory beside it, and the index takes its name last, in one rename.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
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
from polyak.files.atomic import Check, refuse_unwritable, replacing, sync
from polyak.files.beside import refuse_leading_out
from polyak.files.failures import failures_named
from polyak.files.json_cursor import Cursor
from polyak.files.limits import MOST_HEADER, MOST_TENSORS
from polyak.files.partial import is_signed, locked_directory, remove, remove_if_nobodys, signed
from polyak.files.place import Kept, examined, for_directory, for_parts, hand_over
from polyak.manifest import Manifest, Stored
from polyak.snapshot import Item, Snapshot

SHARD_BYTES = 5_000_000_000
_END = ".safetensors.index.json"
_START = 1 << 16
_MOST_PARTS = 1000
_LONGEST_NAME = 255  # of a file or directory, in bytes; no system allows more
_STEM = 32  # so much of the name stands before the signed number of a directory of shards
_SIGNED = 24
_PORTABLE = str.maketrans(":\\", "__")  # of the index's name, what no name may hold on Windows
_NEVER = "\0:\\" if sys.platform == "win32" else "\0"
_MAP = b'"weight_map"'
_CANNOT = ": cannot be written: "
_TOKEN = re.compile(f"[0-9a-f]{{{_SIGNED}}}")
_KEY, _KEY_DIGEST = "polyak", "polyak.digest"
_KNOWN = (_KEY, _KEY_DIGEST, "total_size", "total_parameters")  # sums, which every index has


def recognises(path: Path) -> bool:
    """Whether the path is an index of safetensors files, or a directory with just one.

    Raises:
        FileError: the file cannot be read.
    """
    index = _index_of(path)
    if index is None:
        return False
    with failures_named(index, "read"), index.open("rb") as file:
        start = file.read(_START)
    named = index.name.endswith(_END)
    return start.lstrip()[:1] == b"{" and (named or (b'"weight_map"' in start and b'.safetensors"' in start))


def read(path: Path) -> Contents:
    """Open an index; the headers of all shards are read. Raises DamagedFile, UnknownFormat, FileError."""
    index = _index_of(path) or path
    origin = f"file {str(index)!r}"
    weight_map, metadata, others = _parsed(index, origin)
    shards = {name: _shard(index, name, origin) for name in sorted(set(weight_map.values()))}
    tensors = {weight: _tensor(weight, name, shards[name], origin) for weight, name in weight_map.items()}
    _refuse_unlisted(weight_map, shards, origin)
    manifest = _manifest(metadata, tensors, origin)
    _refuse_lost(manifest, shards, origin)
    beside = {**_beside(metadata, "metadata/", _KNOWN), **_beside(others, "")}
    beside |= {f"{name}: {key}": what for name, shard in shards.items() for key, what in shard.beside.items()}
    integrity = "none" if manifest is None else "xxh3-128"
    return Contents(origin, "safetensors-sharded", tensors, integrity, manifest, beside=beside)


def _beside(held: Mapping[str, Any], where: str, known: tuple[str, ...] = ()) -> dict[str, str]:
    """What other tools say in an index, by its place there."""
    told = {key: value for key, value in held.items() if key not in known}
    return {f"{where}{key}": "a text" if isinstance(value, str) else "a value" for key, value in told.items()}


def refuse(snapshot: Snapshot, path: str | PathLike[str]) -> None:
    """Raise what ``write`` would raise before it reads an array; nothing is written."""
    _refuse_other_name(path)
    safetensors.refuse_unheld(snapshot.manifest.weights)
    refuse_unwritable(path, sum(w.nbytes for w in snapshot.weights))


def write(
    snapshot: Snapshot, path: str | PathLike[str], shard_bytes: int = SHARD_BYTES, check: Check | None = None
) -> Manifest:
    """Write a snapshot in shards, array by array, and the index last.

    Memory: the largest array. Shards that polyak wrote under this name before, or a killed writer of it, are removed
    once no index beside names them; those of other tools stay where they are. Mode, owner, group and attributes of an
    existing index are those of the shards, too.

    Args:
        path: of the index; its name ends in ``.safetensors.index.json``.
        shard_bytes: most bytes of weights in a shard; a larger weight has one of its own.
        check: reads the finished files back before the index takes the place of an old one.

    Raises:
        FileError: the path cannot be written.
        UnknownFormat: the name has another end.
        DtypeMismatch, UnexpectedWeight: safetensors cannot hold a weight's dtype, or its name.
    """
    _refuse_other_name(path)
    safetensors.refuse_unheld(snapshot.manifest.weights)
    index = Path(os.path.realpath(path))
    stem = Path(path).name.removesuffix(_END).translate(_PORTABLE)
    with failures_named(index, "written"):
        kept = examined(index)
        _sweep(index, stem)
        with (
            locked_directory(index, lambda _: _generation(index, stem)) as (directory, handle),
            _gone_on_failure(directory, index),
            replacing(index, sum(w.nbytes for w in snapshot.weights), check) as file,
        ):
            of_shards = kept and for_parts(kept, _old_parts(index))
            hand_over(of_shards and for_directory(of_shards), handle, index)
            with _index_named(index, directory):
                manifest, weight_map = _write_shards(snapshot, directory, stem, shard_bytes, of_shards)
            sync(index.parent)  # the directory's name must be there before the index leads to it
            file.write(_index(manifest, weight_map))
        _sweep(index, stem)
    return manifest


def _refuse_other_name(path: str | PathLike[str]) -> None:
    if not os.fspath(path).endswith(_END):
        raise UnknownFormat(f"file {str(path)!r}: expected a name that ends in {_END}", hint=f"such as model{_END}")


@contextmanager
def _index_named(index: Path, directory: Path) -> Iterator[None]:
    """What cannot be written of a shard is told of the index, which the caller named: the shard's directory goes."""
    try:
        yield
    except FileError as error:
        shard, cannot, why = error.message.partition(_CANNOT)
        told = f"{cannot}{why}" if str(directory) in shard and cannot else f": {error.message}"
        hint = error.hint and error.hint.replace(str(directory), str(index.parent))
        raise FileError(f"file {str(index)!r}{told}", hint=hint) from error


def _generation(index: Path, stem: str) -> Path:
    """A new name for the directory of one model's shards."""
    return index.parent / f"{stem[:_STEM]}-{signed(stem)}"


def _old_parts(index: Path) -> Iterator[Path]:
    """The shards that an index names, and the directories below its own in which they are; none if it is damaged."""
    with suppress(OSError):
        for name in set(_parsed(index, "the old index")[0].values()):
            path = index.parent / name
            yield from (path, *(above for above in path.parents if index.parent in above.parents))


@contextmanager
def _gone_on_failure(directory: Path, index: Path) -> Iterator[None]:
    """A failure after the index has its name leaves the shards. The failure is told, whatever comes of the removal."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            if not _leads(index, directory):
                remove(directory)
        raise


def _sweep(index: Path, stem: str) -> None:
    """Remove shards of this name that polyak wrote and no index names any more; what a writer holds stays."""
    start = f"{stem[:_STEM]}-"
    with suppress(OSError), os.scandir(index.parent) as entries:  # what cannot be listed stays
        for entry in entries:
            token = entry.name.removeprefix(start)
            if entry.name.startswith(start) and _TOKEN.fullmatch(token) and is_signed(stem, token):
                directory = Path(entry.path)
                remove_if_nobodys(directory, index, partial(_unnamed, directory))


def _unnamed(directory: Path) -> bool:
    """Whether no index beside a directory of shards leads to it: copies of an index count, under any name."""
    with os.scandir(directory.parent) as entries:
        return not any(_leads(Path(e.path), directory) for e in entries if e.name.endswith(".json"))


def _leads(index: Path, directory: Path) -> bool:
    """Whether a file is an index that names a directory of shards.

    One that cannot be read may be, if it is called as an index is; other files of JSON that are closed to this user
    would keep all that was ever written beside them.
    """
    try:
        content = index.read_bytes() if index.is_file() else b""
    except OSError:
        return index.name.endswith(_END)
    return _MAP in content and directory.name[-_SIGNED:].encode() in content


def _index_of(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix == ".json" else None
    found = sorted(path.glob(f"*{_END}")) if path.is_dir() else []
    return found[0] if len(found) == 1 else None


def _parsed(index: Path, origin: str) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
    """The shard of each weight, which is a file beside or below the index, the metadata, and what else is there."""
    with failures_named(index, "read"):
        size = index.stat().st_size
        raw = index.read_bytes() if size <= MOST_HEADER else b""
    if size > MOST_HEADER:
        raise DamagedFile(f"{origin}: expected an index of at most {MOST_HEADER:,} bytes, received {size:,}")
    cursor = Cursor(raw, f"{origin}: the index")
    found: dict[str, dict[str, Any]] = {"weight_map": {}, "metadata": {}}
    others: dict[str, Any] = {}
    present = set()
    for part in cursor.names(_MOST_PARTS):
        present.add(part)
        if part == "weight_map":
            found[part] = {weight: cursor.text() for weight in cursor.names(MOST_TENSORS)}
        elif part == "metadata":
            found[part] = {key: cursor.value() for key in cursor.names(_MOST_PARTS)}
        else:
            others[part] = cursor.value()
    cursor.finish()
    if "weight_map" not in present:
        raise DamagedFile(f"{origin}: expected a weight_map of names to files, received {sorted(present)!s:.120}")
    for name in set(found["weight_map"].values()):
        if not _stays(name):
            raise DamagedFile(f"{origin}: shard {name!r:.120}: expected a file in the index's directory")
    return found["weight_map"], found["metadata"], others


def _stays(name: str) -> bool:
    """Whether a name leads into the directory, on this system; what leads out on Windows is refused on all.

    Links are followed: the Hub's cache consists of them.
    """
    parts = PurePosixPath(name).parts
    short = all(len(part.encode(errors="replace")) <= _LONGEST_NAME for part in parts)
    inside = not name.startswith("/") and ".." not in name.replace("\\", "/").split("/")
    return bool(parts) and short and inside and not set(name) & set(_NEVER)


def _shard(index: Path, name: str, origin: str) -> Contents:
    path = index.parent / name
    refuse_leading_out(path, index, origin)
    if not path.is_file() and index.is_symlink():  # written through a link: the shards are where the index is
        path = Path(os.path.realpath(index)).parent / name
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


def _refuse_lost(manifest: Manifest | None, shards: Mapping[str, Contents], origin: str) -> None:
    """Shards that polyak wrote are known by the index that was written with them: it has their digests and states."""
    own = next((name for name, shard in shards.items() if shard.manifest is not None), None)
    if manifest is None and own is not None:
        raise DamagedFile(
            f"{origin}: expected polyak's manifest, which shard {own!r} was written with, received none",
            hint="restore the index from a copy; or open the shards one by one",
        )


def _manifest(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor], origin: str) -> Manifest | None:
    """Polyak's own description of the whole, which must be of these weights."""
    if not {_KEY, _KEY_DIGEST} & metadata.keys():
        return None
    text = str(metadata.get(_KEY, ""))
    if xxhash.xxh3_128_hexdigest(text.encode(errors="surrogatepass")) != metadata.get(_KEY_DIGEST):
        raise DamagedFile(f"{origin}: the manifest does not have its digest", hint="restore the index from a copy")
    manifest = Manifest.from_json(text.encode(errors="surrogatepass"), origin, len(tensors))
    described = {s.name: (s.weight.shape, s.weight.dtype) for s in manifest.weights}
    for name in sorted({*described, *tensors}):
        found = (tensors[name].shape, tensors[name].dtype) if name in tensors else None
        if described.get(name) != found:
            raise DamagedFile(
                f"{origin}: weight {name!r}: expected {described.get(name)} by the manifest, received {found}",
                hint="restore index and shards from a copy",
            )
    return manifest


def _write_shards(
    snapshot: Snapshot, directory: Path, stem: str, limit: int, kept: Kept | None
) -> tuple[Manifest, dict[str, str]]:
    """Each shard under the names that the whole has, and where each name went."""
    digests: dict[str, str] = {}
    weight_map: dict[str, str] = {}
    groups = _grouped(snapshot.manifest.weights, limit)
    for number, group in enumerate(groups, 1):
        path = directory / f"{stem}-{number:05}-of-{len(groups):05}.safetensors"
        _reserve(path, kept)
        part = safetensors.write(_part(snapshot, group), path)
        digests |= {s.name: s.digest for s in part.weights}
        weight_map |= dict.fromkeys(digests.keys() - weight_map.keys(), f"{directory.name}/{path.name}")
    weights = [msgspec.structs.replace(s, digest=digests[s.name]) for s in snapshot.manifest.weights]
    return snapshot.written(weights), {s.name: weight_map[s.name] for s in weights}


def _reserve(path: Path, kept: Kept | None) -> None:
    """An empty file, from which the shard takes its rights over before a byte is in it."""
    if kept is not None:
        with path.open("xb") as file:
            hand_over(kept, file.fileno(), path)


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
    described = json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=1).encode()
    safetensors.refuse_long(described, manifest)
    return described
