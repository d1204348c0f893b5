"""polyak demo: the main job on real data, end to end."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from polyak.cli import output

if TYPE_CHECKING:
    from types import ModuleType

    from polyak.demo import Report, Row

ROLES = ("raw", "fast", "slow")


@click.command(short_help="The main job on real data, end to end.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1), help="Of all randomness.")
@click.option("--directory", default="polyak-demo", show_default=True, help="Where files go; made anew.")
@click.option("--recalibrate", is_flag=True, help="Also recompute batch statistics for the averages.")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
def demo(seed: int, directory: str, recalibrate: bool, as_json: bool) -> None:
    """Train a small model on handwritten digits with two averages, and carry them to fresh instances.

    Every route is taken: memory, TF1 Saver, tf.train.Checkpoint and a second process, SavedModel,
    safetensors, Keras files. With --recalibrate, a pass over the training images then recomputes the
    statistics of batch normalisation for the averaged weights. Exit status: 0 every bit arrived by every
    route, 1 one did not.
    """
    with output.progress() as watch:
        watch("importing TensorFlow", 0, 1)
        report = _package().run(directory, seed, watch=watch, recalibrate=recalibrate)
    with output.after_all():
        if as_json:
            output.json(report.to_json())
        else:
            output.data(text(report))
    for line in report.differences:
        output.say(f"different: {line}")
    output.leave(0 if report.same else 1)


def text(report: Report) -> str:
    """The table, the receipt, and where the files are."""
    from polyak.report.tables import table

    head = ["", "weights", "bytes", "seconds", *ROLES, "bits"]
    before = ["before: the trained model", "", "", f"{report.seconds:.1f}", *_accuracy(report.accuracy), ""]
    after = ["after, in fresh instances:", *[""] * 7]
    anew = ["statistics recomputed:", *[""] * 3, *_accuracy(report.recalibrated), ""]
    paragraphs = [
        f"Test accuracy in percent after {report.steps:,} steps: of the raw weights, and of two averages of them.",
        table(head, [before, after, *map(_row, report.rows), *([anew] if report.recalibrated else [])]),
        "TF1's files and Keras' own keep no random seeds, so fewer weights arrive there.",
        str(report.receipt or ""),
        f"files: {report.directory}/",
    ]
    return "\n\n".join(filter(None, paragraphs))


def _row(row: Row) -> list[str]:
    size = [f"{row.weights:,}", f"{row.nbytes:,}", f"{row.seconds:.1f}"]
    return [f"  {row.route}", *size, *_accuracy(row.accuracy), "differ" if row.differences else "same"]


def _accuracy(by_role: Mapping[str, float]) -> list[str]:
    from polyak.report.tables import percent

    return [percent(by_role.get(role)) for role in ROLES]


def _package() -> ModuleType:
    """polyak.demo, with TensorFlow on the CPU and silent: it reads these when it is imported."""
    from polyak.errors import ModelError

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    try:
        with _without_native_noise():
            import polyak.demo as package
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("polyak"):
            raise
        raise ModelError(
            f"the demo needs {error.name}, which is not installed", hint="pip install 'polyak[demo]'"
        ) from error
    return package


@contextmanager
def _without_native_noise() -> Iterator[None]:
    """TensorFlow's C++ speaks on file descriptor 2 before it reads the log level that it was given."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
