"""Every kind of checkpoint that TensorFlow writes, read as TensorFlow reads it; and what must not be read, refused."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from polyak.errors import DamagedFile, FileError, MissingWeight, UnknownFormat, WeightError
from polyak.files.bundle_entries import Entry, region_key
from polyak.files.bundle_path import find_prefix
from polyak.files.sstable import masked_crc32c
from polyak.files.tensorbundle import TensorBundle

tf = pytest.importorskip("tensorflow")

from tensorflow.core.framework import types_pb2  # noqa: E402  (only if TensorFlow is there)
from tensorflow.core.protobuf import tensor_bundle_pb2  # noqa: E402

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def save(prefix: Path, tensors: dict[str, Any], slices: dict[str, str] | None = None) -> Path:
    """One V2 bundle with one data file, by TensorFlow's own operation."""
    specs = [(slices or {}).get(name, "") for name in tensors]
    names = [name.split("#")[0] for name in tensors]
    tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=names, shape_and_slices=specs, tensors=list(tensors.values()))
    return prefix


def merge(prefix: Path, *parts: Path) -> Path:
    """One bundle out of several, which become its data files."""
    sources = [str(part) for part in parts]
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=sources, destination_prefix=str(prefix), delete_old_dirs=False)
    return prefix


def values(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_same_bits(received: np.ndarray, expected: Any, dtype: str) -> None:
    expected = np.asarray(expected)
    assert received.dtype.name == dtype
    assert received.shape == expected.shape
    assert received.tobytes() == expected.tobytes()


def assert_as_tensorflow(path: Path) -> int:
    """Every numeric tensor has TensorFlow's shape, dtype and bits. Returns how many there were."""
    reader = tf.train.load_checkpoint(str(path))
    shapes = reader.get_variable_to_shape_map()
    with TensorBundle(path) as bundle:
        assert set(bundle.entries) == set(shapes)
        for key, entry in bundle.entries.items():
            assert list(entry.shape) == shapes[key]
            if key not in bundle.skipped:
                assert_same_bits(bundle.read(key), reader.get_tensor(key), entry.dtype)
        return len(bundle.entries) - len(bundle.skipped)


# --- what TensorFlow writes ------------------------------------------------------------------------------------------


def everything() -> dict[str, Any]:
    """One tensor of each dtype that TensorFlow can save."""
    generator, tensors = np.random.default_rng(7), {}
    for code in types_pb2.DataType.values():
        dtype = tf.dtypes.as_dtype(code) if 0 < code < 100 else None
        if dtype is None or dtype in (tf.resource, tf.variant, tf.string):
            continue
        raw = generator.integers(0, 2 if dtype is tf.bool else 256, (3, 5, dtype.size), dtype=np.uint8)
        numpy = np.dtype(dtype.as_numpy_dtype)
        plain = np.ascontiguousarray(raw).view(numpy[0] if numpy.fields else numpy)[..., 0]
        tensors[dtype.name] = tf.bitcast(plain, dtype) if dtype.is_quantized else tf.constant(plain, dtype)
    return tensors


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("typed") / "all", everything())


@pytest.mark.parametrize("name", sorted(everything()))
def test_each_dtype_is_read_bit_for_bit(typed: Path, name: str) -> None:
    expected = tf.train.load_variable(str(typed), name)
    with TensorBundle(typed) as bundle:
        assert_same_bits(
            bundle.read(name),
            expected,
            {"half": "float16"}.get(
                name, re.sub("^q(u?int)", r"\1", name) if name.startswith("qint") else name.replace("quint", "uint")
            ),
        )


def test_all_dtypes_of_tensorflow_are_covered() -> None:
    names = set(everything())
    assert {"bfloat16", "float16", "float8_e4m3fn", "int4", "qint8", "complex128", "bool", "uint64"} <= names
    assert len(names) >= 25


def test_shapes_scalars_and_empty_tensors(tmp_path: Path) -> None:
    shapes: list[tuple[int, ...]] = [(), (1,), (0,), (3, 0, 2), (2, 3, 4, 5), (1,) * 8, (70_000,)]
    tensors = {f"t{number}": values(shape, number) for number, shape in enumerate(shapes)}
    path = save(tmp_path / "shapes", tensors)
    assert assert_as_tensorflow(path) == len(shapes)
    with TensorBundle(path) as bundle:
        assert {key: entry.shape for key, entry in bundle.entries.items()} == {k: v.shape for k, v in tensors.items()}


def test_only_empty_tensors_leave_an_empty_data_file(tmp_path: Path) -> None:
    path = save(tmp_path / "empty", {"a": np.zeros((0, 4), np.int64)})
    assert (tmp_path / "empty.data-00000-of-00001").stat().st_size == 0
    assert assert_as_tensorflow(path) == 1


def test_an_array_is_owned_writable_and_outlives_the_bundle(tmp_path: Path) -> None:
    path = save(tmp_path / "w", {"a": values((4, 6))})
    with TensorBundle(path) as bundle:
        first, second = bundle.read("a"), bundle.read("a")
    assert first.flags.owndata
    assert first.flags.c_contiguous
    first[:] = 0
    np.testing.assert_array_equal(second, values((4, 6)))
    with pytest.raises(FileError, match="closed"):
        bundle.read("a")


def test_keys_that_share_long_prefixes(tmp_path: Path) -> None:
    keys = [f"{'model/encoder/' * 80}layer_{number}/kernel" for number in range(300)]
    path = save(tmp_path / "long", {key: values((2,), number) for number, key in enumerate(keys)})
    assert assert_as_tensorflow(path) == 300


def test_an_index_of_several_blocks(tmp_path: Path) -> None:
    keys = [random.Random(number).randbytes(1500).hex() for number in range(250)]
    path = save(tmp_path / "many", {key: values((2,), number) for number, key in enumerate(keys)})
    assert Path(f"{path}.index").stat().st_size > 2 * 262_144  # TensorFlow's blocks
    assert assert_as_tensorflow(path) == 250


def test_unusual_names(tmp_path: Path) -> None:
    names = ["é/ß", "a b", "a\nb", "日本", "x" * 2000, "a\x01", ":0"]
    path = save(tmp_path / "odd", {name: values((3,), number) for number, name in enumerate(names)})
    assert assert_as_tensorflow(path) == len(names)


def test_several_data_files(tmp_path: Path) -> None:
    parts = [
        save(tmp_path / "part0", {"a": values((3, 4)), "z": values((2,), 1)}),
        save(tmp_path / "part1", {"m": values((5,), 2), "empty": np.zeros((0,), np.float32)}),
        save(tmp_path / "part2", {"b": values((), 3)}),
    ]
    path = merge(tmp_path / "merged", *parts)
    assert (tmp_path / "merged.data-00002-of-00003").is_file()
    assert assert_as_tensorflow(path) == 5


def test_a_partitioned_variable_over_two_data_files(tmp_path: Path) -> None:
    whole = values((10, 300))
    one = save(tmp_path / "p0", {"w": whole[:4], "x": values((2,))}, {"w": "10 300 0,4:-"})
    two = save(
        tmp_path / "p1",
        {"w#1": whole[4:, :130], "w#2": whole[4:, 130:]},
        {"w#1": "10 300 4,6:0,130", "w#2": "10 300 4,6:130,170"},
    )
    path = merge(tmp_path / "whole", one, two)
    assert assert_as_tensorflow(path) == 2
    with TensorBundle(path) as bundle:
        assert list(bundle.entries) == ["w", "x"]
        assert len(bundle.entries["w"].regions) == 3
        assert bundle.entries["w"].nbytes == whole.nbytes
        np.testing.assert_array_equal(bundle.read("w"), whole)


@pytest.mark.parametrize("start", [1, 63, 64, 127, 128, 8191, 8192, 8193, 1 << 20, (1 << 20) + 1])
def test_keys_of_parts_at_every_length_of_their_encoding(tmp_path: Path, start: int) -> None:
    whole = np.arange(start + 70, dtype=np.uint8)
    specs = {"v#1": f"{start + 70} 0,{start}", "v#2": f"{start + 70} {start},70"}
    path = save(tmp_path / "v", {"v#1": whole[:start], "v#2": whole[start:]}, specs)
    assert assert_as_tensorflow(path) == 1


def test_saver_with_partitioner_slots_and_averages(tmp_path: Path) -> None:
    v1 = tf.compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        rows = v1.fixed_size_partitioner(3, axis=0)
        columns = v1.fixed_size_partitioner(2, axis=1)
        embedding = v1.get_variable("embedding", (11, 4), partitioner=rows)
        kernel = v1.get_variable("net/kernel", (4, 6), partitioner=columns)
        bias = v1.get_variable("net/bias", (6,))
        step = v1.train.get_or_create_global_step()
        loss = v1.reduce_sum(tf.matmul(tf.convert_to_tensor(embedding), tf.convert_to_tensor(kernel)) + bias)
        train = v1.train.AdamOptimizer().minimize(loss, global_step=step)
        average = tf.train.ExponentialMovingAverage(0.9).apply(v1.trainable_variables())
        session.run(v1.global_variables_initializer())
        session.run([train, average])
        path = Path(v1.train.Saver().save(session, str(tmp_path / "model.ckpt"), global_step=step))
        expected = session.run(
            {"embedding": tf.convert_to_tensor(embedding), "net/kernel": tf.convert_to_tensor(kernel)}
        )
    assert path.name == "model.ckpt-1"
    assert assert_as_tensorflow(path) >= 13
    with TensorBundle(path) as bundle:
        assert {"embedding/Adam", "net/kernel/ExponentialMovingAverage", "global_step"} <= set(bundle.entries)
        assert bundle.graph is None
        for key, value in expected.items():
            assert bundle.entries[key].regions
            assert_same_bits(bundle.read(key), value, "float32")


def test_a_checkpoint_split_by_size(tmp_path: Path) -> None:
    policy = tf.train.experimental.MaxShardSizePolicy(max_shard_size=400)
    options = tf.train.CheckpointOptions(experimental_sharding_callback=policy)
    objects = {"w": tf.Variable(values((30, 7))), "b": tf.Variable(values((9,), 1)), "n": tf.Variable(3)}
    path = Path(tf.train.Checkpoint(**objects).save(str(tmp_path / "split"), options=options))
    assert len(list(tmp_path.glob("split-1.data-*"))) >= 3
    assert assert_as_tensorflow(path) == 4
    with TensorBundle(path) as bundle:
        assert len(bundle.entries[f"w{VALUE}"].regions) >= 2


class Block(tf.Module):
    """Named by attribute, list index and dictionary key; one variable is reached over two ways, and a cycle."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = tf.Variable(values((3, 2)), name="own/kernel")
        self.parts = [tf.Variable(values((2,), 1)), {"a/b.c": tf.Variable(values((2, 2), 2))}]
        self.alias = self.parts[0]
        self.me = self


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An object-based checkpoint with nesting, odd names, a Python state and slot variables of two optimizers."""
    block, v1 = Block(), tf.compat.v1
    adam, momentum = v1.train.AdamOptimizer(), v1.train.MomentumOptimizer(0.1, 0.9)
    for optimizer in (adam, momentum):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(block.kernel**2)
        optimizer.apply_gradients([(tape.gradient(loss, block.kernel), block.kernel)])
    checkpoint = tf.train.Checkpoint(model=block, optimizer=adam, nested=tf.train.Checkpoint(second=momentum))
    return Path(checkpoint.save(str(tmp_path_factory.mktemp("tracked") / "ckpt")))


def test_an_object_based_checkpoint(tracked: Path) -> None:
    assert assert_as_tensorflow(tracked) >= 9
    with TensorBundle(tracked) as bundle:
        assert f"model/parts/1/a.Sb..c{VALUE}" in bundle.entries
        assert bundle.skipped == {"_CHECKPOINTABLE_OBJECT_GRAPH": "string"}


def test_the_object_graph_names_ways_names_and_slots(tracked: Path) -> None:
    with TensorBundle(tracked) as bundle:
        graph = bundle.graph
        assert graph is not None
        assert set(graph.tensors) == set(bundle.entries) - set(bundle.skipped)
    kernel = graph.tensors[f"model/kernel{VALUE}"]
    assert kernel.full_name == "own/kernel"
    assert kernel.paths == (("model", "kernel"),)
    assert graph.tensors[f"model/alias{VALUE}"].paths == (("model", "alias"), ("model", "parts", "0"))
    assert graph.tensors[f"model/parts/1/a.Sb..c{VALUE}"].paths == (("model", "parts", "1", "a/b.c"),)
    slots = {(t.slot.variable, t.slot.name, t.slot.optimizer) for t in graph.tensors.values() if t.slot}
    owner = kernel.key
    assert slots == {
        (owner, "m", ("optimizer",)), (owner, "v", ("optimizer",)), (owner, "momentum", ("nested", "second")),
    }  # fmt: skip


def test_a_keras_2_optimizer_with_averages(tmp_path: Path) -> None:
    keras = pytest.importorskip("tf_keras")
    model = keras.Sequential([keras.layers.Dense(3, input_shape=(4,)), keras.layers.BatchNormalization()])
    model.compile(keras.optimizers.legacy.Adam(), "mse")
    model.fit(values((8, 4)), values((8, 3)), verbose=0)
    path = Path(tf.train.Checkpoint(model=model).save(str(tmp_path / "keras")))
    assert assert_as_tensorflow(path) >= 15
    with TensorBundle(path) as bundle:
        slots = [t for t in bundle.graph.tensors.values() if t.slot]
        assert {t.slot.name for t in slots} == {"m", "v"}
        for tensor in slots:
            assert tensor.slot.variable in bundle.entries
            assert tensor.slot.optimizer == ("model", "optimizer")
            assert bundle.entries[tensor.key].shape == bundle.entries[tensor.slot.variable].shape


def test_a_saved_model(tmp_path: Path) -> None:
    tf.saved_model.save(Block(), str(tmp_path / "export"))
    assert find_prefix(tmp_path / "export") == tmp_path / "export/variables/variables"
    with TensorBundle(tmp_path / "export") as bundle:
        assert_same_bits(bundle.read(f"kernel{VALUE}"), values((3, 2)), "float32")
        assert (("parts", "1", "a/b.c"),) in {t.paths for t in bundle.graph.tensors.values()}
    assert assert_as_tensorflow(tmp_path / "export/variables/variables") >= 3


def test_python_states_are_strings_and_dataset_positions_variants(tmp_path: Path) -> None:
    class State(tf.train.experimental.PythonState):
        def serialize(self) -> str:
            return "é" * 100

        def deserialize(self, text: str) -> None:
            raise NotImplementedError

    iterator = iter(tf.data.Dataset.range(5))
    path = Path(tf.train.Checkpoint(state=State(), data=iterator, w=tf.Variable([1.0, 2.0])).save(str(tmp_path / "p")))
    with TensorBundle(path) as bundle:
        assert set(bundle.skipped.values()) == {"string", "variant"}
        key = next(key for key in bundle.skipped if key.startswith("state"))
        assert bundle.read_string(key).decode() == "é" * 100
        with pytest.raises(WeightError, match=r"expected numbers, received string from .*\nhint: .*read_string"):
            bundle.read(key)
        variant = next(key for key, word in bundle.skipped.items() if word == "variant")
        with pytest.raises(WeightError, match="received variant"):
            bundle.read(variant)
        with pytest.raises(WeightError, match="expected one string, received float32"):
            bundle.read_string(f"w{VALUE}")


@pytest.mark.parametrize("length", [0, 1, 127, 128, 70_000])
def test_scalar_strings_of_any_length(tmp_path: Path, length: int) -> None:
    text = random.Random(length).randbytes(length)
    path = save(tmp_path / "s", {"one": tf.constant(text), "many": tf.constant([text, text])})
    with TensorBundle(path) as bundle:
        assert bundle.read_string("one") == text
        with pytest.raises(WeightError, match=r"expected one string, received string of shape \(2,\)"):
            bundle.read_string("many")


def test_a_partitioned_string_variable_is_skipped_as_one(tmp_path: Path) -> None:
    parts = {"s#1": tf.constant([b"a", b"b"]), "s#2": tf.constant([b"c"]), "w": values((2,))}
    path = save(tmp_path / "s", parts, {"s#1": "3 0,2", "s#2": "3 2,1"})
    with TensorBundle(path) as bundle:
        assert bundle.skipped == {"s": "string"}
        assert list(bundle.entries) == ["s", "w"]
        assert_same_bits(bundle.read("w"), values((2,)), "float32")


def test_nothing_imports_tensorflow(tracked: Path) -> None:
    script = """
import sys
from polyak.files.tensorbundle import TensorBundle
with TensorBundle(sys.argv[1]) as bundle:
    read = [bundle.read(key) for key, entry in bundle.entries.items() if entry.numeric]
    print(len(read), len(bundle.graph.tensors))
assert not {"tensorflow", "keras", "google.protobuf"} & set(sys.modules), "loaded a framework"
"""
    done = subprocess.run([sys.executable, "-c", script, str(tracked)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    read, named = map(int, done.stdout.split())
    assert read == named >= 9


# --- where it is -----------------------------------------------------------------------------------------------------


@pytest.fixture
def managed(tmp_path: Path) -> Path:
    """A directory that ``tf.train.CheckpointManager`` keeps, with checkpoints 1 to 3."""
    variable = tf.Variable(0.0)
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(v=variable), str(tmp_path / "run"), max_to_keep=3)
    for number in range(3):
        variable.assign(float(number))
        manager.save()
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["ckpt-2", "ckpt-2.index", "ckpt-2.data-00000-of-00001"])
def test_a_prefix_and_the_files_of_a_checkpoint(managed: Path, name: str) -> None:
    with TensorBundle(str(managed / name)) as bundle:
        assert bundle.prefix == managed / "ckpt-2"
        assert bundle.read(f"v{VALUE}") == 1.0


def test_a_directory_leads_to_its_latest_checkpoint(managed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(find_prefix(managed)) == tf.train.latest_checkpoint(str(managed))
    monkeypatch.chdir(managed)
    assert find_prefix(Path()) == Path("ckpt-3")


def alias(directory: Path) -> Path:
    link = directory.with_name("alias")
    link.symlink_to(directory)
    return link


STATES = {
    "absolute by another way": lambda run: f'model_checkpoint_path: "{alias(run)}/ckpt-2"',
    "absolute": lambda run: f'model_checkpoint_path: "{run}/ckpt-2"',
    "quotes": lambda run: "model_checkpoint_path:'ckpt-2'",
    "one line": lambda run: 'all_model_checkpoint_paths: "ckpt-1" model_checkpoint_path: "ckpt-2"',
    "octal": lambda run: r'model_checkpoint_path: "\143\x6bpt-2"',
}


@pytest.mark.parametrize("state", STATES)
def test_spellings_of_the_state_file(managed: Path, state: str) -> None:
    (managed / "checkpoint").write_text(STATES[state](managed))
    found = find_prefix(managed)
    assert str(found) == tf.train.latest_checkpoint(str(managed))
    assert found.resolve() == managed / "ckpt-2"


def test_a_name_with_quotes_and_accents(tmp_path: Path) -> None:
    path = Path(tf.train.Checkpoint(a=tf.Variable(values((2,)))).save(str(tmp_path / 'é"\\x')))
    state = tmp_path / "checkpoint"
    assert r"\"\\x-1" in state.read_text()
    assert find_prefix(tmp_path) == path
    state.write_text(state.read_text().replace("é", r"\303\251"))
    assert find_prefix(tmp_path) == path
    with TensorBundle(tmp_path) as bundle:  # TensorFlow takes a prefix as a glob, and finds nothing
        assert_same_bits(bundle.read(f"a{VALUE}"), values((2,)), "float32")


@pytest.mark.parametrize(
    "target",
    [
        "../other/ckpt-1",
        "sub/../../other/ckpt-1",
        "sub/../ckpt-1",
        "{other}/ckpt-1",
        "{run}/../other/ckpt-1",
        "link/ckpt-1",
        "circle/ckpt-1",
        "gone/ckpt-1",
    ],
)
def test_a_state_file_never_leads_out_of_its_directory(managed: Path, target: str) -> None:
    other = managed.parent / "other"
    shutil.copytree(managed, other)
    (managed / "sub").mkdir()
    (managed / "link").symlink_to(other)
    (managed / "circle").symlink_to(managed / "circle")
    (managed / "checkpoint").write_text(f'model_checkpoint_path: "{target.format(other=other, run=managed)}"')
    with pytest.raises(FileError, match=r"expected a checkpoint in its own directory, received .*\nhint: .*ckpt-1"):
        TensorBundle(managed)


def test_linked_files_are_followed(managed: Path) -> None:
    store = managed.parent / "store"
    store.mkdir()
    for file in list(managed.glob("ckpt-3.*")):
        (managed / file.name).rename(store / file.name)
        file.symlink_to(store / file.name)
    with TensorBundle(managed) as bundle:
        assert bundle.read(f"v{VALUE}") == 2.0


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\x00garbage",
        b'all_model_checkpoint_paths: "ckpt-1"',
        b'model_checkpoint_path: ""',
        b'model_checkpoint_path: "a\\000b"',
    ],
)
def test_a_state_file_without_a_checkpoint(managed: Path, text: bytes) -> None:
    (managed / "checkpoint").write_bytes(text)
    with pytest.raises(DamagedFile, match="expected model_checkpoint_path, received none"):
        find_prefix(managed)


def test_a_huge_state_file_is_not_read(managed: Path) -> None:
    with (managed / "checkpoint").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DamagedFile, match="expected at most"):
        find_prefix(managed)


@pytest.mark.parametrize("name", ["x" * 5000, r"\8\x\q\X41"])
def test_a_state_file_with_a_name_that_cannot_be(managed: Path, name: str) -> None:
    (managed / "checkpoint").write_text(f'model_checkpoint_path: "{name}"')
    with pytest.raises(FileError, match=r"received no (x{5000}|8xqA)\.index\nhint: name one of"):
        find_prefix(managed)


def test_a_deleted_latest_checkpoint_names_the_others(managed: Path) -> None:
    (managed / "ckpt-3.index").unlink()
    with pytest.raises(FileError, match=r"received no ckpt-3.index\nhint: name one of .*ckpt-1, .*ckpt-2"):
        find_prefix(managed)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="expected a TensorFlow checkpoint, received nothing"):
        find_prefix(tmp_path / "none")
    with pytest.raises(FileError, match="received a directory without one"):
        find_prefix(tmp_path)
    for name in ("c", "a", "b", "d"):
        save(tmp_path / name, {"x": values((1,))})
    for path in (tmp_path, tmp_path / "e"):
        with pytest.raises(FileError, match=r"hint: name one of .*a, .*b, .*c and 1 more"):
            find_prefix(path)


def test_other_files_and_old_formats(tmp_path: Path) -> None:
    other = tmp_path / "model.npz"
    other.write_bytes(b"PK")
    with pytest.raises(UnknownFormat, match="received another file"):
        TensorBundle(other)
    v1 = tf.compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        v1.get_variable("a", (2,))
        session.run(v1.global_variables_initializer())
        old = v1.train.Saver(write_version=v1.train.SaverDef.V1).save(session, str(tmp_path / "old.ckpt"))
    with pytest.raises(UnknownFormat, match=r"received V1\nhint: save it again"):
        TensorBundle(old)
    (tmp_path / "x.data-00000-of-00001").write_bytes(b"")
    with pytest.raises(FileError, match=r"expected x\.index beside it"):
        TensorBundle(tmp_path / "x.data-00000-of-00001")


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Path:
    parts = [
        save(tmp_path / "p0", {"a": values((3, 4)), "text": tf.constant(b"hello")}),
        save(
            tmp_path / "p1",
            {"w#1": values((2, 3)), "w#2": values((2, 3), 1), "b": values((5,), 1)},
            {"w#1": "4 3 0,2:-", "w#2": "4 3 2,2:-"},
        ),
    ]
    return merge(tmp_path / "small", *parts)


def contents(path: Path) -> dict[str, tuple[Any, ...]]:
    with TensorBundle(path) as bundle:
        return {
            key: (entry.dtype, entry.shape, bundle.read(key).tobytes() if entry.numeric else bundle.read_string(key))
            for key, entry in bundle.entries.items()
        }


def failure(path: Path, expected: dict[str, tuple[Any, ...]]) -> str | None:
    """The error's text, or None where the contents are as expected; silently different ones fail the test."""
    try:
        received = contents(path)
    except FileError as error:
        return str(error)
    assert received == expected
    return None


@pytest.mark.parametrize("kind", ["index", "data-00000-of-00002", "data-00001-of-00002"])
def test_every_flipped_bit_is_found_or_harmless(small: Path, kind: str) -> None:
    expected, file = contents(small), Path(f"{small}.{kind}")
    original = file.read_bytes()
    found = 0
    for bit in range(8 * len(original)):
        damaged = bytearray(original)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        message = failure(small, expected)
        assert message is None or repr(str(file)) in message
        found += message is not None
    bits = 8 * len(original)
    # The footer's padding is not covered by any checksum, and not read either.
    assert found == bits if kind != "index" else bits - 8 * 40 <= found < bits


@pytest.mark.parametrize("kind", ["index", "data-00000-of-00002", "data-00001-of-00002"])
def test_every_truncation_is_found(small: Path, kind: str) -> None:
    file = Path(f"{small}.{kind}")
    original = file.read_bytes()
    for size in range(len(original)):
        file.write_bytes(original[:size])
        with pytest.raises(DamagedFile, match=re.escape(str(file))):
            contents(small)


def test_a_flipped_bit_names_tensor_file_and_offset(small: Path) -> None:
    file = Path(f"{small}.data-00000-of-00002")
    damaged = bytearray(file.read_bytes())
    damaged[5] ^= 1
    file.write_bytes(damaged)
    with TensorBundle(small) as bundle:
        assert bundle.read("b").shape == (5,)
        with pytest.raises(DamagedFile) as caught:
            bundle.read("a")
    pattern = r"file '.*small\.data-00000-of-00002': tensor 'a' at byte 0: expected CRC32C 0x\w{8}, received 0x\w{8}"
    assert re.fullmatch(pattern, caught.value.message)
    assert caught.value.hint


def test_a_missing_data_file(small: Path) -> None:
    Path(f"{small}.data-00001-of-00002").unlink()
    with pytest.raises(FileError, match=r"data-00001-of-00002': expected data file 2 of 2, received none\nhint: copy"):
        TensorBundle(small)


def test_an_index_that_is_no_table(tmp_path: Path) -> None:
    for content in (b"not a table at all", bytes(range(1, 201))):
        (tmp_path / "x.index").write_bytes(content)
        with pytest.raises(UnknownFormat, match="expected the table magic 57fb808b247547db at its end, received"):
            TensorBundle(tmp_path / "x")


def test_an_unknown_key_names_the_nearest(small: Path) -> None:
    with TensorBundle(small) as bundle:
        with pytest.raises(
            MissingWeight, match=r"tensor 'texts': .* received 4 others .*; nearest: 'text'\nhint: list"
        ):
            bundle.read("texts")
        with pytest.raises(KeyError):
            bundle.read_string("")


# --- lies: an index that is well-formed and checksummed, and wrong --------------------------------------------------

Edit = Callable[[tensor_bundle_pb2.BundleEntryProto], object]


def write_index(prefix: Path, entries: dict[bytes, Any]) -> None:
    """A table with one data block and no shared key prefixes."""

    def number(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + number(value >> 7)

    def block(pairs: dict[bytes, bytes]) -> bytes:
        body = b"".join(b"\0" + number(len(k)) + number(len(v)) + k + v for k, v in sorted(pairs.items()))
        content = body + bytes(4) + (1).to_bytes(4, "little") + b"\0"
        crc = google_crc32c.value(content)
        return content + (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")

    def handle(offset: int, content: bytes) -> bytes:
        return number(offset) + number(len(content) - 5)

    data, meta = block({key: value.SerializeToString() for key, value in entries.items()}), block({})
    index = block({max(entries): handle(0, data)})
    footer = handle(len(data), meta) + handle(len(data) + len(meta), index)
    magic = (0xDB4775248B80FB57).to_bytes(8, "little")
    Path(f"{prefix}.index").write_bytes(data + meta + index + footer.ljust(40, b"\0") + magic)


@pytest.fixture
def forged(tmp_path: Path) -> Callable[..., Path]:
    """Makes a bundle of one float32 tensor ``a`` of shape (3, 4), with its header and entry edited."""
    source = save(tmp_path / "forged", {"a": values((3, 4))})
    with TensorBundle(source) as bundle:
        original = bundle.entries["a"]

    def make(edit: Edit = lambda entry: None, **header: Any) -> Path:
        entry = tensor_bundle_pb2.BundleEntryProto(dtype=types_pb2.DT_FLOAT, size=48, crc32c=original.crc32c)
        for length in original.shape:
            entry.shape.dim.add(size=length)
        edit(entry)
        head = tensor_bundle_pb2.BundleHeaderProto(num_shards=1, **header)
        write_index(source, {b"": head, b"a": entry})
        return source

    return make


def test_the_forger_writes_what_tensorflow_reads(forged: Callable[..., Path]) -> None:
    assert assert_as_tensorflow(forged()) == 1


def test_big_endian_and_newer_formats_are_refused(forged: Callable[..., Path]) -> None:
    with pytest.raises(UnknownFormat, match=r"expected little-endian data, received big-endian\nhint: save it again"):
        TensorBundle(forged(endianness=tensor_bundle_pb2.BundleHeaderProto.BIG))
    with pytest.raises(UnknownFormat, match="expected checkpoint format 1 or older, received 2"):
        TensorBundle(forged(version={"producer": 2, "min_consumer": 2}))


def test_a_table_without_a_header(tmp_path: Path) -> None:
    write_index(tmp_path / "x", {b"a": tensor_bundle_pb2.BundleEntryProto(dtype=1)})
    with pytest.raises(UnknownFormat, match="expected the header"):
        TensorBundle(tmp_path / "x")


def test_names_that_are_no_text_are_kept_apart(tmp_path: Path) -> None:
    save(tmp_path / "x", {"plain": np.ones(1, np.float32)})
    entry = tensor_bundle_pb2.BundleEntryProto(dtype=types_pb2.DT_FLOAT)
    entry.shape.dim.add(size=0)
    head = tensor_bundle_pb2.BundleHeaderProto(num_shards=1)
    write_index(tmp_path / "x", {b"": head, b"\xff": entry, b"a": entry})
    with TensorBundle(tmp_path / "x") as bundle:
        assert set(bundle.entries) == {r"\xff", "a"}
    write_index(tmp_path / "x", {b"": head, b"\xff": entry, rb"\xff": entry})
    with pytest.raises(DamagedFile, match="expected 2 distinct keys, received 1"):
        TensorBundle(tmp_path / "x")


def shaped(*shape: int, **fields: int) -> Edit:
    def edit(entry: Any) -> None:
        entry.ClearField("shape")
        for length in shape:
            entry.shape.dim.add(size=length)
        for name, value in fields.items():
            setattr(entry, name, value)

    return edit


LIES: dict[str, tuple[Edit, str]] = {
    "huge shape": (shaped(1 << 40), "expected 4398046511104 bytes"),
    "huge shape and size": (shaped(1 << 40, size=1 << 42), "expected bytes 0 to 4398046511104, received 48 bytes"),
    "overflow": (shaped(1 << 62, 1 << 62, size=0), "fewer than 2\\*\\*56 elements"),
    "empty but huge": (shaped(0, 1 << 62, 1 << 62, size=0), "fewer than 2\\*\\*56 elements"),
    "negative length": (shaped(-3, -4), "without negative ones"),
    "many dimensions": (shaped(*[1] * 65), "expected up to 64 dimensions"),
    "negative offset": (shaped(3, 4, offset=-8), "expected bytes -8 to 40"),
    "offset beyond": (shaped(3, 4, offset=1), "expected bytes 1 to 49, received 48 bytes"),
    "huge offset": (shaped(3, 4, offset=(1 << 63) - 1), "received 48 bytes"),
    "negative size": (shaped(3, 4, size=-48), "received -48"),
    "negative string": (shaped(dtype=types_pb2.DT_STRING, size=-1), "expected bytes 0 to -1"),
    "no dtype": (shaped(3, 4, dtype=0), "expected a dtype from 1 to 33, received 0"),
    "other shard": (shaped(3, 4, shard_id=1), "expected one of 1 data files, received number 1"),
    "negative shard": (shaped(3, 4, shard_id=-1), "expected one of 1 data files, received number -1"),
    "parts without entries": (
        lambda e: (e.slices.add().extent.add(), setattr(e, "size", 0)),
        "expected its part at",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_in_the_index_is_found_on_opening(forged: Callable[..., Path], lie: str) -> None:
    edit, message = LIES[lie]
    with pytest.raises(DamagedFile, match=rf"^file '.*forged\.\S+': tensor 'a': .*{message}"):
        TensorBundle(forged(edit))


def test_a_wrong_checksum_dtype_or_place_is_found_on_reading(tmp_path: Path, forged: Callable[..., Path]) -> None:
    with (
        TensorBundle(forged(shaped(3, 4, crc32c=1))) as bundle,
        pytest.raises(DamagedFile, match="expected CRC32C 0x00000001"),
    ):
        bundle.read("a")
    with (
        TensorBundle(forged(shaped(dtype=types_pb2.DT_STRING))) as bundle,
        pytest.raises(DamagedFile, match="tensor 'a'"),
    ):
        bundle.read_string("a")


PARTS: dict[str, tuple[list[tuple[int, int]], str]] = {
    "gap": ([(0, 2), (3, 1)], "expected parts of 16 bytes in all, received 12"),
    "overlap": ([(0, 3), (2, 1)], "overlaps another"),
    "beyond": ([(0, 2), (2, 3)], "expected a part within shape"),
    "negative": ([(-1, 2), (1, 3)], "expected a part within shape"),
    "twice": ([(0, 2), (0, 2)], "overlaps another"),
    "too many": ([(0, 4)] * 3, "expected parts of 16 bytes in all, received 48"),
}


@pytest.mark.parametrize("case", PARTS)
def test_parts_that_do_not_make_up_the_whole(tmp_path: Path, case: str) -> None:
    regions, message = PARTS[case]
    forge_parts(tmp_path / "bad", regions)
    with pytest.raises(DamagedFile, match=message), TensorBundle(tmp_path / "bad") as bundle:
        bundle.read("w")


def test_the_forger_of_parts_writes_what_tensorflow_reads(tmp_path: Path) -> None:
    forge_parts(tmp_path / "good", [(0, 1), (1, 3)])
    assert assert_as_tensorflow(tmp_path / "good") == 1


def test_parts_that_share_bytes_cannot_make_up_more_than_the_files_hold(tmp_path: Path) -> None:
    forge_parts(tmp_path / "bad", [(4 * i, 4) for i in range(1000)], length=4000)
    with pytest.raises(DamagedFile, match="expected parts of 16000 bytes in all, received 16000 in files of 16 bytes"):
        TensorBundle(tmp_path / "bad")


def forge_parts(prefix: Path, regions: list[tuple[int, int]], length: int = 4) -> None:
    """A bundle whose tensor ``w`` of ones claims to consist of these (start, length) parts; all share their bytes."""
    save(prefix, {"plain": np.ones(4, np.float32)})
    whole = tensor_bundle_pb2.BundleEntryProto(dtype=types_pb2.DT_FLOAT)
    whole.shape.dim.add(size=length)
    entries: dict[bytes, Any] = {b"": tensor_bundle_pb2.BundleHeaderProto(num_shards=1), b"w": whole}
    for start, extent in regions:
        whole.slices.add().extent.add(start=start, length=extent)
        crc = google_crc32c.value(np.ones(extent, np.float32).tobytes())
        masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
        part = tensor_bundle_pb2.BundleEntryProto(dtype=types_pb2.DT_FLOAT, size=4 * extent, crc32c=masked)
        part.shape.dim.add(size=extent)
        entries[region_key("w", ((start, extent),))] = part
    write_index(prefix, entries)


def test_a_part_of_other_dimensions_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "bad", {"plain": np.ones(4, np.float32)})
    whole = tensor_bundle_pb2.BundleEntryProto(dtype=types_pb2.DT_FLOAT)
    whole.shape.dim.add(size=4)
    square = whole.slices.add()
    part = tensor_bundle_pb2.BundleEntryProto(dtype=types_pb2.DT_FLOAT, size=16)
    for _ in range(2):
        square.extent.add(start=0, length=2)
        part.shape.dim.add(size=2)
    header = tensor_bundle_pb2.BundleHeaderProto(num_shards=1)
    write_index(tmp_path / "bad", {b"": header, b"w": whole, region_key("w", ((0, 2), (0, 2))): part})
    with pytest.raises(DamagedFile, match="expected a part in 1 dimensions, received"):
        TensorBundle(tmp_path / "bad")


def test_a_string_with_another_checksum_is_refused(forged: Callable[..., Path]) -> None:
    prefix = forged(shaped(dtype=types_pb2.DT_STRING, size=7, crc32c=1))
    Path(f"{prefix}.data-00000-of-00001").write_bytes(b"\2" + b"crc!" + b"ab")
    with TensorBundle(prefix) as bundle, pytest.raises(DamagedFile, match="expected CRC32C 0x00000001"):
        bundle.read_string("a")


def test_a_string_that_is_shorter_than_its_place_is_refused(forged: Callable[..., Path]) -> None:
    prefix = forged(shaped(dtype=types_pb2.DT_STRING, size=8, crc32c=masked_crc32c(b"\2\0\0\0" + b"crc!" + b"ab")))
    for rest, message in ((b"", "expected bytes 0 to 8, received 7 bytes"), (b"c", "a string of 3 bytes, received 2")):
        Path(f"{prefix}.data-00000-of-00001").write_bytes(b"\2" + b"crc!" + b"ab" + rest)
        with pytest.raises(DamagedFile, match=message), TensorBundle(prefix) as bundle:
            bundle.read_string("a")


def test_the_bytes_of_a_string_are_those_in_the_file() -> None:
    assert Entry("s", "string", (), 0, 0, 9, 0).nbytes == 9


def test_an_object_graph_that_is_none_is_refused(tmp_path: Path) -> None:
    prefix = save(tmp_path / "x", {"_CHECKPOINTABLE_OBJECT_GRAPH": tf.constant(b"\xff"), "a": values((2,))})
    with pytest.raises(DamagedFile, match=r"x\.index': object graph: "), TensorBundle(prefix) as bundle:
        _ = bundle.graph
