"""What TensorFlow users need beside the verbs: complete checkpoints, TF1 checkpoints, SavedModels of an average.

Importing this module imports TensorFlow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tensorflow as tf

from polyak import verbs
from polyak.dialects.tf1 import OF_USE, counts_by_use
from polyak.dialects.tf1_scopes import SUFFIX
from polyak.errors import AmbiguousRole, FileError, ModelError, WeightError
from polyak.file_verbs import source_of
from polyak.files.atomic import replacing_directory
from polyak.files.bundle_commit import replacing_bundle
from polyak.files.object_graph import TrackedTensor
from polyak.files.tensorbundle import TensorBundle
from polyak.files.tensorbundle_format import NOTE
from polyak.frameworks import Average, framework_of
from polyak.frameworks.tensorflow import FRAMEWORK, TensorFlowFramework
from polyak.frameworks.tensorflow_average import TensorFlowAverage
from polyak.frameworks.tensorflow_lending import refuse_graph
from polyak.frameworks.walk import leaves
from polyak.manifest import AVERAGE, RAW, Stored, digest, encode_note
from polyak.renaming import Rename, apply_rename, refuse_unused_renames
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
    ``<name>/ExponentialMovingAverage``, as ``tf.train.ExponentialMovingAverage`` does. That one is float32 for weights
    that are narrower: a Saver restores it into a variable of float32.

    Where layers are used in another order than they were created, one text more, ``_polyak_numbers_of_use``, says that
    the numbers in the names are those of their use; a Saver passes it over.

    Args:
        source: an average, a model, or a snapshot with at most one average.
        prefix: path of the checkpoint without ``.index``.
        rename: structural path to variable name, by globs: ``{"*": "net/*"}`` adds a scope.

    Raises:
        FileError: the directory does not exist.
        WeightError: two weights would have one name, or a name to rename is that of none.
        AmbiguousRole: the snapshot holds several averages.
        ModelError: the call stands within a graph.
    """
    refuse_graph("save_tf1")
    if isinstance(source, TensorFlowAverage):
        source.tell_left_out()
    arrays = _tf1_arrays(source, rename)
    held = [source_of(source, role).weights for role, _ in _sets(source)]
    texts = {OF_USE: ""} if any(map(counts_by_use, held)) else {}
    return _write_bundle(source, "+".join(role or RAW for role, _ in _sets(source)), _named(prefix), arrays, texts)


def export(average: Average, directory: str | os.PathLike[str], *signature: Any) -> Receipt:
    """Export a SavedModel whose ``serving_default`` runs the model with the averaged weights.

    The averaged values are stored under ``average/<path>`` with polyak's manifest in ``assets.extra``, so
    ``polyak.open(directory)`` finds them by structural path.

    Args:
        directory: must not exist yet, or be empty.
        signature: a ``tf.TensorSpec`` or a sample array for each argument of the model; a sample's batch dimension
            becomes free. A model that takes a list or a dictionary of inputs gets one of those, and is served by its
            keys.

    Raises:
        FileError: the directory is in use.
        ModelError: the average is not one of a TensorFlow model, there is no signature, or the call stands within a
            graph.
    """
    refuse_graph("export")
    if not isinstance(average, TensorFlowAverage):
        raise ModelError(f"expected an average of a TensorFlow model, received {type(average).__name__}")
    if not signature:
        hint = "export(average, directory, x) with a batch x of inputs, or a tf.TensorSpec for each input"
        raise ModelError("export: expected a sample of the model's inputs, received none", hint=hint)
    final = Path(directory)
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise FileError(f"file {str(final)!r}: expected no or an empty directory", hint="choose another name")
    served = _Served(average, [_spec(s) for s in signature])
    needed = sum(w.nbytes for w in average.bound.shadows.weights)
    held = average.snapshot()
    receipts: list[Receipt] = []

    def read_back(fresh: Path) -> None:
        receipts.append(_receipt(average, AVERAGE, fresh, final, arrays))

    with replacing_directory(final, needed, read_back) as fresh, _refusals_named(final):
        tf.saved_model.save(served, str(fresh), signatures={"serving_default": served.serve})
        stored = _write_note(average, fresh)
        arrays = {s.name: held[s.weight.path].astype(numpy_dtype(s.weight.dtype)) for s in stored}
    return receipts[0]


def write(checkpoint: tf.train.Checkpoint, prefix: str | os.PathLike[str]) -> str:
    """Write a checkpoint as ``checkpoint.write(prefix)`` does, and replace one under the same prefix in one step.

    TensorFlow itself writes the index in place: a process that is killed then leaves neither the old checkpoint nor the
    new one. Here it writes beside, everything reaches the disk and is read back, and a rename of the index comes last.
    ``checkpoint.read``, ``tf.train.load_checkpoint`` and ``polyak.open`` read it.

    Raises:
        FileError: the directory is not there, it cannot be written, or the prefix ends in no name.
        ModelError: what is given is no checkpoint.

    Example:
        >>> import tempfile
        >>> module = tf.Module(); module.w = tf.Variable([1.0])
        >>> path = write(tf.train.Checkpoint(module=module), tempfile.mkdtemp() + "/ckpt")
        >>> _ = module.w.assign([2.0]); _ = tf.train.Checkpoint(module=module).read(path)
        >>> module.w.numpy().tolist()
        [1.0]
    """
    if not callable(getattr(checkpoint, "write", None)):
        raise ModelError(
            f"write: expected a tf.train.Checkpoint, received {type(checkpoint).__name__}",
            hint="write(tf.train.Checkpoint(model=model), prefix)",
        )
    with replacing_bundle(_named(prefix), check=_read_all) as fresh, _refusals_named(Path(prefix)):
        checkpoint.write(str(fresh))
    return os.fspath(prefix)


def _named(prefix: str | os.PathLike[str]) -> Path:
    path = Path(prefix)
    if path.name in ("", ".."):
        raise FileError(
            f"file {os.fspath(prefix)!r}: expected a prefix that ends in a name", hint="such as run/ckpt-900"
        )
    return path


def _read_all(prefix: Path) -> None:
    """Reading compares the bytes with their checksums."""
    with TensorBundle(prefix) as bundle:
        for key, entry in bundle.entries.items():
            if entry.numeric:
                bundle.read(key)


@contextmanager
def _refusals_named(path: Path) -> Iterator[None]:
    """TensorFlow has errors of its own for what the system refuses it."""
    try:
        yield
    except tf.errors.OpError as error:
        raise FileError(f"file {str(path)!r}: cannot be written: {error.message:.300}") from error


class _Served(tf.Module):
    """What the SavedModel holds: the averaged values, whatever else the model needs, and the function that serves."""

    def __init__(self, average: TensorFlowAverage, specs: Sequence[tf.TensorSpec]) -> None:
        super().__init__()
        call, variables = average.framework.served(average)
        averaged = average.bound.shadows.variables
        self.average = {path: v for path, v in variables.items() if path in averaged}
        self.others = {path: v for path, v in variables.items() if path not in averaged}
        self.resources = _resources(call if isinstance(call, tf.Module) else average.followed())
        self.serve = tf.function(lambda *inputs: call(*inputs), input_signature=specs)


def _resources(model: Any) -> list[Any]:
    """What a model's function needs beside variables, such as tables of words: TensorFlow saves no function without."""
    held = (kv for module in FRAMEWORK.within(model) for kv in vars(module).items())
    resource = tf.saved_model.experimental.TrackableResource
    return [leaf for key, value in held for _, leaf in leaves(key, value) if isinstance(leaf, resource)]


def _spec(example: Any, name: str | None = None) -> Any:
    """What the function takes: tensors of any batch size, in dictionaries and lists as the example is."""
    if isinstance(example, tf.TensorSpec):
        return example
    if isinstance(example, Mapping):
        return {key: _spec(one, str(key)) for key, one in example.items()}
    if isinstance(example, list | tuple) and any(
        isinstance(one, np.ndarray | tf.Tensor | tf.TensorSpec) for one in example
    ):
        return [_spec(one) for one in example]
    tensor = tf.convert_to_tensor(example)
    return tf.TensorSpec((None, *tensor.shape[1:]) if tensor.shape.rank else (), tensor.dtype, name)


def _write_note(average: TensorFlowAverage, directory: Path) -> tuple[Stored, ...]:
    """The manifest, with the keys that TensorFlow chose for the averaged values and their bytes as stored."""
    with TensorBundle(directory) as bundle:
        keys = {path: key for key, t in _tensors(bundle).items() for path in t.paths}
        stored = tuple(_stored(keys["average", w.path], w, bundle) for w in average.bound.shadows.weights)
    manifest = msgspec.structs.replace(average.snapshot().manifest, weights=stored, integrity="xxh3-128")
    note = directory / NOTE
    note.parent.mkdir(exist_ok=True)
    note.write_bytes(encode_note(manifest))
    return stored


def _tensors(bundle: TensorBundle) -> Mapping[str, TrackedTensor]:
    assert bundle.graph is not None, "tf.saved_model.save writes an object graph"
    return bundle.graph.tensors


def _stored(key: str, weight: Weight, bundle: TensorBundle) -> Stored:
    array = bundle.read(key)
    return Stored(key, AVERAGE, replace(weight, dtype=array.dtype.name), digest(array))


def _tf1_arrays(source: Any, rename: Rename | None) -> dict[str, Array]:
    """Everything to write, by its name in the file; what is not averaged stands there once, raw where there is raw."""
    arrays: dict[str, Array] = {}
    sets = _sets(source)
    for role, suffix in sets:
        held = verbs.snapshot(source, role)
        refuse_unused_renames([w.path for w in held.weights], rename, verbs.label(source))
        alone = not suffix or all(other == SUFFIX for _, other in sets)
        for w in held.weights:
            if w.kind is Kind.TRAINABLE or (alone and w.kind is not Kind.SEED):
                name = apply_rename(w.path, rename) + (suffix if w.kind is Kind.TRAINABLE else "")
                _refuse_taken(name, arrays, source)
                arrays[name] = held[w.path]
    return arrays


def _refuse_taken(name: str, arrays: Mapping[str, Array], source: Any) -> None:
    if name in arrays:
        raise WeightError(
            f"{verbs.label(source)}: two weights would have this name: {name!r}", hint="rename them apart"
        )


def _sets(source: Any) -> list[tuple[str | None, str]]:
    if isinstance(source, TensorFlowAverage):
        return [(RAW, ""), (AVERAGE, SUFFIX)]
    if isinstance(source, Snapshot):
        return _sets_of(source)
    return [(RAW, "")]


def _sets_of(held: Snapshot) -> list[tuple[str | None, str]]:
    averages = [role for role in held.roles if role.startswith(AVERAGE)]
    if len(averages) > 1:
        raise AmbiguousRole(
            f"{verbs.label(held)}: expected one average, received {' and '.join(map(repr, averages))}",
            hint=f"take one: snapshot.select(role={averages[0]!r})",
        )
    return [(role, SUFFIX if role in averages else "") for role in held.roles]


def _write_bundle(source: Any, role: str, path: Path, arrays: Mapping[str, Array], texts: Mapping[str, str]) -> Receipt:
    """TensorFlow writes; what was written is read back before it takes its names."""
    receipts: list[Receipt] = []

    def read_back(fresh: Path) -> None:
        receipts.append(_receipt(source, role, fresh, path, arrays))

    needed = sum(a.nbytes for a in arrays.values())
    with replacing_bundle(path, needed, read_back) as fresh, _refusals_named(path):
        tf.raw_ops.SaveV2(
            prefix=str(fresh),
            tensor_names=[*arrays, *texts],
            shape_and_slices=[""] * (len(arrays) + len(texts)),
            tensors=[*(tf.constant(np.asarray(a)) for a in arrays.values()), *map(tf.constant, texts.values())],
        )
    return receipts[0]


def _receipt(source: Any, role: str, fresh: Path, path: Path, arrays: Mapping[str, Array]) -> Receipt:
    """Read everything back with polyak's own reader and compare."""
    with TensorBundle(fresh) as bundle:
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
