"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from polyak.errors import FileError

as_json = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
force = click.option("--force", is_flag=True, help="Write over a file that exists.")
weights = click.option("--weights", help='Which set where there are several: "raw", "average" or "average:NAME".')


def refuse_existing(path: str, force: bool) -> None:
    """Keep a file that exists, unless it may be written over."""
    if Path(path).exists() and not force:
        raise FileError(f"file {path!r}: it exists already", hint="write over it with --force")


def refuse_own_source(sources: Sequence[str], out: str) -> None:
    """Members are read once more when the mean is written, so it must not take the place of one."""
    if Path(out).resolve() in {Path(source).resolve() for source in sources}:
        raise FileError(f"file {out!r}: it is one of the members", hint="give the mean another name")


def pairs(texts: tuple[str, ...], name: str) -> dict[str, str]:
    """Texts of the form OLD=NEW as a mapping; the last ``=`` divides, so that OLD may hold one.

    Example:
        >>> pairs(("^net/=", "a=b"), "--rename")
        {'^net/': '', 'a': 'b'}
    """
    for text in texts:
        if "=" not in text:
            raise click.BadParameter(f"expected OLD=NEW, received {text!r}", param_hint=name)
    return {old: new for old, _, new in (text.rpartition("=") for text in texts)}


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
