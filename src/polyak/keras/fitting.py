"""How the average moves in ``fit``: once for each real update of the optimizer, in the compiled step where one is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

import keras

from polyak.errors import ModelError
from polyak.frameworks import Average
from polyak.keras.loops import Stand

Function = Callable[..., Any]
# Long lists of layers and nodes, which are not looked through at each step.
_OF_KERAS = {"_layers", "_operations", "_operations_by_depth", "_nodes", "_nodes_by_depth", "_compiled_trainable_state"}
_OF_KERAS |= {"_self_unconditional_dependency_names"}
INSTEAD = (
    "put what it does into train_step; or call ema.update() of polyak.EMA(model, ...) after each step, and no callback"
)


class Fitting(Protocol):
    """One backend's way."""

    def moving(self, model: Any, averages: Sequence[Any]) -> Function:
        """The model's train function with the averages in it."""

    def averaged(self, model: Any, average: Any, plain: Function) -> Function:
        """The model's test or predict function, run with the averaged weights."""


def fitting() -> Fitting:
    """The way of the backend that Keras runs on."""
    made: Fitting = import_module(f"polyak.keras.fitting_{keras.backend.backend()}").FITTING
    return made


def optimizers(model: Any) -> list[Any]:
    """The optimizers whose updates count: those of the model, and of models in it, as a GAN's step may train them."""
    found = [o for inner in model._flatten_layers() if isinstance(inner, keras.Model) for o in own_optimizers(inner)]
    if not found:
        raise ModelError(
            f"{type(model).__name__}: expected an optimizer, whose updates the average follows, received none",
            hint="compile the model with one, hold it in an attribute, or call ema.update() in your own train_step",
        )
    return list({id(o): o for o in found}.values())


def own_optimizers(model: Any) -> list[Any]:
    """The optimizers of a model: the compiled one, and those that a model with a step of its own holds."""
    held = [v for name, value in vars(model).items() if name not in _OF_KERAS for v in _held_in(value)]
    known = [o for o in (getattr(model, "optimizer", None), *held) if isinstance(o, keras.optimizers.Optimizer)]
    return list({id(o): o for one in known for o in counting(one)}.values())


def _held_in(value: Any) -> Iterator[Any]:
    """What an attribute holds: of lists and mappings each thing."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _held_in(one)
    else:
        yield value


def updates(found: list[Any]) -> list[Any]:
    """How many real updates each optimizer has made: gradient accumulation and skipped steps do not count."""
    return [o.iterations for o in found]


def counting(optimizer: Any) -> list[Any]:
    """Those that count updates: of one that hands weights to several, each of them, for it counts steps itself."""
    return list(getattr(optimizer, "optimizers", ())) or [optimizer]


def postpones(optimizer: Any) -> bool:
    """Whether it may see many gradients before it counts an update: it accumulates them, or looks for a loss scale."""
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer) or bool(optimizer.gradient_accumulation_steps)


def makes_its_own(model: Any) -> bool:
    """Whether a model makes its train function by code that is not Keras'."""
    made = type(model).make_train_function is not keras.Model.make_train_function
    return made or "make_train_function" in vars(model)


def refuse_set(model: Any) -> None:
    """Raise ModelError for a train function that somebody has set: what is made in its place does not call it."""
    function = model.train_function
    while isinstance(function, Stand):
        function = function.plain
    if not function.__module__.startswith("keras."):
        raise ModelError(
            f"fit of {type(model).__name__}: expected the train_function that Keras makes, received one that was set",
            hint=INSTEAD,
        )


def exchanged(model: Any, average: Average, plain: Function) -> Function:
    """A function of the model, run with the average applied to it; between its calls the model holds raw weights."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with average.applied():
            return plain(*args, **kwargs)

    return run
