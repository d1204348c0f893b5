"""Name-based TensorFlow checkpoints: TF1's Saver, with the averages of tf.train.ExponentialMovingAverage.

The average of ``net/kernel`` is ``net/kernel/ExponentialMovingAverage``; variables without one (moving
statistics) belong to both sets, as in TensorFlow's own ``variables_to_restore``. Where ``apply`` was called within a
scope, the average is ``scope/net/kernel/ExponentialMovingAverage``, and so are all others of that call.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from polyak.contents import Contents, Tensor
from polyak.dialects.autonumber import creation_keys
from polyak.dialects.plain import UNSAID, item
from polyak.dialects.tf1_scopes import SUFFIX, Averages
from polyak.errors import listed
from polyak.manifest import AVERAGE, RAW, Manifest
from polyak.snapshot import Item, Snapshot
from polyak.weights import Evidence, Kind, Weight

TRAINING = "training"
OF_USE = "_polyak_numbers_of_use"  # beside weights whose names count layers as they are used, not as they are created
BY_NAME = (
    "{:,} averages by the names that tf.train.ExponentialMovingAverage gives them; decay and count of updates are not "
    "in the file"
)
_EITHER = (
    "averages that have the names of weights, and also those of others within one scope: {}; they may be of {}, which "
    'the set of averages lacks therefore; rename={{"*/ExponentialMovingAverage": "*"}} takes them by their names, and '
    'rename={{"scope/*/ExponentialMovingAverage": "*"}} by their names within that scope'
)
_SCALARS = re.compile(r"global_step|beta[12]_power(_\d{1,9})?")
_DEBIASED = "local_step"
_SLOTS = re.compile(r"(?i)(adam|momentum|rmsprop|adagrad|adadelta|ftrl|lamb|lars|biased).*")
_MOST_NAMED = 3


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
    keys = {} if OF_USE in contents.texts else creation_keys(i.weight.path for i in items)
    items = [_with_evidence(i, keys.get(i.weight.path, ""), contents) for i in items]
    items += [item(TRAINING, n, contents.tensors[n]) for n in names if n in of_training]
    return Snapshot(items, None, contents.origin, contents.integrity, _written(contents, averages))


def _written(contents: Contents, averages: Averages) -> Manifest:
    count = len(averages.of) + len(averages.alone)
    evidence = ((BY_NAME.format(count), *_scopes(averages)) if count else (UNSAID,)) + _nameless(contents)
    confidence = "inferred" if count else "unknown"
    unread = dict.fromkeys(contents.texts.keys() - {OF_USE}, "a text")
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
    either = sorted(name for name in averages.alone if name.endswith(SUFFIX))
    if either:
        others = sorted({repr(w) for name in either for w in averages.unsure[name]})
        yield _EITHER.format(listed([*map(repr, either)], _MOST_NAMED), listed(others, _MOST_NAMED))
    for name in averages.alone:
        if name not in either and averages.is_unsure(name):
            yield f"{name!r} is of no one weight of its shape without another average{_left_out(name, averages)}"


def _left_out(average: str, averages: Averages) -> str:
    unsure = [repr(w) for w in sorted(averages.unsure.get(average, ()))]
    return f"; it may be of {listed(unsure, _MOST_NAMED)}, which the set of averages lacks therefore" if unsure else ""


def _nameless(contents: Contents) -> tuple[str, ...]:
    """A word on what may be averages of ``ExponentialMovingAverage(name=...)``: nothing tells them from slots."""
    unknown = [n for n in contents.tensors if not _SLOTS.fullmatch(n.rpartition("/")[2])]
    slots = sorted(n for n in unknown if _is_slot(n, contents))
    scoped = sorted(n for n in unknown if not _belongs_to_training(n, contents) and _is_scoped(n, contents))
    return (*([_slots_told(slots, contents)] if slots else []), *([_weights_told(scoped)] if scoped else []))


def _slots_told(slots: Sequence[str], contents: Contents) -> str:
    named, kinds = listed([*map(repr, slots)], _MOST_NAMED), Counter(n.rpartition("/")[2] for n in slots)
    one = max(kinds, key=lambda kind: (kinds[kind], kind))
    return (
        f"of the shape of the weight that it is named after: {named}; it may be an optimizer's, or an average of "
        "tf.train.ExponentialMovingAverage under a name of its own, and is taken for the former; "
        f'transfer(snapshot.select("training", include="*/{one}"), model, rename={{"*/{one}": "*"}}) takes it'
        f"{_without(one, contents)}"
    )


def _without(kind: str, contents: Contents) -> str:
    """What a set of averages of this name lacks."""
    held = (n for n in contents.tensors if not n.endswith(SUFFIX) and not _belongs_to_training(n, contents))
    rest = [repr(n) for n in held if f"{n}/{kind}" not in contents.tensors]
    return f", and exclude= leaves what has none: {listed(rest, _MOST_NAMED)}" if rest else ""


def _weights_told(scoped: Sequence[str]) -> str:
    return (
        "called by a scope, the name of a weight of the same shape and one more step: "
        f"{listed([*map(repr, scoped)], _MOST_NAMED)}; it may be an optimizer's, and is taken for a weight"
    )


def counts_by_use(weights: Sequence[Weight]) -> bool:
    """Whether the numbers in the paths, read as those of creation, would name other weights, or a file says so.

    Example:
        >>> def made(path, creation):
        ...     return Weight(path, (3,), "float32", "trainable", Evidence("", "", creation, "", "", 0, "float32"))
        >>> counts_by_use([made("dense/bias", "dense~1/bias"), made("dense_1/bias", "dense~0/bias")])
        True
    """
    creation = {w.path: w.evidence.creation for w in weights if w.evidence is not None}
    paths = {key: path for path, key in creation.items()}
    return "" in paths or any(paths.get(key, path) != path for path, key in creation_keys(creation).items())


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

    Counters and powers, optimizer slots such as ``<weight>/Adam_1`` of the weight's shape, also in a scope of their
    own, and the counter of an average that ``zero_debias`` corrects.
    """
    last = name.rpartition("/")[2]
    if _SCALARS.fullmatch(last) or _is_slot(name, contents) or (_SLOTS.fullmatch(last) and _is_scoped(name, contents)):
        return True
    return last == _DEBIASED and contents.tensors[name].shape == () and _owner(name, contents) is not None


def _is_slot(name: str, contents: Contents) -> bool:
    twin = _owner(name, contents)
    return not name.endswith(SUFFIX) and twin is not None and twin.shape == contents.tensors[name].shape


def _is_scoped(name: str, contents: Contents) -> bool:
    """Whether a scope, the name of a weight of its shape and one more step make its name, as they do for slots."""
    tensors, shape = contents.tensors, contents.tensors[name].shape
    steps = name.split("/")[1:-1]
    ends = ("/".join(steps[n:]) + suffix for n in range(len(steps)) for suffix in ("", SUFFIX))
    return not name.endswith(SUFFIX) and any(end in tensors and tensors[end].shape == shape for end in ends)


def _owner(name: str, contents: Contents) -> Tensor | None:
    """The weight or the average that something is named after."""
    weight = name.rpartition("/")[0]
    return contents.tensors.get(weight) or contents.tensors.get(weight + SUFFIX)
