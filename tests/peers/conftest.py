"""The figures of the comparison, printed as one table after the tests; workers send theirs with the reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

_KEY = "peer"


@pytest.fixture
def row(record_property: Callable[[str, Any], None]) -> Callable[..., None]:
    """Adds a line to the table: tool, setting, polyak's rule, figures, remark."""
    return lambda *cells: record_property(_KEY, [str(cell) for cell in cells])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = terminalreporter.stats.get("passed", [])
    rows = sorted(value for report in reports for key, value in report.user_properties if key == _KEY)
    if not rows:
        return
    rows = [["tool", "setting", "rule of polyak", "largest gap", "remark"], *rows]
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    terminalreporter.section("polyak beside the real tools: 500 steps, gap relative to the largest value")
    for line in rows:
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
