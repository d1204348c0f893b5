"""Names in trees of ``nnx``, which keeps each array in a Variable and writes it under ``value`` below its name.

``value`` may be a weight's own name as well: of attention, beside ``query`` and ``key``, or of a critic. So the step is
left out only where all arrays have it and each is alone with it. It stays otherwise: the name is then the stored one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

_VALUE = "/value"
_SETS = ("params", "variables", "batch_stats")


def short_names(paths: Iterable[str], beside: Callable[[str], bool]) -> dict[str, str]:
    """What each stored path is called here.

    Args:
        beside: whether an array is one that states of training have beside Variables.

    Example:
        >>> short_names(["model/kernel/value", "model/bias/value", "step"], lambda path: path == "step")
        {'model/kernel/value': 'model/kernel', 'model/bias/value': 'model/bias', 'step': 'step'}
        >>> short_names(["attn/query", "attn/value"], lambda path: False)
        {'attn/query': 'attn/query', 'attn/value': 'attn/value'}
    """
    held = list(paths)
    below = _below(held)
    formed = [p for p in held if _is_variable(p, below)]
    plain = {_tree(p) for p in {*held} - {*formed} if not beside(p)}
    sizes = Counter(_tree(p) for p in formed if not beside(p))
    trees = {tree for tree, size in sizes.items() if not plain or (tree not in plain and size > 1)}
    told = {p for p in formed if _tree(p) in trees or (trees and beside(p))}
    return {p: p.removesuffix(_VALUE) if p in told else p for p in held}


def _below(paths: list[str]) -> Counter[str]:
    """How many arrays are at each place and below it."""
    found: Counter[str] = Counter()
    for path in paths:
        steps = path.split("/")
        found.update("/".join(steps[:n]) for n in range(1, len(steps) + 1))
    return found


def _is_variable(path: str, below: Counter[str]) -> bool:
    owner = path.removesuffix(_VALUE)
    return owner != path and below[owner] == 1 and owner.rpartition("/")[2] not in _SETS


def _tree(path: str) -> str:
    return path.partition("/")[0]
