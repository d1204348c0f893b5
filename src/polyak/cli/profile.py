"""polyak profile: what a rule remembers."""

from __future__ import annotations

from typing import Any

import click

from polyak.cli import output

# Shares of all past steps are computed, 8 bytes each.
_MOST = 10_000_000


@click.command(short_help="What a rule remembers.")
@click.argument("rules", nargs=-1, required=True, metavar="RULE...")
@click.option(
    "--steps",
    multiple=True,
    type=click.IntRange(0, _MOST),
    default=(100, 1_000, 10_000),
    show_default="100, 1000, 10000",
    help="Length of the run, in updates; may be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
def profile(rules: tuple[str, ...], steps: tuple[int, ...], as_json: bool) -> None:
    """Show what a RULE such as ema:0.999 remembers after runs of several lengths.

    Mean age and half-life are in updates. Effective samples: how many equally weighted values would be as
    smooth. Immaturity: the share of the average, in percent, that still is the value it started from.
    """
    import polyak

    parsed = [polyak.parse(rule) for rule in rules]
    rows = [_row(rule, n) for rule in parsed for n in steps]
    if as_json:
        _answer_json(rows)
    else:
        _answer_table(rows)


def _row(rule: Any, n: int) -> dict[str, Any]:
    import polyak

    made = polyak.profile(rule, n)
    figures = {name: getattr(made, name) for name in ("mean_age", "half_life", "effective_samples", "immaturity")}
    return {"rule": str(rule), "steps": n} | figures


def _answer_json(rows: list[dict[str, Any]]) -> None:
    import msgspec

    output.json(msgspec.json.encode(rows).decode())


def _answer_table(rows: list[dict[str, Any]]) -> None:
    from polyak.report.tables import number, percent, table

    head = ["rule", "steps", "mean age", "half-life", "effective samples", "immaturity %"]
    figures = ("mean_age", "half_life", "effective_samples")
    lines = [[r["rule"], f"{r['steps']:,}", *(number(r[f]) for f in figures), percent(r["immaturity"])] for r in rows]
    output.data(table(head, lines))
