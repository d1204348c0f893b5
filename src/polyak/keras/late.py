"""What is said where ``fit`` meets a model that was trained before: what its average, or the model itself, has lost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from polyak.averaging.parts import Parts
from polyak.errors import BegunLate, WeightsChanged, notify
from polyak.frameworks import Average
from polyak.frameworks.finished import left_beside
from polyak.keras.fitting import own_optimizers, updates
from polyak.numbers import rounded
from polyak.weights import Kind, numpy_dtype


def tell_late(model: Any, averages: Iterable[Average]) -> None:
    """Warn if averages without an update begin after the optimizer's first one.

    A model of ``load_model`` has its optimizer's count and no average: Keras hands that over to nobody.
    """
    made = max((int(keras.ops.convert_to_numpy(count)) for count in updates(own_optimizers(model))), default=0)
    late = [each.label for each in averages if not each.count + each.skipped]
    if made and late:
        notify(
            BegunLate(
                f"fit: expected {late[0]} to begin with the model's training, or to go on; the optimizer has made "
                f"{made:,} updates, of which it knows nothing: it begins with the weights of now. To go on with an "
                "average that exists, in memory or in a file: polyak.keras.Averaging(average)"
            )
        )


def tell_finished(averages: Iterable[Average]) -> None:
    """Warn if a model holds the values of its average where its raw weights should be."""
    for held in filter(None, map(_held, averages)):
        notify(WeightsChanged(holds_average(held)))


def _held(average: Average) -> Average | None:
    """What the model holds where the raw weights should be that an average has followed: itself, or another one."""
    if _is_mixed(average) and _are_one(average):
        return average
    return next(filter(_is_mixed, left_beside(average)), None) if average.count else None


def holds_average(average: Average) -> str:
    """What to say of a model that is to be trained, and holds this average."""
    return (
        f"fit: expected the raw weights of {average.label} in the model, received the averaged ones, as "
        'finish="average" or Keras\' use_ema leaves them there; training goes on from those, to which its optimizer '
        "does not belong. To go on from the raw weights: fit with the callback that has finished so; or first "
        'polyak.transfer(path, model, weights="raw") from a file that was written during fit, or by '
        'polyak.save(averaging.average, path, weights="both")'
    )


def _is_mixed(average: Average) -> bool:
    """Whether the last update made another value than a copy, so that equal weights are no accident of the rule."""
    rules = average.rule.rules if isinstance(average.rule, Parts) else (average.rule,)
    return average.count > 0 and any(float(rule.weight(float(average.count))) < 1 for rule in rules)


def _are_one(average: Average) -> bool:
    """Whether each weight that is averaged holds its average, bit for bit."""
    dtypes = {w.path: w.dtype for w in average.source.weights}
    paths = [w.path for w in average.target.weights if w.kind is Kind.TRAINABLE and w.path in dtypes]
    return bool(paths) and all(
        np.array_equal(
            average.source.read(path), rounded(average.target.read(path), numpy_dtype(dtypes[path])), equal_nan=False
        )
        for path in paths
    )
