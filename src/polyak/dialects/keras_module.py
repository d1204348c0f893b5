"""Keras on PyTorch, saved as a module: ``torch.save(model.state_dict())`` has ``_torch_params.<path of the variable>``.

The paths are the names that Keras gave to variables, as in checkpoints of TF1, and the arrays lie as Keras has them.
Functional models have each array once more under ``_functional.``. Layers that wrap modules of PyTorch have these under
names of their own, and further ones that do not tell which is which: such files are left as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import msgspec

from polyak.contents import Contents, Tensor
from polyak.dialects.autonumber import creation_keys
from polyak.dialects.plain import UNSAID
from polyak.dialects.torch_sets import TORCH, Reading, is_optimizer, snapshot
from polyak.errors import DamagedFile
from polyak.manifest import RAW
from polyak.snapshot import Array, Item, Snapshot
from polyak.weights import Evidence, Kind, is_floating

_PARAMS = "_torch_params."
_SEED = "/seed_generator_state"


@dataclass(frozen=True, slots=True)
class Stored:
    """One array of a module: the key of the module in the file, the layer that lists it, the variable's path."""

    name: str
    key: str
    layer: str
    path: str


def interpret(contents: Contents) -> Snapshot | None:
    """None unless there is one such module, which has all arrays beside it in the file's tree under such names."""
    found = list(_stored(contents)) if contents.format == TORCH and contents.manifest is None else []
    own = {s.path: s for s in found if not s.layer}
    twins = [s for s in found if s.layer]
    if len({s.key for s in found}) != 1 or not all(_is_twin(s, own, contents) for s in twins):
        return None
    used = frozenset(s.name for s in found)
    if _others(contents, found[0].key, used):
        return None
    names: dict[str, list[str]] = {path: [s.name] for path, s in own.items()}
    for s in twins:
        names[s.path].append(s.name)
    weights = {path: _tensor(held, contents) for path, held in names.items()}
    why = f"arrays are called {_PARAMS}*, as Keras on PyTorch calls its variables in state_dict()"
    held = snapshot(contents, Reading("Keras", {RAW: weights}, used, (why, UNSAID), "unknown"))
    return _as_keras(held)


def _stored(contents: Contents) -> Iterator[Stored]:
    for name in contents.tensors:
        before, mark, path = name.partition(_PARAMS)
        key, slash, layer = before.rpartition("/")
        if mark and not is_optimizer(key):
            yield Stored(name, key + slash, layer, path)


def _is_twin(held: Stored, own: Mapping[str, Stored], contents: Contents) -> bool:
    first = own.get(held.path)
    return first is not None and contents.tensors[first.name].shape == contents.tensors[held.name].shape


def _others(contents: Contents, key: str, used: frozenset[str]) -> bool:
    """Whether the module has arrays of other names."""
    left = (n for n, t in contents.tensors.items() if n not in used and t.shape and is_floating(t.dtype))
    return any(n.startswith(key) and "/" not in n.removeprefix(key) for n in left)


def _tensor(names: Sequence[str], contents: Contents) -> Tensor:
    """An array that is stored under several names; they are compared when it is read."""
    first = contents.tensors[names[0]]
    return replace(first, read=partial(_alike, names, contents), measure=None) if len(names) > 1 else first


def _alike(names: Sequence[str], contents: Contents) -> Array:
    """The one value of several names. Raises DamagedFile."""
    first = contents.tensors[names[0]].read()
    for name in names[1:]:
        if contents.tensors[name].read().tobytes() != first.tobytes():
            raise DamagedFile(
                f"{contents.origin}: weight {names[0]!r}: expected the values of {name!r}, by which Keras calls the "
                "same variable, received others",
                hint="load it with the program that wrote it, and save it anew with model.save_weights",
            )
    return first


def _as_keras(held: Snapshot) -> Snapshot:
    """With the layout of Keras, and what the names of variables tell."""
    items = list(held.items_by_path.values())
    created = creation_keys(i.weight.path for i in items if i.role == RAW)
    known = msgspec.structs.replace(held.manifest, layout="keras")
    described = (_described(i, created) if i.role == RAW else i for i in items)
    return Snapshot(described, None, held.origin, held.integrity, known)


def _described(item: Item, created: Mapping[str, str]) -> Item:
    path, weight = item.weight.path, item.weight
    kind = Kind.SEED if path.endswith(_SEED) and not weight.floating else weight.kind
    evidence = Evidence("", path, created[path], "", path.rpartition("/")[2], -1, weight.dtype)
    return replace(item, weight=replace(weight, kind=kind, evidence=evidence))
