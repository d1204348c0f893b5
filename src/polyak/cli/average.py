"""polyak average: the mean of checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from polyak.cli import options, output, reading

if TYPE_CHECKING:
    from polyak.combine.average import Member
    from polyak.transfer.receipt import Receipt


@click.command(short_help="Average checkpoints into one file.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path())
@click.option(
    "-o",
    "--output",
    "out",
    required=True,
    type=click.Path(),
    help="Where the mean goes; the end of its name says the format.",
)
@click.option("--member-weights", metavar="1,2,1", help="A share for each FILE; equal ones by default.")
@options.weights
@options.force
@options.as_json
def average(
    files: tuple[str, ...], out: str, member_weights: str | None, weights: str | None, force: bool, as_json: bool
) -> None:
    """Average the weights of several FILEs of one structure, array by array, in float64.

    Statistics such as BatchNorm's moving mean are averaged, too; counters and random seeds are those of the last
    FILE with a share. Packed weights, masks, tables and scales of float8 weights, which have no mean, must be equal in
    all FILEs. The answer is
    a receipt, and each member's distance from the mean, relative to the mean's norm.
    """
    import polyak

    options.refuse_taken(out, force, files)
    shares = options.numbers(member_weights, "--member-weights")
    with output.progress() as watch:
        held = [reading.held(file) for file in files]
        receipt = polyak.average(held, shares, out, weights, watch)
        watch("distances", 0, 1)
        members = polyak.distances(held, out, shares, weights)
    assert isinstance(receipt, polyak.Receipt)
    _answer(receipt, members, as_json)


def _answer(receipt: Receipt, members: tuple[Member, ...], as_json: bool) -> None:
    from polyak.report.combined import averaged, averaged_json

    with output.after_all():
        if as_json:
            output.json(averaged_json(receipt, members))
        else:
            output.data(averaged(receipt, members))
