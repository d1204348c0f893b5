"""The page of all public names is made of their docstrings, and leaves none out."""

from __future__ import annotations

from pathlib import Path

from tests.docs.face import GROUPS, MODULES, page

import polyak

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"


def test_the_page_is_what_the_docstrings_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "make it anew: python -m tests.docs.face > docs/python.md"


def test_every_public_name_stands_on_it_once() -> None:
    named = [name for names in GROUPS.values() for name in names] + [name.removeprefix("polyak.") for name in MODULES]
    among_the_errors = {"PolyakError", "PolyakWarning"}
    assert sorted(named) == sorted({*polyak.__all__, "keras", "tensorflow"} - among_the_errors)


def test_every_line_says_something() -> None:
    lines = [line for line in page().splitlines() if line.lstrip().startswith("- `")]
    assert len(lines) > 150
    assert [line for line in lines if len(line.split("`: ", 1)[-1]) < 12] == []
