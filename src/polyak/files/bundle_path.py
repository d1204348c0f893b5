"""Which TensorFlow checkpoint a path leads to: a prefix, one of its files, a checkpoint directory or a SavedModel."""

from __future__ import annotations

import os
import re
from pathlib import Path

from polyak.errors import DamagedFile, FileError, UnknownFormat, listed
from polyak.files.sstable import has_magic

AGAIN = "copy or download the checkpoint again"
_STATE_LIMIT = 1 << 20
_DATA = r"\.data-\d{5}-of-\d{5}$"


def is_data(path: Path) -> bool:
    """Whether the name is that of one of a checkpoint's data files."""
    return re.search(_DATA, path.name) is not None


def find_prefix(path: Path) -> Path:
    """The prefix of the checkpoint that a path leads to; ``prefix.index`` exists.

    Args:
        path: as ``TensorBundle`` takes it; one of the checkpoint's data files will do as well.

    Raises:
        FileError: nothing is there, or a state file points outside its directory.
        UnknownFormat: the path is a file of another kind.
        DamagedFile: a state file names no checkpoint.
    """
    if path.is_dir():
        if any((path / f"saved_model.{kind}").is_file() for kind in ("pb", "pbtxt")):
            return _existing(path / "variables" / "variables", path)
        if (path / "checkpoint").is_file():
            return _existing(latest(path / "checkpoint"), path / "checkpoint")
    stem = path.with_name(re.sub(rf"\.index$|{_DATA}", "", path.name)) if path.name else path
    for prefix in (path, stem):
        if has_index(prefix):
            return prefix
    if path.is_file():
        raise _no_checkpoint(path, stem)
    received = "a directory without one" if path.is_dir() else "nothing"
    hint = _names(path if path.is_dir() else path.parent)
    raise FileError(f"file {str(path)!r}: expected a TensorFlow checkpoint, received {received}", hint=hint)


def has_index(prefix: Path) -> bool:
    """Whether a checkpoint of the V2 format has this prefix."""
    try:
        return Path(f"{prefix}.index").is_file()
    except OSError:  # a name longer than the system allows
        return False


def _existing(prefix: Path, source: Path) -> Path:
    if has_index(prefix):
        return prefix
    message = f"file {str(source)!r}: expected the checkpoint {str(prefix)!r}, received no {prefix.name}.index"
    raise FileError(message, hint=_names(prefix.parent))


def _no_checkpoint(path: Path, stem: Path) -> FileError:
    if stem != path:
        return FileError(f"file {str(path)!r}: expected {stem.name}.index beside it, received none", hint=AGAIN)
    if has_magic(path):
        hint = "save it again with tf.compat.v1.train.Saver, which writes V2 by default"
        return UnknownFormat(f"file {str(path)!r}: expected a TensorFlow V2 checkpoint, received V1", hint=hint)
    return UnknownFormat(f"file {str(path)!r}: expected a TensorFlow checkpoint, received another file")


def _names(directory: Path) -> str | None:
    """A hint that names the checkpoints of a directory, if it has any."""
    found = sorted(str(path)[: -len(".index")] for path in directory.glob("*.index")) if directory.is_dir() else []
    return f"name one of {listed(found, 3)}" if found else None


def latest(state: Path) -> Path:
    """The checkpoint that a ``checkpoint`` state file (a text protocol buffer) names, inside the file's directory."""
    if (size := state.stat().st_size) > _STATE_LIMIT:
        raise DamagedFile(f"file {str(state)!r}: expected at most {_STATE_LIMIT} bytes, received {size}")
    # Possessive: a text of a million quotes must not cost a hundred bytes for each.
    pattern = rb"""(?<!\w)model_checkpoint_path\s*:\s*(?:"((?:[^"\\\n]|\\.)*+)"|'((?:[^'\\\n]|\\.)*+)')"""
    found = re.search(pattern, state.read_bytes())
    target = os.fsdecode(_unquoted(found[1] or found[2] or b"")) if found else ""
    if not target or "\0" in target:
        raise DamagedFile(
            f"file {str(state)!r}: expected model_checkpoint_path, received none", hint=_names(state.parent)
        )
    return _inside(state.parent, target, state)


def _unquoted(text: bytes) -> bytes:
    """The bytes of a quoted text field; what is not ASCII may stand as octal escapes."""
    plain = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}

    def character(match: re.Match[bytes]) -> bytes:
        code = match[1]
        if code[0] in b"01234567":
            return bytes([int(code, 8) & 0xFF])
        return bytes([int(code[1:], 16)]) if len(code) > 1 else plain.get(code, code)

    return re.sub(rb"\\([0-7]{1,3}|[xX][0-9a-fA-F]{1,2}|.)", character, text)


def _inside(directory: Path, target: str, state: Path) -> Path:
    """``target`` under ``directory``: neither its text nor a linked directory may lead out. Linked files may."""
    inside = directory / target
    if ".." in Path(target).parts or not _real(inside.parent).is_relative_to(directory.resolve()):
        message = f"file {str(state)!r}: expected a checkpoint in its own directory, received {target!r}"
        raise FileError(message, hint=_names(directory))
    return inside


def _real(directory: Path) -> Path:
    """A directory without links; the root for one that is not there or linked in a circle."""
    try:
        return Path(os.path.realpath(directory, strict=True))
    except OSError:
        return Path("/")
