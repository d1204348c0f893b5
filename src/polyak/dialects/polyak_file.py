"""Files that polyak wrote: the manifest says everything."""

from __future__ import annotations

from polyak.contents import Contents
from polyak.snapshot import Item, Snapshot


def interpret(contents: Contents) -> Snapshot | None:
    if contents.manifest is None:
        return None
    manifest = contents.manifest
    items = [
        Item(s.role, s.weight, (held := contents.tensors[s.name]).read, s.digest, measure=held.measure)
        for s in manifest.weights
    ]
    return Snapshot(items, manifest.roles, contents.origin, contents.integrity, manifest)
