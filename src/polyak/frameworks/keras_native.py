"""Live Keras 3 models where Keras runs on JAX or PyTorch, and their averages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import keras
import numpy as np

from polyak.averaging.parts import Parts
from polyak.averaging.rules import Rule
from polyak.errors import NonFinite, UnbuiltModel
from polyak.frameworks.aside import tell_aside, tell_copied
from polyak.frameworks.base import Framework, Tracking
from polyak.frameworks.described import Described, describe, described
from polyak.frameworks.engine import Engine, Held, Program, program_for, starts_at_zero
from polyak.frameworks.exchange import (
    EXCHANGING,
    Left,
    enter,
    holds_average,
    leave,
    patiently,
    together,
    watchers,
)
from polyak.frameworks.finished import finished_in
from polyak.frameworks.growth import Growth, followed_by, joined, refuse_grown
from polyak.frameworks.keras_anatomy import Flavour, found_in, is_complete
from polyak.frameworks.keras_aside import aside
from polyak.frameworks.keras_derived import strangers
from polyak.frameworks.keras_moving import update_all
from polyak.frameworks.keras_saved import saved_places
from polyak.frameworks.keras_scope import refuse_scoped
from polyak.frameworks.keras_stored import HeldByKeras, StoredByKeras
from polyak.frameworks.keras_target import ModelVariables, RawVariables, Shadows, as_held
from polyak.frameworks.keras_views import Seen, View, ViewedByKeras
from polyak.frameworks.keras_wrapped import in_order, refuse_wrapped
from polyak.frameworks.shadow_target import ShadowTarget
from polyak.frameworks.stateful import Ref, undisturbed
from polyak.frameworks.stateless import StatelessAverage
from polyak.manifest import AVERAGE, RAW, State
from polyak.transfer.target import Target
from polyak.transfer.unbroken import surely
from polyak.weights import Kind, Weight


class KerasNative(Framework):
    """Keras 3 layers and models on arrays of one engine."""

    holder = HeldByKeras

    def __init__(self, engine: Engine, host: Engine) -> None:
        self.engine = engine
        self._host = host
        self._flavour = Flavour.keras3(keras)

    def owns(self, obj: object) -> bool:
        return self._flavour.is_layer(obj)

    def engine_for(self, tracking: Tracking) -> Engine:
        """What moves shadows that lie where they are asked to."""
        return self._host if tracking.on_host else self.engine

    def target(self, model: Any) -> Target:
        return ModelVariables(model, self.described(model, {}), self.engine)

    def described(self, model: Any, kinds: Mapping[str, Kind]) -> Described:
        """The model's weights; ``kinds`` overrides kinds by glob. Raises UnbuiltModel."""
        self.refuse_unbuilt(model)
        found = list(found_in(model, self._flavour))
        named = described(model, found, in_order(model), kinds, saved_places(model, self._flavour))
        return as_held(named, self.engine)

    def aside(self, model: Any) -> list[str]:
        return aside(model, self._flavour)

    def role(self, model: Any) -> tuple[str, State | None]:
        variables = self.described(model, {}).variables.values()
        if finished := finished_in(watchers(variables)):
            return AVERAGE, finished.state
        if not any(holds_average(v) for v in variables):
            return RAW, None
        applied = [w for w in watchers(variables) if isinstance(w, NativeAverage) and w.is_applied]
        return AVERAGE, applied[0].state if len(applied) == 1 else None

    def track(self, model: Any, rule: Rule | Parts, tracking: Tracking) -> NativeAverage:
        return NativeAverage(self, model, rule, tracking)

    def moving(self, averages: Sequence[NativeAverage]) -> Callable[[], None]:
        return lambda: update_all(averages)

    def build(self, model: Any, sample: Any) -> None:
        """A shape is tried with zeros: Keras' own ``build`` marks a model as built that it could not build."""
        if isinstance(sample, tuple) and all(n is None or isinstance(n, int) for n in sample):
            sample = np.zeros([1 if n is None else n for n in sample], keras.config.floatx())
        model(sample)

    def refuse_unbuilt(self, model: Any) -> None:
        if not is_complete(model):
            raise UnbuiltModel(
                f"{describe(model)}: expected a built model, received one without weights yet",
                hint="call it once on a batch; a transfer into it takes sample=, an input shape or a sample input",
            )


class NativeAverage(StoredByKeras, StatelessAverage, ViewedByKeras):
    """An average whose shadows are arrays of the library that Keras runs on."""

    def __init__(self, framework: KerasNative, model: Any, rule: Rule | Parts, tracking: Tracking) -> None:
        super().__init__(model, rule, tracking)
        self._framework = Ref(framework)
        self._model: Ref = Ref(None)
        self._program: Ref = Ref(None)
        self._held: Ref = Ref(None)
        self._shadows: Ref = Ref(())
        self._followed_by_path: Ref = Ref({})
        self._entered: Ref = Ref(set())
        self._in_use = Ref(False)
        self.view = Ref(View())
        if model.built:
            self._bind()
        else:
            self.refuse_start_without_weights()

    # What it is

    @property
    def engine(self) -> Engine:
        return cast(KerasNative, self._framework.value).engine_for(self.tracking)

    @property
    def raw(self) -> Described:
        """The weights that are followed. Raises UnbuiltModel while the model has none."""
        if self._model.value is None:
            self._bind()
        return cast(Described, self._model.value)

    @property
    def held(self) -> Held:
        """Shadows and counts as arrays of the library."""
        self.raw  # noqa: B018 - binds a model that was built meanwhile
        return cast(Held, self._held.value)

    @held.setter
    def held(self, held: Held) -> None:
        self._held.value = held

    @property
    def program(self) -> Program:
        """What one update does."""
        self.raw  # noqa: B018
        return cast(Program, self._program.value)

    @property
    def count(self) -> int:
        self.engine.refuse_traced(None)
        with together([self]):  # a step of another thread takes over the memory of what it moves
            return 0 if self._held.value is None else int(self._held.value.count)

    @property
    def skipped(self) -> int:
        with together([self]):
            return 0 if self._held.value is None else int(self._held.value.skipped)

    @property
    def target(self) -> Target:
        self.raw  # noqa: B018
        self.complete()
        return ShadowTarget(self, Shadows(self, self.shadow_weights()))

    @property
    def source(self) -> Target:
        return RawVariables(self.raw, self.engine)

    @property
    def in_use(self) -> bool:
        return bool(self._in_use.value)

    @property
    def is_applied(self) -> bool:
        """Whether this average is applied to its model now."""
        return bool(self._entered.value)

    def shadow_weights(self) -> tuple[Weight, ...]:
        return cast("tuple[Weight, ...]", self._shadows.value)

    def unsafe(self) -> list[str]:
        values = self.raw_values()
        return [path for path in self.program.guarded if not self.engine.is_fit(values[path])]

    def raw_values(self) -> dict[str, Any]:
        """The arrays of the followed weights, as they are now."""
        self.raw  # noqa: B018
        refuse_scoped(self.label)
        return self.engine.values(self._followed_by_path.value)

    def __repr__(self) -> str:
        if self._model.value is None and not self.followed().built:
            return f"<{self.label}: waits for the model to be built>"
        return super().__repr__()

    # Moving

    def update(self) -> None:
        update_all([self])

    @undisturbed
    def reset(self) -> None:
        self.refuse_applied()
        first = self.first_rule
        self.held = self._counted(self._started(self.raw, first, self.shadow_weights(), {}), 0, 0)
        self.begin()
        self.set_state(first, 0, 0)

    @undisturbed
    def refresh(self) -> str:
        if self._model.value is None:
            return ""
        raw, held, count = self.raw, self.held, self.count
        now = self._framework.value.described(self.followed(), self.tracking.kinds)
        growth = Growth.between(raw.variables, now.variables)
        kept = {path: shadow for path, shadow in held.shadows.items() if path not in growth.gone}
        kept = self.engine.along(kept, now.variables)
        if not growth:
            return self._moved_along(kept)
        self.refuse_applied()
        before = self.rule
        self._hold(now, joined(before, growth, count), kept)
        self.note_grown(before)
        self.begin()
        return growth.describe(now.label, count, self.rule)

    # Using

    @contextmanager
    def applied(self) -> Iterator[None]:
        self.engine.refuse_traced(self.held.count)
        refuse_scoped(self.label)
        raw = self._fresh()
        self.report_skips()
        owner = object()
        left: dict[str, Left] = {}
        try:
            try:
                with together([self]):
                    self._entered.value.add(owner)
                    for path, shadow in self.held.shadows.items():
                        variable = raw.variables[path]
                        enter(variable, owner, partial(self.engine.lent, shadow, variable), self.engine.hands)
                    self._tell_watchers(raw)
                yield
            finally:
                surely(lambda: self._leave(raw, owner, left))
        finally:
            if owner in self._entered.value:  # an interrupt came in before the first line of `surely`
                surely(lambda: self._leave(raw, owner, left))
        self.tell_dropped(left, self.engine.hands.same)

    def _leave(self, raw: Described, owner: object, left: dict[str, Left]) -> None:
        with patiently([self], -1.0):  # raw weights come back also where threads wait for each other for ever
            try:
                self.engine.settle(self.followed())
            finally:
                for path, variable in raw.variables.items():
                    if found := leave(variable, owner, self.engine.hands):
                        left[path] = found
                self._tell_watchers(raw)
                self._entered.value.discard(owner)

    def _tell_watchers(self, raw: Described) -> None:
        for average in watchers(raw.variables.values()):
            average.look()

    def look(self) -> None:
        """Notice whether any of the followed weights holds averaged values now."""
        variables = self.raw.variables.values()
        with EXCHANGING:
            self._in_use.value = any(holds_average(v) for v in variables)

    def call_with(self, shadows: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.refuse_changed()
        return super().call_with(shadows, *args, **kwargs)

    def fresh_to_run(self) -> Described:
        raw = self._fresh()
        refuse_wrapped(self.followed(), self._followed_by_path.value.values())
        return raw

    def pairing(self) -> object:
        return self.raw

    def seen(self) -> Seen:
        variables, shadows = self._fresh().variables, self.held.shadows
        engine = self.engine
        values = {
            path: engine.as_weight(shadows[path], variable)
            if path in shadows
            else engine.cast(engine.value(variable), engine.dtype_of(variable))
            for path, variable in variables.items()
        }
        return Seen(variables, values)

    def unfit(self) -> dict[str, bytes]:
        return strangers(self.followed()._flatten_layers(), self._read)

    def _read(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        seen = self.seen()
        return seen.variables, seen.values

    def same(self, one: Any, other: Any) -> bool:
        return self.engine.to_numpy(one).tobytes() == self.engine.to_numpy(other).tobytes()

    # State

    def set_state(self, rule: Rule | Parts, count: int, skipped: int) -> None:
        if rule != self.rule:
            self._program.value = program_for(self.shadow_weights(), rule, self.program.guarded)
            self.rule = rule
        self.set_counts(count, skipped)

    def set_counts(self, count: int, skipped: int) -> None:
        self.held = self._counted(self.held.shadows, count, skipped)
        self._reported.value = skipped

    # Binding

    def _bind(self) -> None:
        raw = self._framework.value.described(self.followed(), self.tracking.kinds)
        if isinstance(self.rule, Parts):
            self.rule.check([w.path for w in raw.weights])
        self._hold(raw, self.rule, {})
        self.note_unbuilt(self.followed()._flatten_layers())
        tell_aside(self._framework.value, self.followed())
        tell_copied(self.followed(), self.shadow_weights(), raw.variables, self.tracking.kinds)

    def _hold(self, raw: Described, rule: Rule | Parts, kept: Mapping[str, Any]) -> None:
        """Follow these weights, with shadows that are there already where there are some; or else change nothing."""
        followed = followed_by(rule, raw.weights)
        shadows = tuple(map(self.tracking.shadowed, followed))
        held = self._counted(self._started(raw, rule, shadows, kept), self.count, self.skipped)
        program = program_for(shadows, rule, self._guarded(raw, followed, kept))
        self.rule, self._shadows.value, self._program.value = rule, shadows, program
        self._followed_by_path.value = {w.path: raw.variables[w.path] for w in followed}
        self._model.value, self._held.value = raw, held
        self.watch(raw.variables.values())

    def _guarded(self, raw: Described, followed: Sequence[Weight], kept: Collection[str]) -> tuple[str, ...]:
        """Floating-point weights that are averaged or begin fit for it; a mask of the lowest numbers is left alone.

        Those that are kept are not looked at again: one that has just become NaN would lose its guard for ever.
        """
        before = () if self._program.value is None else self._program.value.guarded

        def is_guarded(w: Weight) -> bool:
            if w.kind is Kind.TRAINABLE:
                return True
            return w.path in before if w.path in kept else self.engine.is_fit(self._value(raw, w.path))

        return tuple(w.path for w in followed if w.floating and is_guarded(w))

    def _started(
        self, raw: Described, rule: Rule | Parts, shadows: Sequence[Weight], kept: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Every shadow that is not kept with its first value. Raises NonFinite."""
        new = [w for w in shadows if w.path not in kept]
        self._refuse_nonfinite(new, raw)
        made = {w.path: self.engine.start(self._value(raw, w.path), w.dtype, starts_at_zero(rule, w)) for w in new}
        known = {**made, **kept}
        return {w.path: known[w.path] for w in shadows}

    def _refuse_nonfinite(self, weights: Sequence[Weight], raw: Described) -> None:
        for w in weights:
            if w.kind is Kind.TRAINABLE and not self.engine.is_fit(self._value(raw, w.path)):
                raise NonFinite(
                    f"weight {w.path!r}: expected finite values to start an average from, received NaN, infinity "
                    "or more than half of what its average can hold",
                    hint="start the average before training diverges, or load finite weights",
                )

    def _fresh(self) -> Described:
        """The followed weights, after a check that the model still has them."""
        raw = self.raw
        now = self._framework.value.described(self.followed(), self.tracking.kinds)
        refuse_grown(raw.variables, now.variables, raw.label)
        return raw
