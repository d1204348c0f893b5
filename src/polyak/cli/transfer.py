"""polyak transfer: from file to file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from polyak.cli import options, output, reading

if TYPE_CHECKING:
    from polyak.transfer.stored import StoredPlan


@click.command(short_help="Copy weights from file to file, under the names of another.")
@click.argument("source", metavar="SRC", type=click.Path())
@click.argument("target", metavar="DST", type=click.Path())
@click.option(
    "--weights", help='Which set to move where SRC holds several: "raw", "average", "average:NAME" or "both".'
)
@click.option("--like", type=click.Path(), help="A file whose names, shapes and dtypes DST gets.")
@click.option("--plan", type=click.Path(), help="A plan of polyak plan, or - for standard input.")
@options.pairing
@options.force
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@options.as_json
def transfer(source: str, target: str, force: bool, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Copy weights from the file SRC, whatever wrote it, into DST, a file that says what it is.

    DST is a safetensors file unless its name ends in .safetensors.index.json, .weights.h5, .npz, .pt or .orbax. With
    --like it has the structure of another file, checked weight by weight as for a live model; with --plan it is what
    the plan says. Without both, weights can be chosen and renamed, and nothing else changes. Every byte is read back
    and compared; the answer is a receipt.
    """
    import polyak

    _refuse_unpaired(**given)
    options.refuse_taken(target, force, [source])
    asked = _asked(**given)
    if dry_run:
        _answer_dry(source, target, asked, as_json)
        return
    with output.progress() as watch:
        held = reading.opened(source, watch)
        one = held if {"weights", "plan"} & asked.keys() else held.select()
        receipt = polyak.transfer(one, target, **asked)
    with output.after_all():
        if as_json:
            output.json(receipt.to_json())
        else:
            output.data(str(receipt))


def _refuse_unpaired(like: str | None, plan: str | None, weights: str | None, **asked: Any) -> None:
    """What is asked of two sides needs two, and a plan has said it already."""
    said = [name for name, value in asked.items() if value not in (None, ())]
    if plan is not None and said:
        raise click.UsageError(f"--{said[0]} does not go with --plan: edit the plan, or make it anew with it")
    paired = [name for name in said if name not in ("include", "exclude", "rename")]
    if paired and like is None:
        raise click.UsageError(f"--{paired[0]} needs --like FILE: without it weights are taken as they are")


def _asked(weights: str | None, like: str | None, plan: str | None, **pairing: Any) -> dict[str, Any]:
    given = {"weights": weights, "like": like, "plan": _plan(plan), **options.asked(**pairing)}
    return {name: value for name, value in given.items() if value is not None}


def _plan(path: str | None) -> StoredPlan | None:
    if path is None:
        return None
    import polyak

    return (
        polyak.StoredPlan.from_json(reading.standard_input(), "standard input")
        if path == "-"
        else polyak.read_plan(path)
    )


def _answer_dry(source: str, target: str, asked: dict[str, Any], as_json: bool) -> None:
    from polyak.plan_verbs import into_file
    from polyak.report.combined import dry_run, dry_run_json
    from polyak.verbs import saved_as, saver

    written = saved_as(target)
    made = into_file(reading.held(source), target, **asked)
    saver(target).refuse(made.snapshot, target)
    if as_json:
        output.json(dry_run_json(made, output.shown(target), written))
    else:
        output.data(dry_run(made, target, written))
