"""PyTorch's files: every bit comes back, nothing that a file brings is run, damage and malice are refused.

The golden files are the real tools'; see tests/golden/make_torch.py.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import xxhash

import polyak
from polyak.errors import DamagedFile, FileError, PolyakError, UnknownFormat
from polyak.files import torch_pt
from polyak.files.positioned import PositionedFile
from polyak.files.torch_globals import Storage, View
from polyak.files.torch_legacy import MAGIC
from polyak.files.torch_storage import Block, Storages
from polyak.snapshot import Snapshot
from polyak.weights import numpy_dtype

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "torch"
FILES = sorted(p for p in GOLDEN.iterdir() if p.suffix in (".pt", ".ckpt"))


def expected(name: str) -> dict[str, np.ndarray]:
    """What the tool held; extended dtypes are stored as integers under ``NAME|dtype``."""
    with np.load(GOLDEN / f"{name}.npz") as stored:
        pairs = [(key.partition("|"), stored[key]) for key in stored.files]
    return {key: array.view(numpy_dtype(dtype)) if dtype else array for (key, _, dtype), array in pairs}


def assert_same(received: np.ndarray, wanted: np.ndarray) -> None:
    assert (received.dtype, received.shape) == (wanted.dtype, wanted.shape)
    assert received.tobytes() == wanted.tobytes()


# --- what torch wrote ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kinds", "kinds_legacy", "protocol5", "not_read"])
def test_every_sort_of_tensor_has_torchs_bits(name: str) -> None:
    held, wanted = torch_pt.read(GOLDEN / f"{name}.pt").tensors, expected(name)
    assert set(held) == set(wanted)
    for key, array in wanted.items():
        assert (held[key].shape, held[key].dtype) == (array.shape, array.dtype.name)
        assert_same(held[key].read(), array)


@pytest.mark.parametrize("name", ["plain", "plain_legacy", "wrapped", "module", "deflated"])
def test_a_set_of_weights_has_torchs_names_and_bits(name: str) -> None:
    held = polyak.open(GOLDEN / f"{name}.pt")
    assert held.roles == ("raw",)
    wanted = {key.removeprefix("raw/"): array for key, array in expected(name).items()}
    assert set(held) == set(wanted)
    for key, array in wanted.items():
        assert_same(held[key], array)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_every_golden_file_is_recognised_and_read(path: Path) -> None:
    held = polyak.open(path)
    assert all(np.asarray(held[name]).shape == w.shape for name, w in zip(held, held.weights, strict=True))
    assert held.integrity == ("none" if "legacy" in path.name else "crc32")


def test_arrays_are_copies_that_may_be_written() -> None:
    held = polyak.open(GOLDEN / "plain.pt")
    held["conv.bias"][:] = 0
    assert held["conv.bias"].any()


def test_tensors_that_are_not_read_are_named_in_the_note() -> None:
    note = polyak.open(GOLDEN / "not_read.pt").manifest.note
    assert note == "not read: q (a quantised tensor), sparse (a sparse tensor)"


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("dtype", ["qint8", "quint8", "qint32"])
@pytest.mark.parametrize("zipped", [True, False])
def test_quantised_tensors_keep_no_others_from_being_read_in_either_form(
    dtype: str, zipped: bool, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    quantised = [torch.quantize_per_tensor(torch.randn(n), 0.1, 0, getattr(torch, dtype)) for n in (3, 5)]
    first, last = torch.randn(4), torch.randn(6)
    held = {"a": first, "q": quantised[0], "s": quantised[1], "z": last}
    torch.save(held, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    read = polyak.open(tmp_path / "a.pt")
    assert all(read[n].tobytes() == held[n].numpy().tobytes() for n in ("a", "z"))
    assert read.manifest.unread == {"q": "a quantised tensor", "s": "a quantised tensor"}


def test_plain_values_are_facts() -> None:
    facts = torch_pt.read(GOLDEN / "averaged_model_both.pt").facts
    assert (facts["epoch"], facts["optimizer/param_groups/0/lr"]) == (3, 0.1)
    assert torch_pt.read(GOLDEN / "timm.pt").facts["args/model_ema_decay"] == 0.9  # in an argparse.Namespace
    assert torch_pt.read(GOLDEN / "timm.pt").facts["metric"] == 0.5  # a NumPy number


def test_big_endian_files_are_turned_round(tmp_path: Path) -> None:
    swapped = b"".join(struct.pack(">f", x) for x in (1.0, 2.5, -3.0))
    path = archive(tmp_path, tensor("FloatStorage", "0", 3), {"0": swapped}, byteorder=b"big")
    assert torch_pt.read(path).tensors["w"].read().tolist() == [1.0, 2.5, -3.0]


# --- files made here -------------------------------------------------------------------------------------------------


class Global:
    """Pickles as a global of that name, whatever is there."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Pickler(pickle._Pickler):  # the one in Python lets a script write globals that do not exist
    """Writes the parts of torch's pickles without torch."""

    def persistent_id(self, obj: Any) -> Any:
        return obj.identity if isinstance(obj, Identity) else None

    def save_named(self, obj: Global) -> None:
        self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())

    def save_call(self, obj: Call) -> None:
        self.save(obj.function)
        self.save(obj.args)
        self.write(b"R")

    def save_object(self, obj: Object) -> None:
        self.save_call(obj)
        self._batch_appends(obj.entries)
        if obj.state is not None:
            self.save(obj.state)
            self.write(b"b")

    dispatch: ClassVar[dict[type, Any]] = {**pickle._Pickler.dispatch, Global: save_named}


class Identity:
    """A persistent id: how torch refers to a storage."""

    def __init__(self, *identity: Any) -> None:
        self.identity = identity


class Call:
    """Pickles as the call of a global."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args


class Object(Call):
    """Pickles as a call, and what the object then is given: its state, or entries as a list takes them."""

    def __init__(
        self, function: Any, state: Any = None, entries: tuple[Any, ...] = (), args: tuple[Any, ...] = ()
    ) -> None:
        super().__init__(function, *args)
        self.state, self.entries = state, entries


Pickler.dispatch[Call] = Pickler.save_call
Pickler.dispatch[Object] = Pickler.save_object


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(value)
    return buffer.getvalue()


def storage(kind: str, key: str, size: int) -> Identity:
    return Identity("storage", Global("torch", kind), key, "cpu", size)


def tensor(
    kind: str, key: str, size: int, shape: tuple[int, ...] | None = None, strides: Any = None, offset: int = 0
) -> dict[str, Any]:
    shape = (size,) if shape is None else shape
    strides = (1,) * len(shape) if strides is None else strides
    args = (storage(kind, key, size), offset, shape, strides, False, {})
    return {"w": Call(Global("torch._utils", "_rebuild_tensor_v2"), *args)}


def archive(tmp_path: Path, value: Any, data: dict[str, bytes] | None = None, byteorder: bytes = b"little") -> Path:
    path = tmp_path / "made.pt"
    with zipfile.ZipFile(path, "w") as held:
        held.writestr("made/data.pkl", value if isinstance(value, bytes) else pickled(value))
        held.writestr("made/byteorder", byteorder)
        for key, content in (data or {}).items():
            held.writestr(f"made/data/{key}", content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DamagedFile) as caught:
        read_all(path)
    return str(caught.value)


def read_all(path: Path) -> None:
    for held in torch_pt.read(path).tensors.values():
        held.read()


def test_the_files_made_here_are_read(tmp_path: Path) -> None:
    path = archive(
        tmp_path, tensor("FloatStorage", "0", 4, (2, 2), (1, 2)), {"0": np.arange(4.0, dtype="f4").tobytes()}
    )
    assert torch_pt.read(path).tensors["w"].read().tolist() == [[0.0, 2.0], [1.0, 3.0]]


W = tensor("FloatStorage", "0", 4)["w"]
SCALAR = Global("numpy.core.multiarray", "scalar")
INERT: dict[str, tuple[Any, set[str], dict[str, object]]] = {
    "entries": ({"w": W, "d": Object(Global("collections", "deque"), None, (5, 6))}, {"w"}, {"d/0": 5, "d/1": 6}),
    "subclass": (
        {"w": Call(Global("torch._tensor", "_rebuild_from_type_v2"), W.function, Global("a", "B"), W.args, {})},
        {"w"},
        {},
    ),
    "class of a module": ({"w": W, "m": Identity("module", Global("a", "B"), "a.py", "class B: pass")}, {"w"}, {}),
    "complex number": ({"w": W, "c": Call(Global("builtins", "complex"), 1.0, 2.0)}, {"w"}, {}),
    "text of numpy": ({"w": W, "t": Call(SCALAR, Call(Global("numpy", "dtype"), "U1", False, True), b"a")}, {"w"}, {}),
    "wide number": ({"w": W, "n": 2**63, "step": 7}, {"w"}, {"step": 7}),
    "long text": ({"w": W, "t": "a" * 2**20, "step": 7}, {"w"}, {"step": 7}),
    "half a character": ({"w": W, "t": "\ud800", "\ud800": 1, "step": 7}, {"w"}, {"step": 7}),
    "module": (
        Object(
            Global("a", "B"),
            {
                "_parameters": {"w": W, (1, 2): W},
                "_buffers": {"b": W},
                "_modules": {"inner": None, (1, 2): Object(Global("a", "B"), {})},
            },
        ),
        {"w", "b"},
        {},
    ),
}


@pytest.mark.parametrize("name", INERT)
def test_what_lies_beside_the_weights_is_a_fact_or_passed_over(name: str, tmp_path: Path) -> None:
    value, tensors, facts = INERT[name]
    held = torch_pt.read(archive(tmp_path, value, {"0": np.arange(4.0, dtype="f4").tobytes()}))
    assert set(held.tensors) == tensors
    assert held.facts == facts
    assert held.tensors["w"].read().tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_tensor_under_a_key_that_is_no_name_is_named_as_not_read(tmp_path: Path) -> None:
    held = torch_pt.read(archive(tmp_path, {"a": {"w": W, (1, 2): W}}, {"0": bytes(16)}))
    assert set(held.tensors) == {"a/w"}
    assert held.unread == {"a/?": "a tensor under a key that is no name"}


def array_of_numpy(module: str = "numpy.core.multiarray") -> Object:
    """An array as NumPy pickles it: a call that makes an empty one, and its state."""
    state = (1, (2,), Call(Global("numpy", "dtype"), "f8", False, True), False, "sixteen bytes...")
    return Object(Global(module, "_reconstruct"), state, (), (Global("numpy", "ndarray"), (0,), "b"))


def parameter(data: Any, state: Any) -> Call:
    return Call(Global("torch._utils", "_rebuild_parameter_with_state"), data, True, {}, state)


def another() -> Call:
    return tensor("FloatStorage", "0", 4)["w"]


def deep(value: Any, levels: int) -> Any:
    for _ in range(levels):
        value = [value]
    return value


NONAME, WITHIN = "a tensor under a key that is no name", "a tensor within an object"
HIDDEN: dict[str, tuple[Any, dict[str, str]]] = {
    "below a key that is no name": ({(1, 2): {"v": [W]}}, {"?/v/0": NONAME}),
    "two keys that are no names": ({(1, 2): W, (3, 4): W}, {"?": NONAME, "?#2": NONAME}),
    "a key of bytes": ({b"v": W}, {"?": NONAME}),
    "a tensor as a key": ({another(): 1}, {"?/0": NONAME}),
    "a named tuple": ({"nt": Call(Global("a", "NT"), W, [W])}, {"nt/0": WITHIN, "nt/1/0": WITHIN}),
    "a set": ({"s": Call(Global("builtins", "set"), [W, W])}, {"s/0/0": WITHIN, "s/0/1": WITHIN}),
    "a state that is a list": ({"o": Object(Global("a", "B"), [W])}, {"o/state/0": WITHIN}),
    "arguments beside attributes": (
        {"o": Object(Global("a", "B"), {"n": 1}, (), (W,))},
        {"o/0": WITHIN},
    ),
    "an object in an object": (
        {"o": Call(Global("a", "B"), Object(Global("a", "C"), {"v": W}))},
        {"o/0/v": WITHIN},
    ),
    "deeper than weights are": ({"o": Call(Global("a", "B"), deep(W, 60))}, {"o" + "/0" * 48: WITHIN}),
    "an array": ({"o": {"n": array_of_numpy()}}, {"o/n": "a NumPy array"}),
    "an array of NumPy 2": ({"n": array_of_numpy("numpy._core.multiarray")}, {"n": "a NumPy array"}),
    "an array in a state": ({"o": Object(Global("a", "B"), [array_of_numpy()])}, {"o/state/0": "a NumPy array"}),
    "an array of Python": ({"n": Call(Global("array", "array"), "d", [1.0])}, {"n": "an array of Python"}),
    "a storage": ({"s": storage("FloatStorage", "0", 4)}, {"s": "a storage without a tensor"}),
    "a storage that an unknown function takes": (
        {"o": Call(Global("torch._utils", "_rebuild_tensor_v9"), storage("FloatStorage", "0", 4))},
        {"o/0": "a storage without a tensor"},
    ),
    "a tensor of a sort that is not read, within an object": (
        {"o": Call(Global("a", "B"), Call(Global("torch._utils", "_rebuild_qtensor")))},
        {"o/0": "a quantised tensor"},
    ),
    "what is attached to a parameter": ({"p": parameter(W, {"scale": another()})}, {"p/scale": WITHIN}),
    "what lies in a module beside its weights": (
        {
            "m": Object(
                Global("a", "B"),
                {
                    "_parameters": {},
                    "_buffers": {"b": W},
                    "_modules": {"inner": Object(Global("a", "C"), {"v": W})},
                    "_non_persistent_buffers_set": Call(Global("builtins", "set"), ["b"]),
                    "plain": W,
                },
            )
        },
        {"m/plain": WITHIN, "m/_buffers/b": WITHIN, "m/_modules/inner/v": WITHIN},
    ),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_numbers_that_are_no_weights_are_named_as_not_read(name: str, tmp_path: Path) -> None:
    value, said = HIDDEN[name]
    held = torch_pt.read(archive(tmp_path, {"w": W} | value, {"0": np.arange(4.0, dtype="f4").tobytes()}))
    assert held.unread == said
    assert set(held.tensors) == {"w", *("p" for n in value if n == "p")}
    assert held.tensors["w"].read().tolist() == [0.0, 1.0, 2.0, 3.0]


def test_attributes_in_slots_are_read_as_those_of_other_objects(tmp_path: Path) -> None:
    slots = Object(Global("a", "B"), (None, {"v": W, "step": 3}))
    held = torch_pt.read(archive(tmp_path, {"o": slots}, {"0": bytes(16)}))
    assert (set(held.tensors), held.facts) == ({"o/v"}, {"o/step": 3})


def test_a_tensor_that_is_read_is_not_said_to_be_missing_where_an_object_refers_to_it(tmp_path: Path) -> None:
    """An optimizer that is pickled whole has the parameters as its keys."""
    torch = pytest.importorskip("torch")
    parameter = torch.nn.Parameter(torch.ones(2))
    torch.save({"w": parameter, "state": {parameter: {"step": torch.ones(1)}}}, tmp_path / "k.pt")
    held = torch_pt.read(tmp_path / "k.pt")
    assert (set(held.tensors), held.unread) == ({"w"}, {"state/?/step": NONAME})


def test_what_torch_and_numpy_write_beside_the_weights_is_named(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    value = {
        ("a", 1): {"w": torch.ones(2)},
        "x": torch.ones(1),
        "np": np.ones(3),
        "nt": torch.nn.utils.rnn.pack_sequence([torch.ones(2)]),
        "st": torch.ones(3).untyped_storage(),
        "rng": np.random.default_rng(0),
        "ma": np.ma.array([1.0, 2.0], mask=[0, 1]),
    }
    for protocol in (2, 5):
        torch.save(value, tmp_path / "k.pt", pickle_protocol=protocol)
        held = polyak.open(tmp_path / "k.pt")
        assert list(held) == ["x"]
        said = torch_pt.read(tmp_path / "k.pt").unread
        assert {n.split("/")[0] for n in said} >= {"?", "np", "nt", "st", "rng", "ma"}
        assert held.manifest.note.startswith("not read: np (a NumPy array), ")


# --- hostile files ---------------------------------------------------------------------------------------------------

RUNS = {
    "os.system": {"a": Call(Global("os", "system"), "echo owned")},
    "posix.system": {"a": Call(Global("posix", "system"), "echo owned")},
    "eval": {"a": Call(Global("builtins", "eval"), "1+1")},
    "exec": {"a": Call(Global("__builtin__", "exec"), "x=1")},
    "__import__": {"a": Call(Global("builtins", "__import__"), "os")},
    "open": {"a": Call(Global("builtins", "open"), "/etc/hostname")},
    "subprocess": {"a": Call(Global("subprocess", "Popen"), ["echo"])},
    "runpy": {"a": Call(Global("runpy", "run_path"), "x.py")},
    "importlib": {"a": Call(Global("importlib", "import_module"), "os")},
    "dotted": {"a": Call(Global("torch", "serialization.os.system"), "echo owned")},
    "sys.modules": {"a": Global("sys", "modules")},
    "pickle.loads": {"a": Call(Global("pickle", "loads"), b"")},
    "getattr of a dunder": {"a": Call(Global("builtins", "getattr"), Global("torch", "Size"), "__class__")},
    "getattr chain": {
        "a": Call(Global("builtins", "getattr"), Call(Global("builtins", "getattr"), Global("a", "B"), "c"), "system")
    },
    "call of an attribute": {"a": Call(Call(Global("builtins", "getattr"), Global("a", "B"), "run"), "echo")},
    "call of a call": {"a": Call(Call(Global("functools", "partial"), Global("a", "B")), "echo")},
}


@pytest.mark.parametrize("name", RUNS)
def test_what_could_run_is_refused(name: str, tmp_path: Path) -> None:
    message = refusal(archive(tmp_path, RUNS[name]))
    assert "refused" in message
    assert "hint: polyak runs nothing that a file brings" in message


def test_the_refusal_names_the_global(tmp_path: Path) -> None:
    assert "asks for os.system, which can run code: refused" in refusal(archive(tmp_path, RUNS["os.system"]))


def test_unknown_classes_are_inert_and_do_not_hide_the_weights(tmp_path: Path) -> None:
    odd = {"odd": Call(Global("antigravity", "Anything"), "x"), "more": Call(Global("this.is.nothing", "f"))}
    path = archive(tmp_path, tensor("FloatStorage", "0", 2) | odd, {"0": bytes(8)})
    assert list(torch_pt.read(path).tensors) == ["w"]
    assert "antigravity" not in sys.modules


def test_nothing_is_executed_or_imported_by_any_hostile_file(tmp_path: Path) -> None:
    paths = []
    for i, value in enumerate(RUNS.values()):
        paths.append(archive(tmp_path, value).rename(tmp_path / f"{i}.pt"))
    odd = {"a": Call(Global("antigravity", "x")), "b": Call(Global("torch.hub", "load"), "a/b")}
    paths.append(archive(tmp_path, odd).rename(tmp_path / "odd.pt"))
    script = """
import sys
import polyak, polyak.files.torch_pt, polyak.dialects.torch_plain
for name in polyak.dialects._DIALECTS: __import__("polyak.dialects." + name)
from polyak.errors import PolyakError
seen, armed = [], False
MODULES = ("os", "subprocess", "socket", "shutil", "ctypes", "tempfile", "urllib")
paths = sys.argv[1:]
def hook(event, args):
    if not armed: return
    if event in ("exec", "compile", "import", "os.exec", "pickle.find_class") or event.split(".")[0] in MODULES:
        seen.append((event, str(args)[:80]))
    if event == "open" and str(args[0]) not in paths: seen.append((event, str(args)[:80]))
try: polyak.open(paths[0])
except PolyakError: pass
sys.addaudithook(hook)
armed = True
for path in paths:
    try: polyak.open(path)
    except PolyakError: pass
armed = False
print(seen)
"""
    run = subprocess.run([sys.executable, "-c", script, *map(str, paths)], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "[]\n"), run.stderr


def repeated(call: bytes, value: bytes) -> bytes:
    """A thousand calls over one large value that the pickle holds once."""
    return b"\x80\x02" + value + b"q\x00" + call * 1000 + b"."


def nested(depth: int) -> bytes:
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def laughs() -> bytes:
    """Thirty levels of lists that hold the one before ten times: small in memory, endless to walk."""
    levels = b"".join(b"](" + b"h%c" % i * 10 + b"eq%c" % (i + 1) for i in range(30))
    return b"\x80\x02]q\x00" + levels + b"."


# A pickled module whose only part is the module itself.
MODULE = b"ca\nM\n)\x81q\0}(X\x0b\0\0\0_parameters}X\x08\0\0\0_buffers}X\x08\0\0\0_modules}X\1\0\0\0ah\0sub."
BROKEN = {
    "nested": (nested(5000), "expected at most 48 levels"),
    "laughs": (laughs(), "values, received more"),
    "steps": (b"\x80\x02" + b"N0" * 210_000 + b"N.", "more than 20"),
    "lists of one": (repeated(b"cbuiltins\nlist\nh\0\x85R0", b"](" + b"N" * 5000 + b"e"), "more than 20"),
    "dicts of one": (
        repeated(
            b"cbuiltins\ndict\nh\0\x85R0",
            b"}(" + b"".join(b"M" + struct.pack("<H", i) + b"N" for i in range(5000)) + b"u",
        ),
        "more than 20",
    ),
    "bytes of one text": (
        repeated(b"c_codecs\nencode\nh\0X\6\0\0\0latin1\x86R0", b"X" + struct.pack("<I", 2**20) + b"n" * 2**20),
        "more than 20",
    ),
    "objects of one": (repeated(b"ccopyreg\n_reconstructor\nh\0R0", b"(" + b"N" * 5000 + b"t"), "more than 20"),
    "no end": (b"\x80\x02}", "the pickle is not readable at byte 3, behind EMPTY_DICT"),
    "empty stack": (b"\x80\x020.", "a value where the stack is empty"),
    "no mark": (b"\x80\x02t.", "a mark where there is none"),
    "memo": (b"\x80\x02h\x07.", "the remembered value 7"),
    "global without a name": (b"\x80\x04NN\x93.", "a global without a name"),
    "item of a list": (b"\x80\x02]NNs.", "2 keys and values of a list"),
    "half an item": (b"\x80\x02}(Nu.", "1 keys and values of a dict"),
    "call without arguments": (b"\x80\x02ca\nB\nNR.", "a call of a.B without arguments"),
    "module in itself": (b"\x80\x02" + MODULE, "levels, received more"),
    "extension": (b"\x80\x02\x82\x01.", "an operation that no file of weights needs"),
    "two values": (b"\x80\x02}(X\x01\x00\x00\x00aNX\x01\x00\x00\x00aNu.", "two values of the key 'a'"),
    "huge key": (b"\x80\x02}\x8a\x0a" + b"\x01" * 10 + b"Ns.", "a key wider than 64 bits"),
    "long text": (b"\x80\x02X\xff\xff\xff\x7fabc.", "not readable"),
}


def tower(step: bytes, depth: int = 300_000) -> bytes:
    """A value within a value within a value ..."""
    return b"\x80\x02)" + step * depth


LAUGHS = laughs()[:-1] + b"0" * 31
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
TOWERS = {
    "tuples": tower(b"\x85") + b".",
    "a key of tuples": b"\x80\x02}" + tower(b"\x85")[2:] + b"Ns.",
    "a storage key of tuples": b"\x80\x02" + STORAGE + tower(b"\x85")[2:] + b"NK\x01tQ.",
    "a dtype of tuples": b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n"
    + tower(b"\x85")[2:]
    + b"RU\x01a\x86R.",
    "notes": b"\x80\x02" + b"ca\nb\n" * 150_000 + b")" + b"\x85R" * 150_000 + b".",
    "a size of laughs": LAUGHS + b"ctorch\nSize\nh\x1e\x85R.",
    "a note of laughs": LAUGHS + b"ccopyreg\n_reconstructor\nh\x1e\x85R.",
    "an attribute of laughs": LAUGHS + b"cbuiltins\ngetattr\nca\nB\nh\x1e\x86R.",
    "a storage key of laughs": LAUGHS + STORAGE + b"h\x1eNK\x01tQ.",
    "a storage size of laughs": LAUGHS + STORAGE + b"X\x01\x00\x00\x000Nh\x1etQ.",
    "an encoding of laughs": LAUGHS + b"c_codecs\nencode\nX\x01\x00\x00\x000h\x1e\x86R.",
    "a key of laughs": LAUGHS + b"}h\x1eNs.",
    "notes beside each other": b"\x80\x02](ca\nb\n" + tower(b"\x85", 40_000)[2:] + b"RX\x01\x00\x00\x00ne.",
    "notes that hold one list": b"\x80\x02](" + b"N" * 50_000 + b"eq\0]q\1(" + b"ca\nb\nh\0\x85R" * 20_000 + b"e.",
    "notes with one tuple": b"\x80\x02(" + b"N" * 50_000 + b"tq\0](" + b"ca\nb\nh\0R" * 20_000 + b"e.",
    "notes with one state": b"\x80\x02](" + b"N" * 50_000 + b"eq\0](" + b"ca\nb\n)Rh\0b" * 20_000 + b"e.",
    "a note that holds itself": b"\x80\x02ca\nb\n]q\0\x85Rq\1h\0h\1a.",
    "long names": b"\x80\x02}X\x00\x10\x00\x00" + b"n" * 4096 + b"](" + b"N" * 10 + b"K\x01" * 1_000_000 + b"es.",
}


@pytest.mark.parametrize("name", TOWERS)
def test_deep_and_endless_values_end_soon(name: str, tmp_path: Path) -> None:
    path, start = archive(tmp_path, TOWERS[name]), time.perf_counter()
    with contextlib.suppress(PolyakError):
        read_all(path)
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize("name", BROKEN)
def test_pickles_that_ask_for_too_much_or_are_broken_are_refused(name: str, tmp_path: Path) -> None:
    content, words = BROKEN[name]
    assert words in refusal(archive(tmp_path, content))


BOUNDS = {
    "reach": (tensor("FloatStorage", "0", 4, (5,)), "a tensor of 5 elements in a storage of 4"),
    "offset": (tensor("FloatStorage", "0", 4, (2,), offset=3), "a tensor of 5 elements in a storage of 4"),
    "strides": (tensor("FloatStorage", "0", 4, (2, 2), (3, 1)), "a tensor of 5 elements in a storage of 4"),
    "negative": (tensor("FloatStorage", "0", 4, (2,), (-1,)), "-1 as a size or place"),
    "storage": (tensor("FloatStorage", "0", 400), "expected a storage of 1600 bytes, received 16"),
    "missing": (tensor("FloatStorage", "../../../etc/passwd", 4), "no storage '../../../etc/passwd' in the file"),
    "spread": (tensor("FloatStorage", "0", 4, (2**40,), (0,)), "far more than its storage holds"),
    "axes": (tensor("FloatStorage", "0", 4, (1,) * 65), "a tensor of no shape"),
    "strides for fewer axes": (tensor("FloatStorage", "0", 4, (2, 2), (1,)), "a tensor of no shape"),
    "type": ({"w": Identity("storage", Global("numpy", "FloatStorage"), "0", "cpu", 4)}, "no type of torch"),
    "no storage": ({"w": Call(Global("torch._utils", "_rebuild_tensor_v2"), "0", 0, (1,), (1,))}, "without a storage"),
    "no dtype": (
        {
            "w": Call(
                Global("torch._utils", "_rebuild_tensor_v3"), storage("FloatStorage", "0", 4), 0, (1,), (1,), 0, {}, "f"
            )
        },
        "a tensor without a dtype",
    ),
    "identity": ({"w": Identity("module")}, "a storage without a description"),
    "key": ({"w": Identity("storage", Global("torch", "FloatStorage"), None, "cpu", 4)}, "a storage without a key"),
    "another identity": (
        {"w": Identity("memory", Global("torch", "FloatStorage"), "0", "cpu", 4)},
        "a storage without a description",
    ),
    "maker": (
        {"w": Call(Global("torch._tensor", "_rebuild_from_type_v2"), Global("other", "make"), None, ())},
        "a tensor that a function of its own makes",
    ),
    "encoding": ({"w": Call(Global("_codecs", "encode"), "text", "utf-7")}, "the encoding 'utf-7'"),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_tensors_beyond_their_storage_are_refused(name: str, tmp_path: Path) -> None:
    value, words = BOUNDS[name]
    assert words in refusal(archive(tmp_path, value, {"0": bytes(16)}))


def legacy(tree: Any, protocol: int = 1001, keys: tuple[str, ...] = ()) -> bytes:
    """A file as PyTorch wrote it before 1.6, without storages."""
    return b"\x80\x02" + MAGIC + b"".join(map(pickled, (protocol, {"little_endian": True}, tree, list(keys))))


LEGACY = {
    "protocol": (legacy({}, 1002), UnknownFormat, "expected the protocol 1001 of PyTorch, received 1002"),
    "unread": (legacy(tensor("QUInt4x2Storage", "0", 4), keys=("0",)), DamagedFile, "whose size is not known: refused"),
    "size": (
        legacy({"w": Identity("storage", Global("torch", "FloatStorage"), "0", "cpu", None, ("0", 0, 1))}),
        DamagedFile,
        "a storage without a size: refused",
    ),
    "keys": (legacy(tensor("FloatStorage", "0", 4)), DamagedFile, "expected the keys of its 1 storages"),
    "storages": (legacy(tensor("FloatStorage", "0", 4), keys=("0",)), DamagedFile, "expected 4 elements, received 0"),
}


@pytest.mark.parametrize("name", LEGACY)
def test_old_files_that_do_not_describe_their_storages_are_refused(name: str, tmp_path: Path) -> None:
    content, error, words = LEGACY[name]
    (tmp_path / "old.pt").write_bytes(content)
    with pytest.raises(error, match=words):
        read_all(tmp_path / "old.pt")


def test_a_small_file_of_many_expanded_tensors_is_refused(tmp_path: Path) -> None:
    """Each alone is one that PyTorch stores so: a bias of zeros, expanded."""
    one = tensor("ByteStorage", "0", 16, (2**26,), (0,))["w"]
    some = archive(tmp_path, {f"w{i}": one for i in range(15)}, {"0": bytes(16)})
    assert len(torch_pt.read(some).tensors) == 15
    path = archive(tmp_path, {f"w{i}": one for i in range(17)}, {"0": bytes(16)})
    size = path.stat().st_size
    with pytest.raises(DamagedFile, match=f"in proportion to its {size} bytes, received {17 * 2**26} bytes"):
        torch_pt.read(path)


def test_two_tensors_of_one_path_are_refused(tmp_path: Path) -> None:
    one, other = tensor("FloatStorage", "0", 4)["w"], tensor("FloatStorage", "0", 4)["w"]
    path = archive(tmp_path, {"a/b": one, "a": {"b": other}}, {"0": bytes(16)})
    with pytest.raises(UnknownFormat, match="expected one array 'a/b', received two") as refused:
        torch_pt.read(path)
    assert refused.value.hint == (
        "two keys of the file are both written 'a/b': load it with its own tool, and save it with other keys"
    )


def test_two_keys_that_are_written_alike_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({1: torch.ones(1), "1": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(UnknownFormat, match="expected one array '1', received two"):
        polyak.open(tmp_path / "a.pt")


def test_strides_of_single_rows_and_empty_tensors_may_be_anything(tmp_path: Path) -> None:
    path = archive(tmp_path, tensor("FloatStorage", "0", 4, (1, 4), (2**59, 1)), {"0": bytes(16)})
    assert torch_pt.read(path).tensors["w"].read().shape == (1, 4)
    path = archive(tmp_path, tensor("ComplexDoubleStorage", "0", 1, (2**57, 0), (2**59, 1)), {"0": bytes(16)})
    assert torch_pt.read(path).tensors["w"].read().shape == (2**57, 0)


def test_a_zip_bomb_is_refused_by_its_declared_size(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as held:
        held.writestr("a/data.pkl", b"\x80\x02" + b"N0" * 40_000_000 + b"N.")
    assert (
        "member 'a/data.pkl': expected at most 20 bytes for each of the file's 77,899, received 80,000,004"
        in refusal(path)
    )


def test_a_storage_that_claims_an_impossible_ratio_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as held:
        held.writestr("a/data.pkl", pickled(tensor("ByteStorage", "0", 10**9)))
        held.writestr("a/data/0", bytes(1000))
    raw = path.read_bytes().replace(struct.pack("<I", 1000), struct.pack("<I", 10**9))
    path.write_bytes(raw)
    assert "member 'a/data/0': expected at most 20 bytes for each of the file's" in refusal(path)


def test_members_outside_of_the_archive_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path, {}, {"../../../../evil": b"x"})
    assert "outside of the archive: refused" in refusal(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made.pt"]


def listed(path: Path, member: str, offset: int, value: bytes) -> Path:
    """Change what the list of members says of one."""
    raw = bytearray(path.read_bytes())
    at = raw.rindex(member.encode()) - 46 + offset
    raw[at : at + len(value)] = value
    path.write_bytes(raw)
    return path


def packed(tmp_path: Path, content: bytes, size: int, kind: str = "ByteStorage") -> Path:
    """An archive whose one storage is packed, and said to have this size."""
    path = tmp_path / "made.pt"
    with zipfile.ZipFile(path, "w") as held:
        held.writestr("made/data.pkl", pickled(tensor(kind, "0", size)))
        held.writestr("made/data/0", content, zipfile.ZIP_DEFLATED)
    return listed(path, "made/data/0", 24, struct.pack("<I", size))


def test_members_that_contradict_themselves_are_refused(tmp_path: Path) -> None:
    value = tensor("FloatStorage", "0", 4)

    def made() -> Path:
        return archive(tmp_path, value, {"0": bytes(16)})

    assert "no readable header" in refusal(listed(made(), "made/data/0", 8, b"\1"))  # encrypted
    assert "expected 12 bytes, received 16" in refusal(listed(made(), "made/data/0", 24, b"\x0c"))
    assert "expected a byte order of 'little' or 'big'" in refusal(archive(tmp_path, value, byteorder=b"middle"))
    with zipfile.ZipFile(made(), "a", zipfile.ZIP_BZIP2) as held:
        held.writestr("made/data/1", bytes(16))
    assert "an unknown compression 12" in refusal(tmp_path / "made.pt")


def test_packed_storages_have_the_size_that_is_listed(tmp_path: Path) -> None:
    assert torch_pt.read(packed(tmp_path, bytes(1000), 1000)).tensors["w"].read().size == 1000
    assert "expected 2000 bytes, received another number" in refusal(packed(tmp_path, bytes(1000), 2000))
    with pytest.raises(DamagedFile, match="expected 1000000 bytes in"):
        torch_pt.read(packed(tmp_path, bytes(1000), 1_000_000))


def test_a_flipped_bit_of_a_packed_storage_is_noticed(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(1000)  # does not pack: its bytes stand in the file
    path = packed(tmp_path, content, 1000)
    raw = bytearray(path.read_bytes())
    raw[raw.index(content[:100]) + 50] ^= 1
    path.write_bytes(raw)
    assert "expected bytes with CRC-32" in refusal(path)


def test_pickles_and_manifests_have_bounded_sizes(tmp_path: Path) -> None:
    assert "expected a pickle of at most" in refusal(archive(tmp_path, b"\x80\x02" + b"N0" * 7_000_000 + b"N."))
    path = archive(tmp_path, tensor("FloatStorage", "0", 4), {"0": bytes(16)})
    with zipfile.ZipFile(path, "a") as held:
        held.writestr("made/polyak.json", b" " * 100_000)
    assert refusal(path).endswith("expected the manifest of 1 arrays, received 100,000 bytes")


def test_an_archive_without_a_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "made.pt"
    with zipfile.ZipFile(path, "w") as held:
        held.writestr("made/data/0", bytes(16))
    assert "the archive has no data.pkl" in refusal(path)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells what of a file is held")
def test_what_was_read_of_a_file_is_not_held(tmp_path: Path) -> None:
    side = 2048
    value = tensor("FloatStorage", "0", side * side, (side, side), (1, side))
    held = torch_pt.read(archive(tmp_path, value, {"0": bytes(4 * side * side)})).tensors["w"]
    assert held.read().shape == (side, side)
    assert str(tmp_path / "made.pt") not in Path("/proc/self/maps").read_text()


def test_a_file_that_is_written_again_is_refused_and_ends_no_process(tmp_path: Path) -> None:
    """A memory map would end it: torch.save makes the file shorter before it writes."""
    blocks = {name: bytes(200_000) for name in "ab"}
    path = archive(tmp_path, [tensor("FloatStorage", name, 50_000, (50_000,), (1,)) for name in "ab"], blocks)
    held = polyak.open(path)
    first, second = held
    assert held[first].shape == (50_000,)
    archive(tmp_path, {}, {})
    for name in (first, second):
        with pytest.raises(DamagedFile, match="after it was opened"):
            _ = held[name]


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path, {}, {"0": b"x"})
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as held:
        held.writestr("made/data/0", b"y")
    assert "two members of one name" in refusal(path)


# --- damage ----------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_a_storage_is_noticed_although_torch_does_not_look(tmp_path: Path) -> None:
    raw = bytearray((GOLDEN / "plain.pt").read_bytes())
    weights = expected("plain")["raw/conv.weight"].tobytes()
    raw[raw.index(weights) + 5] ^= 1
    path = tmp_path / "flipped.pt"
    path.write_bytes(raw)
    held = polyak.open(path)
    assert held["head.bias"].shape == (2,)  # the others can be read
    with pytest.raises(DamagedFile, match=f"data/0' at byte .*expected bytes with CRC-32 {zlib.crc32(weights):08x}"):
        held["conv.weight"]


@pytest.mark.parametrize("name", ["plain", "plain_legacy", "deflated"])
def test_a_truncated_file_is_refused_wherever_it_ends(name: str, tmp_path: Path) -> None:
    raw = (GOLDEN / f"{name}.pt").read_bytes()
    path = tmp_path / "short.pt"
    for size in range(200, len(raw) - 1, 97):
        path.write_bytes(raw[:size])
        with pytest.raises(PolyakError):
            polyak.open(path).copy()


def test_a_flipped_bit_of_a_storage_beside_a_view_of_it_is_noticed_with_the_view(tmp_path: Path) -> None:
    """The file's only check is one of the whole storage."""
    torch = pytest.importorskip("torch")
    whole, path = torch.arange(1000.0), tmp_path / "views.pt"
    torch.save({"a": whole[:3], "b": whole[500:700]}, path)
    assert polyak.open(path)["b"].tolist() == whole[500:700].tolist()
    raw = bytearray(path.read_bytes())
    raw[raw.index(whole.numpy().tobytes()) + 4 * 990] ^= 1
    path.write_bytes(raw)
    for ask in (Snapshot.__getitem__, Snapshot.verify):
        for name in ("a", "b"):
            with pytest.raises(DamagedFile, match="expected bytes with CRC-32"):
                ask(polyak.open(path), name)
    measure = torch_pt.read(path).tensors["b"].measure
    assert measure is not None
    with pytest.raises(DamagedFile, match="expected bytes with CRC-32"):
        measure()


def test_a_truncated_archive_is_still_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "short.pt"
    path.write_bytes((GOLDEN / "plain.pt").read_bytes()[:2000])
    with pytest.raises(DamagedFile, match="the list of its members is not readable"):
        polyak.open(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}.", b"PK\x05\x06" + bytes(18)])
def test_other_files_are_not_taken_for_torchs(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    path.write_bytes(content)
    with pytest.raises(UnknownFormat):
        polyak.open(path)


def mutated(raw: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes changed, and now and then a piece lost, doubled or moved."""
    held = bytearray(raw)
    for _ in range(int(rng.integers(1, 6))):
        held[int(rng.integers(len(held)))] = int(rng.integers(256))
    if rng.random() < 0.3:
        start, size = int(rng.integers(len(held))), int(rng.integers(1, 200))
        piece = held[start : start + size]
        held = held[:start] + held[start + size :] if rng.random() < 0.5 else held[:start] + piece + held[start:]
    return bytes(held)


@pytest.mark.parametrize("name", ["plain.pt", "plain_legacy.pt", "kinds_legacy.pt", "deflated.pt", "mmengine.pt"])
def test_any_damage_gives_an_error_of_polyak_or_a_good_read(name: str, tmp_path: Path) -> None:
    raw, rng = (GOLDEN / name).read_bytes(), np.random.default_rng(7)
    path = tmp_path / name
    for _ in range(300):
        path.write_bytes(mutated(raw, rng))
        survives(lambda: polyak.open(path).copy())


@pytest.mark.parametrize("name", ["plain.pt", "timm.pt", "kinds.pt", "protocol5.pt", "module.pt"])
def test_any_damage_within_the_pickle_gives_an_error_of_polyak_or_a_good_read(name: str, tmp_path: Path) -> None:
    """With a right checksum, so that the interpreter and not the archive has to stand it."""
    with zipfile.ZipFile(GOLDEN / name) as held:
        members = {n.partition("/")[2]: held.read(n) for n in held.namelist()}
    data, rng = (
        {n.removeprefix("data/"): raw for n, raw in members.items() if n.startswith("data/")},
        np.random.default_rng(8),
    )
    for _ in range(300):
        path = archive(tmp_path, mutated(members["data.pkl"], rng), data)
        survives(lambda path=path: polyak.open(path).copy())


def survives(job: Callable[[], object]) -> None:
    start = time.process_time()
    with contextlib.suppress(PolyakError):
        job()
    assert time.process_time() - start < 1


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"missing\.pt': cannot be read: No such file"):
        torch_pt.read(tmp_path / "missing.pt")


def test_an_empty_block_is_read(tmp_path: Path) -> None:
    (tmp_path / "pages").write_bytes(bytes(10))
    for crc in (None, 0):
        block = Block(PositionedFile(tmp_path / "pages"), "a block", 10, 0, 0, crc)
        assert block.read() == b""
        assert block.digest(0, 0) == xxhash.xxh3_128_hexdigest(b"")


@pytest.mark.parametrize("marks", [("conjugate",), ("negative",), ("conjugate", "negative")])
def test_marks_leave_an_array_of_no_axes_an_array(tmp_path: Path, marks: tuple[str, ...]) -> None:
    (tmp_path / "number").write_bytes(np.array(1 + 2j, np.complex64).tobytes())
    block = Block(PositionedFile(tmp_path / "number"), "a block", 0, 8, 8)
    view = View(Storage("0", "complex64", 1), "complex64", 0, (), (), **dict.fromkeys(marks, True))
    found = Storages({"0": block}, "file").read(view)
    assert isinstance(found, np.ndarray)
    assert found == (1 - 2j if "conjugate" in marks else 1 + 2j) * (-1 if "negative" in marks else 1)


def test_an_old_file_of_a_module_beside_its_source_is_read(tmp_path: Path) -> None:
    module = Identity("module", Global("torch.nn.modules.linear", "Linear"), "linear.py", "class Linear: ...")
    (tmp_path / "old.pt").write_bytes(legacy({"made by": module, "step": 3}))
    assert torch_pt.read(tmp_path / "old.pt").facts["step"] == 3


def test_a_jagged_tensor_is_not_read_and_leaves_the_others(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    jagged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    torch.save({"w": torch.ones(2), "n": jagged}, tmp_path / "a.pt")
    held = polyak.open(tmp_path / "a.pt")
    assert (list(held), held.manifest.unread) == (["w"], {"n": "a nested tensor"})


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_an_archive_of_torchscript_has_the_names_of_its_state_dict(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    made = [nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))).eval() for _ in range(2)]
    torch.jit.save(torch.jit.script(made[0]), tmp_path / "serving.pt")
    held = polyak.open(tmp_path / "serving.pt")
    assert list(held) == list(made[0].state_dict())
    polyak.transfer(tmp_path / "serving.pt", made[1])
    for name, value in made[1].state_dict().items():
        assert_same(value.numpy(), made[0].state_dict()[name].numpy())
