"""Damage to files: none is read with other values than were written, and what is damaged is named.

Rows 6 (files of polyak), 7 (files of others) and 8 (files of polyak, read by Keras) of docs/reliability.md.
"""

from __future__ import annotations

import os
import random
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from click.testing import CliRunner
from tests.attacks.cases_safetensors import plain

from polyak.cli.inspect import inspect
from polyak.cli.verify import verify
from polyak.errors import PolyakError
from polyak.snapshot import Item, Snapshot
from polyak.weights import Evidence, Kind, Weight
from torture.campaign import Campaign, Outcome
from torture.children import apart, in_fresh_process, verdicts
from torture.damage import KINDS, Damaged, Region, damaged, flipped, regions_of
from torture.samples import OWN, Build, kept, parts, read, seed_of, verified

CHECKED: dict[str, Build] = {
    "torch zip": kept("torch/plain.pt"),
    "torch, deflated": kept("torch/deflated.pt"),
    "torch, mmengine's": kept("torch/mmengine.pt"),
    "keras archive": kept("keras/use_ema.keras"),
    "tensorflow v2": kept("tensorflow/kinds.index", "tensorflow/kinds.data-00000-of-00001"),
    "tensorflow object graph": kept("tensorflow/module.index", "tensorflow/module.data-00000-of-00001"),
    "tensorflow v1": kept("tensorflow/tf1_v1"),
}


def _fletcher(directory: Path) -> Path:
    """HDF5 whose arrays and structure have checksums, as other programs can write it."""
    path = directory / "model.weights.h5"
    with h5py.File(path, "w", libver="latest") as file:
        for i in range(3):
            value = np.frombuffer(random.Random(i).randbytes(4000), np.float32)
            file.create_dataset(f"layers/l{i}/vars/0", data=value, fletcher32=True, chunks=(500,))
    return path


CHECKED["hdf5 with fletcher32"] = _fletcher
# Their format has no checksum: damage that shows is refused, and nothing is called verified.
UNCHECKED: dict[str, Build] = {
    "safetensors": plain,
    "keras weights": kept("keras/holder.weights.h5"),
    "torch legacy": kept("torch/plain_legacy.pt"),
    "flax": kept("jax/variables.msgpack"),
    "orbax": kept("jax/ocdbt_zarr3"),
}


@dataclass
class Sample:
    """One file, or set of files, that is damaged again and again.

    Attributes:
        path: what is opened.
        said: what it says undamaged.
    """

    path: Path
    said: dict[str, bytes]
    contents: dict[Path, bytes] = field(default_factory=dict)
    regions: dict[Path, list[Region]] = field(default_factory=dict)

    @classmethod
    def made(cls, build: Build, directory: Path) -> Sample:
        path = build(directory)
        sample = cls(path, read(path))
        values = {name: value for name, value in sample.said.items() if name}
        sample.contents = {part: part.read_bytes() for part in parts(path)}
        sample.regions = {part: regions_of(content, values) for part, content in sample.contents.items()}
        return sample

    def trial(self, kind: str, dice: random.Random) -> str:
        """Damage one file, read, mend it: "refused", "harmless", or what went wrong."""
        sizes = [len(content) for content in self.contents.values()]
        part = dice.choices(list(self.contents), sizes)[0]
        done = damaged(kind, self.contents[part], self.regions[part], dice)
        if done is None:
            return "harmless"
        part.write_bytes(done.content)
        try:
            return self._judged(done, part)
        finally:
            part.write_bytes(self.contents[part])

    def _judged(self, done: Damaged, part: Path) -> str:
        try:
            found = read(self.path)
        except PolyakError as error:
            told = self._named(done, part, str(error))
            return f"VERIFIED: {error!s:.160}" if told == "refused" and verified(self.path) else told
        where = f"bytes {done.first} to {done.last} of {part.name}"
        return "harmless" if found == self.said else f"SILENT: {where}: {_difference(self.said, found)}"

    def _named(self, done: Damaged, part: Path, message: str) -> str:
        """Damage within the values of a weight has to be told by its name."""
        if len(done.content) < len(self.contents[part]):
            return "refused"
        hit = [r.name for r in self.regions[part] if r.start <= done.first and done.last < r.end]
        told = not hit or any(name in message or name.partition("/")[2] in message for name in hit)
        return "refused" if told else f"NOT NAMED: {hit[0]}: {message.splitlines()[0][:160]}"


def _difference(expected: Mapping[str, bytes], found: Mapping[str, bytes]) -> str:
    changed = [n or "the manifest" for n in {**expected, **found} if expected.get(n) != found.get(n)]
    return f"other {', '.join(changed[:3])}" if changed else "another order"


def campaign(builds: Mapping[str, Build]) -> Any:
    """So many trials, the same number of each kind of damage to each file."""

    def run(trials: int) -> Outcome:
        seen: Counter[str] = Counter()
        broken: list[str] = []
        for name, build in builds.items():
            with tempfile.TemporaryDirectory() as directory:
                sample, dice = Sample.made(build, Path(directory)), random.Random(seed_of(name))
                for kind in KINDS:
                    for _ in range(max(1, trials // len(builds) // len(KINDS))):
                        told = sample.trial(kind, dice)
                        seen[told if told in ("refused", "harmless") else "broken"] += 1
                        broken += [f"{name}, {kind}: {told}"] * (told not in ("refused", "harmless"))
        total = sum(seen.values())
        return Outcome(total, tuple(broken), _figure(seen, len(builds), total))

    return run


def _figure(seen: Counter[str], formats: int, total: int) -> str:
    return (
        f"{seen['broken']} silent or not named of {total:,} over {formats} kinds of file; "
        f"{seen['refused']:,} refused, {seen['harmless']:,} changed nothing that is read"
    )


def foreign(trials: int) -> Outcome:
    """Files of other tools: checksums that are there are compared, and where there are none ``verify`` says so."""
    checked = campaign(CHECKED)(trials)
    told = [fault for name, build in UNCHECKED.items() if (fault := _claimed(name, build))]
    return Outcome(
        checked.trials + len(UNCHECKED),
        (*checked.broken, *told),
        f"{checked.figure}; {len(UNCHECKED) - len(told)} of {len(UNCHECKED)} formats without checksums said to be so",
    )


def _claimed(name: str, build: Build) -> str:
    """What is wrong with what is said of a file without checksums."""
    with tempfile.TemporaryDirectory() as directory:
        path = build(Path(directory))
        inspected, verified = (CliRunner().invoke(verb, [str(path)]) for verb in (inspect, verify))
    if "integrity: none" not in inspected.output:
        return f"{name}: inspect says {inspected.output[:200]!r}"
    if verified.exit_code or "no checksums" not in verified.output or "as they were written" in verified.output:
        return f"{name}: verify says {verified.output[:200]!r} and leaves with {verified.exit_code}"
    return ""


class _Keras:
    """A file that polyak wrote, read by Keras after one bit of it was flipped."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def prepare(self) -> None:
        model = _model()
        dice = np.random.default_rng(0)
        for variable in model.weights:
            variable.assign(dice.standard_normal(variable.shape).astype(variable.dtype))
        held = [_weight(i, v) for i, v in enumerate(_placed(model))]
        import_module("polyak.files.keras_write").write(
            Snapshot(held, {"average": None}), self.directory / "model.weights.h5"
        )

    def warm(self) -> None:
        self.content = (self.directory / "model.weights.h5").read_bytes()
        self.model = _model()
        self.path = self.directory / f"{os.getpid()}.weights.h5"
        self.path.write_bytes(self.content)
        self.model.load_weights(self.path)
        self.values = self._read()

    def trial(self, number: int) -> str:
        dice = random.Random(number)
        self.path.write_bytes(self._flipped(dice))
        for variable in self.model.weights:
            variable.assign(np.full(variable.shape, 7, variable.dtype))
        try:
            with warnings.catch_warnings(action="ignore"):
                self.model.load_weights(self.path)
        except Exception as error:  # whatever Keras raises, it has noticed
            return f"noticed: {error!s:.80}"
        return "harmless" if self._read() == self.values else "SILENT"

    def _flipped(self, dice: random.Random) -> bytes:
        """Anywhere, or in the values of a weight, each as often as the others: one has four bytes."""
        if dice.random() < 0.5:
            return flipped(self.content, (), dice)
        value = dice.choice(self.values)
        start = self.content.index(value)
        return self.content[:start] + flipped(value, (), dice) + self.content[start + len(value) :]

    def _read(self) -> list[bytes]:
        return [np.asarray(v.value).tobytes() for v in self.model.weights]


def _model() -> Any:
    import keras

    class Scale(keras.layers.Layer):
        """A layer whose weight has no axes."""

        def build(self, shape: Any) -> None:
            self.scale = self.add_weight(shape=(), name="scale")

        def call(self, x: Any) -> Any:
            return x * self.scale

    layers = [
        keras.layers.Dense(31),
        keras.layers.BatchNormalization(),
        Scale(),
        keras.layers.Dense(7, dtype="bfloat16"),
    ]
    model = keras.Sequential([keras.layers.Input((33,)), *layers])
    model.build((None, 33))
    return model


def _placed(model: Any) -> list[tuple[str, Any]]:
    """The variables by the place at which Keras looks for them."""
    names = ("dense", "batch_normalization", "scale", "dense_1")
    return [
        (f"layers/{name}/vars/{i}", v)
        for name, layer in zip(names, model.layers, strict=True)
        for i, v in enumerate(layer.weights)
    ]


def _weight(position: int, placed: tuple[str, Any]) -> Item:
    place, variable = placed
    value = np.asarray(variable.value)
    evidence = Evidence(place, place, place, "Layer", variable.name, position, value.dtype.name, place)
    return Item("average", Weight(place, value.shape, value.dtype.name, Kind.TRAINABLE, evidence), value.copy)


def keras_reads(trials: int) -> Outcome:
    """Flips in a file of polyak's, read by Keras on NumPy."""
    with tempfile.TemporaryDirectory() as directory:
        reader = _Keras(Path(directory))
        apart(reader.prepare)
        seen = list(verdicts(trials, reader.trial, reader.warm))
    broken = [f"flip {i}: {v.said}" for i, v in enumerate(seen) if v.ended or v.said == "SILENT"]
    harmless = sum(v.said == "harmless" for v in seen)
    figure = f"Keras noticed {len(seen) - harmless - len(broken):,} of {len(seen):,}, {harmless} were harmless"
    return Outcome(len(seen), tuple(broken), f"{figure}, {len(broken)} silent")


def _keras_in_fresh(trials: int) -> Outcome:
    return in_fresh_process("torture.integrity:keras_reads", trials, KERAS_BACKEND="numpy")


CAMPAIGNS = (
    Campaign("6", "damage to a file of polyak is never read, and damage to a weight is told by its name", campaign(OWN),
             900, 10_000),
    Campaign("7", "damage to a file of others is noticed where its format lets it, else nothing is called verified",
             foreign, 400, 4000),
    Campaign("8", "Keras itself notices damage to a .weights.h5 of polyak", _keras_in_fresh, 60, 2000),
)  # fmt: skip
