"""The only place that prints. Data on standard output; words, warnings and progress on standard error."""

from __future__ import annotations

import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import click

from polyak.errors import FileError, PolyakError, PolyakWarning

BAD_INPUT, INTERRUPTED, NOBODY_READS = 2, 130, 141
Watch = Callable[[str, int, int], None]
# Names in files have any letters. Those that would move a terminal's cursor, or paint it, are shown by their codes.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def data(text: str) -> None:
    """What was asked for."""
    _answer(text.translate(_CONTROL), True)


def json(text: str) -> None:
    """What was asked for, as JSON, indented."""
    import msgspec

    _answer(msgspec.json.format(text, indent=2), True)


def raw(content: bytes) -> None:
    """What was asked for, as bytes."""
    _answer(content, False)


def _answer(content: str | bytes, ends_line: bool) -> None:
    """On standard output, which is None where it was closed when the program started: an answer would be lost."""
    if sys.stdout is None:
        raise FileError("standard output: expected a place for the answer, received none: it is closed")
    with answering():
        click.echo(content, nl=ends_line)


@contextmanager
def answering() -> Iterator[None]:
    """What is written to standard output within. Raises FileError where there is no room for it."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise FileError(f"standard output: {error.strerror or error}") from error


@contextmanager
def after_all() -> Iterator[None]:
    """An answer after what was asked for is done, or whose exit status tells it all: where it is lost, this holds."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if sys.stdout is not None:  # somebody has a place for the answer, and it takes none
            say(str(error), _mark("warning:", "yellow"))
            _drop_unwritten()


def shown(path: str) -> str:
    """A path as text that JSON can hold: the system lets names be no text at all."""
    return path.encode(errors="backslashreplace").decode()


def say(text: str, mark: str = "") -> None:
    """Words beside the data, behind a mark. Where nobody can hear them, the exit status still tells what it tells."""
    with suppress(OSError):
        click.echo(" ".join(filter(None, [mark, text.translate(_CONTROL)])), err=True)


def leave(status: int) -> None:
    """End with this exit status."""
    raise SystemExit(status)


@contextmanager
def reporting() -> Iterator[None]:
    """Say polyak's warnings and errors as one line each, with the hint on the next; an error ends with status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of weights have any letters; terminals have not
    with warnings.catch_warnings():
        warnings.simplefilter("always", PolyakWarning)
        warnings.showwarning = _warn(warnings.showwarning)
        try:
            yield
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except PolyakError as error:
            _fail(error.message, error.hint)
        except BrokenPipeError:
            _drop_unwritten()
            leave(NOBODY_READS)  # status 1 means "different"
        except OSError as error:
            _fail(f"file {error.filename!r}: {error.strerror}" if error.filename else str(error), None)
        except KeyboardInterrupt:
            # click would end with 1, which means "different".
            leave(INTERRUPTED)
        except Exception as error:
            say(traceback.format_exc())
            _fail(f"{type(error).__name__}: {error}", "polyak did not expect this: please report it")


@contextmanager
def progress() -> Iterator[Watch]:
    """A bar on standard error while a terminal watches; else nothing. Give it what is done, how much, of how much."""
    if not _watched(sys.stderr):
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    # On a descriptor of its own: the bar goes on while TensorFlow is kept from writing on standard error.
    stream = os.fdopen(os.dup(sys.stderr.fileno()), "w")
    columns = (
        TextColumn("{task.description:34}", markup=False),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with stream, Progress(*columns, console=Console(file=stream), transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda what, done, total: bar.update(
            task, description=what.translate(_CONTROL), completed=done, total=total
        )


def _warn(otherwise: Callable[..., None]) -> Callable[..., None]:
    """Polyak's warnings in the form of its errors; other packages' as they are."""

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, PolyakWarning):
            say(str(message), _mark("warning:", "yellow"))
        else:
            otherwise(message, category, *rest, **more)

    return show


def _drop_unwritten() -> None:
    """What is left of an answer must not raise again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, hint: str | None) -> None:
    say(message, _mark("error:", "red"))
    if hint:
        from polyak.cli.hints import as_options

        say(as_options(hint), _mark("hint:", "cyan"))
    leave(BAD_INPUT)


def _mark(text: str, colour: str) -> str:
    return click.style(text, fg=colour, bold=True) if _coloured(sys.stderr) else text


def _watched(stream: TextIO | None) -> bool:
    """Whether a terminal watches. A stream that is closed when a program starts is None."""
    return stream is not None and stream.isatty()


def _coloured(stream: TextIO | None) -> bool:
    """Whether a terminal watches that wants colours: https://no-color.org."""
    return _watched(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
