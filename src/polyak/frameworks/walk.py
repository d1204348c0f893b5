"""The walk: every variable of a nest of layers, with its structural path and the evidence beside it.

A framework says what an object's own variables and its children are. The walk goes breadth first,
so that a weight reached in several ways gets its shortest path, and the alphabetically first of those.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyak.weights import Kind


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a path, in each of the four namings (see ``polyak.weights.Evidence``)."""

    path: str
    structure: str
    name: str
    creation: str

    @classmethod
    def named(cls, step: str, name: str | None = None) -> Step:
        """A step that the user named: an attribute or a dictionary key, maybe to a layer with an explicit name."""
        return cls(step, step, name or step, step)

    def __truediv__(self, inner: Step) -> Step:
        return Step(
            _join(self.path, inner.path),
            _join(self.structure, inner.structure),
            _join(self.name, inner.name),
            _join(self.creation, inner.creation),
        )


ROOT = Step("", "", "", "")


@dataclass(frozen=True, slots=True)
class Own:
    """A variable that an object itself owns, by its local name, ``within`` something that is no object of the walk."""

    local: str
    variable: Any
    kind: Kind
    within: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A variable of the nest, the step that leads to it, and the class of its owner."""

    step: Step
    own: Own
    layer: str


@dataclass(frozen=True, slots=True)
class Anatomy:
    """What a framework knows of its objects.

    Attributes:
        own: the variables that an object owns itself.
        children: the steps to the objects within it.
    """

    own: Callable[[Any], Sequence[Own]]
    children: Callable[[Any], Iterable[tuple[Step, Any]]]


def walk(root: object, anatomy: Anatomy) -> Iterator[Found]:
    """Every variable below ``root`` once, breadth first."""
    seen_objects = {id(root)}
    seen_variables: set[int] = set()
    queue: deque[tuple[Step, Any]] = deque([(ROOT, root)])
    while queue:
        step, node = queue.popleft()
        for own in anatomy.own(node):
            if id(own.variable) not in seen_variables:
                seen_variables.add(id(own.variable))
                yield Found(step / Step.named(_join(own.within, own.local)), own, type(node).__name__)
        for inner, child in anatomy.children(node):
            if id(child) not in seen_objects:
                seen_objects.add(id(child))
                queue.append((step / inner, child))


@dataclass(frozen=True, slots=True)
class Sibling:
    """One of several objects that have only their order to tell them apart.

    Attributes:
        key: what the path calls it.
        explicit: the name that the user gave it, or None.
        family: objects of one family are numbered together in the order of creation.
        born: a number that grows with creation, or None.
        owns: whether there are weights in it.
    """

    key: str
    explicit: str | None
    family: str
    born: int | None
    owns: bool


def steps(siblings: Sequence[Sibling]) -> list[Step]:
    """The steps to siblings: by key, by index among those that own weights, by name, by rank of creation."""
    order = iter(range(len(siblings)))
    ordinals = [f"#{next(order)}" if s.owns else s.key for s in siblings]
    ranks = _ranks(siblings)
    return [
        Step(s.key, s.explicit if s.explicit == s.key else ordinal, s.explicit or f"~{s.key}", s.explicit or rank)
        for s, ordinal, rank in zip(siblings, ordinals, ranks, strict=True)
    ]


def numbered(families: Sequence[str], taken: Iterable[str] = ()) -> list[str]:
    """Names for unnamed siblings: the family, then family_1, family_2 ...

    Example:
        >>> numbered(["dense", "dense", "conv2d"], taken=["dense_1"])
        ['dense', 'dense_2', 'conv2d']
    """
    used = set(taken)
    counts: Counter[str] = Counter()
    names = []
    for family in families:
        name = _candidate(family, counts)
        while name in used:
            name = _candidate(family, counts)
        used.add(name)
        names.append(name)
    return names


def _candidate(family: str, counts: Counter[str]) -> str:
    counts[family] += 1
    return family if counts[family] == 1 else f"{family}_{counts[family] - 1}"


def _ranks(siblings: Sequence[Sibling]) -> list[str]:
    """Family and rank of birth; the key itself where the birth is not known."""
    kin: dict[str, list[int]] = {}
    for born, family in sorted((s.born, s.family) for s in siblings if s.born is not None):
        kin.setdefault(family, []).append(born)
    return [s.key if s.born is None else f"{s.family}~{bisect_left(kin[s.family], s.born)}" for s in siblings]


def called(held: Sequence[tuple[str, str, object]]) -> list[str]:
    """Names for attributes: a private one has its short name where no other object has that, else its own.

    Args:
        held: attribute, short name and value of each.

    Example:
        >>> called([("head", "head", "a"), ("_head", "head", "b"), ("_tail", "tail", "c")])
        ['head', '_head', 'tail']
    """
    times = Counter(short for short, _ in {(short, id(value)) for _, short, value in held})
    return [key if key.startswith("_") and times[short] > 1 else short for key, short, _ in held]


def entries(container: object) -> list[tuple[str, Any]] | None:
    """What a list, tuple or dictionary holds, with the step to each; None for what is no container.

    Example:
        >>> entries(["a"]), entries({3: "b"}), entries("ab")
        ([('0', 'a')], [('3', 'b')], None)
    """
    if isinstance(container, Mapping):
        return [(str(key), value) for key, value in container.items()]
    if isinstance(container, (list, tuple)):
        return [(str(i), value) for i, value in enumerate(container)]
    return None


def leaves(key: str, value: object, above: frozenset[int] = frozenset()) -> Iterator[tuple[str, Any]]:
    """What nested lists, tuples and dictionaries hold, by path; a container that holds itself is gone into once."""
    held = entries(value)
    if held is None:
        yield key, value
    elif id(value) not in above:
        for step, inner in held:
            yield from leaves(f"{key}/{step}", inner, above | {id(value)})


def _join(outer: str, inner: str) -> str:
    return f"{outer}/{inner}" if outer else inner
