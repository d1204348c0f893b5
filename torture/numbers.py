"""Campaigns of the arithmetic: precision, stillness, equality of backends, large counts (rows 10 to 13, 19, 26)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import mpmath
import numpy as np

import polyak
from polyak.averaging.base import Rule
from torture.backends import BACKENDS, on, on_each
from torture.campaign import Campaign, Outcome

PLAIN, COMPENSATED = 4e-6, 1e-7
MOVED, NARROW = 0.9999, 2e-5
DECAYS = (0.0, 0.5, 0.9, 0.9999, 0.999999, 1 - 2.0**-53)
TURNS = (2**24, 2**31, 2**53, 2**62)
RULES = (
    "ema:0.999999,start=debiased",
    "ema:0.9999,start=warm",
    "ema:0.99,start=initial",
    "mean",
    "power:sigma_rel=0.1",
    "tf:0.9999",
    "diffusers:0.9999",
    "inverse-gamma:0.9999",
)


# --- rows 10 and 11 --------------------------------------------------------------------------------------------------


def plain(steps: int) -> Outcome:
    """Row 10."""
    return _precision(steps, 0.9999, False, PLAIN)


def compensated(steps: int) -> Outcome:
    """Row 10, with a residual."""
    return _precision(steps, 0.9999, True, COMPENSATED)


def long_compensated(steps: int) -> Outcome:
    """Row 11."""
    return _precision(steps, 0.999999, True, COMPENSATED)


def _precision(steps: int, decay: float, compensated: bool, most: float) -> Outcome:
    found = on_each("numbers.precision", steps, decay, compensated)
    ours = {f"{name} on {backend}": e for backend, all_ in found.items() for name, e in all_.items() if name in _OURS}
    peers = {name: f"{e:.2g}" for all_ in found.values() for name, e in all_.items() if name not in _OURS}
    broken = tuple(f"{name}: relative error {e:.2g} above {most:g}" for name, e in ours.items() if not e <= most)
    return Outcome(steps * len(ours), broken, f"{max(ours.values()):.2g}", peers)


_OURS = ("polyak", "NumPy kernel")


# --- row 12 ----------------------------------------------------------------------------------------------------------


def narrow(steps: int) -> Outcome:
    """Row 12."""
    broken, worst, least, peers = [], 0.0, 1.0, {}
    for dtype in ("bfloat16", "float16"):
        for backend, found in on_each("numbers.narrow", steps, dtype).items():
            share, error = found.pop("polyak")
            worst, least = max(worst, error), min(least, share)
            if share < MOVED or error > NARROW:
                broken.append(f"{dtype} on {backend}: {share:.4%} of the movement, relative error {error:.2g}")
            peers.update({f"{name} {dtype}": f"{moved:.2%}" for name, (moved, _) in found.items()})
        wide = on_each("numbers.narrow_average_dtype", dtype)
        broken += [f"{dtype} on {b}: an average in {held}" for b, held in wide.items() if held != "float32"]
    return Outcome(6 * steps, tuple(broken), f"{least:.3%} moved, error {worst:.2g}", peers)


# --- row 13 ----------------------------------------------------------------------------------------------------------


def still(steps: int) -> Outcome:
    """Row 13: a rule whose weight is another one at each step, for all steps; fixed decays for a tenth of them."""
    broken, trials = [], 0
    decays = [f"ema:{d!r},check=off,start=initial" for d in DECAYS]
    for backend, mode in (("tensorflow", "graph"), ("tensorflow", "xla"), ("jax", "pure"), ("torch", "eager")):
        for rules, length in ((["mean"], steps), (decays, max(steps // 50, 20))):
            moved = on(backend, "numbers.still", length, rules, mode)
            broken += [f"{what} on {backend}, {mode}" for what in moved]
            trials += length * len(rules)
    peers = {
        name: "bit-equal" if drift == 0 else f"drifts {drift:.2g}"
        for backend in BACKENDS
        for name, drift in on(backend, "numbers.drifting_peers", steps, 0.99999).items()
    }
    return Outcome(trials, tuple(broken), f"bit-equal after {steps:,} steps" if not broken else "moves", peers)


# --- row 19 ----------------------------------------------------------------------------------------------------------


def alike(steps: int) -> Outcome:
    """Row 19."""
    broken, worst, trials = [], 0, 0
    for rule in ("ema:0.999", "power:sigma_rel=0.1", "ema:0.99,start=debiased"):
        for backend, found in on_each("numbers.beside_numpy", steps, rule).items():
            for mode, distance in found.items():
                trials += steps
                worst = max(worst, distance)
                if distance > (0 if mode in ("eager", "graph") and backend == "tensorflow" else 1):
                    broken.append(f"{rule} on {backend}, {mode}: {distance} ulps from the NumPy kernel")
    return Outcome(trials, tuple(broken), f"{worst} ulps, every mode of every backend")


# --- row 26 ----------------------------------------------------------------------------------------------------------


def schedule(points: int) -> Outcome:
    """Row 26: the weight of every rule at large counts beside a computation with 60 digits."""
    broken, worst = [], 0.0
    at = sorted({n for n in _counts(points) if n <= 2**53})
    by_backend = {"NumPy": _weights(at), **on_each("counters.weights", RULES, at)}
    for where, found in by_backend.items():
        for rule, weights in found.items():
            for n, weight in zip(at, weights, strict=True):
                expected = exact(polyak.parse(rule), n)
                difference = float(abs(mpmath.mpf(weight) - expected) / expected)
                worst = max(worst, difference)
                if difference > 1e-12:
                    broken.append(f"{rule} on {where} at update {n:,}: {weight!r}, relative error {difference:.2g}")
    return Outcome(len(at) * len(RULES) * len(by_backend), tuple(broken), f"relative error {worst:.1g}")


def _counts(points: int) -> Iterable[int]:
    near = (turn + d for turn in TURNS for d in (-1, 0, 1))
    drawn = np.random.default_rng(0).uniform(0, 53, points)
    return [1, 2, 3, 10, 1000, *near, *(int(2**x) for x in drawn)]


def _weights(at: list[int]) -> Mapping[str, list[float]]:
    return {rule: [float(polyak.parse(rule).weight(n)) for n in at] for rule in RULES}


def exact(rule: Rule, n: int) -> mpmath.mpf:
    """The formulas of the rules in ``RULES``, as their docstrings give them, on numbers of 60 digits."""
    mpmath.mp.dps = 60
    m, settings = mpmath.mpf(n), {key: value for key, value in rule.to_json().items() if key != "rule"}
    d = mpmath.mpf(settings.get("decay", 0))
    match rule.name, settings.get("start"):
        case "ema", "debiased":
            return (1 - d) / (1 - d**n)
        case "ema", "initial":
            return 1 - d
        case "ema", "warm":
            return max(1 - d, 9 / (m + 8))
        case "mean", _:
            return 1 / m
        case "power", _:
            return 1 - (1 - 1 / m) ** (mpmath.mpf(settings["gamma"]) + 1)
        case "tf", _:
            return 1 - min(d, (1 + m) / (10 + m))
        case "diffusers", _:
            return 1 - min(d, m / (m + 9)) if n > 1 else mpmath.mpf(1)
        case "inverse-gamma", _:
            decay = 1 - (1 + (m - 1) / settings["inv_gamma"]) ** -mpmath.mpf(settings["power"])
            return 1 - min(d, max(decay, mpmath.mpf(settings["min_decay"]))) if n > 1 else mpmath.mpf(1)
    raise NotImplementedError(rule.name)


def counters(turns: int) -> Outcome:
    """Row 26: counts go on exactly across each turn, and raise at the last one; so do those in files."""
    broken = [fault for faults in on_each("counters.across", TURNS[:turns]).values() for fault in faults]
    peers = {name: found for each in on_each("counters.peers").values() for name, found in each.items()}
    return Outcome(2 * turns * len(BACKENDS), tuple(broken), "exact to 2^62; larger ones are refused", peers)


_NO_MEMORY = "float32 cannot hold an average nearer: a step below half a unit in the last place is lost"

CAMPAIGNS = (
    Campaign("10a", "A float32 average is as float64 has it, without memory of its own", plain, 1_000, 10_000),
    Campaign("10b", "A compensated float32 average is as float64 has it", compensated, 1_000, 10_000),
    Campaign(
        "11",
        "A compensated average of decay 0.999999 is, too",
        long_compensated,
        1_000,
        10_000,
        _NO_MEMORY,
    ),
    Campaign("12", "The average of a bfloat16 or float16 model moves as float64 has it", narrow, 1_000, 10_000),
    Campaign(
        "13",
        "The average of constant weights keeps every bit, whatever the rule, dtype and mode",
        still,
        100,
        100_000,
        "TensorFlow's own operations make zero of subnormal numbers, below 1.2e-38; they are not tried",
    ),
    Campaign("19", "All modes of all backends give one average", alike, 100, 10_000),
    Campaign("26a", "The weight of an update is exact at any count", schedule, 5, 200),
    Campaign(
        "26b",
        "Counts are exact at any length of a run, and none is taken over that could not be",
        counters,
        4,
        4,
        "a count beyond 2^62 is refused where it is taken over, so that no run comes to the end of 64 bits",
    ),
)
