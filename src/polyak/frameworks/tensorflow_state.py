"""The state of a TensorFlow average beside its values: counters, and the note in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import tensorflow as tf

from polyak.frameworks.base import Average
from polyak.frameworks.stateful import Ref
from polyak.frameworks.tensorflow_placing import Place


@dataclass(frozen=True, slots=True)
class Counters:
    """Updates, refused updates, and whether the model holds averaged values now; and the place of all of them."""

    place: Place
    updates: tf.Variable
    refused: tf.Variable
    in_use: tf.Variable

    @classmethod
    def at(cls, place: Place, before: Counters | None) -> Counters:
        """Counters that go on from those before, or from zero."""
        zero, no = tf.constant(0, tf.int64), tf.constant(False)
        held = (zero, zero, no) if before is None else (before.updates, before.refused, before.in_use)
        updates, refused, in_use = (v.read_value() if isinstance(v, tf.Variable) else v for v in held)
        return cls(place, place.variable(updates, "count"), place.variable(refused, "skipped"), place.variable(in_use))


class Noted(Protocol):
    """What a memo asks of its average."""

    def begin(self) -> None: ...
    def refuse_swapped_file(self) -> None: ...
    def tell_left_out(self) -> None: ...
    def memo(self) -> str: ...
    def compare_memo(self, text: bytes | str) -> None: ...


class Memo(tf.train.experimental.PythonState):
    """Rule and evidence, written into a TensorFlow checkpoint beside the values."""

    def __init__(self, average: Noted) -> None:
        super().__init__()
        self._average = Ref(average)

    def serialize(self) -> str:
        average = cast(Noted, self._average.value)
        with tf.__internal__.eager_context.eager_mode():  # a SavedModel is written from within a graph
            average.refuse_swapped_file()
            average.tell_left_out()
            return average.memo()

    def deserialize(self, string_value: bytes) -> None:
        average = cast(Noted, self._average.value)
        average.begin()
        average.compare_memo(string_value)

    @tf.autograph.experimental.do_not_convert
    def _copy_trackable_to_cpu(self, object_map: MutableMapping[Any, Any]) -> None:
        """A save in a thread writes copies: what holds is what holds when the variables are copied.

        TensorFlow copies eagerly the first time, and from then on by a function that it traces once.
        """
        copied = object_map.setdefault(self, _Copied())
        if tf.executing_eagerly():
            copied.text = self.serialize()
        else:
            tf.py_function(lambda: setattr(copied, "text", self.serialize()), [], [])


class _Copied(tf.train.experimental.PythonState):
    """What a memo said when it was copied. TensorFlow restores the memo itself."""

    text = ""

    def serialize(self) -> str:
        return self.text

    def deserialize(self, string_value: bytes) -> None:
        raise NotImplementedError


class HeldByTensorFlow(tf.__internal__.tracking.Trackable, Mapping[str, Average]):
    """Averages by name, of which a TensorFlow checkpoint makes children of these names."""

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> dict[str, Any]:
        del save_type, kwargs
        return dict(self)

    def _lookup_dependency(self, name: str, cached_dependencies: Any = None) -> Any:
        del cached_dependencies
        return self.get(name)
