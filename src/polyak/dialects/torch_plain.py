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
from polyak.dialects.torch_beside import called_average, is_of_training, named_after, networks_beside
from polyak.dialects.torch_sets import TORCH, Named, Reading, bare, file_name, parameters, same, sets, snapshot, usual
from polyak.errors import listed
from polyak.manifest import AVERAGE, RAW
from polyak.snapshot import Snapshot

_GUIDED = re.compile(r"ema_(?P<decay>0?\.\d+)_(?P<step>\d+)\.\w+")
_TWIN_FILE = re.compile(r".*-EMA\.ckpt")


def interpret(contents: Contents) -> Snapshot | None:
    """None unless the file is PyTorch's."""
    if contents.format != TORCH:
        return None
    found = {key: s for key, s in sets(contents).items() if any(t.shape for t in s.tensors.values())}
    return snapshot(contents, _twins(found) or _only(found) or _alone(found, contents))


def _twins(found: Mapping[str, Named]) -> Reading | None:
    """One set, and others of its names and shapes that are called averages; or several sets with one average each."""
    averages = [s for s in found.values() if called_average(s.key)]
    raws = [s for s in found.values() if not called_average(s.key)]
    pairs = [(raw, average) for average in averages for raw in _averaged_in(average, raws)]
    if len({raw.key for raw, _ in pairs}) == 1:
        return _averages_of(pairs[0][0], [average for _, average in pairs])
    return next((_side_by_side(told) for told in (pairs, _by_keys(pairs)) if _each_once(told, pairs)), None)


def _by_keys(pairs: Sequence[tuple[Named, Named]]) -> list[tuple[Named, Named]]:
    """The pairs that their keys tell, too, where several networks have the same names and shapes."""
    return [(raw, average) for raw, average in pairs if named_after(average.key, raw.key)]


def _each_once(told: Sequence[tuple[Named, Named]], pairs: Sequence[tuple[Named, Named]]) -> bool:
    """Whether these are one average for each network, and one network for each average, of all that there are."""
    keys = [{pair[side].key for pair in some} for some in (told, pairs) for side in (0, 1)]
    return bool(told) and all(len(held) == len(told) for held in keys)


def _averages_of(raw: Named, averages: Sequence[Named]) -> Reading:
    called = {AVERAGE if len(averages) == 1 else f"{AVERAGE}:{a.key or 'file'}": a for a in averages}
    roles = {RAW: bare(raw.tensors)} | {role: _completed(raw, a) for role, a in called.items()}
    whole = {RAW: raw.tensors} | {role: a.tensors for role, a in called.items()}
    return Reading("PyTorch", roles, _stored(raw, *averages), _why([(raw, a) for a in averages]), whole=whole)


def _side_by_side(pairs: Sequence[tuple[Named, Named]]) -> Reading:
    """Networks with an average each: a generator and a discriminator. Each weight has its network's key in its name."""
    raw = {n: t for s, _ in pairs for n, t in _with_key(s.key, bare(s.tensors)).items()}
    average = {n: t for s, a in pairs for n, t in _with_key(s.key, _completed(s, a)).items()}
    return Reading("PyTorch", {RAW: raw, AVERAGE: average}, _stored(*(s for p in pairs for s in p)), _why(pairs))


def _stored(*of: Named) -> frozenset[str]:
    return frozenset(name for s in of for name in s.stored)


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


def _why(pairs: Sequence[tuple[Named, Named]]) -> tuple[str, ...]:
    return (*(_names_of(*p) for p in pairs), "no tool that is known writes this; some tools save the two swapped")


def _names_of(raw: Named, average: Named) -> str:
    own, held = bare(average.tensors), _completed(raw, average)
    left = {
        "which it takes from there": [n for n in held if n not in own],
        "which it lacks": [n for n in bare(raw.tensors) if n not in held],
    }
    rest = "".join(f" but for {listed(names)}, {what}," for what, names in left.items() if names)
    return f"{average.place} has the names and shapes of {raw.place}{rest} and is called an average by its writer"


def _only(found: Mapping[str, Named]) -> Reading | None:
    """The only network, if it is called an average: what a training keeps that empties its model before it saves."""
    averages = [s for s in found.values() if called_average(s.key)]
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
    tensors = {n: t for s in kept for n, t in _with_key(s.key, bare(s.tensors)).items()}
    return Reading("PyTorch", {role: tensors} if tensors else {}, _stored(*kept), evidence, confidence)


def _beside(held: Named | None, others: Sequence[Named]) -> tuple[str, ...]:
    said = listed([s.place for s in others])
    found = held and f"{said} may be a network beside {held.place}: each weight has its key in its name"
    return (found,) if found else ()


def _unpaired(kept: Sequence[Named]) -> tuple[str, ...]:
    """A word on averages by their keys that are taken as raw."""
    called = ", ".join(s.place for s in kept if called_average(s.key))
    untold = "neither names, shapes nor keys tell of which weights, so they are taken as raw"
    return (f"called averages by their writer: {called}; {untold}",) if called else ()


def _with_key(key: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{key}/{n}" if key else n: t for n, t in tensors.items()}


def _by_file_name(name: str) -> tuple[str, tuple[str, ...], str]:
    """Role, evidence and confidence of the only set, as far as the file's name tells."""
    if match := _GUIDED.fullmatch(name):
        said = f"the file is called {name!r}, as guided diffusion calls an average with decay {match['decay']}"
        return AVERAGE, (said, f"its name says step {int(match['step'])}"), "inferred"
    if _TWIN_FILE.fullmatch(name):
        return AVERAGE, (f"the file is called {name!r}, as NeMo calls the average beside a checkpoint",), "inferred"
    return RAW, ("a set of weights without a word on whether it is an average",), "unknown"
