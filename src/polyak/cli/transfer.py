"""polyak transfer: from file to file."""

from __future__ import annotations

import click

from polyak.cli import options, output


@click.command(short_help="Copy weights from file to file.")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option(
    "--weights", help='Which set to move where SRC holds several: "raw", "average", "average:NAME" or "both".'
)
@options.force
@options.as_json
def transfer(source: str, target: str, weights: str | None, force: bool, as_json: bool) -> None:
    """Copy weights from the file SRC, whatever wrote it, into DST, a safetensors file that says what it is.

    Every byte is read back and compared; the answer is a receipt.
    """
    import polyak

    options.refuse_existing(target, force)
    receipt = polyak.transfer(source, target, weights=weights)
    if as_json:
        output.json(receipt.to_json())
    else:
        output.data(str(receipt))
