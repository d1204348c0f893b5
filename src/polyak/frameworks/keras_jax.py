"""Keras on JAX."""

from __future__ import annotations

from typing import Any, final

import jax

from polyak.frameworks.company import Company
from polyak.frameworks.engine_jax import JaxEngine, JaxHostEngine
from polyak.frameworks.keras_native import KerasNative


@final
class KerasOnJax(KerasNative):
    """Keras 3 layers and models on the JAX backend."""

    def company(self, model: Any) -> Company:
        return Company(jax.process_index(), jax.process_count())


def framework() -> KerasNative:
    """What polyak asks of Keras on JAX."""
    return KerasOnJax(JaxEngine(), JaxHostEngine())
