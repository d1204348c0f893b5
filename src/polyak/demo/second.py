"""The second process: restores a checkpoint into a fresh instance and writes down what it got.

Usage: ``python -m polyak.demo.second CHECKPOINT ANSWER.json``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from polyak.demo import data, routes
from polyak.demo.held import Held, fingerprint
from polyak.demo.model import fresh, parts
from polyak.demo.training import accuracy


def main() -> None:
    """Restore with TensorFlow's own calls; every value of the file must find its place."""
    checkpoint, answer = sys.argv[1:]
    model, digits = fresh(), data.load()
    routes.whole(model).restore(checkpoint).assert_consumed()
    told = {role: _told(part, digits) for role, part in parts(model).items()}
    Path(answer).write_text(json.dumps({"process": os.getpid(), **told}, indent=1))


def _told(part: Any, digits: data.Digits) -> dict[str, Any]:
    held = Held.of(part)
    values = {path: fingerprint(value) for path, value in held.values.items()}
    return {"held": {"values": values, "count": held.count}, "accuracy": accuracy(part, digits)}


if __name__ == "__main__":
    main()
