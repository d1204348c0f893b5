"""The package ema-pytorch: the average is ``ema_model.*``, the model ``online_model.*`` where it is included."""

from __future__ import annotations

from dataclasses import replace

from polyak.contents import Contents
from polyak.dialects.torch_pairs import counted
from polyak.dialects.torch_sets import (
    Named,
    Reading,
    Set,
    bare,
    number,
    place_of,
    same,
    sets,
    snapshot,
    twin,
    under,
)
from polyak.manifest import AVERAGE, RAW
from polyak.snapshot import Snapshot

_AVERAGE, _RAW, _STARTED, _STEP = "ema_model.", "online_model.", "initted", "step"
_RULE = "the decay and its warm-up are not in the file"


def interpret(contents: Contents) -> Snapshot | None:
    """None unless a set is an average with its two counters, and its model has the same names."""
    found = sets(contents)
    fitting = [s for s in found.values() if _fits(bare(s.tensors))]
    if len(fitting) > 1:
        return snapshot(contents, _several(fitting, found))
    return snapshot(contents, _one(fitting[0], found)) if fitting else None


def _fits(tensors: Set) -> bool:
    average, raw = bare(under(tensors, _AVERAGE)), bare(under(tensors, _RAW))
    return {_STARTED, _STEP} <= set(tensors) and bool(average) and (not raw or same(average, raw))


def _one(held: Named, found: dict[str, Named]) -> Reading:
    """The model that it includes is the raw one, or that beside it."""
    own = bare(held.tensors)
    average, included = bare(under(own, _AVERAGE)), bare(under(own, _RAW))
    beside = None if included else twin(average, found, held.key)
    raw = bare(beside.tensors) if beside else included
    roles = {RAW: raw, AVERAGE: average} if raw else {AVERAGE: average}
    used = held.stored | (beside.stored if beside else frozenset())
    pair = "the raw weights have the same names and shapes" if raw else "it does not include the model that it follows"
    return Reading("ema-pytorch", roles, used, (_why(held), pair, _RULE), whole={AVERAGE: held.tensors})


def _several(fitting: list[Named], found: dict[str, Named]) -> Reading:
    """The raw weights are beside them: whether the models that they include are one and the same is not told."""
    reading, pair = counted([_average(s) for s in fitting], found)
    return replace(reading, tool="ema-pytorch", evidence=(*map(_why, fitting), pair, _RULE))


def _average(held: Named) -> Named:
    stored = frozenset(n for n in held.stored if f".{_RAW}" not in f".{place_of(n)[1]}")
    return Named(held.key, under(bare(held.tensors), _AVERAGE), stored, held.tensors)


def _why(held: Named) -> str:
    step = number(bare(held.tensors)[_STEP])
    return f"{held.place} holds {_AVERAGE}*, {_STARTED} and {_STEP} = {step}, as ema-pytorch does"
