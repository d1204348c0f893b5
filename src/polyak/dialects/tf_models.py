"""TF Models' ``ema_checkpoints/average_weights-N``: an object checkpoint of the model with the averages in its weights.

Nothing in the file tells it from one of the raw weights; its name does.
"""

from __future__ import annotations

import re
from dataclasses import replace

import msgspec

from polyak.contents import Contents
from polyak.dialects import tf_object
from polyak.manifest import AVERAGE, RAW
from polyak.snapshot import Snapshot

_NAME = re.compile(r"(?:^|['\"/\\])(?P<name>average_weights-\d+)['\"]?$")


def interpret(contents: Contents) -> Snapshot | None:
    """None unless the checkpoint has that name and holds one set of weights."""
    called = _NAME.search(contents.origin)
    held = tf_object.interpret(contents) if called and contents.paths else None
    if called is None or held is None or RAW not in held.roles or any(r.startswith(AVERAGE) for r in held.roles):
        return held
    items = [replace(i, role=AVERAGE) if i.role == RAW else i for i in held.items_by_path.values()]
    why = f"the checkpoint is called {called['name']!r}, as TF Models calls the averages that it writes as the model"
    written = msgspec.structs.replace(held.manifest, roles={}, weights=(), evidence=(why,), confidence="inferred")
    return Snapshot(items, None, contents.origin, contents.integrity, written)
