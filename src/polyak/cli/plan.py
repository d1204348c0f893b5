"""polyak plan: which weight goes where, as an editable file."""

from __future__ import annotations

from typing import Any

import click

from polyak.cli import options, output, reading


@click.command(short_help="Write down which weight goes where, to be edited.")
@click.argument("source", metavar="SRC", type=click.Path())
@click.argument("like", metavar="LIKE", type=click.Path())
@click.option("-o", "--output", "out", default="-", type=click.Path(), help="A .json file; standard output by default.")
@options.weights
@options.pairing
@options.force
@options.as_json
def plan(source: str, like: str, out: str, force: bool, as_json: bool, weights: str | None, **asked: Any) -> None:
    """Pair the weights of the file SRC with those of the file LIKE, check names, shapes and dtypes, and write a plan.

    The plan is JSON. Leave moves out, give them other sources, state other dtypes; then polyak transfer SRC DST --plan
    checks it anew and carries it out. No array is read.
    """
    import polyak

    if out != "-":
        options.refuse_taken(out, force, [source, like])
    made = polyak.plan(reading.held(source), like, weights=weights, **options.asked(**asked))
    if out == "-":
        output.json(made.to_json())
        return
    _write(made.to_json(), out)
    with output.after_all():
        if as_json:
            output.json(made.to_json())
        else:
            output.data(str(made))


def _write(text: str, path: str) -> None:
    import msgspec

    from polyak.files.atomic import replacing

    with replacing(path) as file:
        file.write(msgspec.json.format(text, indent=2).encode() + b"\n")
