"""The sets of weights in a file of PyTorch, and a snapshot of those that a dialect has told apart.

A set is what ``state_dict()`` gives: tensors under names with dots, beside one another. A file holds one, or
several under keys of the writer's choice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from polyak.contents import Contents, Tensor
from polyak.dialects.plain import item
from polyak.manifest import Manifest
from polyak.snapshot import Item, Snapshot
from polyak.weights import Evidence, Kind, is_floating

TORCH = "torch"
OPTIMIZER = "optimizer"
TRAINING = "training"
_FORMATS = (TORCH, "safetensors", "safetensors-sharded")
_WRAPPERS = ("module.", "_orig_mod.")
_STATISTICS = re.compile(r"(^|\.)(running_mean|running_var)$")
_SLOTS = re.compile(r"(^|/)state/\d+(/|$)")
_COUNTER = "num_batches_tracked"
_USUAL = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params")

Set = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a dialect has found: which tensors are which, and why.

    Attributes:
        sets: weights by their path, for each role.
        used: the stored names of all tensors that the dialect has accounted for.
    """

    tool: str
    sets: Mapping[str, Set]
    used: frozenset[str]
    evidence: tuple[str, ...]
    confidence: str = "inferred"
    note: str = ""


@dataclass(frozen=True, slots=True)
class Named:
    """A set at its place in the file, with the stored name of each tensor."""

    key: str
    tensors: Set
    stored: frozenset[str] = field(default_factory=frozenset)

    @property
    def place(self) -> str:
        return repr(self.key) if self.key else "the file itself"


def sets(contents: Contents) -> dict[str, Named]:
    """The sets of a file by their key; the set of a bare file has the key "". Optimizer state is none."""
    if contents.format not in _FORMATS or contents.manifest is not None:
        return {}
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in contents.tensors.items():
        key, _, last = name.rpartition("/")
        if not is_optimizer(key) and not _is_position(last):
            found.setdefault(key, {})[last] = tensor
    return {key: _named(key, tensors) for key, tensors in found.items()}


def _named(key: str, tensors: Set) -> Named:
    return Named(key, tensors, frozenset(f"{key}/{name}" if key else name for name in tensors))


def is_optimizer(key: str) -> bool:
    """Whether a place in the file belongs to an optimizer, by the names that torch's own and others have."""
    return bool(_SLOTS.search(key)) or any(step.startswith("optim") for step in key.split("/"))


def _is_position(name: str) -> bool:
    return name.isdigit()


def under(tensors: Set, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def bare(tensors: Set) -> dict[str, Tensor]:
    """Without the names that wrappers put before all of them: DataParallel ``module.``, compile ``_orig_mod.``."""
    held = dict(tensors)
    while held:
        prefix = next((p for p in _WRAPPERS if all(n.startswith(p) and n != p for n in held)), None)
        if prefix is None:
            break
        held = under(held, prefix)
    return held


def same(a: Set, b: Set) -> bool:
    """Whether two sets have the same names and shapes; an empty one is no set."""
    return bool(a) and {n: t.shape for n, t in a.items()} == {n: t.shape for n, t in b.items()}


def twin(of: Set, among: Mapping[str, Named], but: str) -> Named | None:
    """The one other set with the same names and shapes, wrappers aside; None if there are several."""
    found = [s for key, s in among.items() if key != but and same(bare(s.tensors), of)]
    return found[0] if len(found) == 1 else None


def number(tensor: Tensor | None) -> int | float | None:
    """The value of a stored number."""
    return tensor.read().item() if tensor is not None and tensor.shape == () else None


def is_count(tensor: Tensor | None) -> bool:
    """Whether a tensor is one whole number."""
    return tensor is not None and tensor.shape in ((), (1,)) and not is_floating(tensor.dtype)


def parameters(tensors: Set) -> dict[str, Tensor]:
    """What ``parameters()`` gives: without the buffers of batch normalisation. Other buffers cannot be told apart."""
    return {n: t for n, t in tensors.items() if is_floating(t.dtype) and not _statistic(n, tensors)}


def usual(among: Mapping[str, Named]) -> Named | None:
    """The set that is the model by its key, or the only one."""
    known = [among[key] for key in _USUAL if key in among]
    return known[0] if known else next(iter(among.values())) if len(among) == 1 else None


def file_name(contents: Contents) -> str:
    """The name of the file, from what errors call it."""
    return Path(contents.origin.removeprefix("file ").strip("'\"")).name


def numbered(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Weights that only their position tells apart, under names that say so: ``#0``, ``#1`` ..."""
    return {f"#{i}": t for i, t in enumerate(tensors)}


def snapshot(contents: Contents, reading: Reading) -> Snapshot:
    """The sets in their roles, and everything that is left as state of the optimizer or of the training."""
    items = [_item(role, name, held) for role, held in reading.sets.items() for name in held]
    left = [n for n in contents.tensors if n not in reading.used]
    items += [item(OPTIMIZER if is_optimizer(n) else TRAINING, n, contents.tensors[n]) for n in left]
    written = Manifest(
        reading.tool,
        {},
        (),
        source=contents.origin,
        note=reading.note,
        evidence=reading.evidence,
        confidence=reading.confidence,
        layout=TORCH if contents.format == TORCH else "",
    )
    return Snapshot(items, None, contents.origin, contents.integrity, written)


def _item(role: str, name: str, tensors: Set) -> Item:
    made = item(role, name, tensors[name])
    weight = made.weight
    if _statistic(name, tensors):
        weight = replace(weight, kind=Kind.STATISTIC)
    if name.startswith("#"):
        evidence = Evidence(name, name, name, "", "", int(name[1:]), weight.dtype)
        weight = replace(weight, evidence=evidence)
    return replace(made, weight=weight)


def _statistic(name: str, tensors: Set) -> bool:
    """Moving statistics of a layer that also counts its batches, as torch's normalisation layers do."""
    owner, dot, _ = name.rpartition(".")
    return bool(_STATISTICS.search(name)) and f"{owner}{dot}{_COUNTER}" in tensors
