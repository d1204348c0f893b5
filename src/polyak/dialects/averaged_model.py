"""PyTorch's ``torch.optim.swa_utils.AveragedModel``: the average is ``module.*``, its count ``n_averaged``.

The rule is a function that the file does not hold; without one, AveragedModel is an equal mean.
"""

from __future__ import annotations

from dataclasses import replace

from polyak.contents import Contents, Tensor
from polyak.dialects.torch_pairs import counted
from polyak.dialects.torch_sets import Named, bare, is_count, number, sets, snapshot, under
from polyak.snapshot import Snapshot

_COUNT = "n_averaged"
_PREFIX = "module."


def interpret(contents: Contents) -> Snapshot | None:
    """None unless a set is a count and weights that all are in ``module.``, itself wrapped or not."""
    found = sets(contents)
    fitting = [s for s in found.values() if _is_averaged(bare(s.tensors))]
    if not fitting:
        return None
    reading, pair = counted([_average(s) for s in fitting], found)
    rule = "the rule is not in the file; without one of its own, AveragedModel is the equal mean"
    evidence = (*(_why(s) for s in fitting), pair, rule)
    return snapshot(contents, replace(reading, tool="PyTorch AveragedModel", evidence=evidence))


def _is_averaged(tensors: dict[str, Tensor]) -> bool:
    names = set(tensors) - {_COUNT}
    return is_count(tensors.get(_COUNT)) and bool(names) and all(n.startswith(_PREFIX) for n in names)


def _average(held: Named) -> Named:
    return Named(held.key, under(bare(held.tensors), _PREFIX), held.stored, held.tensors)


def _why(held: Named) -> str:
    count = number(bare(held.tensors)[_COUNT])
    return f"{held.place} holds a count {_COUNT} = {count} and all else in {_PREFIX}*, as AveragedModel does"
