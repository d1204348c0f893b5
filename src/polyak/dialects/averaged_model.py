"""PyTorch's ``torch.optim.swa_utils.AveragedModel``: the average is ``module.*``, its count ``n_averaged``.

The rule is a function that the file does not hold; without one, AveragedModel is an equal mean.
"""

from __future__ import annotations

from polyak.contents import Contents
from polyak.dialects.torch_sets import Reading, bare, is_count, number, sets, snapshot, twin, under
from polyak.manifest import AVERAGE, RAW
from polyak.snapshot import Snapshot

_COUNT = "n_averaged"
_PREFIX = "module."


def interpret(contents: Contents) -> Snapshot | None:
    """None unless exactly one set is a count and weights that all are in ``module.``."""
    found = sets(contents)
    fitting = [s for s in found.values() if is_count(s.tensors.get(_COUNT)) and _all_wrapped(s.tensors)]
    if len(fitting) != 1:
        return None
    held = fitting[0]
    average = bare(under(held.tensors, _PREFIX))
    raw = twin(average, found, held.key)
    roles = {AVERAGE: average} if raw is None else {RAW: bare(raw.tensors), AVERAGE: average}
    used = held.stored | (raw.stored if raw else frozenset())
    count = number(held.tensors[_COUNT])
    why = f"{held.place} holds a count {_COUNT} = {count} and all else in {_PREFIX}*, as AveragedModel does"
    rule = "the rule is not in the file; without one of its own, AveragedModel is the equal mean"
    pair = f"{raw.place} has the same names and shapes" if raw else "no set with the same names is beside it"
    whole = {AVERAGE: held.tensors} | ({RAW: raw.tensors} if raw else {})
    return snapshot(contents, Reading("PyTorch AveragedModel", roles, used, (why, pair, rule), whole=whole))


def _all_wrapped(tensors: object) -> bool:
    names = set(tensors) - {_COUNT} if isinstance(tensors, dict) else set()
    return bool(names) and all(n.startswith(_PREFIX) for n in names)
