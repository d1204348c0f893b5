"""Contents: what a file holds, before anybody says what it means. Formats make it, dialects read it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from polyak.manifest import Manifest
from polyak.snapshot import Array

# Of keys such as 1 and "1", or "a/b" and "b" within "a", which the tool that wrote them tells from each other.
SAME_PATH = "two keys of the file are both written {path!r}: load it with its own tool, and save it with other keys"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One stored array: shape in elements, dtype by name, and how to read it.

    ``measure`` computes what ``manifest.digest`` says of the array, and holds little of it; None where nothing can.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Array]
    measure: Callable[[], str] | None = None


@dataclass(frozen=True, slots=True)
class Slot:
    """A variable that an optimizer keeps beside a weight: its own key, the weight's key, the slot's name."""

    key: str
    weight: str
    name: str


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything that a format can say of a file.

    Attributes:
        origin: what errors call the file.
        format: name of the format.
        tensors: the arrays under the names that they are stored by.
        integrity: how the bytes are protected.
        manifest: polyak's own description, if there is one.
        texts: stored strings, each with a function that reads it.
        paths: for formats with an object graph: all paths in it that lead to a key, the shortest first.
        names: what the root of an object graph calls its children.
        full_names: the variable's own name, where the format stores it.
        slots: optimizer variables, where the format tells.
        facts: plain values (numbers, text, truth values) that lie beside the arrays, by their path in the file.
        unread: what an array is that is not read, by its path.
        beside: what else lies there that is no weight and nobody takes, by its path.
    """

    origin: str
    format: str
    tensors: Mapping[str, Tensor]
    integrity: str = "none"
    manifest: Manifest | None = None
    texts: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)
    paths: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    names: frozenset[str] = frozenset()
    full_names: Mapping[str, str] = field(default_factory=dict)
    slots: tuple[Slot, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[str, str] = field(default_factory=dict)


def plain(facts: Mapping[str, object]) -> dict[str, str]:
    """What plain values are, in words.

    Example:
        >>> plain({"epoch": 3, "run": "a", "done": True})
        {'epoch': 'a number', 'run': 'a text', 'done': 'a truth value'}
    """
    return {name: _sort(value) for name, value in facts.items()}


def json_object(text: str | bytes) -> dict[str, Any]:
    """An object of JSON as Python's tools write it: with NaN and Infinity, which JSON has not. Raises ValueError.

    Example:
        >>> json_object('{"limits": [0, Infinity]}')
        {'limits': [0, inf]}
    """
    try:
        held = json.loads(text)
    except RecursionError as error:
        raise ValueError("too deep") from error
    if not isinstance(held, dict):
        raise ValueError("expected an object")
    return held


def _sort(value: object) -> str:
    if isinstance(value, bool):
        return "a truth value"
    return "a text" if isinstance(value, str) else "a number"
