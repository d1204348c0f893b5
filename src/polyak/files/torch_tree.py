"""The tree of a PyTorch file as flat names: tensors, plain facts, what is not read, and what else is there.

What has a name is walked: containers, attributes of objects, modules as their ``state_dict``, those of TorchScript,
too. A tensor elsewhere may be anything, so it is no weight; but whoever converts the file is told of it, as of arrays
that no tensor describes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from polyak.contents import SAME_PATH
from polyak.errors import DamagedFile, UnknownFormat
from polyak.files.limits import FREE_STEPS
from polyak.files.torch_globals import NotRead, Storage, View
from polyak.files.torch_values import Name, Stub

_DEEPEST = 48
LONGEST_STEP = 4096
_LETTERS = 64  # of a path that count as one value: each leaf has a path of its own
_LONGEST_TEXT = 65_536
_WIDEST = 2**63
_ROOT = "tensor"
_NAMELESS = "?"
_HERE = object()  # in place of a step: the parts of an object have its path
_SCRIPT = "__torch__."  # before the name of a module's class that TorchScript made
_MODULE = ("_parameters", "_buffers", "_modules")
# What makes numbers of bytes that no tensor describes.
_ARRAYS = {
    "numpy.core.multiarray._reconstruct": "a NumPy array",
    "numpy._core.multiarray._reconstruct": "a NumPy array",
    "numpy.core.numeric._frombuffer": "a NumPy array",
    "numpy._core.numeric._frombuffer": "a NumPy array",
    "numpy.ma.core._mareconstruct": "a masked NumPy array",
    "array.array": "an array of Python",
    "array._array_reconstructor": "an array of Python",
    "jax._src.array._reconstruct_array": "an array of JAX",
    "torch.storage._load_from_bytes": "a storage in a file of its own",
}
Pair = tuple[Any, Any]


@dataclass(frozen=True, slots=True)
class _Way:
    """How a search came to a value, so that a path is made only where something is found."""

    above: _Way | None
    step: str
    depth: int = 0

    def to(self, step: Any) -> _Way:
        """One step further; none beyond the depth to which weights are read, which keeps paths short."""
        if step is _HERE or self.depth > _DEEPEST:
            return self
        name = _named(step)
        return _Way(self, _NAMELESS if name is None else name, self.depth + 1)

    def steps(self) -> list[str]:
        found: list[str] = []
        way: _Way | None = self
        while way is not None:
            found.append(way.step)
            way = way.above
        return found[::-1]


@dataclass
class Tree:
    """The leaves of a tree by their path, its steps joined with slashes."""

    origin: str
    most: int = FREE_STEPS
    views: dict[str, View] = field(default_factory=dict)
    facts: dict[str, object] = field(default_factory=dict)
    not_read: dict[str, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    nodes: int = 0
    _told: set[int] = field(default_factory=set, init=False)
    _paths: Counter[str] = field(default_factory=Counter, init=False)

    def add(self, value: Any, path: str = "") -> None:
        """Enter a value and all below it. Raises DamagedFile."""
        self._told.clear()  # identities, which objects of another value may have had
        self._walk(value, path, 0)
        self._search(value, path)

    def _walk(self, value: Any, path: str, depth: int) -> None:
        """Enter what has a name."""
        self._deeper(path, depth)
        if isinstance(value, View):
            self._enter(path or _ROOT, value)
        elif (what := _unread(value)) is not None:
            self._note(path or _ROOT, value, what)
        elif isinstance(value, (str, int, float)):
            self._count(value if isinstance(value, str) else "")
            self._add_fact(path, value)
        elif (other := _other(value)) is not None:
            self.others[path or _ROOT] = other
        else:
            for step, below in self._children(value):
                name = _named(step)
                if name is not None:
                    self._walk(below, f"{path}/{name}" if path else name, depth + 1)
                elif not isinstance(below, View):
                    self.others[f"{path}/{_NAMELESS}" if path else _NAMELESS] = "a value under a key that is no name"

    def _children(self, value: Any) -> Iterator[Pair]:
        if isinstance(value, Stub):
            if _is_module(value):
                yield from self._module_leaves(value, "", 0)
                return
            if value.name.startswith(_SCRIPT):
                yield from self._script_leaves(value, "", 0)
                return
            yield from value.items.items()
            yield from enumerate(value.entries)
            for attributes in _attributes(value):
                yield from attributes.items()
        elif isinstance(value, dict):
            yield from value.items()
        elif isinstance(value, (list, tuple)):
            yield from enumerate(value)

    def _search(self, root: Any, path: str) -> None:
        """Note the numbers that have no name: what an object was called with, or keeps in a form of its own.

        Each container is looked into once, so this takes no more steps than the pickle took, however it is nested.
        """
        seen, queue = {id(root)}, [(root, _Way(None, path))]
        for value, way in queue:
            for step, below in _parts(value):
                if _holds(below) and id(below) not in seen:
                    seen.add(id(below))
                    queue.append((below, way.to(step)))
                if id(below) not in self._told:
                    self._note_found(way, step, below)

    def _note_found(self, way: _Way, step: Any, value: Any) -> None:
        what = "a tensor" if isinstance(value, View) else _unread(value)
        if what is not None:
            steps = way.to(step).steps()
            where = " under a key that is no name" if _NAMELESS in steps else " within an object"
            path = "/".join(steps if steps[0] else steps[1:])
            self._note(path or _ROOT, value, what + (where if isinstance(value, View) else ""))

    def _note(self, path: str, value: Any, what: str) -> None:
        """Say what is not read; of several at one path each has its number."""
        self._count(path)
        self._told.add(id(value))
        self._paths[path] += 1
        self.not_read[path if self._paths[path] == 1 else f"{path}#{self._paths[path]}"] = what

    def _module_leaves(self, module: Stub, prefix: str, depth: int) -> Iterator[Pair]:
        """The tensors of a pickled module, by the names that its ``state_dict`` gives them."""
        self._deeper(prefix, depth)
        own, buffers, inner = (_as_dict(module.state.get(part)) for part in _MODULE)
        hidden = _members(module.state.get("_non_persistent_buffers_set"))
        for name, value in [*own.items(), *((k, v) for k, v in buffers.items() if k not in hidden)]:
            if _named(name) is not None:
                yield f"{prefix}{name}", value
        for name, value in inner.items():
            if _is_module(value) and _named(name) is not None:
                yield from self._module_leaves(value, f"{prefix}{name}.", depth + 1)

    def _script_leaves(self, module: Stub, prefix: str, depth: int) -> Iterator[Pair]:
        """What TorchScript keeps of a module, by the names that its ``state_dict`` gives: all are attributes there."""
        self._deeper(prefix, depth)
        for name, value in (pair for attributes in _attributes(module) for pair in attributes.items()):
            if _named(name) is None:
                continue
            if isinstance(value, Stub) and value.name.startswith(_SCRIPT):
                yield from self._script_leaves(value, f"{prefix}{name}.", depth + 1)
            else:
                yield f"{prefix}{name}", value

    def _deeper(self, path: str, depth: int) -> None:
        """Count a level, and refuse too many. Raises DamagedFile."""
        self._count(path)
        if depth > _DEEPEST:
            raise DamagedFile(f"{self.origin}: {path[:80]!r}: expected at most {_DEEPEST} levels, received more")

    def _enter(self, path: str, view: View) -> None:
        if path in self.views:
            raise UnknownFormat(
                f"{self.origin}: expected one array {path[:80]!r}, received two", hint=SAME_PATH.format(path=path[:80])
            )
        self.views[path] = view
        self._told.add(id(view))

    def _add_fact(self, path: str, value: object) -> None:
        too_wide = isinstance(value, int) and abs(value) >= _WIDEST
        too_long = isinstance(value, str) and (len(value) > _LONGEST_TEXT or not _is_text(value))
        if too_wide or too_long:
            self.others[path] = "a number of more than 64 bits" if too_wide else "a text that is too long, or none"
        else:
            self.facts[path] = value

    def _count(self, path: str) -> None:
        self.nodes += 1 + len(path) // _LETTERS
        if self.nodes > self.most:
            raise DamagedFile(f"{self.origin}: expected at most {self.most:,} values, received more")


def _named(step: Any) -> str | None:
    """A step of a path as text; None for keys that are no names, or no sensible ones."""
    if isinstance(step, (bool, int, float)) or step is None:
        return str(step)
    return step if isinstance(step, str) and len(step) <= LONGEST_STEP and _is_text(step) else None


def _unread(value: Any) -> str | None:
    """What a value is that holds numbers but is no tensor that can be read; None for all others."""
    if isinstance(value, NotRead):
        return value.what
    if isinstance(value, Storage):
        return "a storage without a tensor"
    return _ARRAYS.get(value.name) if isinstance(value, Stub) else None


def _other(value: Any) -> str | None:
    """What a value is that holds nothing with a name; None for containers, and for nothing at all."""
    if isinstance(value, Stub):
        known = value.items or value.entries or any(_attributes(value)) or _is_module(value)
        return None if known else f"an object: {value.name:.80}"
    if isinstance(value, Name):
        return f"a name: {value!s:.80}"
    return {bytes: "bytes", bytearray: "bytes", complex: "a complex number"}.get(type(value))


def _attributes(value: Stub) -> Iterator[dict[Any, Any]]:
    """The attributes of an object: its state, or a pair of that and its slots. Other states are forms of their own."""
    state = value.state
    pair = isinstance(state, tuple) and len(state) == 2 and all(isinstance(v, (dict, type(None))) for v in state)
    yield from (part for part in (state if pair else (state,)) if isinstance(part, dict))


def _holds(value: Any) -> bool:
    if isinstance(value, View):
        return value.attributes is not None
    return isinstance(value, (dict, list, tuple)) or (isinstance(value, Stub) and value.name not in _ARRAYS)


def _parts(value: Any) -> Iterator[Pair]:
    """All that a value holds, named or not. Only what lasts as long as the value, which identities ask for."""
    if isinstance(value, dict):
        yield from value.items()
        yield from ((key, key) for key in value if isinstance(key, Stub))
    elif isinstance(value, (list, tuple)):
        yield from enumerate(value)
    elif isinstance(value, View):
        yield _HERE, value.attributes
    elif isinstance(value, Stub):
        yield from ((_HERE, part) for part in (value.args, value.items, value.entries) if part)
        yield (_HERE if isinstance(value.state, dict) else "state", value.state)


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
