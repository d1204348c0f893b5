"""Keeping the best: both sets of weights as they were when a metric was at its best."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polyak.errors import ModelError
from polyak.frameworks import Average, snapshot_of
from polyak.manifest import AVERAGE, RAW
from polyak.snapshot import Snapshot

_LARGER = re.compile(r"acc|auc|precision|recall|f1|f_beta|iou|r2|similarity|true_(pos|neg)")
_SMALLER = re.compile(r"loss|err|mse|mae|mape|msle|divergence|perplexity|false_(pos|neg)|hinge|entropy")


@dataclass(frozen=True, slots=True)
class Best:
    """The best epoch so far.

    Attributes:
        value: the metric then.
        epoch: counted from zero.
        raw, average: the weights at its end.
    """

    value: float
    epoch: int
    raw: Snapshot
    average: Snapshot


@dataclass(frozen=True, slots=True)
class Judge:
    """Which value of a metric is better. Its text is the metric's name, after "max " or "min " where it is not known.

    Example:
        >>> Judge.of("val_average_loss").is_better(0.5, 0.6), Judge.of("max val_score").is_better(0.5, 0.6)
        (True, False)
    """

    metric: str
    larger: bool

    @classmethod
    def of(cls, text: str) -> Judge:
        """Raises ModelError where the name does not tell the direction."""
        word, _, metric = text.partition(" ")
        if word in ("max", "min") and metric:
            return cls(metric, word == "max")
        if bool(_LARGER.search(text)) == bool(_SMALLER.search(text)):
            raise ModelError(
                f"best={text!r}: expected a metric whose name says which values are better",
                hint=f'say it: best="max {text}" or best="min {text}"',
            )
        return cls(text, bool(_LARGER.search(text)))

    def is_better(self, value: float, than: float | None) -> bool:
        return than is None or (value > than if self.larger else value < than)

    def value(self, logs: Mapping[str, Any]) -> float:
        """The metric in the logs. Raises ModelError if it is not there."""
        if self.metric not in logs:
            known = ", ".join(logs) or "none"
            raise ModelError(
                f"best={self.metric!r}: expected it among the metrics of an epoch, received {known}",
                hint='validate in fit; metrics of the average need evaluate="average" or "both"',
            )
        return float(logs[self.metric])


def both_sets(average: Average) -> tuple[Snapshot, Snapshot]:
    """Copies of the raw weights and of the average."""
    raw = snapshot_of(average.source, RAW).copy()
    return raw, snapshot_of(average.target, AVERAGE, average.state).copy()
