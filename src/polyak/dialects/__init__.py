"""Who wrote a file: what its arrays mean, raw or averaged. Each dialect reads the contents of any format."""

from __future__ import annotations

from importlib import import_module

from polyak.contents import Contents
from polyak.snapshot import Snapshot

# A module with ``interpret(contents) -> Snapshot | None`` each; the first that knows the writer decides.
_DIALECTS = (
    "polyak_file",
    "tf_models",
    "tf_object",
    "tf1",
    "keras_file",
    "keras_legacy",
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
    "haiku",
    "optax",
    "jax_state",
    "plain",
)


def interpret(contents: Contents) -> Snapshot:
    """The contents as a snapshot: roles, paths, kinds, states."""
    for name in _DIALECTS:
        snapshot: Snapshot | None = import_module(f"polyak.dialects.{name}").interpret(contents)
        if snapshot is not None:
            return snapshot
    raise AssertionError("the plain dialect reads everything")
