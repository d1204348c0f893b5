"""Which parts of a TensorFlow 2 object graph are optimizers, whatever the user calls them there."""

from __future__ import annotations

from collections.abc import Collection

GraphPath = tuple[str, ...]
_NAME = "optimizer"  # what Keras' models call theirs
# What lies beside each other in an optimizer of Keras 3 and of Keras 2.11 and later, and in one of Keras 2 before.
_MARKS = (("_iterations", "_learning_rate"), ("_iterations", "_variables"), ("iter", "learning_rate", "decay"))


def optimizers(paths: Collection[GraphPath]) -> frozenset[GraphPath]:
    """The paths that lead to optimizers.

    Example:
        >>> sorted(optimizers([("opt", "_iterations"), ("opt", "_variables", "0"), ("model", "bias")]))
        [('opt',)]
    """
    children: dict[GraphPath, set[str]] = {}
    for path in paths:
        for depth in range(1, len(path)):
            children.setdefault(path[:depth], set()).add(path[depth])
    return frozenset(owner for owner, held in children.items() if any(held.issuperset(mark) for mark in _MARKS))


def is_within(path: GraphPath, owners: Collection[GraphPath]) -> bool:
    """Whether a path leads into an optimizer."""
    return _NAME in path or any(path[:depth] in owners for depth in range(1, len(path)))
