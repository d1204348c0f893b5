"""What the look at all weights and a compensated average cost, beside a plain lerp that has neither, on TensorFlow.

``python -m bench.guarded [--quick] [--sets one resnet50] [--turns N]``

A plain lerp is ``shadow.assign_sub(w * (shadow - weight))`` for each weight, called in the same manner: eagerly, in a
graph, compiled by XLA. It moves 12 bytes a weight. The look at all weights before any shadow moves reads 4 more; a
compensated shadow has 8 bytes in the place of 4.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bench import children, weights
from bench.measure import keep, table
from bench.turns import Manner, in_turns

MODES = ("eager", "graph", "xla")
OURS = ("guard", "guard, compensated")


def main() -> None:
    """Measure, print one table, keep the figures."""
    asked = _arguments()
    if asked.child:
        children.answer(measured, asked.child)
        return
    found = {name: on_tensorflow(name, asked.turns, quick=asked.quick) for name in asked.sets}
    print(table(["set, mode", "plain ms", *(f"{one} x plain" for one in OURS)], list(_rows(found))))
    print(f"kept in {keep('guarded' + '-quick' * asked.quick, found)}")


def on_tensorflow(name: str, turns: int, quick: bool = False) -> dict[str, Any] | str:
    """In a process of its own, what ``measured`` answers; or in a few words why there is nothing."""
    found = children.measured("bench.guarded", {"name": name, "turns": turns, "quick": quick}, "tensorflow")
    return found if isinstance(found, str) else {mode: found[mode] for mode in MODES}


def measured(name: str, turns: int, quick: bool) -> dict[str, Any]:
    """In the child, by mode: seconds of a plain lerp, and polyak's updates as multiples of it in the same turns."""
    import tensorflow as tf

    ways: Mapping[str, Callable[[Manner], Manner]] = {
        "eager": lambda update: update,
        "graph": tf.function,
        "xla": lambda update: tf.function(update, jit_compile=True),
    }
    updates = _updates(weights.layer(weights.shapes(name, quick)))
    times = in_turns({f"{n} {mode}": ways[mode](make()) for mode in MODES for n, make in updates.items()}, turns)
    return {
        mode: {"plain": times.median(f"plain {mode}")}
        | {one: times.ratio(f"{one} {mode}", f"plain {mode}") for one in OURS}
        for mode in MODES
    }


def _updates(layer: Any) -> Mapping[str, Callable[[], Manner]]:
    import polyak
    from bench.manners import DECAY

    rule = f"ema:{DECAY},start=initial"
    return {
        "plain": lambda: _plain([v.value for v in layer.trainable_variables], 1 - DECAY),
        "guard": lambda: polyak.track(layer, rule).update,
        "guard, compensated": lambda: polyak.track(layer, rule, compensated=True).update,
    }


def _plain(variables: list[Any], w: float) -> Manner:
    import tensorflow as tf

    shadows = [tf.Variable(v) for v in variables]

    def update() -> None:
        for shadow, weight in zip(shadows, variables, strict=True):
            shadow.assign_sub(w * (shadow - weight))

    return update


def _rows(found: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, one in found.items():
        if isinstance(one, str):
            yield [f"{name}: {one}", *["-"] * (1 + len(OURS))]
            continue
        for mode, ratios in one.items():
            yield [f"{name}, {mode}", f"{1e3 * ratios['plain']:.3g}", *(f"{ratios[o]:.2f}" for o in OURS)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.guarded", description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=["one", "resnet50"], choices=list(weights.SETS))
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="sets of a few megabytes: whether it runs, not how fast")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
