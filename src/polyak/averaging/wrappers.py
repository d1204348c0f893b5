"""Rules made of another rule: moving at every k-th update only, starting late, at another batch size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np

from polyak.averaging.base import Float64, Numbers, Ops, Origin, Rule, last_multiple, plain, set_count, set_real
from polyak.errors import RuleError

_DEEPEST = 8


def depth(rule: Rule) -> int:
    """How many wrappers lie around the rule within.

    Example:
        >>> from polyak.averaging.rules import Mean
        >>> depth(Every(Delayed(Mean(), 3), 2))
        2
    """
    return 1 + max(map(depth, rule.inner)) if rule.inner else 0


def check_inner(outer: str, rule: object) -> None:
    """Raise RuleError for what is no rule, or is wrapped too often."""
    # The limit keeps a hostile manifest from exhausting the stack wherever a rule is compared or printed.
    if not isinstance(rule, Rule):
        raise RuleError(f"rule '{outer}': expected a Rule inside, received {rule!r:.80}")
    if depth(rule) >= _DEEPEST:
        raise RuleError(f"rule '{outer}': more than {_DEEPEST} wrappers of one rule")


class _Wrapper(Rule):
    """One rule around another, which it starts like."""

    rule: Rule

    @property
    def inner(self) -> tuple[Rule, ...]:
        return (self.rule,)

    @property
    def origin(self) -> Origin:
        return self.rule.origin


@final
@dataclass(frozen=True, slots=True)
class Every(_Wrapper):
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
        check_inner(self.name, self.rule)
        set_count(self, "k", 1)

    @property
    def rests(self) -> bool:
        return self.k > 1 or self.rule.rests

    @property
    def anchor(self) -> int:
        return -(-self.rule.anchor // self.k) * self.k

    def anchor_at(self, n: int) -> int:
        return -(-self.rule.anchor_at(n // self.k * self.k) // self.k) * self.k

    def _at(self, n: Numbers, ops: Ops) -> Numbers:
        due = ops.maximum(last_multiple(n, self.k, ops), float(self.k))
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

    def _scale(self, kappa: float) -> Rule:
        """The interval stays the nearest one, in updates; the shares do not depend on it."""
        return Every(self.rule.scaled(kappa), max(round(self.k / kappa), 1))

    def __str__(self) -> str:
        return f"{inside(self.rule)},every={self.k}"


@final
@dataclass(frozen=True, slots=True)
class Delayed(_Wrapper):
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
        check_inner(self.name, self.rule)
        set_count(self, "after", 0)

    @property
    def anchor(self) -> int:
        return self.after + self.rule.anchor

    def anchor_at(self, n: int) -> int:
        return self.after + self.rule.anchor_at(max(n - self.after, 0))

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

    def _scale(self, kappa: float) -> Rule:
        return Delayed(self.rule.scaled(kappa), round(self.after / kappa))

    def __str__(self) -> str:
        return f"{inside(self.rule)},after={self.after}"


# Where an update's end falls on that of another but for rounding, nothing of it is left over.
_SLACK = 1e-9


@final
@dataclass(frozen=True, slots=True)
class Scaled(_Wrapper):
    """Each update stands for ``kappa`` updates of another rule, as with a kappa times larger batch.

    Update m covers the other's updates (m - 1) kappa ... m kappa; of one that lies partly within, what it keeps is
    taken to the power of that part. ``rule.scaled(kappa)`` gives a rule of its own where there is one.

    Args:
        rule: the rule at the other batch size.
        kappa: this batch size / the other, in [1e-6, 1e6].

    Source: Busbridge et al., How to scale your EMA, arXiv 2307.13813, for weights that change.

    Example:
        >>> from polyak.averaging.rules import InverseGamma
        >>> rule = InverseGamma()
        >>> float(Scaled(rule, 4).weight(5)) == float(rule.merged(20, 4))
        True
        >>> print(Scaled(rule, 4))
        inverse-gamma,scaled=4
    """

    name: ClassVar[str] = "scaled"
    rule: Rule
    kappa: float

    def __post_init__(self) -> None:
        check_inner(self.name, self.rule)
        set_real(self, "kappa", "[1e-6, 1e6]", lambda k: 1e-6 <= k <= 1e6)

    @property
    def anchor(self) -> int:
        return math.ceil(self.rule.anchor / self.kappa - _SLACK)

    def anchor_at(self, n: int) -> int:
        return math.ceil(self.rule.anchor_at(math.ceil(n * self.kappa - _SLACK)) / self.kappa - _SLACK)

    def _at(self, n: Numbers, ops: Ops) -> Numbers:
        if self.kappa == int(self.kappa):
            return self.rule.merged(n * self.kappa, int(self.kappa), ops)
        begin = ((n - 1.0) * self.kappa)[..., None]
        end = (n * self.kappa)[..., None]
        steps = ops.floor(begin + _SLACK) + ops.arange(1, math.ceil(self.kappa) + 2)
        part = ops.minimum(steps, end) - ops.maximum(steps - 1.0, begin)
        part = ops.where(part > _SLACK, part, 0.0)
        return 1.0 - ops.prod(ops.power(1.0 - self.rule.weight(steps, ops), part))

    def kept(self, first: int, last: int) -> float:
        if last < first:
            return 1.0
        begin, end = (first - 1) * self.kappa, last * self.kappa
        low, high = math.ceil(begin - _SLACK), math.floor(end + _SLACK)
        if high < low:  # both ends lie within one update of the other rule
            return self._part(low, end - begin)
        return self._part(low, low - begin) * self.rule.kept(low + 1, high) * self._part(high + 1, end - high)

    def _part(self, step: int, part: float) -> float:
        return float((1.0 - self.rule.weight(step)) ** part) if part > _SLACK else 1.0

    def _scale(self, kappa: float) -> Rule:
        return self.rule.scaled(self.kappa * kappa)

    def to_json(self) -> dict[str, Any]:
        return {"rule": self.name, "of": self.rule.to_json(), "kappa": self.kappa}

    def __str__(self) -> str:
        return f"{inside(self.rule)},scaled={plain(self.kappa)}"


def inside(rule: Rule) -> str:
    """A rule's text as the beginning of a wrapper's.

    Example:
        >>> from polyak.averaging.rules import Mean
        >>> inside(Mean())
        'mean'
    """
    text = str(rule)
    return f"({text})" if " " in text else text
