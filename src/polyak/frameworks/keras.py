"""Live Keras 3 models, on the backend that Keras was started with."""

from __future__ import annotations

from importlib import import_module

import keras

from polyak.frameworks.base import Framework

_BACKENDS = {
    "tensorflow": "polyak.frameworks.keras_tensorflow",
    "jax": "polyak.frameworks.keras_jax",
    "torch": "polyak.frameworks.keras_torch",
}


def _framework() -> Framework:
    made: Framework = import_module(_BACKENDS[keras.backend.backend()]).framework()
    return made


FRAMEWORK = _framework()
