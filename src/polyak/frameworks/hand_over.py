"""Handing weights over to a live model: the shared end of ``transfer`` and ``copy_to``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from polyak.averaging.parts import Parts, rule_from_json
from polyak.averaging.rules import Rule
from polyak.errors import ImmatureWarning, RuleError, notify
from polyak.frameworks import framework_of
from polyak.frameworks.aside import tell_aside
from polyak.manifest import AVERAGE, OF_MEMBER, State
from polyak.snapshot import Snapshot
from polyak.transfer.plan import Asked, Plan, make_plan
from polyak.transfer.target import Target

MATURE = 0.05
FAIR = 2.0
_BIASED = re.compile(r"without its correction for the start at zero(: divide by (?P<divisor>1 - decay\*\*\d+))?")


def plan_into_model(source: Snapshot, model: Any, asked: Asked, sample: Any = None) -> Plan:
    """A plan from a snapshot of one role into a model, which is built first if a sample is given."""
    warn_if_immature(source)
    return make_plan(source, model_target(model, sample), asked)


def model_target(model: Any, sample: Any = None) -> Target:
    """The weights of a live model; ``sample`` is an input shape or a sample input for a model not built yet."""
    framework = framework_of(model)
    if sample is not None:
        framework.build(model, sample)
    target = framework.target(model)
    tell_aside(framework, model)
    return target


def warn_if_immature(source: Snapshot) -> None:
    """Say so when an average still remembers its start: more than a twentieth of it, and more than twice a fair share.

    A first update that copies is a value like the others: in an equal mean of n values it has its fair share, 1/n.
    """
    state = source.state
    for rule in () if state is None else _rules(state):
        share = rule.immaturity(state.count) if state else 0.0
        anchor = rule.anchor_at(state.count) if state else 0
        if state and share > MATURE and (anchor == 0 or share > FAIR / max(state.count - anchor + 1, 1)):
            notify(
                ImmatureWarning(
                    f"{source.origin}: after {state.count:,} updates {share:.1%} of the average still is the value "
                    f"it started from (rule {rule}); average for longer, or use a rule that forgets its start"
                )
            )


def warn_if_biased(source: Snapshot) -> None:
    """Say so when there is an average that its writer keeps biased towards zero, and how to correct it."""
    known = source.manifest
    if known.confidence != "unknown" and not any(role.startswith(AVERAGE) for role in source.roles):
        return
    if told := _BIASED.search(known.note):
        notify(ImmatureWarning("; ".join((f"{source.origin}: {known.note}", *_corrected(known.note, told["divisor"])))))


def _corrected(note: str, divisor: str | None) -> Iterator[str]:
    """The expression that corrects a set, if there is one; a mean of members that differ in their bias has none."""
    if note.startswith(OF_MEMBER):
        yield "no division corrects their mean: correct the members first, and average those"
    elif divisor:
        yield (
            "corrected, where held is this set and decay that of its program: "
            f"polyak.Snapshot.from_arrays({{w.path: held[w.path] / ({divisor}) "
            'if w.kind == "trainable" else held[w.path] for w in held.weights}, "average")'
        )


def _rules(state: State) -> tuple[Rule, ...]:
    """The rules of an average; none where a file names one that is not known here."""
    try:
        rule = rule_from_json(state.rule)
    except RuleError:
        return ()
    return rule.rules if isinstance(rule, Parts) else (rule,)
