"""Mutation test of the core: each check, bound, lock, fsync and rename is removed, and a test must fail.

Row 28 of docs/reliability.md. ``python -m torture.mutants [WORD ...]`` tries all mutants whose module has one of the
words in its name, and prints which survive. A mutant is a copy of the sources in which one statement is gone or one
condition is false. The tests of its module run without a change first, which shows which of them its statement matters
to; over the mutant those run alone.
"""

from __future__ import annotations

import ast
import compileall
import py_compile
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from torture.campaign import Campaign, Outcome
from torture.core import BACKENDS, EQUIVALENT, TESTS
from torture.warm import ROOT, Ran, Warm

SOURCES = ROOT / "src" / "polyak"
# Calls that are made for what they do: durability, locks, and checks in functions of their own.
_CALLS = (
    "fsync", "sync", "sync_tree", "replace", "rename", "link", "flush", "flock", "acquire", "release", "hold", "share",
    "enter_context", "callback", "fchmod", "hand_over", "sweep", "_sweep_data", "_settle", "remove",
    "remove_if_nobodys", "check", "charge", "finish", "_put_back", "raise_refused",
    "synchronise", "close_to_others", "_reserve", "_drop_inherited",
)  # fmt: skip
_CHECKS = ("refuse", "_refuse", "_check", "_verify")
# What holds others off for as long as a context lasts.
_GUARDS = (
    "still",
    "_turn",
    "lock",
    "_lock",
    "_LOOKING",
    "moment",
    "moment_of",
    "together",
    "unbroken",
    "_gone_on_failure",
)
_NO_GUARD = "__import__('contextlib').nullcontext()"


@dataclass(frozen=True)
class Mutant:
    """A module with one statement changed.

    Attributes:
        module: its path below src/polyak.
        function: what the statement is in.
        line: where it is.
        text: its first line.
        source: the module with the change.
        shown: lines of which a test executes one, if the change can matter to it.
    """

    module: str
    function: str
    line: int
    text: str
    source: str
    shown: range

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.text}"

    @property
    def name(self) -> tuple[str, str, str]:
        """The same for as long as the statement is."""
        return self.module, self.function, self.text


def mutants(module: str) -> list[Mutant]:
    """All mutants of a module, in the order of its lines."""
    source = (SOURCES / module).read_text()
    tree, lines = ast.parse(source), source.splitlines(keepends=True)
    functions = {line: f.name for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for line in _lines(f)}
    found = []
    for node in ast.walk(tree):
        for place, text, shown in _changes(node, source):
            at, changed = place.lineno, _with(lines, place, text)
            found.append(Mutant(module, functions.get(at, ""), at, lines[at - 1].strip(), changed, _lines(shown)))
    return sorted(found, key=lambda m: m.line)


def _changes(node: ast.AST, source: str) -> Iterator[tuple[ast.expr, str, ast.AST]]:
    """What to change in a node, to what, and what is executed where that matters."""
    if isinstance(node, ast.If) and any(isinstance(s, ast.Raise) for s in node.body):
        # The condition is still asked for, because it may name a value, and the answer is no.
        yield node.test, f"({ast.get_source_segment(source, node.test)}) and False", node.body[0]
    elif isinstance(node, ast.Expr) and _name(node.value, ast.Call).startswith(_CHECKS):
        yield node.value, "None", node
    elif isinstance(node, ast.Expr | ast.Lambda):
        called = node.value if isinstance(node, ast.Expr) else node.body
        if _name(called, ast.Call) in _CALLS:
            yield called, "None", called
    elif isinstance(node, ast.withitem) and node.optional_vars is None and _name(node.context_expr) in _GUARDS:
        yield node.context_expr, _NO_GUARD, node.context_expr


def _name(called: ast.expr, kind: type[ast.expr] = ast.expr) -> str:
    """The last name of what is called, or used without a call."""
    if not isinstance(called, kind):
        return ""
    used = called.func if isinstance(called, ast.Call) else called
    return used.attr if isinstance(used, ast.Attribute) else getattr(used, "id", "")


def _lines(node: ast.AST) -> range:
    return range(node.lineno, node.end_lineno + 1)  # type: ignore[attr-defined]


def _with(lines: Sequence[str], place: ast.expr, text: str) -> str:
    """The module with a text in the place of an expression; the syntax tree counts columns in bytes."""
    assert place.end_lineno is not None
    assert place.end_col_offset is not None
    first, last = lines[place.lineno - 1].encode(), lines[place.end_lineno - 1].encode()
    joined = first[: place.col_offset].decode() + text + last[place.end_col_offset :].decode()
    return "".join([*lines[: place.lineno - 1], joined, *lines[place.end_lineno :]])


class Trials:
    """A copy of the sources, in which one module at a time is a mutant, and the tests that run over it.

    Args:
        backend: what Keras runs on in the tests.
    """

    def __init__(self, backend: str = "tensorflow") -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="polyak-")
        self._package = Path(self._directory.name) / "polyak"
        shutil.copytree(SOURCES, self._package, ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(self._package, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
        self._warm = Warm(Path(self._directory.name), backend)
        self._whole = Ran(True, {}, {})

    def __enter__(self) -> Self:
        self._warm.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._warm.__exit__(kind, error, at)
        self._directory.cleanup()

    def prepare(self, chosen: Iterable[Mutant]) -> None:
        """Run all tests without a change. Raises RuntimeError if one fails."""
        traced: dict[str, set[int]] = {}
        for m in chosen:
            traced.setdefault(str(self._package / m.module), set()).update(m.shown)
        modules = {m.module: None for m in chosen}
        tests = list(dict.fromkeys(test for module in modules for test in TESTS[module]))
        self._whole = self._warm.run(tests, traced=traced)
        if not self._whole.passed:
            raise RuntimeError(f"a test fails without a change: {self._whole.failed}")

    def noticed(self, mutant: Mutant) -> str:
        """The first test of the module that fails over it; nothing if it survives them all."""
        place = self._package / mutant.module
        kept = place.read_text()
        place.write_text(mutant.source)
        try:
            return next(filter(None, (self._failed(*asked) for asked in self._asked(mutant))), "")
        finally:
            place.write_text(kept)

    def _asked(self, mutant: Mutant) -> Iterator[tuple[list[str], list[str]]]:
        """File by file the tests that its statement matters to, the quickest first; then those that are named."""
        name, shown = str(self._package / mutant.module), set(mutant.shown)
        for file in (test for test in TESTS[mutant.module] if "::" not in test):
            reached = {test: lines for test, lines in self._whole.reached.items() if test.startswith(f"{file}::")}
            found = (test for test, lines in reached.items() if shown.intersection(lines.get(name, ())))
            if only := sorted(found, key=lambda test: self._whole.seconds[test]):
                yield [file], only
        if named := [test for test in TESTS[mutant.module] if "::" in test]:
            yield named, []

    def _failed(self, tests: list[str], only: list[str]) -> str:
        known = self._whole.seconds
        usual = sum(known[test] for test in only or (t for t in known if t.startswith(tuple(tests))))
        return self._warm.run(tests, only, patience=30 + 3 * usual).failed


def survivors(chosen: Sequence[Mutant], tell: Callable[[Mutant, str], object] = lambda mutant, test: None) -> list[str]:
    """The mutants that no test notices, tried two at a time; of each it is told which test noticed it, if one did."""

    def tried(half: Sequence[Mutant]) -> Iterator[str]:
        for backend in {_backend(m): None for m in half}:
            on_it = [m for m in half if _backend(m) == backend]
            with Trials(backend) as trials:
                trials.prepare(on_it)
                for mutant in on_it:
                    tell(mutant, test := trials.noticed(mutant))
                    if not test:
                        yield str(mutant)

    with ThreadPoolExecutor(2) as pool:
        return [found for half in pool.map(lambda half: list(tried(half)), _halves(chosen)) for found in half]


def _backend(mutant: Mutant) -> str:
    return BACKENDS.get(mutant.name) or BACKENDS.get(mutant.module, "tensorflow")


def core(modules: Collection[str]) -> list[Mutant]:
    """All mutants of these modules, but those that are known to change nothing."""
    found = [m for module in modules for m in mutants(module)]
    return [m for m in found if m.name not in EQUIVALENT]


def _halves(chosen: Sequence[Mutant]) -> list[list[Mutant]]:
    """Two parts of about equal size; a module is in one of them."""
    halves: list[list[Mutant]] = [[], []]
    for module in {m.module: None for m in chosen}:
        min(halves, key=len).extend(m for m in chosen if m.module == module)
    return [half for half in halves if half]


def some(modules: Collection[str], count: int) -> Outcome:
    """So many mutants of these modules, or all there are; the same ones for the same sources."""
    every = core(modules)
    chosen = random.Random(len(every)).sample(every, min(count, len(every)))
    found = survivors(chosen)
    figure = f"{len(chosen) - len(found)} of {len(chosen)} noticed, of {len(every)} there are"
    return Outcome(len(chosen), tuple(found), figure)


_KEEPING = [m for m in TESTS if m.startswith(("files/", "contents", "forks", "manifest", "saving", "snapshot"))]
_MEANING = [m for m in TESTS if m.startswith(("averaging/", "transfer/", "renaming", "weights"))]
_USING = [m for m in TESTS if m not in (*_KEEPING, *_MEANING)]
CAMPAIGNS = (
    Campaign(
        "28a", "No check, bound, lock, fsync or rename can be removed unnoticed", partial(some, _KEEPING), 1, 1000
    ),
    Campaign("28b", "Nor can one of rules, matching, layouts and transfers", partial(some, _MEANING), 1, 1000),
    Campaign("28c", "Nor can one of verbs, means and live models", partial(some, _USING), 1, 1000),
)


def main(words: Sequence[str]) -> None:
    chosen = core([module for module in TESTS if not words or any(word in module for word in words)])
    begun = time.monotonic()

    def tell(mutant: Mutant, test: str) -> None:
        print(f"{time.monotonic() - begun:4.0f} s", mutant, "->", test or "SURVIVES", flush=True)

    found = survivors(chosen, tell)
    print(f"{len(chosen) - len(found)} of {len(chosen)} noticed", *found, sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
