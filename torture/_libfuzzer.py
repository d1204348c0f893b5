"""The readers under libFuzzer, whose inputs change as ``torture.mutations`` has it and stay where they reach new code.

``make fuzz`` installs atheris beside the tools to compare with and runs this: ``python -m torture._libfuzzer [SECONDS]
[DIRECTORY]``. Every find is written to the directory, told, and not the end of it; libFuzzer itself ends where an input
takes more than ten seconds or two GiB. Inputs are the number of a sample, that of one of its files, and its content.
"""

from __future__ import annotations

import importlib
import pkgutil
import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["polyak"]):
    from polyak import dialects, files

    for package in (files, dialects):
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(found.name)  # those, too, that a reader loads when it needs them
    from torture.children import apart
    from torture.fuzz import Fuzzer, Seed, opened
    from torture.mutations import mutated

_HEAD = 2  # bytes before a content


class Target:
    """What libFuzzer calls, over copies of all samples in a directory of its own."""

    def __init__(self, directory: Path, finds: Path) -> None:
        fuzzer = Fuzzer(directory)
        apart(fuzzer.prepare)
        fuzzer.warm()
        self.seeds: list[Seed] = fuzzer.seeds
        self.finds = finds
        self.seen: set[str] = set()

    def samples(self, corpus: Path) -> None:
        """The unchanged files, as inputs."""
        for number, seed in enumerate(self.seeds):
            for at, (path, content) in enumerate(seed.contents.items()):
                (corpus / f"{number}-{at}-{path.name}").write_bytes(bytes([number, at]) + content)

    def tried(self, data: bytes) -> None:
        seed, part = self._meant(data)
        part.write_bytes(data[_HEAD:])
        said = opened(seed.path)
        part.write_bytes(seed.contents[part])
        where = said.partition(":")[0]
        if said.startswith("FIND") and where not in self.seen:
            self.seen.add(where)
            print(said, f"[{seed.name}, {part.name}]", file=sys.stderr, flush=True)
            (self.finds / f"{len(self.seen)}-{seed.name.replace(' ', '-')}-{part.name}").write_bytes(data[_HEAD:])

    def changed(self, data: bytes, most: int, number: int) -> bytes:
        """A mutation that knows the format, or, one time in four, one of libFuzzer's own."""
        dice = random.Random(number)
        if len(data) < _HEAD or not dice.randrange(4):
            return atheris.Mutate(data, most)
        _, part = self._meant(data)
        try:
            content, _ = mutated(part.name, data[_HEAD:], dice)
        except Exception:  # it is made for files that are whole, and this one has been mutated before
            return atheris.Mutate(data, most)
        return (data[:_HEAD] + content)[:most]

    def _meant(self, data: bytes) -> tuple[Seed, Path]:
        head = data[:_HEAD].ljust(_HEAD, b"\0")
        seed = self.seeds[head[0] % len(self.seeds)]
        return seed, list(seed.contents)[head[1] % len(seed.contents)]


def main(seconds: str = "60", finds: str = "build/finds") -> None:
    Path(finds).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="polyak-") as name:
        corpus, directory = Path(name, "corpus"), Path(name, "samples")
        corpus.mkdir()
        directory.mkdir()
        target = Target(directory, Path(finds))
        target.samples(corpus)
        limits = [f"-max_total_time={seconds}", "-max_len=1000000", "-timeout=10", "-rss_limit_mb=2048"]
        options = ["polyak", *limits, "-print_final_stats=1", "-len_control=0", str(corpus)]
        atheris.Setup(options, target.tried, custom_mutator=target.changed)
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
