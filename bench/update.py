"""An update of averages on each backend, beside the tools that do the same and beside a plain loop over flat memory.

``python -m bench.update [--quick] [--backends numpy tensorflow jax torch] [--sets one resnet50 gpt2 small]``

Each backend and set has a process of its own, in which all manners take turns (``bench.turns``). The limit is what an
update must read and write (12 bytes for a float32 weight and one float32 average, ``bench.limit.update_share``) at the
speed of a plain in-place loop over a flat array of as many numbers on all cores, in the same turns; on a CUDA device,
at the speed of the device's own copy.

The mode says how the update is called: eagerly, in a function that the framework traces (graph) or compiles (xla, jit).
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from bench import children, limit, weights
from bench.measure import keep, kept, table
from bench.turns import Times, in_turns

BACKENDS = ("numpy", "tensorflow", "jax", "torch")
# Which numbers of averages are measured in which dtype: the tools have one.
COUNTS = {"float32": (1, 3, 8), "bfloat16": (1,)}
# More tensors take XLA minutes to compile.
MANY = 1000
LIMIT = "limit"


def main() -> None:
    """Measure, print one table for each dtype and number of averages, keep the figures."""
    asked = _arguments()
    if asked.child:
        children.answer(measured, asked.child)
        return
    if not asked.show:
        measure(asked)
    for text in tables(kept(asked.file), asked):
        print(text)


def measure(asked: argparse.Namespace) -> None:
    """Keep each backend and set as it comes, in the place of what was kept of it before."""
    for tool in children.missing():
        print(f"{tool}: not installed, so not measured (make bench installs it)")
    for name in asked.sets:
        for backend in asked.backends:
            one = {"backend": backend, "name": name, "dtypes": asked.dtypes, "quick": asked.quick, "turns": asked.turns}
            found = {f"{backend} {name}": children.measured("bench.update", one, backend)}
            path = keep(asked.file, kept(asked.file) | found)
            print(".", end="", flush=True, file=sys.stderr)
    print(f"kept in {path}", file=sys.stderr)


def measured(backend: str, name: str, dtypes: list[str], quick: bool, turns: int) -> Iterator[dict[str, Any]]:
    """In the child: by dtype, number of averages and manner, seconds and ratios."""
    shapes = weights.shapes(name, quick)
    numbers = sum(map(math.prod, shapes))
    for dtype in dtypes:
        followed = _followed(backend, shapes, dtype)
        for averages in COUNTS[dtype]:
            share = limit.update_share(averages, 4 if dtype == "float32" else 2)
            times = _timed(backend, followed, averages, numbers, turns)
            yield {f"{dtype} {averages}": dict(_figures(times, share, len(shapes)))}
            del times
            gc.collect()


def _timed(backend: str, followed: Any, averages: int, numbers: int, turns: int) -> Times:
    module = import_module(f"bench.manners_{backend}")
    few = len(followed if backend == "numpy" else followed.weights) > MANY
    made = {}
    for name, make in module.manners(followed, averages, few).items():
        try:
            made[name] = make()
        except ImportError:
            continue  # said by the parent
    return in_turns(made | {LIMIT: limit.of_backend(backend, numbers)}, turns)


def _figures(times: Times, share: float, tensors: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Seconds, also of the first call; times the limit, times polyak in this mode; a tensor's cost beyond the limit."""
    bound = share * times.median(LIMIT)
    yield LIMIT, {"seconds": bound}
    for name in (n for n in times.seconds if n != LIMIT):
        seconds, mine = times.median(name), f"polyak {name.partition(' ')[2]}"
        ratios = {"limit": times.ratio(name, LIMIT) / share}
        if mine in times.seconds:
            ratios["polyak"] = times.ratio(name, mine)
        yield name, {"seconds": seconds, **ratios, "first": times.first[name], "a tensor": (seconds - bound) / tensors}


def _followed(backend: str, shapes: list[weights.Shape], dtype: str) -> Any:
    if backend != "numpy":
        return weights.layer(shapes, dtype)
    from polyak.weights import numpy_dtype

    return [array.astype(numpy_dtype(dtype)) for array in weights.arrays(shapes)]


def tables(results: dict[str, Any], asked: argparse.Namespace) -> Iterator[str]:
    """A table for each dtype and number of averages. A cell says times the limit, and in brackets times polyak."""
    for dtype in asked.dtypes:
        for averages in map(str, COUNTS[dtype]):
            rows = list(_rows(results, dtype, averages, asked))
            plural = "average" if averages == "1" else "averages"
            yield f"\n{dtype}, {averages} {plural}: times the limit (times polyak in the same mode)"
            yield table(["backend, tool, mode", *asked.sets], rows)


def _rows(results: dict[str, Any], dtype: str, averages: str, asked: argparse.Namespace) -> Iterator[list[str]]:
    for backend in asked.backends:
        found = [results.get(f"{backend} {name}", "not measured") for name in asked.sets]
        sets = [{} if isinstance(one, str) else one.get(f"{dtype} {averages}", {}) for one in found]
        for name, one in zip(asked.sets, found, strict=True):
            why = one if isinstance(one, str) else one.get(children.ENDED, "")
            if why:
                yield [f"{backend}, {name}: {why}", *["-"] * len(sets)]
        for manner in dict.fromkeys(name for one in sets for name in one):
            yield [f"{backend}, {manner}", *(_cell(one.get(manner)) for one in sets)]


def _cell(one: dict[str, float] | None) -> str:
    if one is None:
        return "-"
    if "limit" not in one:
        return f"{1e3 * one['seconds']:.3g} ms"
    return f"{one['limit']:.2f}" + (f" ({one['polyak']:.2f})" if "polyak" in one else "")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=BACKENDS)
    parser.add_argument("--sets", nargs="+", default=list(weights.SETS), choices=list(weights.SETS))
    parser.add_argument("--dtypes", nargs="+", default=list(COUNTS), choices=list(COUNTS))
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="sets of a few megabytes: whether it runs, not how fast")
    parser.add_argument("--show", action="store_true", help="the tables of what is kept; nothing is measured")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.file = "update-quick" if asked.quick else "update"
    return asked


if __name__ == "__main__":
    main()
