"""Snapshot: an immutable, lazy view of named arrays and of what they are."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from polyak.errors import DamagedFile, DtypeMismatch, MissingWeight, UnexpectedWeight, listed
from polyak.manifest import Manifest, State, Stored, choose_role, digest
from polyak.weights import Globs, Kind, Weight, is_floating, numpy_dtype, select, unmatched_globs

Array = NDArray[Any]
T = TypeVar("T")
# The sets of a role under other names, for objects that call the weights so.
Namings = Callable[[str], Iterable["Snapshot"]]
# A state, none, or how to read the present one of a live average.
Told = State | Callable[[], State | None] | None
Moment = Callable[[], AbstractContextManager[Any]]
_FRAMEWORKS = ("tensorflow", "keras", "tf_keras", "torch", "jax")


@dataclass(frozen=True, slots=True)
class Item:
    """One array.

    Attributes:
        role, weight: its role and its description.
        read: makes a copy, or an array that nobody else holds.
        digest: what its bytes must have, or "".
        view: the source's own memory, to be looked at within a moment; ``read`` where there is no such thing.
        home: where the array is kept, as ``Target.home`` says it of what can be written.
        measure: computes the digest of the source's bytes and holds little of them, or None.
        places: where TensorFlow's object graph of a Keras 3 model has it (see ``polyak.transfer.places``).
        called: the variable's own name beside that, with those of layers.
    """

    role: str
    weight: Weight
    read: Callable[[], Array]
    digest: str = ""
    view: Callable[[], Array] | None = None
    home: Callable[[], object] = object
    measure: Callable[[], str] | None = None
    places: tuple[str, ...] = ()
    called: str = ""


class Snapshot(Mapping[str, Array]):
    """Named arrays of a model, an average or a file; arrays are read when they are asked for.

    With one role, names are structural paths. With several, each name starts with its role
    (``average/encoder/kernel``); ``select(role=...)`` gives the view of one. Two snapshots are equal only if
    they are the same object: comparing arrays is a job of its own.

    Args:
        items: the arrays.
        states: for each role the state of its average, or None; or a function that reads the present one.
        origin: what errors call the source.
        integrity: how the bytes are protected ("xxh3-128", "crc32c", "none").
        written: the manifest that a file holds; it keeps the tool, the source and the versions that wrote it.
        moment: makes a context in which nothing of the source changes; ``copy`` and transfers read within one.

    Raises:
        DamagedFile: two arrays have one name.

    Example:
        >>> snap = Snapshot.from_arrays({"head/bias": np.zeros(3, np.float32)})
        >>> snap["head/bias"].shape
        (3,)
    """

    def __init__(
        self,
        items: Iterable[Item],
        states: Mapping[str, Told] | None = None,
        origin: str = "snapshot",
        integrity: str = "none",
        written: Manifest | None = None,
        moment: Moment = nullcontext,
    ) -> None:
        held = tuple(items)
        roles = tuple(dict.fromkeys([i.role for i in held] or states or ()))
        self.origin = origin
        self.integrity = integrity
        self.moment = moment
        self.namings: Namings = _no_others
        self._written = written
        self._states: dict[str, Told] = {role: (states or {}).get(role) for role in roles}
        self._items: dict[str, Item] = {}
        for item in held:
            name = item.weight.path if len(roles) == 1 else f"{item.role}/{item.weight.path}"
            if name in self._items:
                raise DamagedFile(f"{origin}: expected one weight {name!r}, received two")
            self._items[name] = item

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], role: str = "raw", state: State | None = None) -> Snapshot:
        """A snapshot of copies of the given arrays; trainable where floating-point, else counters.

        Raises:
            DtypeMismatch: a value is no array of numbers.
            UnexpectedWeight: a name is no text.
        """
        return cls((_held(path, value, role) for path, value in arrays.items()), {role: state}, origin="arrays")

    @property
    def roles(self) -> tuple[str, ...]:
        """What is held: "raw", "average", or "average:NAME" where there are several averages."""
        return tuple(self._states)

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Descriptions of the arrays, in their order; nothing is read."""
        return tuple(i.weight for i in self._items.values())

    @property
    def items_by_path(self) -> Mapping[str, Item]:
        """The items under their names."""
        return self._items

    @property
    def states(self) -> Mapping[str, Told]:
        """For each role its state, or how to read the present one: for snapshots that are made of this one."""
        return self._states

    @property
    def state(self) -> State | None:
        """Rule and counts of the one average that this snapshot holds, or None."""
        states = list(self._states.values())
        return _present(states[0]) if len(states) == 1 else None

    @property
    def manifest(self) -> Manifest:
        """What is known of the arrays, without reading them."""
        stored = tuple(Stored(name, i.role, i.weight, i.digest) for name, i in self._items.items())
        written = self._written or Manifest(tool(), {}, (), source=self.origin, versions=versions())
        roles = {role: _present(told) for role, told in self._states.items()}
        return msgspec.structs.replace(written, roles=roles, weights=stored, integrity=self.integrity)

    def written(self, weights: Iterable[Stored]) -> Manifest:
        """The manifest of a file of polyak's that holds these weights; what was beside the arrays is not in it."""
        return msgspec.structs.replace(
            self.manifest,
            tool=tool(),
            source=self.origin,
            versions=versions(),
            integrity="xxh3-128",
            weights=tuple(weights),
            unread={},
        )

    def select(self, role: str | None = None, include: Globs = "*", exclude: Globs = ()) -> Snapshot:
        """The arrays of one role whose paths match; a view, nothing is read.

        Raises:
            AmbiguousRole: several roles are held and ``role`` does not pick one.
            MissingWeight: a glob matches nothing.
        """
        chosen = choose_role(self._states, role, self.origin)
        of_role = [i for i in self._items.values() if i.role == chosen]
        paths = [i.weight.path for i in of_role]
        refuse_unmatched(paths, include, exclude, self.origin)
        kept = set(select(paths, include, exclude))
        items = (i for i in of_role if i.weight.path in kept)
        states = {chosen: self._states[chosen]}
        made = Snapshot(items, states, self.origin, self.integrity, self._written, self.moment)
        return made.also_named(self.namings) if len(kept) == len(of_role) else made

    def also_named(self, namings: Namings) -> Snapshot:
        """The same arrays, of which ``named_as`` may take each role under other names."""
        made = copy(self)
        made.namings = namings
        return made

    def named_as(self, paths: Iterable[str]) -> Snapshot:
        """Of one role: the first set under other names that has all of these, where it lacks some; else itself.

        A file of ``AveragedModel`` has ``module.conv.weight`` and a count, which such an object takes as they are, and
        its average is ``conv.weight`` for everybody else.
        """
        wanted = frozenset(paths)
        if wanted <= self._items.keys():
            return self
        others = (s for role in self.roles for s in self.namings(role))
        return next((s for s in others if wanted <= s.items_by_path.keys()), self)

    @property
    def live(self) -> bool:
        """Whether it shows a model or an average of this process, which may be another one when it is read."""
        return self.moment is not nullcontext

    def still(self) -> Snapshot:
        """Itself; of what is live a copy."""
        return self.copy() if self.live else self

    def copy(self) -> Snapshot:
        """The same arrays held in memory, independent of file or model; of a live average, all of one moment."""
        with self.moment():
            items = [
                replace(i, read=self[name].copy, view=None, home=object, measure=None)
                for name, i in self._items.items()
            ]
            states = {role: _present(told) for role, told in self._states.items()}
        return Snapshot(items, states, self.origin, self.integrity, self._written)

    def __getitem__(self, name: str) -> Array:
        return self._verified(name, self._item(name).read)

    def view(self, name: str) -> Array:
        """The array to look at within a moment, not to keep: it may be the source's own memory."""
        item = self._item(name)
        return self._verified(name, item.view or item.read)

    def verify(self, name: str) -> None:
        """Read an array's bytes and compare them with their digest, where there is one; they are not kept.

        Raises:
            DamagedFile: the bytes are not those that were written.
        """
        item = self._item(name)
        if item.digest and item.measure:
            self._compare(name, self._read(name, item.measure))
        else:
            self._verified(name, item.read)

    def _item(self, name: str) -> Item:
        item = self._items.get(name)
        if item is None:
            raise self._missing(name)
        return item

    def _verified(self, name: str, read: Callable[[], Array]) -> Array:
        array = self._read(name, read)
        if self._items[name].digest:
            self._compare(name, digest(array))
        return array

    def _compare(self, name: str, found: str) -> None:
        if found != (expected := self._items[name].digest):
            raise DamagedFile(
                f"{self.origin}: weight {name!r}: expected bytes with digest {expected}, received {found}",
                hint="the file is damaged; restore it from a copy",
            )

    def _read(self, name: str, read: Callable[[], T]) -> T:
        """What an item reads; damage is told by the name that the weight has here."""
        try:
            return read()
        except DamagedFile as error:
            if repr(name) in error.message:
                raise
            damage = error.message.removeprefix(f"{self.origin}: ")
            raise DamagedFile(f"{self.origin}: weight {name!r}: {damage}", hint=error.hint) from error

    def __contains__(self, name: object) -> bool:
        return name in self._items  # the inherited one would read the array

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        size = sum(w.nbytes for w in self.weights)
        return f"<Snapshot {self.origin}: {len(self)} arrays, {size:,} bytes, roles {', '.join(self.roles)}>"

    def _missing(self, name: str) -> MissingWeight:
        names = [repr(n) for n in self._items]
        return MissingWeight(
            f"weight {name!r}: not in {self.origin}{nearest_name(name, self._items)}",
            hint=f"its weights are {listed(names, 3)}" if names else "it holds no weights",
        )


def _no_others(role: str) -> tuple[Snapshot, ...]:
    return ()


def _present(told: Told) -> State | None:
    return told() if callable(told) else told


@cache
def tool() -> str:
    """What writes files here: polyak and its version."""
    return f"polyak {version('polyak')}"


def versions() -> dict[str, str]:
    """Versions of NumPy and of the frameworks that are loaded; none is imported. One that is barred is None there."""
    loaded = ((name, sys.modules.get(name)) for name in ("numpy", *_FRAMEWORKS))
    return {name: str(module.__version__) for name, module in loaded if module is not None}


def nearest_name(name: str, known: Iterable[str]) -> str:
    """The end of a message that names the most similar of the known names, if one is similar to a name or glob."""
    near = difflib.get_close_matches(name, list(known), 1, 0.4 if "*" in name else 0.6)
    return f"; nearest: {near[0]!r}" if near else ""


def refuse_unmatched(paths: Sequence[str], include: Globs, exclude: Globs, where: str) -> None:
    """Raise MissingWeight for a glob that matches none of the paths: most often a typing error."""
    for name, given in (("include", include), ("exclude", exclude)):
        for glob in unmatched_globs(paths, given) if paths else ():
            raise MissingWeight(
                f"{name}={glob!r}: expected a glob of weights, received one that matches none of {where}"
                f"{nearest_name(glob, paths)}",
                hint=f"the paths look like {paths[0]!r}; a star also crosses slashes",
            )


def _held(path: str, value: Array, role: str) -> Item:
    if not isinstance(path, str):
        raise UnexpectedWeight(
            f"weight {path!r}: expected a name that is text, received {type(path).__name__}",
            hint='name it by its path, such as "layers/0/kernel"',
        )
    if isinstance(value, Mapping):
        whole = f"{path}/{next(iter(value), 'b')}"
        raise DtypeMismatch(
            f"weight {path!r}: expected an array of numbers, received a tree of them, {type(value).__name__}",
            hint=f"give each array under its whole path: {{{whole!r}: array, ...}}",
        )
    if np.ma.is_masked(value):
        raise DtypeMismatch(
            f"weight {path!r}: expected an array of numbers, received one with masked elements",
            hint="fill them first: array.filled(0)",
        )
    try:
        array = np.array(value, order="C")
    except (TypeError, ValueError, RuntimeError) as error:  # of JAX: keys, deleted arrays, traced ones
        said = str(error).partition("\n")[0]
        raise DtypeMismatch(
            f"weight {path!r}: expected an array of numbers, received {type(value).__name__}, which is none: {said}",
            hint="give what NumPy makes an array of; of a key of JAX jax.random.key_data(key)",
        ) from error
    if array.dtype.kind not in "biufcV" or array.dtype.type is np.void:
        raise DtypeMismatch(
            f"weight {path!r}: expected an array of numbers, received {array.dtype}",
            hint="NumPy loads bfloat16 as V2: array.view(ml_dtypes.bfloat16)" if array.dtype.str == "|V2" else None,
        )
    array = array.astype(numpy_dtype(array.dtype.name), copy=False)  # the machine's byte order
    kind = Kind.TRAINABLE if is_floating(array.dtype.name) else Kind.COUNTER
    return Item(role, Weight(path, array.shape, array.dtype.name, kind), array.copy)
