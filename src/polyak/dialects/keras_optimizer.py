"""Keras' ``use_ema``: averages among the nameless variables of an optimizer, and the proof of which is whose.

An optimizer stores ``vars/0``, ``vars/1`` ...: the iterations, the learning rate unless a schedule gives it, then one
average for each variable that was trainable when the optimizer was built, then the other slots. Only the configuration
in a ``.keras`` archive says that there are averages at all; gradient accumulation has the same layout. Which variables
were trainable is written nowhere. So the averages are paired with weights only where one assignment is possible.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polyak.averaging.rules import EMA
from polyak.contents import Contents, json_object
from polyak.errors import RuleError
from polyak.manifest import State
from polyak.weights import is_floating

Shape = tuple[int, ...]
_EITHER = (
    "layers: raw weights by their place; Keras writes the average over them at the end of fit with use_ema, and "
    "SwapEMAWeights exchanges the two: the file cannot tell"
)
_NOT_PROVED = "optimizer: it may hold averages (use_ema); they have no names, and {why}"
# Variables that are not trained, at the end of those of a layer.
_UNTRAINED = {"BatchNormalization": 2, "Normalization": 3}
_CONTAINERS = ("Sequential", "Functional")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What can be said of the averages in a file's optimizer.

    Attributes:
        average: key of the average for each weight's key, where every one is proved; else empty.
        state: rule and count of that average.
    """

    average: Mapping[str, str] = field(default_factory=dict)
    state: State | None = None
    evidence: tuple[str, ...] = ()
    confidence: str = "inferred"


@dataclass(frozen=True, slots=True)
class Block:
    """The variables of one layer in the order of the model, and how many of them may have been trained."""

    keys: tuple[str, ...]
    lengths: tuple[int, ...]


class _Unproved(Exception):
    """Why the averages cannot be told apart."""


def judge(contents: Contents, weights: Sequence[str], optimizers: Sequence[str]) -> Verdict:
    """Find the averages of ``use_ema`` among the variables of the optimizers."""
    if not optimizers:
        return Verdict(evidence=(_EITHER,), confidence="unknown")
    try:
        model = _config(contents)
        kind, settings, group = _optimizer(model, optimizers)
        if not settings.get("use_ema"):
            return Verdict(evidence=(f"optimizer: {kind} without use_ema, by config.json: stated", _EITHER))
        slots = _slots(contents, kind, settings, group)
        shapes = [contents.tensors[key].shape for key in slots]
        pairs = _assigned(shapes, weights, model, contents)
    except _Unproved as why:
        return Verdict(evidence=(_NOT_PROVED.format(why=why), _EITHER), confidence="unknown")
    average = dict(zip(pairs, slots, strict=True))
    proof = (
        f"{group}: {len(slots)} averages of {kind} with use_ema, by config.json; the shapes fit one assignment to the "
        "weights only"
    )
    return Verdict(average, _state(contents, settings, group), (proof, _EITHER))


def _config(contents: Contents) -> dict[str, Any]:
    read = contents.texts.get("config.json")
    if read is None:
        raise _Unproved("only the config.json of a .keras file says whether they are there")
    try:
        return json_object(read())
    except ValueError as error:
        raise _Unproved("config.json is not readable") from error


def _optimizer(model: dict[str, Any], optimizers: Sequence[str]) -> tuple[str, dict[str, Any], str]:
    """Class, settings and group of the optimizer that updates the weights."""
    kind, settings = _named(_mapping(_mapping(model.get("compile_config")).get("optimizer")))
    group = "optimizer"
    while kind == "LossScaleOptimizer":
        kind, settings = _named(_mapping(settings.get("inner_optimizer")))
        group += "/inner_optimizer"
    if not kind or group not in optimizers:
        raise _Unproved("config.json does not describe the optimizer")
    return kind, settings, group


def _named(entry: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return str(entry.get("class_name", "")), _mapping(entry.get("config"))


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _slots(contents: Contents, kind: str, settings: dict[str, Any], group: str) -> list[str]:
    """The keys of the averages: the first of the slots, one for each variable."""
    keys = sorted((k for k in contents.tensors if _index(k, group) is not None), key=lambda k: _index(k, group) or 0)
    if [_index(k, group) for k in keys] != list(range(len(keys))):
        raise _Unproved("some of its variables are missing")
    first = 1 if isinstance(settings.get("learning_rate"), dict) or _is_legacy(contents) else 2
    shapes = [contents.tensors[k].shape for k in keys[first:]]
    others = _others(kind, settings) if kind != "SGD" or not _is_legacy(contents) else 1
    count, rest = divmod(len(shapes), 1 + others)
    repeated = Counter({shape: n * others for shape, n in Counter(shapes[:count]).items() if others})
    if rest or not count or Counter(shapes[count:]) != repeated:
        raise _Unproved(f"its variables do not have the layout of {kind}")
    return keys[first : first + count]


def _index(key: str, group: str) -> int | None:
    found = re.fullmatch(rf"{re.escape(group)}/vars/(\d{{1,9}})", key)
    return int(found.group(1)) if found else None


def _is_legacy(contents: Contents) -> bool:
    """Keras 2 keeps the learning rate outside of its variables."""
    read = contents.texts.get("metadata.json")
    return read is not None and re.search(rb'"keras_version"\s*:\s*"2\.', read()) is not None


def _others(kind: str, settings: dict[str, Any]) -> int:
    """How many slots a variable has beside its average."""
    known = {
        "SGD": bool(settings.get("momentum")),
        "RMSprop": 1 + bool(settings.get("momentum")) + bool(settings.get("centered")),
        "Adam": 2 + bool(settings.get("amsgrad")),
        "AdamW": 2 + bool(settings.get("amsgrad")),
        "Adagrad": 1,
        "Adadelta": 2,
        "Adamax": 2,
        "Lamb": 2,
        "Lion": 1,
    }
    if kind not in known:
        raise _Unproved(f"the layout of {kind} is not known")
    return int(known[kind]) + bool(settings.get("gradient_accumulation_steps"))


def _assigned(
    shapes: Sequence[Shape], weights: Sequence[str], model: dict[str, Any], contents: Contents
) -> tuple[str, ...]:
    """The key of the weight of each slot: the only assignment by order and shape, or by shape alone."""
    blocks = list(_blocks(model, "", weights))
    if {k for b in blocks for k in b.keys} == set(weights):
        found = _fits(shapes, blocks, {key: contents.tensors[key].shape for key in weights})
    else:
        found = _by_shape(shapes, weights, contents)
    if len(found) != 1:
        raise _Unproved(
            "more than one assignment to the weights fits: which were trainable is not in the file"
            if found
            else "their shapes are not those of the weights"
        )
    return found[0]


def _by_shape(shapes: Sequence[Shape], weights: Sequence[str], contents: Contents) -> list[tuple[str, ...]]:
    """In a model of the user's own class the order is not known, so every shape must occur once."""
    held: dict[Shape, list[str]] = {}
    for key in weights:
        if is_floating(contents.tensors[key].dtype):
            held.setdefault(contents.tensors[key].shape, []).append(key)
    keys = [held.get(shape, []) for shape in shapes]
    if not all(keys):
        return []
    unique = len(set(shapes)) == len(shapes) and all(len(k) == 1 for k in keys)
    return [tuple(k[0] for k in keys)] * (1 if unique else 2)


def _fits(shapes: Sequence[Shape], blocks: Sequence[Block], known: Mapping[str, Shape]) -> list[tuple[str, ...]]:
    """Up to two assignments: of each layer in turn the first so many variables, all of the shapes in their order."""
    ways: dict[int, list[tuple[str, ...]]] = {0: [()]}
    for block in blocks:
        following: dict[int, list[tuple[str, ...]]] = {}
        for at, chosen in ways.items():
            for length in block.lengths:
                keys = block.keys[:length]
                if tuple(known[k] for k in keys) == tuple(shapes[at : at + length]):
                    into = following.setdefault(at + length, [])
                    into.extend((*c, *keys) for c in chosen[: 2 - len(into)])
        ways = following
    return ways.get(len(shapes), [])


def _blocks(entry: dict[str, Any], prefix: str, weights: Sequence[str]) -> Iterator[Block]:
    """The layers of Sequential and functional models in the order of their weights, the nested ones included."""
    counts: Counter[str] = Counter()
    layers = _mapping(entry.get("config")).get("layers")
    if entry.get("class_name") not in _CONTAINERS or not isinstance(layers, list):
        return
    for layer in map(_mapping, layers):
        kind = str(layer.get("class_name", ""))
        family = _snake_case(kind)
        step = f"{family}_{counts[family]}" if counts[family] else family
        counts[family] += 1
        group = f"{prefix}layers/{step}/"
        if kind in _CONTAINERS:
            yield from _blocks(layer, group, weights)
        else:
            yield _block(layer, kind, tuple(k for k in weights if k.startswith(f"{group}vars/")))


def _block(layer: dict[str, Any], kind: str, keys: tuple[str, ...]) -> Block:
    """A layer is trained as a whole or not at all; of a class that is not Keras' own, any number of its first."""
    if str(layer.get("module", "")).startswith("keras.") and not layer.get("registered_name"):
        trained = max(len(keys) - _UNTRAINED.get(kind, 0), 0)
        return Block(keys, (0, trained) if trained else (0,))
    return Block(keys, tuple(range(len(keys) + 1)))


def _snake_case(name: str) -> str:
    """A class as Keras writes it into its places."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _state(contents: Contents, settings: dict[str, Any], group: str) -> State | None:
    """Rule and count. With gradient accumulation Keras also moves the average between the steps that it counts."""
    if settings.get("gradient_accumulation_steps"):
        return None
    try:
        rule = EMA(settings["ema_momentum"], "copy").to_json()
    except (KeyError, TypeError, RuleError):
        return None
    return State(rule, max(int(contents.tensors[f"{group}/vars/0"].read()), 0))
