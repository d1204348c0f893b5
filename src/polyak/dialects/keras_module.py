"""Keras on PyTorch, saved as a module: ``torch.save(model.state_dict())`` has ``_torch_params.<path of the variable>``.

The paths are the names that Keras gave to variables, as in checkpoints of TF1, and the arrays lie as Keras has them.
Which set has which role is as with any module: by ``AveragedModel``, or by the writer's keys where the variables of
both have the same names, as those of a copy may have.
Functional models have each array once more under ``_functional.``. Layers that wrap modules of PyTorch have these under
names of their own, and further ones that do not tell which is which: such files are left as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import msgspec

from polyak.contents import Contents
from polyak.dialects import averaged_model, torch_plain
from polyak.dialects.autonumber import creation_keys
from polyak.dialects.torch_sets import KERAS, OPTIMIZER, TORCH, TRAINING
from polyak.errors import DamagedFile
from polyak.snapshot import Array, Item, Snapshot
from polyak.weights import Evidence, Kind

_SEED = "/seed_generator_state"


def interpret(contents: Contents) -> Snapshot | None:
    """None unless all weights of all sets have such names."""
    if contents.format != TORCH or not any(KERAS in name for name in contents.tensors):
        return None
    held = averaged_model.interpret(contents) or torch_plain.interpret(contents)
    return _as_keras(held) if held else None


def _as_keras(held: Snapshot) -> Snapshot | None:
    """With the layout of Keras, and what the names of variables tell."""
    items: list[Item] = []
    for role in held.roles:
        own = [i for i in held.items_by_path.values() if i.role == role]
        variables = {} if role in (OPTIMIZER, TRAINING) else _variables(own)
        if not variables and role not in (OPTIMIZER, TRAINING):
            return None
        items += _described(variables, held.origin) if variables else own
    why = f"arrays are called {KERAS}*, as Keras on PyTorch calls its variables in state_dict()"
    evidence = (why, *held.manifest.evidence)
    known = msgspec.structs.replace(held.manifest, tool="Keras", layout="keras", evidence=evidence)
    return Snapshot(items, None, held.origin, held.integrity, known)


def _variables(items: Sequence[Item]) -> dict[str, list[Item]]:
    """The arrays of each variable by its path, the model's own first; empty where an array is no variable's."""
    found: dict[str, list[Item]] = {}
    for item in sorted(items, key=lambda i: bool(_layer(i))):
        path = _path(item)
        first = found.setdefault(path, [] if _layer(item) else [item])
        if KERAS not in item.weight.path or not first or first[0].weight.shape != item.weight.shape:
            return {}
        if first[0] is not item:
            first.append(item)
    return found


def _layer(item: Item) -> str:
    """The names of attributes before a variable's path: of the layer that lists it, too."""
    return item.weight.path.partition(KERAS)[0].rpartition("/")[2]


def _path(item: Item) -> str:
    """The variable's path, after the key of its set where several are one."""
    before, _, path = item.weight.path.partition(KERAS)
    return before.removesuffix(_layer(item)) + path


def _described(variables: Mapping[str, Sequence[Item]], origin: str) -> Iterator[Item]:
    created = creation_keys(variables)
    for path, (item, *others) in variables.items():
        weight = item.weight
        kind = Kind.SEED if path.endswith(_SEED) and not weight.floating else weight.kind
        evidence = Evidence("", path, created[path], "", path.rpartition("/")[2], -1, weight.dtype)
        made = replace(item, weight=replace(weight, path=path, kind=kind, evidence=evidence))
        yield replace(made, read=partial(_alike, [item, *others], origin), measure=None) if others else made


def _alike(items: Sequence[Item], origin: str) -> Array:
    """The one value of several names. Raises DamagedFile."""
    first = items[0].read()
    for other in items[1:]:
        if other.read().tobytes() != first.tobytes():
            raise DamagedFile(
                f"{origin}: weight {items[0].weight.path!r}: expected the values of {other.weight.path!r}, by which "
                "Keras calls the same variable, received others",
                hint="load it with the program that wrote it, and save it anew with model.save_weights",
            )
    return first
