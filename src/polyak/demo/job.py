"""The main job, end to end: train with two averages, carry them to fresh instances by every route, compare bits."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import polyak
from polyak.demo import data, place, training
from polyak.demo.held import Arrival, Held
from polyak.demo.model import Classifier, fresh, parts
from polyak.demo.routes import ROUTES, Context, Route
from polyak.transfer.receipt import Receipt

# Called with what is being done, how much of it is done, and how much there is.
Watch = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Row:
    """What one route did.

    Attributes:
        weights, nbytes: how many arrived.
        seconds: for all of the route, the building of the fresh instance and its test included.
        accuracy: of the fresh instance, by role, in [0, 1].
        differences: a line for every weight or count that is not the same bit for bit.
    """

    route: str
    weights: int
    nbytes: int
    seconds: float
    accuracy: Mapping[str, float]
    differences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What the demo did.

    Attributes:
        steps, seconds: length of the training.
        accuracy: of the trained model before anything was carried, by role, in [0, 1].
        receipt: of the first transfer.
        recalibrated: accuracy of the averages in fresh instances whose statistics of batch normalisation were
            recomputed on the training images; empty unless asked for.
    """

    seed: int
    directory: Path
    steps: int
    seconds: float
    accuracy: Mapping[str, float]
    rows: tuple[Row, ...]
    receipt: Receipt | None
    recalibrated: Mapping[str, float] = field(default_factory=dict)

    @property
    def same(self) -> bool:
        """Whether every bit arrived by every route."""
        return not self.differences

    @property
    def differences(self) -> tuple[str, ...]:
        """A line for each difference, beginning with the route's name."""
        return tuple(f"{row.route}: {line}" for row in self.rows for line in row.differences)

    def to_json(self) -> str:
        receipt = json.loads(self.receipt.to_json()) if self.receipt else None
        body = {**asdict(self), "directory": str(self.directory), "same": self.same, "receipt": receipt}
        return json.dumps(body, indent=1)


def run(
    directory: str | Path = "polyak-demo",
    seed: int = 0,
    routes: Sequence[Route] = ROUTES,
    watch: Watch = lambda what, done, total: None,
    *,
    recalibrate: bool = False,
) -> Report:
    """Do the job; the report is also left in the directory as ``report.json``.

    Args:
        recalibrate: afterwards give fresh instances with the averages statistics of their own, and test those.

    Raises:
        FileError: the directory holds something that the demo did not make.
    """
    made = place.make(Path(directory))
    training.reproducible(seed)
    digits, model = data.load(), fresh()
    started = time.perf_counter()
    steps = _train(model, digits, seed, watch)
    seconds = time.perf_counter() - started
    before = {role: training.accuracy(part, digits) for role, part in parts(model).items()}
    context = Context(model, {role: Held.of(part) for role, part in parts(model).items()}, digits, made)
    done = _carry_all(routes, context, watch)
    receipts = [a.receipt for _, arrivals in done for a in arrivals if a.receipt is not None]
    rows = tuple(row for row, _ in done)
    made_anew = _recalibrated(model, digits, watch) if recalibrate else {}
    report = Report(seed, made, steps, seconds, before, rows, next(iter(receipts), None), made_anew)
    (made / "report.json").write_text(report.to_json())
    return report


def _train(model: Classifier, digits: data.Digits, seed: int, watch: Watch) -> int:
    loop = training.Training(model, [model.fast, model.slow], digits, seed)
    for epoch in range(training.EPOCHS):
        watch("training", epoch, training.EPOCHS)
        loop.advance(training.steps_per_epoch(digits))
    watch("training", training.EPOCHS, training.EPOCHS)
    return training.EPOCHS * training.steps_per_epoch(digits)


def _recalibrated(model: Classifier, digits: data.Digits, watch: Watch) -> dict[str, float]:
    """The accuracy of each average in a fresh instance, whose statistics a pass over the training images recomputes."""
    found = {}
    for role, average in parts(model).items():
        if isinstance(average, polyak.Average):
            other = fresh()
            polyak.transfer(average, other)
            polyak.recalibrate(other, digits.train_x, watch=watch)
            found[role] = training.accuracy(other, digits)
    return found


def _carry_all(routes: Sequence[Route], context: Context, watch: Watch) -> list[tuple[Row, list[Arrival]]]:
    done = []
    for i, route in enumerate(routes):
        watch(route.name, i, len(routes))
        done.append(_carry(route, context))
    watch("carried", len(routes), len(routes))
    return done


def _carry(route: Route, context: Context) -> tuple[Row, list[Arrival]]:
    started = time.perf_counter()
    arrivals = route.carry(context)
    seconds = time.perf_counter() - started
    differences = tuple(line for a in arrivals for line in a.differences)
    if not any(a.got.values for a in arrivals):
        differences = (*differences, "nothing arrived")
    accuracy = {a.role: a.accuracy for a in arrivals}
    weights, nbytes = sum(len(a.got.values) for a in arrivals), sum(a.nbytes for a in arrivals)
    return Row(route.name, weights, nbytes, seconds, accuracy, differences), arrivals
