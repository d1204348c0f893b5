"""Random streams in files: Flax keeps a key and a count of draws beside the weights of each layer that draws."""

from __future__ import annotations

from collections.abc import Iterable

from polyak.weights import Weight

_KEY, _COUNT = "key", "count"
_LONGEST = (2, 4)  # numbers in a key of JAX, by its two algorithms


def of_streams(weights: Iterable[Weight]) -> frozenset[str]:
    """The paths of keys and counts of random streams, those of stacked layers included: one key and count for each.

    Both must be there, in JAX's dtype for them, and as many counts as keys.

    Example:
        >>> from polyak.weights import Kind
        >>> def stored(path, *shape): return Weight(path, shape, "uint32", Kind.COUNTER)
        >>> sorted(of_streams([stored("drop/key", 12, 2), stored("drop/count", 12), stored("a/key", 12, 8)]))
        ['drop/count', 'drop/key']
    """
    held = {w.path: w for w in weights if w.dtype == "uint32"}
    pairs = ((w, held.get(w.path.removesuffix(_COUNT) + _KEY)) for w in held.values() if _is_count(w.path))
    return frozenset(
        one.path for count, key in pairs if key is not None and _is_key_of(count, key) for one in (count, key)
    )


def _is_count(path: str) -> bool:
    return path.replace(".", "/").rpartition("/")[2] == _COUNT


def _is_key_of(count: Weight, key: Weight) -> bool:
    return key.shape[:-1] == count.shape and key.shape[-1:] in {(n,) for n in _LONGEST}
