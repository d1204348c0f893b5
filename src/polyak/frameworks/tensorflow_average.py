"""The average of a TensorFlow model: variables that tf.train.Checkpoint, tf.function and XLA work on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Protocol, cast

import tensorflow as tf

from polyak.averaging.parts import Parts, rule_from_json
from polyak.averaging.rules import Rule
from polyak.errors import Applied, ModelError, NonFiniteWarning, RuleChanged, RuleError, UnbuiltModel, notify
from polyak.frameworks.base import Average
from polyak.frameworks.tensorflow_binding import Bound, bind, group, is_finite, restart
from polyak.frameworks.tensorflow_exchange import enter, holds_average, leave, watch, watchers
from polyak.frameworks.tensorflow_kernel import OPS, copy, glide, is_safe, move
from polyak.frameworks.tensorflow_state import Counters, Memo, Ref, ShadowTarget
from polyak.frameworks.tensorflow_target import RawTarget, Variables
from polyak.manifest import State, decode_memo, encode_memo
from polyak.transfer.target import PutBack, Target
from polyak.weights import Kind

# Below one half by more than the rounding in which NumPy and TensorFlow may differ.
_SURELY_NEAR = 0.4999
_APPLIED = "the average is applied to the model: an update now would average the averaged weights"


class Host(Protocol):
    """What an average asks of the framework that made it."""

    def is_built(self, model: Any) -> bool:
        """Whether the model has its weights."""

    def refuse_unbuilt(self, model: Any) -> None:
        """Raise UnbuiltModel if it has not."""

    def variables(self, model: Any, kinds: Mapping[str, Kind]) -> Variables:
        """The model's weights."""

    def call(self, average: TensorFlowAverage, *args: Any, **kwargs: Any) -> Any:
        """Run the model with the averaged values."""

    def served(self, average: TensorFlowAverage) -> tuple[Callable[..., Any], Mapping[str, tf.Variable]]:
        """A function that does so in a SavedModel, and the variables that it reads."""


class TensorFlowAverage(tf.__internal__.tracking.AutoTrackable, Average):
    """An average whose state is TensorFlow variables.

    Checkpoint keys are ``shadows/<path>``, ``raw/<path>``, ``count``, ``skipped`` and ``memo``. The raw weights are
    the model's own variables: TensorFlow stores each variable once, so they cost nothing where the model is in the
    checkpoint too, and they are complete where TensorFlow's own file of the model is not.
    """

    def __init__(self, framework: Host, model: Any, rule: Rule | Parts, kinds: Mapping[str, Kind]) -> None:
        self.rule = rule
        self._framework = Ref(framework)
        self._followed = Ref(model)
        self._kinds = Ref(dict(kinds))
        self._held: Ref = Ref(None)
        self._compiled = Ref(None)
        self._twin = Ref(None)
        self._entered = Ref(0)
        self._traced = Ref(False)
        self._reported = Ref(0)
        with tf.init_scope():
            self._own = Ref(Counters.at_zero())
        for name, state in (("count", self._counts.updates), ("skipped", self._counts.refused)):
            self._track_trackable(state, name=name)
        self._track_trackable(Memo(self), name="memo")
        if framework.is_built(model):
            self._bind()
        else:
            self._refuse_start_without_weights()

    # What it is

    def followed(self) -> Any:
        return self._followed.value

    @property
    def bound(self) -> Bound:
        """The pairs. Raises UnbuiltModel while the model has no weights."""
        if self._held.value is None:
            self.framework.refuse_unbuilt(self.followed())
            self._bind()
        return cast(Bound, self._held.value)

    @property
    def _counts(self) -> Counters:
        return cast(Counters, self._own.value)

    @property
    def framework(self) -> Host:
        return cast(Host, self._framework.value)

    @property
    def count(self) -> int:
        return int(self._counts.updates.numpy())

    @property
    def skipped(self) -> int:
        return int(self._counts.refused.numpy())

    @property
    def target(self) -> Target:
        return ShadowTarget(self, self.bound.shadows)

    @property
    def source(self) -> Target:
        return RawTarget(self.bound.raw)

    def __repr__(self) -> str:
        if self._held.value is None and not self.framework.is_built(self.followed()):
            return f"<{self.label}: waits for the model to be built>"
        return super().__repr__()

    # Moving

    @tf.autograph.experimental.do_not_convert
    def update(self) -> None:
        bound = self.bound
        if not tf.executing_eagerly():
            self._traced.value = True
            self._move(bound, move)
            return
        self._refuse_applied()
        self._step(bound)
        self.report_skips()

    def _step(self, bound: Bound) -> None:
        """An eager update. The few that begin a run take the general way; the many after them one small program."""
        n = self.count + 1
        if not all(0 < float(rule.weight(n)) < _SURELY_NEAR for rule, _ in bound.moved):
            self._move(bound, move)
            return
        if self._compiled.value is None:
            self._compiled.value = tf.function(lambda: self._move(self.bound, glide), autograph=False)
        self._compiled.value()

    def _move(self, bound: Bound, move: Callable[..., None]) -> None:
        """One update as operations. Every condition is a scalar, so that no branch lies within another."""
        counts = self._counts
        n = tf.cast(counts.updates + 1, tf.float64)
        weights = [tf.cast(rule.weight(n, OPS), tf.float64) for rule, _ in bound.moved]
        free = ~tf.identity(counts.in_use)
        tf.debugging.Assert(free, [_APPLIED])
        moving = free & (tf.reduce_any([w > 0 for w in weights]) if weights else tf.constant(True))
        safe = tf.cond(moving, lambda: is_safe([v for _, v in bound.guarded]), lambda: tf.constant(True))
        for (_, pairs), w in zip(bound.moved, weights, strict=True):
            move(pairs, w, moving & safe)
        copy(bound.copied, moving & safe)
        counts.updates.assign_add(tf.cast(free & safe, tf.int64))
        counts.refused.assign_add(tf.cast(free & ~safe, tf.int64))

    def report_skips(self) -> None:
        """Warn of updates that were skipped since the last report; those of a restored state were reported then."""
        skipped = self.skipped
        if self._reported.value is None:
            self._reported.value = skipped
        if skipped <= self._reported.value:
            return
        bad = [path for path, v in self.bound.guarded if not is_finite(v)]
        named = f"weight {bad[0]!r}" if bad else "a weight"
        notify(
            NonFiniteWarning(
                f"{named} is not finite: {skipped - self._reported.value} update(s) skipped, "
                f"{skipped} in all; the average keeps its last finite values"
            )
        )
        self._reported.value = skipped

    def reset(self) -> None:
        self._refuse_applied()
        restart(self.bound, self.rule)
        self._set_counts(0, 0)

    # Using

    @contextmanager
    def applied(self) -> Iterator[None]:
        if not tf.executing_eagerly():
            raise Applied("applied() was called inside a tf.function", hint="call the average itself there: ema(x)")
        bound = self._fresh()
        self.report_skips()
        owner = object()
        self._entered.value += 1
        try:
            for shadow, raw in bound.pairs:
                enter(raw, owner, tf.cast(shadow, raw.dtype))
            self._tell_watchers(bound)
            yield
        finally:
            for _, raw in bound.pairs:
                leave(raw, owner)
            self._tell_watchers(bound)
            self._entered.value -= 1

    def _tell_watchers(self, bound: Bound) -> None:
        for average in watchers(bound.raw.variables.values()):
            average.look()

    def look(self) -> None:
        """Notice whether any of the followed weights holds averaged values now, of this or of another average."""
        self._counts.in_use.assign(any(holds_average(v) for v in self.bound.raw.variables.values()))

    @property
    def is_applied(self) -> bool:
        """Whether this average is applied to its model now."""
        return bool(self._entered.value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.framework.call(self, *args, **kwargs)

    def twin(self) -> Any:
        """A copy of the model whose variables hold the averaged values, and what is left out as it is now."""
        bound = self._fresh()
        if self._twin.value is None:
            with tf.init_scope():
                self._twin.value = self._make_twin(bound)
        model, variables = self._twin.value
        for path, mine in variables.items():
            value = bound.shadows.variables.get(path, bound.raw.variables[path])
            mine.assign(tf.cast(value, mine.dtype))
        return model

    def _make_twin(self, bound: Bound) -> tuple[Any, Mapping[str, tf.Variable]]:
        try:
            model = deepcopy(self.followed(), {id(a): a for a in (self, *watchers(bound.raw.variables.values()))})
        except Exception as error:
            raise ModelError(
                f"{bound.raw.label}: expected a model that can be copied, received {type(error).__name__}: {error}",
                hint="use `with ema.applied(): model(x)` instead",
            ) from error
        return model, self.framework.variables(model, self._kinds.value).variables

    # State

    def adopt(self, state: State | None) -> None:
        """Take over a rule and counts. Without a state the values count as a start: zero updates."""
        if state is None:
            self._set_state(self.rule, 0, 0)
        else:
            self._set_state(rule_from_json(state.rule), state.count, state.skipped)

    def hold_state(self) -> PutBack:
        """Remember rule and counts; the result puts them back."""
        rule, state = self.rule, self.state
        return lambda: self._set_state(rule, state.count, state.skipped)

    def refuse_swapped_file(self) -> None:
        """Raise Applied when another tool is about to write averaged values as the model's raw weights."""
        if bool(self._counts.in_use.numpy()):
            raise Applied(
                "the average is applied to the model: this file would hold averaged values as raw weights",
                hint="leave the `with ema.applied()` block first, or use polyak.save, which knows",
            )

    def memo(self) -> str:
        """Rule and evidence as JSON text, for files that TensorFlow or Keras write."""
        weights = self.bound.shadows.weights if self._held.value is not None else ()
        return encode_memo(self.rule.to_json(), weights)

    def compare_memo(self, text: bytes | str) -> None:
        """Warn if restored values were made under another rule than the average has now."""
        self._reported.value = None
        restored = rule_from_json(decode_memo(text).rule)
        if restored != self.rule:
            notify(RuleChanged(f"the restored average was made with {restored}; it goes on with {self.rule}"))

    def _set_state(self, rule: Rule | Parts, count: int, skipped: int) -> None:
        if rule != self.rule:
            if self._traced.value:
                raise RuleError(
                    f"expected the rule {self.rule}, which a traced tf.function contains already, received {rule}",
                    hint="transfer the state before the first traced update()",
                )
            self.rule = rule
            self._compiled.value = None
            self._held.value = group(self.bound, rule)
        self._set_counts(count, skipped)

    def _set_counts(self, count: int, skipped: int) -> None:
        self._counts.updates.assign(count)
        self._counts.refused.assign(skipped)
        self._reported.value = skipped

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> dict[str, Any]:
        """A SavedModel serves values; an average in it would only weigh it down."""
        if save_type == "savedmodel":
            return {}
        self._bind_if_built()
        return cast("dict[str, Any]", super()._trackable_children(save_type, **kwargs))

    def _lookup_dependency(self, name: str, cached_dependencies: Any = None) -> Any:
        """A restore asks here: shadows of a model built meanwhile must exist by then."""
        self._bind_if_built()
        return super()._lookup_dependency(name, cached_dependencies)

    def __deepcopy__(self, memo: dict[int, Any]) -> TensorFlowAverage:
        raise ModelError(
            f"{self.label} cannot be copied with its model",
            hint="copy the model without it, track the copy, and use polyak.transfer(ema, other_ema)",
        )

    # Binding

    def _bind_if_built(self) -> None:
        if self._held.value is None and self.framework.is_built(self.followed()):
            self._bind()

    def _bind(self) -> None:
        with tf.init_scope():
            raw = self.framework.variables(self.followed(), self._kinds.value)
            bound = self._held.value = bind(raw, self.rule)
            self.shadows = dict(bound.shadows.variables)
            self.raw = dict(raw.trackables)
            self.look()
        for variable in raw.variables.values():
            watch(variable, self)

    def _fresh(self) -> Bound:
        """The pairs, after a check that the model still has the weights that are followed."""
        bound = self.bound
        now = self.framework.variables(self.followed(), self._kinds.value).variables
        grown = [p for p, v in now.items() if bound.raw.variables.get(p) is not v]
        if grown:
            raise ModelError(
                f"weight {grown[0]!r} was created after the average of {bound.raw.label} ({len(grown)} in all)",
                hint="make a new average, then polyak.transfer(old, new, exclude=...) what they share",
            )
        return bound

    def _refuse_applied(self) -> None:
        if bool(self._counts.in_use.numpy()):
            raise Applied(_APPLIED, hint="leave the `with ema.applied()` block first")

    def _refuse_start_without_weights(self) -> None:
        rules = self.rule.rules if isinstance(self.rule, Parts) else (self.rule,)
        for rule in rules:
            if float(rule.weight(1.0)) < 1 and rule.origin == "weights":
                raise UnbuiltModel(
                    f"rule {rule} starts at the initial weights; {type(self.followed()).__name__} has none yet",
                    hint='build the model first, or use a rule whose first update copies, such as start="copy"',
                )
