"""Switch EMA: now and then the weights become the average, and training goes on from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from polyak.averaging.base import count
from polyak.errors import ModelError
from polyak.keras.averaging import Averaging
from polyak.transfer.plan import make_plan


class SwitchEMA(keras.callbacks.Callback):
    """Copies the average into the model at the end of epochs, or after so many steps.

    The average itself and the optimizer's state stay as they are. Stand it behind the ``Averaging`` whose average it
    copies, so that metrics and the best epoch are of the weights before the switch.

    Args:
        averaging: the callback in the same list whose average is copied.
        epochs: epochs between two switches, at least 1.
        steps: steps between two switches instead; counted over epochs.

    Raises:
        RuleError: a number is no whole number of at least 1.
        ModelError: at the beginning of ``fit``, if the averaging callback does not follow this model.

    Source: Li et al., Switch EMA, arXiv 2402.09240.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> averaging = Averaging("ema:0.9")
        >>> both = [averaging, SwitchEMA(averaging)]
        >>> _ = model.fit(np.ones((8, 2)), np.ones((8, 1)), 4, 3, verbose=0, callbacks=both)
        >>> [bool((a == b).all()) for a, b in zip(averaging.average.values().values(), model.get_weights())]
        [True, True]
    """

    def __init__(self, averaging: Averaging, epochs: int = 1, steps: int | None = None) -> None:
        super().__init__()
        self.averaging = averaging
        self.epochs = count("SwitchEMA: epochs", epochs, 1)
        self.steps = None if steps is None else count("SwitchEMA: steps", steps, 1)
        self._made, self._batch = 0, -1

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._batch = -1

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self._made = 0
        self._batch = -1
        if self.averaging.average.followed() is not self.model:
            raise ModelError(
                "polyak.keras.SwitchEMA: expected an Averaging that follows this model",
                hint="give both to fit: callbacks=[averaging, SwitchEMA(averaging)]",
            )

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self.steps is None:
            return
        before, self._made = self._made, self._made + batch - self._batch
        self._batch = batch
        if self._made // self.steps > before // self.steps:
            self._switch()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self.steps is None and (epoch + 1) % self.epochs == 0:
            self._switch()

    def _switch(self) -> None:
        if keras.backend.backend() == "jax" and self.averaging.model is self.model:
            self.model.jax_state_sync()  # between two steps fit keeps the weights to itself
        average = self.averaging.average
        held = average.snapshot()
        left = [w.path for w in average.source.weights if w.path not in held]
        make_plan(held.copy(), average.source, {"exclude": left} if left else {}).apply()
