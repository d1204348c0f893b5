"""The package ema-pytorch: the average is ``ema_model.*``, the model ``online_model.*`` where it is included."""

from __future__ import annotations

from polyak.contents import Contents
from polyak.dialects.torch_sets import (
    Named,
    Reading,
    Set,
    bare,
    number,
    same,
    sets,
    snapshot,
    twin,
    under,
)
from polyak.manifest import AVERAGE, RAW
from polyak.snapshot import Snapshot

_AVERAGE, _RAW, _STARTED, _STEP = "ema_model.", "online_model.", "initted", "step"


def interpret(contents: Contents) -> Snapshot | None:
    """None unless exactly one set is an average with its two counters, and its model has the same names."""
    found = sets(contents)
    fitting = [s for s in found.values() if _fits(s.tensors)]
    if len(fitting) != 1:
        return None
    held = fitting[0]
    average, included = bare(under(held.tensors, _AVERAGE)), bare(under(held.tensors, _RAW))
    beside = None if included else twin(average, found, held.key)
    raw = bare(beside.tensors) if beside else included
    roles = {RAW: raw, AVERAGE: average} if raw else {AVERAGE: average}
    used = held.stored | (beside.stored if beside else frozenset())
    whole = {AVERAGE: held.tensors}
    return snapshot(contents, Reading("ema-pytorch", roles, used, _evidence(held, bool(raw)), whole=whole))


def _fits(tensors: Set) -> bool:
    average, raw = bare(under(tensors, _AVERAGE)), bare(under(tensors, _RAW))
    counted = {_STARTED, _STEP} <= set(tensors)
    return counted and bool(average) and (not raw or same(average, raw))


def _evidence(held: Named, raw: bool) -> tuple[str, ...]:
    step = number(held.tensors[_STEP])
    why = f"{held.place} holds {_AVERAGE}*, {_STARTED} and {_STEP} = {step}, as ema-pytorch does"
    pair = "the raw weights have the same names and shapes" if raw else "it does not include the model that it follows"
    return why, pair, "the decay and its warm-up are not in the file"
