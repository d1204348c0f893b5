"""The tree of a PyTorch file as flat names: tensors, plain facts, and what is not read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from polyak.errors import DamagedFile
from polyak.files.limits import FREE_STEPS
from polyak.files.torch_globals import NotRead, View
from polyak.files.torch_values import Stub

_DEEPEST = 48
_LONGEST_STEP = 4096
_LETTERS = 64  # of a path that count as one value: each leaf has a path of its own
_LONGEST_TEXT = 65_536
_WIDEST = 2**63
_ROOT = "tensor"
_MODULE = ("_parameters", "_buffers", "_modules")
Pair = tuple[Any, Any]


@dataclass
class Tree:
    """The leaves of a tree by their path, its steps joined with slashes."""

    origin: str
    most: int = FREE_STEPS
    views: dict[str, View] = field(default_factory=dict)
    facts: dict[str, object] = field(default_factory=dict)
    not_read: dict[str, str] = field(default_factory=dict)
    nodes: int = 0

    def add(self, value: Any, path: str = "", depth: int = 0) -> None:
        """Enter a value and all below it. Raises DamagedFile."""
        self._count(path)
        if depth > _DEEPEST:
            raise DamagedFile(f"{self.origin}: {path[:80]!r}: expected at most {_DEEPEST} levels, received more")
        if isinstance(value, View):
            self._enter(path or _ROOT, value)
        elif isinstance(value, NotRead):
            self.not_read[path or _ROOT] = value.what
        elif isinstance(value, (str, int, float)):
            self._count(value if isinstance(value, str) else "")
            self._add_fact(path, value)
        else:
            for step, below in self._children(value):
                name = _named(step)
                if name is not None:
                    self.add(below, f"{path}/{name}" if path else name, depth + 1)
                elif isinstance(below, View):
                    self.not_read[f"{path}/?"] = "a tensor under a key that is no name"

    def _children(self, value: Any) -> Iterator[Pair]:
        if isinstance(value, Stub):
            if _is_module(value):
                yield from self._module_leaves(value, "", 0)
                return
            yield from value.items.items()
            yield from enumerate(value.entries)
            value = value.state if isinstance(value.state, dict) else None  # others are forms of their own
        if isinstance(value, dict):
            yield from value.items()
        elif isinstance(value, (list, tuple)):
            yield from enumerate(value)

    def _module_leaves(self, module: Stub, prefix: str, depth: int) -> Iterator[Pair]:
        """The tensors of a pickled module, by the names that its ``state_dict`` gives them."""
        self._count(prefix)
        if depth > _DEEPEST:
            raise DamagedFile(f"{self.origin}: {prefix[:80]!r}: expected at most {_DEEPEST} levels, received more")
        own, buffers, inner = (_as_dict(module.state.get(part)) for part in _MODULE)
        hidden = _members(module.state.get("_non_persistent_buffers_set"))
        for name, value in [*own.items(), *((k, v) for k, v in buffers.items() if k not in hidden)]:
            if _named(name) is not None:
                yield f"{prefix}{name}", value
        for name, value in inner.items():
            if _is_module(value) and _named(name) is not None:
                yield from self._module_leaves(value, f"{prefix}{name}.", depth + 1)

    def _enter(self, path: str, view: View) -> None:
        if path in self.views:
            raise DamagedFile(f"{self.origin}: expected one array {path[:80]!r}, received two")
        self.views[path] = view

    def _add_fact(self, path: str, value: object) -> None:
        too_wide = isinstance(value, int) and abs(value) >= _WIDEST
        too_long = isinstance(value, str) and (len(value) > _LONGEST_TEXT or not _is_text(value))
        if not too_wide and not too_long:
            self.facts[path] = value

    def _count(self, path: str) -> None:
        self.nodes += 1 + len(path) // _LETTERS
        if self.nodes > self.most:
            raise DamagedFile(f"{self.origin}: expected at most {self.most:,} values, received more")


def _named(step: Any) -> str | None:
    """A step of a path as text; None for keys that are no names, or no sensible ones."""
    if isinstance(step, (bool, int, float)) or step is None:
        return str(step)
    return step if isinstance(step, str) and len(step) <= _LONGEST_STEP and _is_text(step) else None


def _is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: pickles may hold halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_module(value: Any) -> bool:
    return isinstance(value, Stub) and isinstance(value.state, dict) and all(part in value.state for part in _MODULE)


def _as_dict(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _members(value: Any) -> frozenset[str]:
    """The texts in a set, which is an inert note here."""
    if not isinstance(value, Stub):
        return frozenset()
    given = value.args[0] if value.args and isinstance(value.args[0], list) else []
    return frozenset(v for v in (*given, *value.entries) if isinstance(v, str))
