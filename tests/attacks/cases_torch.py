"""PyTorch's files: pickles that would run something or go on for ever, and archives that lie."""

from __future__ import annotations

import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from tests.attacks.attack import CANARY, Attack, Member, one_file, zipped

from polyak.errors import UnknownFormat
from polyak.files.torch_legacy import MAGIC

COMMAND = f"touch {CANARY}"
MEBI = 1 << 20
_FLOATS = b"X\x07\x00\x00\x00storagectorch\nFloatStorage\n"


class Runs:
    """Pickles as a call of a function; the standard library's unpickler would make it."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


class Sets(Runs):
    """Pickles as an object whose state is the call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), {"hook": Runs(*self.call)}


def archive(value: bytes, storages: list[Member] | None = None, **others: Member) -> bytes:
    members = [Member("a/data.pkl", value), *(storages or []), *others.values()]
    return zipped([*members, Member("a/version", b"3\n")])


def dumped(value: Any, protocol: int = 2) -> bytes:
    return pickle.dumps(value, protocol)


def system(*, protocol: int = 2, nested: int = 0) -> bytes:
    value: Any = Runs(os.system, COMMAND)
    for level in range(nested):
        value = OrderedDict(w=[(value,)]) if level % 2 else Runs(list, (value,))
    return dumped({"w": value}, protocol)


def legacy(tree: bytes, keys: bytes = dumped([]), rest: bytes = b"") -> bytes:
    return b"\x80\x02" + MAGIC + dumped(1001) + dumped({"little_endian": True}) + tree + keys + rest


def called(module: str, name: str) -> bytes:
    """A call by the text opcodes, of whatever name."""
    return b"\x80\x02}X\x01\x00\x00\x00wc" + f"{module}\n{name}\n".encode() + _text(COMMAND) + b"\x85Rs."


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensor(key: str, size: int) -> bytes:
    """A tensor over a whole storage, as the second protocol writes it."""
    number = b"J" + struct.pack("<i", size)
    identity = b"(" + _FLOATS + _text(key) + b"X\x03\x00\x00\x00cpu" + number + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + b"K\x00(" + number + b"t(K\x01t\x89}tR"


def tensors(count: int, size: int) -> bytes:
    return b"\x80\x02}(" + b"".join(_text(f"w{i}") + tensor(str(i), size) for i in range(count)) + b"u."


def shared_storages() -> bytes:
    """Two hundred storages of 16 MiB that all lie in one place."""
    size = 16 * MEBI
    first = Member("a/data/0", bytes(size))
    start = 30 + len("a/data.pkl") + len(tensors(200, size // 4))
    others = [Member(f"a/data/{i}", b"", size=size, at=start) for i in range(1, 200)]
    return archive(tensors(200, size // 4), [first, *others])


RUNS = {
    "os.system": system(),
    "os.system in the fourth protocol": system(protocol=4),
    "os.system in ten containers": system(nested=10),
    "os.system as a state": dumped({"w": Sets(os.system, COMMAND)}),
    "os.system by INST": f"(S'{COMMAND}'\nios\nsystem\n.".encode(),
    "os.system by OBJ": b"(cos\nsystem\n" + _text(COMMAND) + b"o.",
    "os.system by NEWOBJ": b"\x80\x02cos\nsystem\n" + _text(COMMAND) + b"\x85\x81.",
    "os.system by an extension code": b"\x80\x02\x82\x01" + _text(COMMAND) + b"\x85R.",
    "exec as a key": b"\x80\x02}cbuiltins\nexec\n" + _text("open('canary', 'w')") + b"\x85RNs.",
    "exec of a reduce that makes its argument": b"\x80\x02cbuiltins\nexec\ncbuiltins\nstr\n"
    + _text("1")
    + b"\x85R\x85R.",
    "the class of a name": b"\x80\x02cbuiltins\ngetattr\ncbuiltins\nobject\n" + _text("__subclasses__") + b"\x86R.",
}
# Names of the world beside the forbidden ones: they become notes, and nothing of them is imported or called.
INERT = [
    ("torch.hub", "load"), ("torch.serialization", "load"), ("torch.jit", "load"), ("numpy", "load"),
    ("numpy.testing._private.utils", "runstring"), ("pandas", "read_pickle"), ("joblib", "load"),
    ("antigravity", "fly"),
]  # fmt: skip
LOOPS = {
    "a list that holds itself": b"\x80\x02]q\x00h\x00a.",
    "a dict that holds itself": b"\x80\x02}q\x00X\x01\x00\x00\x00wh\x00s.",
    "two that hold each other": b"\x80\x02]q\x00]q\x01h\x00ah\x01a0h\x01.",
    "an object whose state is itself": b"\x80\x02ca\nB\n)\x81q\x00}X\x01\x00\x00\x00wh\x00sb.",
}
LENGTHS = {
    "bytes of 2**63": b"\x80\x04\x8e" + struct.pack("<Q", 2**63) + b".",
    "a text of 2**62": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b".",
    "a bytearray of 2**40": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    "an integer of two gigabytes": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
    "an integer of minus one byte": b"\x80\x02\x8b" + struct.pack("<i", -1) + b".",
    "a memo of number 2**32": b"\x80\x02Nr\xff\xff\xff\xffj\xff\xff\xff\xff" + b"a.",
    "an integer of a million digits": b"L" + b"9" * 10**6 + b"L\n.",
    "a number that is none": b"Fnonsense\n.",
    "a half of a character": b"\x80\x02X\x03\x00\x00\x00\xed\xa0.",
}


def _refused(name: str, content: bytes, said: str) -> list[Attack]:
    """In both forms of file."""
    return [
        Attack(f"torch zip: {name}", one_file("x.pt", archive(content)), said),
        Attack(f"torch legacy: {name}", one_file("x.pt", legacy(content)), said),
    ]


ATTACKS = (
    *(a for name, content in RUNS.items() for a in _refused(name, content, r"the pickle at byte \d+ .* refused")),
    *(Attack(f"torch zip: {m}.{n} is inert", one_file("x.pt", archive(called(m, n))), None) for m, n in INERT),
    *(a for name, content in LOOPS.items() for a in _refused(name, content, "levels, received more")),
    *(a for name, content in LENGTHS.items() for a in _refused(name, content, "the pickle")),
    Attack("torch zip: a byte order of half a gigabyte", one_file("x.pt", lambda: archive(
        dumped({}), order=Member("a/byteorder", b"little" + bytes(512 * MEBI), packed=True)
    )), "expected at most 20 bytes", bomb=True),
    Attack("torch zip: storages in one place", one_file("x.pt", shared_storages), "expected at most 20 bytes",
           bomb=True),
    Attack("torch zip: a storage behind the end", one_file("x.pt", archive(
        tensors(1, 4), [Member("a/data/0", bytes(16), at=2**31)]
    )), "member 'a/data/0' at byte 2147483648: no readable header"),
    Attack("torch zip: a storage that is the pickle", one_file("x.pt", archive(
        tensors(1, 4), [Member("a/data/0", b"", size=16, at=0)]
    )), "member 'a/data/0' at byte 0: it overlaps another"),
    Attack("torch zip: a member above the archive", one_file("x.pt", archive(dumped({}), [Member("a/../../b", b"")])),
           "outside of the archive"),
    Attack("torch legacy: a storage of 2**63 elements", one_file("x.pt", legacy(
        tensors(1, 4), dumped(["0"]), struct.pack("<Q", 2**63) + bytes(16)
    )), "storage '0' at byte .*: expected 4 elements, received 9223372036854775808"),
    Attack("torch legacy: a storage of minus one", one_file("x.pt", legacy(
        tensors(1, 4), dumped(["0"]), b"\xff" * 8 + bytes(16)
    )), "storage '0' at byte"),
    Attack("torch legacy: a storage named twice", one_file("x.pt", legacy(
        tensors(1, 4), dumped(["0", "0"]), (struct.pack("<Q", 4) + bytes(16)) * 2
    )), "expected the keys of its 1 storages"),
    Attack("torch: a pickle alone", one_file("x.pt", system()), "of no known format", UnknownFormat),
)  # fmt: skip
