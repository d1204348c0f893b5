"""The package timm: ``state_dict`` is the model, ``state_dict_ema`` its average."""

from __future__ import annotations

from polyak.contents import Contents
from polyak.dialects.torch_sets import Reading, bare, same, sets, snapshot
from polyak.manifest import AVERAGE, RAW
from polyak.snapshot import Snapshot

_RAW, _AVERAGE = "state_dict", "state_dict_ema"
_DECAY = "args/model_ema_decay"


def interpret(contents: Contents) -> Snapshot | None:
    """None unless both sets are there with the same names and shapes."""
    found = sets(contents)
    if not {_RAW, _AVERAGE} <= set(found):
        return None
    raw, average = bare(found[_RAW].tensors), bare(found[_AVERAGE].tensors)
    if not same(raw, average):
        return None
    decay = contents.facts.get(_DECAY)
    evidence = (
        f"{_RAW!r} and {_AVERAGE!r} have the same names and shapes, as timm writes them",
        f"the arguments of the run say a decay of {decay}" if decay is not None else "the decay is not in the file",
    )
    used = found[_RAW].stored | found[_AVERAGE].stored
    whole = {RAW: found[_RAW].tensors, AVERAGE: found[_AVERAGE].tensors}
    return snapshot(contents, Reading("timm", {RAW: raw, AVERAGE: average}, used, evidence, whole=whole))
