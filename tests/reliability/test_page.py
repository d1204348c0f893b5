"""docs/reliability.md has a line for each campaign and each row, with what was found last."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_has_a_line_for_each_campaign_and_each_row() -> None:
    script = "from torture.__main__ import campaigns; print(*(c.row for c in campaigns()))"
    rows = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    lines = re.findall(r"^\| (\w+) \|", (ROOT / "docs" / "reliability.md").read_text(), re.MULTILINE)
    assert set(rows.split()) <= set(lines)
    assert {str(n) for n in range(1, 29)} <= {re.match(r"\d+|\w+", row)[0] for row in lines}
    assert len(lines) == len(set(lines))
