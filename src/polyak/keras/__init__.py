"""polyak in Keras' own loops, on every backend: ``polyak.keras.Averaging`` for fit, evaluate and predict."""

from __future__ import annotations

from polyak.keras.averaging import Averaging

__all__ = ["Averaging"]
