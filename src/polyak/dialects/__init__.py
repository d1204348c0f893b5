"""Who wrote a file: what its arrays mean, raw or averaged. Each dialect reads the contents of any format."""

from __future__ import annotations

from importlib import import_module

import msgspec

from polyak.contents import Contents
from polyak.errors import listed
from polyak.manifest import Manifest
from polyak.snapshot import Snapshot

# A module with ``interpret(contents) -> Snapshot | None`` each; the first that knows the writer decides.
_DIALECTS = (
    "polyak_file",
    "tf_models",
    "tf_object",
    "tf1",
    "keras_file",
    "keras_legacy",
    "keras_module",
    "averaged_model",
    "ema_pytorch",
    "timm",
    "lightning",
    "mmengine",
    "lit_ema",
    "torch_ema",
    "diffusers",
    "torch_plain",
    "keras_orbax",
    "ema_tree",
    "haiku",
    "optax",
    "jax_state",
    "plain",
)
_MOST_NOTED = 3


def interpret(contents: Contents) -> Snapshot:
    """The contents as a snapshot: roles, paths, kinds, states, and what else the file holds."""
    held = _interpreted(contents)
    if not contents.unread and not contents.beside:
        return held
    told = _telling(held.manifest, contents)
    made = Snapshot(held.items_by_path.values(), held.states, held.origin, held.integrity, told, held.moment)
    return made.also_named(held.namings)


def _telling(known: Manifest, contents: Contents) -> Manifest:
    """The manifest with all that is in the file beside the arrays; its note says the arrays that are not read."""
    left = [f"{name} ({what})" for name, what in contents.unread.items()]
    said = f"not read: {listed(left, _MOST_NOTED)}" if left else ""
    note = "; ".join(filter(None, (known.note, said)))
    return msgspec.structs.replace(known, note=note, unread={**known.unread, **contents.unread, **contents.beside})


def _interpreted(contents: Contents) -> Snapshot:
    for name in _DIALECTS:
        snapshot: Snapshot | None = import_module(f"polyak.dialects.{name}").interpret(contents)
        if snapshot is not None:
            return snapshot
    raise AssertionError("the plain dialect reads everything")
