"""On PyTorch a train function makes one step, and the average moves after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polyak.frameworks import framework_of
from polyak.frameworks.exchange import together
from polyak.keras.fitting import Function, exchanged, optimizers, updates
from polyak.transfer.unbroken import unbroken


class _Fitting:
    def moving(self, model: Any, averages: Sequence[Any]) -> Function:
        plain, update = model.train_function, framework_of(model).moving(averages)

        def train_function(data: Any) -> Any:
            found = optimizers(model)
            # An interrupt between the two would leave an update that the average has not seen.
            with together(averages), unbroken():
                before = [int(n) for n in updates(found)]
                logs = plain(data)
                if before != [int(n) for n in updates(found)]:
                    update()
            return logs

        return train_function

    def averaged(self, model: Any, average: Any, plain: Function) -> Function:
        return exchanged(model, average, plain)


FITTING = _Fitting()
