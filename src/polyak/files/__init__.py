"""Bytes: which format a path holds, and opening it. The content decides, not the extension."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from polyak.contents import Contents
from polyak.errors import FileError, UnknownFormat, listed
from polyak.files.atomic import standing
from polyak.files.failures import failures_named
from polyak.files.stamp import Stamp, stamp

# A module with ``recognises(path)`` and ``read(path)`` each; the first that recognises a path reads it.
_FORMATS = (
    "model_folder",
    "safetensors",
    "safetensors_sharded",
    "npz",
    "torch_pt",
    "torch_dcp",
    "orbax",
    "tensorbundle_v1",
    "tensorbundle_format",
    "keras_h5",
    "keras_archive",
    "keras_shards",
    "flax_msgpack",
)

_TEXT_MODEL = "saved_model.pbtxt"
_TORCH_INDEX = ".bin.index.json"
_TRIES = 1000
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".h5", ".keras", ".msgpack")
_MOST_NAMED = 3


def read(path: Path) -> Contents:
    """Open a file or directory.

    One that is written again while it is opened is opened once more: its parts are of one writing.

    Raises:
        FileError: there is nothing at the path, or it cannot be looked at.
        UnknownFormat: no format recognises it.
        DamagedFile: it contradicts itself.
    """
    for _ in range(_TRIES):
        before = _stamps(path)
        try:
            with failures_named(path, "read"):
                contents = _read(standing(path))
        except FileError:
            if _stamps(path) == before:
                raise
        else:
            if _stamps(path) == before:
                return contents
    raise FileError(f"file {str(path)!r}: it was written again at each of {_TRIES} attempts to open it")


def _stamps(path: Path) -> list[Stamp | None]:
    """What changes when the path, or the TensorFlow checkpoint of this prefix, is written again."""
    return [_stamp(path), _stamp(path.with_name(f"{path.name}.index")) if path.name else None]


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return stamp(status)


def _read(path: Path) -> Contents:
    for name in _FORMATS:
        module = import_module(f"polyak.files.{name}")
        if module.recognises(path):
            contents: Contents = module.read(path)
            return contents
    if not path.exists():
        led = " but a link that leads nowhere" if path.is_symlink() else ""
        raise FileError(f"file {str(path)!r}: there is nothing at this path{led}", hint=_similar(path))
    _refuse_text(path)
    what, hint = _unknown(path)
    raise UnknownFormat(f"file {str(path)!r}: expected weights, received {what}", hint=hint)


def _unknown(path: Path) -> tuple[str, str]:
    """What no format recognises, and what to open instead."""
    if path.name.endswith(_TORCH_INDEX):
        return "an index of PyTorch's shards", "open the shards one by one, or save the model anew as safetensors"
    checkpoints = sorted(path.glob("*.index")) if path.is_dir() else []
    if checkpoints:
        hint = f"name one of the checkpoints in it, such as {str(checkpoints[-1].with_suffix(''))!r}"
        return "a directory that does not say which checkpoint is meant", hint
    held = sorted(p.name for p in path.iterdir() if p.name.endswith(_WEIGHTS)) if path.is_dir() else []
    if held:
        what = f"a directory that does not say which of its files is meant: {listed(held, _MOST_NAMED)}"
        return what, f"open the one that is meant, such as {str(path / held[0])!r}"
    what = "a directory without a checkpoint" if path.is_dir() else "a file of no known format"
    return what, "polyak reads safetensors, npz, TensorFlow, Orbax, SavedModel, Keras, PyTorch and Flax files"


def _refuse_text(path: Path) -> None:
    """Raise UnknownFormat for a SavedModel whose graph is a text; its weights are a checkpoint like any other."""
    found = path / _TEXT_MODEL if path.is_dir() else path
    if found.name != _TEXT_MODEL or not found.is_file():
        return
    weights = found.parent / "variables" / "variables"
    there = weights.with_name("variables.index").is_file()
    raise UnknownFormat(
        f"file {str(found)!r}: expected saved_model.pb, received a SavedModel that is written as text",
        hint=f"open its weights alone: {str(weights)!r}" if there else "save it anew: tf.saved_model.save writes it so",
    )


def _similar(path: Path) -> str:
    import difflib

    names = sorted(p.name for p in path.parent.iterdir() if p.name != path.name) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, 1)
    return f"nearest: {str(path.parent / near[0])!r}" if near else "check the path"
