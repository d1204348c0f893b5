"""Counts of averages that PyTorch's modules hold: an average without its count is overwritten by its next update."""

from __future__ import annotations

from collections.abc import Sequence

from polyak.weights import Weight

# The weight that counts, and the module beside it that is the average: PyTorch's AveragedModel, and ema-pytorch.
_COUNTS = {"n_averaged": "module", "initted": "ema_model", "step": "ema_model"}


def hint(missing: Sequence[Weight], ours: Sequence[Weight]) -> str:
    """What to do where the count of an average is missing; empty where none is.

    Example:
        >>> from polyak.weights import Kind
        >>> ours = [Weight(n, (), "int64", Kind.COUNTER) for n in ("n_averaged", "module.bias")]
        >>> hint(ours, ours).partition(":")[0]
        "transfer into its 'module' alone, and set 'n_averaged' yourself"
    """
    for w in missing:
        start, mark, last = w.path.rpartition(".")
        inner = f"{start}{mark}{_COUNTS.get(last)}"
        if last in _COUNTS and any(o.path.startswith(f"{inner}.") for o in ours):
            counts = [start + mark + n for n, module in _COUNTS.items() if module == _COUNTS[last]]
            return (
                f"transfer into its {inner!r} alone, and set {' and '.join(map(repr, counts))} yourself: if they stay "
                "as they are, the next update overwrites the average"
            )
    return ""
