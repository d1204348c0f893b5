"""Arrays that are verified without being held: the digest is that of the array, and damage is told by its name."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from torture.damage import regions_of
from torture.samples import GOLDEN, OWN, snapshot, verified, write

import polyak
from polyak import files
from polyak.combine.convert import FORMATS
from polyak.errors import DamagedFile, MissingWeight
from polyak.files import npz
from polyak.manifest import digest
from polyak.snapshot import Snapshot

MEASURED = ("safetensors", "safetensors-sharded", "npz", "torch")
ODD = {
    "no/elements": np.zeros((3, 0, 2), np.float32),
    "no/axes": np.array(1.5, np.float64),
    "a/bool": np.array([True, False, True]),
    "a/bfloat16": np.arange(12).astype(ml_dtypes.bfloat16).reshape(3, 4),
    "a/complex": np.array([1 + 2j, -0.0], np.complex64),
    "a/large": np.arange(400_001, dtype=np.float32),
}


def _measured(path: Path) -> int:
    """How many arrays that have elements can be measured; each of them has the digest of its array."""
    known = [(n, t) for n, t in files.read(path).tensors.items() if t.measure is not None and 0 not in t.shape]
    for name, tensor in known:
        assert tensor.measure is not None
        assert tensor.measure() == digest(tensor.read()), name
    return len(known)


@pytest.mark.parametrize("format", MEASURED)
def test_the_digest_of_the_bytes_is_that_of_the_array(format: str, tmp_path: Path) -> None:
    path = write(Snapshot.from_arrays(ODD), format, tmp_path)
    assert _measured(path) == len(ODD) - 1
    assert verified(path)


def test_arrays_of_others_are_measured_right_or_not_at_all(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    held = {"plain": values, "turned": np.asfortranarray(values), "swapped": values.astype(">f4")}
    np.savez(tmp_path / "plain.npz", **held)
    np.savez_compressed(tmp_path / "packed.npz", **held)
    assert _measured(tmp_path / "plain.npz") == 1
    assert _measured(tmp_path / "packed.npz") == 0
    found = [_measured(path) for path in sorted((GOLDEN / "torch").glob("*.pt"))]
    assert sum(found) > 20


@pytest.mark.parametrize("format", FORMATS)
def test_a_flipped_bit_of_any_array_is_told_with_its_name(format: str, tmp_path: Path) -> None:
    path = OWN[format](tmp_path)
    assert verified(path)
    held = polyak.open(path)
    values = {name: held[name].tobytes() for name in held}
    hit = []
    for part in [path] if path.is_file() and format != "safetensors-sharded" else sorted(tmp_path.rglob("*")):
        content = part.read_bytes() if part.is_file() else b""
        for region in regions_of(content, values):
            at = (region.start + region.end) // 2
            part.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
            for ask in (Snapshot.verify, Snapshot.__getitem__):
                with pytest.raises(DamagedFile, match=f"weight '{region.name}'"):
                    ask(polyak.open(path), region.name)
            part.write_bytes(content)
            hit.append(region.name)
    assert len(hit) >= 3 or format == "orbax"  # which packs its arrays
    assert verified(path)


def test_what_a_snapshot_does_not_hold_is_not_verified(tmp_path: Path) -> None:
    with pytest.raises(MissingWeight, match="weight 'other': not in arrays"):
        Snapshot.from_arrays(ODD).verify("other")


def test_a_manifest_without_digests_leaves_the_judgement_to_the_zip(tmp_path: Path) -> None:
    """As no polyak writes it: every array then has its CRC-32 compared."""
    path = tmp_path / "a.npz"
    npz.write(snapshot(("raw",)), path)
    value = polyak.open(path)["encoder/0/kernel"].tobytes()
    marks = [s.digest.encode() for s in polyak.open(path).manifest.weights]
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    text = arrays["polyak.json"].tobytes()
    for mark in marks:
        text = text.replace(b',"digest":"' + mark + b'"', b"")
    np.savez(path, **{**arrays, "polyak.json": np.frombuffer(text, np.uint8)})
    assert verified(path)
    content = path.read_bytes()
    at = content.index(value)
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    again = polyak.open(path)
    assert not verified(path)
    with pytest.raises(DamagedFile, match="weight 'encoder/0/kernel': not readable: Bad CRC-32"):
        again["encoder/0/kernel"]
