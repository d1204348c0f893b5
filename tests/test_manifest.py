"""The manifest: JSON that keeps everything, digests that see every bit, roles that are never guessed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from polyak.errors import AmbiguousRole, DamagedFile, UnexpectedWeight, UnknownFormat
from polyak.manifest import (
    Manifest,
    State,
    Stored,
    choose_role,
    decode_memo,
    decode_note,
    digest,
    encode_memo,
    encode_note,
)
from polyak.weights import Evidence, Kind, Weight

EVIDENCE = Evidence("#0/kernel", "dense/kernel", "dense~0/kernel", "Dense", "kernel", 0, "bfloat16")
WEIGHT = Weight("blocks/0/kernel", (2, 3), "float32", Kind.TRAINABLE, EVIDENCE)


def manifest() -> Manifest:
    return Manifest(
        tool="polyak 9",
        roles={"raw": None, "average:fast": State({"rule": "ema", "decay": 0.5}, 7, 2)},
        weights=(Stored("x", "raw", WEIGHT, "ab"), Stored("y", "average:fast", Weight("s", (), "int64", Kind.SEED))),
        source="ema of Net",
        versions={"numpy": "2"},
        integrity="xxh3-128",
    )


def test_json_keeps_everything() -> None:
    text = manifest().to_json()
    assert Manifest.from_json(text, "file") == manifest()
    assert Manifest.from_json(text.encode(), "file") == manifest()


def test_the_json_form_is_fixed() -> None:
    """Files of today must be read tomorrow: a change here needs a new version."""
    assert json.loads(manifest().to_json()) == {
        "tool": "polyak 9",
        "roles": {"raw": None, "average:fast": {"rule": {"rule": "ema", "decay": 0.5}, "count": 7, "skipped": 2}},
        "weights": [
            {
                "name": "x",
                "role": "raw",
                "digest": "ab",
                "weight": {
                    "path": "blocks/0/kernel",
                    "shape": [2, 3],
                    "dtype": "float32",
                    "kind": "trainable",
                    "evidence": {
                        "structure": "#0/kernel",
                        "name": "dense/kernel",
                        "creation": "dense~0/kernel",
                        "layer": "Dense",
                        "local": "kernel",
                        "position": 0,
                        "dtype": "bfloat16",
                        "saved": "",
                        "names": [],
                        "again": [],
                    },
                },
            },
            {
                "name": "y",
                "role": "average:fast",
                "weight": {"path": "s", "shape": [], "dtype": "int64", "kind": "seed", "evidence": None},
            },
        ],
        "source": "ema of Net",
        "versions": {"numpy": "2"},
        "integrity": "xxh3-128",
    }


def test_fields_of_a_later_minor_change_are_passed_over() -> None:
    data = json.loads(manifest().to_json()) | {"colour": "blue"}
    assert Manifest.from_json(json.dumps(data), "file") == manifest()


def test_a_newer_version_is_refused() -> None:
    with pytest.raises(UnknownFormat) as caught:
        Manifest.from_json('{"version": 2}', "file 'x'")
    assert str(caught.value) == (
        "file 'x': expected a manifest of version 1 or older, received version 2\nhint: install a newer polyak"
    )


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "7", "{}", '{"version": "1"}', "[" * 99_999, b"\xff", "\ud800"]
)
def test_what_is_no_manifest_is_refused(text: str | bytes) -> None:
    with pytest.raises(DamagedFile, match=r"^file 'x': the manifest is not readable: "):
        Manifest.from_json(text, "file 'x'")


def test_half_a_character_in_a_name_is_refused_by_name() -> None:
    weight = Weight("a\ud800", (1,), "float32", Kind.TRAINABLE)
    with pytest.raises(UnexpectedWeight, match=r"expected a name in Unicode, received half of a character"):
        Manifest("polyak", {"raw": None}, (Stored("a\ud800", "raw", weight),)).to_json()


def test_a_memo_keeps_rule_and_weights() -> None:
    memo = decode_memo(encode_memo({"rule": "mean"}, [WEIGHT]))
    assert (memo.rule, memo.weights) == ({"rule": "mean"}, (WEIGHT,))
    for text in ["", "{}", "[" * 99_999, b"\xff"]:
        with pytest.raises(DamagedFile, match="the note of an average is not readable"):
            decode_memo(text)


def test_a_digest_is_xxh3_of_the_bytes() -> None:
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert digest(value) == xxhash.xxh3_128_hexdigest(value.tobytes())
    assert digest(value.T) == xxhash.xxh3_128_hexdigest(np.ascontiguousarray(value.T).tobytes()) != digest(value)
    assert digest(np.zeros((0, 3))) == xxhash.xxh3_128_hexdigest(b"")
    assert digest(np.array(1.5)) == xxhash.xxh3_128_hexdigest(np.array(1.5).tobytes())


@given(hnp.arrays(np.uint8, st.integers(1, 40)), st.data())
def test_a_digest_sees_every_bit(value: np.ndarray, data: st.DataObject) -> None:
    bit = data.draw(st.integers(0, 8 * value.size - 1))
    other = value.copy()
    other[bit // 8] ^= np.uint8(1 << bit % 8)
    assert digest(other) != digest(value) == digest(value[::-1][::-1])


@pytest.mark.parametrize(
    ("roles", "asked", "chosen"),
    [
        (["raw"], None, "raw"),
        (["average"], None, "average"),
        (["raw", "average"], "average", "average"),
        (["raw", "average:fast"], "average", "average:fast"),
        (["average", "average:fast"], "average", "average"),
        (["average:fast", "average:slow"], "average:slow", "average:slow"),
    ],
)
def test_the_role_that_is_meant(roles: list[str], asked: str | None, chosen: str) -> None:
    assert choose_role(roles, asked, "x") == chosen


@pytest.mark.parametrize(
    ("roles", "asked", "wanted", "received", "hint"),
    [
        (["raw", "average"], None, "one role", "'raw' and 'average'", 'weights="raw" or weights="average"'),
        (
            ["raw", "average:a", "average:b"],
            "average",
            "role 'average'",
            "'average:a' and 'average:b'",
            'weights="average:a" or weights="average:b"',
        ),
        (["raw"], "average", "role 'average'", "'raw'", 'weights="raw"'),
        (["raw", "a", "b"], "", "role ''", "'raw', 'a' and 'b'", 'weights="raw" or weights="a" or weights="b"'),
    ],
)
def test_a_role_is_never_guessed(roles: list[str], asked: str | None, wanted: str, received: str, hint: str) -> None:
    with pytest.raises(AmbiguousRole) as caught:
        choose_role(roles, asked, "x")
    assert caught.value.message == f"x: expected weights of {wanted}, received {received}"
    assert caught.value.hint == f"say which: {hint}"


def test_a_source_without_weights_has_no_role_to_name() -> None:
    with pytest.raises(AmbiguousRole, match="expected weights of one role, received no weights at all") as caught:
        choose_role([], None, "x")
    assert str(caught.value.hint).startswith("write it anew: with polyak.save(model, path)")


def test_a_note_is_read_only_with_its_digest() -> None:
    held = Manifest("polyak 0", {"raw": None}, ())
    note = encode_note(held)
    assert decode_note(note, "file 'x'", 0) == held
    with pytest.raises(DamagedFile, match="the manifest does not have its digest"):
        decode_note(note.replace(b"polyak 0", b"polyak 1"), "file 'x'", 0)
    with pytest.raises(DamagedFile, match="the manifest is not readable"):
        decode_note(b"{}", "file 'x'", 0)


@pytest.mark.parametrize("junk", ["[" + "[]," * 20_000 + "[]]", "[" + "1," * 20_000 + "1]", '"' + "x" * 70_000 + '"'])
def test_a_manifest_is_in_proportion_to_its_arrays(junk: str) -> None:
    text = '{"tool":"x","roles":{},"weights":[],"future":' + junk + "}"
    assert Manifest.from_json(text, "file 'x'").tool == "x"
    with pytest.raises(DamagedFile, match="expected the manifest of 0 arrays"):
        Manifest.from_json(text, "file 'x'", 0)
