"""polyak.synthesize and polyak.Snapshots on real files: against averages that ran, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

import polyak
from polyak.cli import main
from polyak.errors import AmbiguousRole, FileError, ModelError, NonFinite, RuleError, ShapeMismatch, WeightError
from polyak.manifest import State
from polyak.snapshot import Item, Snapshot
from polyak.weights import Kind, Weight

STEPS, EVERY = 400, 20
WANTED = "power:sigma_rel=0.08"


class Walk(tf.Module):
    """A weight that wanders, one that never moves, and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable([0.0, 1.0, -1.0])
        self.still = tf.Variable([0.1, -0.0])
        self.steps = tf.Variable(0, dtype=tf.int64, trainable=False)

    def step(self, random: np.random.Generator) -> None:
        self.w.assign_add(random.normal(size=3).astype("float32"))
        self.steps.assign_add(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run that keeps two widths, and tracks beside them what is to be made after it."""
    folder = tmp_path_factory.mktemp("run")
    model, random = Walk(), np.random.default_rng(0)
    kept = {f"width{s}": polyak.PowerEMA(model, s) for s in (0.05, 0.10)}
    wanted = polyak.track(model, WANTED)
    snapshots = polyak.Snapshots(kept, EVERY, folder)
    initial = [model.w.numpy().astype("float64")]
    for _ in range(STEPS):
        model.step(random)
        initial.append(model.w.numpy().astype("float64"))
        for average in (*kept.values(), wanted):
            average.update()
        snapshots.step()
    snapshots.take()
    return {"paths": snapshots.paths, "kept": kept, "wanted": wanted.snapshot().copy(), "values": np.stack(initial)}


def assert_near(made: Any, run: dict[str, Any]) -> None:
    """As near to the average that ran as the error of the shares lets it be (Cauchy and Schwarz)."""
    shares = polyak.profile(WANTED, STEPS).shares
    spread = np.linalg.norm(run["values"] - run["values"][-1], axis=0)
    gap = np.abs(made["w"].astype("float64") - run["wanted"]["w"])
    assert np.all(gap <= made.error * np.linalg.norm(shares) * spread + 1e-5)
    assert np.all(gap < 0.05)


def test_a_rule_that_nobody_ran_is_made_from_files(run: dict[str, Any]) -> None:
    made = polyak.synthesize(run["paths"], WANTED)
    assert len(run["paths"]) == 2 * STEPS // EVERY
    assert made.error < 0.005
    assert made.norm < 2
    assert_near(made, run)
    assert made["still"].tobytes() == run["wanted"]["still"].tobytes()
    assert made["steps"] == STEPS
    assert made.state == State(polyak.parse(WANTED).to_json(), STEPS)
    assert made.roles == ("average",)
    assert made.manifest.evidence[0].startswith("synthesized power:gamma=")
    assert len(made.manifest.evidence) == 1 + len(run["paths"])


@pytest.mark.parametrize("end", ["npz", "pt", "orbax", "safetensors.index.json"])
def test_snapshots_of_every_format_make_the_same_bits(run: dict[str, Any], end: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.{end}" for i, _ in enumerate(run["paths"])]
    for source, target in zip(run["paths"], paths, strict=True):
        polyak.save(source, target)
    made = polyak.synthesize(paths, WANTED)
    assert made["w"].tobytes() == polyak.synthesize(run["paths"], WANTED)["w"].tobytes()


def test_checkpoints_of_tensorflow_with_two_averages_are_snapshots(tmp_path: Path) -> None:
    model, random = Walk(), np.random.default_rng(0)
    kept = {"a": polyak.PowerEMA(model, 0.05), "b": polyak.PowerEMA(model, 0.10)}
    wanted = polyak.track(model, WANTED)
    paths, values = [], [model.w.numpy()]
    for n in range(1, STEPS + 1):
        model.step(random)
        values.append(model.w.numpy())
        for average in (*kept.values(), wanted):
            average.update()
        if n % EVERY == 0:
            paths.append(tf.train.Checkpoint(model=model, **kept).write(str(tmp_path / f"ckpt-{n}")))
    made = polyak.synthesize([f"{p}.index" for p in paths], WANTED)
    assert len(made.ingredients) == 2 * STEPS // EVERY
    assert_near(made, {"wanted": wanted.snapshot(), "values": np.stack(values).astype("float64")})


def test_live_averages_and_an_earlier_end_are_taken(run: dict[str, Any]) -> None:
    sources = [*run["paths"][:-2], *run["kept"].values()]
    made = polyak.synthesize(sources, WANTED, at=STEPS - EVERY)
    assert made.error < 0.005
    assert made["steps"] == STEPS - EVERY
    with pytest.raises(WeightError, match=r"received 0\.27") as caught:
        polyak.synthesize(sources, WANTED, at=STEPS - 50)
    assert caught.value.hint == "ask for the average at the nearest snapshot: at=340; or keep more snapshots"
    between = polyak.synthesize(sources, WANTED, at=STEPS - 50, tolerance=0.3)
    assert between["steps"] == STEPS - 60  # copied by the last snapshot before it


def test_the_result_is_saved_and_transferred_with_its_proof(run: dict[str, Any], tmp_path: Path) -> None:
    made = polyak.synthesize(run["paths"], WANTED)
    polyak.save(made, tmp_path / "made.safetensors")
    read = polyak.open(tmp_path / "made.safetensors")
    assert read.state == made.state
    assert read.manifest.evidence == made.manifest.evidence
    other = Walk()
    polyak.transfer(read, other)
    assert other.w.numpy().tobytes() == made["w"].tobytes()


def test_arrays_are_computed_when_they_are_read_and_announced(run: dict[str, Any]) -> None:
    told: list[tuple[str, int, int]] = []
    made = polyak.synthesize(run["paths"], WANTED, watch=lambda *what: told.append(what))
    assert told == []
    _ = [made[name] for name in made]
    assert told == [(name, i, 3) for i, name in enumerate(made)]


def test_memory_is_that_of_few_arrays_whatever_the_snapshots_are(tmp_path: Path) -> None:
    import tracemalloc

    size, paths = 4_000_000, [tmp_path / f"{i}.safetensors" for i in range(6)]  # float32: 16 MB an array
    for i, path in enumerate(paths, 1):
        arrays = {name: np.full(size, i, np.float32) for name in "ab"}
        polyak.save(Snapshot.from_arrays(arrays, "average", State({"rule": "mean"}, 100 * i)), path)
    tracemalloc.start()
    polyak.save(polyak.synthesize(paths, "mean,after=300"), tmp_path / "made.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 4 * size + 16e6
    assert set(polyak.open(tmp_path / "made.safetensors")["b"]) == {9.0}


# --- refusals --------------------------------------------------------------------------------------------------------


def mean_of(count: int, value: float = 0.0, skipped: int = 0, **more: Any) -> Snapshot:
    arrays = {"w": np.float32([value, 1]), **more}
    return Snapshot.from_arrays(arrays, "average", State({"rule": "mean"}, count, skipped))


def test_a_rule_out_of_reach_is_refused_and_accepted_on_demand() -> None:
    kept = [mean_of(100), mean_of(200)]
    with pytest.raises(
        WeightError, match=r"expected a relative profile error of at most 0\.1, received 0\.9.* from 2 snap"
    ):
        polyak.synthesize(kept, "ema:0.5,start=copy")
    assert polyak.synthesize(kept, "ema:0.5,start=copy", tolerance=2.0).error > 0.9


def test_coefficients_that_amplify_noise_are_refused() -> None:
    kept = [mean_of(1000), mean_of(1001)]  # the last value alone: 1001 of the one less 1000 of the other
    with pytest.raises(
        WeightError, match=r"a norm of at most 100, received 1\.4.*; rounding errors would grow by that"
    ):
        polyak.synthesize(kept, "copy")
    assert polyak.synthesize(kept, "copy", largest_norm=2000).norm == pytest.approx(np.hypot(1000, 1001))


@pytest.mark.parametrize(
    ("sources", "error", "message"),
    [
        ([], WeightError, "a synthesis needs snapshots, received none"),
        ([Snapshot.from_arrays({"w": np.zeros(1)})], AmbiguousRole, "expected an average, received 'raw'"),
        (
            [Snapshot.from_arrays({"w": np.zeros(1)}, "average")],
            AmbiguousRole,
            "whose rule and count of updates are known",
        ),
        ([mean_of(3), mean_of(3, 1.0)], WeightError, "other values from arrays and arrays, both mean after 3 updates"),
        (
            [mean_of(3, skipped=2), mean_of(5)],
            WeightError,
            "received 2 refused updates after 3 from arrays and 0 after 5",
        ),
        ([mean_of(3), mean_of(5, v=np.zeros(1))], polyak.errors.MissingWeight, "weight 'v': in arrays, not in arrays"),
        ([mean_of(3), mean_of(5, w=np.zeros(3, np.float32))], ShapeMismatch, r"weight 'w': expected \(2,\)"),
        ([mean_of(3), mean_of(3, w=np.zeros(3, np.float32))], ShapeMismatch, r"weight 'w': expected \(2,\)"),
        ([mean_of(0)], RuleError, "rule mean after 0 updates"),
    ],
)
def test_what_is_no_run_is_refused(sources: list[Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        polyak.synthesize(sources, "mean")


def late_run(tmp_path: Path, late: int, apart: bool = True) -> list[Path]:
    """Two averages, of which the second began later; kept at the same moments, in files of their own or one."""
    model, random = Walk(), np.random.default_rng(0)
    kept, paths = {"a": polyak.PowerEMA(model, 0.05)}, []
    for step in range(1, 101):
        model.step(random)
        for average in kept.values():
            average.update()
        if step == late:
            kept["b"] = polyak.PowerEMA(model, 0.10)
        if step % 20 == 0:
            if not apart:
                paths.append(Path(tf.train.Checkpoint(model=model, **kept).write(str(tmp_path / f"{step}")) + ".index"))
                continue
            for name, average in kept.items():
                if average.count:
                    polyak.save(average, path := tmp_path / f"{name}{step}.safetensors")
                    paths.append(path)
    return paths


def test_averages_that_began_at_different_steps_are_told_by_what_they_copied(tmp_path: Path) -> None:
    """The model's counter is in each file: two averages with one value of it were kept at one moment."""
    with pytest.raises(
        WeightError, match=r"counter 'steps': expected averages that began at one step.* one value"
    ) as c:
        polyak.synthesize(late_run(tmp_path, 7), WANTED)
    assert 'polyak.convert(snapshot, path, exclude="steps")' in str(c.value.hint)
    # The counts of both are multiples of 20, but the counter has gone on between them.
    with pytest.raises(WeightError, match=r"received two values of it from .* after 20\) and .* after 20\)"):
        polyak.synthesize(
            [p for p in late_run(tmp_path, 40) if p.name in ("a20.safetensors", "b60.safetensors")], WANTED
        )


def test_averages_of_one_file_have_one_clock(tmp_path: Path) -> None:
    with pytest.raises(WeightError, match="received counts of 13 and 20 at one moment"):
        polyak.synthesize(late_run(tmp_path, 7, apart=False), WANTED)


def copying(rule: str, count: int, kind: Kind, value: float) -> Snapshot:
    weights = [Weight("w", (1,), "float32", Kind.TRAINABLE), Weight("m", (1,), "float32", kind)]
    items = [Item("average", w, lambda v=value: np.float32([v])) for w in weights]
    return Snapshot(items, {"average": State(polyak.parse(rule).to_json(), count)}, f"{rule}-{count}")


@pytest.mark.parametrize(
    "pairs",
    [
        # both kept at update 105, but the second copies at each tenth update alone
        [("mean", 105, Kind.COUNTER, 105.0), ("mean,every=10", 105, Kind.COUNTER, 100.0)],
        [("mean", 100, Kind.STATISTIC, 7.0), ("mean,every=10", 105, Kind.STATISTIC, 7.0)],
        # statistics that one of them had recomputed
        [("mean", 100, Kind.STATISTIC, 1.0), ("copy", 100, Kind.STATISTIC, 2.0)],
        # statistics that do not change, as those of frozen layers
        [("mean", n, Kind.STATISTIC, 1.0) for n in (100, 200)] + [("copy", 150, Kind.STATISTIC, 1.0)],
    ],
    ids=["counters of an interval", "statistics of an interval", "recomputed", "frozen"],
)
def test_copies_that_tell_nothing_are_no_reason_to_refuse(pairs: list[tuple[str, int, Kind, float]]) -> None:
    assert polyak.synthesize([copying(*p) for p in pairs], "mean", tolerance=9.0, largest_norm=1e9)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("mean", 100, Kind.STATISTIC, 7.0), ("copy", 150, Kind.STATISTIC, 7.0)),
        (("mean", 100, Kind.SEED, 7.0), ("copy", 100, Kind.SEED, 8.0)),
        (("mean", 109, Kind.COUNTER, 7.0), ("mean,every=10", 109, Kind.COUNTER, 7.0)),
    ],
)
def test_copies_that_contradict_the_counts_are_refused(one: Any, other: Any) -> None:
    with pytest.raises(WeightError, match="expected averages that began at one step, whose counts are one clock"):
        polyak.synthesize([copying(*one), copying(*other)], "mean", tolerance=9.0, largest_norm=1e9)


def test_what_was_made_of_others_is_no_snapshot(run: dict[str, Any], tmp_path: Path) -> None:
    raw = [Snapshot.from_arrays({"w": np.float32([v])}) for v in (1, 2)]
    polyak.average(raw, out=tmp_path / "mean.npz")
    for source in (tmp_path / "mean.npz", polyak.synthesize(run["paths"], WANTED)):
        with pytest.raises(WeightError, match="expected an average that a run has kept, received one that was made of"):
            polyak.synthesize([source], "mean")


def test_an_end_after_the_last_snapshot_is_refused() -> None:
    with pytest.raises(RuleError, match="rule mean after 9 updates: the kept averages end after 5"):
        polyak.synthesize([mean_of(3), mean_of(5)], "mean", at=9)


def test_a_snapshot_that_is_there_twice_counts_once() -> None:
    made = polyak.synthesize([mean_of(3), mean_of(5, 2.0), mean_of(5, 2.0)], "mean")
    assert [i.count for i in made.ingredients] == [3, 5]
    assert made["w"].tolist() == [2.0, 1.0]


def test_a_member_that_is_not_finite_is_refused_when_it_is_read() -> None:
    made = polyak.synthesize([mean_of(3), mean_of(5, np.inf)], "mean")
    with pytest.raises(NonFinite, match="weight 'w': expected finite values"):
        _ = made["w"]


def test_statistics_are_copied_and_large_arrays_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    def member(count: int, value: float) -> Snapshot:
        kinds = {"w": Kind.TRAINABLE, "m": Kind.STATISTIC}
        array = np.full(50, value, np.float16)
        items = [Item("average", Weight(n, array.shape, "float16", k), array.copy) for n, k in kinds.items()]
        return Snapshot(items, {"average": State({"rule": "mean"}, count)})

    monkeypatch.setattr("polyak.combine.average.ROOM", 8)
    made = polyak.synthesize([member(100, 1.0), member(200, 3.0)], "mean,after=100")
    assert made["w"].tolist() == [5.0] * 50
    assert made["m"].tolist() == [3.0] * 50


def test_parts_with_one_rule_are_one_rule_and_others_are_refused() -> None:
    model = Walk()
    one = polyak.track(model, {"w": "power:sigma_rel=0.1", "*": None})
    two = polyak.track(model, {"w": "power:sigma_rel=0.1", "*": "mean"})
    for average in (one, two):
        average.update()
    assert list(polyak.synthesize(one, "copy", tolerance=9)) == ["w"]
    with pytest.raises(RuleError, match=r"expected one rule, received \{w: power"):
        polyak.synthesize(two, "copy")
    part = two.snapshot().select(include="w")
    assert list(polyak.synthesize(part, "copy", tolerance=9)) == ["w"]


# --- snapshots -------------------------------------------------------------------------------------------------------


def moved(average: Any, model: Walk, times: int, snapshots: polyak.Snapshots) -> None:
    for _ in range(times):
        model.w.assign_add([1.0, 1.0, 1.0])
        average.update()
        snapshots.step()


def test_files_are_named_after_the_rule_and_the_updates(tmp_path: Path) -> None:
    model = Walk()
    ema = polyak.EMA(model, 0.9, start="copy")
    snapshots = polyak.Snapshots(ema, 3, tmp_path / "new")
    moved(ema, model, 7, snapshots)
    snapshots.take()
    snapshots.take()
    names = [f"ema-0.9-start-copy-{n:09}.safetensors" for n in (3, 6, 7)]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == names
    assert [polyak.open(p).state.count for p in snapshots.paths] == [3, 6, 7]  # type: ignore[union-attr]


def test_files_of_another_run_are_refused(tmp_path: Path) -> None:
    for turn in range(2):
        model = Walk()
        ema = polyak.EMA(model, 0.9)
        snapshots = polyak.Snapshots(ema, 3, tmp_path)
        if turn:
            with pytest.raises(FileError, match=r"expected no snapshots of another run, received 'ema-0\.9-000000003"):
                moved(ema, model, 1, snapshots)
        else:
            moved(ema, model, 6, snapshots)


def test_a_run_that_was_taken_back_sets_its_later_files_aside(tmp_path: Path) -> None:
    model = Walk()
    ema = polyak.EMA(model, 0.9)
    snapshots = polyak.Snapshots(ema, 3, tmp_path)
    moved(ema, model, 4, snapshots)
    polyak.save(ema, tmp_path / "resume.safetensors")
    moved(ema, model, 6, snapshots)
    again = polyak.EMA(model, 0.9)
    polyak.transfer(tmp_path / "resume.safetensors", again)
    moved(again, model, 2, polyak.Snapshots(again, 3, tmp_path))
    names = [f"ema-0.9-{n:09}.safetensors{end}" for n, end in ((3, ""), (6, ""), (6, ".abandoned"), (9, ".abandoned"))]
    assert sorted(p.name for p in tmp_path.glob("ema-*")) == names


def files(folder: Path) -> dict[str, float]:
    """What lies in a folder, with the first value of each file."""
    return {p.name.partition("-")[2]: float(polyak.open(p)["w"].ravel()[0]) for p in sorted(folder.iterdir())}


def taken_back(folder: Path, to: int) -> tuple[Any, Walk, polyak.Snapshots]:
    """Six updates by which the weight grows by one each, kept after 2, 4 and 6; then back to an earlier one, at 100."""
    model = Walk()
    model.w.assign([0.0, 0.0, 0.0])
    ema = polyak.track(model, "copy")
    snapshots, held = polyak.Snapshots({"a": ema}, 2, folder), polyak.snapshot(ema)
    for n in range(1, 7):
        moved(ema, model, 1, snapshots)
        held = polyak.snapshot(ema) if n == to else held
    polyak.transfer(held, ema)
    model.w.assign([100.0, 100.0, 100.0])
    return ema, model, snapshots


def test_a_run_that_is_taken_back_in_its_process_sets_its_later_files_aside(tmp_path: Path) -> None:
    ema, model, snapshots = taken_back(tmp_path, 2)
    moved(ema, model, 1, snapshots)
    kept = {"000000002.safetensors": 2.0}
    abandoned = {"000000004.safetensors.abandoned": 4.0, "000000006.safetensors.abandoned": 6.0}
    assert files(tmp_path) == kept | abandoned
    moved(ema, model, 1, snapshots)
    assert files(tmp_path) == kept | {"000000004.safetensors": 102.0} | abandoned
    assert [p.name for p in snapshots.paths] == ["a-000000002.safetensors", "a-000000004.safetensors"]


def test_a_run_that_is_taken_back_by_one_update_and_has_come_as_far_again_writes_its_file_anew(tmp_path: Path) -> None:
    ema, model, snapshots = taken_back(tmp_path, 5)
    moved(ema, model, 1, snapshots)
    early = {"000000002.safetensors": 2.0, "000000004.safetensors": 4.0}
    assert files(tmp_path) == early | {"000000006.safetensors": 101.0, "000000006.safetensors.abandoned": 6.0}


def test_a_file_of_the_very_update_after_the_one_that_a_run_was_taken_back_to_is_written_anew(tmp_path: Path) -> None:
    ema, model, snapshots = taken_back(tmp_path, 3)
    moved(ema, model, 1, snapshots)
    assert files(tmp_path) == {
        "000000002.safetensors": 2.0,
        "000000004.safetensors": 101.0,
        "000000004.safetensors.abandoned": 4.0,
        "000000006.safetensors.abandoned": 6.0,
    }


def test_a_run_that_begins_again_in_its_process_sets_all_of_its_files_aside(tmp_path: Path) -> None:
    ema, model, snapshots = taken_back(tmp_path, 2)
    ema.reset()
    moved(ema, model, 1, snapshots)
    assert all(name.endswith(".abandoned") for name in files(tmp_path))
    assert snapshots.paths == []


def test_a_file_of_the_end_of_a_run_is_set_aside_when_it_is_taken_back(tmp_path: Path) -> None:
    model = Walk()
    ema = polyak.EMA(model, 0.9)
    snapshots = polyak.Snapshots(ema, 3, tmp_path)
    moved(ema, model, 4, snapshots)
    held = polyak.snapshot(ema)
    moved(ema, model, 1, snapshots)
    snapshots.take()
    again = polyak.EMA(model, 0.9)
    polyak.transfer(held, again)
    moved(again, model, 1, polyak.Snapshots(again, 3, tmp_path))
    names = ["ema-0.9-000000003.safetensors", "ema-0.9-000000005.safetensors.abandoned"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_a_snapshot_that_could_not_be_written_is_made_up_for_at_the_next_step(tmp_path: Path) -> None:
    model = Walk()
    ema = polyak.EMA(model, 0.9)
    snapshots = polyak.Snapshots({"a": ema}, 2, tmp_path / "kept")
    (tmp_path / "kept").write_text("in the way")
    with pytest.raises(FileExistsError):
        moved(ema, model, 2, snapshots)
    (tmp_path / "kept").unlink()
    assert snapshots.left == 1
    moved(ema, model, 1, snapshots)
    assert [p.name for p in snapshots.paths] == ["a-000000003.safetensors"]


def test_names_that_would_share_a_file_are_refused(tmp_path: Path) -> None:
    ema = polyak.EMA(Walk(), 0.9)
    with pytest.raises(ModelError, match="received 'a b' and 'a-b', which become 'a-b'"):
        polyak.Snapshots({"a b": ema, "a-b": ema}, 2, tmp_path)
    with pytest.raises(ModelError, match="expected one average or several, received none"):
        polyak.Snapshots({}, 2, tmp_path)


def test_averages_that_do_not_keep_time_are_refused(tmp_path: Path) -> None:
    model = Walk()
    a, b = polyak.EMA(model, 0.9), polyak.EMA(model, 0.99)
    a.update()
    with pytest.raises(ModelError, match="expected averages after as many updates each"):
        polyak.Snapshots([a, b], 3, tmp_path)
    with pytest.raises(ModelError, match="expected averages of different rules"):
        polyak.Snapshots([b, b], 3, tmp_path)
    with pytest.raises(ModelError, match="every=0: expected a number of updates"):
        polyak.Snapshots(b, 0, tmp_path)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_and_says_how_near_it_comes(run: dict[str, Any], tmp_path: Path) -> None:
    paths, out = [str(p) for p in run["paths"]], str(tmp_path / "out.npz")
    done = CliRunner().invoke(main, ["synthesize", *paths, "--rule", WANTED, "-o", out, "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    made = polyak.synthesize(run["paths"], WANTED)
    assert (answer["error"], answer["norm"], answer["count"]) == (made.error, made.norm, STEPS)
    assert polyak.open(out)["w"].tobytes() == made["w"].tobytes()
    again = CliRunner().invoke(main, ["synthesize", *paths, "--rule", WANTED, "-o", out])
    assert (again.exit_code, "it exists already" in again.stderr) == (2, True)
    dry = CliRunner().invoke(main, ["synthesize", *paths, "--rule", WANTED, "--dry-run"])
    assert dry.exit_code == 0
    assert "relative profile error    0.00" in dry.stdout
    both = CliRunner().invoke(main, ["synthesize", *paths, "--rule", WANTED])
    assert (both.exit_code, "expected either -o OUT or --dry-run" in both.stderr) == (2, True)


def test_the_command_refuses_nonsense_with_status_2(run: dict[str, Any]) -> None:
    done = CliRunner().invoke(main, ["synthesize", *map(str, run["paths"]), "--rule", "copy", "--dry-run"])
    assert done.exit_code == 2
    assert "expected a relative profile error of at most 0.1" in done.stderr
    assert "hint: keep more snapshots" in done.stderr


def test_the_command_says_what_it_made_and_of_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for count in (100, 200):  # the means of 1 ... n
        polyak.save(mean_of(count, (count + 1) / 2), f"mean-{count}.safetensors")
    files = ["mean-100.safetensors", "mean-200.safetensors"]
    done = CliRunner().invoke(main, ["synthesize", *files, "--rule", "mean,after=100", "-o", "late.safetensors"])
    assert done.exit_code == 0, done.output
    table, figures, receipt = done.stdout.split("\n\n", 2)
    assert table.splitlines() == [
        "snapshot                     rule  updates  coefficient",
        "file 'mean-100.safetensors'  mean      100    -1.000000",
        "file 'mean-200.safetensors'  mean      200    +2.000000",
    ]
    assert figures.splitlines()[0] == "mean,after=100 after 200 updates"
    assert re.fullmatch(r"relative profile error    \S+", figures.splitlines()[1])
    assert figures.splitlines()[2] == "norm of the coefficients  2.236"
    assert "1 weight (8 bytes) moved and verified" in receipt
    assert polyak.open("late.safetensors")["w"].tolist() == [150.5, 1.0]


def test_a_view_of_a_live_average_is_taken_as_it_is_now() -> None:
    model, random = Walk(), np.random.default_rng(3)
    kept = [polyak.PowerEMA(model, s) for s in (0.05, 0.10)]

    def run(steps: int) -> None:
        for _ in range(steps):
            model.step(random)
            for average in kept:
                average.update()

    run(50)
    made = polyak.synthesize([average.snapshot() for average in kept], WANTED, tolerance=1.0)
    values = made["w"].tolist()
    run(50)
    assert made["w"].tolist() == values
