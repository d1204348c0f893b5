"""The callback that keeps averages now and then during ``fit``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import keras

from polyak import periodic
from polyak.frameworks import Average
from polyak.keras.averaging import Averaging

Followed = Averaging | Average


class Snapshots(keras.callbacks.Callback):
    """Write averages into a folder after every so many updates of ``fit``, and at its end; see ``polyak.Snapshots``.

    Args:
        averages: the ``Averaging`` callbacks of the same ``fit``, or averages that move in it; one, several, or
            several by name. The name of a callback is its ``name``.
        every: updates between two snapshots. With gradient accumulation these are the optimizer's real ones; with
            ``steps_per_execution`` a snapshot is taken where an execution ends.
        folder: made where there is none.

    Attributes:
        paths: the files written so far.

    Example:
        >>> import tempfile, keras, numpy as np, polyak
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> x, y = np.ones((80, 2)), np.ones((80, 1))
        >>> averages = [Averaging(f"power:sigma_rel={s}", name=f"width_{s}") for s in ("0.05", "0.10")]
        >>> snapshots = Snapshots(averages, every=5, folder=tempfile.mkdtemp())
        >>> _ = model.fit(x, y, 4, verbose=0, callbacks=[*averages, snapshots])
        >>> made = polyak.synthesize(snapshots.paths, "power:sigma_rel=0.08")
        >>> len(snapshots.paths), round(made.error, 3)
        (8, 0.025)
    """

    def __init__(
        self,
        averages: Followed | Iterable[Followed] | Mapping[str, Followed],
        every: int,
        folder: str | os.PathLike[str],
    ) -> None:
        super().__init__()
        self._given = averages if isinstance(averages, Mapping | Averaging | Average) else list(averages)
        self._every = every
        self._folder = folder
        self._snapshots: periodic.Snapshots | None = None
        self._left = 0
        self._batch = -1
        self._begins = True

    @property
    def paths(self) -> list[Path]:
        return [] if self._snapshots is None else list(self._snapshots.paths)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._batch = -1
        self._begins = True

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        # Not earlier: by now every callback has begun, and an average that was to be restored is restored.
        if self._snapshots is None:
            self._snapshots = periodic.Snapshots(_averages(self._given), self._every, self._folder)
        if self._begins:  # not at each batch: the count waits for the device
            self._snapshots.look()
            self._left = self._snapshots.left
            self._begins = False

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """An average moves at most once a batch: its count, which waits for the device, is not read before."""
        self._left -= batch - self._batch
        self._batch = batch
        if self._left <= 0 and self._snapshots is not None:
            self._snapshots.step()
            self._left = self._snapshots.left

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        if self._snapshots is not None:
            self._snapshots.take()


def _averages(given: Any) -> Any:
    """The averages behind callbacks, under the callbacks' names."""
    if isinstance(given, Mapping):
        return {name: _average(one) for name, one in given.items()}
    listed = given if isinstance(given, list) else [given]
    if all(isinstance(one, Averaging) for one in listed):
        return {one.name: one.average for one in listed}
    return [_average(one) for one in listed]


def _average(one: Followed) -> Average:
    return one.average if isinstance(one, Averaging) else one
