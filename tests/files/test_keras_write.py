"""Files that polyak writes for Keras: plain Keras loads them, and notices their damage."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from tests.files.bounded import file_sizes, read_under
from tests.frameworks.zoo import ZOO

import polyak
from polyak.errors import AmbiguousMatch, AmbiguousRole, DamagedFile, DtypeMismatch, FileError, UnexpectedWeight
from polyak.files import keras_write
from polyak.snapshot import Item, Snapshot
from polyak.weights import Evidence, Kind, Weight, numpy_dtype

# A Keras 2 model that was compiled with metrics asks for their state, too.
NAMES = [n for n, make in ZOO.items() if not n.startswith("Module") and n != "LegacySubclassed"]


def averaged(model: Any) -> polyak.Average:
    ema = polyak.EMA(model, decay=0.5)
    for path, variable in ema.source.variables.items():
        if "seed" not in path:
            variable.assign(np.arange(variable.shape.num_elements()).reshape(variable.shape).astype("float32") % 7)
    ema.update()
    return ema


@pytest.mark.parametrize("name", NAMES)
def test_keras_loads_the_average_without_polyak(tmp_path: Path, name: str) -> None:
    ema, other = averaged(ZOO[name].built()), ZOO[name].built()
    keras_write.write(ema.snapshot(), tmp_path / "a.weights.h5")
    other.load_weights(str(tmp_path / "a.weights.h5"))
    found = {k: v for k, v in polyak.snapshot(other).items() if "seed" not in k}
    expected = ema.values()
    assert len(found) > 1
    for path, value in found.items():
        assert value.tobytes() == expected[path].astype(value.dtype).tobytes(), path


def test_random_seeds_come_back_from_a_file_that_keras_loads_too(tmp_path: Path) -> None:
    layers = [keras.Input((4,)), keras.layers.Dense(2), keras.layers.Dropout(0.5)]
    model = keras.Sequential(layers)
    other, plain = map(keras.models.clone_model, (model, model))
    model(np.ones((3, 4)), training=True)
    polyak.save(model, tmp_path / "a.weights.h5")
    receipt = polyak.transfer(tmp_path / "a.weights.h5", other)
    assert not receipt.left
    assert (other(np.ones((3, 4)), training=True) == model(np.ones((3, 4)), training=True)).numpy().all()
    plain.load_weights(tmp_path / "a.weights.h5")
    assert (plain.layers[0].kernel.numpy() == model.layers[0].kernel.numpy()).all()


class Autoencoder(keras.layers.Layer):
    """Holds the kernel of a layer of its own once more, so that Keras stores it with both."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = keras.layers.Dense(4, use_bias=False)

    def build(self, shape: Any) -> None:
        self.encoder.build(shape)
        self.shared = self.encoder.kernel

    def call(self, x: Any) -> Any:
        return keras.ops.matmul(self.encoder(x), keras.ops.transpose(self.shared))


SHARING = {
    "the layer in SpectralNormalization": lambda: keras.layers.SpectralNormalization(keras.layers.Dense(4)),
    "a tied kernel": Autoencoder,
}


def sharing(name: str) -> Any:
    model = keras.Sequential([keras.Input((4,)), SHARING[name](), keras.layers.Dense(4)])
    for i, variable in enumerate(model.weights):
        variable.assign(np.full(variable.shape, i + 1.0, np.float32))
    return model


@pytest.mark.parametrize("name", SHARING)
def test_a_weight_of_two_layers_is_where_keras_looks_for_both(tmp_path: Path, name: str) -> None:
    ema, other, live = polyak.EMA(sharing(name), decay=0.5), sharing(name), sharing(name)
    ema.set_values({path: value * 2 for path, value in ema.values().items()})
    polyak.save(ema, tmp_path / "a.weights.h5")
    other.load_weights(str(tmp_path / "a.weights.h5"))
    polyak.transfer(tmp_path / "a.weights.h5", live)
    for path, value in ema.values().items():
        assert polyak.snapshot(other)[path].tobytes() == polyak.snapshot(live)[path].tobytes() == value.tobytes(), path


@pytest.mark.parametrize("name", SHARING)
def test_what_keras_stores_twice_is_one_weight_of_the_model(tmp_path: Path, name: str) -> None:
    model, other = sharing(name), sharing(name)
    for variable in model.weights:
        variable.assign(variable * 3)
    model.save_weights(str(tmp_path / "a.weights.h5"))
    polyak.transfer(tmp_path / "a.weights.h5", other)
    for path, value in polyak.snapshot(model).items():
        assert polyak.snapshot(other)[path].tobytes() == value.tobytes(), path


def test_two_values_for_a_weight_of_two_layers_are_refused(tmp_path: Path) -> None:
    sharing("a tied kernel").save_weights(str(tmp_path / "a.weights.h5"))
    with h5py.File(tmp_path / "a.weights.h5", "r+") as h5:
        h5["layers/autoencoder/encoder/vars/0"][0, 0] = 9
    with pytest.raises(AmbiguousMatch, match=r"expected one value, because Sequential '\w+' shares it, received two"):
        polyak.transfer(tmp_path / "a.weights.h5", sharing("a tied kernel"))


@pytest.mark.parametrize("place", ["encoder/vars/0", "vars/0"])
def test_damage_to_either_copy_is_told(tmp_path: Path, place: str) -> None:
    polyak.save(polyak.EMA(sharing("a tied kernel"), decay=0.5), tmp_path / "a.weights.h5")
    with h5py.File(tmp_path / "a.weights.h5", "r+") as h5:
        h5[f"layers/autoencoder/{place}"][0, 0] = 9
    snap = polyak.open(tmp_path / "a.weights.h5")
    with pytest.raises(DamagedFile, match="autoencoder/kernel"):
        snap.verify("autoencoder/kernel")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    keras_write.write(averaged(ZOO["Blocks"].built()).snapshot(), tmp_path / "a.weights.h5")
    return tmp_path / "a.weights.h5"


def test_polyak_reads_role_rule_and_digests(file: Path) -> None:
    snap = polyak.open(file)
    assert snap.roles == ("average",)
    assert snap.state is not None
    assert (snap.state.rule["decay"], snap.state.count) == (0.5, 1)
    assert snap.integrity == "xxh3-128"
    assert all(s.digest for s in snap.manifest.weights)


def test_the_average_goes_on_in_another_average(file: Path) -> None:
    other = polyak.EMA(ZOO["Blocks"].built(), decay=0.5)
    polyak.transfer(file, other)
    assert other.count == 1
    assert other.values()["blocks/0/kernel"].tobytes() == polyak.open(file)["blocks/0/kernel"].tobytes()


def test_keras_and_polyak_notice_every_flipped_byte_of_an_array(file: Path) -> None:
    model = ZOO["Blocks"].built()
    with h5py.File(file) as h5:
        chunk = h5["blocks/dense/vars/0"].id.get_chunk_info(0)
    data = bytearray(file.read_bytes())
    first, end = chunk.byte_offset + 7, chunk.byte_offset + chunk.size - 4  # around is the packing, Keras' alone
    for at in range(first, end, 5):
        data[at] ^= 1
        file.write_bytes(data)
        with pytest.raises((OSError, ValueError)):
            model.load_weights(str(file))
        for ask in (Snapshot.__getitem__, Snapshot.verify):
            with pytest.raises(DamagedFile, match="weight 'blocks/0/kernel': expected bytes with digest"):
                ask(polyak.open(file), "blocks/0/kernel")
        data[at] ^= 1
    for at in (*range(chunk.byte_offset, first), *range(end, end + 4)):
        data[at] ^= 2
        file.write_bytes(data)
        with pytest.raises((OSError, ValueError)):
            model.load_weights(str(file))
        data[at] ^= 2
    file.write_bytes(data)
    model.load_weights(str(file))


def test_a_changed_note_is_refused(file: Path) -> None:
    with h5py.File(file, "r+") as h5:
        h5.attrs["polyak"] = h5.attrs["polyak"].replace('"average"', '"raw"')
    with pytest.raises(DamagedFile, match="the manifest does not have its digest"):
        polyak.open(file)


def test_an_array_that_the_note_does_not_know_is_refused(file: Path) -> None:
    with h5py.File(file, "r+") as h5:
        h5["extra/vars/0"] = np.zeros(2)
    with pytest.raises(DamagedFile, match=r"'extra/vars/0': expected None by the manifest"):
        polyak.open(file)


def test_a_weight_without_a_place_in_keras_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnexpectedWeight, match=r"weight 'w': expected a place in Keras' files, received none"):
        keras_write.write(polyak.Snapshot.from_arrays({"w": np.zeros(2)}), tmp_path / "a.weights.h5")
    assert not list(tmp_path.iterdir())


def item(name: str, place: str, dtype: str = "float32") -> Item:
    """A weight that Keras stores at a place."""
    evidence = Evidence(name, name, name, "Dense", "kernel", 0, dtype, place)
    value = np.ones(1000, numpy_dtype(dtype))
    return Item("raw", Weight(name, value.shape, dtype, Kind.TRAINABLE, evidence), lambda: value)


def test_two_weights_of_one_place_are_refused(tmp_path: Path) -> None:
    both = polyak.Snapshot([item("a", "layers/a/vars/0"), item("b", "layers/a/vars/0")])
    with pytest.raises(UnexpectedWeight, match="weights 'a' and 'b': expected a place in the file for each"):
        keras_write.write(both, tmp_path / "a.weights.h5")
    assert not list(tmp_path.iterdir())


def test_a_dtype_that_keras_does_not_store_is_refused(tmp_path: Path) -> None:
    held = polyak.Snapshot([item("a", "layers/a/vars/0", "float8_e4m3fn")])
    with pytest.raises(DtypeMismatch, match="expected a dtype that Keras' files hold, received float8_e4m3fn"):
        keras_write.write(held, tmp_path / "a.weights.h5")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    held = polyak.Snapshot([replace(item("a", "layers/a/vars/0"), read=lambda: pytest.fail("was read"))])
    keras_write.refuse(held, tmp_path / "a.weights.h5")
    (tmp_path / "b.weights.h5").mkdir()
    with pytest.raises(FileError, match=r"b\.weights\.h5"):
        keras_write.refuse(held, tmp_path / "b.weights.h5")
    assert [p.name for p in tmp_path.iterdir()] == ["b.weights.h5"]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
def test_what_the_system_refuses_to_write_is_an_error_and_the_old_file_stands(tmp_path: Path) -> None:
    """HDF5 itself would take it for written, or end the process; here there is no room for a while."""
    path = tmp_path / "a.weights.h5"
    path.write_bytes(b"old")

    def weight(name: str, read: Callable[[], Any]) -> Item:
        return Item("raw", replace(item(name, f"layers/{name}/vars/0").weight, shape=(1 << 20,)), read)

    with file_sizes() as bound:
        held = polyak.Snapshot([weight("a", read_under(bound, 1 << 20)), weight("b", read_under(bound))])
        with pytest.raises(FileError, match="cannot be written: File too large"):
            keras_write.write(held, path)
    assert path.read_bytes() == b"old"


def test_one_role_is_written(tmp_path: Path) -> None:
    ema = averaged(ZOO["sequential"].built())
    raw, average = polyak.snapshot(ema, "raw"), polyak.snapshot(ema)
    both = polyak.Snapshot([*raw.items_by_path.values(), *average.items_by_path.values()])
    with pytest.raises(AmbiguousRole, match="expected weights of one role, received raw, average"):
        keras_write.write(both, tmp_path / "a.weights.h5")
    with pytest.raises(AmbiguousRole, match="expected weights of one role, received no weights at all") as refused:
        keras_write.write(polyak.Snapshot([]), tmp_path / "a.weights.h5")
    assert refused.value.hint is None


def test_the_name_must_be_one_that_keras_takes(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"expected a name that ends in \.weights\.h5"):
        keras_write.write(
            polyak.snapshot(keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])), tmp_path / "a.h5"
        )


def test_a_file_of_many_weights_is_written_though_hdf5_reads_in_it_meanwhile(tmp_path: Path) -> None:
    """HDF5 holds a part of its own structure, and reads again what it has let go."""
    held = polyak.Snapshot([item(f"w{i}", f"layers/layer_{i}/vars/0") for i in range(1500)])
    keras_write.write(held, tmp_path / "m.weights.h5")
    assert len(polyak.open(tmp_path / "m.weights.h5")) == 1500


def test_hdf5_may_read_in_what_it_writes(file: Path) -> None:
    with file.open("r+b") as opened, h5py.File(keras_write._Patient(opened), "r+") as held:
        values = held.visititems(lambda _, found: found[()] if isinstance(found, h5py.Dataset) else None)
    assert values.size
