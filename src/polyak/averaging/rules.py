"""The rules by name, and back from their JSON form. A new rule gets one name here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from polyak.averaging.base import NUMPY, Ops, Rule, required
from polyak.averaging.emas import EMA, DiffusersEMA, InverseGamma, TensorFlowEMA, TFModels
from polyak.averaging.means import Copy, Mean, PolynomialDecay, PowerEMA
from polyak.averaging.ramps import CosineRamp, InversePower, LinearRamp
from polyak.averaging.splice import Splice
from polyak.averaging.wrappers import Delayed, Every, Scaled
from polyak.errors import RuleError

__all__ = [
    "EMA",
    "NUMPY",
    "RULES",
    "WRAPPERS",
    "Copy",
    "CosineRamp",
    "Delayed",
    "DiffusersEMA",
    "Every",
    "InverseGamma",
    "InversePower",
    "LinearRamp",
    "Mean",
    "Ops",
    "PolynomialDecay",
    "PowerEMA",
    "Rule",
    "Scaled",
    "Splice",
    "TFModels",
    "TensorFlowEMA",
    "build",
    "from_json",
]

_EMAS = (EMA, TensorFlowEMA, DiffusersEMA, InverseGamma, TFModels, CosineRamp, LinearRamp, InversePower)
_MEANS = (Mean, PowerEMA, PolynomialDecay, Copy)
RULES: Mapping[str, type[Rule]] = {rule.name: rule for rule in (*_EMAS, *_MEANS)}
WRAPPERS: Mapping[str, type[Rule]] = {rule.name: rule for rule in (Every, Delayed, Scaled)}

_DEEPEST = 8


def build(name: str, settings: Mapping[str, Any]) -> Rule:
    """The rule or wrapper called ``name`` with these fields.

    Raises:
        RuleError: a field is unknown, missing or out of range, or there is no such rule.

    Example:
        >>> build("ema", {"decay": 0.99})
        EMA(decay=0.99, start='warm')
    """
    cls = RULES.get(name) or WRAPPERS.get(name)
    if cls is None:
        raise RuleError(f"unknown rule {name!r}", hint=f"known rules: {', '.join(sorted({**RULES, **WRAPPERS}))}")
    known = [field.name for field in fields(cls)]
    for key in settings:
        if key not in known:
            hint = f"its settings: {', '.join(known) or 'none'}"
            raise RuleError(f"rule '{name}': unknown setting {key!r}", hint=hint)
    for key in required(cls):
        if key not in settings:
            raise RuleError(f"rule '{name}': missing setting {key!r}")
    return cls(**settings)


def from_json(data: Mapping[str, Any]) -> Rule:
    """The rule that ``rule.to_json()`` described.

    Raises:
        RuleError: the data describe no rule.

    Example:
        >>> rule = Every(EMA(0.999), 10)
        >>> rule.to_json()
        {'rule': 'every', 'of': {'rule': 'ema', 'decay': 0.999, 'start': 'warm'}, 'k': 10}
        >>> from_json(rule.to_json()) == rule
        True
    """
    return _from_json(data, 0)


def _from_json(data: Any, depth: int) -> Rule:
    layers: list[tuple[str, dict[str, Any]]] = []
    inner: Any = data
    while isinstance(inner, Mapping) and isinstance(inner.get("rule"), str):
        settings = {key: value for key, value in inner.items() if key not in ("rule", "of")}
        layers.append((inner["rule"], settings))
        inner = inner.get("of")
    if not layers or inner is not None:
        raise RuleError(f"expected a rule as JSON, like {{'rule': 'mean'}}; received {inner!r:.80}")
    name, settings = layers.pop()
    rule = _splice_from(settings, depth + 1) if name == Splice.name else build(name, settings)
    for name, settings in reversed(layers):
        rule = build(name, {"rule": rule, **settings})
    return rule


def _splice_from(settings: Mapping[str, Any], depth: int) -> Rule:
    pieces = settings.get("pieces")
    if not isinstance(pieces, list | tuple) or len(settings) > 1 or depth > _DEEPEST:
        raise RuleError("rule 'splice': expected pieces, like [[0, RULE], [1000, RULE]], at most eight deep")
    for piece in pieces:
        if not isinstance(piece, list | tuple) or len(piece) != 2:
            raise RuleError(f"rule 'splice': expected a piece like [1000, RULE], received {piece!r:.80}")
    return Splice(tuple((after, _from_json(rule, depth)) for after, rule in pieces))
