"""polyak diff: two files, leaf by leaf."""

from __future__ import annotations

import click

from polyak.cli import options, output, reading


@click.command(short_help="Compare two files, leaf by leaf.")
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@options.weights
@click.option("--atol", default=0.0, type=click.FloatRange(0), help="Largest absolute difference that is none.")
@options.as_json
def diff(a: str, b: str, weights: str | None, atol: float, as_json: bool) -> None:
    """Compare the weights of the files A and B, whatever wrote them, bit by bit, one leaf at a time.

    For leaves that differ: the largest absolute difference, the largest relative one (of the larger of both
    values), and the largest distance in representable numbers (ulp). The rules and counts of averages count, too.

    Exit status: 0 same, 1 different, 2 bad input.
    """
    import polyak
    from polyak.report.combined import difference

    with output.progress() as watch:
        found = polyak.diff(reading.opened(a, watch), reading.held(b), weights, atol)
    with output.after_all():
        if as_json:
            output.json(found.to_json())
        else:
            output.data(difference(found))
    output.leave(0 if found.equal else 1)
