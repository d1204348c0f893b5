"""Both sets of weights as they were: kept when a metric was at its best, put back, and told apart later."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polyak.errors import ModelError
from polyak.frameworks import Average, framework_of, snapshot_of
from polyak.frameworks.finished import left_beside
from polyak.keras.late import holds_average
from polyak.manifest import AVERAGE, RAW, digest
from polyak.snapshot import Snapshot
from polyak.transfer.plan import make_plan
from polyak.weights import Kind

_LARGER = re.compile(r"acc|auc|precision|recall|f1|f_beta|iou|r2|similarity|true_(pos|neg)")
_SMALLER = re.compile(r"loss|err|mse|mae|mape|msle|divergence|perplexity|false_(pos|neg)|hinge|entropy")


@dataclass(frozen=True, slots=True)
class Best:
    """The best epoch so far.

    Attributes:
        value: the metric then.
        epoch: counted from zero.
        raw, average: the weights at its end.
        others: the averages of the other callbacks in the list then, by the callbacks' names.
    """

    value: float
    epoch: int
    raw: Snapshot
    average: Snapshot
    others: Mapping[str, Snapshot]


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
        """A value that is no number is never better."""
        if math.isnan(value):
            return False
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
    return snapshot_of(average.source, RAW).copy(), averaged(average)


def averaged(average: Average) -> Snapshot:
    """A copy of the average, with its rule and counts."""
    return snapshot_of(average.target, AVERAGE, average.state).copy()


def go_back(raw: Snapshot, average: Average) -> None:
    """Give the model raw weights that it had before, whatever they were."""
    make_plan(raw, average.source, {"nonfinite": "allow"}).apply()


def into_model(model: Any, held: Snapshot, average: Average) -> None:
    """Give the model its average; weights that this leaves out stay as they are."""
    left = [w.path for w in average.source.weights if w.path not in held]
    asked: Any = {"exclude": left} if left else {}
    make_plan(held, framework_of(model).target(model), asked).apply()


@dataclass(frozen=True, slots=True)
class Marks:
    """Digests of both sets by which one knows later whether something else has written them."""

    raw: Mapping[str, str]
    average: Mapping[str, str]

    @classmethod
    def of(cls, average: Average) -> Marks:
        """Of the weights that are averaged, as they are now."""
        paths = [w.path for w in average.target.weights if w.kind is Kind.TRAINABLE]
        raw, held = ({path: digest(side.read(path)) for path in paths} for side in (average.source, average.target))
        return cls(raw, held)

    def jumped(self, average: Average) -> str:
        """What to say of weights that were changed, but not together with their average; "" if none were."""
        now = Marks.of(average)
        other = [path for path, mark in self.raw.items() if now.raw.get(path, mark) != mark]
        if not other or any(now.average.get(path, mark) != mark for path, mark in self.average.items()):
            return ""
        if left := left_beside(average):
            return holds_average(left[0])
        return (
            f"{len(other)} of {len(self.raw)} weights of {average.label}, {other[0]!r} first, have been changed since "
            "the last update; the average still is one of the old ones: average.reset() begins it anew"
        )
