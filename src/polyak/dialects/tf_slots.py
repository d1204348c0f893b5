"""Averages that Keras 2 optimizers keep in slots called ``average``: those of TensorFlow Addons and of TF Models.

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
    slots = [s for s in contents.slots if s.name == NAME and s.weight in raw]
    if not slots:
        return SlotAverages()
    twice = [weight for weight, n in Counter(s.weight for s in slots).items() if n > 1]
    if twice:
        named = twice[0].removesuffix(_VALUE)
        return SlotAverages(evidence=(f"{named!r} has two slots called average, so none is taken: ambiguous",))
    odd = [s for s in slots if contents.tensors[s.key].shape != contents.tensors[s.weight].shape]
    if odd:
        return SlotAverages(evidence=(f"slot {odd[0].key!r} has not the shape of its weight, so none is taken",))
    by_weight = {s.weight: s for s in slots}
    items = tuple(_averaged(item, by_weight.get(key), contents) for key, item in raw.items())
    return SlotAverages(items, frozenset(s.key for s in slots), _evidence(contents, slots))


def _averaged(raw: Item, slot: Slot | None, contents: Contents) -> Item:
    if slot is None:
        kind = Kind.STATISTIC if raw.weight.kind is Kind.TRAINABLE else raw.weight.kind
        return replace(raw, role=AVERAGE, weight=replace(raw.weight, kind=kind))
    tensor = contents.tensors[slot.key]
    return Item(AVERAGE, replace(raw.weight, dtype=tensor.dtype), tensor.read)


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
