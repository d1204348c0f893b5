"""polyak.testing.check_rule accepts every rule of polyak, and names the law that a bad one breaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from tests.averaging.strategies import RULES, rules

from polyak.averaging.base import Ops, Rule
from polyak.averaging.rules import Every
from polyak.errors import RuleError
from polyak.testing import check_rule


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_each_rule_keeps_the_laws(rule: Rule) -> None:
    check_rule(rule)


@settings(max_examples=25)
@given(rules)
def test_any_rule_keeps_the_laws(rule: Rule) -> None:
    check_rule(rule, 24)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_two_updates_are_enough(rule: Rule) -> None:
    check_rule(rule, 2)


def test_a_text_is_held_against_them_too_and_what_is_no_rule_is_refused() -> None:
    check_rule("ema:0.9")
    with pytest.raises(RuleError, match=r"expected a rule or its text, like 'ema:0\.999'; received 0.9"):
        check_rule(0.9)  # type: ignore[arg-type]
    with pytest.raises(RuleError, match=r"check_rule: updates=1"):
        check_rule("mean", 1)


@dataclass(frozen=True)
class Own(Rule):
    name: ClassVar[str] = "own"
    lag: float = 2.0

    def _at(self, n: Any, ops: Ops) -> Any:
        return self.lag / (n + self.lag)


def test_a_rule_of_one_s_own_and_polyak_s_wrappers_around_it_keep_them() -> None:
    check_rule(Own())
    check_rule(Every(Own(), 3))


class TooHeavy(Own):
    def _at(self, n: Any, ops: Ops) -> Any:
        return 1.5 / n


class WrongKept(Own):
    def kept(self, first: int, last: int) -> float:
        return 0.5


class WrongSpan(Own):
    def span(self, first: int, last: int) -> Any:
        return np.zeros(max(last - first + 1, 0))


class WrongMerge(Own):
    def _merge(self, n: Any, k: int, ops: Ops) -> Any:
        return 0.0 * n


class WrongAnchor(Own):
    @property
    def anchor(self) -> int:
        return 1

    def kept(self, first: int, last: int) -> float:
        return Rule.kept(self, first, last)

    def immaturity(self, n: int) -> float:
        return self.kept(1, n)


class NumPyAlone(Own):
    def _at(self, n: Any, ops: Ops) -> Any:
        return 1.0 / n if isinstance(n, np.ndarray | np.floating) else 0.5 / n


class Narrow(Own):
    def _at(self, n: Any, ops: Ops) -> Any:
        return np.float32(1.0 / np.asarray(n))


class NoValue(Own):
    __eq__ = object.__eq__
    __hash__ = object.__hash__


@pytest.mark.parametrize(
    ("rule", "law"),
    [
        (TooHeavy(), r"weights lie in \[0, 1\]"),
        (WrongKept(), r"kept\("),
        (WrongSpan(), r"span\("),
        (WrongMerge(), r"merged\("),
        (WrongAnchor(), r"immaturity\(1\)"),
        (NumPyAlone(), "TensorFlow|JAX"),
        (Narrow(), "float64"),
        (NoValue(), "equal settings"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Rule) else "",
)
def test_a_broken_law_is_named(rule: Rule, law: str) -> None:
    with pytest.raises(AssertionError, match=law):
        check_rule(rule)
