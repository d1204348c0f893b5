"""A model's folder as diffusers and transformers write it: ``config.json`` beside one file of weights or an index.

The weights are read by their own format; plain values of the configuration become facts ``config/<key>``, because that
is where diffusers says that a folder holds an average. So they do where the file of weights is opened by its own path,
and where its name also says a precision: ``model.fp16.safetensors``, which a folder may hold beside the others.
"""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

from polyak.contents import Contents, json_object
from polyak.errors import DamagedFile, FileError, UnknownFormat
from polyak.files.failures import failures_named

_CONFIG = "config.json"
_SHARDED, _WHOLE = ".safetensors.index.json", ".safetensors"
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_PICKLED = ".bin.index.json"
_ENDS = (_SHARDED, _WHOLE, ".bin", _PICKLED)
_FORMATS = {_SHARDED: "safetensors_sharded", _WHOLE: "safetensors", ".bin": "torch_pt"}
_PRECISION = re.compile(r"\.(fp|bf)\d+(?=\.(safetensors|bin)$)")
_LARGEST = 2_000_000


def recognises(path: Path) -> bool:
    if path.is_dir():
        return (path / _CONFIG).is_file() and _weights(path) is not None
    return _format(path) is not None and path.with_name(_CONFIG).is_file()


def read(path: Path) -> Contents:
    """Open a folder, or the file of weights in it. Raises DamagedFile, UnknownFormat, FileError."""
    if (format_ := _format(path)) is not None:
        held: Contents = format_.read(path)
        return replace(held, facts={**held.facts, **_facts_beside(path)})
    weights = _weights(path)
    assert weights is not None
    _refuse_both(weights)
    _refuse_pickled_shards(weights)
    contents: Contents = import_module("polyak.files").read(weights)
    return replace(contents, facts={**contents.facts, **_facts(path / _CONFIG)})


def _weights(path: Path) -> Path | None:
    """The file of weights; safetensors, which run no code anywhere, come first."""
    return next((path / f"{s}{e}" for e in _ENDS for s in _STEMS if (path / f"{s}{e}").is_file()), None)


def _format(path: Path) -> ModuleType | None:
    """What reads a file that has the name of a folder's weights; None for others, and where the name deceives."""
    name = _PRECISION.sub("", path.name)
    end = next((end for end in _FORMATS for stem in _STEMS if name == f"{stem}{end}"), None)
    module = import_module(f"polyak.files.{_FORMATS[end]}") if end and path.is_file() else None
    return module if module and module.recognises(path) else None


def _refuse_both(weights: Path) -> None:
    """One of the two is left over from an earlier save; tools disagree about which they read."""
    whole = weights.with_name(f"{weights.name.removesuffix(_SHARDED)}{_WHOLE}")
    if weights.name.endswith(_SHARDED) and whole.is_file():
        raise UnknownFormat(
            f"directory {str(weights.parent)!r}: expected one file of weights, received {whole.name!r} and "
            f"{weights.name!r}",
            hint=f"open the one that is meant: {str(whole)!r} or {str(weights)!r}",
        )


def _refuse_pickled_shards(index: Path) -> None:
    if index.name.endswith(_PICKLED):
        raise UnknownFormat(
            f"directory {str(index.parent)!r}: expected one file of weights or shards of safetensors, received "
            f"shards of torch.save, which {index.name!r} lists",
            hint="open each shard by itself; or write the model anew: model.save_pretrained(folder) makes safetensors",
        )


def _facts_beside(weights: Path) -> dict[str, object]:
    """Those of the folder; what is no configuration of a model may lie beside a file that is opened by its own path."""
    try:
        return _facts(weights.with_name(_CONFIG))
    except (DamagedFile, FileError):
        return {}


def _facts(path: Path) -> dict[str, object]:
    with failures_named(path, "read"):
        size = path.stat().st_size
        text = path.read_bytes() if size <= _LARGEST else b""
    try:
        config = json_object(text)
    except ValueError as error:
        raise DamagedFile(f"file {str(path)!r}: expected a configuration in JSON, received {size:,} bytes") from error
    return {f"config/{key}": value for key, value in config.items() if isinstance(value, (str, int, float))}
