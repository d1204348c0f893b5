"""Names of other tools, brought to the form of a live model's, where that can be done in one way only.

TF1 and Keras 2 number layers through a whole process (``dense_7/kernel:0``), put a scope before all names, and call
the inside of some layers otherwise. Each way to compare such names with a model's is a small reading; a reading counts
only if it gives every weight exactly one partner of its own shape. Two readings that pair differently are an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from polyak.errors import AmbiguousMatch, argument
from polyak.weights import Kind, Weight

Pairs = dict[str, str]
_NUMBERED = re.compile(r"(.*?)(?:_(\d{1,9}))?", re.DOTALL)
_UNKNOWN = re.compile(r"layer_with_weights-\d{1,9}")
_DEEPEST_SCOPE = 3
# The inside of recurrent layers by automatic names, and what it is called everywhere; the layers of an attention by the
# attributes that hold them, and their names.
_INSIDE = (
    (re.compile(r"(?:lstm|gru|simple_rnn)_cell(?:_\d{1,9})?"), "cell"),
    (re.compile(r"(forward|backward)_(?:lstm|gru|simple_rnn)(?:_\d{1,9})?"), r"\1_layer"),
    (re.compile(r"(query|key|value)_dense"), r"\1"),
    (re.compile(r"output_dense"), "attention_output"),
)


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to compare names: a key for each weight of either side, and what errors call it."""

    word: str
    source: Callable[[Weight], str | None]
    target: Callable[[Weight], str | None]


def foreign(source: Sequence[Weight]) -> bool:
    """Whether another tool chose the names: none of the weights says which class of layer owns it."""
    return all(w.evidence is None or not w.evidence.layer for w in source)


def renamed(source: Sequence[Weight], target: Sequence[Weight], where: str) -> Pairs | None:
    """Source path to target path where all weights but random seeds pair in exactly one way; None where in no way.

    Raises:
        AmbiguousMatch: two readings pair all weights, and not alike.

    Example:
        >>> from polyak.weights import Evidence
        >>> def live(path, name, creation):
        ...     evidence = Evidence("", name, creation, "Dense", "kernel", 0, "float32")
        ...     return Weight(path, (2,), "float32", Kind.TRAINABLE, evidence)
        >>> source = [Weight(f"net/dense_{i}/kernel", (2,), "float32", Kind.TRAINABLE) for i in (7, 12)]
        >>> target = [live("dense/kernel", "~dense/kernel", "dense~0/kernel")]
        >>> target += [live("dense_1/kernel", "~dense_1/kernel", "dense~1/kernel")]
        >>> renamed(source, target, "a.ckpt")
        {'net/dense_7/kernel': 'dense/kernel', 'net/dense_12/kernel': 'dense_1/kernel'}
    """
    ours = [w for w in target if w.kind is not Kind.SEED]
    theirs = [w for w in source if w.kind is not Kind.SEED]
    if len(ours) != len(theirs) or not ours:
        return None
    found: dict[str, Pairs] = {}
    for reading in _readings(theirs, ours):
        pairs = _paired(reading, theirs, ours)
        if pairs is not None:
            found.setdefault(reading.word, pairs)
    _refuse_two(found, ours, where)
    return next(iter(found.values()), None)


def _paired(reading: Reading, source: Sequence[Weight], target: Sequence[Weight]) -> Pairs | None:
    held = _keyed(source, reading.source)
    wanted = _keyed(target, reading.target)
    if held is None or wanted is None or held.keys() != wanted.keys():
        return None
    if any(held[key].shape != wanted[key].shape for key in wanted):
        return None
    return {held[key].path: wanted[key].path for key in wanted}


def _keyed(weights: Sequence[Weight], key: Callable[[Weight], str | None]) -> dict[str, Weight] | None:
    """None where a weight has no key or two have one."""
    keys = {k: w for w in weights if (k := key(w)) is not None}
    return keys if len(keys) == len(weights) else None


def _refuse_two(found: Mapping[str, Pairs], target: Sequence[Weight], where: str) -> None:
    for first, pairs in found.items():
        for other, others in found.items():
            if pairs != others:
                one, two = ({new: old for old, new in p.items()} for p in (pairs, others))
                path = next(w.path for w in target if one[w.path] != two[w.path])
                raise AmbiguousMatch(
                    f"weight {path!r}: expected one source, received two from {where}: {one[path]!r} by {first} and "
                    f"{two[path]!r} by {other}",
                    hint=f"name the pairs with rename=, for example {argument('rename', {one[path]: path})}",
                )


def _readings(source: Sequence[Weight], target: Sequence[Weight]) -> Iterator[Reading]:
    """The order of numbers is that of creation; a model of the same code numbers its layers in its own order, too."""
    automatic, explicit = _automatic(target), _explicit(target)
    for scope in _scopes(source, target) if not _could_be_automatic(source, explicit) else ():
        names = _renumbered([(w, _plain(_name(w))[scope:]) for w in source], automatic, explicit)
        yield Reading("order of the layers' numbers", _looked_up(names), _by_creation)
        yield Reading("order of the layers", _looked_up(names), _by_name)
    if any(_UNKNOWN.match(w.path) for w in source):
        yield Reading("order of the layers", _unnamed_source, _structure)
    yield Reading("class and shape", _sort_of_source, _sort_of_target)


def _looked_up(names: Mapping[str, str]) -> Callable[[Weight], str | None]:
    return lambda w: names.get(w.path)


def _name(w: Weight) -> str:
    """What the other tool calls the weight."""
    return (w.evidence and w.evidence.name) or w.path


def _plain(path: str) -> list[str]:
    """The steps of a name without what only TensorFlow or Keras 2 put there."""
    steps = [step.lstrip("_") for step in path.removesuffix(":0").split("/")]
    steps = [s for i, s in enumerate(steps) if i == 0 or s != steps[i - 1]]
    return [*map(_inside, steps[:-1]), steps[-1]]


def _inside(step: str) -> str:
    for pattern, word in _INSIDE:
        found = pattern.fullmatch(step)
        if found:
            return found.expand(word)
    return step


def _scopes(source: Sequence[Weight], target: Sequence[Weight]) -> Iterator[int]:
    """How many leading steps all source names may share that no target name begins with."""
    yield 0
    paths = [_plain(_name(w)) for w in source]
    for n in range(1, min(_DEEPEST_SCOPE, min(len(p) for p in paths) - 1) + 1):
        if len({tuple(p[:n]) for p in paths}) > 1 or any(t.path.startswith(f"{paths[0][0]}/") for t in target):
            return
        yield n


def _automatic(target: Sequence[Weight]) -> set[str]:
    """Names without numbers of the steps that the target numbers itself."""
    steps = (s for w in target if w.evidence for s in w.evidence.creation.split("/") if "~" in s)
    return {s.partition("~")[0] for s in steps}


def _could_be_automatic(source: Sequence[Weight], explicit: set[str]) -> bool:
    """Whether a file numbers its layers and the user's names end in numbers: equal names may then be a coincidence."""
    numbered = any((f := _NUMBERED.fullmatch(_inside(step))) and f.group(2) for step in explicit)
    return numbered and any(w.evidence is not None and w.evidence.structure.startswith("#") for w in source)


def _explicit(target: Sequence[Weight]) -> set[str]:
    """Steps that the user named."""
    return {s for w in target if w.evidence for s in w.evidence.name.split("/")[:-1] if not s.startswith("~")}


def _renumbered(
    names: Sequence[tuple[Weight, list[str]]], automatic: set[str], explicit: set[str]
) -> Mapping[str, str]:
    """Names whose automatic numbers are their ranks: ``dense_7`` beside ``dense_12`` is ``dense``, that ``dense_1``."""
    numbers: dict[tuple[tuple[str, ...], str], set[int]] = {}
    for _, steps in names:
        for place, family, number in _numbers(steps, automatic, explicit):
            numbers.setdefault((place, family), set()).add(number)
    ranks = {at: {n: rank for rank, n in enumerate(sorted(held))} for at, held in numbers.items()}
    made = {}
    for w, steps in names:
        known = {
            (*place, family, n): ranks[place, family][n] for place, family, n in _numbers(steps, automatic, explicit)
        }
        made[w.path] = "/".join(_ranked(steps, i, known) for i in range(len(steps)))
    return made


def _numbers(steps: list[str], automatic: set[str], explicit: set[str]) -> Iterator[tuple[tuple[str, ...], str, int]]:
    for i, step in enumerate(steps[:-1]):
        found = _NUMBERED.fullmatch(step)
        if found and found.group(1) in automatic and step not in explicit:
            yield tuple(steps[:i]), found.group(1), int(found.group(2) or 0)


def _ranked(steps: list[str], i: int, known: Mapping[tuple[object, ...], int]) -> str:
    found = _NUMBERED.fullmatch(steps[i])
    assert found is not None
    rank = known.get((*steps[:i], found.group(1), int(found.group(2) or 0)))
    return steps[i] if rank is None or i == len(steps) - 1 else _with_rank(found.group(1), rank)


def _with_rank(family: str, rank: int) -> str:
    return f"{family}_{rank}" if rank else family


def _by_creation(w: Weight) -> str | None:
    """``dense~1/kernel`` as the file would call it."""
    if w.evidence is None:
        return None
    named = w.evidence.name.split("/")
    steps = w.evidence.creation.split("/")
    if len(named) != len(steps):
        return None
    parts = (s.partition("~") for s in steps)
    ranked = (
        _with_rank(f, int(n)) if n.isdecimal() else _inside(old) for (f, _, n), old in zip(parts, named, strict=True)
    )
    return "/".join(ranked)


def _by_name(w: Weight) -> str | None:
    """The path, with the names that the user gave to layers."""
    return None if w.evidence is None else "/".join(_inside(s.removeprefix("~")) for s in w.evidence.name.split("/"))


def _unnamed_source(w: Weight) -> str | None:
    """By order, where a checkpoint of Keras 2 does not name a nested model, and only there."""
    return _structure(w) if w.evidence is not None and w.evidence.structure.startswith("#") else None


def _structure(w: Weight) -> str | None:
    """The order of the layers, and the names without numbers from the layer that owns the weight."""
    if w.evidence is None:
        return None
    order, steps = w.evidence.structure.split("/"), _plain(w.path)
    if len(order) != len(steps):
        return None
    layer = max((i for i, step in enumerate(order) if step.startswith("#")), default=0)
    families = (_NUMBERED.fullmatch(step) for step in steps[layer:])
    return f"{'/'.join(map(_inside, order))} {'/'.join(f.group(1) for f in families if f)}"


def _sort_of_source(w: Weight) -> str | None:
    """The class in an automatic name, the local name and the shape."""
    steps = _plain(w.path)
    found = _NUMBERED.fullmatch(steps[-2]) if len(steps) > 1 else None
    return f"{found.group(1)} {steps[-1]} {w.shape}" if found else None


def _sort_of_target(w: Weight) -> str | None:
    """The same of a live weight in a layer that has no name but an attribute's."""
    if w.evidence is None or not w.evidence.layer or w.evidence.names:
        return None
    return f"{_snake_case(w.evidence.layer)} {w.evidence.local} {w.shape}"


def _snake_case(name: str) -> str:
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
