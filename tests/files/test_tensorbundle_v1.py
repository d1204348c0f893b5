"""The V1 format, written by real TF1 Savers; TensorFlow's own reader is the oracle."""

from pathlib import Path

import numpy as np
import pytest

import polyak
from polyak.errors import DamagedFile, FileError, PolyakError
from polyak.files import tensorbundle_v1
from polyak.files.protobuf import Message

tf = pytest.importorskip("tensorflow")
tf1 = tf.compat.v1

VALUES = {
    "net/kernel": np.arange(12, dtype=np.float32).reshape(3, 4) - 5.5,
    "net/kernel/ExponentialMovingAverage": np.full((3, 4), 0.25, np.float32),
    "net/moving_mean": np.array([1.5, -2.0]),
    "scalar": np.float32(3.0),
    "empty": np.zeros((0, 2), np.float32),
    "bytes": np.array([0, 127, 255], np.uint8),
    "small": np.array([-128, 127], np.int8),
    "ints": np.array([-(2**31), -1, 0, 2**31 - 1], np.int32),
    "longs": np.array([-(2**63), 2**62, -1], np.int64),
    "flags": np.array([True, False, True]),
    "half": np.array([1.0, -0.0, 65504.0, np.nan], np.float16),
    "global_step": np.int64(1234567),
}


def _save(prefix, values, **kwargs):
    with tf.Graph().as_default(), tf1.Session() as session:
        variables = {n: tf1.get_variable(n.replace("/", "_"), initializer=tf.constant(v)) for n, v in values.items()}
        session.run(tf1.global_variables_initializer())
        saver = tf1.train.Saver(variables, write_version=tf1.train.SaverDef.V1, **kwargs)
        return saver.save(session, str(prefix), write_meta_graph=False, write_state=False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return _save(tmp_path_factory.mktemp("v1") / "model.ckpt", VALUES)


def test_every_dtype_is_read_bit_for_bit(saved):
    snap = polyak.open(saved)
    found = {w.path: snap.select("training")[w.path] for w in snap.select("training").weights}
    found |= {w.path: snap.select("raw")[w.path] for w in snap.select("raw").weights}
    reader = tf.train.load_checkpoint(saved)
    for name, value in found.items():
        expected = np.asarray(VALUES[name])
        assert (value.dtype, value.shape) == (expected.dtype, expected.shape)
        assert value.tobytes() == expected.tobytes()
        if value.dtype.name in ("float32", "float64", "int32", "int64"):  # TensorFlow's own reader takes no others
            assert value.tobytes() == np.asarray(reader.get_tensor(name)).tobytes()
    assert set(found) == set(VALUES) - {"net/kernel/ExponentialMovingAverage"}


def test_the_average_of_a_v1_file_is_found(saved):
    average = polyak.open(saved).select("average", include="net/*")
    assert average["net/kernel"].tobytes() == VALUES["net/kernel/ExponentialMovingAverage"].tobytes()
    assert average["net/moving_mean"].tolist() == [1.5, -2.0]


def test_several_files(tmp_path):
    _save(tmp_path / "model.ckpt", {"w": VALUES["net/kernel"]}, sharded=True)
    assert polyak.open(tmp_path / "model.ckpt")["w"].tobytes() == VALUES["net/kernel"].tobytes()


@pytest.mark.parametrize("sharded", [False, True])
def test_what_the_saver_answers_and_its_state_file_name_it(tmp_path, sharded):
    """By question marks where there are several files."""
    tf.train.Checkpoint(old=tf.Variable([7.0])).write(str(tmp_path / "an-older-one"))
    with tf.Graph().as_default(), tf1.Session() as session:
        tf1.get_variable("w", initializer=tf.constant(VALUES["net/kernel"]))
        session.run(tf1.global_variables_initializer())
        saver = tf1.train.Saver(write_version=tf1.train.SaverDef.V1, sharded=sharded)
        answered = saver.save(session, str(tmp_path / "model.ckpt"))
    assert ("?" in answered) is sharded
    for path in (answered, tf.train.latest_checkpoint(tmp_path), tmp_path, tmp_path / "model.ckpt"):
        assert polyak.open(path)["w"].tobytes() == VALUES["net/kernel"].tobytes()


def test_sets_with_step_numbers_beside_it_are_others(tmp_path):
    for name, value in (("model.ckpt", 1.0), ("model.ckpt-100", 2.0), ("model.ckpt-200", 3.0)):
        _save(tmp_path / name, {"w": np.float32([value])}, sharded=True)
    for name, value in (("model.ckpt", 1.0), ("model.ckpt-00000-of-00001", 1.0), ("model.ckpt-100", 2.0)):
        assert polyak.open(tmp_path / name)["w"].tolist() == [value]
    assert polyak.open(tmp_path / "model.ckpt-?????-of-00001")["w"].tolist() == [1.0]


def test_a_saved_model_may_hold_another_file_called_checkpoint(tmp_path):
    module = tf.Module()
    module.w = tf.Variable([1.0, 2.0])
    tf.saved_model.save(module, str(tmp_path / "served"))
    (tmp_path / "served" / "checkpoint").write_bytes(b"not a word of TensorFlow's")
    assert polyak.open(tmp_path / "served")["w"].tolist() == [1.0, 2.0]


def test_one_file_of_several_leads_to_all(tmp_path):
    with tf.Graph().as_default(), tf1.Session() as session:
        tf1.get_variable("w", initializer=tf.constant(VALUES["net/kernel"]))
        session.run(tf1.global_variables_initializer())
        tf1.train.Saver(write_version=tf1.train.SaverDef.V1, sharded=True).save(session, str(tmp_path / "model.ckpt"))
    (shard,) = tmp_path.glob("model.ckpt-0*")
    assert polyak.open(shard)["w"].tobytes() == VALUES["net/kernel"].tobytes()
    half = shard.rename(tmp_path / "model.ckpt-00000-of-00002")
    with pytest.raises(FileError, match="expected 2 files, received 1"):
        polyak.open(half)


def test_a_missing_file_of_several_is_named(tmp_path):
    _save(tmp_path / "model.ckpt", {"w": VALUES["net/kernel"]}, sharded=True)
    shard = next(tmp_path.glob("model.ckpt-*"))
    shard.rename(tmp_path / "model.ckpt-00000-of-00002")
    with pytest.raises(FileError, match="expected 2 files, received 1"):
        polyak.open(tmp_path / "model.ckpt")


def test_partitioned_variables_are_put_together(tmp_path):
    with tf.Graph().as_default(), tf1.Session() as session:
        whole = tf1.get_variable("w", (7, 2), partitioner=tf1.fixed_size_partitioner(3))
        session.run(tf1.global_variables_initializer())
        expected = session.run(tf.concat(list(whole), 0))
        path = tf1.train.Saver(write_version=tf1.train.SaverDef.V1).save(
            session, str(tmp_path / "m"), write_meta_graph=False, write_state=False
        )
    assert polyak.open(path)["w"].tobytes() == expected.tobytes()


def test_damage_is_noticed(saved, tmp_path):
    data = Path(saved).read_bytes()
    for at in range(0, len(data) - 48, 97):
        damaged = tmp_path / "damaged"
        damaged.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(PolyakError):
            polyak.open(damaged).copy()
    truncated = tmp_path / "truncated"
    truncated.write_bytes(data[:100] + data[-48:])
    with pytest.raises(DamagedFile):
        polyak.open(truncated)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([(0, 2)], "cannot reshape"),
        ([(0, 2), (1, 2)], "received two that overlap"),
        ([(0, 2)] * 3, "expected 4 values, received 6"),
        ([(0, 5)], "expected a part within shape"),
    ],
)
def test_parts_that_do_not_make_up_the_whole_are_refused(regions, message, tmp_path):
    count = 4 if len(regions) == 1 else 2
    values = Message({5: [np.arange(count, dtype="<f4").tobytes()]})
    described = tensorbundle_v1._Described("w", (4,), "float32")
    with pytest.raises(DamagedFile, match=message):
        tensorbundle_v1._assembled(described, [((region,), values) for region in regions], tmp_path / "ckpt")


def test_parts_that_make_up_the_whole_are_put_in_their_places(tmp_path):
    parts = [(((at, 2),), Message({5: [np.array([at, at + 1], "<f4").tobytes()]})) for at in (2, 0)]
    described = tensorbundle_v1._Described("w", (4,), "float32")
    assert tensorbundle_v1._assembled(described, parts, tmp_path / "ckpt").tolist() == [0, 1, 2, 3]
