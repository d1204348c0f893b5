"""The sets of weights in a file of PyTorch, and a snapshot of those that a dialect has told apart.

A set is what ``state_dict()`` gives: tensors under names with dots, beside one another. A file holds one, or
several under keys of the writer's choice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from polyak.contents import Contents, Tensor
from polyak.dialects.plain import item
from polyak.errors import listed
from polyak.manifest import Manifest
from polyak.snapshot import Item, Snapshot
from polyak.weights import Evidence, Kind, is_floating

TORCH = "torch"
OPTIMIZER = "optimizer"
TRAINING = "training"
KERAS = "_torch_params."  # before the path of a variable, where Keras on PyTorch is saved as a module
_FORMATS = (TORCH, "safetensors", "safetensors-sharded")
_WRAPPERS = ("module.", "_orig_mod.")
_STATISTICS = re.compile(r"(^|\.)(running_mean|running_var)$")
# Below what an optimizer of PyTorch keeps: for each weight by its number, or by what it is.
_SLOTS = re.compile(r"(^|/)(state/\d+|(max_)?exp_avg(_sq)?|exp_inf|(square|grad)_avg|momentum_buffer)(/|$)")
_OPTIMIZER = re.compile(r"(\w+[_-])?optim(s|i[sz]ers?)?([A-Z\d]|[_-]\w)?([_-]states?)?([_-]dicts?)?")
_OF_OPTIMIZER = {"state", "param_groups"}
_MOST_TOLD = 3
_SHADOWS = "shadow_params"
_LISTS = (_SHADOWS, "collected_params", "temp_stored_params")
_COUNTER = "num_batches_tracked"
_USUAL = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params")

Set = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a dialect has found: which tensors are which, and why.

    Attributes:
        sets: weights by their path, for each role.
        used: the stored names of all tensors that the dialect has accounted for.
        whole: for each role the ``state_dict`` that its weights are taken from, with the names and counts of the
            object that wrote it, where they are others.
    """

    tool: str
    sets: Mapping[str, Set]
    used: frozenset[str]
    evidence: tuple[str, ...]
    confidence: str = "inferred"
    whole: Mapping[str, Set] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Named:
    """A set at its place in the file, with the stored name of each tensor.

    Attributes:
        whole: all that the object which wrote it holds, under that object's names, where the set is a part of it.
    """

    key: str
    tensors: Set
    stored: frozenset[str] = field(default_factory=frozenset)
    whole: Set | None = None

    @property
    def place(self) -> str:
        return repr(self.key) if self.key else "the file itself"


def sets(contents: Contents) -> dict[str, Named]:
    """The sets of a file by their key; the set of a bare file has the key "". Optimizer state is none."""
    if contents.format not in _FORMATS or contents.manifest is not None:
        return {}
    found: dict[str, dict[str, str]] = {}
    for name in contents.tensors:
        key, last = place_of(name)
        if not is_optimizer(key) and not is_listed(key, last):
            found.setdefault(key, {})[last] = name
    return {
        key: Named(key, {last: contents.tensors[name] for last, name in names.items()}, frozenset(names.values()))
        for key, names in found.items()
    }


def place_of(name: str) -> tuple[str, str]:
    """The key of a stored name's set, and its name there. A name that begins or ends with a slash has no key.

    Variables of Keras have slashes in their own names.

    Example:
        >>> place_of("ema/shadow/conv.weight"), place_of("/conv.weight")
        (('ema/shadow', 'conv.weight'), ('', '/conv.weight'))
        >>> place_of("ema/_torch_params.conv/kernel")
        ('ema', '_torch_params.conv/kernel')
    """
    before, mark, variable = name.partition(KERAS)
    key, _, last = before.rpartition("/")
    own = last + mark + variable
    return (key, own) if key and own else ("", name)


def is_optimizer(key: str) -> bool:
    """Whether a place in the file belongs to an optimizer: by its name, or by what torch's own keep below it.

    Example:
        >>> [is_optimizer(key) for key in ("optimizer", "optim_gan/state/0", "adam/exp_avg", "optimized_model")]
        [True, True, True, False]
    """
    steps = key.split("/")
    called = [i for i, step in enumerate(steps) if "optim" in step]
    if any(_OPTIMIZER.fullmatch(steps[i]) for i in called) or _SLOTS.search(key):
        return True
    return bool(called) and not _OF_OPTIMIZER.isdisjoint(steps[called[0] + 1 :])


def is_listed(key: str, name: str) -> bool:
    """Whether a tensor is in an average's list of weights by their position, and in no set by name.

    Example:
        >>> is_listed("ema/shadow_params", "0"), is_listed("ema/shadow_params", "conv.weight")
        (True, False)
    """
    return key.rpartition("/")[2] in _LISTS and name.isdigit()


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


def agree(a: Set, b: Set) -> bool:
    """Whether two sets have names in common, and there the same shapes."""
    both = a.keys() & b.keys()
    return same({n: a[n] for n in both}, {n: b[n] for n in both})


def twin(of: Set, among: Mapping[str, Named], but: str) -> Named | None:
    """The one other set with the same names and shapes, wrappers aside; None if there are several."""
    found = [s for key, s in among.items() if key != but and same(bare(s.tensors), of)]
    return found[0] if len(found) == 1 else None


def number(tensor: Tensor | None) -> int | float | None:
    """The value of a stored number, which some have in an array of one."""
    return tensor.read().item() if tensor is not None and tensor.shape in ((), (1,)) else None


def is_count(tensor: Tensor | None) -> bool:
    """Whether a tensor is one whole number."""
    return tensor is not None and tensor.shape in ((), (1,)) and not is_floating(tensor.dtype)


def parameters(tensors: Set) -> dict[str, Tensor]:
    """What ``parameters()`` gives: without the buffers of batch normalisation. Other buffers cannot be told apart."""
    return {n: t for n, t in tensors.items() if is_floating(t.dtype) and not _statistic(n, tensors)}


def is_usual(key: str) -> bool:
    """Whether a set is the model by its key."""
    return key in _USUAL


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
        note="; ".join(filter(None, (reading.note, _left_alone(left, contents)))),
        evidence=reading.evidence,
        confidence=reading.confidence,
        layout=TORCH if contents.format == TORCH else "",
    )

    def namings(role: str) -> Iterator[Snapshot]:
        for named in _namings(reading, role):
            held = [_item(role, name, named) for name in named]
            yield Snapshot(held, None, contents.origin, contents.integrity, written)

    return Snapshot(items, None, contents.origin, contents.integrity, written).also_named(namings)


def _namings(reading: Reading, role: str) -> Iterator[Set]:
    """A set under the names that an object has which wraps the model: its own writer's, or any that counts nothing.

    Where the writer counts beside a ``module``, also those of another such object, whose module is wrapped or not.
    """
    whole, held = reading.whole.get(role), reading.sets.get(role, {})
    if whole is not None:
        yield whole
    if held:
        yield _within(_WRAPPERS[0], held)
    counts = {n: t for n, t in bare(whole or {}).items() if not n.startswith(_WRAPPERS[0])}
    if counts and all(is_count(t) for t in counts.values()):
        yield from (counts | _within(_WRAPPERS[0] + inner, held) for inner in ("", *_WRAPPERS))


def _within(prefix: str, held: Set) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in held.items()}


def _left_alone(left: Sequence[str], contents: Contents) -> str:
    """A word on arrays that may be weights, too, and are in no set: their places, and how many are there."""
    arrays = [n for n in left if contents.tensors[n].shape and is_floating(contents.tensors[n].dtype)]
    places = [(key or name, key, last) for name in arrays if not is_optimizer(name) for key, last in [place_of(name)]]
    counts = Counter(p for p, key, last in places if p.rpartition("/")[2] == _SHADOWS or not is_listed(key, last))
    told = [f"{place!r} ({n} array{'s' * (n > 1)})" for place, n in counts.items()]
    return f"left with the state of the training: {listed(told, _MOST_TOLD)}" if told else ""


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
