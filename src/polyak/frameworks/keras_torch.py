"""Keras on PyTorch."""

from __future__ import annotations

from polyak.frameworks.engine_torch import TorchEngine
from polyak.frameworks.keras_native import KerasNative


def framework() -> KerasNative:
    """What polyak asks of Keras on PyTorch."""
    return KerasNative(TorchEngine())
