"""docs/reliability.md: the text of ``reliability.md`` beside this module, with the table of what campaigns found."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from torture.campaign import Campaign, Outcome
from torture.rows import ROWS, Row

FIGURES = Path(__file__).with_name("figures.json")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
_TEXT = Path(__file__).with_name("reliability.md")
_HEAD = "| row | tried | promise or goal | polyak | others, in the same trials | others, measured before | last run |"


def figures() -> dict[str, Outcome]:
    """What the full campaigns found last, by row."""
    if not FIGURES.is_file():
        return {}
    held = json.loads(FIGURES.read_text())
    return {row: Outcome(**{**found, "broken": tuple(found["broken"])}) for row, found in held.items()}


def keep(found: Mapping[str, Outcome]) -> None:
    """Remember what campaigns found, beside what others did."""
    held = {row: asdict(outcome) for row, outcome in {**figures(), **found}.items()}
    FIGURES.write_text(json.dumps(dict(sorted(held.items(), key=lambda kv: order(kv[0]))), indent=1) + "\n")


def order(row: str) -> tuple[int, str]:
    """Rows by their numbers; those without one come last."""
    number = re.match(r"\d+", row)
    return (int(number[0]), row) if number else (len(ROWS) + 1, row)


def page(campaigns: Iterable[Campaign]) -> str:
    """The text with the table; a line for each campaign, and one for each row that has none."""
    held, listed = figures(), list(campaigns)
    lines = [_HEAD, re.sub(r"[^|]+", "---", _HEAD)]
    known = {row.number: row for row in ROWS}
    for number in sorted({*known, *(_number(c.row) for c in listed)}, key=order):
        row = known.get(number, Row(number, "", ""))
        tried = sorted((c for c in listed if _number(c.row) == number), key=lambda c: order(c.row))
        lines += [_line(row, c, held.get(c.row), first=not i) for i, c in enumerate(tried)]
        lines += [] if tried else [_joined(number, row.subject, row.goal, "no campaign", "", row.others, "")]
    return _TEXT.read_text().replace("{table}", "\n".join(lines))


def _number(row: str) -> str:
    return re.match(r"\d+|.*", row)[0]


def _line(row: Row, campaign: Campaign, found: Outcome | None, *, first: bool) -> str:
    peers = "; ".join(f"{peer}: {figure}" for peer, figure in (found.peers if found else {}).items())
    goal = f"{campaign.promise}. Goal: {row.goal}" if first and row.goal else campaign.promise
    run = f"{found.day}, {found.seconds:.0f} s" if found and found.day else ""
    subject, others = row.subject * first, row.others * first
    return _joined(campaign.row, subject, goal, _said(campaign, found), peers, others, run)


def _said(campaign: Campaign, found: Outcome | None) -> str:
    if found is None:
        return "not measured yet"
    told = f"{found.figure} in {found.trials:,} trials" if found.holds else f"BROKEN: {found.figure}"
    return f"{told}. Bound: {campaign.bound}" if campaign.bound else told


def _joined(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
