"""The learning rates of stochastic weight averaging, with the rule that counts where a cycle ends."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from polyak.averaging.base import count, real
from polyak.averaging.rules import Delayed, Every, Mean, Rule


@keras.saving.register_keras_serializable(package="polyak")
class SWASchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate for SWA: ``before`` at first, then cycles that fall from ``high`` to ``low``, or a constant.

    In a cycle of c steps the i-th step has (1 - i / c) high + (i / c) low. With ``cycle=1`` that is ``low`` always: the
    constant schedule. ``rule`` is the mean of the weights at the end of each cycle: give it to ``polyak.track`` or
    ``polyak.keras.Averaging``, and the average counts an update just where the learning rate is lowest.

    Args:
        before: the learning rate until averaging begins.
        high: the largest learning rate of a cycle.
        low: the smallest, at its end.
        after: updates of the optimizer before the first cycle, at least 0.
        cycle: updates in a cycle, at least 1.

    Raises:
        RuleError: a number is out of range.

    Source: Izmailov et al., SWA, arXiv 1803.05407, section 3.1 and equation 1.

    Example:
        >>> schedule = SWASchedule(0.1, high=0.05, low=0.01, after=2, cycle=4)
        >>> [round(float(schedule(step)), 4) for step in range(8)]
        [0.1, 0.1, 0.04, 0.03, 0.02, 0.01, 0.04, 0.03]
        >>> print(schedule.rule)
        mean,every=4,after=2
    """

    def __init__(self, before: float, high: float, low: float, after: int, cycle: int = 1) -> None:
        for name, value in (("before", before), ("high", high), ("low", low)):
            real(f"SWASchedule: {name}", value, "[0, inf)", lambda x: x >= 0)
        self.before, self.high, self.low = float(before), float(high), float(low)
        self.after = count("SWASchedule: after", after, 0)
        self.cycle = count("SWASchedule: cycle", cycle, 1)

    @property
    def rule(self) -> Rule:
        """The mean of the weights at the ends of the cycles."""
        mean: Rule = Mean() if self.cycle == 1 else Every(Mean(), self.cycle)
        return mean if self.after == 0 else Delayed(mean, self.after)

    def __call__(self, step: Any) -> Any:
        """The learning rate of the update after ``step`` updates."""
        step = ops.cast(step, "float32")
        done = (ops.mod(step - self.after, self.cycle) + 1.0) / self.cycle
        return ops.where(step < self.after, self.before, (1.0 - done) * self.high + done * self.low)

    def get_config(self) -> dict[str, Any]:
        """The arguments as data, for Keras."""
        names = ("before", "high", "low", "after", "cycle")
        return {name: getattr(self, name) for name in names}
