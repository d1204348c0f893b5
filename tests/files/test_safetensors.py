"""polyak's own files: every bit comes back, every reader reads them, damage is noticed, hostile headers are refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import xxhash
from hypothesis import given
from hypothesis import strategies as st

import polyak
from polyak.errors import (
    AmbiguousRole,
    DamagedFile,
    DtypeMismatch,
    FileError,
    PolyakError,
    ShapeMismatch,
    UnexpectedWeight,
    UnknownFormat,
)
from polyak.files.safetensors import read, write
from polyak.manifest import State
from polyak.snapshot import Item, Snapshot
from polyak.weights import Evidence, Kind, Weight

RULE = {"rule": "ema", "decay": 0.9, "start": "warm"}
INTS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
FLOATS = ["float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "complex64"]


def all_bits(dtype: str, shape: tuple[int, ...] = (3, 4)) -> np.ndarray:
    """Random bits, so NaN payloads, infinities, subnormals and -0.0 are among them."""
    kind = np.dtype(dtype)
    if dtype == "bool":
        return np.random.default_rng(0).integers(0, 2, shape).astype(bool)
    raw = np.random.default_rng(1).bytes(math.prod(shape) * kind.itemsize)
    return np.frombuffer(raw, kind).reshape(shape)


def assert_same(received: np.ndarray, expected: np.ndarray) -> None:
    assert (received.dtype, received.shape) == (expected.dtype, expected.shape)
    assert received.tobytes() == expected.tobytes()


def saved(tmp_path: Path, **arrays: Any) -> Path:
    path = tmp_path / "a.safetensors"
    write(Snapshot.from_arrays(arrays), path)
    return path


def pair_of_roles(names: tuple[str, ...] = ("average", "raw")) -> Snapshot:
    """The same two weights under each role; the value tells the role."""
    items = [
        Item(role, Weight(path, (2,), "float32", Kind.TRAINABLE), np.full(2, n, np.float32).copy)
        for n, role in enumerate(names)
        for path in ("dense/bias", "head/bias")
    ]
    return Snapshot(items, {r: State(RULE, 7, 1) if r.startswith("average") else None for r in names}, "two models")


# --- every bit comes back --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bool", *INTS, *FLOATS])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (7,), (3, 4), (2, 1, 3, 2)], ids=str)
def test_every_dtype_and_shape_round_trips_bit_for_bit(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    value = all_bits(dtype, shape)
    snap = polyak.open(saved(tmp_path, x=value))
    assert_same(snap["x"], value)
    assert snap.weights == (Weight("x", shape, dtype, snap.weights[0].kind),)


def test_nan_payloads_and_signed_zeros_keep_their_bits(tmp_path: Path) -> None:
    value = np.array([0x7FC00001, 0xFFC12345, 0x7F800001, 0x80000000, 0x00000001], np.uint32).view(np.float32)
    assert_same(polyak.open(saved(tmp_path, x=value))["x"], value)


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a.T,
        lambda a: a[::2],
        lambda a: a[:, 1:3],
        lambda a: a[::-1, ::-1],
        lambda a: np.broadcast_to(a[0], (5, 6)),
        np.asfortranarray,
        lambda a: a.astype(">f4"),
    ],
    ids=["transpose", "rows", "columns", "reversed", "broadcast", "fortran", "other byte order"],
)
def test_a_view_is_stored_by_its_values_not_by_its_memory(tmp_path: Path, view: Callable[..., Any]) -> None:
    """K20: the reference writer stores wrong values for these, silently."""
    value = view(np.arange(24, dtype=np.float32).reshape(4, 6))
    path = saved(tmp_path, x=value)
    assert np.array_equal(safetensors.numpy.load_file(path)["x"], value)
    assert np.array_equal(polyak.open(path)["x"], value)
    lazy = tmp_path / "lazy.safetensors"
    write(Snapshot([Item("raw", Weight("x", value.shape, "float32", Kind.TRAINABLE), lambda: value)]), lazy)
    assert np.array_equal(safetensors.numpy.load_file(lazy)["x"], value)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=12).filter(lambda n: n != "__metadata__" and n.isprintable()),
        st.tuples(st.sampled_from(["bool", *INTS, *FLOATS]), st.lists(st.integers(0, 3), max_size=3)),
        min_size=1,
        max_size=5,
    )
)
def test_any_set_of_arrays_round_trips(described: dict[str, tuple[str, list[int]]]) -> None:
    import tempfile

    arrays = {name: all_bits(dtype, tuple(shape)) for name, (dtype, shape) in described.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        write(Snapshot.from_arrays(arrays), path)
        snap = polyak.open(path)
        assert list(snap) == list(arrays)
        for name, value in arrays.items():
            assert_same(snap[name], value)
        with safetensors.safe_open(path, "numpy") as other:
            assert set(other.keys()) == set(arrays)


def test_a_read_array_is_a_copy_and_outlives_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.arange(3, dtype=np.float32))
    snap = polyak.open(path)
    snap["x"][:] = 9.0
    path.unlink()
    assert snap["x"].tolist() == [0.0, 1.0, 2.0]


# --- other tools -----------------------------------------------------------------------------------------------------


def test_other_readers_read_ours(tmp_path: Path) -> None:
    arrays = {"a/b": all_bits("int8", (3,)), "c": np.ones((2, 2), np.float32), "n": np.int64(7), "d": np.ones(1)}
    path = saved(tmp_path, **arrays)
    loaded = safetensors.numpy.load_file(path)
    assert loaded.keys() == arrays.keys()
    for name, value in arrays.items():
        assert_same(loaded[name], np.asarray(value))
    with safetensors.safe_open(path, "numpy") as other:
        assert json.loads(other.metadata()["polyak"])["tool"] == f"polyak {polyak.__version__}"
        assert_same(other.get_slice("c")[1:], np.ones((1, 2), np.float32))


def test_every_array_is_aligned_in_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path, a=all_bits("int8", (3,)), b=np.ones(1), c=all_bits("float16", (1,)), d=np.float32(1))
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    base = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    for w in polyak.open(path).weights:
        assert (base + header[w.path]["data_offsets"][0]) % np.dtype(w.dtype).itemsize == 0


def test_ours_reads_files_of_the_reference_writer(tmp_path: Path) -> None:
    arrays = {d: all_bits(d) for d in ["bool", *INTS, "float16", "float32", "float64"]} | {"scalar": np.array(3.0)}
    path = tmp_path / "theirs"
    safetensors.numpy.save_file(arrays, path, metadata={"format": "np"})
    snap = polyak.open(path)
    assert (snap.roles, snap.integrity, snap.state) == (("raw",), "none", None)
    for name, value in arrays.items():
        assert_same(snap[name], value)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_ours_reads_dtypes_that_numpy_lacks(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "theirs"
    safetensors.numpy.save_file({"x": all_bits(dtype)}, path)
    assert_same(polyak.open(path)["x"], all_bits(dtype))


def test_opening_and_reading_loads_no_framework(tmp_path: Path) -> None:
    path = saved(tmp_path, x=all_bits("bfloat16"))
    script = """
import sys, polyak
snap = polyak.open(sys.argv[1])
print(snap.select(role="raw")["x"].shape, sorted({"tensorflow", "keras", "torch", "jax"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "(3, 4) []\n"


# --- the file says what it is ----------------------------------------------------------------------------------------


def test_the_manifest_tells_role_rule_count_kinds_evidence_digests_and_versions(tmp_path: Path) -> None:
    evidence = Evidence("dense/bias", "dense/bias", "dense/bias", "Dense", "bias", 0, "bfloat16")
    weight = Weight("dense/bias", (2,), "float32", Kind.STATISTIC, evidence)
    value = np.array([1.0, -2.0], np.float32)
    path = tmp_path / "a"
    write(Snapshot([Item("average", weight, value.copy)], {"average": State(RULE, 900, 3)}, "ema of Net"), path)
    manifest = polyak.open(path).manifest
    assert manifest.roles == {"average": State(RULE, 900, 3)}
    (stored,) = manifest.weights
    assert stored.weight == weight
    assert stored.digest == xxhash.xxh3_128_hexdigest(value.tobytes())
    assert manifest.tool == f"polyak {polyak.__version__}"
    assert manifest.versions["numpy"] == np.__version__
    assert manifest.integrity == "xxh3-128"
    assert manifest.version == 1
    assert json.loads(safetensors.safe_open(path, "numpy").metadata()["polyak"])["source"] == "ema of Net"


def test_a_live_average_and_its_model_go_into_one_file(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    module = tf.Module()
    module.w = tf.Variable([1.0, 2.0])
    ema = polyak.EMA(module, decay=0.9, start="initial")
    module.w.assign([3.0, 2.0])
    ema.update()
    receipt = polyak.save(ema, tmp_path / "both", "both")
    snap = polyak.open(tmp_path / "both")
    assert (receipt.role, snap.roles) == ("raw+average", ("raw", "average"))
    assert list(snap) == ["raw/w", "average/w"]
    assert snap["raw/w"].tolist() == [3.0, 2.0]
    assert snap.select("average")["w"].tolist() == ema.values()["w"].tolist()
    assert snap.select("average").state == ema.state
    assert snap.select("raw").state is None
    with pytest.raises(AmbiguousRole, match="received 'raw' and 'average'"):
        polyak.transfer(tmp_path / "both", module)


def test_named_averages_are_told_apart(tmp_path: Path) -> None:
    write(pair_of_roles(("raw", "average:fast", "average:slow")), tmp_path / "a")
    snap = polyak.open(tmp_path / "a")
    assert snap.select("average:slow")["head/bias"].tolist() == [2.0, 2.0]
    with pytest.raises(AmbiguousRole, match="received 'average:fast' and 'average:slow'"):
        snap.select("average")


def test_a_part_of_a_file_can_be_saved_again(tmp_path: Path) -> None:
    write(pair_of_roles(), tmp_path / "a")
    part = polyak.open(tmp_path / "a").select("average", include="head/*")
    write(part, tmp_path / "b")
    again = polyak.open(tmp_path / "b")
    assert (again.roles, list(again), again.state) == (("average",), ["head/bias"], State(RULE, 7, 1))


def test_an_empty_file_is_a_file_without_weights(tmp_path: Path) -> None:
    safetensors.numpy.save_file({}, tmp_path / "a")
    assert (list(polyak.open(tmp_path / "a")), polyak.open(tmp_path / "a").roles) == ([], ())


# --- what cannot be written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("x", np.ones(2, np.complex128), DtypeMismatch),
        ("x", np.ones(2, ml_dtypes.int4), DtypeMismatch),
        ("__metadata__", np.ones(2, np.float32), UnexpectedWeight),
    ],
)
def test_what_the_format_cannot_hold_is_refused_before_a_file_is_made(
    tmp_path: Path, name: str, value: np.ndarray, error: type[PolyakError]
) -> None:
    with pytest.raises(error, match=name):
        write(Snapshot.from_arrays({name: value}), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_an_array_that_is_not_what_was_described_is_refused(tmp_path: Path) -> None:
    weight = Weight("x", (2,), "float32", Kind.TRAINABLE)
    with pytest.raises(ShapeMismatch, match=r"expected \(2,\) float32, received \(3,\) float32"):
        write(Snapshot([Item("raw", weight, lambda: np.ones(3, np.float32))]), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


# --- damage ----------------------------------------------------------------------------------------------------------


def contents(path: Path) -> dict[str, Any]:
    """Everything that a reader would believe of a file."""
    snap = polyak.open(path)
    return {
        "roles": snap.roles,
        "states": snap.manifest.roles,
        "source": snap.manifest.source if snap.integrity == "none" else "",
        "weights": [(s.name, s.role, s.weight) for s in snap.manifest.weights],
        "values": {name: value.tobytes() for name, value in snap.items()},
    }


def test_every_flipped_bit_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(pair_of_roles(), path)
    whole, good = contents(path), path.read_bytes()
    noticed = 0
    for bit in range(0, 8 * len(good), 3):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        try:
            assert contents(path) == whole, f"bit {bit % 8} of byte {bit // 8}"
        except FileError:
            noticed += 1
    assert noticed > 0.9 * 8 * len(good) / 3


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(pair_of_roles(), path)
    good = path.read_bytes()
    for size in {*range(24), *range(0, len(good), 7), *range(len(good) - 40, len(good))}:
        path.write_bytes(good[:size])
        with pytest.raises(FileError):
            polyak.open(path)
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(DamagedFile, match="truncated"):
        polyak.open(path)


def test_a_weight_cut_short_is_told_by_the_bytes_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"x": np.ones(3, np.float32), "y": np.ones(4, np.float32)}, path)
    good = path.read_bytes()
    for lost, name, expected, received in ((7, "y", 16, 9), (16, "y", 16, 0), (20, "x", 12, 8)):
        path.write_bytes(good[:-lost])
        with pytest.raises(DamagedFile, match=f"weight '{name}' .*: expected {expected} bytes, received {received}\n"):
            polyak.open(path)


def test_a_trailing_byte_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.ones(3, np.float32))
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DamagedFile, match="expected 12 bytes of data, received 13"):
        polyak.open(path)


def test_a_changed_manifest_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path, first=np.ones(3, np.float32))
    good = path.read_bytes()
    assert good.count(b'\\"raw\\"') >= 1
    path.write_bytes(good.replace(b'\\"raw\\"', b'\\"rav\\"'))
    with pytest.raises(DamagedFile, match="the manifest does not have its digest"):
        polyak.open(path)


def test_damage_names_the_weight(tmp_path: Path) -> None:
    path = saved(tmp_path, first=np.ones(3, np.float32), second=np.ones(3, np.float32))
    bad = bytearray(path.read_bytes())
    bad[-1] ^= 1
    path.write_bytes(bad)
    snap = polyak.open(path)
    assert snap["first"].tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(DamagedFile, match=r"weight 'second': expected bytes with digest"):
        snap["second"]


# --- hostile headers -------------------------------------------------------------------------------------------------


def raw_file(path: Path, header: Any, data: bytes = b"") -> Path:
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(body).to_bytes(8, "little") + body + data)
    return path


def entry(shape: Any = (2,), begin: Any = 0, end: Any = 8, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HOSTILE: dict[str, tuple[Any, bytes]] = {
    "overlap": ({"a": entry(), "b": entry(begin=4, end=12)}, bytes(12)),
    "same place": ({"a": entry(), "b": entry()}, bytes(8)),
    "gap": ({"a": entry(), "b": entry(begin=12, end=20)}, bytes(20)),
    "gap at the start": ({"a": entry(begin=8, end=16)}, bytes(16)),
    "beyond the end": ({"a": entry(begin=8, end=16)}, bytes(8)),
    "end before begin": ({"a": entry(begin=8, end=0)}, bytes(8)),
    "negative offset": ({"a": entry(begin=-8, end=0)}, bytes(8)),
    "negative shape": ({"a": entry(shape=[-1, -2])}, bytes(8)),
    "shape and size differ": ({"a": entry(shape=[3])}, bytes(8)),
    "huge shape": ({"a": entry(shape=[2**62])}, bytes(8)),
    "huge empty shape": ({"a": entry(shape=[2**62, 2**62, 0], end=0)}, b""),
    "huge product": ({"a": entry(shape=[2**40] * 4)}, bytes(8)),
    "endless number": (b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}', bytes(8)),
    "many axes": ({"a": entry(shape=[1] * 100, end=4)}, bytes(4)),
    "shape of floats": ({"a": entry(shape=[2.0])}, bytes(8)),
    "shape of truths": ({"a": entry(shape=[True, 2])}, bytes(8)),
    "shape is a text": ({"a": entry(shape="2")}, bytes(8)),
    "shape is a number": ({"a": entry(shape=2)}, bytes(8)),
    "three offsets": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]}}, bytes(8)),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "unknown dtype": ({"a": entry(dtype="F128")}, bytes(8)),
    "dtype is a list": ({"a": entry(dtype=["F32"])}, bytes(8)),
    "description is null": ({"a": None}, b""),
    "description is a text": ({"a": "F32"}, b""),
    "duplicate name": (b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},' * 2 + b'"b":0}', b""),
    "metadata is a list": ({"__metadata__": [1]}, b""),
    "metadata of numbers": ({"__metadata__": {"polyak": 1, "polyak.digest": "0"}}, b""),
    "manifest without digest": ({"__metadata__": {"polyak": "{}"}}, b""),
    "digest without manifest": ({"__metadata__": {"polyak.digest": "0" * 32}}, b""),
    "lone surrogate": (b'{"__metadata__":{"polyak":"\\ud800","polyak.digest":"0"}}', b""),
    "not JSON": (b"{nonsense", b""),
    "not UTF-8": (b'{"\xff\xfe": 1}', b""),
    "data without arrays": ({}, bytes(8)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_contradictory_header_is_refused(tmp_path: Path, name: str) -> None:
    path = raw_file(tmp_path / "a", *HOSTILE[name])
    with pytest.raises(FileError, match=r"^file '.*a': "):
        polyak.open(path)


def test_more_behind_the_header_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"a": entry()}).encode()
    assert polyak.open(raw_file(tmp_path / "a", header + b"  ", bytes(8)))["a"].tolist() == [0.0, 0.0]
    with pytest.raises(DamagedFile, match="the header is not readable"):
        polyak.open(raw_file(tmp_path / "a", header + b" }", bytes(8)))


def test_an_unknown_dtype_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormat, match=r"weight 'a': expected one of BOOL, .*, received 'F128'"):
        polyak.open(raw_file(tmp_path / "a", {"a": entry(dtype="F128")}, bytes(8)))


def test_more_tensors_than_any_model_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedFile, match="expected at most 100,000 tensors, received more"):
        polyak.open(raw_file(tmp_path / "a", b"{" + b'"data_offsets"' * 100_001))


def test_a_header_that_no_reader_takes_is_not_written(tmp_path: Path) -> None:
    held = Snapshot.from_arrays({"n" * 18_000_000: np.ones(1, np.float32)})
    with pytest.raises(FileError, match="expected weights that 50,000,000 bytes can describe, received 1,"):
        write(held, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("depth", [100, 900, 1_000, 5_000, 100_000])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_deep_nesting_is_refused(tmp_path: Path, depth: int, opening: bytes) -> None:
    closing = b"]" if opening == b"[" else b"}"
    inner = b"0" if opening == b'{"a":' else b""
    header = b'{"a":' + opening * depth + inner + closing * depth + b"}"
    with pytest.raises(DamagedFile):
        polyak.open(raw_file(tmp_path / "a", header))


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**40, 2**63, 2**64 - 1])
def test_an_absurd_header_length_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(FileError):
        polyak.open(path)
    with pytest.raises(DamagedFile, match=f"expected a header of {length} bytes, received 2"):
        read(path)


def test_an_unreadable_file_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"^file '.*': cannot be read: Is a directory$"):
        read(tmp_path)


# --- hostile manifests -----------------------------------------------------------------------------------------------


def with_manifest(path: Path, change: Callable[[dict[str, Any]], None] | str) -> Path:
    """A good file whose manifest is changed, and whose digest of the manifest is made to fit."""
    write(pair_of_roles(), path)
    good = path.read_bytes()
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    if isinstance(change, str):
        text = change
    else:
        manifest = json.loads(header["__metadata__"]["polyak"])
        change(manifest)
        text = json.dumps(manifest)
    header["__metadata__"] = {"polyak": text, "polyak.digest": xxhash.xxh3_128_hexdigest(text.encode())}
    return raw_file(path, header, good[8 + length :])


def test_the_changed_file_is_otherwise_good(tmp_path: Path) -> None:
    assert polyak.open(with_manifest(tmp_path / "a", lambda m: None)).roles == ("average", "raw")


def test_a_newer_manifest_is_refused_with_a_hint(tmp_path: Path) -> None:
    path = with_manifest(tmp_path / "a", lambda m: m.update(version=2, weights="other form"))
    with pytest.raises(UnknownFormat) as caught:
        polyak.open(path)
    assert str(caught.value) == (
        f"file {str(path)!r}: expected a manifest of version 1 or older, received version 2\n"
        "hint: install a newer polyak"
    )


MANIFESTS: dict[str, Callable[[dict[str, Any]], None] | str] = {
    "no weights": lambda m: m.pop("weights") and None,
    "a weight less": lambda m: m["weights"].pop() and None,
    "a weight twice": lambda m: m["weights"].append(m["weights"][0]),
    "one path twice": lambda m: m["weights"][0]["weight"].update(path=m["weights"][1]["weight"]["path"]),
    "another shape": lambda m: m["weights"][0]["weight"].update(shape=[1, 2]),
    "another dtype": lambda m: m["weights"][0]["weight"].update(dtype="int32"),
    "unknown kind": lambda m: m["weights"][0]["weight"].update(kind="secret"),
    "negative count": lambda m: m["roles"]["average"].update(count=-1),
    "count beyond 64 bits": lambda m: m["roles"]["average"].update(count=2**63),
    "version is a text": lambda m: m.update(version="one"),
    "version is null": lambda m: m.update(version=None),
    "a list": "[]",
    "null": "null",
    "not JSON": "{",
    "deep": "[" * 100_000,
    "deep rule": '{"tool":"","roles":{"average":{"count":1,"rule":' + "[" * 100_000 + "]" * 100_000 + "}}}",
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_contradictory_manifest_is_refused(tmp_path: Path, name: str) -> None:
    path = with_manifest(tmp_path / "a", MANIFESTS[name])
    with pytest.raises(DamagedFile, match=r"^file '"):
        polyak.open(path)


def test_texts_of_other_tools_beside_the_arrays_are_named(tmp_path: Path) -> None:
    about = {"format": "pt", "trained by": "x"}
    safetensors.numpy.save_file({"w": np.ones(2)}, tmp_path / "a.safetensors", metadata=about)
    assert polyak.open(tmp_path / "a.safetensors").manifest.unread == {"__metadata__/trained by": "a text"}
