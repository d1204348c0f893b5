"""What is not finite: in weights, statistics, gradients and files; and numbers that are out of the range of a dtype."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

import polyak
from polyak.errors import DtypeMismatch, ImmatureWarning, NonFinite, NonFiniteWarning
from polyak.manifest import AVERAGE
from polyak.snapshot import Snapshot
from torture.trials.models import BACKEND, Array, drive, modes, vectors

BAD = (np.nan, np.inf, -np.inf)
RULE = "ema:0.9,start=initial"


def network() -> Any:
    """A model with statistics, and an optimizer that NaN gradients go through."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(3), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=BACKEND == "torch")
    return model


def places() -> dict[str, Callable[[Any, float], str]]:
    """Where something that is not finite comes from: a function that lets it in, and names the weight."""
    return {"weights": _weight, "statistics": _statistic, "gradients": _gradient}


def _weight(model: Any, bad: float) -> str:
    _spoil(model.layers[-1].kernel, bad)
    return "dense_1/kernel"


def _statistic(model: Any, bad: float) -> str:
    _spoil(model.layers[1].moving_variance, bad)
    return "batch_normalization/moving_variance"


def _spoil(variable: Any, bad: float) -> None:
    value = np.array(keras.ops.convert_to_numpy(variable.value))
    value.flat[-1] = bad
    variable.assign(value)


def _gradient(model: Any, bad: float) -> str:
    gradients = [keras.ops.zeros(v.shape) for v in model.trainable_variables]
    gradients[-1] = gradients[-1] + bad
    model.optimizer.apply(gradients, model.trainable_variables)
    return "dense_1/bias"


def guarded(streaks: Sequence[int]) -> tuple[int, list[str]]:
    """Every place, every bad number, for so many updates in a row: (trials, what broke)."""
    broken, trials = [], 0
    model = network()
    averages = polyak.track(model, RULE), polyak.track(model, RULE)
    for place, let_in in places().items():
        for bad in BAD:
            for streak in streaks:
                trials += 1
                broken += [f"{bad} in {place} for {streak}: {fault}" for fault in _guard(averages, let_in, bad, streak)]
    return trials, broken


def _guard(averages: tuple[Any, Any], let_in: Callable[[Any, float], str], bad: float, streak: int) -> list[str]:
    average, clean = averages
    model = average.followed()
    for each in averages:
        each.reset()
        each.update()
    finite = [np.array(keras.ops.convert_to_numpy(v.value)) + np.float32(0.25) for v in model.weights]
    before = _bits(average.values())
    name = let_in(model, bad)
    said = []
    for _ in range(streak):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            average.update()
        said += [str(w.message) for w in caught if w.category is NonFiniteWarning]
    faults = [] if _bits(average.values()) == before else ["a part of the average has moved"]
    faults += [] if (average.count, average.skipped) == (1, streak) else [f"{average.count}, {average.skipped} counted"]
    faults += [] if len(said) == streak and all(repr(name) in s for s in said) else [f"it said {said[:1]}"]
    model.set_weights(finite)
    for each in averages:
        each.update()
    return faults + ([] if _bits(average.values()) == _bits(clean.values()) else ["it does not go on as it was"])


def _bits(values: Mapping[str, Array]) -> list[bytes]:
    return [value.tobytes() for value in values.values()]


def compiled(steps: int) -> list[str]:
    """In compiled loops: the average beside one that never saw the bad rows, and its counts."""
    draw = np.random.default_rng(0)
    values = draw.standard_normal((steps, 16)).astype(np.float32)
    values[draw.uniform(size=steps) < 0.3, draw.integers(16)] = np.nan
    good = values[np.isfinite(values).all(1)]
    start = np.ones(16, np.float32)
    broken = []
    for mode in modes():
        found = []
        for rows in (values, good):
            model = vectors(start, "float32", "float32")
            average = polyak.track(model, RULE)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NonFiniteWarning)
                drive(model, [average], rows, mode)
            found.append((_bits(average.values()), average.count, average.skipped))
        if found[0] != (*found[1][:2], steps - len(good)):
            broken.append(
                f"{mode}: {found[0][1:]} counted, or other bits than without the {steps - len(good)} bad rows"
            )
    return broken


def patience() -> list[str]:
    """Whether an average raises at the skip after those that it bears, names the weight, and can go on."""
    model = vectors(np.ones(2, np.float32))
    average = polyak.track(model, RULE)
    broken = [] if average.patience == 1000 else [f"the default is {average.patience}"]
    average.patience = 3
    for good in (2, 1):
        for _ in range(good):
            average.update()
        model.variables[0].assign(np.float32([1, np.nan]))
        for skip in range(1, 6):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NonFiniteWarning)
                said = _refusal(average.update, NonFinite)
            if bool(said) != (skip > 3) or (said and not said.startswith("weight 'w0' is not finite")):
                broken.append(f"at skip {skip} in a row: {said or 'nothing was raised'}")
        model.variables[0].assign(np.float32([1, 2]))
    average.update()
    return broken + ([] if (average.count, average.skipped) == (4, 10) else [f"{average.count}, {average.skipped}"])


def _refusal(work: Callable[[], Any], error: type[Exception]) -> str:
    try:
        work()
    except error as refused:
        return str(refused)
    return ""


def refused_files() -> list[str]:
    """Ways by which NaN of a file came into a model or an average, or did not where it was allowed."""
    broken = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", ImmatureWarning)
        for bad in BAD:
            model = vectors(np.ones(3, np.float32))
            average = polyak.track(model, RULE)
            path = Path(folder) / "ill.safetensors"
            ill = {"w0": np.float32([1, bad, 2])}
            polyak.save(Snapshot.from_arrays(ill, AVERAGE, average.state), path)
            plan = Path(folder) / "plan.json"
            plan.write_text(polyak.plan(path, model).to_json())
            ways: dict[str, Callable[..., Any]] = {
                "transfer into a model": lambda **asked: polyak.transfer(path, model, **asked),  # noqa: B023
                "transfer into an average": lambda **asked: polyak.transfer(path, average, **asked),  # noqa: B023
                "plan and apply": lambda **asked: polyak.plan(polyak.open(path), model, **asked).apply(),  # noqa: B023
                "set_values": lambda **asked: average.set_values(ill, **asked),  # noqa: B023
            }
            before = _bits(polyak.snapshot(model)), _bits(average.values())
            stored = _refusal(lambda: polyak.transfer(path, model, plan=plan), NonFinite)  # noqa: B023
            said = {name: _refusal(way, NonFinite) for name, way in ways.items()} | {"a stored plan": stored}
            broken += [
                f"{name} took {bad}"
                for name, text in said.items()
                if not text.startswith("weight 'w0': expected finite")
            ]
            if (_bits(polyak.snapshot(model)), _bits(average.values())) != before:
                broken.append(f"a refused {bad} has changed something")
            for name, way in ways.items():
                way(nonfinite="allow")
                if ill["w0"].tobytes() not in (*_bits(polyak.snapshot(model)), *_bits(average.values())):
                    broken.append(f"{name} did not take {bad} though it was allowed")
    return broken


def overflowing(suffixes: Sequence[str]) -> tuple[int, list[str]]:
    """Exports to narrower dtypes of what is beyond their range: (trials, what broke)."""
    broken, trials = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for dtype, large in (("float16", 65520.0), ("bfloat16", 3.4e38 / 2.0001), ("bfloat16", 3.4e38)):
            for suffix in suffixes:
                if suffix == ".weights.h5" and dtype == "bfloat16":
                    continue  # HDF5 has no such numbers
                trials += 1
                path = Path(folder) / f"{dtype}{trials}{suffix}"
                broken += [f"{dtype} as {suffix}: {fault}" for fault in _overflow(dtype, large, path)]
    return trials, broken


def _overflow(dtype: str, large: float, path: Path) -> list[str]:
    fits = large < 3.39e38 and dtype == "bfloat16"
    values = {"a/kernel": np.float32([1, 2]), "b/kernel": np.float32([large, 1])}
    model = vectors(values["a/kernel"], "float32", "float32")
    average = polyak.track(model, RULE)
    if large < 1.7e38:
        average.set_values(dict(zip(average.values(), values.values(), strict=True)))
        source, name = average, "w1"
    else:
        source, name = Snapshot.from_arrays(values, AVERAGE, average.state), "b/kernel"
    before = _bits(average.values()), _bits(polyak.snapshot(model)), average.state
    said = _refusal(lambda: polyak.convert(source, path, cast=dtype), DtypeMismatch)
    faults = []
    if fits:
        return [] if not said else [f"refused what fits: {said}"]
    if name not in said:
        faults.append(f"it said {said!r}")
    if path.exists():
        faults.append("a file is there")
    if before != (_bits(average.values()), _bits(polyak.snapshot(model)), average.state):
        faults.append("the live state has changed")
    return faults


# --- what the frameworks offer ---------------------------------------------------------------------------------------


def peers() -> dict[str, str]:
    """What averages of this backend's own are after one step of NaN and ten finite ones."""
    from torture.trials.numbers import PEERS

    values = np.ones((12, 4), np.float32)
    values[2] = np.nan
    return {
        name: "NaN for ever" if np.isnan(found).all() else "finite"
        for name, found in PEERS[BACKEND](values, 0.9).items()
    }


def cast_peers() -> dict[str, str]:
    """What a cast of the framework's own makes of 65520 in float16."""
    value = float(
        keras.ops.convert_to_numpy(keras.ops.cast(keras.ops.convert_to_tensor(np.float32([65520])), "float16"))[0]
    )
    return {f"cast of {BACKEND}": "inf, silently" if np.isinf(value) else str(value)}
