"""What ``Averaging`` refuses, and what to do instead."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

from polyak.averaging.rules import Rule
from polyak.errors import ModelError, quoted
from polyak.frameworks import Average, framework_of
from polyak.frameworks.stateful import StatefulAverage
from polyak.keras.fitting import own_optimizers
from polyak.weights import glob_match


def one_of(name: str, value: Any, known: tuple[str, ...]) -> Any:
    """The argument. Raises ModelError if it is none of the known values."""
    if value not in known:
        raise ModelError(f"{name}={value!r}: expected one of {', '.join(map(repr, known))}")
    return value


def word(name: object) -> str:
    """The argument. Raises ModelError if it cannot begin the names of metrics."""
    if not isinstance(name, str) or not name:
        raise ModelError(f"name={name!r}: expected a word for the names of the average's metrics, such as 'slow'")
    return name


def other_model(average: Average, model: Any) -> ModelError:
    """The error of a callback that is given to a second model."""
    return ModelError(
        f"polyak.keras.Averaging: expected the model that {average.label} follows, received another "
        f"{type(model).__name__}",
        hint=_for_a_part(average, model) or "make a callback for each model",
    )


def _for_a_part(average: Average, model: Any) -> str:
    """What to do with an average of a layer or model within the one that is trained; nothing where it is not."""
    followed = average.followed()
    if not any(layer is followed for layer in model._flatten_layers()):
        return ""
    rule = average.rule if isinstance(average.rule, Rule) else "ema:0.999"
    parts = ", ".join(f"{quoted(glob)}: {quoted(str(rule))}" for glob in _globs(average, model))
    return (
        f"it follows a part of it: call its update() in the train_step of {type(model).__name__}, without a callback; "
        "or give the callback a rule for the weights of that part alone: "
        f'polyak.keras.Averaging({{{parts}, "*": None}})'
    )


def _globs(average: Average, model: Any) -> list[str]:
    """What selects the weights of a part alone, by the names that they have in the whole model."""
    whole = framework_of(model).target(model)
    homes = {average.source.home(w.path) for w in average.source.weights}
    inside = [w.path for w in whole.weights if whole.home(w.path) in homes]
    outside = [w.path for w in whole.weights if whole.home(w.path) not in homes]
    return list(dict.fromkeys(_glob(path, outside) for path in inside))


def _glob(path: str, others: Collection[str]) -> str:
    """The shortest one that matches the path and none of the others."""
    steps = path.split("/")
    globs = ("/".join([*steps[:n], "*"]) for n in range(1, len(steps)))
    return next((g for g in globs if glob_match(path, g) and not any(glob_match(p, g) for p in others)), path)


def hidden() -> ModelError:
    """The error of a callback whose hooks are called by another one."""
    return ModelError(
        "fit with polyak.keras.Averaging: expected it in the list of callbacks, received a list without it, in which "
        "another callback calls it",
        hint="put polyak.keras.Averaging itself into fit(callbacks=[...]): it looks for its place in Keras' loop",
    )


def nested() -> ModelError:
    """The error of a fit within a fit."""
    return ModelError(
        "fit with polyak.keras.Averaging: expected one fit at a time, received one within another that has the same "
        "callback",
        hint="give the inner one a callback of its own that moves the same average: "
        "polyak.keras.Averaging(averaging.average)",
    )


def own_loop(model: Any) -> ModelError:
    """The error of a fit that calls no train function."""
    return ModelError(
        f"fit of {type(model).__name__}: expected Keras' own loop, which calls model.train_function for each step; "
        "received one that does not, so that the average would not move",
        hint="make the average with polyak.EMA(model, ...) and call its update() in your loop",
    )


def of_keras_2() -> ModelError:
    """The error of a fit of tf_keras."""
    return ModelError(
        "polyak.keras.Averaging: expected fit of a model of Keras 3, received one of tf_keras",
        hint="make the average with polyak.EMA(model, ...) and call its update() in the model's train_step",
    )


def refuse_applied(average: Average) -> None:
    """Raise Applied while weights that it follows hold averaged values: the first step would train those."""
    cast(StatefulAverage, average).refuse_applied()


def refuse_use_ema(model: Any) -> None:
    """Raise ModelError for an optimizer that keeps an average of its own."""
    for optimizer in own_optimizers(model):
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if inner.use_ema:
            raise ModelError(
                f"{type(inner).__name__}(use_ema=True) beside polyak.keras.Averaging: two averages, of which the "
                "optimizer's overwrites the model at the end of fit",
                hint="compile with use_ema=False; polyak.adopt(model.optimizer) goes on with the optimizer's average",
            )
