"""Parts: different rules for different parts of a model, by glob."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from polyak.averaging.parse import parse
from polyak.averaging.rules import Rule, from_json
from polyak.averaging.splice import spliced
from polyak.errors import RuleError
from polyak.weights import glob_match, unmatched_globs


@dataclass(frozen=True, slots=True)
class Parts:
    """Rules by glob; the first glob that matches a path decides, None leaves the weight out.

    Example:
        >>> parts = Parts.of({"encoder/*": "ema:0.999", "head/*": None})
        >>> str(parts.rule_of("encoder/0/kernel")), parts.rule_of("head/bias")
        ('ema:0.999', None)
    """

    entries: tuple[tuple[str, Rule | None], ...]

    @classmethod
    def of(cls, rules: Mapping[str, Rule | str | None]) -> Parts:
        for glob in rules:
            if not isinstance(glob, str):
                raise RuleError(f"expected globs as the keys of rules by part, received {glob!r:.80}")
        return cls(tuple((glob, None if rule is None else parse(rule)) for glob, rule in rules.items()))

    def rule_of(self, path: str) -> Rule | None:
        """Raises RuleError if no glob matches."""
        for glob, rule in self.entries:
            if glob_match(path, glob):
                return rule
        raise RuleError(
            f"weight {path!r}: expected a rule, received none of {[g for g, _ in self.entries]}",
            hint='add "*": rule for all others, or "*": None to leave them out',
        )

    def leaves_out(self, path: str) -> bool:
        """Whether a glob matches, and that with None."""
        return next((rule is None for glob, rule in self.entries if glob_match(path, glob)), False)

    def check(self, paths: Iterable[str]) -> None:
        """Raise RuleError for a glob that matches none of the paths."""
        known = list(paths)
        for glob in unmatched_globs(known, [g for g, _ in self.entries]):
            raise RuleError(f"glob {glob!r} matches no weight", hint=f"the paths look like {known[0]!r}")

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The distinct rules."""
        return tuple(dict.fromkeys(rule for _, rule in self.entries if rule is not None))

    def immaturity(self, n: int) -> float:
        """The largest share of the start among the rules after ``n`` updates."""
        return max((rule.immaturity(n) for rule in self.rules), default=0.0)

    def to_json(self) -> dict[str, Any]:
        return {"parts": [[glob, None if rule is None else rule.to_json()] for glob, rule in self.entries]}

    def __str__(self) -> str:
        return "{" + ", ".join(f"{glob}: {rule or 'left out'}" for glob, rule in self.entries) + "}"


def continued(rule: Rule | Parts, count: int, then: Rule | Parts, paths: Iterable[str]) -> Rule | Parts:
    """The rule of an average that moved by ``rule`` for ``count`` updates and goes on with ``then``.

    Args:
        paths: the weights; asked for where the two name their parts by different globs.

    Example:
        >>> print(continued(parse("mean"), 10, Parts.of({"head/*": "copy", "*": "mean"}), ["a/kernel", "head/bias"]))
        {head/*: mean until 10 then copy, *: mean}
    """
    if count == 0:
        return then
    if isinstance(rule, Rule):
        return spliced(rule, count, then) if isinstance(then, Rule) else _each(then, lambda b: _after(rule, count, b))
    if isinstance(then, Rule):
        return _for_all(_each(rule, lambda a: _after(a, count, then)), then)
    if _globs(rule) == _globs(then):
        return Parts(tuple((g, _after(a, count, b)) for (g, a), (_, b) in zip(rule.entries, then.entries, strict=True)))
    return _by_path(rule, count, then, list(paths))


def _each(parts: Parts, change: Callable[[Rule | None], Rule | None]) -> Parts:
    return Parts(tuple((glob, change(rule)) for glob, rule in parts.entries))


def _for_all(parts: Parts, then: Rule) -> Parts:
    """Parts that also have a rule for what comes later, of whatever name: ``then``, after what moved the others.

    What was left out until now is nothing that is there: else the change to a rule for all would be refused.
    """
    entries = tuple((glob, rule) for glob, rule in parts.entries if rule is not None)
    if "*" in (glob for glob, _ in entries):
        return Parts(entries)
    return Parts((*entries, ("*", entries[-1][1] if entries else then)))


def _by_path(rule: Parts, count: int, then: Parts, paths: list[str]) -> Parts:
    """The rule of each weight that is there, before the entries of ``then`` for those that come later."""
    own = [(path, _after(rule.rule_of(path), count, then.rule_of(path))) for path in paths]
    past = [(path, before) for path in paths if (before := rule.rule_of(path)) is not None]
    # As the past of an entry for weights to come any will do that is real: with none the parts would count as immature.
    later = [(g, _after(next((a for p, a in past if glob_match(p, g)), b), count, b)) for g, b in then.entries]
    return Parts((*own, *later))


def _globs(parts: Parts) -> list[str]:
    return [glob for glob, _ in parts.entries]


def _after(rule: Rule | None, count: int, then: Rule | None) -> Rule | None:
    return None if rule is None or then is None else spliced(rule, count, then)


def rule_from_json(data: Any) -> Rule | Parts:
    """A rule, or rules by part, from the JSON form. Raises RuleError where the data describe none."""
    if not (isinstance(data, Mapping) and "parts" in data):
        return from_json(data)
    parts = data["parts"]
    if not isinstance(parts, list | tuple) or not all(map(_is_entry, parts)):
        raise RuleError(f"expected rules by part as JSON, like [['head/*', null], ['*', RULE]]; received {parts!r:.80}")
    return Parts(tuple((glob, None if rule is None else from_json(rule)) for glob, rule in parts))


def shown_rule(data: Any) -> str:
    """The text of a rule in its JSON form; of a rule that is not known here, such as a user's own, that form.

    Example:
        >>> shown_rule({"rule": "mean"}), shown_rule({"rule": "harmonic", "lag": 3.0})
        ('mean', '{"rule": "harmonic", "lag": 3.0}')
    """
    try:
        return str(rule_from_json(data))
    except RuleError:
        return json.dumps(data)


def _is_entry(entry: object) -> bool:
    return isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[0], str)


def as_rule(rule: Rule | str | Parts | Mapping[str, Rule | str | None]) -> Rule | Parts:
    """A rule from whatever a caller may give: a rule, its text, or a mapping of globs to those.

    Raises:
        RuleError: it is none of these, or not valid.
    """
    if isinstance(rule, Parts):
        return rule
    return Parts.of(rule) if isinstance(rule, Mapping) else parse(rule)
