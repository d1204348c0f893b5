"""What the order of layers in a file tells: that of a model, unless it is the alphabet's.

Trees of JAX and safetensors are written sorted by name, so that ``Dense_10`` comes before ``Dense_2``, and ``decoder``
before ``encoder``. Numbers in names tell the order of layers that are called alike; nothing does for other names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from polyak.errors import AmbiguousMatch
from polyak.transfer.layout_blocks import Block, normal

BY_NAME = "name the pairs with rename=, from layers of the source to layers of the target"
_NUMBER = re.compile(r"(\d+)")
_NUMBERED = re.compile(r"_?\d+")


def in_order(layers: Sequence[Block]) -> list[Block]:
    """Layers in the order of the model: those of a file that sorts names by the alphabet, by their numbers.

    Example:
        >>> [b.path for b in in_order([Block(name, "", {}) for name in ("Dense_1", "Dense_10", "Dense_2")])]
        ['Dense_1', 'Dense_2', 'Dense_10']
    """
    return sorted(layers, key=lambda b: _natural(b.path)) if _is_sorted(layers) else list(layers)


def untold(layers: Sequence[Block], kept: Sequence[Block] | None = None) -> tuple[Block, Block] | None:
    """Two layers of the same shapes of which nothing but the alphabet says which is the first.

    Args:
        kept: those that are meant, if not all are.

    Example:
        >>> found = untold([Block(name, "", {}) for name in ("decoder", "encoder")])
        >>> [b.path for b in found]
        ['decoder', 'encoder']
    """
    if not _is_sorted(layers):
        return None
    first: dict[tuple[tuple[int, ...], ...], Block] = {}
    for b in layers if kept is None else kept:
        other = first.setdefault(tuple(sorted(b.shapes.values())), b)
        if _stem(other) != _stem(b):
            return other, b
    return None


def told_order(layers: Sequence[Block], kept: Sequence[Block], where: str) -> list[Block]:
    """The layers that are meant in the order of the model. Raises AmbiguousMatch where only the alphabet tells it."""
    if found := untold(layers, kept):
        first, second = found
        raise AmbiguousMatch(
            f'by="position": {where} has its layers in the order of the alphabet, which does not tell whether {first} '
            f"or {second} is the first of the two; both have the same shapes",
            hint=BY_NAME,
        )
    places = {b.path: n for n, b in enumerate(in_order(layers))}
    return sorted(kept, key=lambda b: places[b.path])


def _is_sorted(layers: Sequence[Block]) -> bool:
    """Whether names are in the order of the alphabet, and no live model says that this is its own order."""
    if any(w.evidence for b in layers for w in b.weights.values()):
        return False
    paths = [b.path for b in layers]
    return paths == sorted(paths) or paths == sorted(paths, key=lambda path: normal(path).split("/"))


def _natural(path: str) -> list[list[str | int]]:
    return [[int(s) if s.isdecimal() else s for s in _NUMBER.split(step)] for step in normal(path).split("/")]


def _stem(block: Block) -> str:
    return _NUMBERED.sub("", block.name)
