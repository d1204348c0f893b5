"""Conversions over all pairs of formats and back: every bit and every word arrives, or the conversion is refused.

Row 18 of docs/reliability.md.
"""

from __future__ import annotations

import itertools
import os
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np

from polyak.combine.convert import FORMATS
from polyak.errors import PolyakError
from polyak.file_verbs import convert
from polyak.file_verbs import open as opened
from polyak.manifest import State
from polyak.snapshot import Item, Snapshot
from polyak.weights import Evidence, Kind, Weight, numpy_dtype
from torture.campaign import Campaign, Outcome

RULE = {"type": "EMA", "decay": 0.999}
_FAR = 2**31 + 4096
_WIDE = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "complex64",
         "complex128")  # fmt: skip
_WHOLE = ("int64", "uint64", "int32", "uint32", "int16", "uint16", "int8", "uint8", "bool")


def every_pattern(dtype: str) -> np.ndarray[Any, Any]:
    """Values whose bits are easily lost: all signs, zeros, subnormals, infinities and NaNs with payloads."""
    wide = numpy_dtype(dtype).itemsize // (2 if dtype.startswith("complex") else 1)
    sign, top = 1 << (8 * wide - 1), (1 << (8 * wide - 1)) - 1
    patterns = [0, 1, 2, 3, top, top - 1, top >> 1, sign, sign | 1, sign | top, sign | top >> 1]
    if dtype in ("float64", "float32", "float16"):
        infinite = int(np.array(np.inf, dtype).view(f"u{wide}"))
        patterns += [infinite, sign | infinite, infinite | 1, infinite | 5, sign | infinite | 9]
    if dtype == "bool":
        patterns = [0, 1, 1, 0]
    raw = np.array(patterns + patterns[: len(patterns) % 2], f"u{wide}")
    return raw.view(numpy_dtype(dtype))


def cases() -> dict[str, tuple[Weight, np.ndarray[Any, Any]]]:
    """Weights that are not like others: all dtypes, no axes, many axes, no elements, names, kinds."""
    held = {dtype: every_pattern(dtype) for dtype in (*_WIDE, *_WHOLE)}
    held |= {f"scalar {d}": held[d][3:4].reshape(()) for d in ("float32", "int64", "bfloat16", "bool", "float64")}
    held |= {"empty": np.zeros((0, 3), np.float32), "empty within": np.zeros((2, 0, 4), np.int8)}
    held |= {"eight axes": np.arange(16, dtype=np.float32).reshape(1, 2, 1, 2, 1, 2, 1, 2)}
    held |= {"transposed": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))}
    made = {name: (_weight("layer/kernel", array, Kind.TRAINABLE), array) for name, array in held.items()}
    one = np.float32([1, -0.0])
    for path in ("with space", "with.dot/and.more", "ünïcode/权重", "quote'\"", "a" * 200, "0", "~tilde/-dash"):
        made[f"name {path:.20}"] = (_weight(path, one, Kind.TRAINABLE), one)
    for kind in Kind:
        value = np.int64([2**63 - 1]) if kind in (Kind.COUNTER, Kind.SEED) else one
        made[f"kind {kind}"] = (_weight("layer/kernel", value, kind), value)
    return made


def _weight(path: str, array: np.ndarray[Any, Any], kind: Kind) -> Weight:
    # As an average of a model in bfloat16 has it: the live weight is narrower than its average.
    evidence = Evidence(path, f"~/{path}", path, "Dense", "kernel", 3, "bfloat16", "layers/dense/vars/0", ("dense",))
    return Weight(path, array.shape, array.dtype.name, kind, evidence)


def snapshot(described: Mapping[str, tuple[Weight, np.ndarray[Any, Any]]]) -> Snapshot:
    items = [Item(role, weight, array.copy) for role, (weight, array) in described.items()]
    states = {role: State(RULE, 2**63 - 1, 12) if role.startswith("average") else None for role in described}
    return Snapshot(items, states, "a case")


@dataclass(frozen=True)
class Said:
    """What has to be the same after a conversion."""

    roles: Mapping[str, State | None]
    weights: tuple[tuple[str, Weight], ...]
    values: tuple[bytes, ...]
    words: tuple[Any, ...]

    @classmethod
    def of(cls, held: Snapshot) -> Said:
        told = held.manifest
        items = sorted(held.items_by_path.items())
        weights = tuple((i.role, i.weight) for _, i in items)
        words = (told.note, told.evidence, told.confidence, told.layout)
        return cls(told.roles, weights, tuple(held[name].tobytes() for name, _ in items), words)


def there_and_back(held: Snapshot, a: str, b: str, directory: Path) -> str:
    """What became of a snapshot from a to b to a: the word same, refused with the reason, or what was lost."""
    first, second, third = (directory / f"{i}{FORMATS[f]}" for i, f in enumerate((a, b, a)))
    expected = Said.of(held)
    for source, target in ((held, first), (first, second), (second, third)):
        before = opened(source) if isinstance(source, Path) else source
        try:
            convert(before, target)
        except PolyakError as error:
            return f"refused: {type(error).__name__}: {error}" if not target.exists() else f"LEFT: {error}"
        found = Said.of(opened(target))
        if found != expected:
            return f"LOST in {target.name}: {_lost(expected, found)}"
    return "same"


def _lost(expected: Said, found: Said) -> str:
    names = [n for n in ("roles", "weights", "values", "words") if getattr(expected, n) != getattr(found, n)]
    first = names[0]
    return f"{names}: expected {getattr(expected, first)!s:.300}, received {getattr(found, first)!s:.300}"


def _all(trials: int) -> Iterator[tuple[str, str]]:
    """Cases spread over the pairs such that each pair has its share; each with what became of it."""
    pairs = list(itertools.product(FORMATS, FORMATS))
    every = [(name, a, b) for name in cases() for a, b in pairs]
    step = max(1, len(every) // max(trials, 1))
    for number, (name, a, b) in enumerate(every[(len(every) // 7) % step :: step]):
        described = {"average": cases()[name]}
        if number % 2 and "keras" not in (a, b):
            described |= {"raw": cases()[name], "average:slow": cases()["float64"]}
        with tempfile.TemporaryDirectory() as directory:
            yield f"{name}, {a} to {b}", there_and_back(snapshot(described), a, b, Path(directory))


def conversions(trials: int) -> Outcome:
    """So many cases of a weight and a pair of formats, and arrays behind the second gigabyte."""
    seen: Counter[str] = Counter()
    broken: list[str] = []
    for name, said in _all(trials):
        kind = said.partition(":")[0].split()[0]
        seen[kind] += 1
        broken += [f"{name}: {said}"] * (kind not in ("same", "refused"))
    far = [f"{name}: {fault}" for name, fault in _far_ones() if fault]
    figure = (
        f"{seen['same']:,} conversions there and back with every bit, {seen['refused']:,} refused, "
        f"{len(broken)} with a loss; arrays behind 2**31 bytes: {len(far)} wrong"
    )
    return Outcome(sum(seen.values()), (*broken, *far), figure)


# --- behind the second gigabyte, in files that are nearly all hole ---------------------------------------------------

_SMALL = np.float32([1.5, -0.0, np.nan])


def _far_safetensors(path: Path) -> None:
    header = msgspec.json.encode({
        "pad": {"dtype": "U8", "shape": [_FAR], "data_offsets": [0, _FAR]},
        "w": {"dtype": "F32", "shape": [3], "data_offsets": [_FAR, _FAR + 12]},
    })  # fmt: skip
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.seek(_FAR, os.SEEK_CUR)
        file.write(_SMALL.tobytes())


def _far_h5(path: Path) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(path, "w", libver="latest") as file:
        space = h5py.h5s.create_simple((_FAR,))
        h5py.h5d.create(file.id, b"pad", h5py.h5t.NATIVE_UINT8, space, plan)
        file["w"] = _SMALL


def _far_ones() -> Iterator[tuple[str, str]]:
    """A small array behind the hole, converted alone."""
    for name, make in (("x.safetensors", _far_safetensors), ("x.weights.h5", _far_h5)):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / name
            make(path)
            convert(path, Path(directory) / "y.safetensors", include="w")
            found = opened(Path(directory) / "y.safetensors")["w"]
            right = found.tobytes() == _SMALL.tobytes() and path.stat().st_size > 2**31
            yield name, "" if right else f"received {found}"


CAMPAIGNS = (
    Campaign(
        "18",
        "a conversion over any two formats and back keeps every bit and every word, or is refused",
        conversions,
        short=150,
        full=2000,
    ),
)
