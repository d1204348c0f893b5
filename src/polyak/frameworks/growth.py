"""A model that changes in the middle of a run: layers added or taken away, adapters, quantisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyak.averaging.parts import Parts
from polyak.averaging.rules import Rule
from polyak.averaging.wrappers import Delayed
from polyak.errors import RuleError
from polyak.weights import Weight


@dataclass(frozen=True, slots=True)
class Growth:
    """What a model has now beside what was followed: paths that are new, and paths that are gone or replaced."""

    added: tuple[str, ...]
    gone: tuple[str, ...]

    @classmethod
    def between(cls, followed: Mapping[str, Any], now: Mapping[str, Any]) -> Growth:
        added = tuple(path for path, variable in now.items() if followed.get(path) is not variable)
        return cls(added, tuple(path for path, variable in followed.items() if now.get(path) is not variable))

    def __bool__(self) -> bool:
        return bool(self.added or self.gone)

    def describe(self, label: str, count: int) -> str:
        """One sentence."""
        said = []
        if self.added:
            said.append(f"{_listed(self.added)} new, averaged from update {count + 1:,} on as from a first update")
        if self.gone:
            said.append(f"{_listed(self.gone)} gone, with what was averaged of them")
        return f"{label} has changed: {'; '.join(said)}"


def followed_by(rule: Rule | Parts, weights: Sequence[Weight]) -> list[Weight]:
    """The weights that the rule does not leave out. Raises RuleError where these are none."""
    followed = [w for w in weights if not isinstance(rule, Parts) or rule.rule_of(w.path) is not None]
    if not followed:
        raise RuleError(
            f"rule {rule}: expected a rule for at least one weight, received one that leaves out all {len(weights)}",
            hint='name what is to be averaged, as in {"encoder/*": "ema:0.999", "*": None}',
        )
    return followed


def joined(rule: Rule | Parts, growth: Growth, count: int) -> Rule | Parts:
    """The rule for the changed model: what is new begins at the present update as if that were the first.

    Example:
        >>> from polyak.averaging.rules import Mean
        >>> print(joined(Mean(), Growth(("head/kernel",), ()), 10))
        {head/kernel: mean,after=10, *: mean}
        >>> print(joined(Mean(), Growth((), ("head/kernel",)), 10))
        mean
    """
    if count == 0:
        return rule
    entries = rule.entries if isinstance(rule, Parts) else (("*", rule),)
    kept = [(glob, own) for glob, own in entries if glob not in growth.gone]
    late = [(path, Delayed(own, count)) for path in growth.added if (own := _own(kept, path)) is not None]
    return Parts((*late, *kept)) if isinstance(rule, Parts) or late else rule


def _own(entries: Sequence[tuple[str, Rule | None]], path: str) -> Rule | None:
    try:
        return Parts(tuple(entries)).rule_of(path)
    except RuleError:
        return None


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]!r}{more}"
