"""Every way from a trained model to a fresh instance. A route carries weights and says what arrived."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import polyak
import polyak.tensorflow
from polyak.demo.data import Digits
from polyak.demo.held import Arrival, Held
from polyak.demo.model import SLOW, Classifier, fresh, parts
from polyak.demo.training import accuracy
from polyak.snapshot import Array, Snapshot
from polyak.weights import Kind, Weight

SCOPE = "digits"


@dataclass(frozen=True, slots=True)
class Context:
    """What the routes start from.

    Attributes:
        source: the trained model, with its two averages.
        wanted: copies of what it holds, by role.
        directory: where files go.
    """

    source: Classifier
    wanted: Mapping[str, Held]
    digits: Digits
    directory: Path

    def arrival(self, role: str, got: Any, predict: Any, receipt: polyak.Receipt | None = None) -> Arrival:
        """What an instance received in one role; ``got`` is a live model or average, or already Held."""
        held = got if isinstance(got, Held) else Held.of(got)
        wanted = self.wanted[role] if held.count is not None else Held(self.wanted[role].values)
        return Arrival(role, held, wanted, accuracy(predict, self.digits), receipt)

    def whole_of(self, model: Classifier) -> list[Arrival]:
        """A whole instance: raw weights and both averages."""
        return [self.arrival(role, part, part) for role, part in parts(model).items()]


@dataclass(frozen=True, slots=True)
class Route:
    """A way to a fresh instance.

    Attributes:
        name: a few words.
        carry: does it.
    """

    name: str
    carry: Callable[[Context], list[Arrival]]


def into_a_model(c: Context) -> list[Arrival]:
    """Averaged weights become the weights of another model."""
    other = fresh()
    receipt = polyak.transfer(c.source.slow, other)
    return [c.arrival("slow", other, other, receipt)]


def into_averages(c: Context) -> list[Arrival]:
    """Whole states (values, count, rule) go into the averages of another model, which can train on from there."""
    other = fresh()
    for source, target in ((c.source, other), (c.source.fast, other.fast), (c.source.slow, other.slow)):
        polyak.transfer(source, target)
    return c.whole_of(other)


def tf1_saver(c: Context) -> list[Arrival]:
    """A name-based checkpoint, restored by TF1's own Saver in a TF1 graph and session."""
    prefix = c.directory / "tf1" / "model"
    prefix.parent.mkdir()
    polyak.tensorflow.save_tf1(c.source.slow, prefix, rename={"*": f"{SCOPE}/*"})
    return [_through_session(c, "raw", prefix), _through_session(c, "slow", prefix)]


def _through_session(c: Context, role: str, prefix: Path) -> Arrival:
    """What a TF1 session gets, carried on into a fresh Keras model."""
    weights = [w for w in polyak.snapshot(c.source).weights if w.kind is not Kind.SEED]
    arrays = restored_by_saver(prefix, weights, averaged=role != "raw")
    other = fresh()
    polyak.transfer(Snapshot.from_arrays(arrays), other)
    return Arrival(
        role, Held(arrays), Held({path: c.wanted[role].values[path] for path in arrays}), accuracy(other, c.digits)
    )


def restored_by_saver(prefix: Path, weights: Sequence[Weight], *, averaged: bool) -> dict[str, Array]:
    """What ``tf.compat.v1.train.Saver`` restores, under the names that TF1's own average asks for."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        variables = {w.path: _tf1_variable(w) for w in weights}
        names = tf.train.ExponentialMovingAverage(SLOW).variables_to_restore() if averaged else None
        v1.train.Saver(names).restore(session, str(prefix))
        return dict(session.run(variables))


def _tf1_variable(weight: Weight) -> Any:
    return tf.compat.v1.get_variable(
        f"{SCOPE}/{weight.path}",
        weight.shape,
        tf.as_dtype(weight.dtype),
        initializer=tf.zeros_initializer(),
        trainable=weight.kind is Kind.TRAINABLE,
    )


def second_process(c: Context) -> list[Arrival]:
    """TensorFlow's own checkpoint, restored with TensorFlow's own calls by another process."""
    checkpoint = whole(c.source).save(str(c.directory / "checkpoint" / "ckpt"))
    answer = c.directory / "second-process.json"
    run_second(checkpoint, answer)
    told = json.loads(answer.read_text())
    return [Arrival(r, Held(**told[r]["held"]), wanted, told[r]["accuracy"]) for r, wanted in c.wanted.items()]


def whole(model: Classifier) -> tf.train.Checkpoint:
    """A model and its averages. ``Weights``: TensorFlow's own walk of a Keras model leaves out layers in lists."""
    return tf.train.Checkpoint(model=polyak.tensorflow.Weights(model), fast=model.fast, slow=model.slow)


def run_second(checkpoint: str, answer: Path) -> None:
    """``python -m polyak.demo.second``, with the output of TensorFlow kept back unless it fails."""
    command = [sys.executable, "-m", "polyak.demo.second", checkpoint, str(answer)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    if done.returncode:
        raise polyak.errors.TransferError(
            f"the second process ended with {done.returncode}: {done.stderr.strip()[-500:]}",
            hint=f"run it alone: {' '.join(command)}",
        )


def served_model(c: Context) -> list[Arrival]:
    """A SavedModel that serves the averaged weights, loaded by TensorFlow alone."""
    directory = c.directory / "saved_model"
    average: Any = c.source.slow
    polyak.tensorflow.export(average, directory, c.digits.test_x)
    loaded = tf.saved_model.load(str(directory))
    serve = loaded.signatures["serving_default"]
    got = Held({path: variable.numpy() for path, variable in loaded.average.items()})
    arrival = c.arrival("slow", got, lambda x: _logits(serve(x)))
    x = tf.constant(c.digits.test_x)
    # Both as graphs: TensorFlow may round differently where it runs operation by operation.
    outputs = _logits(serve(x)).numpy(), tf.function(average)(x).numpy()
    return [replace(arrival, outputs=outputs)]


def _logits(served: Mapping[str, Any]) -> Any:
    (logits,) = served.values()
    return logits


def from_saved_model(c: Context) -> list[Arrival]:
    """The weights in a SavedModel's variables go into a live model."""
    other = fresh()
    receipt = polyak.transfer(c.directory / "saved_model", other)
    return [c.arrival("slow", other, other, receipt)]


def safetensors(c: Context) -> list[Arrival]:
    """One self-describing file with raw and averaged weights."""
    file, other = c.directory / "slow.safetensors", fresh()
    polyak.save(c.source.slow, file, weights="both")
    held = polyak.open(file)
    polyak.transfer(held.select(role="raw"), other)
    receipt = polyak.transfer(held.select(role="average"), other.slow)
    return [c.arrival("raw", other, other), c.arrival("slow", other.slow, other.slow, receipt)]


def keras_file(c: Context) -> list[Arrival]:
    """Keras' own whole-model file of a model that holds its averages as attributes."""
    file = c.directory / "model.keras"
    c.source.save(file)
    return _without_raw_seeds(c.whole_of(keras.saving.load_model(file)))


def keras_weights(c: Context) -> list[Arrival]:
    """Keras' own weights file, into a fresh instance."""
    file, other = c.directory / "model.weights.h5", fresh()
    c.source.save_weights(file)
    other.load_weights(file)
    return _without_raw_seeds(c.whole_of(other))


def _without_raw_seeds(arrivals: list[Arrival]) -> list[Arrival]:
    """Keras' own files keep no random seeds of a model; those in its averages are kept."""
    return [a.without("*/seed_generator/*") if a.role == "raw" else a for a in arrivals]


ROUTES = (
    Route("memory: into a model", into_a_model),
    Route("memory: whole state", into_averages),
    Route("TF1 Saver in a session", tf1_saver),
    Route("Checkpoint, 2nd process", second_process),
    Route("SavedModel, served", served_model),
    Route("SavedModel, into a model", from_saved_model),
    Route("safetensors", safetensors),
    Route("Keras .keras", keras_file),
    Route("Keras .weights.h5", keras_weights),
)
