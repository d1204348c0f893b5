"""The average of a TensorFlow model: variables that tf.train.Checkpoint, tf.function and XLA work on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import Any, Protocol, cast

import tensorflow as tf

from polyak.averaging.parts import Parts
from polyak.averaging.rules import Rule
from polyak.errors import Applied, ModelError, RuleError, WeightsChanged, notify
from polyak.frameworks.aside import tell_aside, tell_copied
from polyak.frameworks.base import Tracking
from polyak.frameworks.exchange import EXCHANGING, Left, holds_average, patiently, together, watchers
from polyak.frameworks.growth import Growth, followed_by, joined, refuse_grown, refuse_missing, tell_left_out
from polyak.frameworks.keras_derived import strangers
from polyak.frameworks.shadow_target import ShadowTarget
from polyak.frameworks.stateful import Ref, StatefulAverage, undisturbed
from polyak.frameworks.tensorflow_binding import Bound, bind, group, is_fit, restart
from polyak.frameworks.tensorflow_exchange import HANDS, enter, leave
from polyak.frameworks.tensorflow_lending import number, refuse_graph
from polyak.frameworks.tensorflow_moving import Moving
from polyak.frameworks.tensorflow_placing import Place
from polyak.frameworks.tensorflow_state import Counters, Memo
from polyak.frameworks.tensorflow_target import RawTarget, Variables
from polyak.frameworks.tensorflow_twin import Twin
from polyak.transfer.target import Target
from polyak.transfer.unbroken import surely, unbroken
from polyak.weights import Kind, Weight


class Host(Protocol):
    """What an average asks of the framework that made it."""

    def is_built(self, model: Any) -> bool:
        """Whether the model says that it has its weights."""

    def is_complete(self, model: Any) -> bool:
        """Whether it has them, said or not: no answer while its layers still are being made."""

    def refuse_unbuilt(self, model: Any) -> None:
        """Raise UnbuiltModel for a model that is not complete."""

    def variables(self, model: Any, kinds: Mapping[str, Kind]) -> Variables:
        """The model's weights."""

    aside_hint: str

    def layers(self, model: Any) -> list[Any]:
        """Layers of Keras, which may make weights when they are called."""

    def aside(self, model: Any) -> list[str]:
        """What the model holds beside its weights, in words."""

    def within(self, model: Any) -> list[Any]:
        """The model and all modules and layers in it, each once."""

    def call(self, average: TensorFlowAverage, *args: Any, **kwargs: Any) -> Any:
        """Run the model with the averaged values."""

    def served(self, average: TensorFlowAverage) -> tuple[Callable[..., Any], Mapping[str, tf.Variable]]:
        """A function that does so in a SavedModel, and the variables that it reads."""


class TensorFlowAverage(tf.__internal__.tracking.AutoTrackable, StatefulAverage):
    """An average whose state is TensorFlow variables.

    Checkpoint keys are ``shadows/<path>``, ``raw/<path>``, ``count``, ``skipped`` and ``memo``. The raw weights are
    the model's own variables: TensorFlow stores each variable once, so they cost nothing where the model is in the
    checkpoint too, and they are complete where TensorFlow's own file of the model is not.
    """

    def __init__(self, framework: Host, model: Any, rule: Rule | Parts, tracking: Tracking) -> None:
        StatefulAverage.__init__(self, model, rule, tracking)
        self._framework = Ref(framework)
        self._held: Ref = Ref(None)
        self._twin = Ref(None)
        self._entered: Ref = Ref(set())
        self._traced, self._captured, self._looked = Ref(False), Ref(False), Ref(False)
        self._moving = Ref(Moving([self]))
        raw = framework.variables(model, tracking.kinds) if framework.is_built(model) else None
        self._own: Ref = Ref(None)
        self._count_at(Place.asked(tracking, model, () if raw is None else raw.variables.values()))
        if raw is None:
            self.refuse_start_without_weights()
        else:
            self._begin(raw)
        self._track_trackable(Memo(self), name="memo")

    # What it is

    @property
    def bound(self) -> Bound:
        """The pairs. Raises UnbuiltModel while the model has no weights."""
        if self._held.value is None:
            self._bind()
        return cast(Bound, self._held.value)

    @property
    def counts(self) -> Counters:
        """Its counters as variables."""
        return cast(Counters, self._own.value)

    @property
    def framework(self) -> Host:
        return cast(Host, self._framework.value)

    @property
    def count(self) -> int:
        return int(number(self.counts.updates, f"the count of {self.label}"))

    @property
    def skipped(self) -> int:
        return int(number(self.counts.refused, f"the count of {self.label}"))

    @property
    def target(self) -> Target:
        self.bound  # noqa: B018 - binds a model that was built meanwhile
        self.complete()
        return ShadowTarget(self, self.bound.shadows)

    @property
    def source(self) -> Target:
        return RawTarget(self.bound.raw)

    def __repr__(self) -> str:
        if self._held.value is None and not self.framework.is_built(self.followed()):
            return f"<{self.label}: waits for the model to be built>"
        with tf.init_scope():
            return super().__repr__() if tf.executing_eagerly() else f"<{self.label}: seen from within a graph>"

    def unfit(self) -> dict[str, bytes]:
        bound = self.bound
        return strangers(
            self.framework.within(self.followed()),
            lambda: (bound.raw.trackables, {p: s.read_value() for p, s in bound.shadows.variables.items()}),
        )

    # Moving

    def update(self) -> None:
        self._moving.value()

    def complete(self) -> None:
        """What a traced step has built is there, outside of it, and has no value yet."""
        if self.is_incomplete:
            if not tf.executing_eagerly():
                self.refuse_start_without_weights()
            with tf.init_scope():
                super().complete()

    def note_traced(self) -> None:
        """A function of the user's own contains the present rule from now on."""
        self._traced.value = self._captured.value = True
        self._look_once()

    def report_skips(self) -> None:
        super().report_skips()
        self._look_once()

    def _look_once(self) -> None:
        """At the first update: a module may make the rest of its variables when it is called, and says of none."""
        if not self._looked.value:
            self._looked.value = True
            self.tell_left_out()

    def tell_left_out(self) -> None:
        """Warn of weights that the model has got since, and that are not followed."""
        with suppress(ModelError):  # of some variables nothing says the name: a save refuses them
            if self._held.value is not None:
                now = self.framework.variables(self.followed(), self.tracking.kinds).weights
                tell_left_out(self.bound.raw.weights, now, self.rule, self.label)

    @undisturbed
    def reset(self) -> None:
        self.refuse_applied()
        with unbroken():
            self.begin()
            first = self.first_rule
            restart(self.bound, first)
            self.set_state(first, 0, 0)

    @property
    def first_rule(self) -> Rule | Parts:
        """A tf.function of the user's own that contains the present rule goes on with it: so does the average."""
        first = super().first_rule
        if not self._traced.value or first == self.rule:
            return first
        notify(
            WeightsChanged(
                f"{self.label}: what came by refresh() begins late also now, by the rule that a tf.function with "
                "update() contains already; for another one track the model again, and make that tf.function anew"
            )
        )
        return self.rule

    @undisturbed
    def refresh(self) -> str:
        if self._held.value is None:
            return ""
        bound = self.bound
        now = self.framework.variables(self.followed(), self.tracking.kinds)
        growth = Growth.between(bound.raw.variables, now.variables)
        if not growth:
            return ""
        self.refuse_applied()
        kept = {path: v for path, v in bound.shadows.variables.items() if path not in growth.gone}
        if self._traced.value:
            notify(
                WeightsChanged(
                    f"{now.label} has changed: a tf.function that contains update() already goes on with the weights "
                    "that it was traced with, and leaves new ones as they are; make that tf.function anew"
                )
            )
        before = self.rule
        self._hold(now, joined(before, growth, self.count), kept)
        self.note_grown(before)
        self.begin()
        return growth.describe(now.label, self.count, self.rule)

    # Using

    @contextmanager
    def applied(self) -> Iterator[None]:
        if not tf.executing_eagerly():
            raise Applied("applied() was called inside a tf.function", hint="call the average itself there: ema(x)")
        bound = self._fresh()
        self.report_skips()
        owner = object()
        left: dict[str, Left] = {}
        try:
            try:
                with together([self]):
                    self._entered.value.add(owner)
                    for shadow, raw in bound.pairs:
                        enter(raw, owner, tf.cast(shadow, raw.dtype))
                    self._tell_watchers(bound)
                yield
            finally:
                surely(lambda: self._leave(bound, owner, left))
        finally:
            if owner in self._entered.value:  # an interrupt came in before the first line of `surely`
                surely(lambda: self._leave(bound, owner, left))
        self.tell_dropped(left, HANDS.same)

    def _leave(self, bound: Bound, owner: object, left: dict[str, Left]) -> None:
        with patiently([self], -1.0):  # raw weights come back also where threads wait for each other for ever
            for path in bound.shadows.variables:
                if found := leave(bound.raw.variables[path], owner):
                    left[path] = found
            self._tell_watchers(bound)
            self._entered.value.discard(owner)

    def _tell_watchers(self, bound: Bound) -> None:
        for average in watchers(bound.raw.variables.values()):
            average.look()

    def look(self) -> None:
        """Notice whether any of the followed weights holds averaged values now, of this or of another average."""
        variables = self.bound.raw.variables.values()
        with EXCHANGING:
            self.counts.in_use.assign(any(holds_average(v) for v in variables))

    @property
    def is_applied(self) -> bool:
        """Whether this average is applied to its model now."""
        return bool(self._entered.value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.framework.call(self, *args, **kwargs)

    def twin(self) -> Any:
        """A copy of the model whose variables hold the averaged values, and what is left out as it is now.

        Numbers, strings and truth values in the attributes of its modules are taken over at each call, too; what else
        was changed in an attribute since the first call is not, unless modules came or went.
        """
        bound = self._fresh()
        self._captured.value |= not tf.executing_eagerly()
        if self._twin.value is None or not self._twin.value[0].is_of(self.followed()):
            with tf.init_scope():
                self._twin.value = self._make_twin(bound)
        twin, variables = self._twin.value
        twin.follow(self.followed())
        for path, mine in variables.items():
            value = bound.shadows.variables.get(path, bound.raw.variables[path])
            mine.assign(tf.cast(value, mine.dtype))
        return twin.model

    def _make_twin(self, bound: Bound) -> tuple[Twin, Mapping[str, tf.Variable]]:
        try:
            model = deepcopy(self.followed(), {id(a): a for a in (self, *watchers(bound.raw.variables.values()))})
        except Exception as error:
            raise ModelError(
                f"{bound.raw.label}: expected a model that can be copied, received {type(error).__name__}: {error}",
                hint="use `with ema.applied(): model(x)`, or polyak.transfer(ema, other) and the other instance; a "
                "class of tf_keras can be copied once it is registered",
            ) from error
        return Twin(self.followed(), model), self.framework.variables(model, self.tracking.kinds).variables

    # State

    @property
    def in_use(self) -> bool:
        return bool(number(self.counts.in_use, self.label))

    def shadow_weights(self) -> tuple[Weight, ...]:
        return () if self._held.value is None else self.bound.shadows.weights

    def unsafe(self) -> list[str]:
        return [path for path, v in self.bound.guarded if not is_fit(v)]

    def set_state(self, rule: Rule | Parts, count: int, skipped: int) -> None:
        if rule != self.rule:
            if self._traced.value:
                raise RuleError(
                    f"expected the rule {self.rule}, which a traced tf.function contains already, received {rule}",
                    hint="transfer or restore the state before the first traced update()",
                )
            self._held.value = self._held.value and group(self.bound, rule)
            self.rule = rule
        self.set_counts(count, skipped)

    def set_counts(self, count: int, skipped: int) -> None:
        self.counts.updates.assign(count)
        self.counts.refused.assign(skipped)
        self._reported.value = skipped

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> dict[str, Any]:
        """A SavedModel serves values; of an average it has only what its functions read and write, and needs that."""
        if save_type == "savedmodel" and not self._captured.value:
            return {}
        self._bind_if_complete()
        children = cast("dict[str, Any]", super()._trackable_children("checkpoint", **kwargs))
        if save_type == "savedmodel":
            _, twin = self._twin.value or (None, {})
            children |= {"in_use": self.counts.in_use, **{f"twin/{path}": v for path, v in twin.items()}}
        return children

    def _lookup_dependency(self, name: str, cached_dependencies: Any = None) -> Any:
        """A restore asks here: shadows of a model built meanwhile must exist by then."""
        if name in ("shadows", "raw"):
            self._bind_if_complete()
        return super()._lookup_dependency(name, cached_dependencies)

    # Binding

    def _bind_if_complete(self) -> None:
        if self._held.value is None and self.framework.is_complete(self.followed()):
            self._bind()
        self.complete()

    def _bind(self) -> None:
        self._begin(self.framework.variables(self.followed(), self.tracking.kinds))

    def _count_at(self, place: Place) -> None:
        """Count beside the weights: of a model that was not built nothing said yet where they would be."""
        with tf.init_scope():
            refuse_graph(self.label)
            self._own.value = Counters.at(place, self._own.value)
        for name, state in (("count", self.counts.updates), ("skipped", self.counts.refused)):
            self._track_trackable(state, name=name, overwrite=True)

    def _begin(self, raw: Variables) -> None:
        if isinstance(self.rule, Parts):
            self.rule.check([w.path for w in raw.weights])
        if self._stored.value is not None:  # a restore came first
            refuse_missing(followed_by(self.rule, raw.weights), self._stored.value, self.label)
        place = Place.asked(self.tracking, None, raw.variables.values())
        if place != self.counts.place:
            self._count_at(place)
        self._hold(raw, self.rule, {})
        self.note_unbuilt(self.framework.layers(self.followed()))
        tell_aside(self.framework, self.followed())
        tell_copied(self.followed(), self.shadow_weights(), raw.trackables, self.tracking.kinds)

    def _hold(self, raw: Variables, rule: Rule | Parts, kept: Mapping[str, tf.Variable]) -> None:
        """Follow these weights, with shadows that are there already where there are some; or else change nothing."""
        with tf.init_scope():
            bound = bind(raw, rule, self.tracking, kept, self._guarded())
            self.rule, self._held.value = rule, bound
            self.shadows = dict(bound.shadows.variables)
            self.raw = dict(raw.trackables)
            self._twin.value = None
            self.watch(raw.variables.values())

    def _guarded(self) -> set[str]:
        return set() if self._held.value is None else {path for path, _ in self.bound.guarded}

    def _fresh(self) -> Bound:
        """The pairs, after a check that the model still has the weights that are followed."""
        bound = self.bound
        now = self.framework.variables(self.followed(), self.tracking.kinds).variables
        refuse_grown(bound.raw.variables, now, bound.raw.label)
        return bound
