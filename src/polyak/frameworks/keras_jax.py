"""Keras on JAX."""

from __future__ import annotations

from polyak.frameworks.engine_jax import JaxEngine
from polyak.frameworks.keras_native import KerasNative


def framework() -> KerasNative:
    """What polyak asks of Keras on JAX."""
    return KerasNative(JaxEngine())
