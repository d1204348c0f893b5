"""Who wrote a tree of JAX, and which of its weights are the average: the real tools' files, and look-alikes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tests.files.jax_golden import GOLDEN, assert_same, expected

import polyak
from polyak import dialects
from polyak.combine.average import mean
from polyak.contents import Contents, Tensor
from polyak.manifest import State
from polyak.snapshot import Snapshot
from polyak.weights import Kind

pytest.importorskip("tensorstore")

# File, tool, roles of weights, confidence, words of its evidence.
TOOLS = [
    (
        "keras",
        "Keras",
        {"raw", "average"},
        "inferred",
        "6 averages of use_ema, each by the name",
    ),
    ("optax", "optax", {"raw", "average"}, "inferred", "divide by 1 - decay**3"),
    ("haiku", "Haiku", {"raw", "average"}, "inferred", "the first counter is 3"),
    ("train_state", "JAX", {"raw", "average"}, "inferred", "'ema_params' has the names and shapes of 'params'"),
    ("train_state.msgpack", "JAX", {"raw", "average"}, "inferred", "within an optimizer that averages updates"),
    ("nnx", "JAX", {"raw", "average"}, "inferred", "'ema' has the names and shapes of 'model'"),
    ("variables.msgpack", "JAX", {"raw"}, "unknown", "without a word on whether it is an average"),
    ("steps", "JAX", {"raw"}, "unknown", "without a word on whether it is an average"),
]


@pytest.mark.parametrize(("file", "tool", "roles", "confidence", "words"), TOOLS, ids=[t[0] for t in TOOLS])
def test_each_tools_file_is_told_apart(file: str, tool: str, roles: set[str], confidence: str, words: str) -> None:
    held = polyak.open(GOLDEN / file)
    assert held.manifest.tool == tool
    assert set(held.roles) - {"optimizer", "training"} == roles
    assert held.manifest.confidence == confidence
    assert words in "; ".join(held.manifest.evidence)


@pytest.mark.parametrize("file", [t[0] for t in TOOLS if t[0] != "steps"])
def test_each_set_has_the_names_and_the_bits_that_the_tool_held(file: str) -> None:
    held, wanted = polyak.open(GOLDEN / file), expected(file)
    roles = {name.partition("/")[0] for name in wanted}
    for role in roles:
        part = held.select(role=role)
        arrays = {n.partition("/")[2]: a for n, a in wanted.items() if n.startswith(f"{role}/")}
        assert set(part) == set(arrays)
        for name, array in arrays.items():
            assert_same(part[name], array)


def test_keras_states_rule_and_count() -> None:
    state = polyak.open(GOLDEN / "keras").select(role="average").state
    assert state == State({"rule": "ema", "decay": 0.9, "start": "copy"}, 2)


def test_the_average_of_optax_is_biased_and_the_note_says_so() -> None:
    held = polyak.open(GOLDEN / "optax")
    assert "without its correction for the start at zero" in held.manifest.note
    raw, average = (held.select(role=r)["Dense_0/kernel"] for r in ("raw", "average"))
    # Three updates with the same weights: corrected, the average is those weights.
    np.testing.assert_allclose(average / (1 - 0.9**3), raw, rtol=1e-5)


def test_a_biased_average_is_handed_over_with_a_word_and_a_way_to_correct_it(tmp_path: Path) -> None:
    held = polyak.open(GOLDEN / "optax")
    raw, target = held.select(role="raw"), polyak.Snapshot.from_arrays(held.select(role="raw"))
    verbs: list[Callable[[], object]] = [
        lambda: polyak.convert(held, tmp_path / "a.safetensors", weights="average"),
        lambda: polyak.plan(tmp_path / "a.safetensors", target),
        lambda: polyak.average([held, held], role="average"),
        lambda: polyak.transfer(held, tmp_path / "b.npz", weights="average"),
    ]
    said = []
    for verb in verbs:
        with pytest.warns(polyak.errors.ImmatureWarning, match="0.30% of the right values with decay 0.999") as caught:
            verb()
        said.append(str(caught[0].message))
    code = said[1].partition("of its program: ")[2]
    held = polyak.open(tmp_path / "a.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corrected = eval(code, {"polyak": polyak, "held": held, "decay": 0.9})
        polyak.plan(corrected, target)
        polyak.plan(raw, target)
    for name, array in raw.items():
        np.testing.assert_allclose(corrected[name], array, rtol=1e-5)


def biased(action: Callable[[], object]) -> list[str]:
    """What is said of averages that are biased."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [str(w.message) for w in caught if issubclass(w.category, polyak.errors.ImmatureWarning)]


def test_a_bias_is_said_once_where_an_average_is_written_and_not_where_it_is_compared(tmp_path: Path) -> None:
    average, both = tmp_path / "a.safetensors", tmp_path / "both.safetensors"
    assert len(biased(lambda: polyak.convert(GOLDEN / "optax", average, weights="average"))) == 1
    assert len(biased(lambda: polyak.convert(GOLDEN / "optax", both))) == 1
    stored = polyak.StoredPlan.from_json(polyak.plan(average, polyak.open(average)).to_json())
    writing: list[Callable[[Path], object]] = [
        lambda out: polyak.convert(average, out),
        lambda out: polyak.transfer(average, out),
        lambda out: polyak.transfer(average, out, exclude="*bias"),
        lambda out: polyak.transfer(average, out, like=average),
        lambda out: polyak.transfer(average, out, plan=stored),
        lambda out: polyak.save(both, out, "both"),
        lambda out: polyak.convert(both, out, weights="average"),
        lambda out: polyak.average([average, average], None, out),
    ]
    said = [biased(partial(verb, tmp_path / f"{i}.npz")) for i, verb in enumerate(writing)]
    assert [len(lines) for lines in said] == [1] * len(writing)
    made = polyak.open(tmp_path / "7.npz")
    comparing: list[Callable[[], object]] = [
        lambda: polyak.diff(average, average, "average"),
        lambda: polyak.distances([average, average], made, role="average"),
        lambda: polyak.convert(both, tmp_path / "raw.npz", weights="raw"),
        lambda: polyak.average([both, both], None, tmp_path / "raws.npz", "raw"),
    ]
    assert [biased(verb) for verb in comparing] == [[], [], [], []]


def test_the_mean_of_biased_averages_is_biased_and_one_division_corrects_it_only_where_all_are_alike() -> None:
    one = polyak.open(GOLDEN / "optax").select("average")
    other = polyak.Snapshot.from_arrays(one, "average")
    alike, mixed, alone = mean([one, one]), mean([one, other]), mean([one, other], [0, 1])
    assert alike.manifest.note == one.manifest.note
    assert mixed.manifest.note == f"member {one.origin}: {one.manifest.note}"
    assert alone.manifest.note == ""
    mends = {}
    for name, made in (("alike", alike), ("mixed", mixed), ("alone", alone)):
        found = {f.what: f.mend for f in polyak.doctor(made)}
        mends[name] = found.get("average is biased towards zero", "")
    assert mends["alike"].startswith("divide each value by 1 - decay**count")
    assert mends["mixed"] == "correct the members first, and average those"
    assert mends["alone"] == ""
    assert "polyak.Snapshot.from_arrays" in biased(lambda: polyak.snapshot(alike))[0]
    said = biased(lambda: polyak.snapshot(mixed))[0]
    assert said.endswith("no division corrects their mean: correct the members first, and average those")


def test_moving_statistics_belong_to_both_sets() -> None:
    held = polyak.open(GOLDEN / "train_state")
    for role in ("raw", "average"):
        kinds = {w.path: w.kind for w in held.select(role=role).weights}
        assert kinds["BatchNorm_0/mean"] is Kind.STATISTIC
        assert kinds["Dense_0/kernel"] is Kind.TRAINABLE


# --- look-alikes -----------------------------------------------------------------------------------------------------


def opened(arrays: Mapping[str, tuple[int, ...]], facts: Mapping[str, object] | None = None) -> Snapshot:
    """The contents of a made-up checkpoint: shapes by path; whole numbers where the path ends in a counter's name."""
    tensors = {}
    for name, shape in arrays.items():
        counts = name.rpartition("/")[2] in ("count", "counter", "step", "iteration")
        value = np.full(shape, 3, np.int32 if counts else np.float32)
        tensors[name] = Tensor(value.shape, value.dtype.name, value.copy)
    return dialects.interpret(Contents("checkpoint 'x'", "orbax", tensors, facts=facts or {}))


def test_an_average_with_two_sets_of_its_shapes_is_not_paired_and_the_evidence_says_so() -> None:
    held = opened({"net_a/w": (2,), "net_b/w": (2,), "ema/w": (2,)})
    assert held.roles == ("raw",)
    assert held.manifest.confidence == "unknown"
    assert set(held) == {"net_a/w", "net_b/w", "ema/w"}
    assert (
        "'ema' is called an average, and 'net_a' and 'net_b' have its names and shapes: none is taken for it"
        in held.manifest.evidence
    )


@pytest.mark.parametrize(
    ("raw", "average", "others"),
    [
        ("params", "ema_params", ("prev_params", "optim/0/mu")),
        ("gen", "gen_ema", ("disc",)),
        ("G/params", "G_ema/params", ("D/params",)),
    ],
)
def test_of_several_sets_that_are_alike_an_average_is_of_the_one_that_it_is_named_after(
    raw: str, average: str, others: tuple[str, ...]
) -> None:
    held = opened({f"{place}/d/w": (2,) for place in (*others, raw, average)} | {"step": ()})
    assert set(held.roles) - {"training", "optimizer"} == {"raw", "average"}
    assert set(held.select(role="raw")) == set(held.select(role="average")) == {"d/w"}


def test_a_layer_that_is_called_an_average_is_no_set() -> None:
    assert opened({"params/ema/kernel": (2, 2), "params/proj/kernel": (2, 2)}).roles == ("raw",)


def test_an_average_of_other_shapes_is_not_paired() -> None:
    assert opened({"params/w": (2,), "ema_params/w": (3,)}).manifest.confidence == "unknown"


def test_several_averages_have_names() -> None:
    held = opened({"params/w": (2,), "ema_fast/w": (2,), "ema_slow/w": (2,)})
    assert set(held.roles) == {"raw", "average:ema_fast", "average:ema_slow"}


def test_the_state_of_an_optimizer_is_never_the_average_of_the_weights() -> None:
    held = opened({"params/w": (2,), "opt_state/0/count": (), "opt_state/0/ema/w": (2,)})
    assert held.select(role="raw").weights[0].path == "w"
    assert set(held.roles) == {"raw", "optimizer"}
    assert "averages updates" in held.manifest.evidence[1]


@pytest.mark.parametrize(
    "place",
    [
        "optim_state",
        "tx",
        "opt_g",
        "g_opt",
        "opt_state_g",
        "optimizer_g",
        "optimizerState",
        "OptState",
        "opt_state2",
        "optax_state",
        "updater",
        "train_opt",
        "sgd_state",
        "whatever",
    ],
)
def test_an_average_in_a_chain_of_optax_is_never_one_of_the_weights(place: str) -> None:
    held = opened({"params/w": (2,), f"{place}/0/count": (), f"{place}/0/ema/w": (2,), f"{place}/1/trace/w": (2,)})
    assert set(held.select(role="raw")) == {"w"}
    assert set(held.roles) == {"raw", "optimizer"}
    assert "averages updates" in held.manifest.evidence[1]


def test_the_moments_of_adam_are_an_optimizer_whatever_their_place_is_called() -> None:
    held = opened({"params/w": (2,), "chain/0/count": (), "chain/0/mu/w": (2,), "chain/0/nu/w": (2,)})
    assert set(held.select(role="raw")) == {"w"}
    assert set(held.roles) == {"raw", "optimizer"}


def moments(*weights: str) -> dict[str, tuple[int, ...]]:
    return {"count": ()} | {f"{m}/{w}": (2,) for m in ("mu", "nu") for w in weights}


@pytest.mark.parametrize(
    "names",
    [
        {"layers/0/kernel": (3, 4), "layers/1/count": (), "layers/1/ema": (4,), "layers/2/kernel": (4, 2)},
        {"encoder/kernel": (3, 4), "blocks/0/kernel": (3, 4), "blocks/1/count": (), "blocks/1/ema": (4,)},
        {"bn/0/count": (), "bn/0/mu": (4,), "bn/0/nu": (4,), "d/kernel": (3, 4)},
        {"params/layers/0/w": (2,)} | {f"params/layers/1/{p}": s for p, s in moments("w").items()},
        {"params/OPT_0/dense/kernel": (3, 4), "params/lm_head/kernel": (4, 9)},
        {"params/opt/0/mu/kernel": (3, 4), "params/optimizer/kernel": (4, 9)},
        {"opt_6b/params/dense/kernel": (3, 4)},
        {"tx/dense/kernel": (2, 3), "rx/dense/kernel": (2, 3)},
    ],
)
def test_what_only_looks_like_an_optimizers_state_is_weights(names: dict[str, tuple[int, ...]]) -> None:
    held = opened(names)
    assert held.roles == ("raw",)
    assert {path.rpartition("params/")[2] for path in names} == {path.rpartition("params/")[2] for path in held}


@pytest.mark.parametrize(
    ("raw", "states"), [("params", ("emas/0", "emas/1")), ("0", ("1",)), ("0", ("1", "2")), ("params", ("emas/0",))]
)
def test_averages_of_optax_in_a_list_are_averages_of_the_weights(raw: str, states: tuple[str, ...]) -> None:
    held = opened({f"{raw}/w": (2,)} | {f"{s}/count": () for s in states} | {f"{s}/ema/w": (2,) for s in states})
    assert sum(role.startswith("average") for role in held.roles) == len(states)
    assert "optimizer" not in held.roles


def test_the_moments_of_adam_in_a_list_beside_its_weights_are_an_optimizer_and_these_are_not() -> None:
    held = opened({"0/w": (2,)} | {f"1/{part}": shape for part, shape in moments("w").items()})
    assert set(held.select(role="raw")) == {"0/w"}
    assert set(held.roles) == {"raw", "optimizer"}


def test_variables_with_statistics_of_their_own_are_an_average_of_such_variables() -> None:
    variables = {"params/d/kernel": (2, 3), "batch_stats/bn/mean": (3,)}
    held = opened(variables | {f"ema/{path}": shape for path, shape in variables.items()} | {"step": ()})
    for role in ("raw", "average"):
        kinds = {w.path: w.kind for w in held.select(role=role).weights}
        assert kinds == {"d/kernel": Kind.TRAINABLE, "bn/mean": Kind.STATISTIC}
    assert set(held.select(role="training")) == {"step"}


def test_statistics_called_as_an_average_belong_to_it() -> None:
    names = {"params/d/k": (2,), "batch_stats/bn/mean": (3,), "ema_params/d/k": (2,), "ema_batch_stats/bn/mean": (3,)}
    held = opened(names)
    assert set(held.roles) == {"raw", "average"}
    assert set(held.select(role="average")) == {"d/k", "bn/mean"}


def test_an_average_among_the_layers_of_the_weights_is_none_of_these() -> None:
    held = opened({"d/kernel": (2, 3), "e/bias": (3,), "ema/d/kernel": (2, 3), "ema/e/bias": (3,), "step": ()})
    assert set(held.select(role="raw")) == set(held.select(role="average")) == {"d/kernel", "e/bias"}
    assert set(held.select(role="training")) == {"step"}


def test_a_part_of_the_model_beside_params_is_not_lost() -> None:
    held = opened({"params/w": (2,), "decoder/w": (3,)})
    assert set(held) == {"params/w", "decoder/w"}


def test_a_step_beside_params_is_training() -> None:
    held = opened({"state/params/w": (2,), "state/step": (), "state/opt_state/0/mu/w": (2,)})
    assert set(held.select(role="raw")) == {"w"}
    assert set(held.roles) == {"raw", "training", "optimizer"}


def test_haikus_averages_alone_keep_their_mangled_names() -> None:
    place = "ema_params_tree/linear__w"
    held = opened({f"{place}/average": (2,), f"{place}/hidden": (2,), f"{place}/counter": ()})
    assert set(held.select(role="average")) == {"linear__w"}
    assert "mangled" in held.manifest.evidence[2]


def test_haikus_names_that_two_weights_make_are_not_paired() -> None:
    place = "ema/a__b__w"
    arrays = {f"{place}/average": (2,), f"{place}/hidden": (2,), f"{place}/counter": ()}
    held = opened(arrays | {"params/a/b/w": (2,), "params/a__b/w": (2,)})
    assert held.roles[0] == "average"


KERAS = {
    "trainable_variables/net/a_b/c": (2,),
    "optimizer_variables/adam/iteration": (),
    "optimizer_variables/adam/net_a_b_c_average": (2,),
}


def test_an_average_by_one_name_is_taken() -> None:
    held = opened(KERAS)
    assert held.select(role="average").weights[0].path == "a_b/c"
    assert held.select(role="average").state is None


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"trainable_variables/net/a/b_c": (2,)}, "would be the average of"),
        ({"trainable_variables/net/a_b/c": (3,)}, "not of one variable of its shape"),
        ({"trainable_variables/net/d/e": (2,)}, "'trainable_variables/net/d/e' has none"),
        ({"optimizer_variables/adam/net_x_average": (2,)}, "would be the average of no variable"),
        ({"optimizer_variables/sgd/net_a_b_c_average": (2,)}, "two are of one variable"),
    ],
)
def test_averages_that_are_not_proved_are_not_taken(more: dict[str, tuple[int, ...]], words: str) -> None:
    held = opened(KERAS | more)
    assert "average" not in held.roles
    assert held.manifest.confidence == "unknown"
    assert words in held.manifest.evidence[0]


def test_a_configuration_without_use_ema_is_believed() -> None:
    config = '{"compile_config": {"optimizer": {"class_name": "Adam", "config": {"use_ema": false}}}}'
    held = opened(KERAS, {"model_config/config": config})
    assert "average" not in held.roles
    assert "without use_ema" in held.manifest.evidence[0]


def test_a_convertible_tree_keeps_every_role(tmp_path: Path) -> None:
    polyak.convert(GOLDEN / "keras", tmp_path / "x.orbax")
    back, source = polyak.open(tmp_path / "x.orbax"), polyak.open(GOLDEN / "keras")
    assert back.roles == source.roles
    assert back.select(role="average").state == source.select(role="average").state
    assert {n: a.tobytes() for n, a in back.items()} == {n: a.tobytes() for n, a in source.items()}


def test_a_place_that_denies_an_average_is_none() -> None:
    assert opened({"params/d/k": (2,), "non_ema_params/d/k": (2,)}).roles == ("raw",)
    assert set(opened({"params/d/k": (2,), "ema_params/d/k": (2,)}).roles) == {"raw", "average"}


@pytest.mark.parametrize("root", ["params/", ""])
def test_layers_that_are_alike_and_called_so_are_no_two_sets(root: str) -> None:
    layers = {f"{root}{layer}/kernel": (2, 3) for layer in ("avg_branch", "max_branch")}
    held = opened(layers | {f"{root}stem/kernel": (5, 2), f"{root}head/kernel": (3, 4)})
    assert held.roles == ("raw",)
    assert {path.rpartition("/")[0].rpartition("/")[2] for path in held} == {"avg_branch", "max_branch", "stem", "head"}


def test_other_models_beside_an_average_leave_it_one() -> None:
    """As of a generator, whose discriminator has none."""
    held = opened({"params/d/k": (2,), "ema_params/d/k": (2,), "critic/c/k": (7, 7), "step": ()})
    assert {"raw", "average"} <= set(held.roles)
