"""A model that changes in the middle of a run: layers added or taken away, adapters, quantisation."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyak.averaging.parts import Parts
from polyak.averaging.rules import Rule
from polyak.averaging.splice import begun
from polyak.averaging.wrappers import Delayed
from polyak.errors import MissingWeight, ModelError, RuleError, WeightsChanged, listed, notify
from polyak.weights import Kind, Weight, glob_match

Entries = tuple[tuple[str, Rule | None], ...]


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

    def describe(self, label: str, count: int, rule: Rule | Parts) -> str:
        """One sentence about the model that the rule follows now."""
        said = []
        averaged = [path for path in self.added if not isinstance(rule, Parts) or rule.rule_of(path) is not None]
        left = [path for path in self.added if path not in averaged]
        if averaged:
            said.append(f"{_listed(averaged)} new, averaged from update {count + 1:,} on as from a first update")
        if left:
            said.append(f"{_listed(left)} new and left out by the rule")
        if self.gone:
            said.append(f"{_listed(self.gone)} gone, with what was averaged of them")
        return f"{label} has changed: {'; '.join(said)}"


def tell_left_out(followed: Iterable[Weight], now: Sequence[Weight], rule: Rule | Parts, label: str) -> None:
    """Warn of weights that an average would follow and does not know: they are not in what is saved of it."""
    known = {w.path for w in followed}
    if new := [w.path for w in now if w.path not in known and _is_followed(w, rule)]:
        notify(
            WeightsChanged(
                f"weight {_listed(new)}: new in the model, not followed by {label}; what is saved is without. Follow "
                "the model as it is now: ema.refresh()"
            )
        )


def refuse_grown(followed: Mapping[str, Any], now: Mapping[str, Any], label: str) -> None:
    """Raise ModelError where the model has weights now that are not those that are followed."""
    grown = [path for path, variable in now.items() if followed.get(path) is not variable]
    if grown:
        raise ModelError(
            f"weight {grown[0]!r} was created after the average of {label} ({len(grown)} in all)",
            hint="follow the model as it is now: ema.refresh(); what is new begins at the present update",
        )


def refuse_missing(followed: Iterable[Weight], stored: Collection[str], label: str) -> None:
    """Raise MissingWeight for a weight that is averaged here, and is not among those whose averages were stored."""
    missing = [w.path for w in followed if w.kind is Kind.TRAINABLE and w.path not in stored]
    if missing:
        raise MissingWeight(
            f"weight {_listed(missing)}: expected an average of it in the checkpoint, received those of {len(stored)} "
            f"other weights for {label}",
            hint="where the model has grown since: track and restore it as it was, let it grow, call ema.refresh(), "
            "and what is new begins late; or restore the model without its average, and begin that anew",
        )


def _is_followed(weight: Weight, rule: Rule | Parts) -> bool:
    return not isinstance(rule, Parts) or rule.rule_of(weight.path) is not None


def followed_by(rule: Rule | Parts, weights: Sequence[Weight]) -> list[Weight]:
    """The weights that the rule does not leave out. Raises RuleError where these are none."""
    followed = [w for w in weights if _is_followed(w, rule)]
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
    for path in growth.gone:
        entries = _without_late(entries, path, count)
    late = [(path, Delayed(own, count)) for path in growth.added if (own := _own(entries, path, count)) is not None]
    return Parts((*late, *entries)) if isinstance(rule, Parts) or late else rule


def kept_late(rule: Rule | Parts, stored: Rule | Parts, paths: Collection[str]) -> Rule | Parts:
    """The rule for values that were made by a stored one: the weights that began late by that one do so by this, too.

    Example:
        >>> from polyak.averaging.rules import EMA, Mean
        >>> stored = joined(Mean(), Growth(("head/kernel",), ()), 10)
        >>> print(kept_late(EMA(0.5), stored, ["body/kernel", "head/kernel"]))
        {head/kernel: ema:0.5,after=10, *: ema:0.5}
    """
    entries = stored.entries if isinstance(stored, Parts) else ()
    late = [(p, _since(p, own, entries[i + 1 :])) for i, (p, own) in enumerate(entries) if p in paths]
    for path, since in reversed(late):
        if since is not None:
            rule = joined(rule, Growth((path,), (path,)), since)
    return rule


def _without_late(entries: Entries, path: str, count: int) -> Entries:
    """Without the entry that says only that the weight began late; one of the user's own for this path stays."""
    at = next((i for i, (glob, _) in enumerate(entries) if glob == path), None)
    if at is None:
        return entries
    own, rest = entries[at][1], (*entries[:at], *entries[at + 1 :])
    if not _has_rule(rest, path):
        return entries
    since = _since(path, own, rest)
    is_late = since is not None and since <= count
    return rest if is_late or _own(entries, path, count) == _own(rest, path, count) else entries


def _since(path: str, own: Rule | None, rest: Entries) -> int | None:
    """After how many updates a weight began, where its entry differs from the rest in that alone."""
    if not isinstance(own, Delayed) or not _has_rule(rest, path):
        return None
    return own.after if own == _delayed(_own(rest, path, own.after), own.after) else None


def _delayed(rule: Rule | None, after: int) -> Rule | None:
    return None if rule is None else Delayed(rule, after)


def _has_rule(entries: Entries, path: str) -> bool:
    return any(glob_match(path, glob) for glob, _ in entries)


def _own(entries: Entries, path: str, count: int) -> Rule | None:
    """The rule that the entries have for a weight that is new after so many updates."""
    own = Parts(entries).rule_of(path) if _has_rule(entries, path) else None
    return None if own is None else begun(own, count)


def _listed(paths: Sequence[str]) -> str:
    return listed([repr(path) for path in paths])
