"""What Keras' ``OrbaxCheckpoint`` writes: variables by their path, and the averages of ``use_ema`` by name.

The average of ``net/conv/kernel`` is ``optimizer_variables/adam/net_conv_kernel_average``. That name does not tell
``a_b/c`` from ``a/b_c``, so it is made again of the paths; where one average is not of exactly one variable, and the
other way round, none is taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from polyak.averaging.rules import EMA
from polyak.contents import Contents, Tensor, json_object
from polyak.dialects.plain import item
from polyak.dialects.torch_sets import OPTIMIZER, TRAINING
from polyak.errors import RuleError
from polyak.manifest import AVERAGE, RAW, Manifest, State
from polyak.snapshot import Item, Snapshot
from polyak.weights import Kind

_TRAINED, _OTHERS = "trainable_variables/", "non_trainable_variables/"
_OPTIMIZER, _METRICS = "optimizer_variables/", "metrics_variables/"
_PARTS = (_TRAINED, _OTHERS, _OPTIMIZER, _METRICS)
_END = "_average"
_CONFIG = "model_config/config"
_SEED = re.compile(r"(^|/)seed_generator(_\d+)?/seed_generator_state$")
_EITHER = (
    "trainable_variables: raw weights by their place; Keras writes the average over them at the end of fit with "
    "use_ema, and SwapEMAWeights exchanges the two: the file cannot tell"
)


@dataclass(frozen=True, slots=True)
class Averages:
    """The average's key for each variable's key, where every one is proved; and why, or why not."""

    keys: Mapping[str, str]
    why: str
    confidence: str = "inferred"
    state: State | None = None


def interpret(contents: Contents) -> Snapshot | None:
    """None unless every array lies where Keras puts it."""
    named = (_part(key) for key in contents.tensors)
    if contents.format != "orbax" or contents.manifest is not None or not all(named):
        return None
    if not any(key.startswith(_TRAINED) for key in contents.tensors):
        return None
    found = _averages(contents)
    paths = _paths([k for k in contents.tensors if k.startswith((_TRAINED, _OTHERS))])
    raw = {key: _raw(key, path, contents.tensors[key]) for key, path in paths.items()}
    items = list(raw.values())
    items += (_averaged(key, held, found, contents) for key, held in raw.items() if found.keys)
    averaged = set(found.keys.values())
    items += (
        item(OPTIMIZER if k.startswith(_OPTIMIZER) else TRAINING, k, t)
        for k, t in contents.tensors.items()
        if k not in raw and k not in averaged
    )
    written = Manifest(
        "Keras", {}, (), source=contents.origin, evidence=(found.why, _EITHER), confidence=found.confidence
    )
    states = {AVERAGE: found.state} if found.keys else {}
    return Snapshot(items, states, contents.origin, contents.integrity, written)


def _part(key: str) -> bool:
    return key.startswith(_PARTS)


def _paths(keys: list[str]) -> dict[str, str]:
    """Paths of the variables, without the name of the model where all of them begin with it."""
    plain = {key: key.partition("/")[2] for key in keys}
    first = {path.partition("/")[0] for path in plain.values() if not _SEED.search(path)}
    deep = all(path.count("/") > 1 for path in plain.values() if not _SEED.search(path))
    start = f"{first.pop()}/" if len(first) == 1 and deep else ""
    short = {key: path.removeprefix(start) for key, path in plain.items()}
    return short if len(set(short.values())) == len(short) else plain


def _raw(key: str, path: str, tensor: Tensor) -> Item:
    made = item(RAW, path, tensor)
    kind = made.weight.kind
    if _SEED.search(key):
        kind = Kind.SEED
    elif key.startswith(_OTHERS) and kind is Kind.TRAINABLE:
        kind = Kind.STATISTIC
    return replace(made, weight=replace(made.weight, kind=kind))


def _averaged(key: str, raw: Item, found: Averages, contents: Contents) -> Item:
    """The average of a weight; a weight without one belongs to both sets."""
    if key not in found.keys:
        return replace(raw, role=AVERAGE)
    tensor = contents.tensors[found.keys[key]]
    return Item(AVERAGE, replace(raw.weight, kind=Kind.TRAINABLE, dtype=tensor.dtype), tensor.read)


def _averages(contents: Contents) -> Averages:
    """The proved averages. Those of variables that were frozen later are among the variables that are not trained."""
    kept = [k for k in contents.tensors if k.startswith(_OPTIMIZER) and k.endswith(_END)]
    settings = _settings(contents)
    if settings is not None and not settings.get("use_ema"):
        sure = "unknown" if kept else "inferred"
        return Averages({}, "optimizer_variables: an optimizer without use_ema, by its configuration: stated", sure)
    if not kept:
        return Averages({}, "optimizer_variables: no averages by name")
    owners: dict[str, list[str]] = {}
    for key in contents.tensors:
        if key.startswith((_TRAINED, _OTHERS)):
            owners.setdefault(key.partition("/")[2].replace("/", "_") + _END, []).append(key)
    pairs = {k: owners.get(k.rpartition("/")[2], []) for k in kept}
    for average, fitting in pairs.items():
        alike = [k for k in fitting if contents.tensors[k].shape == contents.tensors[average].shape]
        if len(fitting) != 1 or len(alike) != 1:
            received = " or ".join(map(repr, fitting[:2])) or "no variable"
            return _unproved(f"{average!r} would be the average of {received}, not of one variable of its shape")
    keys = {fitting[0]: average for average, fitting in pairs.items()}
    missing = [k for k in contents.tensors if k.startswith(_TRAINED) and k not in keys]
    if missing or len(keys) < len(kept):
        return _unproved(f"{missing[0]!r} has none" if missing else "two are of one variable")
    why = f"optimizer_variables: {len(keys)} averages of use_ema, each by the name and shape of exactly one variable"
    return Averages(keys, why, state=_state(contents, settings))


def _unproved(why: str) -> Averages:
    return Averages({}, f"optimizer_variables: some are called averages, and none is taken: {why}", "unknown")


def _settings(contents: Contents) -> dict[str, Any] | None:
    """The configuration of the optimizer that updates the weights; None where there is none in the file."""
    text = contents.facts.get(_CONFIG)
    try:
        model = json_object(text) if isinstance(text, str) else {}
    except ValueError:
        return None
    entry = _mapping(_mapping(model.get("compile_config")).get("optimizer"))
    while entry.get("class_name") == "LossScaleOptimizer":
        entry = _mapping(_mapping(entry.get("config")).get("inner_optimizer"))
    return _mapping(entry.get("config")) or None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _state(contents: Contents, settings: dict[str, Any] | None) -> State | None:
    """Rule and count. With gradient accumulation Keras also moves the average between the steps that it counts."""
    counters = [k for k in contents.tensors if re.fullmatch(rf"{_OPTIMIZER}[^/]+/iterations?", k)]
    if settings is None or settings.get("gradient_accumulation_steps") or len(counters) != 1:
        return None
    try:
        rule = EMA(settings["ema_momentum"], "copy").to_json()
    except (KeyError, TypeError, RuleError):
        return None
    tensor = contents.tensors[counters[0]]
    whole = tensor.shape == () and tensor.dtype.startswith(("int", "uint"))
    return State(rule, max(int(tensor.read()), 0)) if whole else None
