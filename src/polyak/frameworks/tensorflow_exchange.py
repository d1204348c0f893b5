"""While averaged values are in a model: where the raw ones wait, and which averages follow a variable.

Both are noted on the variable itself, so that every average of the model and every transfer sees them,
whichever object it reached the variable through.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, cast

import tensorflow as tf

if TYPE_CHECKING:
    from polyak.frameworks.tensorflow_average import TensorFlowAverage
    from polyak.frameworks.tensorflow_target import Variables

_ASIDE = "_polyak_raw"
_WATCHERS = "_polyak_averages"


def set_aside(variable: tf.Variable) -> tf.Tensor:
    """The present value; TensorFlow shares its buffer until the variable is written. The first one is the raw value."""
    value = variable.read_value()
    if _ASIDE not in vars(variable):
        setattr(variable, _ASIDE, value)
    return value


def bring_back(variable: tf.Variable, value: tf.Tensor) -> None:
    """Undo ``set_aside``."""
    variable.assign(value)
    if vars(variable).get(_ASIDE) is value:
        delattr(variable, _ASIDE)


def raw_value(variable: tf.Variable) -> tf.Tensor:
    """The raw value, also while an average is applied."""
    aside = vars(variable).get(_ASIDE)
    return variable.read_value() if aside is None else aside


def holds_average(variable: tf.Variable) -> bool:
    """Whether an average is applied to the variable now."""
    return _ASIDE in vars(variable)


def watch(variable: tf.Variable, average: TensorFlowAverage) -> None:
    """Note that an average follows the variable."""
    if _WATCHERS not in vars(variable):
        setattr(variable, _WATCHERS, weakref.WeakSet())
    getattr(variable, _WATCHERS).add(average)


def watchers(variables: Variables) -> list[TensorFlowAverage]:
    """The averages that follow any of the variables."""
    found = {id(a): a for v in variables.variables.values() for a in vars(v).get(_WATCHERS, ())}
    return cast("list[TensorFlowAverage]", list(found.values()))
