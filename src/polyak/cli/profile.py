"""polyak profile: what a rule remembers."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from typing import Any

import click

from polyak.cli import options, output
from polyak.errors import FileError

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
@click.option("--png", type=click.Path(), help="Write the picture of the longest run there; needs matplotlib.")
@click.option("--svg", type=click.Path(), help="The same as SVG.")
@click.option("--html", type=click.Path(), help="The same as a page with the picture and the figures.")
@options.force
@options.as_json
def profile(rules: tuple[str, ...], steps: tuple[int, ...], force: bool, as_json: bool, **pictures: str | None) -> None:
    """Show what a RULE such as ema:0.999 remembers after runs of several lengths.

    Mean age and half-life are in updates, and of these alone: the start is in neither. Effective samples: how many
    equally weighted values would be as smooth. Immaturity: the share of the average, in percent, that still is the
    value it started from. Below, for the longest run: which part of the run the values are from that the average
    holds, oldest left.
    """
    import polyak

    parsed = [polyak.parse(rule) for rule in rules]
    wanted = {kind: path for kind, path in pictures.items() if path is not None}
    _refuse_one_place(wanted)
    for path in wanted.values():
        options.refuse_taken(path, force)
    rows = [_row(rule, n) for rule in parsed for n in steps]
    for kind, path in wanted.items():
        _write(kind, rules, max(steps), path)
    with output.after_all() if wanted else nullcontext():
        if as_json:
            _answer_json(rows)
        else:
            _answer_table([text for text in rules for _ in steps], rows)
            _answer_plots(rules, max(steps))


def _refuse_one_place(wanted: dict[str, str]) -> None:
    taken: dict[str, str] = {}
    for kind, path in wanted.items():
        if (first := taken.setdefault(os.path.realpath(path), kind)) != kind:
            raise FileError(
                f"file {path!r}: expected one picture there, received --{first} and --{kind}",
                hint="give each a name of its own",
            )


def _row(rule: Any, n: int) -> dict[str, Any]:
    import polyak

    made = polyak.profile(rule, n)
    figures = {name: getattr(made, name) for name in ("mean_age", "half_life", "effective_samples", "immaturity")}
    return {"rule": str(rule), "steps": n} | figures


def _write(kind: str, rules: tuple[str, ...], steps: int, path: str) -> None:
    from polyak.report.pictures import write_page, write_picture

    if kind == "html":
        write_page(rules, steps, path)
    else:
        write_picture(rules, steps, path, "svg" if kind == "svg" else "png")
    output.say(f"{kind.upper()}: {path}")


def _answer_json(rows: list[dict[str, Any]]) -> None:
    import msgspec

    output.json(msgspec.json.encode(rows).decode())


def _answer_table(asked: list[str], rows: list[dict[str, Any]]) -> None:
    """Each row under the text that was asked for: a width in the user's own words is easier to find again."""
    from polyak.report.tables import number, percent, table

    head = ["rule", "steps", "mean age", "half-life", "effective samples", "immaturity %"]
    figures = ("mean_age", "half_life", "effective_samples")
    lines = [
        [text, f"{r['steps']:,}", *(number(r[f]) for f in figures), percent(r["immaturity"])]
        for text, r in zip(asked, rows, strict=True)
    ]
    output.data(table(head, lines))


def _answer_plots(rules: tuple[str, ...], steps: int) -> None:
    """Nothing for a run without an update; plain characters where the terminal knows no others."""
    from polyak.report.shares import ASCII, BLOCKS, plots

    if steps:
        output.data(f"\n{plots(rules, steps, BLOCKS if _writes(BLOCKS) else ASCII)}")


def _writes(text: str) -> bool:
    if sys.stdout is None:  # closed when the program started
        return False
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
