"""How update, transfer, save and load grow with bytes, from 1 MB to 8 GB, and with tensors, from 1 to 100,000.

``python -m bench.growth [--quick] [--backend tensorflow] [--memory GIB]``

What costs the same for each byte, or for each tensor, is a straight line: a power of 1. The exponent is the slope of a
line through the logarithms of the larger half of the points; what a call costs whatever it does bends the smaller ones.
Each point has a process of its own and stands beside a plain copy of its bytes in the same turns. A job whose arrays
would not fit into the memory allowed is left out, and a process that takes too long is ended; both are said.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench import children, limit, weights
from bench.measure import keep, table
from bench.turns import Manner, in_turns

MEGA = 1_000_000
SIZES = (1, 4, 16, 64, 256, 1000, 2000, 4000, 8000)  # megabytes, in 16 tensors
COUNTS = (1, 10, 100, 1000, 10_000, 100_000)  # tensors of 16 megabytes together
TENSORS, SIZE = 16, 16
# How many times the weights' bytes a job has in memory: weights, shadows, and what it makes.
HELD = {"update": 3, "save": 4, "load": 4, "transfer": 5}
SECONDS = 240


def main() -> None:
    """Measure, print a table of each kind and the exponents, keep the figures."""
    asked = _arguments()
    if asked.child:
        children.answer(measured, asked.child)
        return
    sizes, counts = (SIZES[:3], COUNTS[:3]) if asked.quick else (SIZES, COUNTS)
    by_size, by_count = dict[str, Any](), dict[str, Any]()
    points = [(by_size, m, m, TENSORS) for m in sizes] + [(by_count, n, SIZE, n) for n in counts]
    for found, at, megabytes, tensors in points:
        found[str(at)] = _point(asked, megabytes, tensors)
        path = keep(f"growth-{asked.backend}" + "-quick" * asked.quick, {"sizes": by_size, "counts": by_count})
    print(file=sys.stderr)
    for head, found in (("MB", by_size), ("tensors", by_count)):
        print(f"\n{asked.backend}: ms (times a plain copy of the bytes)")
        print(table([head, *HELD], list(rows(found))))
    print(f"kept in {path}")


def _point(asked: argparse.Namespace, megabytes: int, tensors: int) -> dict[str, Any] | str:
    fitting = [job for job, times in HELD.items() if times * megabytes * MEGA <= asked.memory * 2**30]
    print(".", end="", flush=True, file=sys.stderr)
    if not fitting:
        return f"no job fits into {asked.memory} GiB"
    one = {"size": megabytes * MEGA, "tensors": tensors, "jobs": fitting, "turns": asked.turns}
    return children.measured("bench.growth", one, asked.backend, SECONDS)


def measured(size: int, tensors: int, jobs: list[str], turns: int) -> dict[str, Any]:
    """In the child: by job, seconds and times a plain copy of as many bytes."""
    from bench.manners import together

    shapes = weights.even(size, tensors)
    bytes_ = 4 * sum(map(math.prod, shapes))
    layer = weights.layer(shapes)
    average = together(layer, 1)
    with tempfile.TemporaryDirectory() as place:
        made = {job: MAKE[job](layer, average, Path(place) / "average.safetensors") for job in jobs}
        times = in_turns({"copy": limit.flat_copy(bytes_), **made}, turns)
    return {job: {"seconds": times.median(job), "copy": times.ratio(job, "copy")} for job in jobs}


def _update(layer: Any, average: Any, path: Path) -> Manner:
    return lambda: (average.update(), average.count)


def _save(layer: Any, average: Any, path: Path) -> Manner:
    import polyak

    return lambda: polyak.save(average, path)


def _load(layer: Any, average: Any, path: Path) -> Manner:
    import polyak

    polyak.save(average, path)
    return lambda: polyak.transfer(path, average)


def _transfer(layer: Any, average: Any, path: Path) -> Manner:
    import polyak

    other = weights.layer([tuple(v.shape) for v in layer.weights], seed=1)
    return lambda: polyak.transfer(average, other)


MAKE: dict[str, Callable[[Any, Any, Path], Manner]] = {
    "update": _update,
    "save": _save,
    "load": _load,
    "transfer": _transfer,
}


def exponent(points: dict[str, float]) -> float:
    """The slope of the logarithm of the time over that of the size, over the larger half of the points.

    Example:
        >>> round(exponent({"1": 5.0, "10": 10.0, "100": 100.0, "1000": 1000.0}), 3)
        1.0
    """
    larger = sorted((float(at), seconds) for at, seconds in points.items())[len(points) // 2 :]
    if len(larger) < 2:
        return float("nan")
    x, y = np.log([at for at, _ in larger]), np.log([seconds for _, seconds in larger])
    return float(np.polyfit(x, y, 1)[0])


def rows(found: dict[str, Any]) -> Iterator[list[str]]:
    """Each point, and the exponents below."""
    for at, one in found.items():
        if isinstance(one, str):
            yield [f"{at}: {one}", *["-"] * len(HELD)]
            continue
        yield [at, *(f"{1e3 * one[j]['seconds']:.3g} ({one[j]['copy']:.2f})" if j in one else "-" for j in HELD)]
    slopes = []
    for job in HELD:
        points = {at: one[job]["seconds"] for at, one in found.items() if not isinstance(one, str) and job in one}
        slopes.append(f"{exponent(points):.2f}")
    yield ["exponent", *slopes]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="tensorflow", choices=("tensorflow", "jax", "torch"))
    parser.add_argument("--memory", type=float, default=8.0, help="GiB that one process may hold")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the three least points: whether it runs, not how fast")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
