"""Arrays that have no mean by themselves: packed weights, masks and tables, and what another array is multiplied by.

The mean of products is no product of means: a scale of float8 weights and the mask of a pruned layer are no weights
that were trained, and the weights beside them mean nothing without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from polyak.errors import DtypeMismatch, WeightError, argument
from polyak.weights import Kind, Weight, numpy_dtype

_CODES = ("int8", "uint8", "int4", "uint4", "int2", "uint2", "bool")  # of quantised weights; masks of pruned ones
_LONGEST_SEED = 4  # numbers: JAX's keys have 2 or 4, TensorFlow's generators 3, Keras' seeds 2
_SCALE, _ZERO = "scale", "zero_point"  # of codes; one scale with the zero of another one moves all values
_MASK, _MASKED = "_mask", "_orig"  # as torch.nn.utils.prune calls them

Refusal = Callable[[], WeightError]


def averaged(w: Weight) -> bool:
    """Whether a weight has a mean: floating-point, and neither counter nor seed."""
    return w.floating and w.kind in (Kind.TRAINABLE, Kind.STATISTIC)


def must_agree(weights: Iterable[Weight], drawn: frozenset[str]) -> dict[str, Refusal]:
    """What must be the same in all members, by its path, with the error if it is not.

    Args:
        drawn: the paths of random streams, which may differ.
    """
    held = list(weights)
    found = {w.path: _of_code(w) for w in held if not averaged(w) and w.path not in drawn and _is_weight(w)}
    return found | {factor: _of_factor(factor, product) for factor, product in factors(held).items()}


def factors(weights: Iterable[Weight]) -> Mapping[str, str]:
    """The paths of scales and masks, with the path of what is multiplied by each.

    Example:
        >>> from polyak.weights import Kind
        >>> def stored(path, dtype): return Weight(path, (2, 2), dtype, Kind.TRAINABLE)
        >>> factors([stored("a.weight", "float8_e4m3fn"), stored("a.weight_scale", "float32")])
        {'a.weight_scale': 'a.weight'}
        >>> factors([stored("a.weight", "float32"), stored("a.scale", "float32")])
        {}
    """
    held = [w for w in weights if w.floating]
    return dict([*_masks({w.path for w in held}), *_scales(held)])


def without(w: Weight) -> str:
    """A hint: how members are written that lack a weight."""
    return f"write members without it: polyak.convert(member, path, {argument('exclude', w.path)})"


def _masks(paths: set[str]) -> Iterator[tuple[str, str]]:
    of = {path: path.removesuffix(_MASK) + _MASKED for path in paths if path.endswith(_MASK)}
    return ((mask, masked) for mask, masked in of.items() if masked in paths)


def _scales(held: list[Weight]) -> Iterator[tuple[str, str]]:
    """Beside numbers of one byte in the same layer, or in what is called after one of them."""
    codes: dict[str, list[str]] = {}
    for w in held:
        if numpy_dtype(w.dtype).itemsize == 1 and not _is_scale(w.path):
            codes.setdefault(_owner(w.path), []).append(w.path)
    for path in (w.path for w in held if codes and _is_scale(w.path)):
        owner = _owner(path)
        beside = codes.get(owner) or [c for c in codes.get(_owner(owner), ()) if owner.startswith(c)]
        if beside:
            yield path, next((c for c in beside if path.startswith(c)), beside[0])


def _is_scale(path: str) -> bool:
    return _SCALE in path[len(_owner(path)) :].lower()


def _owner(path: str) -> str:
    return path[: max(path.rfind("."), path.rfind("/"), 0)]


def _is_weight(w: Weight) -> bool:
    """Whether numbers without a mean may be a layer's: complex, quantised, packed, a mask or a table.

    Not those of counters and seeds, which are one number or a few.
    """
    if w.dtype.startswith("complex") or _ZERO in w.path[len(_owner(w.path)) :]:
        return True
    if w.kind is Kind.SEED or not w.shape:
        return False
    return w.dtype in _CODES or len(w.shape) > 1 or w.size > _LONGEST_SEED


def _of_code(w: Weight) -> Refusal:
    return lambda: DtypeMismatch(
        f"weight {w.path!r}: expected floating-point numbers to average, received {w.dtype} that differ "
        "between the members",
        hint=f"{without(w)}; or dequantise them first, if that is what they are",
    )


def _of_factor(factor: str, product: str) -> Refusal:
    return lambda: WeightError(
        f"weight {factor!r}: expected the same values in all members, because {product!r} is multiplied by them, "
        "received others",
        hint=f"multiply {product!r} by them in each member first, in a wider dtype, and average the products; "
        "torch.nn.utils.prune.remove(layer, name) does it for masks",
    )
