"""Snapshots: immutable, lazy, named by path or by role and path."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import polyak
from polyak.errors import AmbiguousRole, DamagedFile, DtypeMismatch, MissingWeight, ModelError, UnexpectedWeight
from polyak.manifest import Manifest, State, digest
from polyak.snapshot import Item, Snapshot
from polyak.weights import Kind, Weight

STATE = State({"rule": "mean"}, 3)


def item(path: str, role: str = "raw", read: Callable[[], Any] | None = None, digest: str = "") -> Item:
    weight = Weight(path, (2,), "float32", Kind.TRAINABLE)
    return Item(role, weight, read or (lambda: np.ones(2, np.float32)), digest)


def test_a_copy_is_of_one_moment() -> None:
    within: list[str] = []

    @contextmanager
    def moment() -> Iterator[None]:
        within.append("begins")
        yield
        within.append("ends")

    snap = Snapshot([item("a", read=lambda: within.append("read") or np.ones(2, np.float32))], moment=moment)
    snap.copy()
    assert within == ["begins", "read", "ends"]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("snapshot: too short", "snapshot: weight 'a': too short"),
        ("snapshot: weight 'a' at byte 7: too short", "snapshot: weight 'a' at byte 7: too short"),
    ],
)
def test_damage_is_told_with_the_name_of_the_weight_once(told: str, message: str) -> None:
    def read() -> Any:
        raise DamagedFile(told)

    with pytest.raises(DamagedFile) as caught:
        _ = Snapshot([item("a", read=read)])["a"]
    assert caught.value.message == message


def test_nothing_is_read_before_it_is_asked_for() -> None:
    read: list[str] = []

    def reader(path: str) -> Callable[[], Any]:
        return lambda: read.append(path) or np.ones(2, np.float32)

    snap = Snapshot([item("a/w", "raw", reader("a/w")), item("b/w", "raw", reader("b/w"))])
    part = snap.select(include="b/*")
    assert (list(snap), list(part), len(snap.weights)) == (["a/w", "b/w"], ["b/w"], 2)
    assert snap.manifest.weights[0].name == "a/w"
    assert ("a/w" in snap, repr(snap)) == (True, "<Snapshot snapshot: 2 arrays, 16 bytes, roles raw>")
    assert read == []
    assert part["b/w"].tolist() == [1.0, 1.0]
    assert read == ["b/w"]


def test_arrays_are_copied_in_and_out() -> None:
    mine = np.ones(2, np.float32)
    snap = Snapshot.from_arrays({"w": mine})
    mine[:] = 5
    snap["w"][:] = 6
    assert snap["w"].tolist() == [1.0, 1.0]


def test_a_copy_is_detached_from_its_source() -> None:
    live = np.ones(2, np.float32)
    snap = Snapshot([item("w", "average", live.copy)], {"average": STATE}, "live")
    held = snap.copy()
    live[:] = 5
    assert (snap["w"].tolist(), held["w"].tolist()) == ([5.0, 5.0], [1.0, 1.0])
    assert (held.state, held.origin, held.roles) == (STATE, "live", ("average",))


@pytest.mark.parametrize(
    ("value", "dtype", "kind"),
    [
        (1.5, "float64", Kind.TRAINABLE),
        ([1, 2], "int64", Kind.COUNTER),
        (np.ones(2, "bfloat16"), "bfloat16", Kind.TRAINABLE),
        (np.ones(2, ">f4"), "float32", Kind.TRAINABLE),
        (np.array(True), "bool", Kind.COUNTER),
    ],
)
def test_arrays_of_any_make(value: Any, dtype: str, kind: Kind) -> None:
    snap = Snapshot.from_arrays({"w": value})
    assert snap.weights == (Weight("w", np.shape(value), dtype, kind),)
    assert snap["w"].dtype == np.dtype(dtype)
    assert snap["w"].dtype.isnative
    assert np.array_equal(snap["w"], value)


@pytest.mark.parametrize("value", ["text", b"bytes", None, {"a": 1}, np.zeros(2, "M8[s]"), np.zeros(2, "i4,f4")])
def test_what_is_no_array_of_numbers_is_refused(value: Any) -> None:
    with pytest.raises(DtypeMismatch, match="weight 'w': expected an array of numbers, received "):
        Snapshot.from_arrays({"w": value})


def test_names_carry_their_role_only_where_there_are_several() -> None:
    both = Snapshot([item("w"), item("w", "average")], {"average": STATE})
    assert (list(both), both.roles, both.state) == (["raw/w", "average/w"], ("raw", "average"), None)
    assert [w.path for w in both.weights] == ["w", "w"]
    average = both.select("average")
    assert (list(average), average.roles, average.state) == (["w"], ("average",), STATE)
    with pytest.raises(AmbiguousRole, match="received 'raw' and 'average'"):
        both.select()
    with pytest.raises(AmbiguousRole, match="expected weights of role 'ema', received 'raw' and 'average'"):
        both.select("ema")


def test_two_arrays_of_one_name_are_refused() -> None:
    with pytest.raises(DamagedFile, match="expected one weight 'w', received two"):
        Snapshot([item("w"), item("w")])
    with pytest.raises(DamagedFile, match="expected one weight 'a/b/w', received two"):
        Snapshot([item("b/w", "a"), item("w", "a/b")])


def test_selection() -> None:
    snap = Snapshot([item("a/w"), item("a/b"), item("c/w")])
    assert list(snap.select(include="a/*", exclude="*/b")) == ["a/w"]
    assert list(snap.select(exclude="a*").select(include="c/*")) == ["c/w"]
    nothing = snap.select(exclude="*")
    assert (len(nothing), nothing.roles) == (0, ("raw",))
    assert len(nothing.select("raw")) == 0


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_a_glob_that_selects_nothing_is_refused(argument: str) -> None:
    snap = Snapshot([item("head/w"), item("body/w")], origin="file 'x'")
    with pytest.raises(MissingWeight) as caught:
        snap.select(**{argument: "haed/*"})
    assert str(caught.value) == (
        f"{argument}='haed/*': expected a glob of weights, received one that matches none of file 'x'; "
        "nearest: 'head/w'\nhint: the paths look like 'head/w'; a star also crosses slashes"
    )


def test_an_unknown_name_is_a_key_error_that_names_the_nearest() -> None:
    snap = Snapshot([item("head/kernel"), item("body/kernel")], origin="file 'x'")
    with pytest.raises(KeyError) as caught:
        snap["haed/kernel"]
    assert str(caught.value) == (
        "weight 'haed/kernel': not in file 'x'; nearest: 'head/kernel'\n"
        "hint: its weights are 'head/kernel', 'body/kernel'"
    )
    assert snap.get("haed/kernel") is None


def test_bytes_are_held_against_their_digest() -> None:
    good = np.ones(2, np.float32)
    assert Snapshot([item("w", digest=digest(good))])["w"].tolist() == [1.0, 1.0]
    with pytest.raises(
        DamagedFile, match=f"weight 'w': expected bytes with digest {'0' * 32}, received {digest(good)}"
    ):
        Snapshot([item("w", digest="0" * 32)])["w"]


def test_a_manifest_tells_who_wrote_the_file_not_who_reads_it() -> None:
    written = Manifest("polyak 0.0.1", {}, (), source="ema of Net", versions={"numpy": "1"}, integrity="xxh3-128")
    snap = Snapshot([item("a"), item("b")], None, "file 'x'", "xxh3-128", written)
    for view in (snap, snap.copy(), snap.select(include="a")):
        assert (view.manifest.tool, view.manifest.source, view.manifest.versions) == (
            "polyak 0.0.1",
            "ema of Net",
            {"numpy": "1"},
        )
    assert [s.name for s in snap.select(include="a").manifest.weights] == ["a"]
    assert Snapshot([item("a")]).manifest.tool == f"polyak {polyak.__version__}"


def test_a_manifest_names_the_frameworks_that_are_loaded() -> None:
    tf = pytest.importorskip("tensorflow")
    known = Snapshot([item("a")]).manifest.versions
    assert (known["numpy"], known["tensorflow"]) == (np.__version__, tf.__version__)


def test_snapshots_are_equal_only_to_themselves() -> None:
    one, two = Snapshot([item("w")]), Snapshot([item("w")])
    assert one == one
    assert one != two
    assert len({one, two, one}) == 2


def test_a_snapshot_of_a_model_does_not_follow_it() -> None:
    tf = pytest.importorskip("tensorflow")
    module = tf.Module()
    module.w = tf.Variable([1.0])
    snap, lazy = polyak.snapshot(module), polyak.EMA(module, decay=0.9).snapshot()
    module.w.assign([2.0])
    assert snap["w"].tolist() == lazy["w"].tolist() == [1.0]
    assert (snap.roles, lazy.roles, lazy.state.count) == (("raw",), ("average",), 0)


@pytest.mark.parametrize("array", [np.zeros(2, "V2"), np.zeros(2, "V3"), np.zeros(2, [("a", "f4")]), np.zeros(2, "U3")])
def test_what_is_no_number_is_refused_by_name(array: Any) -> None:
    with pytest.raises(DtypeMismatch, match="weight 'w': expected an array of numbers"):
        Snapshot.from_arrays({"w": array})


def test_a_mask_is_not_left_out_without_a_word() -> None:
    masked = np.ma.masked_array([1.0, 2.0], [False, True])
    with pytest.raises(DtypeMismatch, match="masked elements"):
        Snapshot.from_arrays({"w": masked})
    assert Snapshot.from_arrays({"w": masked.filled(0)})["w"].tolist() == [1, 0]


def test_a_framework_that_a_program_bars_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """``sys.modules[name] = None``, as Python has it for a module that shall not be imported."""
    barred = {"tensorflow", "keras", "torch", "jax"}
    for name in barred:
        monkeypatch.setitem(sys.modules, name, None)
    versions = Snapshot.from_arrays({"w": np.ones(2)}).manifest.versions
    assert versions["numpy"] == np.__version__
    assert not barred & versions.keys()
    with pytest.raises(ModelError, match="expected a Keras model"):
        polyak.snapshot(object())


def test_names_and_values_that_are_no_arrays_are_refused_with_the_next_step() -> None:
    with pytest.raises(UnexpectedWeight, match="weight 1: expected a name that is text, received int"):
        Snapshot.from_arrays({1: np.ones(2)})  # type: ignore[dict-item]
    with pytest.raises(DtypeMismatch, match="received a tree of them, dict") as caught:
        Snapshot.from_arrays({"a": {"b": np.ones(2)}})  # type: ignore[dict-item]
    assert caught.value.hint == "give each array under its whole path: {'a/b': array, ...}"
    with pytest.raises(DtypeMismatch, match="received list, which is none"):
        Snapshot.from_arrays({"a": [[1.0], [1.0, 2.0]]})  # type: ignore[dict-item]


def test_what_jax_gives_no_values_of_is_refused() -> None:
    jax = pytest.importorskip("jax")
    deleted = jax.numpy.ones(2)
    deleted.delete()
    for value, said in ((jax.random.key(0), "jax.random.key_data"), (deleted, "has been deleted")):
        with pytest.raises(DtypeMismatch, match=said):
            Snapshot.from_arrays({"w": value})
    with pytest.raises(DtypeMismatch, match="on traced array"):
        jax.jit(lambda x: Snapshot.from_arrays({"w": x})["w"])(jax.numpy.ones(2))
