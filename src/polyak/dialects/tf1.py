"""Name-based TensorFlow checkpoints: TF1's Saver, with the averages of tf.train.ExponentialMovingAverage.

The average of ``net/kernel`` is ``net/kernel/ExponentialMovingAverage``; variables without one (moving
statistics) belong to both sets, as in TensorFlow's own ``variables_to_restore``. Where ``apply`` was called within a
scope, the average is ``scope/net/kernel/ExponentialMovingAverage``, and so are all others of that call.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from polyak.contents import Contents, Tensor
from polyak.dialects.autonumber import creation_keys
from polyak.dialects.plain import UNSAID, item
from polyak.errors import listed
from polyak.manifest import AVERAGE, RAW, Manifest
from polyak.snapshot import Item, Snapshot
from polyak.weights import Evidence, Kind

SUFFIX = "/ExponentialMovingAverage"
TRAINING = "training"
BY_NAME = (
    "{:,} averages by the names that tf.train.ExponentialMovingAverage gives them; decay and count of updates are not "
    "in the file"
)
_SCALARS = ("global_step", "beta1_power", "beta2_power")
_DEBIASED = "local_step"
_SLOTS = re.compile(r"(?i)(adam|momentum|rmsprop|adagrad|adadelta|ftrl|lamb|lars|biased).*")
_MOST_NAMED = 3


@dataclass(frozen=True)
class Averages:
    """Whose the averages of a file are.

    Attributes:
        of: the stored name of each weight's average.
        scoped: those of them whose name begins with a scope of their own.
        alone: the stored names of averages without a raw weight, by the name of what they are an average of.
        unsure: the weights whose name ends that of an average in ``alone``, by it: each may be its raw one.
        within: a scope in which all of them have the names of other weights than those that they are named after.
    """

    of: Mapping[str, str]
    scoped: tuple[str, ...]
    alone: Mapping[str, str]
    unsure: Mapping[str, tuple[str, ...]]
    within: str | None = None

    @classmethod
    def among(cls, weights: Sequence[str], contents: Contents) -> Averages:
        """Those of a file, given its weights: each by its own name, all in one scope, or all others in one."""
        by_name = {n.removesuffix(SUFFIX): n for n in contents.tensors if n.endswith(SUFFIX)}
        of = {w: by_name[w] for w in weights if w in by_name}
        within = _alike(by_name, weights, contents) if of else {}
        scopes = set.intersection(*map(set, within.values())) if within else set()
        if len(scopes) == 1:
            one = scopes.pop()
            if len(of) == len(by_name):
                return cls(of, (), {}, {}, one)
            return cls._all_within(one, within, by_name, weights)
        left = {w for w in weights if w not in of}
        ends = {name: dict(_ends(name, left)) for name in by_name.keys() - of}
        scope = _scope(ends, left)
        scoped = {name: w[scope] for name, w in ends.items() if scope in w}
        if any(contents.tensors[by_name[name]].shape != contents.tensors[w].shape for name, w in scoped.items()):
            scoped = {}
        alone = {name: stored for name, stored in by_name.items() if name not in of and name not in scoped}
        of |= {w: by_name[name] for name, w in scoped.items()}
        unsure = {name: tuple(ends[name].values()) for name in alone if ends[name]}
        return cls(of, tuple(sorted(scoped)), alone, unsure)

    @classmethod
    def _all_within(
        cls, scope: str, within: Mapping[str, Mapping[str, str]], by_name: Mapping[str, str], weights: Sequence[str]
    ) -> Averages:
        """All by one call in a scope; or none for certain, where a network beside has the same weights."""
        if _scope(within, weights) == scope:
            return cls({w[scope]: by_name[name] for name, w in within.items()}, tuple(sorted(by_name)), {}, {})
        known = set(weights)
        unsure = {name: (*({name} & known), *ends.values()) for name, ends in within.items()}
        return cls({}, (), by_name, unsure)

    @cached_property
    def doubtful(self) -> frozenset[str]:
        """Weights each of which may be the raw one of an average that is alone."""
        return frozenset(w for ends in self.unsure.values() for w in ends)

    @cached_property
    def named(self) -> frozenset[str]:
        """Weights that have an average or may have one, and averages that are alone."""
        return frozenset((*self.of, *self.alone, *self.doubtful))


def _alike(by_name: Mapping[str, str], weights: Sequence[str], contents: Contents) -> dict[str, Mapping[str, str]]:
    """For each average the weights of its shape whose names its own one ends with, by the scope before."""
    known, shape = set(weights), {n: t.shape for n, t in contents.tensors.items()}
    return {
        name: {scope: w for scope, w in _ends(name, known) if shape[w] == shape[stored]}
        for name, stored in by_name.items()
    }


def _ends(name: str, weights: Collection[str]) -> Iterator[tuple[str, str]]:
    """The weights whose names this one ends with, each by the scope that comes before."""
    steps = name.split("/")
    for n in range(1, len(steps)):
        if (end := "/".join(steps[n:])) in weights:
            yield "/".join(steps[:n]), end


def _scope(ends: Mapping[str, Mapping[str, str]], weights: Iterable[str]) -> str | None:
    """The one scope in which all averages have the names of weights, or None.

    It is no scope of averages but a network, whose raw weights are not in the file, if others have the same weights.
    """
    found = [set(scopes) for scopes in ends.values() if scopes]
    common = set.intersection(*found) if found else set()
    if len(common) != 1:
        return None
    scope = common.pop()
    covered = {scopes[scope] for scopes in ends.values() if scopes}
    others = (w for w in weights if w not in covered)
    return None if any(any(_ends(w, covered)) for w in others) else scope


def interpret(contents: Contents) -> Snapshot | None:
    """None unless this is a TensorFlow checkpoint without an object graph."""
    if not contents.format.startswith("tensorbundle") or contents.paths:
        return None
    names = list(contents.tensors)
    of_training = {n for n in names if _belongs_to_training(n, contents)}
    weights = [n for n in names if n not in of_training and not n.endswith(SUFFIX)]
    items = [item(RAW, n, contents.tensors[n]) for n in weights]
    averages = Averages.among(weights, contents)
    if averages.of or averages.alone:
        items = [_kind(i, averages) for i in (*items, *_averaged(weights, averages, contents))]
    keys = creation_keys(i.weight.path for i in items)
    items = [_with_evidence(i, keys[i.weight.path], contents) for i in items]
    items += [item(TRAINING, n, contents.tensors[n]) for n in names if n in of_training]
    return Snapshot(items, None, contents.origin, contents.integrity, _written(contents, averages))


def _written(contents: Contents, averages: Averages) -> Manifest:
    count = len(averages.of) + len(averages.alone)
    evidence = ((BY_NAME.format(count), *_scopes(averages)) if count else (UNSAID,)) + _nameless(contents)
    confidence = "inferred" if count else "unknown"
    unread = dict.fromkeys(contents.texts, "a text")
    return Manifest(
        "TensorFlow", {}, (), source=contents.origin, evidence=evidence, confidence=confidence, unread=unread
    )


def _scopes(averages: Averages) -> Iterator[str]:
    """A word on averages that are called after no weight, but lie in another scope."""
    if averages.scoped:
        named = listed([*map(repr, averages.scoped)], _MOST_NAMED)
        yield (
            f"{len(averages.scoped):,} of them in another scope than its weight: {named}; each is taken for that of "
            "the weight of its shape whose name follows that scope"
        )
    if averages.within is not None:
        yield (
            f"all of them have the names of other weights of their shapes, too, if they were made within the scope "
            f"{averages.within!r}; each is taken for that of the weight that it is named after"
        )
    weights = {*averages.of, *averages.doubtful}
    for name in averages.alone:
        if any(_ends(name, weights)):
            yield f"{name!r} is of no one weight of its shape without another average{_left_out(name, averages)}"


def _left_out(average: str, averages: Averages) -> str:
    unsure = [repr(w) for w in sorted(averages.unsure.get(average, ()))]
    return f"; it may be of {listed(unsure, _MOST_NAMED)}, which the set of averages lacks therefore" if unsure else ""


def _nameless(contents: Contents) -> tuple[str, ...]:
    """A word on what may be averages of ``ExponentialMovingAverage(name=...)``: nothing tells them from slots."""
    slots = [n for n in contents.tensors if _is_slot(n, contents) and not _SLOTS.fullmatch(n.rpartition("/")[2])]
    if not slots:
        return ()
    named = listed([*map(repr, sorted(slots))], _MOST_NAMED)
    one = Counter(slot.rpartition("/")[2] for slot in sorted(slots)).most_common(1)[0][0]
    said = (
        f"of the shape of the weight that it is named after: {named}; it may be an optimizer's, or an average of "
        "tf.train.ExponentialMovingAverage under a name of its own, and is taken for the former; "
        f'transfer(snapshot.select("training", include="*/{one}"), model, rename={{"*/{one}": "*"}}) takes it'
    )
    return (said,)


def _with_evidence(held: Item, creation: str, contents: Contents) -> Item:
    """The names of variables; TensorFlow numbers those of one kind as they are created, and sorts them in the file.

    An average may be wider than the variable beside it, which says what dtype the live weight has.
    """
    path = held.weight.path
    native = contents.tensors[path].dtype if path in contents.tensors else held.weight.dtype
    evidence = Evidence("", path, creation, "", path.rpartition("/")[2], -1, native)
    return replace(held, weight=replace(held.weight, evidence=evidence))


def _averaged(weights: list[str], averages: Averages, contents: Contents) -> Iterator[Item]:
    """What is called an average; a weight that has none stands in, unless it may be the raw one of another average."""
    for name in weights:
        if name not in averages.doubtful:
            yield item(AVERAGE, name, contents.tensors[averages.of.get(name, name)])
    for name, stored in averages.alone.items():
        yield item(AVERAGE, name, contents.tensors[stored])


def _kind(held: Item, averages: Averages) -> Item:
    """In a file with averages, a floating-point variable without one was not trained."""
    if held.weight.path in averages.named or not held.weight.floating:
        return held
    return replace(held, weight=replace(held.weight, kind=Kind.STATISTIC))


def _belongs_to_training(name: str, contents: Contents) -> bool:
    """What the training loop keeps beside a weight or an average that is in the file.

    Counters and powers, optimizer slots such as ``<weight>/Adam_1`` of the weight's shape, and the counter of an
    average that ``zero_debias`` corrects.
    """
    last = name.rpartition("/")[2]
    if last in _SCALARS or _is_slot(name, contents):
        return True
    return last == _DEBIASED and contents.tensors[name].shape == () and _owner(name, contents) is not None


def _is_slot(name: str, contents: Contents) -> bool:
    if name.endswith(SUFFIX):
        return False
    twin, shape = _owner(name, contents), contents.tensors[name].shape
    return (twin is not None and twin.shape == shape) or any(w.shape == shape for w in _owners_within(name, contents))


def _owner(name: str, contents: Contents) -> Tensor | None:
    """The weight or the average that something is named after."""
    weight = name.rpartition("/")[0]
    return contents.tensors.get(weight) or contents.tensors.get(weight + SUFFIX)


def _owners_within(name: str, contents: Contents) -> Iterator[Tensor]:
    """Of a slot that is called as optimizers call theirs: weights that it is named after within a scope."""
    weight, _, last = name.rpartition("/")
    if _SLOTS.fullmatch(last):
        for _, end in _ends(weight, contents.tensors):
            yield contents.tensors[end]
