"""polyak transfer: from file to file."""

from __future__ import annotations

from pathlib import Path

import click

from polyak.cli import output


@click.command(short_help="Copy weights from file to file.")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option(
    "--weights", help='Which set to move where SRC holds several: "raw", "average", "average:NAME" or "both".'
)
@click.option("--force", is_flag=True, help="Write over a DST that exists.")
@click.option("--json", "as_json", is_flag=True, help="Answer with the receipt in JSON.")
def transfer(source: str, target: str, weights: str | None, force: bool, as_json: bool) -> None:
    """Copy weights from the file SRC, whatever wrote it, into DST, a safetensors file that says what it is.

    Every byte is read back and compared; the answer is a receipt.
    """
    import polyak

    if Path(target).exists() and not force:
        raise polyak.errors.FileError(f"file {target!r}: it exists already", hint="write over it with --force")
    receipt = polyak.transfer(source, target, weights=weights)
    if as_json:
        output.json(receipt.to_json())
    else:
        output.data(str(receipt))
