"""Handing weights over to a live model: the shared end of ``transfer`` and ``copy_to``."""

from __future__ import annotations

import warnings
from typing import Any

from polyak.averaging.parts import rule_from_json
from polyak.errors import ImmatureWarning
from polyak.frameworks import framework_of
from polyak.snapshot import Snapshot
from polyak.transfer.plan import Asked, Plan, make_plan
from polyak.transfer.target import Target

MATURE = 0.05
FAIR = 2.0


def plan_into_model(source: Snapshot, model: Any, asked: Asked, sample: Any = None) -> Plan:
    """A plan from a snapshot of one role into a model, which is built first if a sample is given."""
    warn_if_immature(source)
    return make_plan(source, model_target(model, sample), asked)


def model_target(model: Any, sample: Any = None) -> Target:
    """The weights of a live model; ``sample`` is an input shape or a sample input for a model not built yet."""
    framework = framework_of(model)
    if sample is not None:
        framework.build(model, sample)
    return framework.target(model)


def warn_if_immature(source: Snapshot) -> None:
    """Say so when an average still remembers its start: more than a twentieth of it, and more than twice a fair share.

    In an equal mean of n values the first has a share of 1/n, which is no sign of immaturity.
    """
    state = source.state
    if state is None:
        return
    rule = rule_from_json(state.rule)
    share = rule.immaturity(state.count)
    if share > MATURE and (state.count == 0 or share * state.count > FAIR):
        warnings.warn(
            ImmatureWarning(
                f"{source.origin}: after {state.count:,} updates {share:.1%} of the average still is the value "
                f"it started from (rule {rule}); average for longer, or use a rule that forgets its start"
            ),
            stacklevel=4,
        )
