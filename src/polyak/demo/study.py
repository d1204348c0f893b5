"""Does averaging help, and which rule at which length of run? ``python -m polyak.demo.study --seeds 20``

One run for each seed; all averages follow it at once. The learning rate is constant, so a shorter run is the
beginning of a longer one, and every row of the table sees the very same weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

import polyak
from polyak.demo import data, training
from polyak.demo.model import FAST, SLOW, fresh

LENGTHS = (30, 100, 300, 900, 3000)
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
    """Test accuracy over seeds, in percent; ``gain`` is over the raw weights of the same seed and step."""

    mean: float
    error: float
    gain: float
    gain_error: float


def study(seeds: int, lengths: tuple[int, ...] = LENGTHS) -> dict[str, list[Cell]]:
    """A row for the raw weights and for each rule, with a cell for each length of run, given in steps."""
    runs = []
    for seed in range(seeds):
        runs.append(accuracies(seed, lengths))
        print(f"seed {seed + 1} of {seeds}", file=sys.stderr, flush=True)  # noqa: T201 - a script's progress
    return {row: _cells([run[row] for run in runs], [run[RAW] for run in runs]) for row in runs[0]}


def accuracies(seed: int, lengths: tuple[int, ...]) -> dict[str, list[float]]:
    """Test accuracy in percent of the raw weights and of each average, after each number of steps."""
    training.reproducible(seed)
    digits, net = data.load(), fresh()
    averages = {name: polyak.track(net, rule) for name, rule in RULES.items()}
    averages[STATISTICS] = polyak.track(net, RULES["warm"], kinds={"*/moving_*": "trainable"})
    run = training.Training(net, list(averages.values()), digits, seed)
    found: dict[str, list[float]] = {name: [] for name in (RAW, *averages)}
    for before, length in zip((0, *lengths), lengths, strict=False):
        run.advance(length - before)
        for name, predict in ((RAW, net), *averages.items()):
            found[name].append(100 * training.accuracy(predict, digits))
    return found


def table(rows: Mapping[str, list[Cell]], lengths: tuple[int, ...] = LENGTHS) -> str:
    """Mean +- standard error, and the gain over the raw weights."""
    head = f"{'rule':32}" + "".join(f"{f'{n} steps':>22}" for n in lengths)
    return "\n".join([head, *(f"{_label(name):32}" + "".join(map(_text, cells)) for name, cells in rows.items())])


def _cells(mine: list[list[float]], raw: list[list[float]]) -> list[Cell]:
    values, gains = np.array(mine), np.array(mine) - np.array(raw)
    root = np.sqrt(max(len(mine), 1))
    spread = min(1, len(mine) - 1)
    figures = values.mean(0), values.std(0, ddof=spread) / root, gains.mean(0), gains.std(0, ddof=spread) / root
    return [Cell(*map(float, column)) for column in zip(*figures, strict=True)]


def _label(name: str) -> str:
    rule = RULES["warm"] if name == STATISTICS else RULES.get(name, "")
    return f"{name} ({rule})" if rule and rule != name else name


def _text(cell: Cell) -> str:
    return f"{f'{cell.mean:.2f} +- {cell.error:.2f}':>14}{f'({cell.gain:+.2f})':>8}"


def main() -> None:
    """Print the table on standard output."""
    parser = argparse.ArgumentParser(prog="python -m polyak.demo.study", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    asked = parser.parse_args()
    print(f"test accuracy in percent, mean +- standard error over {asked.seeds} seeds (gain over raw)")  # noqa: T201
    print(table(study(asked.seeds)))  # noqa: T201 - a script's answer


if __name__ == "__main__":
    main()
