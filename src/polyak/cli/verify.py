"""polyak verify: read every weight of a file."""

from __future__ import annotations

from typing import Any

import click

from polyak.cli import output, reading


@click.command(short_help="Read every weight of a file and compare.")
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
def verify(file: str, as_json: bool) -> None:
    """Read every weight of FILE and compare it with the checksum that was written beside it.

    Exit status: 0 every weight is as it was written, 2 the file is damaged.
    """
    with output.progress() as watch:
        held = reading.opened(file, watch)
        for name in held:
            held.verify(name)
    nbytes = sum(weight.nbytes for weight in held.weights)
    answer = {"file": output.shown(file), "weights": len(held), "bytes": nbytes, "integrity": held.integrity}
    with output.after_all():
        if as_json:
            import msgspec

            output.json(msgspec.json.encode(answer).decode())
        else:
            output.data(_sentence(held.origin, answer))


def _sentence(origin: str, answer: dict[str, Any]) -> str:
    size = f"{answer['weights']:,} weights ({answer['bytes']:,} bytes)"
    if answer["integrity"] == "none":
        return f"{origin}: {size} can be read; the file holds no checksums to compare them with"
    return f"{origin}: {size} are as they were written ({answer['integrity']})"
