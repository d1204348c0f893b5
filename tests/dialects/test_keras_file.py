"""Files that Keras wrote, read and paired with other instances of the model; every value compared bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tests.frameworks.zoo import ZOO, dense, vectors

import polyak
from polyak.errors import AmbiguousMatch, DamagedFile, MissingWeight, UnexpectedWeight
from polyak.frameworks import framework_of

KERAS = [n for n in ZOO if not n.startswith("Module")]
PLAIN = "the file cannot tell"


def values(model: Any) -> dict[str, np.ndarray]:
    return {k: v for k, v in polyak.snapshot(model).items() if "seed" not in k}


def scattered(model: Any) -> Any:
    """Another value in every element of the model, so that no two arrays of a shape are equal."""
    start = 0
    target = framework_of(model).target(model)
    for w in target.weights:
        if "seed" not in w.path:
            array = (np.arange(start, start + w.size) % 251).reshape(w.shape)
            target.write(w.path, array.astype(target.read(w.path).dtype))
            start += w.size
    return model


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert found[path].tobytes() == value.tobytes(), path


def save(model: Any, path: Path) -> Path:
    if path.suffix == ".keras":
        model.save(str(path))
    elif path.suffix == ".json":
        model.save_weights(str(path), max_shard_size=2e-5)
    else:
        model.save_weights(str(path))
    return path


@pytest.mark.parametrize("name", KERAS)
def test_a_file_of_keras_pairs_with_another_instance(tmp_path: Path, name: str) -> None:
    model, other = scattered(ZOO[name].built()), ZOO[name].built()
    path = save(model, tmp_path / "a.weights.h5")
    polyak.transfer(path, other, weights="raw")
    assert_same(values(other), values(model))


@pytest.mark.parametrize("name", ["sequential", "functional_branches", "sequential_in_functional", "brain"])
@pytest.mark.parametrize("file", ["a.keras", "a.weights.json"])
def test_archives_and_shards_pair_alike(tmp_path: Path, name: str, file: str) -> None:
    model, other = scattered(ZOO[name].built()), ZOO[name].built()
    polyak.transfer(save(model, tmp_path / file), other, weights="raw")
    assert_same(values(other), values(model))


@pytest.mark.parametrize("name", [n for n in KERAS if "egacy" not in n])
def test_the_places_of_a_live_model_are_those_of_its_file(tmp_path: Path, name: str) -> None:
    """The oracle is Keras: each weight lies at its place in the file that Keras wrote."""
    model = scattered(ZOO[name].built())
    stored = polyak.open(save(model, tmp_path / "a.weights.h5")).select(role="raw")
    weights = [w for w in framework_of(model).target(model).weights if w.kind != "seed"]
    assert {w.evidence.saved for w in weights if w.evidence} == set(stored)
    for w in weights:
        assert w.evidence is not None
        assert stored[w.evidence.saved].tobytes() == polyak.snapshot(model)[w.path].tobytes()


def test_a_file_says_what_it_cannot_tell(tmp_path: Path) -> None:
    snap = polyak.open(save(ZOO["sequential"].built(), tmp_path / "a.weights.h5"))
    assert snap.roles == ("raw",)
    assert snap.manifest.confidence == "unknown"
    assert PLAIN in snap.manifest.evidence[0]
    assert "changed places are told apart only if they have names" in snap.manifest.evidence[1]


class Stubborn(layers.Dense):
    """Stores itself in a way of its own."""

    def save_own_variables(self, store: Any) -> None:
        raise RuntimeError("not now")


def test_a_layer_that_stores_itself_in_its_own_way_has_no_place() -> None:
    model = keras.Sequential([keras.Input((4,)), Stubborn(4), dense()])
    places = {w.path: w.evidence.saved for w in framework_of(model).target(model).weights if w.evidence}
    assert places == {
        "stubborn/kernel": "",
        "stubborn/bias": "",
        "dense/kernel": "layers/dense/vars/0",
        "dense/bias": "layers/dense/vars/1",
    }


def branches(left: str | None, right: str | None, *, swapped: bool = False) -> Any:
    x = keras.Input((4,))
    a, b = dense(name=left), dense(name=right)
    first, second = (b(x), a(x)) if swapped else (a(x), b(x))
    return keras.Model(x, layers.Concatenate()([first, second]))


def test_branches_that_changed_places_are_refused_by_their_names(tmp_path: Path) -> None:
    path = save(scattered(branches("left", "right")), tmp_path / "a.weights.h5")
    with pytest.raises(AmbiguousMatch, match=r"'right/kernel': expected one source.*'layers/dense_1/vars/0' by name"):
        polyak.transfer(path, branches("left", "right", swapped=True))


def test_renamed_layers_are_paired_by_their_place(tmp_path: Path) -> None:
    model, other = scattered(branches("left", "right")), branches("a", "b")
    polyak.transfer(save(model, tmp_path / "a.weights.h5"), other)
    assert values(other)["a/kernel"].tobytes() == values(model)["left/kernel"].tobytes()
    assert values(other)["b/kernel"].tobytes() == values(model)["right/kernel"].tobytes()


def test_the_place_is_taken_where_the_caller_says_so(tmp_path: Path) -> None:
    model, other = scattered(branches("left", "right")), branches("left", "right", swapped=True)
    polyak.transfer(save(model, tmp_path / "a.weights.h5"), other, by="saved")
    assert values(other)["right/kernel"].tobytes() == values(model)["left/kernel"].tobytes()


class Named(keras.Model):
    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.blocks = [keras.Sequential([dense()], name=name) for name in names]

    def call(self, x: tf.Tensor) -> tf.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_the_name_of_an_outer_layer_objects_for_those_inside(tmp_path: Path) -> None:
    model, other = Named(("left", "right")), Named(("right", "left"))
    model(vectors())
    other(vectors())
    with pytest.raises(AmbiguousMatch, match=r"by saved and .* by name"):
        polyak.transfer(save(scattered(model), tmp_path / "a.weights.h5"), other)


class Heads(keras.Model):
    def __init__(self, *names: str) -> None:
        super().__init__()
        self.heads = {name: dense(name=name) for name in names}

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.heads["a"](x) + 2 * self.heads["b"](x)


def test_a_dictionary_in_another_order_is_refused_where_the_layers_have_names(tmp_path: Path) -> None:
    model, other = Heads("a", "b"), Heads("b", "a")
    model(vectors())
    other(vectors())
    with pytest.raises(AmbiguousMatch, match=r"by saved and .* by name"):
        polyak.transfer(save(scattered(model), tmp_path / "a.weights.h5"), other)


def test_a_layer_too_many_or_too_few_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    small = keras.Sequential([keras.Input((4,)), dense()])
    large = keras.Sequential([keras.Input((4,)), dense(), dense()])
    before = values(large)
    with pytest.raises(MissingWeight, match="'dense_1/kernel'"):
        polyak.transfer(save(small, tmp_path / "s.weights.h5"), large)
    assert_same(values(large), before)
    with pytest.raises(UnexpectedWeight, match="'layers/dense_1/vars/0'"):
        polyak.transfer(save(large, tmp_path / "l.weights.h5"), small)


@keras.saving.register_keras_serializable("polyak-tests")
class Teacher(keras.Model):
    """A model that holds averages of itself."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stem = dense()
        self.blocks = [dense(), dense()]
        self.norm = layers.BatchNormalization()
        self.fast, self.slow = polyak.EMA(self, decay=0.5), polyak.EMA(self, decay=0.9)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


@pytest.fixture
def teacher() -> Any:
    model = Teacher()
    model(vectors())
    model.fast.update()
    model.slow.update()
    scattered(model)
    model.fast.update()
    model.slow.update()
    return model


@pytest.mark.parametrize("file", ["a.weights.h5", "a.keras"])
def test_averages_of_polyak_are_found_by_their_note(tmp_path: Path, teacher: Any, file: str) -> None:
    snap = polyak.open(save(teacher, tmp_path / file))
    assert snap.roles == ("raw", "average:fast", "average:slow")
    slow = snap.select(role="average:slow")
    assert slow.state == teacher.slow.state
    assert_same({k: v for k, v in slow.items() if "seed" not in k}, values(teacher.slow))
    assert_same(dict(snap.select(role="raw")), values(teacher))
    assert any("fast: an average of polyak's" in sentence for sentence in snap.manifest.evidence)


def test_an_average_in_a_file_goes_into_a_model_and_into_an_average(tmp_path: Path, teacher: Any) -> None:
    path, other = save(teacher, tmp_path / "a.weights.h5"), Teacher()
    other(vectors())
    polyak.transfer(path, other, weights="average:slow")
    assert_same(values(other), {k: v.astype(np.float32) for k, v in values(teacher.slow).items()})
    polyak.transfer(path, other.slow, weights="average:slow")
    assert other.slow.count == 2


def test_an_average_that_lacks_a_value_is_refused(tmp_path: Path, teacher: Any) -> None:
    path = save(teacher, tmp_path / "a.weights.h5")
    with h5py.File(path, "r+") as file:
        del file["slow/vars/shadows:stem%2Fkernel"]
    with pytest.raises(DamagedFile, match=r"'stem/kernel': expected an average of .* received nothing"):
        polyak.open(path)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("memo", np.zeros((2, 2), np.uint8), "expected the note of an average"),
        ("memo", np.zeros(4, np.float32), "expected the note of an average"),
        ("counts", np.ones(3, np.int64), "expected the note of an average"),
        ("counts", np.array([-1, 0]), "expected counts of updates, received -1, 0"),
        ("counts", np.array([3, -2]), "expected counts of updates, received 3, -2"),
    ],
)
def test_an_average_with_a_damaged_note_is_refused(
    tmp_path: Path, teacher: Any, name: str, value: np.ndarray, said: str
) -> None:
    path = save(teacher, tmp_path / "a.weights.h5")
    with h5py.File(path, "r+") as file:
        del file[f"slow/vars/{name}"]
        file[f"slow/vars/{name}"] = value
    with pytest.raises(DamagedFile, match=said):
        polyak.open(path)
