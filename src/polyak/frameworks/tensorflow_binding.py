"""Binding: each shadow beside the weight that it follows, made once, and what the rule does with each pair."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from polyak.averaging.parts import Parts
from polyak.averaging.rules import Rule
from polyak.errors import ModelError, NonFinite
from polyak.frameworks.base import Tracking
from polyak.frameworks.growth import followed_by
from polyak.frameworks.tensorflow_exchange import raw_value
from polyak.frameworks.tensorflow_placing import Place
from polyak.frameworks.tensorflow_target import Variables
from polyak.numbers import is_within
from polyak.weights import Kind, Weight

Pair = tuple[tf.Variable, tf.Variable]


@dataclass(frozen=True, slots=True)
class Bound:
    """The pairs of an average.

    Attributes:
        raw, shadows: both sides.
        moved: for each rule its (shadow, weight) pairs.
        copied: pairs whose shadow is a plain copy.
        guarded: weights that must be finite, with their paths.
        unfixed: pairs whose weight may take values of several shapes, with its path.
    """

    raw: Variables
    shadows: Variables
    moved: tuple[tuple[Rule, tuple[Pair, ...]], ...] = ()
    copied: tuple[Pair, ...] = ()
    guarded: tuple[tuple[str, tf.Variable], ...] = ()
    unfixed: tuple[tuple[str, Pair], ...] = ()

    @property
    def pairs(self) -> tuple[Pair, ...]:
        return tuple((shadow, self.raw.variables[path]) for path, shadow in self.shadows.variables.items())


def bind(
    raw: Variables,
    rule: Rule | Parts,
    tracking: Tracking,
    kept: Mapping[str, tf.Variable],
    guarded: Collection[str] = (),
) -> Bound:
    """Make a shadow for every weight that the rule does not leave out, but for those that are kept.

    Args:
        kept: shadows that are there already.
        guarded: paths of theirs that are guarded.

    Raises:
        RuleError: a weight has no rule, or all are left out.
        NonFinite: a weight is NaN or infinite.
    """
    followed = followed_by(rule, raw.weights)
    _refuse_nonfinite([w for w in followed if w.path not in kept], raw)
    weights = list(map(tracking.shadowed, followed))
    place = Place.asked(tracking, None, raw.variables.values())
    made = {w.path: _shadow(w, raw.variables[w.path], rule, place) for w in weights if w.path not in kept}
    known = {**made, **kept}
    shadows = {w.path: known[w.path] for w in weights}
    bound = Bound(raw, Variables(raw.label, shadows, weights), guarded=_guarded(raw, weights, kept, guarded))
    return group(bound, rule)


def group(bound: Bound, rule: Rule | Parts) -> Bound:
    """The pairs sorted by what the rule does with them."""
    moved: dict[Rule, list[Pair]] = {}
    copied = []
    for w in bound.shadows.weights:
        pair, own = (bound.shadows.variables[w.path], bound.raw.variables[w.path]), _rule_of(rule, w)
        if w.kind is Kind.TRAINABLE and own is not None:
            moved.setdefault(own, []).append(pair)
        else:
            copied.append(pair)
    groups = tuple((r, tuple(pairs)) for r, pairs in moved.items())
    known = zip(bound.shadows.variables, bound.pairs, strict=True)
    unfixed = tuple((path, pair) for path, pair in known if not pair[1].shape.is_fully_defined())
    return replace(bound, moved=groups, copied=tuple(copied), unfixed=unfixed)


def restart(bound: Bound, rule: Rule | Parts) -> None:
    """Give every shadow its first value again. Raises NonFinite."""
    _refuse_nonfinite(bound.shadows.weights, bound.raw)
    for w in bound.shadows.weights:
        bound.shadows.variables[w.path].assign(_first(w, bound.raw.variables[w.path], rule))


def is_fit(variable: tf.Variable | tf.Tensor) -> bool:
    """Whether every value may be averaged: finite, and at most half of the range of the dtype of its shadow."""
    return is_within(np.asarray(variable.numpy()))


def _guarded(
    raw: Variables, weights: Collection[Weight], kept: Collection[str], guarded: Collection[str]
) -> tuple[tuple[str, tf.Variable], ...]:
    """Floating-point weights that are averaged or begin fit for it; a mask of the lowest numbers is left alone.

    Those that are kept are not looked at again: one that has just become NaN would lose its guard for ever.
    """

    def begins_fit(variable: tf.Variable) -> bool:
        return not variable.is_initialized() or is_fit(raw_value(variable))

    pairs = [(w, raw.variables[w.path]) for w in weights if w.floating]
    return tuple(
        (w.path, v)
        for w, v in pairs
        if w.kind is Kind.TRAINABLE or (w.path in guarded if w.path in kept else begins_fit(v))
    )


def _rule_of(rule: Rule | Parts, weight: Weight) -> Rule | None:
    return rule.rule_of(weight.path) if isinstance(rule, Parts) else rule


def _shadow(weight: Weight, raw: tf.Variable, rule: Rule | Parts, place: Place) -> tf.Variable:
    return place.variable(_first(weight, raw, rule), _plain(f"{weight.path}_average"))


def _plain(name: str) -> str:
    """A name that TensorFlow also takes for an operation, as an export asks for."""
    return re.sub(r"[^A-Za-z0-9.]", "_", name).lstrip("_")


def _first(weight: Weight, raw: tf.Variable, rule: Rule | Parts) -> Any:
    """What a shadow holds before the first update: the raw value, or zeros where the rule says so."""
    if not raw.is_initialized():
        return tf.zeros(weight.shape, weight.dtype)  # a first trace makes variables before their values; update copies
    value = tf.cast(raw_value(raw), weight.dtype)
    own = _rule_of(rule, weight)
    zeros = own is not None and weight.kind is Kind.TRAINABLE and own.origin == "zeros"
    return tf.zeros_like(value) if zeros else tf.identity(value)


def refuse_resized(bound: Bound) -> None:
    """Raise ModelError if a weight that may take values of several shapes has another one than its shadow now."""
    for path, (shadow, weight) in bound.unfixed:
        if (now := raw_value(weight).shape) != shadow.shape:
            raise ModelError(
                f"weight {path!r}: expected the shape {tuple(shadow.shape)} of its average, received {tuple(now)}",
                hint=f'track the model again; to leave the weight out: track(model, {{"{path}": None, "*": rule}})',
            )


def equal_shapes(bound: Bound) -> list[tf.Tensor]:
    """What stands before all that a graph moves: it fails where ``refuse_resized`` raises, and names the weight."""
    return [
        tf.ensure_shape(weight.read_value(), shadow.shape, name=_plain(f"{path}_has_the_shape_of_its_average"))
        for path, (shadow, weight) in bound.unfixed
    ]


def _refuse_nonfinite(followed: tuple[Weight, ...] | list[Weight], raw: Variables) -> None:
    for w in followed:
        variable = raw.variables[w.path]
        if w.kind is Kind.TRAINABLE and variable.is_initialized() and not is_fit(raw_value(variable)):
            raise NonFinite(
                f"weight {w.path!r}: expected finite values to start an average from, received NaN, infinity "
                "or more than half of what its average can hold",
                hint="start the average before training diverges, or load finite weights",
            )
