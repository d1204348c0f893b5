"""Which files may be read for a path: those in a directory, an index's shards, the parts of a TensorFlow checkpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

from polyak.contents import json_object
from polyak.files.limits import MOST_HEADER

# The ends of names that TensorFlow gives to the parts of one checkpoint.
_PART = re.compile(r"(?:\.index|\.data-\d{5}-of-\d{5}|-(?:\d{5}|\?{5})-of-\d{5})$")
_ALONE = (".npz", ".npy", ".pt", ".pth", ".h5", ".keras")  # of files that no directory is read from


def is_part(file: Path, whole: Path) -> bool:
    """Whether a file may be read where another path is. No weights are looked at, so it is rather said once too often.

    Raises:
        ValueError: a path is none.
    """
    places = _places(file)
    if whole.is_dir():
        return file.suffix not in _ALONE and (_lies_in(places, whole) or not places.isdisjoint(_led_to(whole)))
    return not places.isdisjoint(_shards(whole)) or not _checkpoints(places).isdisjoint(_checkpoints(_places(whole)))


def _places(path: Path) -> set[Path]:
    """Where a path lies, and where it leads."""
    return {Path(os.path.realpath(path)), Path(os.path.realpath(path.parent), path.name)}


def _lies_in(places: set[Path], directory: Path) -> bool:
    return any(place.is_relative_to(os.path.realpath(directory)) for place in places)


def _led_to(directory: Path) -> Iterator[Path]:
    """What the names in a directory lead to."""
    with suppress(OSError):  # what cannot be listed is not read
        yield from (Path(os.path.realpath(entry)) for entry in directory.iterdir())


def _shards(index: Path) -> Iterator[Path]:
    """The files that an index names, beside it or beside what it leads to; none where it is no index."""
    with suppress(OSError, ValueError):
        if index.suffix == ".json" and index.stat().st_size <= MOST_HEADER:
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
