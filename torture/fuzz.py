"""Fuzzing of every reader: each mutated file is an error of polyak or is read, in bounds of time and memory.

Row 23 of docs/reliability.md. ``python -m torture.fuzz COUNT DIRECTORY`` keeps what it finds there.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from polyak import dialects, files
from polyak.combine.convert import FORMATS
from polyak.errors import PolyakError
from torture.campaign import Campaign, Outcome
from torture.children import Verdict, apart, in_fresh_process, verdicts
from torture.mutations import mutated
from torture.samples import OWN, Build, kept, parts, read

SEED = 20_260_101
READERS: dict[str, Build] = {
    **OWN,
    "torch": kept("torch/plain.pt"),
    "torch of mmengine": kept("torch/mmengine.pt"),
    "torch kinds": kept("torch/kinds.pt"),
    "torch module": kept("torch/module.pt"),
    "torch legacy": kept("torch/kinds_legacy.pt"),
    "torch distributed": kept("jax/dcp_sharded"),
    "own torch": OWN["torch"],
    "keras weights": kept("keras/holder.weights.h5"),
    "keras archive": kept("keras/use_ema.keras"),
    "tensorflow v2": kept("tensorflow/kinds.index", "tensorflow/kinds.data-00000-of-00001"),
    "tensorflow graph": kept("tensorflow/module.index", "tensorflow/module.data-00000-of-00001"),
    "tensorflow v1": kept("tensorflow/tf1_v1"),
    "flax": kept("jax/variables.msgpack"),
    "flax kinds": kept("jax/kinds.msgpack"),
    "orbax zarr": kept("jax/plain_zarr"),
    "orbax zarr3": kept("jax/plain_zarr3"),
    "orbax steps": kept("jax/steps"),
}
# What these say is verified: mutations of their bytes must not change it.
PROTECTED = frozenset(FORMATS) | {"own torch"}
_CORPUS = Path(__file__).resolve().parents[1] / "tests" / "corpus"


@dataclass
class Seed:
    """A good file, or set of files, that is mutated."""

    name: str
    path: Path
    contents: dict[Path, bytes] = field(default_factory=dict)
    said: dict[str, bytes] = field(default_factory=dict)

    def mutate(self, dice: random.Random) -> tuple[Path, bool]:
        """Write a mutation in the place of one file; say of which, and whether its checksums are the old ones."""
        part = dice.choice(list(self.contents))
        content, plain = mutated(part.name, self.contents[part], dice)
        part.write_bytes(content)
        return part, plain


def opened(path: Path) -> str:
    """What reading everything says: "" where it is read, else the error of polyak; other errors are finds."""
    try:
        held = dialects.interpret(files.read(path))
        for name in held:
            _ = held[name]
        held.manifest.to_json()
    except PolyakError:
        return "refused"
    except BaseException as error:  # the point of it: no other error may come out
        frame = next((f for f in reversed(traceback.extract_tb(error.__traceback__)) if "polyak" in f.filename), None)
        where = f"{Path(frame.filename).name}:{frame.lineno}" if frame else "?"
        return f"FIND {type(error).__name__} at {where}: {error!s:.120}"
    return ""


class Fuzzer:
    """Trials by their number, on seeds in a directory; the same number is the same mutation in every process."""

    def __init__(self, directory: Path, finds: Path | None = None) -> None:
        self.directory = directory
        self.finds = finds
        self.seeds: list[Seed] = []

    def prepare(self) -> None:
        """Make the seeds."""
        for name, build in READERS.items():
            place = self.directory / name
            place.mkdir()
            (self.directory / f"{name}.path").write_text(str(build(place)))

    def warm(self) -> None:
        """In each child: copies of the seeds, to be mutated, and all that is loaded once."""
        own = self.directory / f"child-{os.getpid()}"
        self.seeds = []
        for name in READERS:
            shutil.copytree(self.directory / name, own / name)
            opens = Path((self.directory / f"{name}.path").read_text())
            path = own / opens.relative_to(self.directory)
            seed = Seed(name, path, {p: p.read_bytes() for p in parts(path)})
            seed.said = read(path)
            self.seeds.append(seed)

    def trial(self, number: int) -> str:
        dice = random.Random(SEED + number)
        seed = dice.choice(self.seeds)
        part, plain = seed.mutate(dice)
        said = opened(seed.path)
        if not said and plain and seed.name in PROTECTED and read(seed.path) != seed.said:
            said = "FIND a silent difference"
        if said.startswith("FIND"):
            said = f"{said} [{seed.name}, {part.name}]"
        self._keep(number, seed, said)
        part.write_bytes(seed.contents[part])
        return said

    def keep_by_number(self, number: int) -> None:
        """Keep the mutation that ended a process."""
        self.warm()
        dice = random.Random(SEED + number)
        seed = dice.choice(self.seeds)
        seed.mutate(dice)
        self._keep(number, seed, "FIND")

    def _keep(self, number: int, seed: Seed, said: str) -> None:
        if self.finds is not None and said.startswith("FIND"):
            place = self.finds / f"{number}-{seed.name.replace(' ', '-')}"
            root = seed.path if seed.path.is_dir() else seed.path.parent
            shutil.copytree(root, place / seed.path.name if seed.path.is_dir() else place, dirs_exist_ok=True)
            (self.finds / f"{place.name}.txt").write_text(f"{seed.path.name}\n{said}\n")


def fuzz(count: int, finds: str | None = None) -> Outcome:
    """So many mutations over all readers."""
    with tempfile.TemporaryDirectory() as directory:
        fuzzer = Fuzzer(Path(directory), Path(finds) if finds else None)
        apart(fuzzer.prepare)
        seen = list(verdicts(count, fuzzer.trial, fuzzer.warm))
        if finds:
            for number, verdict in enumerate(seen):
                if verdict.excess:
                    apart(lambda number=number: fuzzer.keep_by_number(number))
    return _outcome(seen, "mutations")


def _outcome(seen: list[Verdict], what: str) -> Outcome:
    broken = [f"number {i}: {v.said}" for i, v in enumerate(seen) if v.said.startswith("FIND")]
    broken += [f"number {i}: {v.excess}" for i, v in enumerate(seen) if v.excess]
    said = Counter("refused" if v.said == "refused" else "read" for v in seen)
    slowest, largest = max(v.seconds for v in seen), max(v.growth for v in seen)
    figure = (
        f"{len(broken)} finds in {len(seen):,} {what} ({said['refused']:,} refused, the others read); "
        f"at most {slowest:.2f} s and {largest >> 20} MiB"
    )
    return Outcome(len(seen), tuple(broken), figure)


class Guided(Fuzzer):
    """Keeps mutations that reach lines of the readers that none has reached, and mutates them further."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.lines: set[tuple[str, int]] = set()
        self.pool: list[tuple[int, Path, bytes]] = []

    def trial(self, number: int) -> str:
        dice = random.Random(SEED - 1 - number)
        if self.pool and dice.random() < 0.6:
            place, part, content = dice.choice(self.pool)
        else:
            place = dice.randrange(len(self.seeds))
            part = dice.choice(list(self.seeds[place].contents))
            content = self.seeds[place].contents[part]
        seed = self.seeds[place]
        changed, _ = mutated(part.name, content, dice)
        part.write_bytes(changed)
        before = len(self.lines)
        said = self._traced(seed.path)
        if len(self.lines) > before:
            self.pool.append((place, part, changed))
        part.write_bytes(seed.contents[part])
        return f"{said} [{seed.name}, {part.name}]" if said.startswith("FIND") else said

    def _traced(self, path: Path) -> str:
        sys.settrace(self._trace)
        try:
            return opened(path)
        finally:
            sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if "/polyak/" in frame.f_code.co_filename else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line


def guided(count: int) -> Outcome:
    """So many mutations, guided by the lines that they reach; one child runs them all."""
    with tempfile.TemporaryDirectory() as directory:
        fuzzer = Guided(Path(directory))
        apart(fuzzer.prepare)
        seen = list(verdicts(count, fuzzer.trial, fuzzer.warm, batch=count))
    unhurried = [Verdict(v.said, v.ended, 0.0 if v.seconds < 30 else v.seconds, v.growth) for v in seen]
    return _outcome(unhurried, "mutations guided by the lines that they reach")


def kept_finds() -> Iterator[Path]:
    """What fuzzing has found, as files; each note says what is to be opened."""
    for note in sorted(_CORPUS.glob("*.txt")):
        yield note.with_suffix("") / note.read_text().splitlines()[0]


def _in_fresh(name: str) -> Callable[[int], Outcome]:
    return lambda count: in_fresh_process(f"torture.fuzz:{name}", count)


CAMPAIGNS = (
    Campaign("23", "no mutation of a file crashes, hangs, bloats or deceives a reader", _in_fresh("fuzz"), 600, 20_000),
    Campaign("23b", "nor do mutations that are guided to lines not yet reached", _in_fresh("guided"), 150, 4000),
)

if __name__ == "__main__":
    Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)
    found = fuzz(int(sys.argv[1]), sys.argv[2])
    print(found.figure, *found.broken, sep="\n")
