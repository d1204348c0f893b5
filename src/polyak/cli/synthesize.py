"""polyak synthesize: the average that another rule would have made."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import click

from polyak.cli import options, output, reading


@click.command(short_help="Make the average of another rule from snapshots of a run.")
@click.argument("files", nargs=-1, required=True, metavar="SNAP...", type=click.Path())
@click.option("--rule", required=True, metavar="RULE", help='The wanted rule, such as "power:sigma_rel=0.1".')
@click.option("-o", "--output", "out", type=click.Path(), help="Where it goes; the end of its name says the format.")
@click.option(
    "--at", type=click.IntRange(min=1), help="After how many updates; by default, as many as the latest SNAP."
)
@click.option("--tolerance", type=float, help="The largest relative profile error to accept; 0.1 by default.")
@click.option("--largest-norm", type=float, help="The largest norm of the coefficients to accept; 100 by default.")
@click.option("--dry-run", is_flag=True, help="Say how near it would come; write nothing.")
@options.force
@options.as_json
def synthesize(
    files: tuple[str, ...], rule: str, out: str | None, dry_run: bool, force: bool, as_json: bool, **asked: Any
) -> None:
    """Make the average that another RULE would have made, from averages kept during one run.

    Each SNAP is a file with an average, its rule and its count, such as polyak.save writes. The answer is the
    coefficient of each SNAP, the error of the shares of the past relative to those of the RULE, and the norm of the
    coefficients. What is out of reach of the snapshots is refused.
    """
    import polyak

    if (out is None) == (not dry_run):
        raise click.UsageError("expected either -o OUT or --dry-run")
    if out is not None:
        options.refuse_taken(out, force, files)
    given = {name: value for name, value in asked.items() if value is not None}
    with output.progress() as watch:
        made = polyak.synthesize([reading.held(file) for file in files], rule, watch=watch, **given)
        receipt = None if out is None else polyak.save(made, out)
    with nullcontext() if receipt is None else output.after_all():
        _answer(made, receipt, as_json)


def _answer(made: Any, receipt: Any, as_json: bool) -> None:
    from polyak.report.synthesized import synthesized, synthesized_json

    if as_json:
        output.json(synthesized_json(made, receipt))
    else:
        output.data(synthesized(made, receipt))
