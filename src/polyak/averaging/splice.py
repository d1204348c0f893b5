"""Rules one after another: what an average is when its rule was changed on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, final

import numpy as np

from polyak.averaging.base import Float64, Numbers, Ops, Origin, Rule, count
from polyak.averaging.wrappers import Delayed, Every, check_inner
from polyak.errors import RuleError

Piece: TypeAlias = tuple[int, Rule]
_MOST = 256


@final
@dataclass(frozen=True, slots=True)
class Splice(Rule):
    """One rule up to an update, then another that goes on with the same count.

    Shares and immaturity are those of what really happened. A rule that shall begin with a count of its own stands in
    ``Delayed``: ``Delayed(Mean(), 1000)`` after update 1000 is a new mean, and forgets what was before.

    Args:
        pieces: (after, rule) pairs: ``rule`` gives the weights of the updates above ``after``, up to the next pair's.
            The first one begins after 0.

    Raises:
        RuleError: there are fewer than two pieces or more than 256, or they do not follow each other.

    Example:
        >>> from polyak.averaging.rules import EMA, Delayed, Mean
        >>> rule = Splice(((0, EMA(0.9, "copy")), (1000, EMA(0.99, "copy"))))
        >>> print(rule)
        ema:0.9,start=copy until 1000 then ema:0.99,start=copy
        >>> round(rule.immaturity(1010), 6) == round(0.9 ** 999 * 0.99 ** 10, 6)
        True
    """

    name: ClassVar[str] = "splice"
    pieces: tuple[Piece, ...]

    def __post_init__(self) -> None:
        made = tuple((count("rule 'splice': until", after, 0), rule) for after, rule in self.pieces)
        for _, rule in made:
            check_inner(self.name, rule)
            if isinstance(rule, Splice):
                raise RuleError("rule 'splice': expected rules one after another, received one within another")
        ends = [after for after, _ in made]
        if not 2 <= len(made) <= _MOST:
            raise RuleError(
                f"rule 'splice': expected 2 to {_MOST} rules one after another, received {len(made)}",
                hint="a weight that changes often is a rule of its own: see polyak.testing.check_rule",
            )
        if ends[0] != 0 or ends != sorted(set(ends)):
            raise RuleError(f"rule 'splice': expected ascending updates that begin with 0, received {ends[:8]}")
        object.__setattr__(self, "pieces", made)

    @property
    def inner(self) -> tuple[Rule, ...]:
        return tuple(rule for _, rule in self.pieces)

    @property
    def origin(self) -> Origin:
        return self.pieces[0][1].origin

    @property
    def anchor(self) -> int:
        """The last copy that a piece begins with, at its end at the latest; where none does, the first piece's."""
        return self.anchor_at(self.pieces[-1][0] + 1)

    def anchor_at(self, n: int) -> int:
        begun = [piece for piece in self.pieces if piece[0] < max(n, 1)]
        ends = [*(after for after, _ in begun[1:]), None]
        last = [(after, rule.anchor_at(n), end) for (after, rule), end in zip(begun, ends, strict=True)]
        _, anchor, end = next((piece for piece in reversed(last) if piece[1] > piece[0]), last[0])
        return anchor if end is None else min(anchor, end)

    def _at(self, n: Numbers, ops: Ops) -> Numbers:
        weight = self.pieces[0][1].weight(n, ops)
        for after, rule in self.pieces[1:]:
            # Where it does not hold, a rule is asked for the update that it begins with: all numbers stay finite.
            weight = ops.where(n > after, rule.weight(ops.maximum(n, after + 1.0), ops), weight)
        return weight

    def span(self, first: int, last: int) -> Float64:
        parts = [rule.span(low, high) for rule, low, high in self._within(first, last)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def kept(self, first: int, last: int) -> float:
        share = 1.0
        for rule, low, high in self._within(first, last):
            share *= rule.kept(low, high)
        return share

    def _within(self, first: int, last: int) -> list[tuple[Rule, int, int]]:
        """The rules that hold in first ... last, and from where to where."""
        ends = [*(after for after, _ in self.pieces[1:]), last]
        cut = [
            (rule, max(first, after + 1), min(last, end)) for (after, rule), end in zip(self.pieces, ends, strict=True)
        ]
        return [(rule, low, high) for rule, low, high in cut if low <= high]

    def _scale(self, kappa: float) -> Rule:
        pieces = [(round(after / kappa), rule.scaled(kappa)) for after, rule in self.pieces]
        return joined(pieces)

    def to_json(self) -> dict[str, Any]:
        return {"rule": self.name, "pieces": [[after, rule.to_json()] for after, rule in self.pieces]}

    def __str__(self) -> str:
        text = str(self.pieces[0][1])
        for after, rule in self.pieces[1:]:
            text += f" until {after} then {rule}"
        return text


def spliced(rule: Rule, after: int, then: Rule) -> Rule:
    """The rule of an average that moved by ``rule`` for ``after`` updates and goes on with ``then``.

    Example:
        >>> from polyak.averaging.rules import EMA, Mean
        >>> print(spliced(spliced(Mean(), 10, EMA(0.9)), 20, EMA(0.99)))
        mean until 10 then ema:0.9 until 20 then ema:0.99
        >>> print(spliced(spliced(Mean(), 10, EMA(0.9)), 10, Mean()))
        mean
    """
    before = rule.pieces if isinstance(rule, Splice) else ((0, rule),)
    later = then.pieces if isinstance(then, Splice) else ((0, then),)
    kept = [piece for piece in before if piece[0] < after]
    return joined([*kept, *((max(begin, after), own) for begin, own in _from(later, after))])


def begun(rule: Rule, count: int) -> Rule:
    """The rule by which a weight begins that is new after so many updates.

    Rules one after another count all updates: of them it has what holds from there on, and its own count begins there.

    Example:
        >>> from polyak.averaging.rules import EMA, Delayed, Mean
        >>> rule = spliced(EMA(0.5), 10, Delayed(Mean(), 10))
        >>> print(begun(rule, 8), begun(rule, 12), begun(Delayed(Mean(), 10), 12), sep=" | ")
        ema:0.5 until 2 then mean,after=2 | mean | mean,after=10
    """
    if not isinstance(rule, Splice):
        return rule
    return joined([(max(after - count, 0), _counted_from(own, count)) for after, own in _from(rule.pieces, count)])


def _counted_from(rule: Rule, count: int) -> Rule:
    if isinstance(rule, Every):
        return Every(_counted_from(rule.rule, count), rule.k)
    if not isinstance(rule, Delayed):
        return rule
    return Delayed(rule.rule, rule.after - count) if rule.after > count else rule.rule


def _from(pieces: tuple[Piece, ...], after: int) -> list[Piece]:
    """The pieces that still hold above an update."""
    ends = [*(begin for begin, _ in pieces[1:]), None]
    return [piece for piece, end in zip(pieces, ends, strict=True) if end is None or end > after]


def joined(pieces: list[Piece]) -> Rule:
    """The pieces as one rule: of two that begin at the same update the later one holds, equal neighbours are one."""
    made: list[Piece] = []
    for after, rule in pieces:
        if made and made[-1][0] == after:
            made.pop()
        if not made or made[-1][1] != rule:
            made.append((after, rule))
    return made[0][1] if len(made) == 1 else Splice(tuple(made))
