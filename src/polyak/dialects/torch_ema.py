"""Averages that are lists by position: ``shadow_params`` of torch-ema and diffusers, and NeMo's optimizer.

A list gets the names of the weights only if the model lies beside it and its parameters agree in number and in every
shape; else its weights are numbered.

Both tools put the weights aside while the average is in the model: torch-ema into ``collected_params``, where it leaves
them afterwards, diffusers into ``temp_stored_params``, which only a pickled ``EMAModel`` has and ``restore()`` empties.
In a file that was written meanwhile the model is the average. Whether it is can be seen by its values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from polyak.contents import Contents, Tensor
from polyak.dialects.torch_aside import is_in_model, smallest
from polyak.dialects.torch_sets import (
    TORCH,
    Named,
    Reading,
    Set,
    bare,
    numbered,
    parameters,
    sets,
    snapshot,
    usual,
)
from polyak.manifest import AVERAGE, RAW
from polyak.snapshot import Snapshot

_LIST = re.compile(r"(?:(?P<owner>.+)/)?(?P<list>shadow_params)/(?P<index>\d+)")
_NEMO = re.compile(r"(?P<owner>optimizer_states/\d+)/(?P<list>ema)/(?P<index>\d+)")
_ASIDE = {"torch-ema": "collected_params", "diffusers": "temp_stored_params"}
_PUT_ASIDE_BY = {"torch-ema": "average_parameters()", "diffusers": "store()"}
_SAID = ("decay", "num_updates", "optimization_step", "current_step")


@dataclass(frozen=True, slots=True)
class Listed:
    """A list of tensors: the key of its owner, its own key, its tensors in order, and their stored names."""

    tool: str
    owner: str
    place: str
    tensors: list[Tensor]
    stored: frozenset[str]


def interpret(contents: Contents) -> Snapshot | None:
    """None unless there is exactly one such list, without gaps, and its owner also says a decay."""
    found = list(_lists(contents))
    if contents.format != TORCH or len(found) != 1:
        return None
    held = found[0]
    said = {n: contents.facts.get(f"{held.owner}/{n}" if held.owner else n) for n in _SAID}
    if not isinstance(said["decay"], float):
        return None
    words = ", ".join(f"{name} = {value}" for name, value in said.items() if value is not None)
    why = f"{held.place!r} is a list of {len(held.tensors)} arrays beside {words}, as {held.tool} writes it"
    among = {key: s for key, s in sets(contents).items() if key != held.owner}
    return snapshot(contents, _reading(held, usual(among), why, _aside(held, contents)))


def _reading(held: Listed, model: Named | None, why: str, aside: dict[str, Tensor]) -> Reading:
    raw = bare(model.tensors) if model else {}
    average = _by_position(raw, held.tensors)
    if model and average:
        found = (why, f"it has the number and all shapes of the parameters in {model.place}, in their order")
        kept = _by_position(raw, list(aside.values()))
        own = list(parameters(raw).values())
        in_model = is_in_model(own, held.tensors, list(aside.values())) if kept else False
        said = _exchanged(in_model, model.place, held.tool) if kept else _alike(own, held.tensors, model.place)
        evidence = (*found, *said)
        used = held.stored | model.stored
        if kept and in_model:
            return Reading(held.tool, {RAW: kept, AVERAGE: average}, used | frozenset(aside), evidence)
        return Reading(held.tool, {RAW: raw, AVERAGE: average}, used, evidence)
    return _numbered(held, model, why, aside)


def _numbered(held: Listed, model: Named | None, why: str, aside: dict[str, Tensor]) -> Reading:
    """Without names. What diffusers has put aside are the raw weights, where no model is beside it."""
    used, average = held.stored, numbered(held.tensors)
    evidence = (why, "no model beside it proves which weight is which: they are numbered in the order of parameters()")
    if model:
        said = _exchanged(None, model.place, held.tool) if aside else ()
        return Reading(held.tool, {RAW: bare(model.tensors), AVERAGE: average}, used | model.stored, (*evidence, *said))
    if held.tool == "diffusers" and len(aside) == len(held.tensors):
        said = (f"{_ASIDE[held.tool]} holds the raw weights, which store() put aside and restore() would have taken",)
        sets_ = {RAW: numbered(list(aside.values())), AVERAGE: average}
        return Reading(held.tool, sets_, used | frozenset(aside), (*evidence, *said))
    return Reading(held.tool, {AVERAGE: average}, used, evidence)


def _aside(held: Listed, contents: Contents) -> dict[str, Tensor]:
    """The weights that were put aside, by their stored names, in their order."""
    key = _ASIDE.get(held.tool, "")
    start = f"{held.owner}/{key}/" if held.owner else f"{key}/"
    names = [f"{start}{i}" for i in range(len(held.tensors))]
    return {n: contents.tensors[n] for n in names if n in contents.tensors}


def _alike(model: Sequence[Tensor], shadows: Sequence[Tensor], place: str) -> tuple[str, ...]:
    """A word where the model has the average's values and nothing was put aside: diffusers keeps that elsewhere."""
    compared = 0
    for own, average in smallest(model, shadows):
        if own != average:
            return ()
        compared += 1
    why = f"{place} holds the average's values in all {compared} parameters that were compared"
    said = f"{why}: it may have been exchanged for the average while the file was written, without the raw weights"
    return (said,) if compared else ()


def _exchanged(in_model: bool | None, place: str, tool: str) -> tuple[str, ...]:
    key, by = _ASIDE.get(tool, ""), _PUT_ASIDE_BY.get(tool, "")
    if in_model is None:
        why = f"weights were put aside in {key}: in a file written within {by} they are the raw ones"
        return (f"{why}, and {place} is exchanged for the average; the file cannot tell",)
    said = f"{place} holds the values of the average, and {key} the raw weights that {by} put aside"
    return (said,) if in_model else ()


def _by_position(raw: Set, shadows: list[Tensor]) -> dict[str, Tensor] | None:
    """The average under the model's names; what is not averaged belongs to both sets."""
    names = list(parameters(raw))
    if not names or [raw[n].shape for n in names] != [t.shape for t in shadows]:
        return None
    return dict(raw) | dict(zip(names, shadows, strict=True))


def _lists(contents: Contents) -> Iterator[Listed]:
    found: dict[tuple[str, str, str], dict[int, str]] = {}
    for name in contents.tensors:
        for tool, pattern in (("torch-ema", _LIST), ("NeMo", _NEMO)):
            if match := pattern.fullmatch(name):
                key = (tool, match["owner"] or "", match["list"])
                found.setdefault(key, {})[int(match["index"])] = name
    for (tool, owner, last), names in found.items():
        if sorted(names) == list(range(len(names))):
            tensors = [contents.tensors[names[i]] for i in range(len(names))]
            place = f"{owner}/{last}" if owner else last
            yield Listed(_tool(tool, owner, contents), owner, place, tensors, frozenset(names.values()))


def _tool(tool: str, owner: str, contents: Contents) -> str:
    steps = f"{owner}/optimization_step" if owner else "optimization_step"
    return "diffusers" if steps in contents.facts else tool
