"""How results over several files look, where the command line's tests do not show it."""

from __future__ import annotations

import json

import numpy as np

from polyak.combine.average import Member
from polyak.combine.convert import converted
from polyak.combine.difference import difference
from polyak.combine.doctor import Finding
from polyak.report import combined
from polyak.report.tables import shape
from polyak.snapshot import Snapshot
from polyak.transfer.receipt import Receipt


def test_snapshots_of_nothing_are_the_same() -> None:
    text = combined.difference(difference(Snapshot([]), Snapshot([])))
    assert text == "A: snapshot (nothing)\nB: snapshot (nothing)\n\nsame: 0 leaves"


def test_members_are_told_in_both_forms() -> None:
    receipt = Receipt("mean of a", "file 'm'", "average", ())
    members = (Member("a", 1 / 3, 0.00012345), Member("b", 2 / 3, 0.0))
    assert combined.averaged(receipt, members).splitlines()[-3:] == [
        "member   share   distance",
        "a       0.3333  0.0001234",
        "b       0.6667          0",
    ]
    assert json.loads(combined.averaged_json(receipt, members))["members"][1] == {
        "source": "b",
        "share": 2 / 3,
        "distance": 0.0,
    }


def test_a_dry_run_of_nothing_changed_has_no_arrows() -> None:
    view = converted(Snapshot.from_arrays({"w": np.float32([1])}), {})
    assert combined.dry_run(view, "x.npz", "npz").splitlines()[2:] == [
        "weight  becomes  dtype    bytes",
        "w       w        float32      4",
    ]


def test_findings_are_told_in_both_forms() -> None:
    found = (Finding("no average", "it holds raw", "average it"),) * 2
    assert combined.findings("a.npz", found).startswith("a.npz: 2 findings\n\nno average\n")
    assert json.loads(combined.findings_json("a.npz", ()))["findings"] == []


def test_a_shape_of_one_axis_is_its_length() -> None:
    assert shape((3,)) == "3"
