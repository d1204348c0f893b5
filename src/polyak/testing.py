"""The laws of rules, for rules of your own: what ``check_rule`` accepts moves an average as polyak's own do."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from polyak.averaging.base import Float64, Rule, count
from polyak.averaging.kernel import lerp
from polyak.averaging.parse import parse
from polyak.averaging.rules import RULES, WRAPPERS, from_json
from polyak.averaging.splice import Splice

_UPDATES = 64
_LATE = (10**4, 10**6, 2**31)
_FOLLOWED = 10**6
# A weight of 1 - 1e-17 rounds to 1: a product may lose what a closed form still sees.
_LOST = 1e-14


def check_rule(rule: Rule | str, updates: int = _UPDATES) -> None:
    """Hold a rule against the laws that every rule of polyak keeps.

    Its weights are float64 numbers in [0, 1], for one update as for many; ``span``, ``merged``, ``kept`` and
    ``immaturity`` agree with what an average really does when it is moved update by update; TensorFlow and JAX, where
    they are installed, compute the same weights as NumPy; equal settings make equal rules with equal hashes; and a rule
    that polyak knows by name comes back from its JSON form and its text.

    Args:
        rule: the rule, an instance of a frozen dataclass that extends ``polyak.rules.Rule``, or the text of one.
        updates: how many updates are followed one by one, at least 2.

    Raises:
        AssertionError: a law does not hold; the text names the law, the rule, the update, and both values.
        RuleError: it is no rule, or there are too few updates to follow.

    Example:
        >>> from dataclasses import dataclass
        >>> from polyak.averaging.rules import Rule
        >>> @dataclass(frozen=True, slots=True)
        ... class Harmonic(Rule):
        ...     name = "harmonic"
        ...     lag: float = 2.0
        ...     def _at(self, n, ops):
        ...         return self.lag / (n + self.lag)
        >>> check_rule(Harmonic())
    """
    rule, updates = parse(rule), count("check_rule: updates", updates, 2)
    for law in (_weights, _spans, _merges, _keeps, _follows, _is_a_value, _comes_back, _late):
        law(rule, updates)
    for name, ops, within in _frameworks():
        with within():
            _agrees(rule, updates, name, ops)


def _claim(holds: bool, law: str, rule: Rule, found: object, expected: object) -> None:
    if not holds:
        raise AssertionError(f"rule {rule}: {law}: expected {expected!s:.200}, received {found!s:.200}")


def _close(a: float, b: float, rel: float = 1e-9, abs_: float = _LOST) -> bool:
    return math.isclose(a, b, rel_tol=rel, abs_tol=abs_)


def _weights(rule: Rule, updates: int) -> None:
    many = np.asarray(rule.weight(np.arange(1, updates + 1)))
    _claim(many.dtype == np.float64, "weights are float64", rule, many.dtype, "float64")
    _claim(many.shape == (updates,), "an array of updates gives as many weights", rule, many.shape, (updates,))
    bad = many[~((many >= 0) & (many <= 1))]
    _claim(bad.size == 0, "weights lie in [0, 1]", rule, bad, "none outside")
    for n in range(1, updates + 1):
        one = rule.weight(n)
        _claim(np.ndim(one) == 0, f"update {n} alone gives a number", rule, np.shape(one), ())
        _claim(_close(one, many[n - 1], 1e-13), f"update {n} alone and among others", rule, one, many[n - 1])


def _late(rule: Rule, updates: int) -> None:
    for n in _LATE:
        found = float(rule.weight(n))
        _claim(0 <= found <= 1, f"weights lie in [0, 1] at update {n}", rule, found, "a number there")
        share = rule.immaturity(min(n, _FOLLOWED))
        _claim(0 <= share <= 1 + 1e-9, f"immaturity lies in [0, 1] at update {n}", rule, share, "a number there")


def _spans(rule: Rule, updates: int) -> None:
    expected = rule.weight(np.arange(1.0, updates + 1.0))
    for first, last in ((1, updates), (2, updates // 2), (updates // 2, updates), (3, 2)):
        found = rule.span(first, last)
        wanted = expected[first - 1 : last] if last >= first else expected[:0]
        good = found.shape == wanted.shape and np.allclose(found, wanted, rtol=1e-9, atol=_LOST)
        _claim(good, f"span({first}, {last}) are the weights", rule, found, wanted)


def _merges(rule: Rule, updates: int) -> None:
    left = 1.0 - rule.weight(np.arange(1.0, updates + 1.0))
    for n, k in ((1, 1), (2, 2), (updates, 3), (updates // 2, 7), (updates, updates)):
        if k <= n:
            found, expected = float(rule.merged(n, k)), 1.0 - float(np.prod(left[n - k : n]))
            _claim(_close(found, expected), f"merged({n}, {k}) is 1 - prod(1 - w)", rule, found, expected)
    _claim(rule.merged(2, 1) == rule.weight(2), "merged(2, 1) has the bits of weight(2)", rule, *_two(rule))


def _two(rule: Rule) -> tuple[float, float]:
    return float(rule.merged(2, 1)), float(rule.weight(2))


def _keeps(rule: Rule, updates: int) -> None:
    left = 1.0 - rule.weight(np.arange(1.0, updates + 1.0))
    for first in {1, 2, 3, updates // 2, updates}:
        for last in {first - 1, first, first + 5, updates}:
            found, expected = rule.kept(first, min(last, updates)), float(np.prod(left[first - 1 : last]))
            _claim(_close(found, expected), f"kept({first}, {last}) is prod(1 - w)", rule, found, expected)


def _follows(rule: Rule, updates: int) -> None:
    """The share of the start, measured: an average that is 1 at the anchor, of values that are 0 after it."""
    _claim(rule.immaturity(0) == 1.0, "immaturity before the first update", rule, rule.immaturity(0), 1.0)
    for n in range(1, updates + 1):
        found, expected = rule.immaturity(n), _left(rule, rule.anchor_at(n), n)
        _claim(_close(found, expected), f"immaturity({n}) is the share of the start", rule, found, expected)


def _left(rule: Rule, anchor: int, n: int) -> float:
    average: Any = np.float64(1.0)
    for later in range(anchor + 1, n + 1):
        average = lerp(average, np.float64(0.0), float(rule.weight(later)))
    return float(average)


def _is_a_value(rule: Rule, updates: int) -> None:
    twin = replace(rule)  # a new one of the same settings
    _claim(twin == rule and hash(twin) == hash(rule), "equal settings make equal rules", rule, twin, rule)


def _comes_back(rule: Rule, updates: int) -> None:
    text = json.dumps(rule.to_json())
    if not _is_known(rule):
        return
    read = from_json(json.loads(text))
    _claim(read == rule, "the rule comes back from JSON", rule, read, rule)
    _claim(parse(str(rule)) == rule, "the rule comes back from its text", rule, parse(str(rule)), rule)


def _is_known(rule: Rule) -> bool:
    known = type(rule) in (*RULES.values(), *WRAPPERS.values(), Splice)
    return known and all(map(_is_known, rule.inner))


Within = Callable[[], Any]


def _frameworks() -> Iterator[tuple[str, Any, Within]]:
    """The operations of each installed framework, and the context in which it computes in float64."""
    if find_spec("tensorflow"):
        yield "TensorFlow", import_module("polyak.frameworks.tensorflow_kernel").OPS, nullcontext
    if find_spec("jax"):
        kernel = import_module("polyak.frameworks.jax_kernel")
        yield "JAX", kernel.OPS, kernel.in_float64


def _agrees(rule: Rule, updates: int, name: str, ops: Any) -> None:
    numbers = np.arange(1.0, updates + 1.0)
    expected: Float64 = rule.weight(numbers)
    found = np.asarray(rule.weight(ops.asarray(numbers), ops))
    _claim(found.dtype == np.float64, f"weights are float64 in {name}", rule, found.dtype, "float64")
    good = np.allclose(found, expected, rtol=1e-12, atol=_LOST)
    _claim(good, f"{name} computes the weights of NumPy", rule, found, expected)
    same = np.array_equal(found == 1.0, expected == 1.0)
    _claim(
        same, f"the updates that copy in {name}", rule, np.flatnonzero(found == 1.0), np.flatnonzero(expected == 1.0)
    )
    one = float(rule.weight(ops.asarray(2.0), ops))
    _claim(_close(one, expected[1], 1e-12), f"update 2 alone in {name}", rule, one, expected[1])
