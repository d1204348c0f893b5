"""What a checkpoint says beside its tensors: the optimizer's slots, and the manifest in a SavedModel."""

from __future__ import annotations

from pathlib import Path

import pytest

import polyak
from polyak.errors import DamagedFile, FileError, UnknownFormat

tf = pytest.importorskip("tensorflow")

import polyak.tensorflow  # noqa: E402  (only if TensorFlow is there)

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


class Scaling(tf.Module):
    """One weight, which can be served."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = tf.Variable([1.0, 2.0])

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return x * self.kernel


def trained(directory: Path) -> Path:
    """A checkpoint of a module and its optimizer with momentum."""
    module, optimizer = Scaling(), tf.compat.v1.train.MomentumOptimizer(0.1, 0.9)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(module.kernel**2)
    optimizer.apply_gradients([(tape.gradient(loss, module.kernel), module.kernel)])
    return Path(tf.train.Checkpoint(model=module, optimizer=optimizer).save(str(directory / "ckpt")))


def copied(source: Path, target: Path, without: str = "no such name") -> Path:
    """The checkpoint again, by TensorFlow's own operations, less the tensors of a name."""
    reader = tf.train.load_checkpoint(str(source))
    names = [name for name in reader.get_variable_to_shape_map() if without not in name]
    tensors = [tf.constant(reader.get_tensor(name)) for name in names]
    tf.raw_ops.SaveV2(prefix=str(target), tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)
    return target


def test_a_slot_without_its_tensor_is_refused(tmp_path: Path) -> None:
    saved = trained(tmp_path)
    assert "model/kernel" in "".join(polyak.open(copied(saved, tmp_path / "whole")))
    with pytest.raises(DamagedFile, match=r"tensor 'model/kernel/.*momentum.*expected numbers by the object graph"):
        polyak.open(copied(saved, tmp_path / "less", without=".OPTIMIZER_SLOT"))


def test_a_manifest_longer_than_one_of_so_few_tensors_can_be_is_refused(tmp_path: Path) -> None:
    ema = polyak.EMA(Scaling(), 0.5)
    polyak.tensorflow.export(ema, tmp_path / "served", tf.TensorSpec((None, 2)))
    note = tmp_path / "served" / "assets.extra" / "polyak.json"
    text = note.read_bytes()
    note.write_bytes(text + b" " * 10_000)
    assert polyak.open(tmp_path / "served").roles == ("average",)
    note.write_bytes(text + b" " * 1_000_000)
    with pytest.raises(DamagedFile, match=r"polyak\.json': expected a manifest, received 1,\d\d\d,\d\d\d bytes"):
        polyak.open(tmp_path / "served")


def test_every_file_of_a_checkpoint_leads_to_it(tmp_path: Path) -> None:
    prefix = trained(tmp_path)
    for end in ("", ".index", ".data-00000-of-00001"):
        assert set(polyak.open(Path(f"{prefix}{end}"))) == set(polyak.open(prefix))
    Path(f"{prefix}.index").unlink()
    with pytest.raises(FileError, match=r"expected ckpt-1\.index beside it"):
        polyak.open(Path(f"{prefix}.data-00000-of-00001"))


@pytest.mark.parametrize("name", ["", "saved_model.pbtxt"])
def test_a_saved_model_that_is_text_is_named_and_its_weights_are_offered(tmp_path: Path, name: str) -> None:
    (tmp_path / "saved_model.pbtxt").write_text("saved_model_schema_version: 1\n")
    with pytest.raises(UnknownFormat, match="received a SavedModel that is written as text") as refused:
        polyak.open(tmp_path / name)
    assert refused.value.hint == "save it anew: tf.saved_model.save writes it so"
    (tmp_path / "variables").mkdir()
    (tmp_path / "variables" / "variables.index").touch()
    with pytest.raises(UnknownFormat) as refused:
        polyak.open(tmp_path / name)
    assert refused.value.hint == f"open its weights alone: {str(tmp_path / 'variables' / 'variables')!r}"


class Words(tf.Module):
    """A weight beside texts: an array of them, one of them, and a table that maps them to numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = tf.Variable([1.0, 2.0])
        self.names = tf.Variable(["a", "b"])
        self.name_of_it = tf.Variable("x")
        self.table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)


def test_texts_and_variants_of_a_checkpoint_are_named(tmp_path: Path) -> None:
    words, data = Words(), iter(tf.data.Dataset.range(5))
    ema = polyak.EMA(Scaling(), 0.5)
    saved = tf.train.Checkpoint(words=words, data=data, ema=ema).save(str(tmp_path / "ckpt"))
    held = polyak.open(saved)
    value = ".ATTRIBUTES/VARIABLE_VALUE"
    assert held.manifest.unread == {
        f"words/names/{value}": "an array of texts",
        f"words/name_of_it/{value}": "a text",
        "words/table/.ATTRIBUTES/table-keys": "an array of texts",
        "data/.ATTRIBUTES/ITERATOR_STATE": "a variant of TensorFlow",
    }
    assert "not read: " in held.manifest.note


def test_texts_of_a_saved_model_are_named(tmp_path: Path) -> None:
    tf.saved_model.save(Words(), str(tmp_path / "served"))
    unread = polyak.open(tmp_path / "served").manifest.unread
    assert unread["names/.ATTRIBUTES/VARIABLE_VALUE"] == "an array of texts"
    assert unread["name_of_it/.ATTRIBUTES/VARIABLE_VALUE"] == "a text"


def test_an_average_alone_leaves_nothing_unread(tmp_path: Path) -> None:
    saved = tf.train.Checkpoint(ema=polyak.EMA(Scaling(), 0.5)).save(str(tmp_path / "ckpt"))
    assert polyak.open(saved).manifest.unread == {}


@pytest.mark.parametrize("version", [1, 2])
def test_texts_of_a_checkpoint_saved_by_name_are_named(tmp_path: Path, version: int) -> None:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.get_variable("kernel", initializer=[1.0, 2.0])
        tf.compat.v1.get_variable("names", initializer=["a", "b"])
        session.run(tf.compat.v1.global_variables_initializer())
        saved = tf.compat.v1.train.Saver(write_version=version).save(session, str(tmp_path / "model"))
    held = polyak.open(saved)
    assert (list(held), held.manifest.unread) == (["kernel"], {"names": "an array of texts"})


def test_two_attributes_that_an_underscore_alone_tells_apart_keep_it(tmp_path: Path) -> None:
    module = tf.Module()
    module.kernel, module._kernel, module._other = (tf.Variable([i]) for i in (1.0, 2.0, 3.0))
    held = polyak.open(tf.train.Checkpoint(module).write(str(tmp_path / "ckpt")))
    assert {name: value.tolist() for name, value in held.items()} == {"kernel": [1], "_kernel": [2], "other": [3]}
