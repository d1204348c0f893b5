"""What users give as the name of a file, as text that the system can have for one."""

from __future__ import annotations

import os
from typing import Literal

from polyak.errors import FileError


def path_text(path: object, use: Literal["read", "write"] = "write") -> str:
    """A path as text. ``use`` is what errors say that it is for.

    Raises:
        FileError: it is no path, is empty, or has letters that no name has.

    Example:
        >>> from pathlib import Path
        >>> path_text(Path("run") / "a.npz").replace(os.sep, "/")
        'run/a.npz'
    """
    if isinstance(path, bytes):
        raise FileError(f"file {path!r}: expected a path as text, received bytes", hint="os.fsdecode(path) makes text")
    if not isinstance(path, (str, os.PathLike)):
        raise FileError(f"file {path!r:.80}: expected a path, received {type(path).__name__}")
    text = os.fspath(path)
    if not isinstance(text, str):
        return path_text(text, use)
    if not text:  # which would be the current directory
        raise FileError(f"file '': expected the name of a file to {use}, received an empty one")
    try:
        possible = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise FileError(f"file {text!r}: no file has such a name")
    return text
