"""Does averaging help, and which rule at which length of run? ``python -m polyak.demo.study --seeds 20``

One run for each seed; all averages follow it at once. The learning rate is constant, so a shorter run is the
beginning of a longer one, and every row of the table sees the very same weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import polyak
from polyak.demo import data, training
from polyak.demo.model import FAST, SLOW, fresh
from polyak.report.tables import table

DEMO = training.EPOCHS * training.steps_per_epoch(data.load())
LENGTHS = (30, 100, 300, DEMO, 3000)
DECAY = 0.999
RULES: Mapping[str, str] = {
    "fast": f"ema:{FAST}",
    "slow": f"ema:{SLOW}",
    "warm": f"ema:{DECAY}",
    "tf": f"tf:{DECAY}",
    "debiased": f"ema:{DECAY},start=debiased",
    "mean": "mean",
    "copy": f"ema:{DECAY},start=copy",
    "initial": f"ema:{DECAY},start=initial",
}
STATISTICS = "warm+statistics"
RAW = "raw"


@dataclass(frozen=True, slots=True)
class Cell:
    """Test accuracy over seeds, in percent; ``gain`` is over the raw weights of the same seed and step.

    Attributes:
        error, gain_error: standard errors of the means.
        better: seeds on which the gain is above zero.
    """

    mean: float
    error: float
    gain: float
    gain_error: float
    better: int


def study(seeds: int, lengths: Sequence[int] = LENGTHS) -> dict[str, list[Cell]]:
    """A row for the raw weights and for each rule, with a cell for each length of run, given in steps."""
    runs = []
    for seed in range(seeds):
        runs.append(accuracies(seed, lengths))
        print(f"seed {seed + 1} of {seeds}", file=sys.stderr, flush=True)  # noqa: T201 - a script's progress
    return {row: _cells([run[row] for run in runs], [run[RAW] for run in runs]) for row in runs[0]}


def accuracies(seed: int, lengths: Sequence[int]) -> dict[str, list[float]]:
    """Test accuracy in percent of the raw weights and of each average, after each number of steps."""
    training.reproducible(seed)
    digits, net = data.load(), fresh()
    averages: dict[str, Any] = {name: polyak.track(net, rule) for name, rule in RULES.items()}
    averages[STATISTICS] = polyak.track(net, RULES["warm"], kinds={"*/moving_*": "trainable"})
    run = training.Training(net, list(averages.values()), digits, seed)
    found: dict[str, list[float]] = {name: [] for name in (RAW, *averages)}
    for before, length in zip((0, *lengths), lengths, strict=False):
        run.advance(length - before)
        for name, predict in [(RAW, net), *averages.items()]:
            found[name].append(100 * training.accuracy(predict, digits))
    return found


def tables(rows: Mapping[str, list[Cell]], lengths: Sequence[int]) -> str:
    """Accuracies, and gains over the raw weights of the same seed (on how many seeds above zero)."""
    head = [*(f"{n} steps" for n in lengths)]
    values = [[_label(name), *(f"{c.mean:.2f} +- {c.error:.2f}" for c in row)] for name, row in rows.items()]
    gains = [
        [_label(name), *(f"{c.gain:+.2f} +- {c.gain_error:.2f} ({c.better})" for c in row)]
        for name, row in rows.items()
        if name != RAW
    ]
    return "\n\n".join([table(["accuracy", *head], values), table(["gain over raw", *head], gains)])


def _cells(mine: list[list[float]], raw: list[list[float]]) -> list[Cell]:
    """A cell for each length; one row of each list is one seed."""
    values, gains = np.array(mine), np.array(mine) - np.array(raw)
    figures = zip(values.mean(0), _errors(values), gains.mean(0), _errors(gains), (gains > 0).sum(0), strict=True)
    return [Cell(float(m), float(e), float(g), float(ge), int(better)) for m, e, g, ge, better in figures]


def _errors(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard error of the mean over the first axis; zero for one seed."""
    seeds = len(values)
    error: NDArray[np.float64] = values.std(0, ddof=min(1, seeds - 1)) / np.sqrt(seeds)
    return error


def _label(name: str) -> str:
    rule = RULES["warm"] if name == STATISTICS else RULES.get(name, "")
    return f"{name} ({rule})" if rule and rule != name else name


def main() -> None:
    """Print the table on standard output."""
    parser = argparse.ArgumentParser(prog="python -m polyak.demo.study", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    asked = parser.parse_args()
    found = tables(study(asked.seeds), LENGTHS)
    print(f"test accuracy in percent, mean +- standard error over {asked.seeds} seeds\n\n{found}")  # noqa: T201


if __name__ == "__main__":
    main()
