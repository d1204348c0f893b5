"""Hostile files, in the short form of the campaign; and the watch over them."""

from __future__ import annotations

import pytest
from torture import hostile
from torture.campaign import Campaign
from torture.children import in_fresh_process


@pytest.mark.parametrize("campaign", hostile.CAMPAIGNS, ids=str)
def test_a_campaign_holds(campaign: Campaign) -> None:
    outcome = campaign.run(campaign.short)
    assert outcome.holds, outcome.broken


def test_the_watch_notices_what_no_file_may_cause() -> None:
    outcome = in_fresh_process("torture.hostile:noticed", 0)
    assert outcome.holds, outcome.broken
    assert outcome.trials == len(hostile.ACTIONS)
