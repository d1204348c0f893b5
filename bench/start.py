"""How long polyak takes to start, beside a bare interpreter and beside the framework that one would need otherwise.

``python -m bench.start [--quick] [--turns N]``

CPU seconds of whole processes, which other work on the machine hardly changes, in turns. The limit is a Python that
does nothing. Beside ``polyak inspect`` of a file stands the import of the library that wrote it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench import files
from bench.measure import cost, cpu_of, keep, table

LIMIT = "python -c pass"
SIZE = 1 << 22
# What a user would import to look into a file of each format.
OWNERS = {
    "safetensors": "safetensors.torch",
    "sharded": "safetensors.torch",
    "npz": "numpy",
    "weights.h5": "keras",
    "keras archive": "keras",
    "torch zip": "torch",
    "torch legacy": "torch",
    "tensorflow v2": "tensorflow",
    "tensorflow v1": "tensorflow",
    "orbax": "orbax.checkpoint",
    "torch distributed": "torch.distributed.checkpoint",
    "flax msgpack": "flax.serialization",
}


def main() -> None:
    """Measure, print one table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one turn, two formats: whether it runs, not how fast")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = measured(commands(Path(place), asked.quick), 1 if asked.quick else asked.turns)
    print(table(["CPU time of", "s", "x bare Python", "the import instead", "x polyak"], list(rows(found))))
    print(f"kept in {keep('start' + '-quick' * asked.quick, found)}")


def commands(place: Path, quick: bool) -> dict[str, tuple[str, ...]]:
    """By name, the arguments of Python."""
    made: dict[str, tuple[str, ...]] = {
        LIMIT: ("-c", "pass"),
        "import polyak": ("-c", "import polyak"),
        "polyak --help": ("-m", "polyak", "--help"),
    }
    for form in files.FORMATS[: 2 if quick else None]:
        within = place / form.name.replace(" ", "-")
        within.mkdir()
        # In a process of its own: this one loads no framework.
        if cost(form.write, within / form.file, SIZE, repeats=0) is not None:
            made[f"polyak inspect ({form.name})"] = ("-m", "polyak", "inspect", str(within / form.file))
            owner = OWNERS[form.name]
            made[f"import {owner}"] = ("-c", f"import {owner}")
    return made


def measured(asked: dict[str, tuple[str, ...]], turns: int) -> dict[str, list[float]]:
    """CPU seconds by turn. What fails, fails in the first turn, which also compiles, and is left out."""
    kept = {name: arguments for name, arguments in asked.items() if cpu_of(sys.executable, *arguments) is not None}
    found: dict[str, list[float]] = {name: [] for name in kept}
    for _ in range(turns):
        for name, arguments in kept.items():
            found[name].append(cpu_of(sys.executable, *arguments) or float("nan"))
    return found


def rows(found: dict[str, list[float]]) -> Iterator[list[str]]:
    """A command beside a bare Python, and beside the import that it saves."""
    for name in found:
        if name.startswith("import ") and name != "import polyak":
            continue
        form = name.partition("(")[2].rstrip(")")
        owner = f"import {OWNERS[form]}" if form else "import tensorflow"
        instead = f"{_ratio(found[owner], found[name]):.1f}" if owner in found and name != LIMIT else "-"
        seconds = statistics.median(found[name])
        yield [name, f"{seconds:.2f}", f"{_ratio(found[name], found[LIMIT]):.1f}", owner, instead]


def _ratio(times: list[float], base: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(times, base, strict=True))


if __name__ == "__main__":
    main()
