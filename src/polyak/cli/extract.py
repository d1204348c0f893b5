"""polyak extract: one array as .npy."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import click

from polyak.cli import options, output, reading

if TYPE_CHECKING:
    from polyak.snapshot import Array


@click.command(short_help="Take one array out of a file, as .npy.")
@click.argument("file", type=click.Path())
@click.argument("name")
@click.option(
    "-o",
    "--output",
    "out",
    default="-",
    type=click.Path(),
    show_default=True,
    help="An .npy file, or - for standard output.",
)
@options.weights
@options.force
@options.as_json
def extract(file: str, name: str, out: str, weights: str | None, force: bool, as_json: bool) -> None:
    """Write the array NAME of FILE as .npy, to a file or to standard output.

    bfloat16 and float8, which .npy has no name for, become float32; no value changes. With --json the answer is a
    description of the array; to standard output it comes instead of the array.
    """
    if out != "-":
        options.refuse_taken(out, force, [file])
    held = reading.held(file)
    array = (held if weights is None else held.select(weights))[name]
    if out != "-":
        _write(array, out)
    with nullcontext() if out == "-" else output.after_all():
        if as_json:
            _describe(name, array)
        elif out == "-":
            output.raw(_npy(array))


def _write(array: Array, path: str) -> None:
    from polyak.files.atomic import replacing

    with replacing(path) as file:
        file.write(_npy(array))


def _npy(array: Array) -> bytes:
    from io import BytesIO

    import numpy as np

    plain = array.dtype.isbuiltin == 1  # the kind does not tell: float8_e5m2 has that of a float
    if not plain:
        output.say(f"{array.dtype.name} is written as float32")
    buffer = BytesIO()
    np.save(buffer, array if plain else array.astype(np.float32), allow_pickle=False)
    return buffer.getvalue()


def _describe(name: str, array: Array) -> None:
    from polyak.manifest import digest, told_json

    body = {"name": name, "shape": array.shape, "dtype": array.dtype.name, "digest": digest(array)}
    output.json(told_json(body))
