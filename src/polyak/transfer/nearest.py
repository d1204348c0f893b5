"""Names that are near: what an error offers in the place of a weight that is missing."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product, takewhile

from polyak.transfer.kinship import partners
from polyak.transfer.match import local_name
from polyak.weights import Weight

# From here on two names are taken for one that was changed, in [0, 1].
_ALIKE = 0.6
_STEP = re.compile(r"[^/.]*[/.]")
_PLACE = re.compile(r"(?<![^/.])(\d+)[/.]")  # in a list


def nearest(weight: Weight, candidates: Sequence[Weight]) -> Weight | None:
    """The candidate of the same shape at the most similar path, or the most similar path of any shape."""
    same_shape = [c for c in candidates if c.shape == weight.shape]
    # Counters and the like are all of one shape.
    for pool, cutoff in ((same_shape, 0.0 if weight.size > 1 else _ALIKE), (candidates, _ALIKE)):
        close = difflib.get_close_matches(weight.path, [c.path for c in pool], 1, cutoff)
        if close:
            return next(c for c in pool if c.path == close[0])
    return None


def partner(first: Weight, missing: Sequence[Weight], unexpected: Sequence[Weight]) -> Weight | None:
    """The weight of that shape that the first of those missing is, where its name, its shape or the order tells."""
    alike, ours = ({w.path: w for w in weights if w.shape == first.shape} for weights in (unexpected, missing))
    if first.size <= 1:  # counters and the like are all of one shape
        own = local_name(first.path)
        alike, ours = ({p: w for p, w in side.items() if local_name(p) == own} for side in (alike, ours))
    known = {w.path: w.shape for w in unexpected}
    if start := beneath(first, missing, known):
        return next(w for w in unexpected if w.path == first.path.removeprefix(start))
    starts = {found: w for w in alike.values() if (found := prefixes(w.path, first.path, missing, known))}
    if len(starts) == 1:
        return next(iter(starts.values()))
    return alike.get(partners(ours, alike).get(first.path, ""))


def beneath(first: Weight, missing: Sequence[Weight], known: Mapping[str, tuple[int, ...]]) -> str:
    """The part of the target in which all that is missing has the source's own names, as ``functional/``; else nothing.

    Elsewhere, as in a new head, more may be missing, but nothing that ends in one of these names.
    """
    starts = (first.path[: step.end()] for step in _STEP.finditer(first.path))
    return next((start for start in starts if _holds_all(start, missing, known)), "")


def _holds_all(start: str, missing: Sequence[Weight], known: Mapping[str, tuple[int, ...]]) -> bool:
    inner = {w.path.removeprefix(start): w.shape for w in missing if w.path.startswith(start)}
    others = [w.path for w in missing if not w.path.startswith(start)]
    if len(inner) < 2 or any(known.get(name) != shape for name, shape in inner.items()):
        return False
    ends = tuple(f"/{name}" for name in inner)
    return not any(path.endswith(ends) for path in others)


def prefixes(
    old: str, new: str, missing: Sequence[Weight], known: Mapping[str, tuple[int, ...]]
) -> tuple[str, str] | None:
    """Globs that pair all that is missing, if its names differ from the source's in their first steps alone.

    ``known`` has the source's names without a partner, and their shapes.
    """
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(reversed(old), reversed(new), strict=False)))
    before, after = (name[: len(name) - same] for name in (old, new))
    if not all(start == "" or start.endswith(("/", ".")) for start in (before, after)):
        step = _STEP.match(old[len(before) :])  # the rest of the step in which they differ
        before, after = (start + (step.group() if step else "") for start in (before, after))
    pair_all = all(w.path.startswith(after) and known.get(before + w.path[len(after) :]) == w.shape for w in missing)
    return (f"{before}*", f"{after}*") if pair_all and len(missing) > 1 else None


def in_order(
    missing: Sequence[Weight], near: str, ours: Sequence[Weight], theirs: Sequence[Weight]
) -> dict[str, str] | None:
    """Globs that pair the places in lists in their order, where numbers alone would pair others.

    Empty where what is at the places differs, so that their order tells nothing either; None where no list is met.
    """
    lists = {start: start for start in _shifted(missing, ours, theirs)}
    lists |= dict(_met(missing[0].path, near, ours, theirs))
    found: dict[str, str] = {}
    for after, before in lists.items():
        new, old = _places(after, ours), _places(before, theirs)
        if _indices(after) != _indices(before) or list(new.values()) != list(old.values()):
            return {}
        found |= {f"{before}{o}*": f"{after}{n}*" for o, n in zip(old, new, strict=True) if before + o != after + n}
    return found if lists else None


def _shifted(missing: Sequence[Weight], ours: Sequence[Weight], theirs: Sequence[Weight]) -> list[str]:
    """The outermost lists around weights in which the two sides have weights at other places."""
    found: list[str] = []
    for start in sorted({w.path[: place.start()] for w in missing for place in _PLACE.finditer(w.path)}):
        old = None if start.startswith(tuple(found)) else _places(start, theirs)
        if old and list(old) != list(_places(start, ours)):
            found.append(start)
    return found


def _met(path: str, near: str, ours: Sequence[Weight], theirs: Sequence[Weight]) -> Iterator[tuple[str, str]]:
    """Lists in which two names that are to be paired have other numbers, or that have weights at other places."""
    for own, other in product(_PLACE.finditer(path), _PLACE.finditer(near)):
        after, before = path[: own.start()], near[: other.start()]
        if after == before:
            differ = own[1] != other[1]
        else:
            alike = path[own.end() :] == near[other.end() :]
            differ = alike and (own[1] != other[1] or list(_places(after, ours)) != list(_places(before, theirs)))
        if differ:
            yield after, before


def _places(start: str, weights: Sequence[Weight]) -> dict[str, dict[str, tuple[int, ...]]]:
    """The places of a list, in their order, and the shapes there."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for w in weights:
        if w.path.startswith(start) and (place := _PLACE.match(w.path, len(start))):
            found.setdefault(place.group(), {})[w.path[place.end() :]] = w.shape
    return dict(sorted(found.items(), key=lambda item: int(item[0][:-1])))


def _indices(start: str) -> list[str]:
    return [place[1] for place in _PLACE.finditer(start)]
