"""Name-based TensorFlow checkpoints: TF1's Saver, with the averages of tf.train.ExponentialMovingAverage.

The average of ``net/kernel`` is ``net/kernel/ExponentialMovingAverage``; variables without one (moving
statistics) belong to both sets, as in TensorFlow's own ``variables_to_restore``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from polyak.contents import Contents
from polyak.dialects.autonumber import creation_keys
from polyak.dialects.plain import UNSAID, item
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


def interpret(contents: Contents) -> Snapshot | None:
    """None unless this is a TensorFlow checkpoint without an object graph."""
    if not contents.format.startswith("tensorbundle") or contents.paths:
        return None
    names = list(contents.tensors)
    of_training = {n for n in names if _belongs_to_training(n, contents)}
    weights = [n for n in names if n not in of_training and not n.endswith(SUFFIX)]
    items = [item(RAW, n, contents.tensors[n]) for n in weights]
    if any(n.endswith(SUFFIX) for n in names):
        items = [_kind(i, contents) for i in (*items, *_averages(weights, contents))]
    keys = creation_keys(i.weight.path for i in items)
    items = [_with_evidence(i, keys[i.weight.path], contents) for i in items]
    items += [item(TRAINING, n, contents.tensors[n]) for n in names if n in of_training]
    return Snapshot(items, None, contents.origin, contents.integrity, _written(contents))


def _written(contents: Contents) -> Manifest:
    averages = sum(n.endswith(SUFFIX) for n in contents.tensors)
    evidence, confidence = ((BY_NAME.format(averages),), "inferred") if averages else ((UNSAID,), "unknown")
    unread = dict.fromkeys(contents.texts, "a text")
    return Manifest(
        "TensorFlow", {}, (), source=contents.origin, evidence=evidence, confidence=confidence, unread=unread
    )


def _with_evidence(held: Item, creation: str, contents: Contents) -> Item:
    """The names of variables; TensorFlow numbers those of one kind as they are created, and sorts them in the file.

    An average may be wider than the variable beside it, which says what dtype the live weight has.
    """
    path = held.weight.path
    native = contents.tensors[path].dtype if path in contents.tensors else held.weight.dtype
    evidence = Evidence("", path, creation, "", path.rpartition("/")[2], -1, native)
    return replace(held, weight=replace(held.weight, evidence=evidence))


def _averages(weights: list[str], contents: Contents) -> Iterator[Item]:
    for name in weights:
        yield item(AVERAGE, name, contents.tensors.get(name + SUFFIX) or contents.tensors[name])
    for name in contents.tensors:
        weight = name.removesuffix(SUFFIX)
        if weight != name and weight not in contents.tensors:
            yield item(AVERAGE, weight, contents.tensors[name])


def _kind(held: Item, contents: Contents) -> Item:
    """In a file with averages, a floating-point variable without one was not trained."""
    untrained = held.weight.floating and held.weight.path + SUFFIX not in contents.tensors
    return replace(held, weight=replace(held.weight, kind=Kind.STATISTIC)) if untrained else held


def _belongs_to_training(name: str, contents: Contents) -> bool:
    """What the training loop keeps beside a weight or an average that is in the file.

    Counters and powers, optimizer slots such as ``<weight>/Adam_1`` of the weight's shape, and the counter of an
    average that ``zero_debias`` corrects.
    """
    weight, _, last = name.rpartition("/")
    if (last or name) in _SCALARS:
        return True
    twin = contents.tensors.get(weight) or contents.tensors.get(weight + SUFFIX)
    shape = contents.tensors[name].shape
    slot = not name.endswith(SUFFIX) and twin is not None and twin.shape == shape
    return slot or (last == _DEBIASED and shape == () and twin is not None)
