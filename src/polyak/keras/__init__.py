"""polyak in Keras' own loops, on every backend: ``polyak.keras.Averaging`` for fit, evaluate and predict."""

from __future__ import annotations

from polyak.keras.averaging import Averaging
from polyak.keras.schedule_free import schedule_free
from polyak.keras.schedules import SWASchedule
from polyak.keras.snapshots import Snapshots
from polyak.keras.switching import SwitchEMA

__all__ = ["Averaging", "SWASchedule", "Snapshots", "SwitchEMA", "schedule_free"]
