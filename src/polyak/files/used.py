"""Which files may be read for a path: those in a directory, an index's shards, the parts of a TensorFlow checkpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

from polyak.contents import json_object
from polyak.errors import FileError
from polyak.files.limits import MOST_HEADER

# The ends of names that TensorFlow gives to the parts of one checkpoint.
_PART = re.compile(r"(?:\.index|\.data-\d{5}-of-\d{5}|-(?:\d{5}|\?{5})-of-\d{5})$")
_CONFIG = "config.json"
_WEIGHTS = re.compile(r"(model|pytorch_model|diffusion_pytorch_model)(\.\w+)?\.(safetensors|bin)")
# What is read of a directory by its name: a model's folder, an index and shards, TensorFlow's files and PyTorch's.
_READ = re.compile(
    rf"{re.escape(_CONFIG)}|{_WEIGHTS.pattern}|checkpoint|.*\.index(\.json)?|.*\.weights\.json|.*\d{{5}}-of-\d{{5}}.*|"
    r"saved_model\.pb.*|fingerprint\.pb|variables|\.metadata|.*\.distcp"
)
_INDEX = (".index.json", ".weights.json")
# What lies in a directory that is one tree of arrays, all of which is its own.
_TREE = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "_sharding")


def refuse_part(path: str, source: str) -> None:
    """Keep what a source is read from: what is there, and the names of what would be read if it were there.

    Raises:
        FileError: the path is a part of the source, or the source of it.
    """
    if is_part(Path(path), Path(source)):
        said = f"it is a part of {source!r}, which is one of the sources"
    elif is_part(Path(source), Path(path)):
        said = f"the source {source!r} is a part of it"
    else:
        return
    raise FileError(f"file {path!r}: {said}", hint="give the result another name")


def is_part(file: Path, whole: Path) -> bool:
    """Whether a file may be read where another path is, by their names; of an index also by what it says.

    Raises:
        ValueError: a path is none.
    """
    places = _places(file)
    if _is_directory(whole):
        return any(_is_read(place, whole) for place in places) or not places.isdisjoint(_led_to(whole))
    if file.name == _CONFIG and _WEIGHTS.fullmatch(whole.name) and _places(whole.parent) & _places(file.parent):
        return True  # it says what the weights beside it are
    return not places.isdisjoint(_shards(whole)) or not _checkpoints(places).isdisjoint(_checkpoints(_places(whole)))


def is_tree(directory: Path) -> bool:
    """Whether a directory as a whole is one tree of arrays, as Orbax writes it."""
    with suppress(OSError):
        return any((directory / mark).exists() for mark in _TREE)
    return False


def _is_directory(path: Path) -> bool:
    """False, too, where nobody can look: the name is too long, or the place out of reach. Who writes there says so."""
    with suppress(OSError):
        return path.is_dir()
    return False


def _places(path: Path) -> set[Path]:
    """Where a path lies, and where it leads."""
    return {Path(os.path.realpath(path)), Path(os.path.realpath(path.parent), path.name)}


def _is_read(place: Path, directory: Path) -> bool:
    top = Path(os.path.realpath(directory))
    if place == top or not place.is_relative_to(top):
        return place == top
    above = [p for p in place.parents if p.is_relative_to(top)]
    return bool(_READ.fullmatch(place.relative_to(top).parts[0])) or any(map(is_tree, above))


def _led_to(directory: Path) -> Iterator[Path]:
    """Where links in a directory lead to, under names that are read."""
    with suppress(OSError), os.scandir(directory) as entries:  # what cannot be listed is not read
        for entry in entries:
            if entry.is_symlink() and _READ.fullmatch(entry.name):
                yield Path(os.path.realpath(entry.path))


def _shards(index: Path) -> Iterator[Path]:
    """The files that an index names, beside it or beside what it leads to; none where it is no index."""
    with suppress(OSError, ValueError):
        if index.name.endswith(_INDEX) and index.stat().st_size <= MOST_HEADER:
            homes = (index.parent, Path(os.path.realpath(index)).parent)
            for name in _named(json_object(index.read_bytes()).get("weight_map")):
                yield from chain.from_iterable(_places(home / name) for home in homes)


def _named(weight_map: object) -> set[str]:
    """One file for each weight, as the Hub has it, or a list of files, as Keras has it."""
    values = weight_map.values() if isinstance(weight_map, dict) else ()
    named = chain.from_iterable(value if isinstance(value, list) else [value] for value in values)
    return {name for name in named if isinstance(name, str)}


def _checkpoints(places: set[Path]) -> set[Path]:
    """The prefixes of the checkpoints that paths would be parts of."""
    return {place.with_name(_PART.sub("", place.name)) for place in places if place.name}
