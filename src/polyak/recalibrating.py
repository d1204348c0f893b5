"""The verb that sets the statistics of batch normalisation right after averaging: recalibrate."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any

from polyak.combine.average import Watch
from polyak.errors import ModelError
from polyak.frameworks import Average, framework_of
from polyak.frameworks.base import refuse_written
from polyak.manifest import RAW
from polyak.snapshot import Array, Snapshot
from polyak.transfer.plan import make_plan
from polyak.transfer.receipt import Receipt
from polyak.transfer.target import PutBack, Target
from polyak.weights import Weight

__all__ = ["Watch", "recalibrate"]


def recalibrate(model: Any, data: Any, steps: int | None = None, watch: Watch | None = None) -> Receipt:
    """Recompute the moving statistics of batch normalisation by a pass over data, for the weights that are there.

    Averaged weights give other activations than the weights that the statistics were collected with. Each statistic
    becomes the equal mean, over the batches, of what the batch gives: layers of batch normalisation run as in
    training, all others as in inference. Nothing but these statistics is written, all of them or none, when the pass
    is over. Layers that are frozen (``trainable=False``) keep theirs. A smaller last batch counts as much as others.

    Args:
        model: a Keras 3 or tf_keras model, also inside ``with ema.applied():``, where the new statistics last until
            the end of the block, as the averaged weights do. Or an average: then its own statistics are recomputed with
            its own weights and kept in its shadows; the model is not touched. The next ``update()`` copies the model's
            statistics again, so do it when training is over.
        data: whole inputs without targets, an array or a dict of arrays by the names of inputs; or anything that gives
            batches, of inputs alone or of ``(inputs, targets, ...)``: lists, generators, ``keras.utils.PyDataset``,
            ``tf.data.Dataset``, a PyTorch ``DataLoader``. A batch of several inputs is a dict or ``((x1, x2),)``.
        steps: how many batches; all by default.
        watch: told before each batch: "batches", how many are done, of how many (0 if nobody knows). For a bar:
            ``bar = keras.utils.Progbar(100)``, then ``watch=lambda what, done, total: bar.update(done)``.

    What a batch gives is what the layer itself computes in training: tf_keras' layers on images divide a variance by
    n - 1. A tf_keras model writes into its statistics during the pass; they are put back on any exit.

    Raises:
        ModelError: no Keras model, no such layer in it, no data, fewer batches than ``steps``, or data as ``fit`` takes
            them: ``(x, y)``, or a list of whole inputs.
        NonFinite: a statistic becomes NaN or infinite.
        Applied: the average is applied to its model; recalibrate the model then.

    Source: Izmailov et al., arXiv 1803.05407, section 3.2.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization()])
        >>> receipt = recalibrate(model, np.float32([[1.0], [3.0]]))
        >>> [v.tolist() for v in model.get_weights()]  # gamma, beta, mean, variance
        [[1.0], [0.0], [2.0], [1.0]]
    """
    recomputed = _way_of(model)
    if isinstance(model, Average):
        refuse_written(model)
    target = model.target if isinstance(model, Average) else framework_of(model).target(model)
    batches = import_module("polyak.frameworks.keras_data").Batches(data, steps, _inputs_of(model))
    found = recomputed(model, batches, watch or _silent)
    kept = {w.path for w in target.weights}
    held = Snapshot.from_arrays({path: value for path, value in found.items() if path in kept}, RAW)
    held.origin = f"statistics of {batches.taken:,} batches"
    return make_plan(held, _Statistics(target, tuple(held)), {}).apply()


def _way_of(source: Any) -> Callable[[Any, Any, Watch], dict[str, Array]]:
    """How the statistics of a model, or of an average of one, are recomputed."""
    model = source.followed() if isinstance(source, Average) else source
    if _is_layer("keras", model):
        return _with_keras
    if _is_layer("tf_keras", model):
        return import_module("polyak.frameworks.legacy_statistics").recomputed  # type: ignore[no-any-return]
    raise ModelError(
        f"expected a Keras model, received {type(model).__module__}.{type(model).__qualname__}",
        hint="elsewhere, run a few batches with the layers of batch normalisation in training mode",
    )


def _inputs_of(source: Any) -> int:
    """How many inputs a model was made of, where it says so: one of one's own may call anything ``inputs``."""
    inputs = getattr(source.followed() if isinstance(source, Average) else source, "inputs", None)
    if not isinstance(inputs, (list, tuple)):
        return 1
    return sum(type(each).__name__.endswith("KerasTensor") for each in inputs)


def _is_layer(package: str, model: Any) -> bool:
    keras = sys.modules.get(package)
    return keras is not None and isinstance(model, keras.layers.Layer)


def _with_keras(source: Any, batches: Any, watch: Watch) -> dict[str, Array]:
    """Keras 3 runs a model with values that are not its own."""
    normalised = import_module("polyak.frameworks.keras_statistics").Normalised
    if isinstance(source, Average):
        return normalised.of(source.followed()).recomputed(batches, _shadows(source), watch)  # type: ignore[no-any-return]
    return normalised.of(source).recomputed(batches, {}, watch)  # type: ignore[no-any-return]


def _shadows(average: Average) -> Mapping[str, Array]:
    """The average's weights, and where it leaves some out the model's raw ones."""
    source, target = average.source, average.target
    held = {w.path for w in target.weights}
    return {w.path: (target if w.path in held else source).read(w.path) for w in source.weights}


def _silent(what: str, done: int, total: int) -> None:
    del what, done, total


class _Statistics(Target):
    """Some weights of a model or an average, as it is now: an average may be applied, its rule and count stay."""

    def __init__(self, whole: Target, paths: tuple[str, ...]) -> None:
        self.label = whole.label
        self.layout = whole.layout
        self._whole = whole
        self._paths = frozenset(paths)

    @property
    def weights(self) -> tuple[Weight, ...]:
        return tuple(w for w in self._whole.weights if w.path in self._paths)

    def read(self, path: str) -> Array:
        return self._whole.read(path)

    def write(self, path: str, value: Array) -> None:
        self._whole.write(path, value)

    def moment(self) -> AbstractContextManager[Any]:
        return self._whole.moment()

    def hold(self, path: str) -> PutBack:
        held = self._whole.read(path)
        return lambda: self._whole.write(path, held)
