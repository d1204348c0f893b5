"""Averages that are lists by position: ``shadow_params`` of torch-ema and diffusers, and NeMo's optimizer.

A list gets the names of the weights only if the model lies beside it and its parameters agree in number and in every
shape; else its weights are numbered.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from polyak.contents import Contents, Tensor
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
    return snapshot(contents, _reading(held, usual(among), why))


def _reading(held: Listed, model: Named | None, why: str) -> Reading:
    raw = bare(model.tensors) if model else {}
    average = _by_position(raw, held.tensors)
    if model and average:
        evidence = (why, f"it has the number and all shapes of the parameters in {model.place}, in their order")
        return Reading(held.tool, {RAW: raw, AVERAGE: average}, held.stored | model.stored, evidence)
    sets_ = ({RAW: raw} if raw else {}) | {AVERAGE: numbered(held.tensors)}
    evidence = (why, "no model beside it proves which weight is which: they are numbered in the order of parameters()")
    return Reading(held.tool, sets_, held.stored | (model.stored if model else frozenset()), evidence)


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
