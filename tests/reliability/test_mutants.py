"""The mutation test itself: what a mutant is, and the short form of the campaign."""

from __future__ import annotations

import ast

import pytest
from torture import mutants
from torture.campaign import Campaign


@pytest.mark.slow
@pytest.mark.parametrize("campaign", mutants.CAMPAIGNS, ids=str)
def test_a_campaign_holds(campaign: Campaign) -> None:
    outcome = campaign.run(campaign.short)
    assert outcome.holds, outcome.broken


def test_a_mutant_differs_from_its_module_in_one_place() -> None:
    source = (mutants.SOURCES / "files" / "zips.py").read_text()
    made = list(mutants.mutants("files/zips.py"))
    assert len(made) > 10
    for mutant in made:
        ast.parse(mutant.source)
        old, new = source.splitlines(), mutant.source.splitlines()
        changed = [line for line in new if line not in old]
        assert 1 <= len(changed) <= 2 or len(new) < len(old), mutant


def test_a_check_becomes_one_that_finds_nothing() -> None:
    made = {m.text: m.source for m in mutants.mutants("files/zips.py")}
    assert "    if (member.header_offset < least) and False:\n" in made["if member.header_offset < least:"]
