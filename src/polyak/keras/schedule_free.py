"""The evaluation point of a schedule-free optimizer: the average that Keras' ScheduleFreeAdamW trains beside."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import keras
import numpy as np

from polyak.errors import ModelError
from polyak.frameworks import framework_of
from polyak.frameworks.keras_anatomy import Flavour, paths_in
from polyak.manifest import AVERAGE, Manifest
from polyak.snapshot import Array, Item, Snapshot, tool, versions
from polyak.weights import Weight


def schedule_free(model: Any) -> Snapshot:
    """The averaged weights x of a model that ``keras.optimizers.ScheduleFreeAdamW`` trains.

    The point to evaluate and to keep is x, the equal mean of all z; the optimizer's ``momentum`` is z. By the paper the
    model holds y = (1 - beta_1) z + beta_1 x, where gradients are taken, so that x = (y - (1 - beta_1) z) / beta_1. So
    it is on JAX. On TensorFlow and PyTorch Keras 3.15 reads z for the x before the step after it has written the new
    one; what the model holds is then x itself, which is seen when its steps are added up. Which of both this Keras does
    is tried on one number. Weights that are not trained are copied. No memory is taken beside the snapshot: transfer it
    into a second model, or save it.

    Raises:
        ModelError: the optimizer is no ScheduleFreeAdamW, has made no variables yet, or beta_1 is 0.

    Source: Defazio et al., The road less scheduled, arXiv 2405.15682.

    Example:
        >>> import polyak
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile(keras.optimizers.ScheduleFreeAdamW(0.1), "mse")
        >>> _ = model.fit(np.ones((8, 2)), np.ones((8, 1)), verbose=0)
        >>> other = keras.models.clone_model(model)
        >>> polyak.transfer(schedule_free(model), other).role
        'average'
    """
    optimizer = _optimizer(model)
    target = framework_of(model).target(model)
    share = 1.0 if _reads_late() else float(optimizer.beta_1)
    paths = paths_in(model, Flavour.keras3(keras))
    pairs = zip(optimizer._trainable_variables, optimizer._momentums, strict=True)
    z = {paths[id(variable)]: momentum for variable, momentum in pairs if id(variable) in paths}

    def value(weight: Weight) -> Array:
        y = np.array(target.read(weight.path))
        momentum = z.get(weight.path)
        if momentum is None:
            return y
        held = np.asarray(keras.ops.convert_to_numpy(momentum), np.float64)
        return np.asarray((y.astype(np.float64) - (1.0 - share) * held) / share).astype(y.dtype)

    steps = int(keras.ops.convert_to_numpy(optimizer.iterations))
    held = f"x, the mean of all z, as (y - {1 - share:.6g} z) / {share:.6g}: ScheduleFreeAdamW after {steps} updates"
    written = Manifest(tool(), {}, (), source=target.label, versions=versions(), evidence=(held,), layout=target.layout)
    items = (Item(AVERAGE, w, partial(value, w)) for w in target.weights)
    return Snapshot(items, {AVERAGE: None}, f"schedule-free average of {target.label}", written=written).copy()


@cache
def _reads_late() -> bool:
    """Whether y is the mean of z after two steps of one number, and not the paper's point between that and z."""
    variable = keras.Variable(0.0)
    optimizer = keras.optimizers.ScheduleFreeAdamW(1.0, beta_1=0.5)
    optimizer.build([variable])
    z = []
    for _ in range(2):
        optimizer.apply([keras.ops.ones(())], [variable])
        z.append(float(keras.ops.convert_to_numpy(optimizer._momentums[0])))
    mean, y = (z[0] + z[1]) / 2, float(keras.ops.convert_to_numpy(variable))
    return abs(y - mean) < abs(y - (z[1] + mean) / 2)


def _optimizer(model: Any) -> Any:
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if not isinstance(optimizer, keras.optimizers.ScheduleFreeAdamW):
        raise ModelError(
            f"{type(model).__name__}: expected keras.optimizers.ScheduleFreeAdamW, received {type(optimizer).__name__}",
            hint="other optimizers hold no average; track one with polyak.track",
        )
    if not optimizer.built:
        raise ModelError(
            f"{type(model).__name__}: expected an optimizer that has trained, received one without variables",
            hint="train first, or call optimizer.build(model.trainable_variables)",
        )
    if not optimizer.beta_1:
        raise ModelError("ScheduleFreeAdamW(beta_1=0): expected beta_1 above 0; the model holds no average at all")
    return optimizer
