"""Options that several verbs share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from polyak.errors import FileError

as_json = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
force = click.option("--force", is_flag=True, help="Write over a file that exists.")
weights = click.option("--weights", help='Which set where there are several: "raw", "average" or "average:NAME".')


# The kinds of evidence that weights can be paired by; a test compares them with those of transfer.
EVIDENCE = ("path", "structure", "name", "creation", "position", "saved")
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def choosing(command: Decorated) -> Decorated:
    """--include, --exclude and --rename: which weights, under which names."""
    for option in (
        click.option("--rename", multiple=True, metavar="REGEX=NEW", help="Replace what matches in each name."),
        click.option("--exclude", multiple=True, metavar="GLOB", help="Weights to leave out."),
        click.option("--include", multiple=True, metavar="GLOB", help="Weights to take; may be given several times."),
    ):
        command = option(command)
    return command


def layers(command: Decorated) -> Decorated:
    """--layers: of which Keras class a layer is, where nothing says it."""
    said = "The Keras class of layers, or same; where it is not known."
    return click.option("--layers", multiple=True, metavar="GLOB=CLASS", help=said)(command)


def pairing(command: Decorated) -> Decorated:
    """What may be asked of two sides that are paired."""
    by = click.option("--by", type=click.Choice(EVIDENCE), help="The evidence to pair by where kinds of it disagree.")
    cast = click.option("--cast", type=click.Choice(["target"]), help="Allow the target's dtype where it is narrower.")
    bad = click.option("--nonfinite", type=click.Choice(["allow"]), help="Move NaN and infinity, too.")
    lies = click.option(
        "--layout", type=click.Choice(["keras", "torch"]), help="How SRC lies where it does not say so."
    )
    return choosing(by(cast(bad(lies(layers(command))))))


def asked(rename: tuple[str, ...], layers: tuple[str, ...], **given: Any) -> dict[str, Any]:
    """What was given, as the functions take it; for the rest they have their own defaults."""
    said = {name: value for name, value in given.items() if value not in (None, ())}
    said |= {"rename": patterns(rename)} if rename else {}
    return said | ({"layers": classes(layers)} if layers else {})


def classes(texts: tuple[str, ...]) -> dict[str, str]:
    """Texts of the form GLOB=CLASS as a mapping.

    Example:
        >>> classes(("head=Dense", "block/*=same"))
        {'head': 'Dense', 'block/*': 'same'}
    """
    made: dict[str, str] = {}
    for text in texts:
        glob, _, name = text.rpartition("=")
        if not glob or not name:
            raise click.BadParameter(f"expected GLOB=CLASS, received {text!r}", param_hint="--layers")
        if glob in made:
            raise click.BadParameter(f"expected each GLOB once, received {glob!r} twice", param_hint="--layers")
        made[glob] = name
    return made


def refuse_taken(path: str, force: bool, sources: Sequence[str] = ()) -> None:
    """Keep the sources, which are read while the result is written, and what exists, unless it may be written over."""
    from polyak.files.naming import path_text

    path = path_text(path)
    if os.path.realpath(path) in {os.path.realpath(source) for source in sources}:
        raise FileError(f"file {path!r}: it is one of the sources", hint="give the result another name")
    from polyak.files.used import is_tree, refuse_part

    for source in filter(None, sources):
        refuse_part(path, source)
    if not Path(path).exists():
        return
    if Path(path).is_dir() and not is_tree(Path(path)):
        raise FileError(f"file {path!r}: expected a file to write, received a directory", hint="add a file name")
    if not force:
        raise FileError(f"file {path!r}: it exists already", hint="write over it with --force")


def patterns(texts: tuple[str, ...]) -> dict[re.Pattern[str], str]:
    """Texts of the form REGEX=NEW as a mapping; the last ``=`` divides, so that an expression may hold one.

    Example:
        >>> patterns(("^net/=", "a=b"))
        {re.compile('^net/'): '', re.compile('a'): 'b'}
    """
    divided = (text.rpartition("=") for text in texts)
    pairs = [(_pattern(old, text), new) for text, (old, _, new) in zip(texts, divided, strict=True)]
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(old.pattern for n, (old, _) in enumerate(pairs) if old in dict(pairs[:n]))
        raise click.BadParameter(f"expected each REGEX once, received {twice!r} twice", param_hint="--rename")
    return made


def _pattern(old: str, text: str) -> re.Pattern[str]:
    if not old:
        raise click.BadParameter(f"expected REGEX=NEW, received {text!r}", param_hint="--rename")
    try:
        return re.compile(old)
    except re.error as error:
        raise click.BadParameter(f"expected a regular expression, received {old!r}: {error}") from None


def numbers(text: str | None, name: str) -> list[float] | None:
    """Numbers with commas between them.

    Example:
        >>> numbers("1,2.5", "--member-weights"), numbers(None, "")
        ([1.0, 2.5], None)
    """
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"expected numbers such as 1,2,1, received {text!r}", param_hint=name) from None
