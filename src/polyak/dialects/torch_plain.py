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

from polyak.contents import Contents, Tensor
from polyak.dialects.called import says_average
from polyak.dialects.torch_sets import TORCH, Named, Reading, bare, file_name, parameters, same, sets, snapshot, usual
from polyak.errors import listed
from polyak.manifest import AVERAGE, RAW
from polyak.snapshot import Snapshot

_GUIDED = re.compile(r"ema_(?P<decay>0?\.\d+)_(?P<step>\d+)\.\w+")
_AVERAGED = re.compile(r"(?<![a-z])(ema|swa|avg|averaged?|teacher|shadow)(?![a-z])")
_TWIN_FILE = re.compile(r".*-EMA\.ckpt")


def interpret(contents: Contents) -> Snapshot | None:
    """None unless the file is PyTorch's."""
    if contents.format != TORCH:
        return None
    found = {key: s for key, s in sets(contents).items() if any(t.shape for t in s.tensors.values())}
    return snapshot(contents, _twins(found) or _only(found) or _alone(found, contents))


def _twins(found: Mapping[str, Named]) -> Reading | None:
    """One set, and others of its names and shapes that are called averages: of all its weights, or of some."""
    averages = [s for s in found.values() if _called_average(s.key)]
    raws = [s for s in found.values() if not _called_average(s.key)]
    pairs = [(raw, average) for average in averages for raw in _averaged_in(average, raws)]
    if len({raw.key for raw, _ in pairs}) != 1:
        return None
    raw, averages = pairs[0][0], [average for _, average in pairs]
    called = {AVERAGE if len(averages) == 1 else f"{AVERAGE}:{a.key or 'file'}": a for a in averages}
    evidence = (*(_why(raw, a) for a in averages), "no tool that is known writes this; some tools save the two swapped")
    roles = {RAW: bare(raw.tensors)} | {role: _completed(raw, a) for role, a in called.items()}
    return Reading("PyTorch", roles, raw.stored.union(*(a.stored for a in averages)), evidence)


def _averaged_in(average: Named, raws: Sequence[Named]) -> list[Named]:
    """The sets that have the average's names and shapes; where there are none, those that have them among others."""
    own = bare(average.tensors)
    alike = [raw for raw in raws if same(bare(raw.tensors), own)]
    return alike or [raw for raw in raws if same({n: t for n, t in bare(raw.tensors).items() if n in own}, own)]


def _completed(raw: Named, average: Named) -> dict[str, Tensor]:
    """The average, and the buffers of its model, in the model's order."""
    whole, own = bare(raw.tensors), bare(average.tensors)
    trained = parameters(whole)
    return {n: own.get(n, t) for n, t in whole.items() if n in own or n not in trained}


def _why(raw: Named, average: Named) -> str:
    own, held = bare(average.tensors), _completed(raw, average)
    left = {
        "which it takes from there": [n for n in held if n not in own],
        "which it lacks": [n for n in bare(raw.tensors) if n not in held],
    }
    rest = "".join(f" but for {listed(names)}, {what}," for what, names in left.items() if names)
    return f"{average.place} has the names and shapes of {raw.place}{rest} and is called an average by its writer"


def _only(found: Mapping[str, Named]) -> Reading | None:
    """The only set, if it is called an average: what a training keeps that empties its model before it saves."""
    if len(found) != 1 or not _called_average((one := next(iter(found.values()))).key):
        return None
    said = f"{one.place} is the only set, and called an average by its writer"
    return Reading("PyTorch", {AVERAGE: bare(one.tensors)}, one.stored, (said,))


def _called_average(key: str) -> bool:
    return says_average(key, _AVERAGED)


def _alone(found: Mapping[str, Named], contents: Contents) -> Reading:
    held = usual(found)
    if held is not None and not _has_twin(held, found):
        tensors, used = bare(held.tensors), held.stored
    else:
        tensors = {n: t for s in found.values() for n, t in _with_key(s).items()}
        used = frozenset(n for s in found.values() for n in s.stored)
    role, evidence, confidence = _by_file_name(file_name(contents))
    return Reading("PyTorch", {role: tensors} if tensors else {}, used, evidence, confidence)


def _has_twin(held: Named, found: Mapping[str, Named]) -> bool:
    """Whether another set has the same names and shapes, so that neither is the model more than the other."""
    return any(s is not held and same(bare(s.tensors), bare(held.tensors)) for s in found.values())


def _with_key(held: Named) -> dict[str, Tensor]:
    return {f"{held.key}/{n}" if held.key else n: t for n, t in bare(held.tensors).items()}


def _by_file_name(name: str) -> tuple[str, tuple[str, ...], str]:
    """Role, evidence and confidence of the only set, as far as the file's name tells."""
    if match := _GUIDED.fullmatch(name):
        said = f"the file is called {name!r}, as guided diffusion calls an average with decay {match['decay']}"
        return AVERAGE, (said, f"its name says step {int(match['step'])}"), "inferred"
    if _TWIN_FILE.fullmatch(name):
        return AVERAGE, (f"the file is called {name!r}, as NeMo calls the average beside a checkpoint",), "inferred"
    return RAW, ("a set of weights without a word on whether it is an average",), "unknown"
