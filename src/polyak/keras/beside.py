"""Other callbacks beside ``Averaging``: which do the right thing in any order, and which cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import keras

from polyak.errors import ModelError

# Keras' own that write or restore the model's weights by a metric; each has an attribute ``monitor``.
_RESTORES = (keras.callbacks.EarlyStopping,)
_WRITES = (keras.callbacks.ModelCheckpoint,)
_CHOOSES = 'keep the best of a role with Averaging(..., best="{metric}", finish="average")'
# Keras takes the direction from a metric's name, and knows none of an average's.
_DIRECTION = ', and mode="min" or mode="max", since Keras does not know which is better'


class Asked(Protocol):
    """What the callback was asked for."""

    evaluate: str
    finish: str
    best: str | None
    name: str


def refuse_conflicts(callbacks: Iterable[Any], asked: Asked) -> None:
    """Raise ModelError for a callback that would mix up the two sets of weights or lose one of them."""
    for other in callbacks:
        if isinstance(other, keras.callbacks.SwapEMAWeights):
            _refuse(other, "swaps the optimizer's own average into the model", "leave it out: Averaging does its work")
        if isinstance(other, keras.callbacks.OrbaxCheckpoint):
            _refuse(other, "writes files without the average", "use ModelCheckpoint or BackupAndRestore: they keep it")
        if isinstance(other, _WRITES) and other.filepath.endswith(".h5") and not other.save_weights_only:
            why = f"writes {other.filepath!r} in Keras' legacy format, without the average"
            _refuse(other, why, "let the name end in .keras, or in .weights.h5 with save_weights_only=True")
        if restores(other):
            _refuse_restoring(other, asked)
        if isinstance(other, _WRITES) and other.save_best_only and judges_average(other.monitor, asked):
            why = f"chooses by {other.monitor!r}, a metric of the average, and Keras loads the raw weights of its file"
            _refuse(other, why, _CHOOSES.format(metric=other.monitor))


def restores(other: Any) -> bool:
    """Whether a callback puts other raw weights into the model at the end of ``fit``, and leaves the average."""
    return isinstance(other, _RESTORES) and other.restore_best_weights


def refuse_several(averagings: Sequence[Asked]) -> None:
    """Raise ModelError where several of our own want the same name, the same place in the logs, or the same model."""
    for wish, wanted, instead in (
        ("of one name", [a.name for a in averagings], "give each a name=: it is a part of its metrics' names"),
        (
            'with evaluate="average"',
            [True for a in averagings if a.evaluate == "average"],
            'use evaluate="both": each average has metrics of its own',
        ),
        (
            'with finish="average" or best=',
            [True for a in averagings if a.finish == "average" or a.best],
            "ask it of one: fit can end with one set in the model",
        ),
    ):
        if len(set(wanted)) < len(wanted):
            raise ModelError(f"polyak.keras.Averaging {wish}: expected one in the list, received several", hint=instead)


def refuse_shared(averages: Mapping[str, object]) -> None:
    """Raise ModelError for an average that two callbacks, which are called so, would move both."""
    seen: dict[int, str] = {}
    for name, average in averages.items():
        first = seen.setdefault(id(average), name)
        if first != name:
            raise ModelError(
                f"polyak.keras.Averaging {first!r} and {name!r}: expected an average for each, received one for both, "
                "which would move twice",
                hint="leave one of the two out, or give it a rule",
            )


def judges_average(metric: str, asked: Asked) -> bool:
    """Whether a metric in the logs is one of the average."""
    if asked.evaluate == "average":
        return metric.startswith("val_")
    return asked.evaluate == "both" and metric.startswith(f"val_{asked.name}_")


def _refuse_restoring(other: Any, asked: Asked) -> None:
    if judges_average(other.monitor, asked):
        why = f"chooses by {other.monitor!r}, a metric of the average, and restores raw weights"
        direction = _DIRECTION if asked.evaluate == "both" and other.mode == "auto" else ""
        _refuse(other, why, f"set restore_best_weights=False{direction}; {_CHOOSES.format(metric=other.monitor)}")
    if asked.best:
        why = f"restores raw weights of its own best epoch over both sets of best={asked.best!r}"
        _refuse(other, why, "set restore_best_weights=False: best= restores")
    if asked.finish == "average":
        why = "restores raw weights over the average that fit is to finish with"
        _refuse(other, why, f"set restore_best_weights=False; {_CHOOSES.format(metric=other.monitor)}")


def _refuse(other: Any, why: str, instead: str) -> None:
    raise ModelError(f"{type(other).__name__} beside polyak.keras.Averaging: it {why}", hint=instead)
