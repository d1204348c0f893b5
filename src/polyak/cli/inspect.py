"""polyak inspect: what is in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from polyak.cli import output, reading

if TYPE_CHECKING:
    from polyak.snapshot import Snapshot
    from polyak.weights import Weight


@click.command(short_help="What is in a file: roles, rule, count, weights.")
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
def inspect(file: str, as_json: bool) -> None:
    """Show what FILE holds: raw or averaged weights, rule, count, every weight. Nothing but the header is read.

    FILE is anything that polyak reads, such as a safetensors file or the prefix of a TensorFlow checkpoint.
    """
    from polyak.manifest import told_json

    held = reading.held(file)
    if as_json:
        output.json(told_json(held.manifest))
    else:
        output.data(
            "\n".join([held.origin, f"integrity: {held.integrity}", *_sure(held), "", _roles(held), "", _weights(held)])
        )


def _sure(held: Snapshot) -> list[str]:
    """How sure it is what the sets are, where the file does not state it."""
    known = held.manifest
    if known.confidence == "stated":
        return []
    why = known.evidence or ("the file does not say who wrote it",)
    return [f"raw or average: {known.confidence}, not stated by the file", *(f"  {line}" for line in why)]


def _roles(held: Snapshot) -> str:
    from polyak.report.tables import table

    rows = [_role(role, held) for role in held.roles]
    return table(["holds", "rule", "updates", "skipped", "weights", "bytes"], rows, left=2)


def _role(role: str, held: Snapshot) -> list[str]:
    from polyak.averaging.parts import shown_rule
    from polyak.report.tables import ABSENT

    part = held.select(role=role)
    size = [f"{len(part):,}", f"{sum(w.nbytes for w in part.weights):,}"]
    if part.state is None:
        return [role, ABSENT, ABSENT, ABSENT, *size]
    return [role, shown_rule(part.state.rule), f"{part.state.count:,}", f"{part.state.skipped:,}", *size]


def _weights(held: Snapshot) -> str:
    """A line for each weight; sets that agree on its description share it."""
    from polyak.report.tables import table

    lines: dict[tuple[str, ...], list[str]] = {}
    for item in held.items_by_path.values():
        lines.setdefault(_weight(item.weight), []).append(item.role)
    rows = [[*line[:4], ", ".join(roles), line[4]] for line, roles in lines.items()]
    return table(["weight", "shape", "dtype", "kind", "in", "bytes"], rows, left=5)


def _weight(weight: Weight) -> tuple[str, ...]:
    from polyak.report.tables import shape

    return weight.path, shape(weight.shape), weight.dtype, weight.kind.value, f"{weight.nbytes:,}"
