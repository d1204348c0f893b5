"""What TensorFlow users need beside the verbs: complete checkpoints, TF1 checkpoints, SavedModels of an average.

Importing this module imports TensorFlow.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tensorflow as tf

from polyak import verbs
from polyak.dialects.tf1 import SUFFIX
from polyak.errors import FileError, ModelError
from polyak.files.atomic import sync_directory
from polyak.files.object_graph import TrackedTensor
from polyak.files.tensorbundle import TensorBundle
from polyak.files.tensorbundle_format import NOTE
from polyak.frameworks import Average, framework_of
from polyak.frameworks.tensorflow import TensorFlowFramework
from polyak.frameworks.tensorflow_average import TensorFlowAverage
from polyak.manifest import AVERAGE, RAW, Stored, digest
from polyak.renaming import Rename, apply_rename
from polyak.snapshot import Array, Snapshot
from polyak.transfer.receipt import Moved, Receipt
from polyak.weights import Kind, Weight, numpy_dtype


class Weights(tf.__internal__.tracking.AutoTrackable):
    """Every weight of a model under its structural path, for ``tf.train.Checkpoint``.

    ``tf.train.Checkpoint(model=keras_model)`` leaves out, without a word, the layers that a Keras 3
    model holds in lists, tuples and dictionaries, and all of its asserts pass on restore. This holds all.

    Raises:
        UnbuiltModel: the model has no weights yet.

    Example:
        >>> module = tf.Module(); module.layers = [tf.Variable([1.0]), tf.Variable([2.0])]
        >>> sorted(Weights(module).raw)
        ['layers/0', 'layers/1']
    """

    def __init__(self, model: Any) -> None:
        self.raw = dict(_framework(model).variables(model, {}).trackables)


def lacking(root: Any, model: Any) -> tuple[str, ...]:
    """Paths of the model's weights that a TensorFlow checkpoint of ``root`` would leave out.

    Args:
        root: what is to be saved: a ``tf.train.Checkpoint`` or any trackable, for example the model itself.

    Example:
        >>> module = tf.Module(); module.w = tf.Variable([1.0])
        >>> lacking(tf.train.Checkpoint(module=module), module)
        ()
    """
    seen: dict[int, Any] = {}
    queue = [root]
    while queue:
        node = queue.pop()
        if id(node) not in seen:
            seen[id(node)] = node
            queue += list(node._trackable_children().values())
    framework = _framework(model)
    stored = {id(framework.native(v)) for v in seen.values() if framework.is_variable(v)}
    variables = framework.variables(model, {}).variables
    return tuple(path for path, v in variables.items() if id(v) not in stored)


def save_tf1(source: Any, prefix: str | os.PathLike[str], rename: Rename | None = None) -> Receipt:
    """Write a name-based checkpoint that ``tf.compat.v1.train.Saver`` restores.

    An average writes its model's raw weights under their own names, and what it averages also under
    ``<name>/ExponentialMovingAverage``, as ``tf.train.ExponentialMovingAverage`` does.

    Args:
        source: an average, a model, or a snapshot.
        prefix: path of the checkpoint without ``.index``.
        rename: structural path to variable name, by globs: ``{"*": "net/*"}`` adds a scope.

    Raises:
        FileError: the directory does not exist.
    """
    arrays = _tf1_arrays(source, rename)
    path = Path(prefix)
    _write_bundle(path, arrays)
    return _receipt(source, "+".join(role or RAW for role, _ in _sets(source)), path, arrays)


def export(average: Average, directory: str | os.PathLike[str], *signature: Any) -> Receipt:
    """Export a SavedModel whose ``serving_default`` runs the model with the averaged weights.

    The averaged values are stored under ``average/<path>`` with polyak's manifest in ``assets.extra``, so
    ``polyak.open(directory)`` finds them by structural path.

    Args:
        directory: must not exist yet, or be empty.
        signature: a ``tf.TensorSpec`` or a sample array for each input; a sample's batch dimension becomes free.

    Raises:
        FileError: the directory is in use.
        ModelError: the average is not one of a TensorFlow model.
    """
    if not isinstance(average, TensorFlowAverage):
        raise ModelError(f"expected an average of a TensorFlow model, received {type(average).__name__}")
    final = Path(directory)
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise FileError(f"file {str(final)!r}: expected no or an empty directory", hint="choose another name")
    served = _Served(average, [_spec(s) for s in signature])
    beside = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}."))
    try:
        tf.saved_model.save(served, str(beside), signatures={"serving_default": served.serve})
        stored = _write_note(average, beside)
        beside.chmod(0o755)
        beside.replace(final)
        sync_directory(final.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    held = average.snapshot()
    arrays = {s.name: held[s.weight.path].astype(numpy_dtype(s.weight.dtype)) for s in stored}
    return _receipt(average, AVERAGE, final, arrays)


class _Served(tf.Module):
    """What the SavedModel holds: the averaged values, whatever else the model needs, and the function that serves."""

    def __init__(self, average: TensorFlowAverage, specs: Sequence[tf.TensorSpec]) -> None:
        super().__init__()
        call, variables = average.framework.served(average)
        averaged = average.bound.shadows.variables
        self.average = {path: v for path, v in variables.items() if path in averaged}
        self.others = {path: v for path, v in variables.items() if path not in averaged}
        self.serve = tf.function(lambda *inputs: call(*inputs), input_signature=specs)


def _spec(example: Any) -> tf.TensorSpec:
    if isinstance(example, tf.TensorSpec):
        return example
    tensor = tf.convert_to_tensor(example)
    return tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype)


def _write_note(average: TensorFlowAverage, directory: Path) -> tuple[Stored, ...]:
    """The manifest, with the keys that TensorFlow chose for the averaged values and their bytes as stored."""
    with TensorBundle(directory) as bundle:
        keys = {path: key for key, t in _tensors(bundle).items() for path in t.paths}
        stored = tuple(_stored(keys["average", w.path], w, bundle) for w in average.bound.shadows.weights)
    manifest = msgspec.structs.replace(average.snapshot().manifest, weights=stored, integrity="xxh3-128")
    note = directory / NOTE
    note.parent.mkdir(exist_ok=True)
    note.write_text(manifest.to_json())
    return stored


def _tensors(bundle: TensorBundle) -> Mapping[str, TrackedTensor]:
    assert bundle.graph is not None, "tf.saved_model.save writes an object graph"
    return bundle.graph.tensors


def _stored(key: str, weight: Weight, bundle: TensorBundle) -> Stored:
    array = bundle.read(key)
    return Stored(key, AVERAGE, replace(weight, dtype=array.dtype.name), digest(array))


def _tf1_arrays(source: Any, rename: Rename | None) -> dict[str, Array]:
    """Everything to write, by its name in the file."""
    arrays: dict[str, Array] = {}
    for role, suffix in _sets(source):
        held = verbs.snapshot(source, role)
        for w in held.weights:
            if w.kind is Kind.TRAINABLE or (not suffix and w.kind is not Kind.SEED):
                arrays[apply_rename(w.path, rename) + suffix] = held[w.path]
    return arrays


def _sets(source: Any) -> list[tuple[str | None, str]]:
    if isinstance(source, TensorFlowAverage):
        return [(RAW, ""), (AVERAGE, SUFFIX)]
    if isinstance(source, Snapshot):
        return [(role, SUFFIX if role.startswith(AVERAGE) else "") for role in source.roles]
    return [(RAW, "")]


def _write_bundle(path: Path, arrays: Mapping[str, Array]) -> None:
    """TensorFlow writes; the index, which makes the checkpoint valid, takes its name last."""
    if not path.parent.is_dir():
        raise FileError(f"file {str(path)!r}: its directory does not exist", hint=f"create {str(path.parent)!r} first")
    beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        prefix = beside / path.name
        names = list(arrays)
        tf.raw_ops.SaveV2(
            prefix=str(prefix),
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=[tf.constant(np.asarray(a)) for a in arrays.values()],
        )
        for written in sorted(beside.iterdir(), key=lambda p: p.suffix == ".index"):
            _sync(written)
            written.replace(path.parent / written.name)
        sync_directory(path.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _receipt(source: Any, role: str, path: Path, arrays: Mapping[str, Array]) -> Receipt:
    """Read everything back with polyak's own reader and compare."""
    with TensorBundle(path) as bundle:
        moved = tuple(_moved(name, array, bundle.read(name)) for name, array in arrays.items())
    count = source.count if isinstance(source, TensorFlowAverage) else None
    return Receipt(verbs.label(source), f"checkpoint {str(path)!r}", role, moved, count=count)


def _moved(name: str, array: Array, found: Array) -> Moved:
    if digest(array) != digest(found) or array.dtype != found.dtype:
        raise FileError(f"weight {name!r}: the bytes read back differ from those written", hint="check the disk")
    return Moved(name, name, array.dtype.name, found.dtype.name, found.nbytes, digest(found))


def _framework(model: Any) -> TensorFlowFramework:
    framework = framework_of(model)
    if not isinstance(framework, TensorFlowFramework):
        raise ModelError(f"expected a model on TensorFlow, received {type(model).__name__}")
    return framework
