"""On TensorFlow the average moves inside the traced train step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from polyak.errors import ModelError
from polyak.frameworks.exchange import together
from polyak.frameworks.tensorflow_moving import Moving
from polyak.keras.fitting import INSTEAD, Function, exchanged, makes_its_own, optimizers, refuse_set, updates


class _Fitting:
    def moving(self, model: Any, averages: Sequence[Any]) -> Function:
        if not makes_its_own(model):
            refuse_set(model)
        plain_step, plain_function = model.train_step, model.train_function
        moving, called = Moving(averages), set[str]()

        def train_step(data: Any) -> Any:
            called.add("train_step")
            found = optimizers(model)
            before = [tf.identity(n) for n in updates(found)]
            logs = plain_step(data)
            pairs = zip(before, updates(found), strict=True)
            # Controlled: the counts are read after the step has written them.
            real = tf.reduce_any([tf.not_equal(old, tf.convert_to_tensor(new)) for old, new in pairs])
            moving.update_if(real)
            return logs

        of_its_own = vars(model).get("train_step")
        model.train_step, model.train_function = train_step, None
        try:
            model.make_train_function()
            function: Function = model.train_function
        finally:
            del model.train_step
            if of_its_own is not None:
                model.train_step = of_its_own
            model.train_function = plain_function

        def train_function(iterator: Any) -> Any:
            with together(averages):
                logs = function(iterator)
            if not called:
                raise ModelError(
                    f"fit of {type(model).__name__}: expected a make_train_function whose function calls train_step, "
                    "in which the average moves; received one that does not",
                    hint=INSTEAD,
                )
            return logs

        return train_function

    def averaged(self, model: Any, average: Any, plain: Function) -> Function:
        return exchanged(model, average, plain)


FITTING = _Fitting()
