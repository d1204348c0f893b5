"""A model beside its average in one TensorFlow 2 checkpoint: ``tf.train.Checkpoint(model=..., ema_model=...)``.

Both are models like any other; that one is the other's average says only what its writer called it. Within a model,
``network`` and ``ema_network`` stay parts of it, as a model of the same class wants them both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from polyak.contents import Contents
from polyak.dialects.called import is_named_after, says_average
from polyak.dialects.tf_averages import Beside, averaged
from polyak.dialects.tf_optimizers import GraphPath
from polyak.manifest import AVERAGE
from polyak.snapshot import Item

# A checkpoint's only object, a SavedModel's functions, what Keras keeps in its models.
_OF_ONE = re.compile(r"root|signatures|_.*|keras_api|layer(_with_weights)?-\d+")
_WHY = "{average!r} has the names and shapes of {raw!r} and is called an average by its writer"
_BOTH = "the file does not say how it was averaged"


def twins_beside(
    contents: Contents, raw: Mapping[str, Item], paths: Mapping[str, Sequence[GraphPath]]
) -> Beside | None:
    """Every model that is called an average, of the one other that is built alike; all of them, or None.

    Args:
        raw: the weights of the checkpoint by their keys.
        paths: where each lies, on ways that lead through no optimizer.
    """
    if not is_of_several(contents.names):
        return None
    models = _models(raw, paths)
    called = [name for name in models if says_average(name)]
    pairs = {name: pair for name in called if (pair := _of(name, models, raw)) is not None}
    if not pairs or len(pairs) < len(called):
        return None
    items = [
        replace(averaged(raw[of[key]], key, contents), role=AVERAGE if len(pairs) == 1 else f"{AVERAGE}:{name}")
        for name, (_, of) in pairs.items()
        for key in of
    ]
    evidence = (*(_WHY.format(average=name, raw=other) for name, (other, _) in pairs.items()), _BOTH)
    return Beside(tuple(items), frozenset(key for _, of in pairs.values() for key in of), evidence)


def is_of_several(names: frozenset[str]) -> bool:
    """Whether a file is of a ``tf.train.Checkpoint`` of several objects, and not of one model, whatever it holds."""
    return not any(map(_OF_ONE.fullmatch, names))


def _models(raw: Mapping[str, Item], paths: Mapping[str, Sequence[GraphPath]]) -> dict[str, dict[GraphPath, str]]:
    """What the checkpoint was given by name, and the key of each weight within it."""
    found: dict[str, dict[GraphPath, str]] = {}
    for key in raw:
        for name, *within in paths[key]:
            found.setdefault(name, {})[tuple(within)] = key
    return found


def _of(
    name: str, models: Mapping[str, Mapping[GraphPath, str]], raw: Mapping[str, Item]
) -> tuple[str, dict[str, str]] | None:
    """The model that another is the average of, and the key of the weight of each average; they share none."""
    average = models[name]
    alike = [other for other, model in models.items() if not says_average(other) and model.keys() == average.keys()]
    named = [other for other in alike if is_named_after(name, other)]
    if len(named) != 1:
        return None
    of = {key: models[named[0]][within] for within, key in average.items()}
    fits = all(raw[key].weight.shape == raw[w].weight.shape and key != w for key, w in of.items())
    return (named[0], of) if fits else None
