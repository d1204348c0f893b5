"""The EMA hook of mmengine. It saves swapped: ``state_dict`` is the average, ``ema_state_dict`` the raw weights."""

from __future__ import annotations

from polyak.contents import Contents
from polyak.dialects.torch_sets import Reading, bare, is_count, number, same, sets, snapshot, under
from polyak.manifest import AVERAGE, RAW
from polyak.snapshot import Snapshot

_AVERAGE, _RAW, _PREFIX, _STEPS = "state_dict", "ema_state_dict", "module.", "steps"


def interpret(contents: Contents) -> Snapshot | None:
    """None unless both sets are there with the same names and shapes, and the hook's own counter."""
    found = sets(contents)
    if not {_AVERAGE, _RAW} <= set(found):
        return None
    held = bare(found[_RAW].tensors)
    average, raw = bare(found[_AVERAGE].tensors), bare(under(held, _PREFIX))
    if not same(average, raw) or not is_count(held.get(_STEPS)):
        return None
    version = contents.facts.get("meta/mmengine_version")
    evidence = (
        f"{_RAW!r} holds {_PREFIX}* and {_STEPS} = {number(held[_STEPS])}, and {_AVERAGE!r} the same names and shapes",
        "so mmengine's EMAHook writes them: it swaps the two before it saves",
        f"meta says mmengine {version}" if version is not None else "no version of mmengine is in the file",
        "the momentum is not in the file",
    )
    used = found[_AVERAGE].stored | found[_RAW].stored
    return snapshot(contents, Reading("mmengine", {RAW: raw, AVERAGE: average}, used, evidence))
