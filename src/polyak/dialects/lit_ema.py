"""LitEma of latent and Stable Diffusion: the average of ``model.a.b`` is ``model_ema.ab``, its name without dots.

Only the parameters of ``model.*`` are averaged; all other weights belong to both sets, as when its tools sample.
"""

from __future__ import annotations

from collections import Counter

from polyak.contents import Contents
from polyak.dialects.torch_sets import Named, Reading, Set, bare, number, sets, snapshot, under
from polyak.manifest import AVERAGE, RAW
from polyak.snapshot import Snapshot

_MODEL, _EMA = "model.", "model_ema."
_DECAY, _UPDATES = "decay", "num_updates"


def interpret(contents: Contents) -> Snapshot | None:
    """None unless one set has both, and each average has exactly one weight of its shape and squeezed name."""
    for each in sets(contents).values():
        held = Named(each.key, bare(each.tensors), each.stored)
        shadows = under(held.tensors, _EMA)
        pairs = _pairs(held.tensors, {n: t for n, t in shadows.items() if n not in (_DECAY, _UPDATES)})
        if pairs is not None and {_DECAY, _UPDATES} <= set(shadows):
            return _snapshot(contents, held, pairs)
    return None


def _pairs(tensors: Set, shadows: Set) -> dict[str, str] | None:
    """The averages' names by the weights' names; None where one has no weight, or two."""
    squeezed = {name: name.removeprefix(_MODEL).replace(".", "") for name in tensors if name.startswith(_MODEL)}
    times = Counter(squeezed.values())
    pairs = {name: short for name, short in squeezed.items() if short in shadows}
    fitting = all(times[s] == 1 and tensors[n].shape == shadows[s].shape for n, s in pairs.items())
    return pairs if fitting and pairs and len(pairs) == len(shadows) else None


def _snapshot(contents: Contents, held: Named, pairs: dict[str, str]) -> Snapshot:
    raw = {n: t for n, t in held.tensors.items() if not n.startswith(_EMA)}
    average = {n: held.tensors[_EMA + pairs[n]] if n in pairs else t for n, t in raw.items()}
    decay, updates = (number(held.tensors[_EMA + n]) for n in (_DECAY, _UPDATES))
    evidence = (
        f"each of the {len(pairs)} arrays in {_EMA}* has the shape and the name without dots of one in {_MODEL}*",
        f"{_EMA}{_DECAY} = {decay:.6g} and {_EMA}{_UPDATES} = {updates}",
    )
    return snapshot(contents, Reading("LitEma", {RAW: raw, AVERAGE: average}, held.stored, evidence))
