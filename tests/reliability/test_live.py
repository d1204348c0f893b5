"""The promises about live averages, each tried a few times; ``make torture`` tries them in full.

Each campaign runs in processes of its own, one for a backend. Runs that are killed are tried in
tests/keras/test_resume.py, replicas in tests/distribution, by the programs that the campaigns run.
"""

from __future__ import annotations

import re
from functools import cache

import pytest
from torture import guard, live, long_life, numbers, resume, transactions
from torture.campaign import Campaign, Outcome

KILLED = "17a"
LONG = {"16b", "16d", "30a"}
CAMPAIGNS = {
    campaign.row: campaign
    for module in (numbers, guard, live, transactions, long_life, resume)
    for campaign in module.CAMPAIGNS
    if campaign.row != KILLED
}


@cache
def outcome_of(row: str) -> Outcome:
    campaign = CAMPAIGNS[row]
    return campaign.run(campaign.short)


@pytest.mark.parametrize(
    "campaign", [pytest.param(c, marks=[pytest.mark.slow] * (c.row in LONG)) for c in CAMPAIGNS.values()], ids=str
)
def test_it_holds(campaign: Campaign) -> None:
    outcome = outcome_of(campaign.row)
    assert outcome.holds, "\n".join(outcome.broken) or "nothing was tried"


TORN = r"(?!0%)[\d.e-]+% torn"


@pytest.mark.parametrize(
    ("row", "peer", "loss"),
    [
        ("12", "torch avg_fn bfloat16", r"[0-4]\.\d+%"),
        ("13", "torch avg_fn", r"drifts .*"),
        ("14a", "tf.train.EMA", "NaN for ever"),
        ("14a", "optax.ema", "NaN for ever"),
        ("15", "cast of torch", "inf, silently"),
        ("16a", "get_weights on tensorflow", TORN),
        ("16a", "get_weights on jax", TORN),
        ("16a", "get_weights on torch", TORN),
        ("26b", "Keras on jax", "-2,147,483,648 after .*"),
        ("29a", "torch load_state_dict", "half written"),
    ],
)
def test_the_same_trial_on_others_finds_the_loss(row: str, peer: str, loss: str) -> None:
    assert re.fullmatch(loss, outcome_of(row).peers[peer])
