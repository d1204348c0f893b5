"""The programs here run in processes of their own; as modules they would make devices in the tests' process."""

from __future__ import annotations

collect_ignore = [
    "ddp.py",
    "fsdp.py",
    "joined.py",
    "mirrored.py",
    "placed.py",
    "ranked.py",
    "replicated.py",
    "sharded.py",
    "workers.py",
]
