"""Taking over the average that a Keras optimizer keeps with ``use_ema=True``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from polyak.averaging.emas import EMA
from polyak.errors import ModelError, RuleChanged, listed, notify
from polyak.frameworks import Average, framework_of
from polyak.frameworks.base import Tracking
from polyak.frameworks.described import describe
from polyak.manifest import AVERAGE, State
from polyak.snapshot import Array, Snapshot
from polyak.transfer.plan import Asked, make_plan
from polyak.weights import numpy_dtype


@dataclass(frozen=True, slots=True, eq=False)
class Adopted:
    """What an optimizer had averaged, until it is bound to the model: ``polyak.keras.Averaging(adopted)`` does so.

    Attributes:
        label: the optimizer that it was.
        rule: how the average goes on.
        count: how often Keras moved it.
        variables: the model's variables that the optimizer trained.
        values: the averaged values by the place of their variable; empty if the average never moved.
    """

    label: str
    rule: EMA
    count: int
    variables: tuple[Any, ...]
    values: Mapping[int, Array]

    def bind(self, model: Any) -> Average:
        """A live average of the model that goes on from here. Raises ModelError for another model or frozen set."""
        paths = _paths(model)
        self._refuse_other_set(model, paths)
        average = framework_of(model).track(model, self.rule, Tracking())
        self._write({paths[id(self.variables[i])]: value for i, value in self.values.items()}, average)
        _forget_traced_step(model)
        return average

    def _write(self, held: Mapping[str, Array], average: Average) -> None:
        """Nothing is written of an average that never moved: its first update will copy."""
        target = average.target
        if held:
            exact = {w.path: held[w.path].astype(numpy_dtype(w.dtype)) for w in target.weights if w.path in held}
            left = [w.path for w in target.weights if w.path not in held]
            asked: Asked = {"exclude": left} if left else {}
            make_plan(Snapshot.from_arrays(exact, AVERAGE), target, asked).apply()
            target.adopt(State(self.rule.to_json(), self.count))

    def _refuse_other_set(self, model: Any, paths: Mapping[int, str]) -> None:
        own, trained = {id(v) for v in self.variables}, {id(v) for v in model.trainable_variables}
        strange = [v.path for v in self.variables if id(v) not in paths]
        if strange:
            raise ModelError(
                f"{self.label}: expected the optimizer of {describe(model)}, received one that trained "
                f"{strange[0]!r}, which is no weight of it ({len(strange)} in all)",
                hint="give model.optimizer of the same model",
            )
        frozen, free = [paths[i] for i in own - trained], [paths[i] for i in trained - own]
        if frozen or free:
            raise ModelError(
                f"{self.label}: the average was made with another frozen set: averaged and frozen now "
                f"{_listed(frozen)}; trainable now and not averaged {_listed(free)}",
                hint="set layer.trainable as it was when the optimizer was made, adopt, and then freeze or unfreeze",
            )

    def __repr__(self) -> str:
        return f"<{self.rule} of {self.label}, {self.count:,} moves; the optimizer averages no more>"


@overload
def adopt(optimizer: Any) -> Adopted: ...
@overload
def adopt(optimizer: Any, model: Any) -> Average: ...
def adopt(optimizer: Any, model: Any = None) -> Adopted | Average:
    """Take over the average of a Keras optimizer with ``use_ema=True``: its values, its momentum and its count.

    Keras' average is ``EMA(momentum, start="copy")`` and goes on as that. The optimizer stops: its ``use_ema`` is
    False from now on, because it would overwrite the model with its average at the end of ``fit``, and its averages are
    no variables of it any more, so that files written from now on fit an optimizer without ``use_ema``. Raw weights
    that Keras has overwritten with the average already are lost; training goes on from what the model holds.

    The count is the number of Keras' moves. Under gradient accumulation Keras moves at every micro-step, with a decay
    of momentum**k for each real update of k micro-steps; from now on the average moves once for each real update, with
    the momentum itself, which a ``RuleChanged`` warning says. A function that you traced yourself with this optimizer
    in it must be made again.

    Args:
        optimizer: a built Keras 3 optimizer, also one inside ``LossScaleOptimizer``.
        model: the model that it trains. Without it the result waits for ``polyak.keras.Averaging(adopted)`` to get it.

    Returns:
        A live average of the model; weights that the optimizer does not train start at their present values.

    Raises:
        ModelError: the optimizer is not built, has no average, has one that never moved although it made steps,
            belongs to another model, or trained other layers than those that are trainable now.
        NonFinite: an averaged value is NaN or infinite.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9), "mse")
        >>> history = model.fit(np.ones((8, 2)), np.ones((8, 1)), batch_size=2, verbose=0)
        >>> ema = adopt(model.optimizer, model)
        >>> print(ema.rule, ema.count, model.optimizer.use_ema)
        ema:0.9,start=copy 4 False
    """
    inner = _inner(optimizer)
    averages = _averages_of(inner)
    count = int(_numpy(inner._iterations))
    pairs = [(i, average) for i, average in enumerate(averages) if average is not None]
    values = {i: _numpy(average) for i, average in pairs} if count else {}
    _refuse_never_moved(inner, values, count)
    rule = EMA(inner.ema_momentum, "copy")
    adopted = Adopted(_label(inner), rule, count, tuple(inner._trainable_variables), values)
    made = None if model is None else adopted.bind(model)
    _say_pace(inner, rule)  # a warning may be an error: until here the optimizer has its average still
    _switch_off(inner, [average for _, average in pairs])
    return adopted if made is None else made


def _inner(optimizer: Any) -> Any:
    """The optimizer that averages. Keras is loaded already where there is one."""
    import keras

    inner = optimizer.inner_optimizer if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) else optimizer
    if not isinstance(inner, keras.optimizers.Optimizer):
        kind = f"{type(inner).__module__}.{type(inner).__qualname__}"
        raise ModelError(f"expected a Keras 3 optimizer, received {kind}", hint="give model.optimizer")
    return inner


def _averages_of(optimizer: Any) -> Sequence[Any]:
    """The averages in the order of the trained variables; None for a variable that has none."""
    if not optimizer.use_ema:
        raise ModelError(
            f"{_label(optimizer)}: expected use_ema=True, received an optimizer that keeps no average",
            hint='begin one with polyak.EMA(model, 0.999) or polyak.keras.Averaging("ema:0.999")',
        )
    if not optimizer.built:
        raise ModelError(
            f"{_label(optimizer)}: expected a built optimizer, received one that has made no step yet",
            hint="load its state or train first; for a new run compile with use_ema=False",
        )
    averages = vars(optimizer).get("_model_variables_moving_average")
    if averages is None:
        raise ModelError(
            f"{_label(optimizer)}: use_ema was switched on after the optimizer was built: it has no average",
            hint='set use_ema=False and begin one with polyak.keras.Averaging("ema:0.999")',
        )
    return list(averages)


def _refuse_never_moved(optimizer: Any, values: Mapping[int, Array], count: int) -> None:
    trained = optimizer._trainable_variables
    if count and not any(v.any() for v in values.values()) and any(_numpy(trained[i]).any() for i in values):
        raise ModelError(
            f"{_label(optimizer)}: expected an average that moved {count:,} times, received zeros throughout: it was "
            "made after the steps were counted, and Keras would go on from zero",
            hint='compile with use_ema=False and begin one with polyak.keras.Averaging("ema:0.999")',
        )


def _switch_off(optimizer: Any, averages: Iterable[Any]) -> None:
    """No step and no file of the optimizer knows its averages any more."""
    optimizer.use_ema = False
    for average in averages:
        optimizer._untrack_variable(average)
    del optimizer._model_variables_moving_average


def _forget_traced_step(model: Any) -> None:
    """A compiled train step may hold the optimizer's own average, and its overwriting, still."""
    if vars(model).get("train_function") is not None:
        model.make_train_function(force=True)


def _say_pace(optimizer: Any, rule: EMA) -> None:
    steps = optimizer.gradient_accumulation_steps
    if steps:
        notify(
            RuleChanged(
                f"{_label(optimizer)}: Keras moved its average at each of {steps} accumulated micro-steps, which is a "
                f"decay of {rule.decay**steps:.6g} for each real update; from now on it is {rule.decay:.6g}"
            )
        )


def _paths(model: Any) -> dict[int, str]:
    import keras

    from polyak.frameworks.keras_anatomy import Flavour, paths_in

    return paths_in(model, Flavour.keras3(keras))


def _numpy(variable: Any) -> Array:
    """A copy of a variable's value. Raises ModelError while ``fit`` has taken it away."""
    if variable._value is None:
        raise ModelError(
            f"variable {variable.path!r}: expected a value, received none: fit() keeps it in its compiled step",
            hint="call polyak.adopt before fit or after it",
        )
    from keras import ops

    return np.array(ops.convert_to_numpy(variable), copy=True)


def _label(optimizer: Any) -> str:
    return f"{type(optimizer).__name__} {optimizer.name!r}"


def _listed(paths: Sequence[str]) -> str:
    return listed([repr(path) for path in sorted(paths)]) or "none"
