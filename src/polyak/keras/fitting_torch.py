"""On PyTorch a train function makes one step, and the average moves after it."""

from __future__ import annotations

from typing import Any

from polyak.keras.fitting import Function, exchanged, optimizers, updates


class _Fitting:
    def moving(self, model: Any, average: Any) -> Function:
        plain = model.train_function

        def train_function(data: Any) -> Any:
            found = optimizers(model)
            before = [int(n) for n in updates(found)]
            logs = plain(data)
            if before != [int(n) for n in updates(found)]:
                average.update()
            return logs

        return train_function

    def averaged(self, model: Any, average: Any, plain: Function) -> Function:
        return exchanged(model, average, plain)


FITTING = _Fitting()
