"""Small files of every format that polyak writes or reads, and of what they hold: material for the campaigns."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from polyak import dialects, files
from polyak.combine.convert import FORMATS, writer_of
from polyak.errors import PolyakError
from polyak.manifest import State
from polyak.snapshot import Item, Snapshot
from polyak.weights import Evidence, Kind, Weight, numpy_dtype

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
RULE = {"type": "EMA", "decay": 0.999}
Build = Callable[[Path], Path]


def snapshot(roles: tuple[str, ...] = ("raw", "average"), seed: int = 0) -> Snapshot:
    """Four weights a role that fill some pages, all of them random and so unlike each other; the first two have one
    shape and dtype, one has no axes.
    """
    dice = np.random.default_rng(seed)
    items = [_item(role, *described, dice) for role in roles for described in enumerate(_WEIGHTS)]
    states = {role: State(RULE, 900, 3) if role == "average" else None for role in roles}
    return Snapshot(items, states, origin="a sample")


_WEIGHTS = (
    ("encoder/0/kernel", (33, 31), "float32", Kind.TRAINABLE),
    ("encoder/1/kernel", (33, 31), "float32", Kind.TRAINABLE),
    ("encoder/1/moving_mean", (301,), "float64", Kind.STATISTIC),
    ("steps", (), "int64", Kind.COUNTER),
)


def _item(role: str, index: int, weight: tuple[str, tuple[int, ...], str, Kind], dice: np.random.Generator) -> Item:
    path, shape, dtype, kind = weight
    array = np.frombuffer(dice.bytes(int(np.prod(shape)) * numpy_dtype(dtype).itemsize), dtype).reshape(shape)
    evidence = Evidence(path, path, path, "Dense", path.rpartition("/")[2], index, dtype, f"layers/l{index}/vars/0")
    return Item(role, Weight(path, shape, dtype, kind, evidence), array.copy)


def write(held: Snapshot, format: str, directory: Path) -> Path:
    """A snapshot as a file of one of polyak's formats, in a directory; sharded ones in three shards."""
    path = directory / f"model{FORMATS[format]}"
    options: dict[str, Any] = {"shard_bytes": 6000} if format == "safetensors-sharded" else {}
    import_module(f"polyak.files.{writer_of(format)}").write(held, path, **options)
    return path


def own(format: str) -> Build:
    """How to make a file of a format; Keras' holds one role."""
    roles = ("average",) if format == "keras" else ("raw", "average")
    return lambda directory: write(snapshot(roles), format, directory)


OWN: dict[str, Build] = {format: own(format) for format in FORMATS}


def kept(*names: str) -> Build:
    """Copies of files that other tools wrote; the first is what is opened."""

    def build(directory: Path) -> Path:
        for name in names:
            source = GOLDEN / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, directory / source.name)
        return directory / Path(names[0]).name.removesuffix(".index")

    return build


def read(path: Path) -> dict[str, bytes]:
    """All that a file says: every value by name, what it is, and the order. Raises PolyakError."""
    held = dialects.interpret(files.read(path))  # as polyak.open does
    said = {name: held[name].tobytes() for name in held}
    return {"": held.manifest.to_json().encode(), **said}


def verified(path: Path) -> bool:
    """Whether every array has its digest, as ``polyak verify`` looks at it. Raises no PolyakError."""
    try:
        held = dialects.interpret(files.read(path))
        for name in held:
            held.verify(name)
    except PolyakError:
        return False
    return True


def parts(path: Path) -> list[Path]:
    """The files that a path stands for, those of no size left out."""
    root = path if path.is_dir() else path.parent
    return sorted(p for p in root.rglob("*") if p.is_file() and p.stat().st_size)


def refusal(path: Path) -> PolyakError | None:
    """What is said of a file that is refused; None if it can be read."""
    try:
        read(path)
    except PolyakError as error:
        return error
    return None


def seed_of(text: str) -> int:
    """A number that is the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
