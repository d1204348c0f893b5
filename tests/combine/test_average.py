"""The mean of checkpoints against plain NumPy; what is refused; provenance, distances, memory; greedy soup."""

from __future__ import annotations

import threading
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

import polyak
from polyak.averaging.rules import Mean
from polyak.combine import average, blocks
from polyak.errors import (
    AmbiguousMatch,
    AmbiguousRole,
    DtypeMismatch,
    MissingWeight,
    NonFinite,
    ShapeMismatch,
    WeightError,
)
from polyak.manifest import Manifest, State
from polyak.snapshot import Item, Snapshot
from polyak.weights import Kind, Weight


def held(role: str = "raw", state: State | None = None, **arrays: Any) -> Snapshot:
    return Snapshot.from_arrays(arrays, role, state)


def of_kind(kind: Kind, value: Any) -> Snapshot:
    array = np.asarray(value)
    return Snapshot([Item("raw", Weight("w", array.shape, array.dtype.name, kind), array.copy)])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("weights", [None, [1, 2, 1], [0, 1, 3]])
def test_the_mean_is_the_float64_mean_rounded_once(dtype: Any, weights: list[float] | None) -> None:
    arrays = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(dtype)
    mean = average.mean([held(w=a) for a in arrays], weights)["w"]
    expected = np.average(arrays.astype(np.float64), axis=0, weights=weights)
    assert mean.dtype == dtype
    half_a_unit = float(ml_dtypes.finfo(dtype).eps) / 2 if np.dtype(dtype).itemsize < 8 else 1e-15
    np.testing.assert_allclose(mean.astype(np.float64), expected, rtol=half_a_unit * (1 + 1e-6), atol=3e-8)


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=6), st.integers(1, 5))
def test_equal_members_keep_their_bits(values: list[float], count: int) -> None:
    member = held(w=np.float32(values), d=np.float64(values) / 3)
    mean = average.mean([member] * count, list(range(1, count + 1)))
    assert all(mean[n].tobytes() == member[n].tobytes() for n in mean)


def test_one_member_or_a_share_of_nothing_keeps_the_sign_of_zero() -> None:
    a, b = held(w=np.float32([-0.0, 1])), held(w=np.float32([5, 5]))
    assert average.mean([a])["w"].tobytes() == a["w"].tobytes()
    assert average.mean([b, a], [0, 3])["w"].tobytes() == a["w"].tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_small_share_of_large_numbers_hides_no_small_number(dtype: Any) -> None:
    large, small = held(w=np.asarray([1e15, -1e15], dtype)), held(w=np.asarray([1.1e-6, 3.3e-6], dtype))
    for members, weights in (([large, small], [1e-40, 1.0]), ([small, large], [1.0, 1e-40])):
        assert average.mean(members, weights)["w"].tobytes() == small["w"].tobytes()


def test_the_ends_of_float64_have_a_mean_by_any_weights() -> None:
    most = np.finfo(np.float64).max
    low, high = held(w=np.array([-most])), held(w=np.array([most]))
    assert average.mean([low, high], [1, 3])["w"] == most / 2
    assert average.mean([high, low], [1, 3])["w"] == -most / 2


def test_blocks_do_not_change_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    members = [held(w=a) for a in np.random.default_rng(0).normal(size=(3, 100)).astype(np.float16)]
    whole = average.mean(members)["w"]
    monkeypatch.setattr(blocks, "BLOCK", 7)
    assert average.mean(members)["w"].tobytes() == whole.tobytes()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.float32, np.float64])
def test_parts_do_not_change_the_mean(monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    """Large arrays of narrow dtypes are made in parts, each of which reads the members again."""
    values = [np.random.default_rng(i).normal(size=(7, 11)).astype(dtype) for i in range(3)]
    members = [Snapshot.from_arrays({"w": value}) for value in values]
    whole = average.mean(members, [1, 2, 3])["w"]
    monkeypatch.setattr("polyak.combine.average.ROOM", 8)
    assert average.mean(members, [1, 2, 3])["w"].tobytes() == whole.tobytes()
    assert average.mean(members, [1, 2, 3])["w"].shape == (7, 11)


def test_scalars_and_empty_arrays_have_means() -> None:
    mean = average.mean(
        [held(s=np.float32(1), e=np.zeros((0, 3), np.float32)), held(s=np.float32(2), e=np.zeros((0, 3), np.float32))]
    )
    assert (mean["s"].shape, float(mean["s"]), mean["e"].shape) == ((), 1.5, (0, 3))


def test_statistics_are_averaged_and_counters_and_seeds_are_the_last_members() -> None:
    cases = [(Kind.STATISTIC, 1.0, 3.0, 2.0), (Kind.COUNTER, 1, 3, 3), (Kind.SEED, 1.0, 3.0, 3.0)]
    for kind, first, last, expected in cases:
        assert average.mean([of_kind(kind, first), of_kind(kind, last)])["w"] == expected


def test_a_mean_is_computed_when_it_is_read() -> None:
    with pytest.raises(NonFinite, match="weight 'w': expected finite values, received 1 non-finite of 2 from arrays"):
        _ = average.mean([held(w=np.float32([1, 2])), held(w=np.float32([1, np.nan]))])["w"]


@pytest.mark.parametrize("weights", [[1, -1], [0, 0], [1], [1, np.nan], [np.inf, 1], [2, -1]])
def test_weights_that_make_no_mean_are_refused(weights: list[float]) -> None:
    with pytest.raises(WeightError, match=r"expected (2 shares, one for each member|shares of at least 0)"):
        average.mean([held(w=np.float32(1))] * 2, weights)


def test_a_set_in_the_place_of_shares_is_refused() -> None:
    with pytest.raises(WeightError, match="weights='average': expected a number for each member, received text"):
        average.mean([held(w=np.float32(1))], "average")  # type: ignore[arg-type]


def test_one_source_is_a_list_of_one() -> None:
    mean = polyak.average(held(w=np.float32(1)))  # type: ignore[arg-type]
    assert isinstance(mean, Snapshot)
    assert list(mean) == ["w"]


def test_no_members_are_refused() -> None:
    with pytest.raises(WeightError, match="an average needs members"):
        polyak.average([])


def test_the_first_difference_of_structure_is_named() -> None:
    a, b, c = (np.zeros(n, np.float32) for n in (2, 3, 4))
    cases: list[tuple[type[Exception], str, Snapshot]] = [
        (MissingWeight, "weight 'b': in arrays, not in arrays", held(a=a)),
        (MissingWeight, "weight 'c': in arrays, not in arrays", held(a=a, b=b, c=c)),
        (ShapeMismatch, r"weight 'b': expected \(3,\) as in arrays, received \(4,\)", held(a=a, b=c)),
        (DtypeMismatch, "weight 'b': expected float32 as in arrays, received float16", held(a=a, b=np.zeros(3, "f2"))),
    ]
    for error, message, other in cases:
        with pytest.raises(error, match=message):
            average.mean([held(a=a, b=b), other])


def test_mixed_roles_are_refused() -> None:
    with pytest.raises(AmbiguousRole, match="expected members of one role, received average from arrays beside raw"):
        polyak.average([held(w=np.float32(1)), held("average", w=np.float32(1))])


def test_python_names_its_own_argument() -> None:
    items = [*held(w=np.float32(1)).items_by_path.values(), *held("average", w=np.float32(1)).items_by_path.values()]
    with pytest.raises(AmbiguousRole, match='say which: role="raw" or role="average"'):
        polyak.average([Snapshot(items)])
    mean = polyak.average([Snapshot(items)] * 2, role="average")
    assert isinstance(mean, Snapshot)
    assert mean.state is None


def test_provenance_and_the_rule_that_is_true() -> None:
    members = [held(w=np.float32(1)), held(w=np.float32(3))]
    uniform, weighted = average.mean(members), average.mean(members, [3, 1])
    assert uniform.state == State(Mean().to_json(), 2)
    assert weighted.state is None
    assert average.mean([held("average", State(Mean().to_json(), 5), w=np.float32(1))] * 2).state is None
    assert weighted.manifest.evidence == (
        "member arrays: raw weights, share 0.75",
        "member arrays: raw weights, share 0.25",
    )


def test_distances_are_relative_to_the_norm_of_the_mean() -> None:
    members = [held(a=np.float32([3, 0]), b=np.float64([4.0])), held(a=np.float32([3, 2]), b=np.float64([4.0]))]
    mean = polyak.average(members)
    found = polyak.distances(members, mean)
    assert [m.distance for m in found] == pytest.approx([1 / np.sqrt(26)] * 2)
    assert [m.share for m in found] == [0.5, 0.5]
    zero = [held(a=np.float32([0.0]))]
    assert polyak.distances(zero, polyak.average(zero))[0].distance == 0.0


def test_files_into_a_file_with_a_receipt(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for i, path in enumerate(paths):
        polyak.save(held(w=np.float32([i, 1]), steps=np.int64(i)), path)
    told: list[tuple[str, int, int]] = []
    receipt = polyak.average(paths, out=tmp_path / "mean.npz", watch=lambda *what: told.append(what))
    assert isinstance(receipt, polyak.Receipt)
    assert (receipt.role, receipt.count, len(receipt.moved)) == ("average", 3, 2)
    assert told == [("w", 0, 2), ("steps", 1, 2)]
    opened = polyak.open(tmp_path / "mean.npz")
    assert (opened["w"].tolist(), int(opened["steps"]), opened.roles) == ([1.0, 1.0], 2, ("average",))
    assert len(opened.manifest.evidence) == 3
    assert all(str(path) in opened.manifest.source for path in paths)


@pytest.mark.parametrize("end", ["safetensors", "npz", "pt", "orbax", "safetensors.index.json"])
def test_a_thousand_members_go_into_a_file_that_can_be_read(end: str, tmp_path: Path) -> None:
    """However many there are, the file's manifest stays in proportion to its arrays."""
    arrays = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    paths = [tmp_path / f"a-folder-with-quite-a-long-name-{i}.npz" for i in range(1000)]
    for path, array in zip(paths, arrays, strict=True):
        np.savez(path, w=array)
    out = tmp_path / f"mean.{end}"
    polyak.average(paths, out=out)
    held = polyak.open(out)
    np.testing.assert_array_equal(held["w"], arrays.mean(0, dtype=np.float64).astype(np.float32))
    said = held.manifest.evidence
    assert said[0].endswith("raw weights, share 0.001")
    assert said[-1] == f"and {1000 - len(said) + 1:,} more"
    assert held.manifest.source.startswith(f"mean of file {str(paths[0])!r}, ")


def test_values_at_both_ends_of_float64_have_their_mean() -> None:
    wide = [held(w=np.float64([1.7e308, 1.0])), held(w=np.float64([-1.7e308, 2.0]))]
    assert polyak.average(wide)["w"].tolist() == [0.0, 1.5]
    np.testing.assert_allclose(polyak.average(wide, [3, 1])["w"], [0.85e308, 1.25], rtol=1e-15)


def test_nothing_is_written_when_a_member_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NonFinite):
        polyak.average([held(a=np.float32(1), w=np.float32(np.nan))], out=tmp_path / "mean.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_memory_is_that_of_three_of_the_largest_arrays(tmp_path: Path) -> None:
    size = 4_000_000  # float32: 16 MB
    for i in range(4):
        polyak.save(held(a=np.full(size, i, np.float32), b=np.full(size, i, np.float32)), tmp_path / f"{i}.safetensors")
    paths = sorted(tmp_path.iterdir())
    polyak.average(paths[:1], out=tmp_path / "warm.safetensors")
    tracemalloc.start()
    polyak.average(paths, out=tmp_path / "mean.safetensors")
    polyak.distances(paths, tmp_path / "mean.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * size * 4 + 16e6
    assert set(polyak.open(tmp_path / "mean.safetensors")["b"]) == {1.5}


def test_a_greedy_soup_takes_what_helps() -> None:
    members = [held(w=np.float64([v])) for v in (0.0, 3.0, 9.0, 1.0)]
    calls: list[float] = []

    def score(soup: Snapshot) -> float:
        calls.append(float(soup["w"][0]))
        return -abs(calls[-1] - 2.0)

    soup, chosen = polyak.greedy_soup(members, score)
    assert calls == pytest.approx([0.0, 3.0, 9.0, 1.0, 2.0, 4 / 3, 13 / 3])
    assert (soup["w"].tolist(), chosen, soup.state) == ([2.0], (1, 3), State(Mean().to_json(), 2))


def test_a_greedy_soup_needs_members_and_numbers() -> None:
    with pytest.raises(WeightError, match="a soup needs members"):
        polyak.greedy_soup([], lambda soup: 0.0)
    with pytest.raises(WeightError, match="expected a finite number, received nan"):
        polyak.greedy_soup([held(w=np.float32(1))], lambda soup: float("nan"))
    with pytest.raises(WeightError, match=r"score.*: expected a finite number, received None"):
        polyak.greedy_soup([held(w=np.float32(1))], lambda soup: None)  # type: ignore[arg-type, return-value]


def test_a_greedy_soup_of_mixed_roles_or_structures_is_refused_before_any_score() -> None:
    def score(soup: Snapshot) -> float:
        raise AssertionError(f"scored {soup}")

    one = held(w=np.float32(1))
    with pytest.raises(AmbiguousRole, match="expected members of one role"):
        polyak.greedy_soup([one, held("average", w=np.float32(1))], score)
    with pytest.raises(MissingWeight, match="weight 'v': in arrays, not in arrays"):
        polyak.greedy_soup([one, held(w=np.float32(1), v=np.float32(1))], score)


@pytest.mark.parametrize("made", [np.complex64, np.int8, np.uint8, np.bool_])
def test_weights_that_have_no_mean_are_not_taken_from_the_last_without_a_word(made: type) -> None:
    one, other = held(w=made([0, 2]), s=np.float32([1])), held(w=made([3, 2]), s=np.float32([3]))
    mean = polyak.average([one, other])
    assert mean["s"].tolist() == [2.0]
    with pytest.raises(DtypeMismatch, match="weight 'w': expected floating-point numbers to average"):
        _ = mean["w"]
    assert polyak.average([one, one])["w"].tolist() == one["w"].tolist()


def test_counters_and_seeds_are_those_of_the_last() -> None:
    one, other = held(step=np.int64(3), seed=np.uint32([1, 2])), held(step=np.int64(5), seed=np.uint32([1, 7]))
    mean = polyak.average([one, other])
    assert (int(mean["step"]), mean["seed"].tolist()) == (5, [1, 7])


def test_packed_weights_masks_and_tables_have_no_mean(tmp_path: Path) -> None:
    """GPTQ: codes of the last file with scales of the mean would be two models in one."""
    paths = [str(tmp_path / f"{i}.safetensors") for i in range(2)]
    for i, path in enumerate(paths):
        codes = np.random.default_rng(i).integers(-(2**31), 2**31 - 1, (16, 8), np.int32)
        order = np.arange(128, dtype=np.int32)
        save_file({"q.qweight": codes, "q.scales": np.full((2, 8), i, np.float16), "q.g_idx": order}, path)
    out = tmp_path / "mean.safetensors"
    with pytest.raises(DtypeMismatch, match=r"weight 'q\.qweight': .* received int32 that differ") as raised:
        polyak.average(paths, out=out)
    assert 'exclude="q.qweight"' in str(raised.value)
    assert not out.exists()
    assert polyak.average(paths)["q.g_idx"].tolist() == list(range(128))
    for odd in (np.eye(3, dtype=np.int64), np.arange(5)):
        with pytest.raises(DtypeMismatch, match="received int64 that differ"):
            _ = polyak.average([held(w=odd), held(w=odd + 1)])["w"]


@pytest.mark.parametrize(
    ("codes", "scale"),
    [
        ("fc.weight", "fc.weight_scale"),
        ("fc.weight", "fc.weight_scale_inv"),
        ("fc.weight", "fc.scale_weight"),
        ("fc.weight", "fc.weight_quantizer._scale"),
        ("w", "w_scale"),
        ("fc/kernel", "fc/kernel_scale"),
    ],
)
def test_scaled_float8_weights_have_a_mean_only_with_one_scale(codes: str, scale: str) -> None:
    """The mean of values is computed with the scales, and no mean of scales and of codes multiplies to it."""

    def member(value: float, by: float) -> Snapshot:
        return held(**{codes: np.full((2, 2), value, ml_dtypes.float8_e4m3fn), scale: np.float32(by)})

    mean = polyak.average([member(1, 3), member(2, 3)])
    assert (mean[codes].astype(np.float64) * mean[scale]).tolist() == [[4.5, 4.5], [4.5, 4.5]]
    differing = polyak.average([member(1, 3), member(448, 0.5)])
    with pytest.raises(WeightError, match=f"because '{codes}' is multiplied by them"):
        _ = differing[scale]


@pytest.mark.parametrize("zero", [np.int64(3), np.int32([3]), np.uint8(3)])
def test_the_mean_of_scales_has_no_zero_of_the_last_member(zero: Any) -> None:
    """Training for quantisation keeps a scale and a zero for each layer's activations."""
    one, other = (held(**{"act.scale": np.float32([i]), "act.zero_point": zero + zero.dtype.type(i)}) for i in range(2))
    with pytest.raises(DtypeMismatch, match=r"weight 'act\.zero_point'"):
        _ = polyak.average([one, other])["act.zero_point"]
    assert np.array_equal(polyak.average([one, one])["act.zero_point"], zero)


def test_a_scale_that_is_a_weight_has_a_mean() -> None:
    names = ("norm.scale", "attn.logit_scale")
    members = [
        held(**{n: np.float32([i]) for n in names}, **{"attn.qkv.weight": ml_dtypes.float8_e4m3fn(1)}) for i in (1, 2)
    ]
    mean = polyak.average(members)
    assert all(mean[n].tolist() == [1.5] for n in names)


def test_pruned_layers_have_a_mean_only_with_one_mask(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from torch.nn.utils import prune

    paths = [tmp_path / f"{i}.pt" for i in range(2)]
    for i, path in enumerate(paths):
        torch.manual_seed(i)
        layer = prune.random_unstructured(torch.nn.Linear(4, 4), "weight", 0.5)
        torch.save(layer.state_dict(), path)
    with pytest.raises(WeightError, match="weight 'weight_mask': expected the same values in all members") as raised:
        polyak.average(paths, out=tmp_path / "mean.pt")
    assert "prune.remove(layer, name)" in str(raised.value)
    assert polyak.average([paths[0], paths[0]])["weight_mask"].mean() == 0.5


@pytest.mark.parametrize("seed", [np.uint32([0, 7]), np.int64([0, 1, 7]), np.uint32([1, 2, 3, 7])])
def test_random_states_of_keras_tensorflow_and_jax_are_those_of_the_last(seed: Any) -> None:
    assert polyak.average([held(rng=seed * 0), held(rng=seed)])["rng"].tolist() == seed.tolist()
    long = [of_kind(Kind.SEED, np.arange(9) + i) for i in range(2)]
    assert polyak.average(long)["w"].tolist() == list(range(1, 10))


def test_nothing_is_taken_of_a_member_without_a_share() -> None:
    first = held(w=np.float32([1]), q=np.int8([1]), steps=np.int64(10))
    second = held(w=np.float32([2]), q=np.int8([2]), steps=np.int64(99))
    mean = polyak.average([first, second], [1, 0])
    assert {name: mean[name].tolist() for name in mean} == {"w": [1.0], "q": [1], "steps": 10}


@pytest.mark.parametrize("role", ["optimizer", "training"])
def test_what_is_neither_raw_nor_an_average_has_no_mean(role: str) -> None:
    """The mean of Adam's moments would be called an average of weights."""
    with pytest.raises(AmbiguousRole, match=f"expected raw weights or an average, received {role!r}"):
        polyak.average([held(role, w=np.float32([1]))] * 2)


def test_averages_are_averaged_whatever_their_tools_call_them() -> None:
    one, other = held("average:avs/slow", w=np.float32([1])), held("average:model/avs/slow", w=np.float32([3]))
    mean = polyak.average([one, other])
    assert (mean["w"].tolist(), mean.roles) == ([2.0], ("average",))
    assert [said.partition(": ")[2] for said in mean.manifest.evidence] == [
        "average:avs/slow weights, share 0.5",
        "average:model/avs/slow weights, share 0.5",
    ]


@pytest.mark.parametrize("shares", [{"a": 1, "b": 2}, [None, 1], [1j, 1], 0.5, ["1", "x"]])
def test_shares_that_are_no_list_of_numbers_are_refused(shares: Any) -> None:
    with pytest.raises(WeightError, match="expected a list of numbers, one for each member in their order"):
        polyak.average([held(w=np.float32([1]))] * 2, shares)
    with pytest.raises(WeightError, match="an average needs members, received NoneType"):
        polyak.average(None)  # type: ignore[arg-type]


def test_weights_whose_sum_is_out_of_all_range_are_refused() -> None:
    with pytest.raises(WeightError, match="positive sum"):
        polyak.average([held(w=np.float32([1]))] * 2, [1e308, 1e308])


def laid_out(layout: str) -> Snapshot:
    plain = held(w=np.float32([1]))
    manifest = Manifest("a tool", {}, (), layout=layout)
    return Snapshot(plain.items_by_path.values(), plain.states, layout or "nobody", written=manifest)


def test_a_mean_lies_as_its_members_do() -> None:
    assert polyak.average([laid_out("torch"), laid_out("torch")]).manifest.layout == "torch"
    assert polyak.average([laid_out(""), laid_out("keras")]).manifest.layout == "keras"
    assert polyak.average([laid_out("jax"), laid_out("keras")]).manifest.layout == "keras"
    assert polyak.average([laid_out("jax"), laid_out("jax")]).manifest.layout == "jax"
    assert polyak.greedy_soup([laid_out("torch")], lambda soup: 1.0)[0].manifest.layout == "torch"
    with pytest.raises(AmbiguousMatch, match="members of one layout, received 'keras' from keras beside 'torch'"):
        polyak.average([laid_out("torch"), laid_out("keras")])


class Live(tf.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.w = tf.Variable([value])


def test_a_mean_of_live_models_stays_what_it_was(tmp_path: Path) -> None:
    """Also when it goes into one of them."""
    one, other = Live(1.0), Live(3.0)
    mean = polyak.average([one, other])
    polyak.transfer(mean, one)
    other.w.assign([9.0])
    assert mean["w"].tolist() == [2.0] == one.w.numpy().tolist()
    polyak.average([polyak.EMA(one, decay=0.5), polyak.EMA(other, decay=0.5)], out=tmp_path / "mean.npz")
    assert polyak.open(tmp_path / "mean.npz")["w"].tolist() == [5.5]


def test_live_members_are_read_one_after_another_whoever_holds_which() -> None:
    """Two threads that ask for two averages in two orders would wait for each other."""
    averages = [polyak.EMA(Live(value), decay=0.5) for value in (1.0, 3.0)]
    failed: list[BaseException] = []

    def mean(members: list[Any]) -> None:
        try:
            for _ in range(50):
                assert polyak.average(members)["w"].tolist() == [2.0]
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=mean, args=(members,)) for members in (averages, averages[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed
    assert not any(thread.is_alive() for thread in threads)


def test_a_soup_may_be_scored_in_one_of_its_members() -> None:
    models = [Live(value) for value in (0.0, 3.0, 9.0)]

    def score(held: Snapshot) -> float:
        polyak.transfer(held, models[1])
        return -abs(float(models[1].w[0]) - 2.0)

    soup, chosen = polyak.greedy_soup(models, score)
    assert (soup["w"].tolist(), chosen) == ([1.5], (1, 0))
    models[0].w.assign([100.0])
    assert soup["w"].tolist() == [1.5]
