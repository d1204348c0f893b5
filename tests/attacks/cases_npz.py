"""npz: bombs and zips that lie, beyond those of tests/files/test_npz.py."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from tests.attacks.attack import Attack, Member, npy, one_file, zipped
from tests.attacks.cases_safetensors import ARRAYS

from polyak.files import npz
from polyak.snapshot import Snapshot

ONE = npy("(1,)", bytes(4))
MEBI = 1 << 20


def own(directory: Path) -> Path:
    npz.write(Snapshot.from_arrays(ARRAYS), directory / "model.npz")
    return directory / "model.npz"


def plain(directory: Path) -> Path:
    np.savez_compressed(directory / "model.npz", **ARRAYS)
    return directory / "model.npz"


def endless_header() -> bytes:
    """A header of two gibibytes of blanks, in two megabytes."""
    start = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2048 * MEBI)
    return zipped([Member("w.npy", start + b" " * 512 * MEBI, packed=True)])


def endless_manifest() -> bytes:
    """polyak's own note, of a gibibyte less a little, in one megabyte."""
    size = 900 * MEBI
    return zipped([
        Member("w.npy", ONE), Member("polyak.json.npy", npy(f"({size},)", bytes(size), "|u1"), packed=True)
    ])  # fmt: skip


def shared_kernel() -> bytes:
    """A thousand members that are all the first one's megabyte."""
    first = Member("w0.npy", npy("(262144,)", bytes(MEBI)))
    others = [Member(f"w{i}.npy", b"", size=len(first.content), at=0) for i in range(1, 1000)]
    return zipped([first, *others])


def nested() -> bytes:
    """Zips within zips, to the tenth power."""
    inner = zipped([Member("w.npy", npy("(1048576,)", bytes(4 * MEBI)), packed=True)])
    for _ in range(3):
        inner = zipped([Member(f"{i}.npy", inner, packed=True) for i in range(10)])
    return inner


ATTACKS = (
    Attack("npz: a header of two gigabytes", one_file("x.npz", endless_header),
           "member 'w.npy': expected at most 20 bytes", bomb=True),
    Attack("npz: a manifest of a gigabyte", one_file("x.npz", endless_manifest), "expected at most 20 bytes",
           bomb=True),
    Attack("npz: members that share one content", one_file("x.npz", shared_kernel),
           "expected at most 20 bytes", bomb=True),
    Attack("npz: zips within zips", one_file("x.npz", nested), "weight '0': not readable", bomb=True),
    Attack("npz: a member behind the end", one_file("x.npz", zipped([Member("w.npy", ONE, at=2**31)])), "w"),
    Attack("npz: a checksum of other bytes", one_file("x.npz", zipped([Member("w.npy", ONE, crc=1)])),
           "weight 'w': not readable: Bad CRC-32"),
    Attack("npz: a name that leads out", one_file("x.npz", zipped([Member("../../etc/w.npy", ONE)])), None),
    Attack("npz: a pickled array", one_file("x.npz", zipped([Member("w.npy", npy("(1,)", b"cos\nsystem\n.", "|O"))])),
           None),
    Attack("npz: records that hold pickles", one_file("x.npz", zipped([Member("w.npy", (
        b"\x93NUMPY\x01\x00\x50\x00{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,)}".ljust(90) + bytes(8)
    ))])), None),
    Attack("npz: a shape of a thousand axes", one_file("x.npz", zipped([Member("w.npy", npy("(1," * 1000 + ")"))])),
           "weight 'w': not readable"),
    Attack("npz: an end record that counts millions", one_file("x.npz", zipped([Member("w.npy", ONE)])[:-14]
           + struct.pack("<HHIIH", 65535, 65535, 2**31, 0, 0)), "not readable"),
)  # fmt: skip
