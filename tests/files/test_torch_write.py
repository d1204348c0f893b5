"""State dicts written without PyTorch: torch reads every bit, polyak reads what they are, damage is refused."""

from __future__ import annotations

import hashlib
import pickletools
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import polyak
from polyak.errors import DamagedFile, DtypeMismatch, FileError, UnexpectedWeight
from polyak.files import torch_pickled, torch_write
from polyak.manifest import State
from polyak.snapshot import Item, Snapshot
from polyak.weights import Kind, Weight, numpy_dtype

torch = pytest.importorskip("torch")

DTYPES = (
    *("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64"),
    *("complex128", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"),
    *("float8_e5m2fnuz", "float8_e8m0fnu"),
)


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    held = {f"dtype.{n}": rng.integers(1, 2, (3, 2)).astype(numpy_dtype(n)) for n in DTYPES}
    held |= {"scalar": np.array(3.5, np.float32), "empty": np.zeros((0, 4), np.float32)}
    return held | {"turned": rng.normal(size=(4, 5)).astype(np.float32).T, "ключ/é": np.arange(3.0)}


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("mapped", [False, True])
def test_pytorch_reads_every_dtype_and_shape_bit_for_bit(tmp_path: Path, mapped: bool) -> None:
    polyak.save(Snapshot.from_arrays(arrays()), tmp_path / "a.pt")
    held = torch.load(tmp_path / "a.pt", weights_only=True, mmap=mapped)
    assert list(held) == list(arrays())
    for name, array in arrays().items():
        assert tuple(held[name].shape) == array.shape
        assert str(held[name].dtype) == f"torch.{array.dtype.name}"
        assert raw(held[name]) == np.ascontiguousarray(array).tobytes()


def test_polyak_reads_back_what_the_file_is(tmp_path: Path) -> None:
    state = State({"type": "ema", "decay": 0.9}, 7)
    polyak.save(Snapshot.from_arrays({"a.b": np.ones(2, np.float32)}, "average", state), tmp_path / "a.pt")
    held = polyak.open(tmp_path / "a.pt")
    assert (held.roles, held.state, held.integrity) == (("average",), state, "xxh3-128")
    assert held.manifest.tool.startswith("polyak")
    np.testing.assert_array_equal(held["a.b"], [1, 1])


def test_several_roles_are_dictionaries_of_their_own(tmp_path: Path) -> None:
    def item(role: str, value: float) -> Item:
        return Item(role, Weight("w", (2,), "float32", Kind.TRAINABLE), lambda: np.full(2, value, np.float32))

    polyak.save(Snapshot([item("raw", 1), item("average", 2)]), tmp_path / "a.pt")
    held = torch.load(tmp_path / "a.pt", weights_only=True)
    assert {role: d["w"].tolist() for role, d in held.items()} == {"raw": [1, 1], "average": [2, 2]}
    assert polyak.open(tmp_path / "a.pt").select(role="average")["w"].tolist() == [2, 2]


def test_every_member_starts_at_a_multiple_of_64_bytes_and_has_its_checksum(tmp_path: Path) -> None:
    polyak.save(Snapshot.from_arrays(arrays()), tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            header = content[info.header_offset : info.header_offset + 30]
            start = info.header_offset + 30 + int.from_bytes(header[26:28], "little")
            assert (start + int.from_bytes(header[28:30], "little")) % 64 == 0
            assert info.compress_type == zipfile.ZIP_STORED
        assert archive.read("archive/version") == b"3\n"


def test_large_members_are_aligned_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longer headers of large members, tried on small ones."""
    monkeypatch.setattr(torch_write, "_LARGE", 16)
    polyak.save(Snapshot.from_arrays(arrays()), tmp_path / "a.pt")
    held = torch.load(tmp_path / "a.pt", weights_only=True, mmap=True)
    assert raw(held["turned"]) == np.ascontiguousarray(arrays()["turned"]).tobytes()
    assert held["dtype.float64"].data_ptr() % 64 == 0


def test_equal_weights_make_equal_files(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        polyak.save(Snapshot.from_arrays(arrays()), tmp_path / name)
    assert len({hashlib.sha256((tmp_path / n).read_bytes()).digest() for n in ("a.pt", "b.pt")}) == 1


def test_pytorch_is_not_loaded_to_write(tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np, polyak; s = polyak.Snapshot.from_arrays({'a': np.ones(2)}); "
        "polyak.save(s, sys.argv[1]); polyak.convert(s, sys.argv[2], format='torch'); "
        "assert 'torch' not in sys.modules"
    )
    paths = [str(tmp_path / "a.pt"), str(tmp_path / "b.bin")]
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert torch.load(paths[1], weights_only=True)["a"].tolist() == [1, 1]


def test_the_command_converts_a_file(tmp_path: Path) -> None:
    polyak.save(Snapshot.from_arrays({"a.b": np.ones(2, np.float32)}), tmp_path / "a.safetensors")
    command = [sys.executable, "-m", "polyak", "convert", str(tmp_path / "a.safetensors"), str(tmp_path / "a.pt")]
    subprocess.run(command, check=True, capture_output=True)
    assert torch.load(tmp_path / "a.pt", weights_only=True)["a.b"].tolist() == [1, 1]


@pytest.mark.parametrize("place", range(0, 1000, 7))
def test_a_flipped_bit_is_noticed_or_harmless(tmp_path: Path, place: int) -> None:
    wanted = {"w": np.arange(40, dtype=np.float32)}
    polyak.save(Snapshot.from_arrays(wanted), tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[place * len(content) // 1000] ^= 0x10
    (tmp_path / "a.pt").write_bytes(content)
    try:
        held = polyak.open(tmp_path / "a.pt")
        assert {n: a.tobytes() for n, a in held.items()} == {n: a.tobytes() for n, a in wanted.items()}
    except FileError:
        pass


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    polyak.save(Snapshot.from_arrays({"w": np.arange(40, dtype=np.float32)}), tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedFile):
        polyak.open(tmp_path / "a.pt")


def test_a_manifest_that_does_not_describe_the_tensors_is_refused(tmp_path: Path) -> None:
    polyak.save(Snapshot.from_arrays({"w": np.ones(2, np.float32)}), tmp_path / "a.pt")
    polyak.save(Snapshot.from_arrays({"v": np.ones(2, np.float32)}), tmp_path / "b.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as a, zipfile.ZipFile(tmp_path / "b.pt") as b:
        members = {n: a.read(n) for n in a.namelist()} | {"archive/polyak.json": b.read("archive/polyak.json")}
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as c:
        for name, content in members.items():
            c.writestr(name, content)
    with pytest.raises(DamagedFile, match="weight 'v'"):
        polyak.open(tmp_path / "c.pt")


def test_a_dtype_that_pytorch_lacks_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(DtypeMismatch, match="'x': expected a dtype that PyTorch has, received float8_e3m4"):
        polyak.save(Snapshot.from_arrays({"x": np.ones(2, numpy_dtype("float8_e3m4"))}), tmp_path / "a.pt")
    assert list(tmp_path.iterdir()) == []


def test_sizes_beyond_four_bytes_are_whole_numbers_of_eight() -> None:
    text = torch_pickled.pickled({"w": torch_pickled.Described("0", (1 << 31, 2), "uint8")})
    numbers = [value for _, value, _ in pickletools.genops(text) if isinstance(value, int)]
    assert {1 << 31, 1 << 32} <= set(numbers)


@pytest.mark.parametrize("name", ["", "n" * 4097])
def test_a_name_that_could_not_be_read_again_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    held = Snapshot.from_arrays({name: np.ones(1, np.float32)})
    with pytest.raises(UnexpectedWeight, match=f"a name of 1 to 4,096 letters .*, received {len(name):,}"):
        polyak.save(held, tmp_path / "a.pt")
    assert list(tmp_path.iterdir()) == []
    longest = Snapshot.from_arrays({"n" * 4096: np.ones(1, np.float32)})
    polyak.save(longest, tmp_path / "a.pt")
    assert list(polyak.open(tmp_path / "a.pt")) == ["n" * 4096]
