"""The callback: an average that moves in ``fit``, is evaluated beside the raw weights, and is kept with the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Literal, get_args

import keras

from polyak.averaging.parts import Parts, as_rule, rule_from_json
from polyak.averaging.rules import Rule
from polyak.errors import ModelError, UnbuiltModel, WeightsChanged, notify
from polyak.frameworks import Average, framework_of
from polyak.frameworks.adopting import Adopted
from polyak.frameworks.base import Tracking
from polyak.frameworks.finished import forget_finished, note_finished
from polyak.frameworks.hand_over import warn_if_immature
from polyak.keras.beside import refuse_conflicts, refuse_several, refuse_shared, restores
from polyak.keras.fitting import fitting, optimizers, postpones
from polyak.keras.keeping import Best, Judge, Marks, averaged, both_sets, go_back, into_model
from polyak.keras.late import tell_finished, tell_late
from polyak.keras.loops import Places, fit_argument, is_nested, neighbours
from polyak.keras.refusals import (
    hidden,
    nested,
    of_keras_2,
    one_of,
    other_model,
    own_loop,
    refuse_applied,
    refuse_use_ema,
    word,
)
from polyak.keras.stepping import Stepping
from polyak.keras.validating import Passes, named, one_epoch, refuse_other_passes
from polyak.recalibrating import Watch, recalibrate
from polyak.snapshot import Snapshot
from polyak.transfer.plan import make_plan
from polyak.transfer.receipt import Receipt

Evaluate = Literal["raw", "average", "both"]
Finish = Literal["raw", "average"]
RuleLike = Rule | Parts | str | Mapping[str, Rule | str | None]


@keras.saving.register_keras_serializable(package="polyak")
class Averaging(keras.callbacks.Callback):
    """Follow a model with an average in ``fit``.

    The average moves once for each real update of the optimizer (for a ``train_step`` that makes several: once), inside
    the compiled train step where the backend has one. The model holds its raw weights at every moment that another
    callback or your own code can see, but for the validation of ``evaluate="average"``, within which saving it is
    refused. While ``fit`` runs and after it the model holds the average, too, so that every .keras and .weights.h5 file
    of it keeps both. A callback follows one model.

    Args:
        rule: a rule, its text ("ema:0.999"), a mapping of globs to those, an average that goes on, or what
            ``polyak.adopt(model.optimizer)`` took over from the optimizer.
        evaluate: what is validated in ``fit``, and what ``evaluate`` and ``predict`` use with this callback: the raw
            weights, the average, or both, which puts ``val_loss`` and ``val_average_loss`` in the logs of an epoch.
        finish: what the model holds after ``fit``; the other set is in ``average`` or ``raw``. Keras' own files of a
            model that ``fit`` finished with the average hold it twice, and no raw weights, from which alone training
            goes on rightly; ``polyak.save(averaging.average, path, weights="both")`` writes both sets.
        best: a metric such as "val_average_loss"; ``fit`` then ends with both sets of the epoch in which it was best,
            of those that this process ran; other averages in the list go back with them.
            Where its name does not say which values are better: "max val_score".
        name: the word in the names of the average's metrics, and of the model's attribute that holds the average.

    Attributes:
        average: the average, from the beginning of the first ``fit`` on.
        best_epoch: the best epoch and its weights, if ``best`` was asked for.
        raw: the raw weights, after a ``fit`` that finished with the average; hold on to them here until they are saved.

    Raises:
        ModelError: at the beginning of ``fit``, for what cannot be right, with what to do instead.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> x, y = np.ones((8, 2)), np.ones((8, 1))
        >>> averaging = Averaging("ema:0.9", evaluate="both")
        >>> history = model.fit(x, y, 4, 3, verbose=0, validation_data=(x, y), callbacks=[averaging])
        >>> sorted(history.history), averaging.average.count
        (['loss', 'val_average_loss', 'val_loss'], 6)
    """

    def __init__(
        self,
        rule: RuleLike | Average | Adopted = "ema:0.999",
        *,
        evaluate: Evaluate = "raw",
        finish: Finish = "raw",
        best: str | None = None,
        name: str = "average",
    ) -> None:
        super().__init__()
        self.evaluate = one_of("evaluate", evaluate, get_args(Evaluate))
        self.finish = one_of("finish", finish, get_args(Finish))
        self.name = word(name)
        self.best = best
        self.best_epoch: Best | None = None
        self.raw: Snapshot | None = None
        self._judge = None if best is None else Judge.of(best)
        self._given = rule if isinstance(rule, (Average, Adopted)) else None
        self._rule = rule.rule if isinstance(rule, (Average, Adopted)) else as_rule(rule)
        self._average: Average | None = None
        self._places = Places(self)
        self._stepping = Stepping(self._places)
        self._marks: Marks | None = None
        self._ended: Marks | None = None
        self._finished: Marks
        self._noted: tuple[tuple[int, ...], Marks] | None = None
        self._validating = False
        self._all: list[Averaging] = [self]

    @property
    def average(self) -> Average:
        """The average. Raises ModelError before the first ``fit``."""
        if self._average is None:
            raise ModelError(
                "polyak.keras.Averaging: expected a model, received none so far",
                hint="give the callback to fit, or call averaging.set_model(model)",
            )
        return self._average

    def get_config(self) -> dict[str, Any]:
        """The arguments as data, for Keras."""
        rule = self.rule.to_json()
        return {"rule": rule, "evaluate": self.evaluate, "finish": self.finish, "best": self.best, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Averaging:
        """The callback that ``get_config`` described."""
        return cls(**{**config, "rule": rule_from_json(config["rule"])})

    @property
    def rule(self) -> Rule | Parts:
        """How the average moves."""
        return self._rule if self._average is None else self._average.rule

    def recalibrate(self, data: Any, steps: int | None = None, watch: Watch | None = None) -> Receipt:
        """After ``fit``: recompute the average's batch normalisation statistics; see ``polyak.recalibrate``.

        A model that ``fit`` finished with the average gets them, too; one that holds raw weights is not touched.
        """
        receipt = recalibrate(self.average, data, steps, watch)
        if self.raw is not None:
            into_model(self.model, self.average.snapshot(), self.average)
        return receipt

    # Called by Keras

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        listed = neighbours()
        refuse_conflicts(listed, self)
        refuse_several(_of(listed))
        if self._average is None:
            self._average = self._follow(model)
        elif self._average.followed() is not model:
            raise other_model(self._average, model)
        # Files that other callbacks write or restore, in whichever order they come, find the average here.
        setattr(model, f"_polyak_{self.name}", self._average)

    def _implements_train_batch_hooks(self) -> bool:
        """tf_keras asks, before it gives the callback a model."""
        raise of_keras_2()

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        if is_nested(self):
            raise nested()
        refuse_use_ema(self.model)
        refuse_applied(self.average)
        listed = neighbours()
        if listed and self not in listed:
            raise hidden()
        self._all = _of(listed) or [self]
        refuse_shared({c.name: c.average for c in self._all})
        if self.evaluate == "both":
            refuse_other_passes(self.model, fit_argument(self, "val_x"), fit_argument(self, "validation_steps"))
        if self._all[0] is self:
            for each in self._all:  # before any of them looks at the weights
                each._go_on_with_raw()
        jumped = "" if self._marks is None else self._marks.jumped(self.average)
        self._noted = self._ended = None
        grown = self.average.refresh()
        if grown:
            self._all[-1]._stepping.forget()
        for changed in filter(None, (jumped, grown)):
            notify(WeightsChanged(changed))
        self.best_epoch = None
        if self._serves_all:
            if self.model.train_function is None:
                raise own_loop(self.model)
            new = [c for c in self._all if c._marks is None]
            tell_late(self.model, [c.average for c in new if c._given is None])
            tell_finished(c.average for c in new if not isinstance(c._given, Adopted))
            self._stepping.move(self.model, self._averages)
            self._places.take(self.model, "evaluate", self._validate)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self._noted is None:
            with suppress(UnbuiltModel):  # on TensorFlow the first step builds a model
                self._noted = self._counts(), Marks.of(self.average)

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """A rule or a train function that was changed meanwhile holds from here on: a compiled step contains those that
        it was made with.
        """
        if not self._serves_all:
            return
        self._refuse_missed()
        if not self._stepping.holds(self._averages):
            self._stepping.move(self.model, self._averages)
        self._places["train_function"].expect()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self._serves_all and not self._places["train_function"].used:
            raise own_loop(self.model)
        self.average.report_skips()
        self._refuse_unseen_updates()
        if any(map(restores, neighbours())):
            self._ended = Marks.of(self.average)
        if self._judge is None or self._is_without_metrics(epoch, logs or {}):
            return
        value = self._judge.value(logs or {})
        if self._judge.is_better(value, None if self.best_epoch is None else self.best_epoch.value):
            others = {c.name: averaged(c.average) for c in self._all if c is not self}
            self.best_epoch = Best(value, epoch, *both_sets(self.average), others)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self._refuse_missed()
        self._places.leave()
        if not self._serves_all:
            return
        for each in self._all:
            if each.best_epoch is not None:
                each._go_back(each.best_epoch)
        for each in self._all:
            each._marks = each._ended or Marks.of(each.average)
        for each in self._all:
            each._finish()

    def _finish(self) -> None:
        held = self.average.snapshot()
        warn_if_immature(held)
        if self.finish == "average" and self.average.count:
            self.raw = both_sets(self.average)[0]
            into_model(self.model, held, self.average)
            self._finished = Marks.of(self.average)
            note_finished(self.average, self.raw)

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        if not self._validating:
            self._average_in("test_function", "evaluate")

    def on_test_end(self, logs: Mapping[str, Any] | None = None) -> None:
        if not self._validating:
            self._require_use("test_function")

    def on_predict_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self._average_in("predict_function", "predict")

    def on_predict_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self._require_use("predict_function")

    # In fit

    def _follow(self, model: Any) -> Average:
        if isinstance(self._given, Adopted):
            return self._given.bind(model)
        if self._given is not None and self._given.followed() is not model:
            raise other_model(self._given, model)
        if self._given is not None:
            return self._given
        return framework_of(model).track(model, self._rule, Tracking())

    def _go_on_with_raw(self) -> None:
        """A model that finished with the average trains on from its raw weights, to which the optimizer belongs.

        One that holds other weights by now, which somebody has loaded or trained, keeps them.
        """
        if self.raw is not None and Marks.of(self.average).raw == self._finished.raw:
            go_back(self.raw, self.average)
        self.raw = None
        forget_finished(self.average)

    def _go_back(self, best: Best) -> None:
        """To an epoch, with all averages of the list: what they follow goes back."""
        go_back(best.raw, self.average)
        for name, held in {self.name: best.average, **best.others}.items():
            average = next(c.average for c in self._all if c.name == name)
            make_plan(held, average.target, {}).apply()

    def _refuse_unseen_updates(self) -> None:
        """Raise ModelError if an epoch has trained the model and no optimizer that is watched has made an update."""
        if self._noted is None:
            return
        counts, marks = self._noted
        if self._counts() != counts or any(map(postpones, optimizers(self.model))):
            return  # a layer such as SpectralNormalization writes its weights in each call
        self._noted = None
        if Marks.of(self.average).raw != marks.raw:
            raise ModelError(
                f"fit of {type(self.model).__name__}: expected its optimizers to count the updates, received an epoch "
                "that has changed the weights without one, so that the average has not moved",
                hint="hold the optimizer in an attribute of the model, or call ema.update() in your own train_step",
            )

    def _refuse_missed(self) -> None:
        """Raise ModelError where a step was announced that trained the model in another way."""
        if self._serves_all and self._places["train_function"].missed:
            self._places.leave()
            raise own_loop(self.model)

    def _counts(self) -> tuple[int, ...]:
        """Numbers of which one is another after an update, and after the average was begun anew or restored."""
        return self.average.count, self.average.skipped, self.average.beginnings

    def _is_without_metrics(self, epoch: int, logs: Mapping[str, Any]) -> bool:
        """Whether fit was asked to validate, but not in this epoch."""
        assert self._judge is not None
        often = fit_argument(self, "validation_freq")
        if self._judge.metric in logs or fit_argument(self, "validation_data") is None or often is None:
            return False
        return bool((epoch + 1) % often) if isinstance(often, int) else epoch + 1 not in often

    def _validate(self, *args: Any, **kwargs: Any) -> Any:
        """``model.evaluate``, as ``fit`` calls it to validate."""
        plain = self._places["evaluate"].plain
        for each in self._all:
            each._validating = True
        try:
            with one_epoch(kwargs.get("x")):
                return self._both(partial(plain, *args, **kwargs), Passes(self.model, kwargs.get("x")))
        finally:
            for each in self._all:
                each._validating = False

    def _both(self, evaluated: Callable[..., Any], passes: Passes) -> Any:
        with ExitStack() as stack:
            for each in self._all:
                if each.evaluate == "average":
                    stack.enter_context(each.average.applied())
            stack.enter_context(passes.next())
            found = evaluated()
        for each in self._all:
            if each.evaluate == "both":
                with passes.next(), each.average.applied():
                    more = evaluated(callbacks=None, verbose=0)
                found = {**found, **named(each.name, more, found)}
        return found

    # In evaluate and predict

    def _average_in(self, function: str, verb: str) -> None:
        if self.evaluate == "raw":
            return
        if self.evaluate == "both":
            raise ModelError(
                f'{verb} with polyak.keras.Averaging(evaluate="both"): expected one set of weights, received two',
                hint=f"call {verb} once without the callback and once inside `with averaging.average.applied():`",
            )
        plain = getattr(self.model, function)
        self._places.take(self.model, function, fitting().averaged(self.model, self.average, plain))

    def _require_use(self, function: str) -> None:
        stand = self._places.give_back(function)
        if stand is not None and not stand.used:
            raise ModelError(
                f"{function}: expected this version of Keras ({keras.__version__}) to run the average, it did not",
                hint="use `with averaging.average.applied():` and report this",
            )

    @property
    def _serves_all(self) -> bool:
        """Of several in one list the last one moves and validates all averages: the others have begun before it."""
        return self._all[-1] is self

    @property
    def _averages(self) -> list[Average]:
        return [c.average for c in self._all]


def _of(callbacks: Iterable[Any]) -> list[Averaging]:
    return [c for c in callbacks if isinstance(c, Averaging)]
