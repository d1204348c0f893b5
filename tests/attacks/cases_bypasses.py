"""Ways around the checks of other readers: each is refused or stays an inert note, and nothing runs.

From public work on scanners of pickles, on ``torch.load``, on Keras' ``load_model`` and on readers of archives.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from tests.attacks.attack import GOLDEN, Attack, Build, Member, one_file, zipped
from tests.attacks.cases_keras import archive as keras_archive
from tests.attacks.cases_keras import h5, inner
from tests.attacks.cases_torch import COMMAND, Runs, archive, called, dumped, legacy

from polyak.errors import FileError, UnknownFormat

RUN = pickle.dumps(Runs(os.system, COMMAND), 2)
TEXT = b"X" + struct.pack("<I", len(COMMAND)) + COMMAND.encode()


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def by_stack(module: str, name: str) -> bytes:
    """A call of a global whose names are taken from the stack."""
    return b"\x80\x04" + short(module) + short(name) + b"\x93" + short(COMMAND) + b"\x85R."


# Each would run the command, or load what does, in ``pickle`` or in a reader that trusts the name it is given.
REFUSED = {
    "by the fourth extension code": b"\x80\x02\x84\x01\x00\x00\x00" + TEXT + b"\x85R.",
    "by keywords": b"\x80\x04cos\nsystem\n" + short(COMMAND) + b"\x85}\x92.",
    "by a name from the stack": by_stack("os", "system"),
    "by a dotted name": by_stack("torch.serialization", "os.system"),
    "by a dotted name of builtins": by_stack("builtins", "eval.__call__"),
    "by import": by_stack("builtins", "__import__"),
    "by open": by_stack("builtins", "open"),
    "by compile": by_stack("builtins", "compile"),
    "by eval in the names of Python 2": called("__builtin__", "eval"),
    "by a nested pickle": b"\x80\x02cpickle\nloads\nC" + bytes([len(RUN)]) + RUN + b"\x85R.",
    "by the C unpickler": called("_pickle", "loads"),
    "by runpy": called("runpy", "_run_code"),
    "by a debugger": called("bdb", "Bdb.run"),
    "by the command line of pip": called("pip._internal", "main"),
    "by timeit": called("timeit", "timeit"),
    "by the profiler": called("cProfile", "run"),
    "by ctypes": called("ctypes", "CDLL"),
    "by asyncio": called("asyncio.unix_events", "_UnixSubprocessTransport._start"),
    "by a memo that is set twice": b"\x80\x02cos\nsystem\nq\x000cbuiltins\nlist\nq\x00h\x00" + TEXT + b"\x85R.",
    "before an end that is broken": RUN[:-1] + b"\xff\xff",
    "before no end": RUN[:-1],
    "as a state": b"\x80\x02ca\nB\n)\x81cos\nsystem\n" + TEXT + b"\x85Rb.",
    "as a persistent id": b"\x80\x02cos\nsystem\n" + TEXT + b"\x85RQ.",
    "in text": b"cos\nsystem\n(S'" + COMMAND.encode() + b"'\ntR.",
    **{f"in protocol {n}": pickle.dumps({"w": Runs(os.system, COMMAND)}, n) for n in range(6)},
}
# Known ways around lists of forbidden names. Here a name is never imported, so they are notes like any other.
INERT = (
    ("torch.serialization.os", "system"), ("numpy.f2py.crackfortran", "getlincoef"), ("doctest", "debug_script"),
    ("lib2to3.pgen2.grammar", "Grammar.loads"), ("operator", "attrgetter"), ("functools", "partial"),
    ("types", "CodeType"), ("uuid", "_get_command_stdout"), ("idlelib.pyshell", "ModifiedInterpreter.runcode"),
    ("distutils.file_util", "write_file"), ("test.support.script_helper", "assert_python_ok"), ("io", "open_code"),
    ("torch._dynamo.guards", "GuardBuilder.get"),
    ("torch.utils.bottleneck.__main__", "run_cprofile"), ("torch.distributed.rpc.internal", "_run_function"),
)  # fmt: skip


def tarred(*members: tuple[str, bytes, bytes]) -> bytes:
    """PyTorch's first format, of members with a kind each."""
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as made:
            for name, kind, content in members:
                info = tarfile.TarInfo(name)
                info.type, info.size, info.linkname = (
                    kind,
                    len(content),
                    "/etc/passwd" if kind != tarfile.REGTYPE else "",
                )
                made.addfile(info, io.BytesIO(content))
        return buffer.getvalue()


PLAIN = tarfile.REGTYPE
STORAGES = ("storages", PLAIN, dumped(0) + dumped([]))
TENSORS = ("tensors", PLAIN, dumped(0))


def dcp(metadata: bytes) -> Build:
    """A distributed checkpoint with another list."""

    def build(directory: Path) -> Path:
        path = Path(shutil.copytree(GOLDEN / "jax" / "dcp", directory / "dcp"))
        (path / ".metadata").write_bytes(metadata)
        return path

    return build


def orbax(edit: Callable[[Path], None], name: str = "plain_zarr") -> Build:
    def build(directory: Path) -> Path:
        path = Path(shutil.copytree(GOLDEN / "jax" / name, directory / name))
        edit(path)
        return path

    return build


def named(steps: list[str]) -> Callable[[Path], None]:
    """The first leaf of the tree has this path."""

    def edit(path: Path) -> None:
        metadata = next(path.rglob("_METADATA"))
        held = json.loads(metadata.read_text())
        key = next(iter(held["tree_metadata"]))
        held["tree_metadata"][key]["key_metadata"] = [{"key": s, "key_type": 2} for s in steps]
        metadata.write_text(json.dumps(held))

    return edit


def linked(target: str) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        (next(path.rglob("_METADATA")).parent / "more").symlink_to(target)

    return edit


def unknown_filter(file: h5py.File) -> None:
    """A filter that HDF5 would look for among its plugins: a library to load."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((4,))
    plan.set_filter(32_001, h5py.h5z.FLAG_OPTIONAL, (1,))
    h5py.h5d.create(file.id, b"w", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((4,)), plan)


def external_storage(file: h5py.File) -> None:
    file.create_dataset("w", (4,), "f4", external=[("/etc/passwd", 0, 16)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "w", (4,))
    file.create_virtual_dataset("w", layout)


def reference(file: h5py.File) -> None:
    file["a"] = np.zeros(1)
    file.create_dataset("w", data=file["a"].ref, dtype=h5py.ref_dtype)


LAMBDA = {"class_name": "Lambda", "module": "keras.layers", "config": {"function": {
    "class_name": "__lambda__", "config": {"code": "4wEAAAAAAAAA", "defaults": None, "closure": None}}}}  # fmt: skip
CALL = {"class_name": "function", "module": "os", "config": "system", "registered_name": "function"}


def config(layer: object) -> bytes:
    return json.dumps({"class_name": "Sequential", "module": "keras", "config": {"layers": [layer]}}).encode()


ATTACKS = (
    *(Attack(f"torch zip: a command {n}", one_file("x.pt", archive(content)), "the pickle")
      for n, content in REFUSED.items()),
    *(Attack(f"torch legacy: a command {n}", one_file("x.pt", legacy(content)), "the pickle")
      for n, content in REFUSED.items()),
    *(Attack(f"torch zip: {m}.{n} does not run", one_file("x.pt", archive(by_stack(m, n))), None) for m, n in INERT),
    *(Attack(f"torch tar: a command {n}", one_file("x.pt", tarred(STORAGES, TENSORS, ("pickle", PLAIN, content))),
             "the pickle") for n, content in list(REFUSED.items())[:4]),
    Attack("torch tar: a link for a member", one_file("x.pt", tarred(
        ("pickle", tarfile.SYMTYPE, b""), STORAGES, TENSORS)), "pickle"),
    Attack("torch tar: a device for a member", one_file("x.pt", tarred(
        ("pickle", tarfile.CHRTYPE, b""), STORAGES, TENSORS)), "pickle"),
    Attack("torch zip: a second pickle deeper down", one_file("x.pt", archive(
        dumped({}), [Member("a/b/data.pkl", RUN)])), None),
    Attack("torch zip: one name in the list, another before the bytes", one_file("x.pt", archive(dumped({})).replace(
        b"a/data.pkl", b"a/atad.pkl", 1)), "expected this name before its bytes"),
    Attack("torch distributed: a command as the list", dcp(RUN), "the pickle"),
    Attack("torch distributed: a command in the list", dcp(
        b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\n)\x81}X\x04\x00\x00\x00datacos\nsystem\n" + TEXT
        + b"\x85Rsb."), "the pickle"),
    Attack("keras: a Lambda", one_file("x.keras", keras_archive(inner(), config(LAMBDA))), None),
    Attack("keras: a function of os", one_file("x.keras", keras_archive(inner(), config(CALL))), None),
    Attack("keras: a member that leads out", one_file("x.keras", keras_archive(
        inner(), b"{}", Member("../../canary", b"x"))), None),
    Attack("hdf5: a filter of its own", h5(unknown_filter), "weight 'w'", UnknownFormat),
    Attack("hdf5: values in another file", h5(external_storage), "weight 'w': .* external storage"),
    Attack("hdf5: values of a virtual dataset", h5(virtual), "weight 'w': .* virtual dataset"),
    Attack("hdf5: references", h5(reference), None),
    Attack("orbax: a leaf above the checkpoint", orbax(named(["..", "..", "etc", "passwd"])), "weight '",
           bomb=True),
    Attack("orbax: a leaf at the root", orbax(named(["", "etc", "passwd"])), "weight '", bomb=True),
    Attack("orbax: a leaf of dots", orbax(named(["."])), "_METADATA: .* is not readable", bomb=True),
    Attack("orbax: a leaf of slashes that lead up", orbax(named(["../../etc/passwd"])), "_METADATA: .* is not readable",
           bomb=True),
    Attack("orbax: a link to the system", orbax(linked("/etc")), "received 'more', a link to '/etc'", FileError),
    Attack("npz: an object array with a command", one_file("x.npz", zipped([Member("w.npy", (
        b"\x93NUMPY\x01\x00\x46\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(79) + b"\n" + RUN
    ))])), None),
)  # fmt: skip
