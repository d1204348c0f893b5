"""Quantities with units: what a number of steps, epochs, samples or tokens is in updates of an average."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

from polyak.averaging.base import plain, real
from polyak.errors import RuleError

_NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*(/)?\s*([a-z]+)", re.IGNORECASE)
_UNITS = ("updates", "steps", "epochs", "samples", "tokens")
_WHOLE = 1e-9


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with a unit. ``rate`` says that it is one of something for each unit: 0.999/sample."""

    number: float
    unit: str
    rate: bool = False

    def __str__(self) -> str:
        return f"{plain(self.number)}{'/' if self.rate else ''}{self.unit}"


def quantity(text: str) -> Quantity | None:
    """The quantity that a text holds; None if it has no unit.

    Raises:
        RuleError: the unit is unknown.

    Example:
        >>> quantity("2000samples"), quantity("0.999/sample")
        (Quantity(number=2000.0, unit='samples', rate=False), Quantity(number=0.999, unit='samples', rate=True))
        >>> quantity("2000") is None
        True
    """
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    number, rate, unit = found.groups()
    name = f"{unit.lower().removesuffix('s')}s"
    if name not in _UNITS:
        raise RuleError(f"{text:.40}: unknown unit {unit[:40]!r}", hint=f"units: {', '.join(_UNITS)}")
    return Quantity(real(f"{text:.40}", float(number), "(-inf, inf)", lambda x: True), name, bool(rate))


@dataclass(frozen=True, slots=True)
class Pace:
    """How a run goes on, so that quantities can be counted in updates.

    A step is one batch. An update of the average follows a real update of the optimizer, that is ``accumulate`` steps.

    Args:
        batch: samples in a step, over all devices.
        steps_per_epoch: steps in an epoch.
        tokens_per_step: tokens in a step, over all devices.
        accumulate: steps whose gradients make one update.

    Raises:
        RuleError: a number is not above 0.

    Example:
        >>> Pace(batch=64, accumulate=4).per_update("samples"), Pace(steps_per_epoch=100).per_update("epochs")
        (256.0, 0.01)
    """

    batch: float | None = None
    steps_per_epoch: float | None = None
    tokens_per_step: float | None = None
    accumulate: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                object.__setattr__(self, field.name, real(field.name, value, "(0, inf)", lambda x: x > 0))

    def per_update(self, unit: str) -> float:
        """How many of a unit one update is. Raises RuleError where the pace does not say it."""
        if unit == "updates":
            return 1.0
        if unit == "steps":
            return self.accumulate
        per_epoch = None if self.steps_per_epoch is None else 1.0 / self.steps_per_epoch
        key, per_step = {
            "epochs": ("steps_per_epoch", per_epoch),
            "samples": ("batch", self.batch),
            "tokens": ("tokens_per_step", self.tokens_per_step),
        }[unit]
        if per_step is None:
            raise RuleError(
                f"{unit}: expected {key}= beside it, received none", hint=f"add for example {_EXAMPLE[key]}"
            )
        return real(f"{unit} in an update", per_step * self.accumulate, "(0, inf)", lambda x: x > 0)

    def updates(self, given: Quantity) -> float:
        """A quantity in updates. Raises RuleError for a rate."""
        if given.rate:
            raise RuleError(f"{given}: expected a number of {given.unit}, received a rate")
        return given.number / self.per_update(given.unit)

    def whole(self, key: str, given: Quantity) -> int:
        """A quantity as a whole number of updates. Raises RuleError if it is none."""
        found = self.updates(given)
        nearest = round(found)
        if abs(found - nearest) > _WHOLE * max(found, 1.0):
            raise RuleError(
                f"{key}={given}: expected a whole number of updates, received {found:.6g}",
                hint=f"write {key}={max(nearest, 1)}, in updates",
            )
        return nearest


_EXAMPLE = {"steps_per_epoch": "steps_per_epoch=100", "batch": "batch=64", "tokens_per_step": "tokens_per_step=131072"}
PACE = tuple(field.name for field in fields(Pace))
# Which setting of a pace each unit needs.
_NEEDS = {"epochs": "steps_per_epoch", "samples": "batch", "tokens": "tokens_per_step"}


def refuse_idle(pace: dict[str, Any], units: set[str]) -> None:
    """Raise RuleError for a setting of the pace that no quantity uses: the number was meant in another unit."""
    used = {_NEEDS.get(unit) for unit in units} | ({"accumulate"} if units - {"updates"} else set())
    for key in pace:
        if key not in used:
            unit = next((u for u, needed in _NEEDS.items() if needed == key), "steps")
            raise RuleError(
                f"{key}={plain(pace[key])}: expected a quantity in {unit} beside it, received none",
                hint=f"write the unit behind the number, as in half_life=2000{unit}; a bare number counts updates",
            )
