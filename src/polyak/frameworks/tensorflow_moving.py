"""Updates on TensorFlow: averages of one model that move together, eagerly as one small program or as operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import tensorflow as tf

from polyak.frameworks.base import Tracking
from polyak.frameworks.exchange import Watcher, together
from polyak.frameworks.stateful import APPLIED
from polyak.frameworks.tensorflow_binding import Bound, equal_shapes, refuse_resized
from polyak.frameworks.tensorflow_kernel import OPS, Part, copy, glide, is_safe, move
from polyak.frameworks.tensorflow_lending import refuse_graph
from polyak.frameworks.tensorflow_placing import HOST, refuse_shared
from polyak.frameworks.tensorflow_state import Counters
from polyak.transfer.unbroken import unbroken

# Below one half by more than the rounding in which NumPy and TensorFlow may differ.
_SURELY_NEAR = 0.4999


class Moved(Watcher, Protocol):
    """An average, as far as moving it needs to know it."""

    @property
    def bound(self) -> Bound: ...
    @property
    def counts(self) -> Counters: ...
    @property
    def count(self) -> int: ...
    @property
    def label(self) -> str: ...
    @property
    def tracking(self) -> Tracking: ...
    def note_traced(self) -> None: ...
    def complete(self) -> None: ...
    def refuse_applied(self) -> None: ...
    def report_skips(self) -> None: ...


class Moving:
    """Updates averages of one model, all in one pass over its weights."""

    def __init__(self, averages: Sequence[Moved]) -> None:
        self._averages = tuple(averages)
        self._compiled: tuple[tuple[object, ...], Callable[[], object]] | None = None

    @tf.autograph.experimental.do_not_convert
    def __call__(self) -> None:
        if not tf.executing_eagerly():
            with tf.init_scope():
                refuse_graph(self._averages[0].label)  # no tf.function, but a graph of a session
            self._complete()
            for average in self._averages:
                average.note_traced()
            self._trace(move, True)
            return
        for average in self._averages:
            average.bound  # noqa: B018 - its locks are those of the weights from here on
        self._complete()
        with together(self._averages):
            for average in self._averages:
                average.refuse_applied()
                refuse_resized(average.bound)
            with unbroken():
                self._step()
        for average in self._averages:
            average.report_skips()

    @tf.autograph.experimental.do_not_convert
    def update_if(self, real: tf.Tensor) -> None:
        """Update inside a traced function, where a truth value says whether there is something to follow."""
        if not tf.executing_eagerly():
            self._complete()
            # Not noted as traced: such a function lives no longer than a `fit`, which makes it anew for another rule.
            self._trace(move, real)
        elif bool(real):
            self()

    def _complete(self) -> None:
        for average in self._averages:
            average.complete()

    def _step(self) -> None:
        """An eager update. The few with large weights take the general way; the many others one small program."""
        if all(map(_glides, self._averages)):
            self._program()()
        else:
            self._trace(move, True)

    def _program(self) -> Callable[[], object]:
        """Made anew where a model has grown, a rule was changed, or another strategy is in charge.

        A function of one trace: to find which one is meant, TensorFlow would look at every variable at every call.
        """
        strategy = tf.distribute.get_strategy()
        made_for = (*(average.bound for average in self._averages), strategy, tf.distribute.in_cross_replica_context())
        if self._compiled is None or any(a is not b for a, b in zip(self._compiled[0], made_for, strict=True)):
            update = tf.function(lambda: self._trace(glide, True), autograph=False)
            self._compiled = made_for, update.get_concrete_function()
        return self._compiled[1]

    def _trace(self, move: Callable[[Sequence[Part]], None], real: bool | tf.Tensor) -> None:
        """One update as operations, on the host where all averages lie there."""
        for average in self._averages:
            refuse_shared(average.label, (*average.bound.shadows.variables.values(), average.counts.updates))
        on_host = all(average.tracking.on_host for average in self._averages)
        traced = () if tf.executing_eagerly() else self._averages
        shaped = [tensor for average in traced for tensor in equal_shapes(average.bound)]
        with tf.device(HOST if on_host else None), tf.control_dependencies(shaped):
            self._operations(move, real)

    def _operations(self, move: Callable[[Sequence[Part]], None], real: bool | tf.Tensor) -> None:
        """Every condition is a scalar, so that no branch lies within another."""
        turns = [_Turn.of(average, real) for average in self._averages]
        safe = _are_safe(turns)
        go = [turn.moving & ok for turn, ok in zip(turns, safe, strict=True)]
        move([part for turn, g in zip(turns, go, strict=True) for part in turn.parts(g)])
        for turn, ok, g in zip(turns, safe, go, strict=True):
            copy(turn.bound.copied, g)
            turn.count(ok)


@dataclass(frozen=True, slots=True)
class _Turn:
    """One average at one update: the weights of the newest values, and whether it moves at all."""

    average: Moved
    bound: Bound
    weights: Sequence[tf.Tensor]
    free: tf.Tensor
    moving: tf.Tensor

    @classmethod
    def of(cls, average: Moved, real: bool | tf.Tensor) -> _Turn:
        bound, counts = average.bound, average.counts
        n = tf.cast(counts.updates + 1, tf.float64)
        weights = [tf.cast(rule.weight(n, OPS), tf.float64) for rule, _ in bound.moved]
        free = ~tf.identity(counts.in_use)
        tf.debugging.Assert(free, [APPLIED])
        free &= real
        moving = free & (_any([w > 0 for w in weights]) if weights else tf.constant(True))
        return cls(average, bound, weights, free, moving)

    @property
    def rests(self) -> bool:
        """Whether most updates leave everything as it is: then a branch that reads nothing is worth having."""
        return bool(self.weights) and all(rule.rests for rule, _ in self.bound.moved)

    def parts(self, go: tf.Tensor) -> list[Part]:
        return [Part(pairs, w, go) for (_, pairs), w in zip(self.bound.moved, self.weights, strict=True)]

    def count(self, safe: tf.Tensor) -> None:
        counts = self.average.counts
        counts.updates.assign_add(tf.cast(self.free & safe, tf.int64))
        counts.refused.assign_add(tf.cast(self.free & ~safe, tf.int64))


def _are_safe(turns: Sequence[_Turn]) -> list[tf.Tensor]:
    """For each average, whether what it follows may be averaged; weights that several follow are looked at once."""
    shared: dict[tuple[int, ...], list[_Turn]] = {}
    for turn in turns:
        shared.setdefault(_guard(turn), []).append(turn)
    found = {key: _looked_at(members) for key, members in shared.items()}
    return [found[_guard(turn)] | ~turn.moving for turn in turns]


def _guard(turn: _Turn) -> tuple[int, ...]:
    return tuple(id(variable) for _, variable in turn.bound.guarded)


def _looked_at(turns: Sequence[_Turn]) -> Any:
    variables = [variable for _, variable in turns[0].bound.guarded]
    if not all(turn.rests for turn in turns):
        return is_safe(variables)
    moving = _any([turn.moving for turn in turns])
    return tf.cond(moving, lambda: is_safe(variables), lambda: tf.constant(True))


def _any(truths: Sequence[tf.Tensor]) -> tf.Tensor:
    return truths[0] if len(truths) == 1 else tf.reduce_any(truths)


def _glides(average: Moved) -> bool:
    n = average.count + 1
    return all(float(rule.weight(n)) < _SURELY_NEAR for rule, _ in average.bound.moved)
