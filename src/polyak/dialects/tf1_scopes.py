"""Whose the averages of tf.train.ExponentialMovingAverage are: their names tell, and the scope in which ``apply`` was
called, which TensorFlow puts before them.

Where all names of averages are those of weights, that is what they are of; and where there is one scope without which
all are, they are of these. Some files can be read either way, such as one with the weights of ``pi`` and of ``old/pi``
and with averages that are called ``old/pi``: nothing in them tells whose these are, and none is taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from polyak.contents import Contents

SUFFIX = "/ExponentialMovingAverage"

_Ends = Mapping[str, Mapping[str, str]]  # the weights that names of averages end with, by the scope before; "" is none


@dataclass(frozen=True)
class Averages:
    """Whose the averages of a file are.

    Attributes:
        of: the stored name of each weight's average.
        scoped: those of them whose name begins with a scope of their own.
        alone: the stored names of averages without a raw weight, by the name of what they are an average of; by the
            stored name where that is the name of a weight, and they need not be its average.
        unsure: the weights whose name ends that of an average in ``alone``, by it: each may be its raw one.
    """

    of: Mapping[str, str]
    scoped: tuple[str, ...]
    alone: Mapping[str, str]
    unsure: Mapping[str, tuple[str, ...]]

    @classmethod
    def among(cls, weights: Sequence[str], contents: Contents) -> Averages:
        """Those of a file, given its weights."""
        raw = set(weights)
        by_name = {n.removesuffix(SUFFIX): n for n in contents.tensors if n.endswith(SUFFIX)}
        ends = {name: _read(name, raw) for name in by_name}
        unlike = {(n, s) for n, found in ends.items() for s, w in found.items() if _differ(by_name[n], w, contents)}
        told = _told(ends, raw, unlike)
        of = {weight: by_name[name] for name, weight in told.items()}
        left = {name: stored for name, stored in by_name.items() if name not in told}
        alone = {stored if name in raw else name: stored for name, stored in left.items()}
        may_be = {name: tuple(w for w in ends[name].values() if w not in of) for name in left}
        unsure = {by_name[name] if name in raw else name: found for name, found in may_be.items() if found}
        return cls(of, tuple(sorted(n for n, w in told.items() if n != w)), alone, unsure)

    @cached_property
    def doubtful(self) -> frozenset[str]:
        """Weights each of which may be the raw one of an average that is alone."""
        return frozenset(w for ends in self.unsure.values() for w in ends)

    @cached_property
    def named(self) -> frozenset[str]:
        """Weights that have an average or may have one, and averages that are alone."""
        return frozenset((*self.of, *self.alone, *self.doubtful))

    def is_unsure(self, name: str) -> bool:
        """Whether an average that is alone ends with the name of a weight, which may have another average."""
        return name in self.unsure or any(ends_of(name, {*self.of, *self.doubtful}))


def ends_of(name: str, weights: Collection[str]) -> Iterator[tuple[str, str]]:
    """The weights whose names this one ends with, each by the scope that comes before.

    Example:
        >>> list(ends_of("train/net/w", {"net/w", "train/net/w"}))
        [('train', 'net/w')]
    """
    steps = name.split("/")
    for n in range(1, len(steps)):
        if (end := "/".join(steps[n:])) in weights:
            yield "/".join(steps[:n]), end


def _read(name: str, weights: Collection[str]) -> dict[str, str]:
    return ({"": name} if name in weights else {}) | dict(ends_of(name, weights))


def _differ(average: str, weight: str, contents: Contents) -> bool:
    return contents.tensors[average].shape != contents.tensors[weight].shape


def _told(ends: _Ends, raw: set[str], unlike: Collection[tuple[str, str]]) -> dict[str, str]:
    """The weight of each average of which that is certain.

    Args:
        unlike: averages and scopes without which they have the name of a weight of another shape.
    """
    own = {name for name, found in ends.items() if "" in found}
    fits = [s for s in _common(ends) if not s or not any((name, s) in unlike for name in ends)]
    if not fits:
        return _by_own_names_first(ends, own, raw, unlike)
    if len(fits) > 1:
        return {}
    return {name: name for name in own} if fits == [""] else _within_one_scope(fits[0], ends, own, raw)


def _common(ends: _Ends) -> set[str]:
    """The scopes without which each average has a weight's name, of those that have one at all."""
    found = [set(scopes) for scopes in ends.values() if scopes]
    return set.intersection(*found) if found else set()


def _within_one_scope(scope: str, ends: _Ends, own: Collection[str], raw: set[str]) -> dict[str, str]:
    """All averages by their names within this scope.

    Some may have a weight's name also as they are; they are of that one if it has no other average.
    """
    whole = {name: found[scope] for name, found in ends.items() if found}
    if not _is_of_averages(whole.values(), raw.difference(own)):
        return {}
    others = {name: weight for name, weight in whole.items() if name not in own}
    return whole if {*others.values()}.intersection(own) else others


def _by_own_names_first(
    ends: _Ends, own: Collection[str], raw: set[str], unlike: Collection[tuple[str, str]]
) -> dict[str, str]:
    """Averages that are called as weights are, and all others within one scope; where that could be the scope of one
    of the former as well, it is left open.
    """
    left = {n: {s: w for s, w in ends[n].items() if w not in own} for n in ends if n not in own}
    common = _common(left)
    scope = next(iter(common)) if len(common) == 1 else ""
    scoped = {name: found[scope] for name, found in left.items() if scope in found}
    if any((name, scope) in unlike for name in scoped) or not _is_of_averages(scoped.values(), raw.difference(own)):
        scoped = {}
    taken = {*scoped.values(), *own}
    sure = {n: n for n in own if not scoped or (n, scope) in unlike or ends[n].get(scope, n) in taken}
    return sure | scoped


def _is_of_averages(covered: Iterable[str], weights: Collection[str]) -> bool:
    """Whether a scope is one of averages, and not a network whose raw weights are not in the file: of such a one,
    others have the same weights.
    """
    mine = set(covered)
    return not any(any(ends_of(w, mine)) for w in weights if w not in mine)
