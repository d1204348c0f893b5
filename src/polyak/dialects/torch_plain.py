"""Files of PyTorch from no tool that is known: one set of weights, or several under the writer's own keys.

Nothing in a bare ``state_dict`` says whether it is an average, so it is taken as raw, with confidence "unknown".
Two names say more: that of a set ("model_ema" alone, or beside a "model" of the same shapes), and that of the file
("ema_0.9999_050000.pt", as guided diffusion writes it).

Many averages are of the parameters alone, and leave the model's buffers as they are. Where one lacks parameters, these
may be frozen, or further names of a weight that it has: it lacks them here, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from polyak.contents import Contents
from polyak.dialects.torch_aside import put_aside, restored
from polyak.dialects.torch_beside import averages_among, called_average, is_of_training, networks_beside
from polyak.dialects.torch_pairs import paired, stored_of, with_key
from polyak.dialects.torch_sets import TORCH, Named, Reading, bare, file_name, sets, snapshot, usual
from polyak.errors import listed
from polyak.manifest import AVERAGE, RAW
from polyak.snapshot import Snapshot

_GUIDED = re.compile(r"ema_(?P<decay>0?\.\d+)_(?P<step>\d+)\.\w+")
_TWIN_FILE = re.compile(r".*-EMA\.ckpt")


def interpret(contents: Contents) -> Snapshot | None:
    """None unless the file is PyTorch's."""
    if contents.format != TORCH:
        return None
    held = {key: s for key, s in sets(contents).items() if any(t.shape for t in s.tensors.values())}
    found, why = restored(held, put_aside(held))
    reading = _twins(found) or _only(found) or _alone(found, contents)
    return snapshot(contents, replace(reading, evidence=(*reading.evidence, *why)))


def _twins(found: Mapping[str, Named]) -> Reading | None:
    averages = averages_among(found)
    called = {s.key for s in averages}
    return paired(averages, [s for key, s in found.items() if key not in called])


def _only(found: Mapping[str, Named]) -> Reading | None:
    """The only network, if it is called an average: what a training keeps that empties its model before it saves."""
    averages = averages_among(found)
    if len(averages) != 1 or not all(is_of_training(s) for s in found.values() if s is not averages[0]):
        return None
    one = averages[0]
    said = f"{one.place} is the only set, and called an average by its writer"
    return Reading("PyTorch", {AVERAGE: bare(one.tensors)}, one.stored, (said,), whole={AVERAGE: one.tensors})


def _alone(found: Mapping[str, Named], contents: Contents) -> Reading:
    role, evidence, confidence = _by_file_name(file_name(contents))
    held = usual(found)
    beside = networks_beside(held, found) if held else []
    if held and not beside:
        sets_, whole = {role: bare(held.tensors)}, {role: held.tensors}
        return Reading("PyTorch", sets_, held.stored, evidence, confidence, whole)
    kept = [held, *beside] if held else list(found.values())
    evidence = (*evidence, *_beside(held, beside), *_unpaired(kept))
    tensors = {n: t for s in kept for n, t in with_key(s.key, bare(s.tensors)).items()}
    return Reading("PyTorch", {role: tensors} if tensors else {}, stored_of(*kept), evidence, confidence)


def _beside(held: Named | None, others: Sequence[Named]) -> tuple[str, ...]:
    said = listed([s.place for s in others])
    found = held and f"{said} may be a network beside {held.place}: each weight has its key in its name"
    return (found,) if found else ()


def _unpaired(kept: Sequence[Named]) -> tuple[str, ...]:
    """A word on averages by their keys that are taken as raw."""
    called = ", ".join(s.place for s in kept if called_average(s.key))
    untold = "neither names, shapes nor keys tell of which weights, so they are taken as raw"
    return (f"called averages by their writer: {called}; {untold}",) if called else ()


def _by_file_name(name: str) -> tuple[str, tuple[str, ...], str]:
    """Role, evidence and confidence of the only set, as far as the file's name tells."""
    if match := _GUIDED.fullmatch(name):
        said = f"the file is called {name!r}, as guided diffusion calls an average with decay {match['decay']}"
        return AVERAGE, (said, f"its name says step {int(match['step'])}"), "inferred"
    if _TWIN_FILE.fullmatch(name):
        return AVERAGE, (f"the file is called {name!r}, as NeMo calls the average beside a checkpoint",), "inferred"
    return RAW, ("a set of weights without a word on whether it is an average",), "unknown"
