"""Each finding on a snapshot that has it, and none on one that is well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import pytest

import polyak
from polyak.averaging import rules
from polyak.manifest import State
from polyak.snapshot import Snapshot

OLD = State(rules.EMA(0.9).to_json(), 10_000)


def held(value: Any, role: str = "average", state: State | None = OLD, **said: Any) -> Snapshot:
    made = Snapshot.from_arrays({"w": np.asarray(value), "steps": np.int64(3)}, role, state)
    manifest = msgspec.structs.replace(made.manifest, **said)
    return Snapshot(made.items_by_path.values(), {role: state}, "file 'x'", "crc32c", manifest)


def both(raw: Any, average: Any, state: State | None = OLD) -> Snapshot:
    items = [*held(raw, "raw", None).items_by_path.values(), *held(average).items_by_path.values()]
    return Snapshot(items, {"average": state}, "file 'x'", "crc32c")


def whats(snapshot: Snapshot) -> list[str]:
    return [finding.what for finding in polyak.doctor(snapshot)]


def test_a_file_without_weights_says_so(tmp_path: Path) -> None:
    for name in ("a.npz", "b.safetensors"):
        polyak.save(Snapshot([]), tmp_path / name)
        first = polyak.doctor(tmp_path / name)[0]
        assert (first.what, first.evidence) == ("no weights", "it holds 0 arrays")
        assert first.mend == "ask the program that wrote it, or write it anew"


def test_a_file_that_is_well_has_no_findings(tmp_path: Path) -> None:
    polyak.save(held(np.float32([1, 2])), tmp_path / "a.safetensors")
    assert polyak.doctor(tmp_path / "a.safetensors") == ()


@pytest.mark.parametrize(
    ("snapshot", "what", "evidence"),
    [
        (held(np.float32([1]), "raw", None), "no average", "it holds raw"),
        (both(np.float32([1]), np.float32([2])), "several sets of weights", "it holds raw, average"),
        (
            both(np.float32([1]), np.float32([1])),
            "average is equal to raw",
            "the bits are the same in 1 weight, all that are trainable",
        ),
        (
            held(np.ones(2, ml_dtypes.bfloat16)),
            "average is stored in low precision",
            "1 weight in bfloat16, such as w",
        ),
        (
            held(np.float32([1]), state=State(rules.EMA(0.999, "initial").to_json(), 100)),
            "average is immature",
            "100 updates; 90.5% of it is what it started from",
        ),
        (
            held(np.float32([1]), state=State(rules.Mean().to_json(), 0)),
            "average is immature",
            "0 updates",
        ),
        (
            held(np.float32([1]), state=None),
            "the rule of average is not known",
            "the file holds neither rule nor count",
        ),
        (held(np.float32([1, np.nan, np.inf])), "NaN or infinity in 1 weight", "w (2 of 3)"),
        (held(np.float32([1]), note="no seeds"), "its writer leaves something out", "no seeds"),
        (
            held(np.float32([1]), confidence="inferred", evidence=("a", "b")),
            "what the file holds is inferred, not stated",
            "a; b",
        ),
        (
            held(np.float32([1]), evidence=("the hook swaps the two before it saves",)),
            "written while the average was swapped in",
            "the hook swaps the two before it saves",
        ),
    ],
)
def test_each_finding_has_its_evidence_and_what_mends_it(snapshot: Snapshot, what: str, evidence: str) -> None:
    found = {finding.what: finding for finding in polyak.doctor(snapshot)}
    assert found[what].evidence == evidence
    assert found[what].mend


def test_no_checksums_are_a_finding_of_plain_files() -> None:
    assert "the file holds no checksums" in whats(Snapshot.from_arrays({"w": np.float32([1])}, "average", OLD))


def test_an_average_that_moved_by_one_bit_is_not_equal_to_raw() -> None:
    assert whats(both(np.float32([1]), np.nextafter(np.float32([1]), np.float32(2)))) == ["several sets of weights"]


def test_the_mean_of_two_is_not_immature() -> None:
    assert whats(held(np.float32([1]), state=State(rules.Mean().to_json(), 2))) == []


def test_many_bad_weights_are_counted(tmp_path: Path) -> None:
    arrays = {f"w{i}": np.float32([np.nan]) for i in range(5)}
    polyak.save(Snapshot.from_arrays(arrays, "average", OLD), tmp_path / "a.safetensors")
    (found,) = polyak.doctor(tmp_path / "a.safetensors")
    assert found.evidence == "w0 (1 of 1), w1 (1 of 1), w2 (1 of 1) and 2 more"
    assert found.mend.endswith(f"polyak convert {tmp_path / 'a.safetensors'} OUT.safetensors --exclude w0")
