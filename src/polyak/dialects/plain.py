"""Files that say nothing about themselves: every array is taken as a raw weight under its stored name."""

from __future__ import annotations

from polyak.contents import Contents, Tensor
from polyak.manifest import RAW, Manifest
from polyak.snapshot import Item, Snapshot
from polyak.weights import Kind, Weight, is_floating

UNSAID = "a set of weights without a word on whether it is an average"


def interpret(contents: Contents) -> Snapshot | None:
    items = [item(RAW, name, tensor) for name, tensor in contents.tensors.items()]
    written = Manifest(contents.format, {}, (), source=contents.origin, evidence=(UNSAID,), confidence="unknown")
    return Snapshot(items, None, contents.origin, contents.integrity, written)


def item(role: str, path: str, tensor: Tensor) -> Item:
    """An array of a foreign file: trainable where floating-point, else a counter."""
    kind = Kind.TRAINABLE if is_floating(tensor.dtype) else Kind.COUNTER
    return Item(role, Weight(path, tensor.shape, tensor.dtype, kind), tensor.read)
