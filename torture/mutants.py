"""Mutation test of the core: each check, bound, lock, fsync and rename is removed, and a test must fail.

Row 28 of docs/reliability.md. ``python -m torture.mutants [WORD]`` tries all mutants whose module has the word in
its name, and prints those that survive. A mutant is a copy of the sources in which one statement is gone or one
condition is false; the tests of its module run over it, in a process that finds the copy first.
"""

from __future__ import annotations

import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torture.campaign import Campaign, Outcome

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "src" / "polyak"
# Calls that are made for what they do: durability, locks, and checks in functions of their own.
_CALLS = (
    "fsync", "sync", "sync_tree", "sync_directory", "replace", "rename", "flush", "flock", "acquire", "release",
    "fchmod", "hand_over", "sweep", "check", "charge", "finish",
)  # fmt: skip
_CHECKS = ("refuse", "_refuse", "_check", "_verify")
_TIMEOUT = 300
# The tests that stand for a module; the first that fails ends the run.
_READERS = ("tests/attacks/test_attacks.py", "tests/attacks/test_damage.py")
TESTS: Mapping[str, tuple[str, ...]] = {
    "files/atomic.py": ("tests/files/test_atomic.py", "tests/reliability/test_durability.py"),
    "files/bundle_entries.py": ("tests/files/test_tensorbundle.py",),
    "files/flax_msgpack.py": ("tests/files/test_flax_msgpack.py",),
    "files/flax_msgpack_tree.py": ("tests/files/test_flax_msgpack.py",),
    "files/hdf5_stream.py": (
        "tests/files/test_hdf5_stream.py",
        "tests/reliability/test_integrity.py::test_what_fuzzing_has_found_is_refused_or_read",
    ),
    "files/json_cursor.py": ("tests/files/test_json_cursor.py", "tests/files/test_safetensors.py"),
    "files/keras_archive.py": ("tests/files/test_keras_h5.py",),
    "files/keras_h5.py": ("tests/files/test_keras_h5.py", "tests/files/test_keras_write.py"),
    "files/keras_hdf5.py": ("tests/files/test_keras_h5.py",),
    "files/keras_shards.py": ("tests/files/test_keras_h5.py",),
    "files/npz.py": ("tests/files/test_npz.py",),
    "files/positioned.py": ("tests/files/test_positioned.py",),
    "files/protobuf.py": ("tests/files/test_protobuf.py",),
    "files/safetensors.py": ("tests/files/test_safetensors.py",),
    "files/safetensors_sharded.py": ("tests/files/test_safetensors_sharded.py",),
    "files/sstable.py": ("tests/files/test_sstable.py",),
    "files/tensorbundle.py": ("tests/files/test_tensorbundle.py",),
    "files/torch_globals.py": ("tests/files/test_torch_pt.py",),
    "files/torch_legacy.py": ("tests/files/test_torch_pt.py",),
    "files/torch_pickle.py": ("tests/files/test_torch_pt.py",),
    "files/torch_storage.py": ("tests/files/test_torch_pt.py",),
    "files/torch_tree.py": ("tests/files/test_torch_pt.py",),
    "files/torch_zip.py": ("tests/files/test_torch_pt.py", "tests/files/test_torch_write.py"),
    "files/zips.py": ("tests/files/test_zips.py", "tests/files/test_npz.py"),
    "manifest.py": ("tests/test_manifest.py", "tests/files/test_safetensors.py"),
    "snapshot.py": ("tests/test_snapshot.py",),
    "transfer/commit.py": ("tests/transfer/test_commit.py",),
    "averaging/kernel.py": ("tests/averaging/test_kernel.py",),
    "frameworks/stateful.py": ("tests/frameworks/test_update.py", "tests/frameworks/test_applied.py"),
}
# Modules of which every mutant was seen to be noticed. The campaign draws from these; the command tries the others.
CLEAN = ("files/zips.py", "files/json_cursor.py", "files/hdf5_stream.py", "averaging/kernel.py")
# Mutants that change nothing that can be seen, by module and text of the statement, with the reason.
EQUIVALENT: Mapping[tuple[str, str], str] = {}


@dataclass(frozen=True)
class Mutant:
    """A module with one statement changed.

    Attributes:
        module: its path below src/polyak.
        line: where the statement is.
        text: its first line.
        source: the module with the change.
    """

    module: str
    line: int
    text: str
    source: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.text}"


def mutants(module: str) -> Iterator[Mutant]:
    """All mutants of a module, in the order of its lines."""
    source = (SOURCES / module).read_text()
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        for statement in ast.iter_child_nodes(node):
            if isinstance(statement, ast.stmt) and (changed := _changed(statement, lines)) is not None:
                text = lines[statement.lineno - 1].strip()
                yield Mutant(module, statement.lineno, text, changed)


def _changed(statement: ast.stmt, lines: Sequence[str]) -> str | None:
    """The module with a check that never finds anything, or without a call; None for other statements."""
    if isinstance(statement, ast.If) and any(isinstance(s, ast.Raise) for s in statement.body):
        return _condition_off(statement, lines)
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call) and _is_effect(statement.value):
        return _gone(statement, lines)
    return None


def _is_effect(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in _CALLS or name.startswith(_CHECKS)


def _condition_off(statement: ast.If, lines: Sequence[str]) -> str:
    """The condition is still asked for, because it may name a value, and the answer is no."""
    test = statement.test
    assert test.end_lineno is not None
    changed = list(lines)
    end = changed[test.end_lineno - 1]
    changed[test.end_lineno - 1] = (
        end[: _column(end, test.end_col_offset)] + ") and False" + end[_column(end, test.end_col_offset) :]
    )
    start = changed[test.lineno - 1]
    at = _column(start, test.col_offset)
    changed[test.lineno - 1] = start[:at] + "(" + start[at:]
    return "".join(changed)


def _column(line: str, offset: int) -> int:
    """An offset of the syntax tree, which counts bytes, in characters."""
    return len(line.encode()[:offset].decode())


def _gone(statement: ast.stmt, lines: Sequence[str]) -> str:
    assert statement.end_lineno is not None
    indent = lines[statement.lineno - 1][: _column(lines[statement.lineno - 1], statement.col_offset)]
    changed = list(lines)
    changed[statement.lineno - 1 : statement.end_lineno] = [f"{indent}pass\n"]
    return "".join(changed)


class Copy:
    """A copy of the sources, in which one module at a time is a mutant."""

    def __init__(self, directory: Path) -> None:
        self.package = directory / "polyak"
        shutil.copytree(SOURCES, self.package, ignore=shutil.ignore_patterns("__pycache__"))
        self._environment = {**os.environ, "PYTHONPATH": f"{directory}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}

    def survives(self, mutant: Mutant) -> bool:
        """Whether all tests of the module pass over it."""
        place = self.package / mutant.module
        kept = place.read_text()
        place.write_text(mutant.source)
        try:
            return self.passes(mutant.module)
        finally:
            place.write_text(kept)

    def passes(self, module: str) -> bool:
        asked = [test for test in TESTS[module] if (ROOT / test.partition("::")[0]).exists()]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-W", "ignore", *asked]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=self._environment, capture_output=True, timeout=_TIMEOUT, check=False
            )
        except subprocess.TimeoutExpired:
            return False  # it was noticed: a test went on for ever
        return done.returncode == 0


def tried(chosen: Sequence[Mutant]) -> Iterator[tuple[Mutant, bool]]:
    """Each mutant, and whether it survives."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Copy(Path(directory))
        for module in {m.module: None for m in chosen}:
            if not copy.passes(module):
                raise RuntimeError(f"the tests of {module} fail without a change: {TESTS[module]}")
            for mutant in (m for m in chosen if m.module == module):
                yield mutant, copy.survives(mutant)


def core(word: str = "") -> list[Mutant]:
    """All mutants of the core whose module has the word in its name, but those that are known to change nothing."""
    found = [m for module in TESTS if word in module for m in mutants(module)]
    return [m for m in found if (m.module, m.text) not in EQUIVALENT]


def some(count: int) -> Outcome:
    """So many mutants, drawn anew for each version of the sources."""
    every = [m for m in core() if m.module in CLEAN]
    chosen = sorted(random.Random(len(every)).sample(every, min(count, len(every))), key=lambda m: m.module)
    survivors = [str(m) for m, survived in tried(chosen) if survived]
    figure = f"{len(chosen) - len(survivors)} of {len(chosen)} noticed, drawn from {len(every)}"
    return Outcome(len(chosen), tuple(survivors), figure)


CAMPAIGNS = (Campaign("28", "no check, bound, lock, fsync or rename can be removed unnoticed", some, 1, 12),)


def main(word: str) -> None:
    chosen = core(word)
    killed = 0
    for mutant, survived in tried(chosen):
        killed += not survived
        print(json.dumps({"mutant": str(mutant), "survived": survived}), flush=True)
    print(f"{killed} of {len(chosen)} noticed")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
