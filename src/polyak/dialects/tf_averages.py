"""Averages that lie beside the weights in a TensorFlow 2 checkpoint, and how they tell whose they are.

Slots called ``average`` of Keras 2, which TensorFlow Addons and TF Models make; the list of ``use_ema``; variables that
``tf.train.ExponentialMovingAverage`` called after the weights. Any other slot stays what an optimizer keeps. TF Models
exchanges the slots and the weights for an evaluation, and a checkpoint that is written meanwhile holds them exchanged;
nothing in the file tells, so the evidence says so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from polyak.contents import Contents
from polyak.dialects.tf1 import BY_NAME
from polyak.manifest import AVERAGE
from polyak.snapshot import Item
from polyak.weights import Evidence, Kind, Weight

NAME = "average"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_TF_MODELS = "ema_base_optimizer"
_ADDONS = "average_decay"
_USE_EMA, UPDATED, _STEPS = "_model_variables_moving_average", "_trainable_variables", "_iterations"
_AVERAGE = re.compile(r"(.+)/ExponentialMovingAverage(_\d+)?")
_SWAPS = (
    "TF Models swaps slots and weights for an evaluation: in a file written meanwhile, what is called average here is "
    "raw, and the other way round; the file cannot tell"
)
_LISTED = "{:,} averages of use_ema, each beside its weight in the optimizer's lists"
_UNTOLD = "{:,} averages, which have no names that tell whose each is, so none is taken"
_EITHER = (
    "Keras writes the average of use_ema over the weights at the end of fit, and SwapEMAWeights exchanges the two: the "
    "file cannot tell"
)


@dataclass(frozen=True, slots=True)
class Beside:
    """The average of a file, if it holds one beside the weights.

    Attributes:
        items: an average for each weight, where there is one; statistics and counters belong to both sets.
        keys: of what was taken for it.
        evidence: why they are taken for an average, or why not.
    """

    items: tuple[Item, ...] = ()
    keys: frozenset[str] = frozenset()
    evidence: tuple[str, ...] = ()


def averages_beside(contents: Contents, raw: Mapping[str, Item]) -> Beside:
    """What the file has of averages of the raw weights, which are given by their keys."""
    slotted = {s.key: s.weight for s in contents.slots if s.name == NAME and s.weight in raw}
    if slotted:
        return _checked(slotted, contents, raw, _evidence(contents, len(slotted)))
    listed = _listed(contents)
    if listed:
        return _checked(listed, contents, raw, (_LISTED.format(len(listed)), *_unmoved(contents), _EITHER))
    called = _called(contents)
    if called and not set(_followed(contents).values()).intersection(contents.full_names.values()):
        return _alone(contents, raw)
    if called:
        return _checked(called, contents, raw, (BY_NAME.format(len(called)),))
    return Beside(evidence=_unmoved(contents))


def _checked(
    weights: Mapping[str, str], contents: Contents, raw: Mapping[str, Item], evidence: tuple[str, ...]
) -> Beside:
    """All averages, given the weight of each, or none: an average that lacks some would be none."""
    if any(weight not in raw for weight in weights.values()):
        return Beside(evidence=(_UNTOLD.format(len(weights)),))
    twice = [weight for weight, n in Counter(weights.values()).items() if n > 1]
    if twice:
        named = twice[0].removesuffix(_VALUE)
        return Beside(evidence=(f"{named!r} has two averages beside it, so none is taken: ambiguous",))
    odd = [key for key, weight in weights.items() if contents.tensors[key].shape != contents.tensors[weight].shape]
    if odd:
        return Beside(evidence=(f"average {odd[0]!r} has not the shape of its weight, so none is taken",))
    averages = {weight: key for key, weight in weights.items()}
    items = (averaged(item, averages.get(key), contents) for key, item in raw.items() if key not in weights)
    return Beside(tuple(items), frozenset(weights), evidence)


def _alone(contents: Contents, raw: Mapping[str, Item]) -> Beside:
    """Averages without their weights, under the names of these."""
    names = {key: name for key, name in _followed(contents).items() if key in raw}
    if len(set(names.values())) < len(names):
        return Beside(evidence=(_UNTOLD.format(len(names)),))
    items = (replace(raw[key], role=AVERAGE, weight=_renamed(raw[key].weight, name)) for key, name in names.items())
    return Beside(tuple(items), frozenset(names), (BY_NAME.format(len(names)),))


def _renamed(weight: Weight, name: str) -> Weight:
    local = name.rpartition("/")[2]
    return replace(weight, path=name, evidence=Evidence("", name, "", "", local, -1, weight.dtype))


def _called(contents: Contents) -> dict[str, str]:
    """The averages of ``tf.train.ExponentialMovingAverage`` and the weight of each, "" where not exactly one has its
    name.
    """
    named = _named(contents)
    return {key: named.get(name, "") for key, name in _followed(contents).items()}


def _followed(contents: Contents) -> dict[str, str]:
    """What each variable is called after that is called an average; TensorFlow numbers those that are called alike."""
    found = {key: _AVERAGE.fullmatch(contents.full_names.get(key, "")) for key in contents.tensors}
    return {key: match[1] for key, match in found.items() if match}


def _named(contents: Contents) -> dict[str, str]:
    """The key of each variable whose name is its own alone."""
    times = Counter(contents.full_names.values())
    return {name: key for key, name in contents.full_names.items() if times[name] == 1}


def _listed(contents: Contents) -> dict[str, str]:
    """The averages of ``use_ema`` and the weight of each, which has the same number in the optimizer's lists; "" where
    it is not told.

    Keras 2 has no such list of weights, and puts a weight's name into that of its average.
    """
    found = _keys(contents)
    still = _still(contents)
    averages = {key: p for p, key in found.items() if p[-2:-1] == (_USE_EMA,) and p[:-2] not in still}
    named = _named(contents)
    return {
        key: found.get((*p[:-2], UPDATED, p[-1])) or _called_after(contents.full_names.get(key, ""), named)
        for key, p in averages.items()
    }


def _called_after(average: str, named: Mapping[str, str]) -> str:
    """The key of the weight that an average is called after, or "" where not exactly one is: its name is
    ``Adam/average/dense/kernel``, and ``average/dense/kernel`` where the optimizer was built before it took a step.
    """
    names = {average.partition(f"/{NAME}/")[2], average.removeprefix(f"{NAME}/")} - {average}
    keys = [named[name] for name in names if name in named]
    return keys[0] if len(keys) == 1 else ""


def _still(contents: Contents) -> list[tuple[str, ...]]:
    """The optimizers with ``use_ema`` that have taken no step: Keras' averages start at zero."""
    found = _keys(contents)
    owners = sorted({p[:-2] for p in found if p[-2:-1] == (_USE_EMA,)})
    steps = {owner: contents.tensors[key] for owner in owners if (key := found.get((*owner, _STEPS)))}
    return [owner for owner, tensor in steps.items() if tensor.shape == () and not tensor.read()]


def _keys(contents: Contents) -> dict[tuple[str, ...], str]:
    """The key of the tensor at each path."""
    return {p: key for key in contents.tensors for p in contents.paths.get(key, ())}


def _unmoved(contents: Contents) -> tuple[str, ...]:
    named = ("/".join(owner) for owner in _still(contents))
    return tuple(f"{name}: its averages of use_ema have not moved yet, and are zero" for name in named)


def averaged(raw: Item, average: str | None, contents: Contents) -> Item:
    """A raw weight's average, given its key; without one, what belongs to both sets."""
    if average is None:
        kind = Kind.STATISTIC if raw.weight.kind is Kind.TRAINABLE else raw.weight.kind
        return replace(raw, role=AVERAGE, weight=replace(raw.weight, kind=kind))
    tensor = contents.tensors[average]
    weight = replace(raw.weight, dtype=tensor.dtype)
    return Item(AVERAGE, weight, tensor.read, places=raw.places, called=raw.called)


def _evidence(contents: Contents, count: int) -> tuple[str, ...]:
    found = f"{count:,} optimizer slots called average"
    if any(_TF_MODELS in path for paths in contents.paths.values() for path in paths):
        return (
            f"{found}, beside ema_base_optimizer, as TF Models keeps them",
            _SWAPS,
        )
    decay = _decay(contents)
    if decay is not None:
        return (f"{found}, beside average_decay, as TensorFlow Addons keeps them: decay {decay:.6g}",)
    return (f"{found}, as TensorFlow Addons and TF Models keep them",)


def _decay(contents: Contents) -> float | None:
    for key, tensor in contents.tensors.items():
        if key.endswith(f"/{_ADDONS}{_VALUE}") and tensor.shape == ():
            return float(tensor.read())
    return None
