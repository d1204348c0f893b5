"""polyak convert: weights in another format, under other names, in another dtype."""

from __future__ import annotations

from typing import Any

import click

from polyak.cli import options, output, reading

FORMATS = ("safetensors", "safetensors-sharded", "keras", "npz", "torch", "orbax")


@click.command(short_help="Write weights in another format, dtype or naming.")
@click.argument("source", metavar="SRC", type=click.Path())
@click.argument("target", metavar="DST", type=click.Path())
@options.weights
@click.option("--format", type=click.Choice(FORMATS), help="Of DST; by default the end of its name says it.")
@options.choosing
@click.option("--cast", metavar="DTYPE", help="A dtype for all floating-point weights, such as float16.")
@click.option("--layout", type=click.Choice(["torch"]), help="Names and layout of PyTorch for weights of Keras.")
@options.layers
@options.force
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@options.as_json
def convert(source: str, target: str, dry_run: bool, as_json: bool, force: bool, **asked: Any) -> None:
    """Write the weights of SRC, whatever wrote it, into DST with a manifest that says what they are.

    DST is a .safetensors file, a .safetensors.index.json with shards beside it, a .weights.h5, an .npz, a .pt, or an
    .orbax directory. Array by array; every byte is read back and compared; the answer is a receipt. Nothing is lost
    but what --cast rounds.
    """
    import polyak

    if asked["layers"] and asked["layout"] is None:
        raise click.UsageError("--layers needs --layout torch: without it arrays are taken as they are")
    asked = options.asked(**asked)
    options.refuse_taken(target, force, [source])
    if dry_run:
        _answer_dry(source, target, asked, as_json)
        return
    with output.progress() as watch:
        receipt = polyak.convert(reading.opened(source, watch), target, **asked)
    with output.after_all():
        if as_json:
            output.json(receipt.to_json())
        else:
            output.data(str(receipt))


def _answer_dry(source: str, target: str, asked: dict[str, Any], as_json: bool) -> None:
    from polyak.combine.convert import format_of
    from polyak.file_verbs import view, writer
    from polyak.report.combined import dry_run, dry_run_json

    written = format_of(target, asked.pop("format", None))
    made = view(reading.held(source), **asked)
    writer(target, written).refuse(made.snapshot, target)
    if as_json:
        output.json(dry_run_json(made, output.shown(target), written))
    else:
        output.data(dry_run(made, target, written))
