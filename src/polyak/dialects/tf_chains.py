"""Layers that a TensorFlow checkpoint numbers: those of Sequential and functional Keras models.

Keras 3 numbers all layers (``_operations/4``), Keras 2 those that own weights (``layer_with_weights-2``). The paths
made of them are those that polyak gives a live model with automatic layer names. The names that the layers had are
evidence beside them: where a target's explicit names or its order of creation say otherwise, matching refuses.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from polyak.dialects.autonumber import creation_keys
from polyak.dialects.tf_optimizers import GraphPath

Paths = Mapping[str, Sequence[GraphPath]]
Names = Mapping[str, str]
SEED = "seed_generator_state"
_CHAINS = ("_layers", "_operations")
_LINK = re.compile(r"layer_with_weights-(\d{1,9})")


@dataclass(frozen=True, slots=True)
class Step:
    """A weight's path as polyak numbers it, by order of the layers alone, by their own names, by order of creation."""

    path: str
    structure: str
    name: str
    creation: str


@dataclass(frozen=True, slots=True)
class Link:
    """A weight in a chain of Keras 2: what holds the chain, the numbers of the layers, the rest of the path."""

    owner: GraphPath
    numbers: tuple[int, ...]
    rest: GraphPath


def keras3_chain(paths: Paths, full_names: Names) -> Mapping[str, Step]:
    """The weights of the one Keras 3 model with numbered layers; nothing where there are several."""
    layers: dict[int, list[str]] = {}
    owners = set()
    for key, of_key in paths.items():
        path = next((p for p in of_key if len(p) > 2 and p[-3] in _CHAINS and p[-2].isdigit()), None)
        if path is not None and "/" in full_names.get(key, ""):
            layers.setdefault(int(path[-2]), []).append(key)
            owners.add(tuple(step for step in path[:-3] if step != "_functional"))
    if len(owners) != 1:
        return {}
    weighty = {
        i for key, of_key in paths.items() if _local(full_names.get(key, "")) != SEED for i in _links(of_key, *owners)
    }
    order = {i: place for place, i in enumerate(sorted(weighty))}
    return dict(_numbered({order[i]: layers[i] for i in sorted(layers)}, full_names))


def _links(paths: Sequence[GraphPath], owner: GraphPath) -> Iterator[int]:
    """The numbers of the layers of a chain that lead to a variable, however deep it lies in them."""
    for path in paths:
        for depth, (step, number) in enumerate(pairwise(path)):
            above = tuple(s for s in path[:depth] if s != "_functional")
            if step in _CHAINS and number.isdigit() and above == owner:
                yield int(number)


def keras2_chain(paths: Paths, full_names: Names) -> Mapping[str, Step]:
    """The weights of Keras 2 models with numbered layers, models within them included.

    A model within another has no name in the file: its step stays ``layer_with_weights-0``. What holds a chain is a
    part of the path where the file has weights beside that chain.
    """
    links = {key: link for key, of_key in paths.items() if (link := _link(of_key)) is not None}
    made: dict[str, Step] = {}
    for owner in {link.owner: None for link in links.values()}:
        steps = _chain({key: link for key, link in links.items() if link.owner == owner}, full_names)
        made |= steps if _is_alone(owner, paths) else {key: _within(owner, step) for key, step in steps.items()}
    return made


def _chain(links: Mapping[str, Link], full_names: Names) -> dict[str, Step]:
    names = {key: _name(full_names.get(key, ""), link) for key, link in links.items()}
    layers = _layer_names(links, names)
    created = creation_keys(names[key] for key, link in links.items() if len(link.numbers) == 1)
    return {key: _step(link, layers, names[key], created.get(names[key], "")) for key, link in links.items()}


def _is_alone(owner: GraphPath, paths: Paths) -> bool:
    """Whether all that the file has lies in what holds a chain."""
    return all(any(path[: len(owner)] == owner for path in of_key) for of_key in paths.values() if of_key)


def _within(owner: GraphPath, step: Step) -> Step:
    held = "/".join(part.lstrip("_") for part in owner)
    ways = (step.path, step.structure, step.name, step.creation)
    return Step(*(f"{held}/{way}" if way else "" for way in ways))


def _numbered(layers: Mapping[int, Sequence[str]], full_names: Names) -> Iterator[tuple[str, Step]]:
    """The steps to the weights of layers, which have a number each among those with weights, however deep."""
    names = [full_names[keys[0]].split("/")[-2] for keys in layers.values()]
    steps = _families(names)
    named = zip(layers.values(), names, strict=True)
    known = {key: f"{name}/{_local(full_names[key])}" for keys, name in named for key in keys}
    created = creation_keys(known.values())
    for (i, keys), step in zip(layers.items(), steps, strict=True):
        for key in keys:
            local = _local(full_names[key])
            yield key, Step(f"{step}/{local}", f"#{i}/{local}", known[key], created[known[key]])


def _local(full_name: str) -> str:
    return full_name.rsplit("/", 1)[-1]


def _families(names: Sequence[str]) -> list[str]:
    """The names with their numbers counted anew, in this order.

    Example:
        >>> _families(["dense_7", "conv2d_1", "dense_8"])
        ['dense', 'conv2d', 'dense_1']
    """
    counts: Counter[str] = Counter()
    made = []
    for name in names:
        family = re.sub(r"_\d+$", "", name)
        made.append(family if counts[family] == 0 else f"{family}_{counts[family]}")
        counts[family] += 1
    return made


def _link(paths: Sequence[GraphPath]) -> Link | None:
    """The path that has most links of the chain; ``layer-3`` is another name of one."""
    found = []
    for path in paths:
        first = next((i for i, step in enumerate(path) if _LINK.fullmatch(step)), len(path))
        numbers = []
        for step in path[first:]:
            link = _LINK.fullmatch(step)
            if link is None:
                break
            numbers.append(int(link.group(1)))
        if numbers and first + len(numbers) < len(path):
            found.append(Link(path[:first], tuple(numbers), path[first + len(numbers) :]))
    return max(found, key=lambda link: (len(link.numbers), -len(link.owner)), default=None)


def _name(full_name: str, link: Link) -> str:
    """The variable's own name, or the rest of its path where the file has none."""
    return full_name if "/" in full_name else "/".join(("", *link.rest))


def _layer_names(links: Mapping[str, Link], names: Mapping[str, str]) -> Mapping[tuple[int, ...], str]:
    """The step of each layer by its numbers; ``layer_with_weights-2`` where names do not tell layers apart."""
    known: dict[tuple[int, ...], set[str]] = {}
    for key, link in links.items():
        known.setdefault(link.numbers, set()).add(names[key].partition("/")[0])
    made: dict[tuple[int, ...], str] = {}
    for parent in {numbers[:-1] for numbers in known}:
        siblings = sorted(numbers for numbers in known if numbers[:-1] == parent)
        said = [next(iter(known[n])) for n in siblings if len(known[n]) == 1]
        clear = len(set(said)) == len(siblings) and all(said)
        steps = _families(said) if clear else [f"layer_with_weights-{n[-1]}" for n in siblings]
        made.update(zip(siblings, steps, strict=True))
    return made


def _step(link: Link, layers: Mapping[tuple[int, ...], str], name: str, creation: str) -> Step:
    parents = [f"layer_with_weights-{n}" for n in link.numbers[:-1]]
    rest = [step.lstrip("_") for step in link.rest]
    path = "/".join([*parents, layers[link.numbers], *rest])
    structure = "/".join([*(f"#{n}" for n in link.numbers), *rest])
    return Step(path, structure, name.lstrip("/"), creation)
