"""The matrix of formats and dialects in docs/formats.md has a row for everything that the code knows, and no other."""

import re
from pathlib import Path

from polyak import dialects, files
from polyak.combine import convert

PAGE = Path(__file__).resolve().parents[2] / "docs" / "formats.md"


def table(heading):
    """The rows below a heading, as cells."""
    section = PAGE.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(len(row) == len(rows[0]) for row in rows)
    return rows[2:]


def names(rows, column):
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row[column])]


def test_each_reader_has_its_row():
    listed = names(table("Formats"), 1)
    assert len(listed) == len(set(listed))
    assert set(listed) == set(files._FORMATS)


def test_each_dialect_has_its_row():
    listed = names(table("Who wrote it"), 1)
    assert len(listed) == len(set(listed))
    assert set(listed) == set(dialects._DIALECTS)


def test_each_format_that_is_written_is_listed_by_the_end_of_its_names():
    listed = {name for name in names(table("Formats"), 2) if name.startswith(".")}
    assert listed == set(convert.FORMATS.values())


def test_no_cell_is_empty():
    assert all(cell for heading in ("Formats", "Who wrote it") for row in table(heading) for cell in row)
