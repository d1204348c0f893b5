"""Lightning's ``WeightAveraging`` callbacks. They are saved inverted: ``state_dict`` is the average."""

from __future__ import annotations

from polyak.contents import Contents
from polyak.dialects.torch_sets import Reading, bare, is_count, number, same, sets, snapshot
from polyak.manifest import AVERAGE, RAW
from polyak.snapshot import Snapshot

_AVERAGE, _RAW, _STATE = "state_dict", "current_model_state", "averaging_state"
_COUNT = "n_averaged"


def interpret(contents: Contents) -> Snapshot | None:
    """None unless both sets are there with the same names and shapes, and the count of the average."""
    found = sets(contents)
    if not {_AVERAGE, _RAW, _STATE} <= set(found):
        return None
    average, raw = bare(found[_AVERAGE].tensors), bare(found[_RAW].tensors)
    count = found[_STATE].tensors.get(_COUNT)
    if not same(average, raw) or not is_count(count):
        return None
    evidence = (
        f"{_AVERAGE!r} and {_RAW!r} have the same names and shapes, as Lightning's weight averaging writes them",
        f"{_STATE!r} is beside them, so the average was saved as the model",
        f"{_STATE}/{_COUNT} = {number(count)}; the rule is not in the file",
    )
    used = found[_AVERAGE].stored | found[_RAW].stored | {f"{_STATE}/{_COUNT}"}
    return snapshot(contents, Reading("Lightning", {RAW: raw, AVERAGE: average}, used, evidence))
