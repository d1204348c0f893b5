"""Averages that optimizers keep beside the weights: slots called ``average`` of Keras 2, which TensorFlow Addons and TF
Models make, and the list of ``use_ema`` of Keras 3.

Any other slot stays what an optimizer keeps. TF Models exchanges the slots and the weights for an evaluation, and a
checkpoint that is written meanwhile holds them exchanged; nothing in the file tells, so the evidence says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from polyak.contents import Contents, Slot
from polyak.manifest import AVERAGE
from polyak.snapshot import Item
from polyak.weights import Kind

NAME = "average"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_TF_MODELS = "ema_base_optimizer"
_ADDONS = "average_decay"
_SWAPS = (
    "TF Models swaps slots and weights for an evaluation: in a file written meanwhile, what is called average here is "
    "raw, and the other way round; the file cannot tell"
)


_USE_EMA, UPDATED, _STEPS = "_model_variables_moving_average", "_trainable_variables", "_iterations"
_LISTED = "{:,} averages of use_ema, each beside its weight in the optimizer's lists"
_UNTOLD = "{:,} averages of use_ema, which have no names that tell whose each is, so none is taken"
_EITHER = (
    "Keras writes the average of use_ema over the weights at the end of fit, and SwapEMAWeights exchanges the two: the "
    "file cannot tell"
)


@dataclass(frozen=True, slots=True)
class SlotAverages:
    """The average of a file, if its slots hold one.

    Attributes:
        items: an average for each weight, where there is one; statistics and counters belong to both sets.
        keys: of the slots that were taken.
        evidence: why they are taken for an average, or why not.
    """

    items: tuple[Item, ...] = ()
    keys: frozenset[str] = frozenset()
    evidence: tuple[str, ...] = ()


def slot_averages(contents: Contents, raw: Mapping[str, Item]) -> SlotAverages:
    """What the slots called ``average`` are of the raw weights, which are given by their keys."""
    slotted = [s for s in contents.slots if s.name == NAME and s.weight in raw]
    listed = {} if slotted else _listed(contents)
    if any(weight not in raw for weight in listed.values()):
        return SlotAverages(evidence=(_UNTOLD.format(len(listed)),))
    slots = slotted or [Slot(key, weight, NAME) for key, weight in listed.items()]
    if not slots:
        return SlotAverages(evidence=_unmoved(contents))
    twice = [weight for weight, n in Counter(s.weight for s in slots).items() if n > 1]
    if twice:
        named = twice[0].removesuffix(_VALUE)
        return SlotAverages(evidence=(f"{named!r} has two slots called average, so none is taken: ambiguous",))
    odd = [s for s in slots if contents.tensors[s.key].shape != contents.tensors[s.weight].shape]
    if odd:
        return SlotAverages(evidence=(f"slot {odd[0].key!r} has not the shape of its weight, so none is taken",))
    by_weight = {s.weight: s for s in slots}
    items = tuple(_averaged(item, by_weight.get(key), contents) for key, item in raw.items())
    evidence = _evidence(contents, slots) if slotted else (_LISTED.format(len(slots)), *_unmoved(contents), _EITHER)
    return SlotAverages(items, frozenset(s.key for s in slots), evidence)


def _listed(contents: Contents) -> dict[str, str]:
    """The averages of ``use_ema`` and the weight of each, which has the same number in the optimizer's lists; "" where
    it is not told.

    Keras 2 has no such list of weights, and puts a weight's name into that of its average.
    """
    found = _keys(contents)
    still = _still(contents)
    averages = {key: p for p, key in found.items() if p[-2:-1] == (_USE_EMA,) and p[:-2] not in still}
    times = Counter(contents.full_names.values())
    named = {name: key for key, name in contents.full_names.items() if times[name] == 1}
    return {
        key: found.get((*p[:-2], UPDATED, p[-1])) or named.get(_weight_name(contents.full_names.get(key, "")), "")
        for key, p in averages.items()
    }


def _weight_name(average: str) -> str:
    """The weight that an average is called after: ``Adam/average/dense/kernel``."""
    return average.partition(f"/{NAME}/")[2]


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


def _averaged(raw: Item, slot: Slot | None, contents: Contents) -> Item:
    if slot is None:
        kind = Kind.STATISTIC if raw.weight.kind is Kind.TRAINABLE else raw.weight.kind
        return replace(raw, role=AVERAGE, weight=replace(raw.weight, kind=kind))
    tensor = contents.tensors[slot.key]
    weight = replace(raw.weight, dtype=tensor.dtype)
    return Item(AVERAGE, weight, tensor.read, places=raw.places, called=raw.called)


def _evidence(contents: Contents, slots: list[Slot]) -> tuple[str, ...]:
    found = f"{len(slots):,} optimizer slots called average"
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
