"""The benches run and say their rows; how fast anything is, no test says."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from bench import __main__ as every
from bench import (
    apply,
    children,
    growth,
    guarded,
    limit,
    manners_tensorflow,
    measure,
    start,
    transfer,
    turns,
    update,
    weights,
)


def test_a_ratio_is_the_median_of_the_ratios_within_turns_and_not_the_ratio_of_medians() -> None:
    times = turns.Times({"a": [1, 10, 90], "b": [1, 2, 30]}, {})
    assert (times.ratio("a", "b"), times.median("a") / times.median("b")) == (3, 5)


def test_each_manner_is_called_in_each_turn() -> None:
    calls = []
    times = turns.in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert [len(seconds) for seconds in times.seconds.values()] == [3, 3]
    assert {"a", "b"} == set(calls)


def test_what_a_child_found_before_an_early_end_is_kept_with_the_reason() -> None:
    assert children._found(b'warning\n{"a": 1}\n', "not within 1 s") == {"a": 1, "ended": "not within 1 s"}
    assert children._found(b'{"a": 1}\n{"peak": 2}\n', "") == {"a": 1, "peak": 2}
    assert children._found(None, "ended with 1") == "ended with 1"


def test_the_limit_moves_every_number_once() -> None:
    import numpy as np

    numbers = 3 * limit.BLOCK + 7
    average, value = np.zeros(numbers, np.float32), np.ones(numbers, np.float32)
    limit._move(average, value, 0, numbers)
    assert np.unique(average).tolist() == [np.float32(0.001)]


@pytest.mark.parametrize("name", list(weights.SETS))
def test_quick_sets_are_small_and_have_the_dimensions_of_the_full_ones(name: str) -> None:
    import math

    quick, full = weights.shapes(name, quick=True), weights.shapes(name)
    assert sum(map(math.prod, quick)) <= 2_000_000
    assert [len(shape) for shape in quick] == [len(shape) for shape in full[: len(quick)]]


def test_an_update_of_plain_arrays_has_a_row_for_each_manner_beside_the_limit() -> None:
    asked = argparse.Namespace(backends=["numpy"], sets=["one"], dtypes=["float32"])
    parts = update.measured("numpy", "one", ["float32"], quick=True, turns=1)
    found = {"numpy one": {dtype: figures for part in parts for dtype, figures in part.items()}}
    text = "\n".join(update.tables(found, asked))
    assert text.count("numpy, limit") == text.count("numpy, polyak host ") == 3
    assert text.count("numpy, loop host") == 1


def test_a_child_that_fails_says_why_in_the_table() -> None:
    asked = argparse.Namespace(backends=["jax"], sets=["one"], dtypes=["bfloat16"])
    assert "jax, one: ended with 1" in "\n".join(update.tables({"jax one": "ended with 1"}, asked))


def test_every_manner_on_tensorflow_runs_in_the_mode_that_its_name_says() -> None:
    layer = weights.layer([(3, 2), (4,)])
    made = manners_tensorflow.manners(layer, 1, few=False)
    assert {name.partition(" ")[0] for name in made} == {"polyak", "loop", "tf.train", "use_ema"}
    for name, make in made.items():
        make()()
        assert name.rpartition(" ")[2] in {"eager", "graph", "xla"}


def test_a_guarded_and_a_compensated_update_stand_beside_a_plain_lerp_in_each_mode() -> None:
    found = guarded.measured("one", turns=1, quick=True)
    assert list(found) == list(guarded.MODES)
    rows = list(guarded._rows({"one": found, "resnet50": "ended with 1"}))
    assert [row[0] for row in rows] == ["one, eager", "one, graph", "one, xla", "resnet50: ended with 1"]
    assert {len(row) for row in rows} == {2 + len(guarded.OURS)}


def test_apply_has_rows_for_polyak_keras_and_calls() -> None:
    times = apply.measured("small", 1, "times")
    memory = {name: apply.measured("small", 1, name) for name in ("polyak", "SwapEMAWeights")}
    rows = list(apply.rows({"tensorflow small": times, "tensorflow small memory": memory}))
    names = [row[0].partition(", ")[2] for row in rows]
    assert names[:3] == ["limit", "polyak", "SwapEMAWeights"]
    assert {"model(x)", "ema(x)", "model(x) graph", "ema(x) graph"} == set(names[3:])


@pytest.mark.filterwarnings("ignore::polyak.PolyakWarning")
def test_a_transfer_s_time_is_said_with_the_shares_of_its_parts() -> None:
    found = transfer.measured("one", quick=True, turns=1)
    assert set(found["shares"]) == {"plan", "write", "verify"}
    assert 0.1 < sum(found["shares"].values()) <= 1
    (row,) = transfer.rows({"tensorflow one": found})
    assert len(row) == 2 + len(transfer.MANNERS) + len(transfer.PARTS)


def test_growth_is_one_where_time_is_proportional_and_jobs_that_do_not_fit_are_left_out() -> None:
    points = {str(m): {"update": {"seconds": m / 7, "copy": 1.0}} for m in (1, 10, 100, 1000)}
    *_, last = growth.rows(points)
    assert last == ["exponent", "1.00", "nan", "nan", "nan"]
    small = argparse.Namespace(memory=0.001, backend="tensorflow", turns=1)
    assert growth._point(small, 100, 1) == "no job fits into 0.001 GiB"


@pytest.mark.filterwarnings("ignore::polyak.PolyakWarning")
def test_growth_measures_its_four_jobs() -> None:
    found = growth.measured(64_000, 2, list(growth.HELD), 1)
    assert {job for job, one in found.items() if one["copy"] > 0} == {"update", "save", "load", "transfer"}


def test_start_measures_processes_beside_a_bare_interpreter(tmp_path: Path) -> None:
    commands = {name: one for name, one in start.commands(tmp_path, quick=True).items() if "framework" not in name}
    commands = {name: commands[name] for name in (start.LIMIT, "import polyak")}
    first, second = start.rows(start.measured(commands, 1))
    assert first[2] == "1.0"
    assert float(second[2]) > 0


def test_every_bench_is_known_by_name_and_has_a_docstring_that_says_how_to_run_it() -> None:
    from importlib import import_module

    for name in every.BENCHES:
        assert f"python -m bench.{name}" in (import_module(f"bench.{name}").__doc__ or "")


def test_results_of_a_table_are_kept_with_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    measure.keep("x", {"job": {"seconds": 1.0}})
    assert measure.kept("x") == {"job": {"seconds": 1.0}}
    assert measure.kept("y") == {}
    assert '"numpy"' in (tmp_path / "x.json").read_text()


def test_missing_tools_are_named_only_where_they_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(children, "PEERS", tmp_path / "python")
    monkeypatch.setattr(children, "TOOLS", ("numpy", "no_such_tool"))
    assert children.missing() == ["no_such_tool"]
