"""Rules made of another rule: moving at every k-th update only, and starting late."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np

from polyak.averaging.base import Float64, Numbers, Ops, Origin, Rule, set_count
from polyak.errors import RuleError

_DEEPEST = 8


def _depth(rule: Rule) -> int:
    return 1 + _depth(rule.rule) if isinstance(rule, Every | Delayed) else 0


def _check_inner(outer: str, rule: object) -> None:
    # The limit keeps a hostile manifest from exhausting the stack wherever a rule is compared or printed.
    if not isinstance(rule, Rule):
        raise RuleError(f"rule '{outer}': expected a Rule inside, received {rule!r:.80}")
    if _depth(rule) >= _DEEPEST:
        raise RuleError(f"rule '{outer}': more than {_DEEPEST} wrappers of one rule")


@final
@dataclass(frozen=True, slots=True)
class Every(Rule):
    """Moves at every k-th update only, by all the weight that the k updates would have had: ``rule.merged(n, k)``.

    So the decay is corrected for the interval (an EMA keeps decay**k, a power average (1 - k/n)**(gamma + 1), and the
    equal mean becomes that of every k-th value), which most tools forget.

    Args:
        rule: how the average would move at each update.
        k: updates between two moves, at least 1.

    Example:
        >>> from polyak.averaging.rules import EMA
        >>> rule = Every(EMA(0.9, start="initial"), 2)
        >>> [round(float(rule.weight(n)), 12) for n in (1, 2, 3, 4)]
        [0.0, 0.19, 0.0, 0.19]
    """

    name: ClassVar[str] = "every"
    rule: Rule
    k: int

    def __post_init__(self) -> None:
        _check_inner(self.name, self.rule)
        set_count(self, "k", 1)

    @property
    def origin(self) -> Origin:
        return self.rule.origin

    @property
    def anchor(self) -> int:
        return -(-self.rule.anchor // self.k) * self.k

    def _at(self, n: Numbers, ops: Ops) -> Numbers:
        due = ops.maximum(ops.floor(n / self.k) * self.k, float(self.k))
        return ops.where(n == due, self.rule.merged(due, self.k, ops), 0.0)

    def span(self, first: int, last: int) -> Float64:
        low, high = -(-first // self.k), last // self.k
        moves = self.rule.span((low - 1) * self.k + 1, high * self.k).reshape(max(high - low + 1, 0), self.k)
        weights = np.zeros(max(last - first + 1, 0))
        weights[low * self.k - first :: self.k] = moves[:, 0] if self.k == 1 else 1.0 - np.prod(1.0 - moves, axis=1)
        return weights

    def kept(self, first: int, last: int) -> float:
        return self.rule.kept((-(-first // self.k) - 1) * self.k + 1, last // self.k * self.k)

    def to_json(self) -> dict[str, Any]:
        return {"rule": self.name, "of": self.rule.to_json(), "k": self.k}

    def __str__(self) -> str:
        return f"{self.rule},every={self.k}"


@final
@dataclass(frozen=True, slots=True)
class Delayed(Rule):
    """Copies the weights for the first ``after`` updates and starts to average then.

    Until the delay is over its immaturity is 1: the last copy counts as the value that the average starts from.

    Args:
        rule: how the average moves from update after + 1 on, its update 1.
        after: updates without averaging, at least 0.

    Example:
        >>> from polyak.averaging.rules import Mean
        >>> [round(float(Delayed(Mean(), 2).weight(n)), 6) for n in (1, 2, 3, 4, 5)]
        [1.0, 1.0, 1.0, 0.5, 0.333333]
    """

    name: ClassVar[str] = "after"
    rule: Rule
    after: int

    def __post_init__(self) -> None:
        _check_inner(self.name, self.rule)
        set_count(self, "after", 0)

    @property
    def origin(self) -> Origin:
        return self.rule.origin

    @property
    def anchor(self) -> int:
        return self.after + self.rule.anchor

    def _at(self, n: Numbers, ops: Ops) -> Numbers:
        late = ops.maximum(n - self.after, 1.0)
        return ops.where(n > self.after, self.rule.weight(late, ops), 1.0)

    def span(self, first: int, last: int) -> Float64:
        copies = np.ones(max(min(last, self.after) - first + 1, 0))
        return np.concatenate([copies, self.rule.span(max(first - self.after, 1), last - self.after)])

    def kept(self, first: int, last: int) -> float:
        if last < first:
            return 1.0
        return 0.0 if first <= self.after else self.rule.kept(first - self.after, last - self.after)

    def to_json(self) -> dict[str, Any]:
        return {"rule": self.name, "of": self.rule.to_json(), "after": self.after}

    def __str__(self) -> str:
        return f"{self.rule},after={self.after}"
