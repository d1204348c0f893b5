"""What the tests of Keras' own defects share: small models, steps of one batch, a word for a Keras that is mended."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

BACKEND = keras.backend.backend()
MOMENTUM = 0.9
X = np.random.RandomState(3).normal(size=(8, 3)).astype(np.float32)
Y = X @ np.array([[1.0], [-2.0], [0.5]], np.float32)


def still_fails(defect: str, fails: bool) -> None:
    """A defect of Keras that is gone is news: the pages that name it are to be corrected."""
    assert fails, f"Keras has mended {defect}: update FACTS and the docs"


def network(optimizer: Any = None, **settings: Any) -> Any:
    """Two layers of one shape and a head; eager, which is quick where there are few steps."""
    inner = [layers.Dense(3, name="a"), layers.Dense(3, name="b"), layers.Dense(1, name="head")]
    model = keras.Sequential([keras.Input((3,)), *inner])
    model.compile(optimizer or averaging_adam(), "mse", run_eagerly=True, **settings)
    return model


def averaging_adam(**settings: Any) -> Any:
    return keras.optimizers.Adam(0.05, **{"use_ema": True, "ema_momentum": MOMENTUM, **settings})


def adam(**settings: Any) -> Any:
    return keras.optimizers.Adam(0.05, **settings)


class Record(keras.callbacks.Callback):
    """The weights at the end of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[list[np.ndarray]] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.steps.append(self.model.get_weights())


class StopAfter(keras.callbacks.Callback):
    """What early stopping does, at an epoch that is known."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.stop_training = epoch >= self.epoch


def train(model: Any, epochs: int, *callbacks: Any, **settings: Any) -> Any:
    """``fit`` in which an epoch is one batch, that is one step."""
    given = {"batch_size": len(X), "epochs": epochs, "shuffle": False, "verbose": 0, **settings}
    return model.fit(X, Y, callbacks=list(callbacks), **given)


def one_ema(steps: list[list[np.ndarray]], decay: float = MOMENTUM) -> list[np.ndarray]:
    """In float64: the first step copies, as in Keras."""
    average = [np.asarray(w, np.float64) for w in steps[0]]
    for weights in steps[1:]:
        average = [decay * a + (1 - decay) * np.asarray(w, np.float64) for a, w in zip(average, weights, strict=True)]
    return average


def by_position(average: Any) -> list[np.ndarray]:
    """Averaged values in the order of ``model.weights``."""
    ranked = sorted(average.target.weights, key=lambda w: w.evidence.position)
    values = average.values()
    return [values[w.path] for w in ranked if w.kind.value != "seed"]


def slots(model: Any) -> list[np.ndarray]:
    """The averages that the optimizer keeps."""
    return [keras.ops.convert_to_numpy(v) for v in model.optimizer._model_variables_moving_average]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    """Bit for bit."""
    return len(one) == len(other) and all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(one, other, strict=True)
    )


def close(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    """As near as float32 comes to a float64 oracle over a few steps."""
    return all(np.allclose(a, b, rtol=2e-6, atol=2e-7) for a, b in zip(one, other, strict=True))
