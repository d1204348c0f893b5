"""Weights that PyTorch computes from others: only those are kept, and a part of a weight is not the weight.

The direction of a weight without its length has its shape, and so has a weight before it is divided by its norm or
masked. What has no more than a similar name and this shape is refused, never offered as the weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from polyak.weights import Weight

_UTILS = "torch.nn.utils"
_NEW = "parametrizations."
# Two endings that tell a way, all of its endings, and the function that ends it.
_WAYS = (
    ("_orig", "_u", ("_orig", "_u", "_v"), "remove_spectral_norm"),
    ("_orig", "_mask", ("_orig", "_mask"), "prune.remove"),
    ("_g", "_v", ("_g", "_v"), "remove_weight_norm"),
)


@dataclass(frozen=True, slots=True)
class Part:
    """What a weight is computed from.

    Attributes:
        plain: the path that the weight itself would have.
        ending: which part it is.
        remove: the function that makes the weight a plain one.
    """

    plain: str
    ending: str
    remove: str


def parts(side: Sequence[Weight]) -> dict[str, Part]:
    """By path, those of a side's weights that others are computed from."""
    held = {w.path: w.shape for w in side}
    new = {path: _parametrised(path) for path in held if _NEW in path}
    return new | {part.plain + part.ending: part for path in held for part in _old(path, held)}


def hint(first: Weight, near: Weight | None, ours: Sequence[Weight], theirs: Sequence[Weight]) -> str:
    """What to do about a weight of ours without a partner that is computed on one side, or on each in its own way.

    Empty where it is the same part on both sides as the nearest of theirs, or none.
    """
    own, other = parts(ours).get(first.path), parts(theirs)
    beside = None if near is None else other.get(near.path)
    alike = next((p for p in other.values() if p.plain == (own.plain if own else first.path)), None)
    part = beside or alike
    if own is None:
        return advice(alike or beside) if part else ""
    if near is not None:
        met = beside is None or (own.ending, own.remove) != (beside.ending, beside.remove)
    else:
        met = alike.remove != own.remove if alike else any(w.path == own.plain for w in theirs)
    return advice(own, part) if met else ""


def advice(*computed: Part | None) -> str:
    """How to make weights plain ones."""
    functions = dict.fromkeys(f"{_UTILS}.{p.remove}(layer, name)" for p in computed if p)
    said = "one side computes this weight from others: make it a plain one first, in its module, with"
    return f"{said} {' and '.join(functions)}"


def _parametrised(path: str) -> Part:
    before, _, rest = path.partition(_NEW)
    name, _, ending = rest.partition(".")
    return Part(before + name, ending, "parametrize.remove_parametrizations")


def _old(path: str, held: dict[str, tuple[int, ...]]) -> Iterator[Part]:
    for one, other, endings, remove in _WAYS:
        plain = path.removesuffix(one)
        if (
            plain != path
            and plain + other in held
            and plain not in held
            and _fits(one, held[path], held[plain + other])
        ):
            yield from (Part(plain, ending, remove) for ending in endings)


def _fits(one: str, length: tuple[int, ...], direction: tuple[int, ...]) -> bool:
    """Whether the shapes are those of a length and a direction, where it is them that two names of one letter mean."""
    alike = not length or len(length) == len(direction)
    return one != "_g" or (alike and all(n in (1, m) for n, m in zip(length, direction, strict=False)))
