"""The tables of docs/rules.md: every rule has a row, every text is a rule, printed averages are what it gives."""

import re
from pathlib import Path

import numpy as np
import pytest

from polyak.averaging.kernel import lerp
from polyak.averaging.parse import parse
from polyak.averaging.rules import RULES, WRAPPERS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "rules.md").read_text()


def rows(heading):
    """The cells of the first table below a heading, without its head."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    table = re.search(r"^\|.*?\n\n", section, re.DOTALL | re.MULTILINE).group()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]


CONVENTIONS = [
    (re.match(r"`([^`]+)`", r[0]).group(1), [float(x) for x in r[3:]]) for r in rows("The same decay, many meanings")
]
MORE = [re.match(r"`([^`]+)`", r[0]).group(1) for r in rows("More rules of one weight")]


@pytest.mark.parametrize(("text", "printed"), CONVENTIONS, ids=[text for text, _ in CONVENTIONS])
def test_the_printed_averages_are_those_of_the_rule(text, printed):
    rule = parse(text)
    average = np.float64(1.0 if rule.origin == "weights" else 0.0)
    for n, value in enumerate((0.8, 0.6, 0.4, 0.2), 1):
        average = lerp(average, np.float64(value), float(rule.weight(n)))
        assert float(average) == pytest.approx(printed[n - 1], abs=6e-7)


def test_every_text_of_the_tables_is_a_rule_and_every_rule_has_a_row():
    named = {parse(text).to_json()["rule"] for text in [*MORE, *(text for text, _ in CONVENTIONS)]}
    assert named - set(WRAPPERS) == set(RULES) - {"copy"}
    assert "copy,every=1000" in MORE


def test_every_wrapper_is_on_the_page():
    assert all(f"`{name}=" in PAGE for name in WRAPPERS)
