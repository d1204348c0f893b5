"""Recipe e: one self-describing safetensors file."""

import nets
import numpy as np
import pytest
from safetensors.numpy import load_file

import polyak
from polyak.manifest import digest


def test_save_open_transfer(trained, fresh, tmp_path):
    _, fast, _ = trained
    path = tmp_path / "ema.safetensors"
    receipt = polyak.save(fast, path)
    snap = polyak.open(path)
    assert (snap.roles, snap.state, snap.integrity) == (("average",), fast.state, "xxh3-128")
    assert [w.kind for w in snap.weights] == [w.kind for w in fast.target.weights]
    assert {s.name: s.digest for s in snap.manifest.weights} == {k: digest(v) for k, v in fast.values().items()}
    assert snap.manifest.versions["tensorflow"]
    polyak.transfer(path, fresh)
    nets.assert_same(nets.weights(fresh), nets.averaged(fast))
    assert receipt.nbytes == fast.nbytes


def test_any_safetensors_reader_reads_it(trained, tmp_path):
    _, fast, _ = trained
    polyak.save(fast, tmp_path / "ema.safetensors")
    nets.assert_same(load_file(tmp_path / "ema.safetensors"), fast.values())


def test_both_sets_in_one_file(trained, fresh, tmp_path):
    model, fast, _ = trained
    polyak.save(fast, tmp_path / "both.safetensors", "both")
    polyak.transfer(tmp_path / "both.safetensors", fresh, weights="raw")
    nets.assert_same(nets.weights(fresh), nets.weights(model))
    polyak.transfer(tmp_path / "both.safetensors", fresh, weights="average")
    nets.assert_same(nets.weights(fresh), nets.averaged(fast))


def test_an_average_goes_on_from_a_file(trained, fresh, tmp_path):
    _, _, slow = trained
    polyak.transfer(slow, tmp_path / "slow.safetensors")
    other = polyak.EMA(fresh, decay=0.5)
    polyak.transfer(tmp_path / "slow.safetensors", other)
    assert (other.rule, other.count) == (slow.rule, slow.count)
    nets.assert_same(other.values(), slow.values())


def test_plain_keras_loads_the_averaged_weights_of_a_weights_h5_file(trained, fresh, tmp_path):
    _, fast, _ = trained
    receipt = polyak.save(fast, tmp_path / "ema.weights.h5")
    fresh.load_weights(tmp_path / "ema.weights.h5")
    nets.assert_same(nets.weights(fresh), nets.averaged(fast))
    snap = polyak.open(tmp_path / "ema.weights.h5")
    assert (snap.roles, snap.state) == (("average",), fast.state)
    assert len(receipt.moved) == len(fast.values())


def test_a_file_of_keras_goes_into_another_instance_without_help(trained, fresh, tmp_path):
    model, _, _ = trained
    model.save_weights(tmp_path / "raw.weights.h5")
    polyak.transfer(tmp_path / "raw.weights.h5", fresh)
    nets.assert_same(nets.weights(fresh), nets.weights(model))


def test_a_compiled_keras_model_on_disk_needs_no_word_about_its_optimizer(fresh, tmp_path):
    source = nets.built()
    source.compile("adam", "mse")
    source.fit(nets.INPUTS, nets.TARGETS, verbose=0)
    source.save(tmp_path / "model.keras")
    polyak.transfer(tmp_path / "model.keras", fresh)
    nets.assert_same(nets.weights(fresh), nets.weights(source))


def test_the_name_of_a_file_never_promises_another_format(trained, tmp_path):
    _, fast, _ = trained
    for name in ("ema.keras", "ema.h5", "ema.bin", "ema.ckpt"):
        with pytest.raises(polyak.errors.FileError, match="polyak does not write"):
            polyak.save(fast, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    polyak.save(fast, tmp_path / "ema.npz")
    with np.load(tmp_path / "ema.npz") as stored:
        assert stored["stem/kernel"].tobytes() == fast.values()["stem/kernel"].tobytes()
