"""A synthesized average, as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict

import msgspec

from polyak.combine.synthesis import Synthesis
from polyak.manifest import told_json
from polyak.report.tables import number, table
from polyak.transfer.receipt import Receipt


def synthesized(made: Synthesis, receipt: Receipt | None = None) -> str:
    """What it is made of, how near it comes, and the receipt of the file, if one was written."""
    rows = [[i.source, i.rule, f"{i.count:,}", f"{i.coefficient:+.6f}"] for i in made.ingredients]
    parts = table(["snapshot", "rule", "updates", "coefficient"], rows, left=2)
    figures = (
        f"{made.rule} after {made.state.count if made.state else 0:,} updates\n"
        f"relative profile error    {number(made.error)}\n"
        f"norm of the coefficients  {number(made.norm)}"
    )
    return "\n\n".join([parts, figures, *([] if receipt is None else [str(receipt)])])


def synthesized_json(made: Synthesis, receipt: Receipt | None = None) -> str:
    """The same as data; ``receipt`` is null where nothing was written."""
    body = {
        "rule": made.rule,
        "count": made.state.count if made.state else 0,
        "error": made.error,
        "norm": made.norm,
        "ingredients": [asdict(i) for i in made.ingredients],
        "receipt": None if receipt is None else msgspec.json.decode(receipt.to_json()),
    }
    return told_json(body)
