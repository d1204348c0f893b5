"""Keras on PyTorch."""

from __future__ import annotations

from typing import Any, final

from polyak.frameworks.company import Company
from polyak.frameworks.engine_torch import TorchEngine, TorchHostEngine
from polyak.frameworks.keras_native import KerasNative
from polyak.frameworks.torch import company


@final
class KerasOnTorch(KerasNative):
    """Keras 3 layers and models on the PyTorch backend."""

    def company(self, model: Any) -> Company:
        return company()


def framework() -> KerasNative:
    """What polyak asks of Keras on PyTorch."""
    return KerasOnTorch(TorchEngine(), TorchHostEngine())
