"""Differences, averages of many, conversions and findings, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import msgspec

from polyak.averaging.parts import shown_rule
from polyak.combine.average import Member
from polyak.combine.convert import Converted
from polyak.combine.difference import Change, Difference
from polyak.combine.finding import Finding
from polyak.manifest import State, told_json
from polyak.report.tables import ABSENT, number, shape, table
from polyak.transfer.receipt import Receipt, counted


def difference(found: Difference) -> str:
    """Which two, a table of the leaves that differ, and a count."""
    roles = [", ".join(r) or "nothing" for r in found.roles]
    head = f"A: {found.a} ({roles[0]})\nB: {found.b} ({roles[1]})"
    states = "\n".join(f"{s.role}: {_state(s.states[0])} in A, {_state(s.states[1])} in B" for s in found.states)
    return "\n\n".join(filter(None, [head, _leaves(found), states, _count(found)]))


def _leaves(found: Difference) -> str:
    rows = [
        *map(_change, found.changed),
        *([name, "only in A", *[ABSENT] * 6] for name in found.only_in_a),
        *([name, "only in B", *[ABSENT] * 6] for name in found.only_in_b),
    ]
    head = ["leaf", "differs in", "shape", "dtype", "elements", "max abs", "max rel", "max ulp"]
    return table(head, rows, left=4) if rows else ""


def _change(c: Change) -> list[str]:
    where = "shape" if c.gap is None else "values" if c.dtypes[0] == c.dtypes[1] else "dtype"
    described = [_both(*map(shape, c.shapes)), _both(*c.dtypes)]
    if c.gap is None:
        return [c.name, where, *described, *[ABSENT] * 4]
    figures = [_figure(c.gap.max_abs), _figure(c.gap.max_rel)]
    return [c.name, where, *described, f"{c.gap.differing:,}", *figures, _ulp(c.gap.max_ulp)]


def _both(a: str, b: str) -> str:
    return a if a == b else f"{a} | {b}"


def _figure(value: float | None) -> str:
    return "not finite" if value is None else number(value)


def _ulp(value: int | None) -> str:
    return ABSENT if value is None else f"{value:,}"


def _state(state: State) -> str:
    return f"{shown_rule(state.rule)} after {counted(state.count, 'update')}"


def _count(found: Difference) -> str:
    if found.equal:
        return f"same: {_leaves_counted(found.same)}"
    return (
        f"different: {_leaves_counted(len(found.changed))}, {len(found.only_in_a):,} only in A, "
        f"{len(found.only_in_b):,} only in B; {found.same:,} the same"
    )


def _leaves_counted(n: int) -> str:
    return "1 leaf" if n == 1 else f"{n:,} leaves"


def averaged(receipt: Receipt, members: tuple[Member, ...]) -> str:
    """The receipt and a table of the members."""
    rows = [[m.source, f"{m.share:.4g}", number(m.distance)] for m in members]
    return f"{receipt}\n\n{table(['member', 'share', 'distance'], rows)}"


def averaged_json(receipt: Receipt, members: tuple[Member, ...]) -> str:
    """The receipt, with the members."""
    return told_json(msgspec.json.decode(receipt.to_json()) | {"members": [asdict(m) for m in members]})


def dry_run(view: Converted, target: str, format: str) -> str:
    """What would be written."""
    rows = [[m["source"], m["target"], _both(m["source_dtype"], m["dtype"]), f"{m['nbytes']:,}"] for m in _moves(view)]
    head = f"{view.snapshot.origin} -> file {target!r} ({format}); nothing is written"
    skipped = "\n".join(f"skipped as asked: {name}" for name in view.skipped)
    return "\n\n".join(filter(None, [head, table(["weight", "becomes", "dtype", "bytes"], rows, left=3), skipped]))


def dry_run_json(view: Converted, target: str, format: str) -> str:
    """What would be written, as data."""
    body = {"source": view.snapshot.origin, "target": target, "format": format}
    return told_json(body | {"moves": list(_moves(view)), "skipped": view.skipped, "unread": view.unread})


def _moves(view: Converted) -> Iterator[dict[str, Any]]:
    for name, item in view.snapshot.items_by_path.items():
        old, dtype = view.sources[name]
        w = item.weight
        yield {"source": old, "target": name, "source_dtype": dtype, "dtype": w.dtype, "nbytes": w.nbytes}


def findings(path: str, found: tuple[Finding, ...]) -> str:
    """A paragraph for each finding.

    Example:
        >>> print(findings("a.npz", (Finding("no average", "it holds raw", "average it"),)))
        a.npz: 1 finding
        <BLANKLINE>
        no average
          evidence: it holds raw
          mend:     average it
    """
    paragraphs = [f"{f.what}\n  evidence: {f.evidence}\n  mend:     {f.mend}" for f in found]
    return "\n\n".join([f"{path}: {counted(len(found), 'finding')}", *paragraphs])


def findings_json(path: str, found: tuple[Finding, ...]) -> str:
    """The findings as data."""
    return told_json({"file": path, "findings": [asdict(f) for f in found]})
