"""The state of a TensorFlow average beside its values: counters, the note in checkpoints, the target of transfers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

import tensorflow as tf

from polyak.frameworks.tensorflow_target import Variables
from polyak.manifest import State
from polyak.transfer.target import PutBack, Target
from polyak.weights import Weight


class Stateful(Protocol):
    """The average that a state belongs to."""

    @property
    def label(self) -> str:
        """What errors call the average."""

    def memo(self) -> str:
        """Rule and evidence as JSON text."""

    def compare_memo(self, text: bytes | str) -> None:
        """Warn if a restored note does not agree."""

    def refuse_swapped_file(self) -> None:
        """Raise Applied while the model holds averaged values."""

    def hold_state(self) -> PutBack:
        """Remember rule and counts."""

    def adopt(self, state: State | None) -> None:
        """Take over rule and counts."""


class Ref:
    """Holds an object where TensorFlow and Keras shall not look for variables."""

    def __init__(self, value: Any) -> None:
        self.value = value


class ShadowTarget(Target):
    """The shadow values of an average, with its rule and counts."""

    def __init__(self, average: Stateful, shadows: Variables) -> None:
        self.label = f"average {average.label}"
        self._average = average
        self._shadows = shadows

    @property
    def weights(self) -> tuple[Weight, ...]:
        return self._shadows.weights

    def read(self, path: str) -> Any:
        return self._shadows.read(path)

    def write(self, path: str, value: Any) -> None:
        self._shadows.write(path, value)

    def hold(self, path: str) -> PutBack:
        return self._shadows.hold(path)

    def hold_state(self) -> PutBack:
        return self._average.hold_state()

    def adopt(self, state: State | None) -> None:
        self._average.adopt(state)


@dataclass(frozen=True, slots=True)
class Counters:
    """Updates, refused updates, and whether the model holds averaged values now."""

    updates: tf.Variable
    refused: tf.Variable
    in_use: tf.Variable

    @classmethod
    def at_zero(cls) -> Counters:
        return cls(_counter("count"), _counter("skipped"), tf.Variable(False, trainable=False))


class Memo(tf.train.experimental.PythonState):
    """Rule and evidence, written into a TensorFlow checkpoint beside the values."""

    def __init__(self, average: Stateful) -> None:
        super().__init__()
        self._average = Ref(average)

    def serialize(self) -> str:
        average = cast(Stateful, self._average.value)
        average.refuse_swapped_file()
        return average.memo()

    def deserialize(self, string_value: bytes) -> None:
        cast(Stateful, self._average.value).compare_memo(string_value)


def _counter(name: str) -> tf.Variable:
    return tf.Variable(0, dtype=tf.int64, trainable=False, name=name)
