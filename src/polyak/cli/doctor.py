"""polyak doctor: what may be wrong with a file."""

from __future__ import annotations

import click

from polyak.cli import options, output, reading


@click.command(short_help="What may be wrong with a file, and what mends it.")
@click.argument("file", type=click.Path())
@options.as_json
def doctor(file: str, as_json: bool) -> None:
    """Examine FILE and say what its user should know, each with the evidence and with what mends it.

    No weights, no average, several sets, an average that is equal to the raw weights, frozen by low precision,
    immature, biased towards zero or stale against the step counter, BatchNorm statistics that belong to the raw
    weights, NaN or infinity, no checksums, roles that are inferred, unknown or may be exchanged, what its writer
    leaves out.

    Exit status: 0 no findings, 1 findings, 2 bad input.
    """
    import polyak
    from polyak.report.combined import findings, findings_json

    with output.progress() as watch:
        found = polyak.doctor(reading.opened(file, watch), called=file)
    with output.after_all():
        if as_json:
            output.json(findings_json(output.shown(file), found))
        else:
            output.data(findings(file, found))
    output.leave(1 if found else 0)
