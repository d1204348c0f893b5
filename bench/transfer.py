"""A transfer of averaged weights into another model, beside a plain copy of the same bytes and Keras' own way.

``python -m bench.transfer [--quick] [--backends tensorflow jax torch] [--sets one resnet50 gpt2 small]``

The limit is one copy of the bytes into an array that exists, on all cores, in the same turns. polyak's transfer pairs
by structure, refuses what is not finite, keeps the old values until the end, and compares the digest of every weight
read back. The shares are those of one transfer under cProfile.
"""

from __future__ import annotations

import argparse
import cProfile
import math
import pstats
import sys
from collections.abc import Iterator
from typing import Any

from bench import children, limit, weights
from bench.measure import keep, table
from bench.turns import in_turns

BACKENDS = ("tensorflow", "jax", "torch")
MANNERS = ("transfer", "plan", "set_weights", "one core")
# The functions of polyak of which a transfer consists.
PARTS = {"plan": "plan", "write": "_write", "verify": "_verify"}


def main() -> None:
    """Measure, print one table, keep the figures."""
    asked = _arguments()
    if asked.child:
        children.answer(measured, asked.child)
        return
    results: dict[str, Any] = {}
    for backend in asked.backends:
        for name in asked.sets:
            one = {"name": name, "quick": asked.quick, "turns": asked.turns}
            results[f"{backend} {name}"] = children.measured("bench.transfer", one, backend)
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    heads = ["backend, set", "copy ms", *(f"{m} x copy" for m in MANNERS), *(f"{p} %" for p in PARTS)]
    print(table(heads, list(rows(results))))
    print(f"kept in {keep('transfer' + '-quick' * asked.quick, results)}")


def measured(name: str, quick: bool, turns: int) -> dict[str, Any]:
    """In the child: seconds of a plain copy, each manner's times that, and the shares of a transfer's parts."""
    import polyak
    from bench.manners import together

    shapes = weights.shapes(name, quick)
    layer, other = weights.layer(shapes), weights.layer(shapes, seed=1)
    average, size = together(layer, 1), 4 * sum(map(math.prod, shapes))
    times = in_turns(
        {
            "copy": limit.flat_copy(size),
            "one core": limit.flat_copy_on_one_core(size),
            "transfer": lambda: polyak.transfer(average, other),
            "plan": lambda: polyak.plan(average, other),
            "set_weights": lambda: other.set_weights(layer.get_weights()),
        },
        turns,
    )
    ratios = {manner: times.ratio(manner, "copy") for manner in MANNERS}
    return {"copy": times.median("copy"), **ratios, "shares": shares(lambda: polyak.transfer(average, other))}


def shares(job: Any) -> dict[str, float]:
    """Which share of a job's time its parts take, in [0, 1]."""
    watched = cProfile.Profile()
    watched.runcall(job)
    found = pstats.Stats(watched)
    total = found.total_tt
    return {
        part: sum(row[3] for at, row in found.stats.items() if at[2] == name) / total for part, name in PARTS.items()
    }


def rows(results: dict[str, Any]) -> Iterator[list[str]]:
    """A backend and a set."""
    for name, one in results.items():
        if isinstance(one, str):
            yield [f"{name}: {one}", *["-"] * (1 + len(MANNERS) + len(PARTS))]
            continue
        ratios = [f"{one[manner]:.2f}" for manner in MANNERS]
        yield [name, f"{1e3 * one['copy']:.3g}", *ratios, *(f"{100 * one['shares'][part]:.0f}" for part in PARTS)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=BACKENDS)
    parser.add_argument("--sets", nargs="+", default=list(weights.SETS), choices=list(weights.SETS))
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="sets of a few megabytes: whether it runs, not how fast")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
