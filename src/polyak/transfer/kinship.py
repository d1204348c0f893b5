"""Which names of two sides belong together: what words, numbers and order tell, and nothing that one of them denies.

A hint is followed to the letter, and a wrong pair of one shape is moved and verified like a right one. So a pair counts
only if each of its names is nearer to the other than to any that could take its place, and if all of their words say
so, or the order does. Where names leave it open, there is no pair.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from polyak.transfer.match import local_name
from polyak.weights import Weight

_ALIKE = 0.65  # from here on two words of one first letter are taken for one that was changed, in [0, 1]
_MANY = 40_000  # pairs of names of one shape and number; to compare more would take seconds
_PARTS = re.compile(r"[^\W\d_]+|\d+")
# What frameworks call the same weight of a layer; a weight is a matrix, or the scale of a norm.
_SAME = (
    {"kernel", "weight", "w", "embedding", "embeddings"},
    {"scale", "gamma", "weight", "w"},
    {"bias", "beta", "b", "offset"},
    {"mean", "moving_mean", "running_mean"},
    {"var", "variance", "moving_variance", "moving_var", "running_var", "running_variance"},
)

_Ranked = Sequence[tuple[float, str]]  # names by how near they are, the nearest first


@dataclass(frozen=True, slots=True)
class _Name:
    """What a name tells beside the others of its side."""

    last: str
    words: tuple[str, ...]
    numbers: tuple[int, ...]


def partners(ours: Mapping[str, Weight], theirs: Mapping[str, Weight]) -> dict[str, str]:
    """Names of ours and those of theirs that they belong to, among weights that could take each other's place.

    Args:
        ours, theirs: names in their order, each with its weight; a name of a layer ends in a slash, and has any of its
            weights.

    Example:
        >>> from polyak.weights import Kind
        >>> side = lambda *names: {n: Weight(n, (4,), "float32", Kind.TRAINABLE) for n in names}
        >>> partners(side("norm/gamma", "norm/beta"), side("norm/bias", "norm/scale"))
        {'norm/gamma': 'norm/scale', 'norm/beta': 'norm/bias'}
        >>> partners(side("first", "second"), side("decoder", "encoder"))
        {}
    """
    told = by_names(list(ours), list(theirs))
    if told is None:
        return {}
    placed = dict(zip(ours, theirs, strict=True)) if len(ours) == len(theirs) else {}
    if placed and in_own_order(ours) and in_own_order(theirs) and not denied(placed, told):
        return placed
    mine, other = _read(list(ours), list(theirs))
    return {a: b for a, b in told.items() if placed.get(a) == b or _ends_as(a, b) or _all_words_told(mine[a], other[b])}


def by_names(ours: Sequence[str], theirs: Sequence[str]) -> dict[str, str] | None:
    """Pairs of names that are nearer to each other than to any other; of two that are left over, that they are so.

    None where there are too many to be compared.
    """
    mine, other = _read(ours, theirs)
    counted, among = _by_numbers(mine), _by_numbers(other)
    if sum(len(left) * len(among.get(numbers, ())) for numbers, left in counted.items()) > _MANY:
        return None
    told: dict[str, str] = {}
    for numbers, left in counted.items():
        rest = among.get(numbers, [])
        told |= _nearest(left, rest, {(a, b): _nearness(mine[a], other[b]) for a in left for b in rest})
    return {a: told[a] for a in ours if a in told}


def _by_numbers(side: Mapping[str, _Name]) -> dict[tuple[int, ...], list[str]]:
    found: dict[tuple[int, ...], list[str]] = {}
    for n, name in side.items():
        found.setdefault(name.numbers, []).append(n)
    return found


def _nearest(ours: Sequence[str], theirs: Sequence[str], near: Mapping[tuple[str, str], float]) -> dict[str, str]:
    mine = {a: sorted(((near[a, b], b) for b in theirs), reverse=True) for a in ours}
    other = {b: sorted(((near[a, b], a) for a in ours), reverse=True) for b in theirs}
    told: dict[str, str] = {}
    while pairs := _mutual(mine, other):
        told |= pairs
        for a, b in pairs.items():
            del mine[a], other[b]
    if len(mine) == len(other) == 1:
        told |= {a: b for a in mine for b in other if near[a, b] >= 0}
    return told


def denied(pairs: Mapping[str, str], told: Mapping[str, str] | None) -> bool:
    """Whether names speak against pairs that an order makes: they tell others, or begin as others do.

    Args:
        told: what ``by_names`` gives for them.
    """
    if told is None:
        return True
    back = {b: a for a, b in told.items()}
    if any(told.get(a, b) != b or back.get(b, a) != a for a, b in pairs.items()):
        return True
    mine, other = _read(list(pairs), list(pairs.values()))
    rest = [(mine[a], other[b]) for a, b in pairs.items() if a not in told]
    begun = set().union(*(_initials(b) for _, b in rest))
    return any(not _same_role(a, b) or (begun & _initials(a) and not _initials(a) & _initials(b)) for a, b in rest)


def in_own_order(side: Mapping[str, Weight]) -> bool:
    """Whether the order of names is that of the layers, and not the alphabet's: so many files are, and a tf.Module."""
    names = list(side)
    if len(set(map(without_numbers, names))) == 1:
        return _numbers(names) == sorted(_numbers(names))
    return names != sorted(names) or all(_of_ordered_layers(w) for w in side.values())


def _of_ordered_layers(w: Weight) -> bool:
    """Whether it is of a model that lists its layers as they were made: a module of PyTorch, or a Keras model."""
    return w.evidence is not None and w.evidence.position >= 0 and ("." in w.path or bool(w.evidence.saved))


def without_numbers(name: str) -> str:
    """A name by its words alone.

    Example:
        >>> without_numbers("net/dense/kernel") == without_numbers("net/dense_2/kernel")
        True
    """
    return "/".join(" ".join(w for w in _PARTS.findall(step) if not w.isdecimal()) for step in re.split("[/.]", name))


def _words(names: Sequence[str]) -> list[list[str]]:
    return [[part.lower() for part in _PARTS.findall(n) if not part.isdecimal()] for n in names]


def _numbers(names: Sequence[str]) -> list[tuple[int, ...]]:
    return [tuple(int(part) for part in _PARTS.findall(n) if part.isdecimal()) for n in names]


def _read(ours: Sequence[str], theirs: Sequence[str]) -> tuple[dict[str, _Name], dict[str, _Name]]:
    """Names by what sets each apart on its side; numbers only where both sides count alike."""
    counted = set(_numbers(ours)) == set(_numbers(theirs))
    return _side(ours, counted), _side(theirs, counted)


def _side(names: Sequence[str], counted: bool) -> dict[str, _Name]:
    words = _words(names)
    shared = set.intersection(*map(set, words)) if len(names) > 1 else set()
    numbers = _numbers(names) if counted else [()] * len(names)
    return {
        n: _Name(local_name(n), tuple(w for w in own if w not in shared), count)
        for n, own, count in zip(names, words, numbers, strict=True)
    }


def _nearness(a: _Name, b: _Name) -> float:
    """How near two names with the same numbers are; 0 where they tell nothing, less where one denies the other."""
    if _clash(a.last, b.last):
        return -1.0
    return _in_common(a.words, b.words) + bool(a.numbers) + _same_role(a, b) / 2


def _in_common(ours: tuple[str, ...], theirs: tuple[str, ...]) -> float:
    if not ours or not theirs:
        return 0.0
    found = sum(max(_alike(a, b) for b in theirs) for a in ours) + sum(max(_alike(a, b) for a in ours) for b in theirs)
    return found / (len(ours) + len(theirs))


@lru_cache(4096)
def _alike(one: str, other: str) -> float:
    """How alike two words are: one begins as the other, holds it but for little, or is it with other letters."""
    if one == other:
        return 1.0
    if one.startswith(other) or other.startswith(one):
        return 0.8
    near = one[0] == other[0] or one in other or other in one
    likeness = difflib.SequenceMatcher(None, one, other).ratio() if near else 0.0
    return 0.7 * likeness if likeness >= _ALIKE else 0.0


def _ends_as(one: str, other: str) -> bool:
    """Whether one name is the other below more steps."""
    ours, theirs = (f"/{name.replace('.', '/')}" for name in (one, other))
    return ours.endswith(theirs) or theirs.endswith(ours)


def _all_words_told(a: _Name, b: _Name) -> bool:
    """Whether each word of either name is one of the other, shortened, or what another framework calls it: of
    ``attention_norm`` and ``post_attention_norm`` it is not, which stand before and after.
    """
    return all(any(_means(x, y) for y in b.words) for x in a.words) and all(
        any(_means(x, y) for x in a.words) for y in b.words
    )


def _means(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one) or bool(_roles(one) & _roles(other))


def _initials(name: _Name) -> set[str]:
    return {word[0] for word in name.words}


def _roles(last: str) -> set[int]:
    return {i for i, names in enumerate(_SAME) if last in names}


def _same_role(a: _Name, b: _Name) -> bool:
    """Whether two names are called alike within their layers, as far as frameworks do."""
    return a.last == b.last or bool(_roles(a.last) & _roles(b.last))


def _clash(one: str, other: str) -> bool:
    """Whether two names within a layer are known for different weights."""
    return bool(one != other and _roles(one) and _roles(other) and not _roles(one) & _roles(other))


def _mutual(ours: Mapping[str, _Ranked], theirs: Mapping[str, _Ranked]) -> dict[str, str]:
    """Names that are each the first of the other, of those that are left."""
    first = {a: b for a, ranked in ours.items() if (b := _first(ranked, theirs))}
    return {a: b for a, b in first.items() if _first(theirs[b], ours) == a}


def _first(ranked: _Ranked, left: Container[str]) -> str | None:
    """The one that is nearest, and nearer than any other, of those that are left."""
    best = list(islice((found for found in ranked if found[1] in left), 2))
    if not best or best[0][0] <= 0 or (len(best) > 1 and best[0][0] == best[1][0]):
        return None
    return best[0][1]
