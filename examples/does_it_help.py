"""Does averaging help? Raw weights beside each main rule, at an equal number of steps, on real data that packages ship.

Three tasks: scikit-learn's digits; the same, made hard by us (few images, one label in five wrong); and noise removed
from a photograph by a network that has seen another one. Each is trained by Adam twice: at a constant learning rate,
and at one that falls to zero along half a cosine, which is the usual way to do without averages. Every average follows
the same run as the raw weights beside it. The learning rates are those that suit the raw weights best: ``--choose``
compares them on other seeds.

    python examples/does_it_help.py                     trains, and writes figures.json, tables.md and picture.svg
    python examples/does_it_help.py --from figures.json    writes tables and picture again
    python examples/does_it_help.py --choose            which learning rates suit the raw weights
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np
from keras import ops
from sklearn.datasets import load_digits, load_sample_images

import polyak

STEPS, SEEDS, BATCH, WIDTH, STRETCHES = 3000, 10, 32, 128, 20
RATES, OTHER_SEEDS = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2), range(100, 105)
SIDE, NOISE = 8, 50 / 255  # of the patches of a photograph: their side in pixels, and the noise in them
FORM = polyak.derived.PaperBEMA(every=10)
# What a row is called, and its rule.
RULES = {
    "ema:0.99": "ema:0.99",
    "ema:0.999": "ema:0.999",
    "ema:0.999, start=copy": "ema:0.999,start=copy",
    "power, sigma_rel=0.05": "power:sigma_rel=0.05",
    "power, sigma_rel=0.1": "power:sigma_rel=0.1",
    "mean of the last quarter": "tail:last=0.25,steps={steps}",
    "mean of everything": "mean",
}
RAW, WINDOW, BEMA = "raw", "last 5 of 20 checkpoints", "BEMA"
SCHEDULES = ("constant", "falling")
Batch = tuple[Any, Any]
Figures = dict[str, dict[str, dict[str, list[float]]]]


@dataclass(frozen=True, slots=True)
class Problem:
    """Data of one seed: batches without end, inputs for testing, and what outputs on these are worth."""

    batches: Iterator[Batch]
    test_x: Any
    score: Callable[[Any], float]


@dataclass(frozen=True, slots=True)
class Task:
    """What is learned: a network from so many inputs to so many outputs, and the learning rate of each schedule."""

    name: str
    measure: str
    shape: tuple[int, int]
    rates: Mapping[str, float]
    loss: Callable[[Any, Any], Any]
    problem: Callable[[int], Problem]


# --- digits ----------------------------------------------------------------------------------------------------------


def digits(seed: int, images: int, wrong: float) -> Problem:
    """So many images for training, of which a share has a wrong label, and the second half of all for testing."""
    draw = np.random.default_rng(seed)
    bunch: Any = load_digits()
    order = draw.permutation(len(bunch.target))
    x, y = (bunch.images / 16.0).astype("float32")[order], bunch.target[order]
    half = len(y) // 2
    labels = np.where(draw.random(images) < wrong, (y[:images] + draw.integers(1, 10, images)) % 10, y[:images])
    test_x, test_y = x[half:].reshape(-1, 64), y[half:]

    def batches() -> Iterator[Batch]:
        while True:
            chosen = draw.integers(0, images, BATCH)
            yield shifted(x[chosen], draw), labels[chosen]

    return Problem(batches(), test_x, lambda out: 100.0 * float(np.mean(np.argmax(out, axis=-1) == test_y)))


def shifted(x: Any, draw: np.random.Generator) -> Any:
    """Each image moved by up to a pixel in each direction, as rows of 64 numbers."""
    n, side = len(x), np.arange(8)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    down, across = draw.integers(0, 3, (2, n, 1)) + side
    return padded[np.arange(n)[:, None, None], down[:, :, None], across[:, None, :]].reshape(n, 64)


def cross_entropy(outputs: Any, labels: Any) -> Any:
    """The mean over a batch."""
    return ops.mean(keras.losses.sparse_categorical_crossentropy(labels, outputs, from_logits=True))


# --- a photograph ----------------------------------------------------------------------------------------------------


def photographs(seed: int) -> Problem:
    """Patches of scikit-learn's photograph of a temple for training, of its flower for testing; noise is learned."""
    draw = np.random.default_rng(seed)
    temple, flower = (image.mean(axis=-1).astype("float32") / 255.0 for image in load_sample_images().images)

    def batches() -> Iterator[Batch]:
        while True:
            noise = draw.normal(size=(BATCH, SIDE * SIDE)).astype("float32")
            yield patches(temple, BATCH, draw) + NOISE * noise, noise

    fixed = np.random.default_rng(0)  # the same patches and the same noise for every seed
    clean = patches(flower, 5000, fixed)
    noisy = clean + fixed.normal(0.0, NOISE, clean.shape).astype("float32")
    return Problem(batches(), noisy, lambda out: decibels(noisy - NOISE * out, clean))


def decibels(image: Any, clean: Any) -> float:
    """Peak signal-to-noise ratio of images in [0, 1]."""
    return float(-10.0 * np.log10(np.mean((image - clean) ** 2)))


def patches(image: Any, n: int, draw: np.random.Generator) -> Any:
    """Squares of the image at random places, as rows."""
    top, left = (draw.integers(0, length - SIDE + 1, (n, 1)) + np.arange(SIDE) for length in image.shape)
    return image[top[:, :, None], left[:, None, :]].reshape(n, SIDE * SIDE)


def squares(outputs: Any, noise: Any) -> Any:
    """The mean squared error."""
    return ops.mean(ops.square(outputs - noise))


TASKS = (
    Task(
        "digits",
        "accuracy in %",
        (64, 10),
        {"constant": 3e-3, "falling": 1e-2},
        cross_entropy,
        lambda seed: digits(seed, 898, 0.0),
    ),
    Task(
        "hard digits",
        "accuracy in %",
        (64, 10),
        {"constant": 1e-4, "falling": 3e-4},
        cross_entropy,
        lambda seed: digits(seed, 200, 0.2),
    ),
    Task(
        "photograph",
        "PSNR in dB",
        (SIDE * SIDE, SIDE * SIDE),
        {"constant": 1e-3, "falling": 3e-3},
        squares,
        photographs,
    ),
)


# --- training --------------------------------------------------------------------------------------------------------


def network(task: Task) -> Any:
    """Two hidden layers."""
    inputs, outputs = task.shape
    hidden = [keras.layers.Dense(WIDTH, "relu"), keras.layers.Dense(WIDTH, "relu")]
    return keras.Sequential([keras.Input((inputs,)), *hidden, keras.layers.Dense(outputs)])


class Laboratory:
    """A network with its averages, and one compiled stretch of training that serves every seed."""

    def __init__(self, task: Task, rate: float, schedule: str, steps: int) -> None:
        self.task, self.stretch = task, steps // STRETCHES
        falls = keras.optimizers.schedules.CosineDecay(rate, steps, alpha=0.0)
        self.optimizer = keras.optimizers.Adam(falls if schedule == "falling" else rate)
        self.net, self.twin = network(task), network(task)
        self.optimizer.build(self.net.trainable_variables)
        self.fresh = [v.value for v in self.optimizer.variables]
        self.averages = {name: polyak.track(self.net, rule.format(steps=steps)) for name, rule in RULES.items()}
        self.averages[BEMA] = polyak.track(self.net, FORM.rule)
        self.compiled = jax.jit(lambda state, batches: jax.lax.scan(self.step, state, batches)[0])

    def step(self, state: Any, batch: Batch) -> tuple[Any, None]:
        """One step of the optimizer, then one update of each average."""
        weights, kept, trees = state
        gradients = jax.grad(lambda w: self.task.loss(self.net.stateless_call(w, [], batch[0])[0], batch[1]))(weights)
        weights, kept = self.optimizer.stateless_apply(kept, gradients, weights)
        trees = {name: self.averages[name].stateless_update(tree, weights) for name, tree in trees.items()}
        return (weights, kept, trees), None

    def run(self, seed: int) -> dict[str, float]:
        """The score of the raw weights and of each average after one training."""
        keras.utils.set_random_seed(seed)
        problem = self.task.problem(seed)
        self.net.set_weights(network(self.task).get_weights())
        for average in self.averages.values():
            average.reset()
        start, window = polyak.snapshot(self.net).copy(), polyak.derived.LastK(self.net, 5)
        trees = {name: average.tree() for name, average in self.averages.items()}
        state = ([v.value for v in self.net.trainable_variables], self.fresh, trees)
        for _ in range(STRETCHES):
            drawn = [next(problem.batches) for _ in range(self.stretch)]
            state = self.compiled(state, tuple(np.stack(part) for part in zip(*drawn, strict=True)))
            self.net.set_weights(state[0])
            window.update()
        for name, average in self.averages.items():
            average.take(state[2][name])
        bema = polyak.derived.BEMA(self.averages[BEMA], FORM, start)
        sources = {RAW: self.net, **self.averages, WINDOW: window.snapshot(), BEMA: bema.snapshot()}
        return {name: self.score(source, problem) for name, source in sources.items()}

    def score(self, source: Any, problem: Problem) -> float:
        """What these weights are worth in another instance of the network."""
        polyak.transfer(source, self.twin)
        return problem.score(self.twin.predict(problem.test_x, batch_size=1000, verbose=0))


def say(text: str) -> None:
    """Tell whoever waits."""
    print(text, file=sys.stderr, flush=True)


def study(tasks: Sequence[Task], seeds: Sequence[int], steps: int) -> Figures:
    """The score on each task, by each schedule, of each row; one number for each seed."""
    found: Figures = {}
    for task in tasks:
        found[task.name] = {}
        for schedule in SCHEDULES:
            laboratory = Laboratory(task, task.rates[schedule], schedule, steps)
            runs = []
            for seed in seeds:
                say(f"{task.name}, {schedule} learning rate, seed {seed}")
                runs.append(laboratory.run(seed))
            found[task.name][schedule] = {row: [run[row] for run in runs] for row in runs[0]}
    return found


def choice(tasks: Sequence[Task], rates: Sequence[float], steps: int) -> str:
    """The mean score of the raw weights at each learning rate, over other seeds than those of the study."""
    lines = [f"| task | rate | {' | '.join(f'{r:g}' for r in rates)} |", "|---|---|" + "---:|" * len(rates)]
    for task in tasks:
        for schedule in SCHEDULES:
            scores = [_raw(task, rate, schedule, steps) for rate in rates]
            lines.append(f"| {task.name} | {schedule} | {' | '.join(f'{score:.2f}' for score in scores)} |")
    return "\n".join(lines)


def _raw(task: Task, rate: float, schedule: str, steps: int) -> float:
    say(f"{task.name}, {schedule} learning rate {rate:g}")
    laboratory = Laboratory(task, rate, schedule, steps)
    return float(np.mean([laboratory.run(seed)[RAW] for seed in OTHER_SEEDS]))


# --- what came out ---------------------------------------------------------------------------------------------------


def mean_and_error(values: Any) -> tuple[float, float]:
    """The mean, and its standard error; none for a single seed."""
    many = np.asarray(values)
    return float(many.mean()), float(many.std(ddof=1) / len(many) ** 0.5) if len(many) > 1 else 0.0


def table(task: Task, found: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Scores by row and schedule, each with the gain over the raw weights of the same run, and how often it is one."""
    head = "| weights | constant rate | gain | falling rate | gain |\n|---|---:|---:|---:|---:|"
    rows = ([row, *(cell for s in SCHEDULES for cell in _cells(found[s], row))] for row in found["constant"])
    return "\n".join([f"{task.name}, {task.measure}:\n", head, *(f"| {' | '.join(row)} |" for row in rows)])


def _cells(found: Mapping[str, list[float]], row: str) -> list[str]:
    mean, error = mean_and_error(found[row])
    gains = np.subtract(found[row], found[RAW])
    gain, of_gain = mean_and_error(gains)
    better = f"{gain:+.2f} ± {of_gain:.2f} ({int((gains > 0).sum())})" if row != RAW else ""
    return [f"{mean:.2f} ± {error:.2f}", better]


def picture(figures: Figures, path: Path) -> None:
    """A panel for each task: means with two standard errors, the raw weights of both schedules as lines."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "polyak", "svg.fonttype": "none"}):
        figure = Figure(figsize=(10, 3.9), layout="constrained")
        axes = figure.subplots(1, len(figures), squeeze=False)[0]
        for task, ax in zip([t for t in TASKS if t.name in figures], axes, strict=True):
            _panel(ax, task, figures[task.name])
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        figure.savefig(path, metadata={"Date": None})


def _panel(ax: Any, task: Task, found: Mapping[str, Mapping[str, list[float]]]) -> None:
    rows = list(found["constant"])
    for schedule, colour, shift in zip(SCHEDULES, ("#0072B2", "#D55E00"), (-0.12, 0.12), strict=True):
        means, errors = np.array([mean_and_error(found[schedule][row]) for row in rows]).T
        look = {"fmt": "o", "color": colour, "markersize": 4, "label": f"{schedule} rate"}
        ax.errorbar(means, np.arange(len(rows)) + shift, xerr=2 * errors, **look)
        ax.axvline(means[0], color=colour, linewidth=0.8, linestyle=":")
    ax.set_yticks(np.arange(len(rows)), rows if ax.get_subplotspec().is_first_col() else [])
    ax.invert_yaxis()
    ax.set_title(task.name, fontsize=11)
    ax.set_xlabel(task.measure)
    ax.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Train or read, then write tables and picture, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("does-it-help"))
    parser.add_argument("--from", dest="read", type=Path, metavar="FIGURES")
    parser.add_argument("--choose", type=float, nargs="*", metavar="RATE")
    parser.add_argument("--tasks", nargs="+", default=[t.name for t in TASKS])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, default=STEPS)
    asked = parser.parse_args()
    tasks = [t for t in TASKS if t.name in asked.tasks]
    if asked.choose is not None:
        print(choice(tasks, asked.choose or RATES, asked.steps))
        return
    figures = json.loads(asked.read.read_text()) if asked.read else study(tasks, range(asked.seeds), asked.steps)
    asked.folder.mkdir(parents=True, exist_ok=True)
    (asked.folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    tables = "\n\n".join(table(t, figures[t.name]) for t in TASKS if t.name in figures)
    (asked.folder / "tables.md").write_text(tables + "\n", encoding="utf-8")
    picture(figures, asked.folder / "picture.svg")
    print(tables)


if __name__ == "__main__":
    main()
