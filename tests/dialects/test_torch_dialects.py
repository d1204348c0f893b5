"""Who wrote a file of PyTorch, and which of its weights are the average: the real tools' files, and look-alikes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import polyak
from polyak import dialects
from polyak.contents import Contents, Tensor
from polyak.errors import AmbiguousRole
from polyak.snapshot import Snapshot
from polyak.weights import Kind

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "torch"

# File, tool, roles of weights, confidence, words of its evidence.
TOOLS = [
    ("averaged_model.pt", "PyTorch AveragedModel", {"average"}, "inferred", "n_averaged = 3"),
    ("averaged_model_both.pt", "PyTorch AveragedModel", {"raw", "average"}, "inferred", "'model' has the same names"),
    ("timm.pt", "timm", {"raw", "average"}, "inferred", "a decay of 0.9"),
    ("ema_pytorch.pt", "ema-pytorch", {"raw", "average"}, "inferred", "step = 3"),
    ("ema_pytorch_alone.pt", "ema-pytorch", {"average"}, "inferred", "does not include the model"),
    ("torch_ema.pt", "torch-ema", {"average"}, "inferred", "decay = 0.9, num_updates = 3"),
    ("torch_ema_both.pt", "torch-ema", {"raw", "average"}, "inferred", "all shapes of the parameters in 'model'"),
    ("diffusers.pt", "diffusers", {"average"}, "inferred", "optimization_step = 3"),
    ("lightning.ckpt", "Lightning", {"raw", "average"}, "inferred", "the average was saved as the model"),
    ("mmengine.pt", "mmengine", {"raw", "average"}, "inferred", "it swaps the two before it saves"),
    ("lit_ema.ckpt", "LitEma", {"raw", "average"}, "inferred", "model_ema.decay = 0.9999"),
    ("own_ema.pt", "PyTorch", {"raw", "average"}, "inferred", "some tools save the two swapped"),
    ("ema_0.9999_000003.pt", "PyTorch", {"average"}, "inferred", "an average with decay 0.9999"),
    ("plain.pt", "PyTorch", {"raw"}, "unknown", "without a word on whether it is an average"),
]


@pytest.mark.parametrize(("file", "tool", "roles", "confidence", "words"), TOOLS, ids=[t[0] for t in TOOLS])
def test_each_tools_file_is_told_apart(file: str, tool: str, roles: set[str], confidence: str, words: str) -> None:
    held = polyak.open(GOLDEN / file)
    assert held.manifest.tool == tool
    assert set(held.roles) - {"optimizer", "training"} == roles
    assert held.manifest.confidence == confidence
    assert words in "; ".join(held.manifest.evidence)


@pytest.mark.parametrize("file", [t[0] for t in TOOLS])
def test_each_set_has_the_names_and_the_bits_that_the_tool_held(file: str) -> None:
    held, wanted = polyak.open(GOLDEN / file), expected(file)
    assert set(wanted) == set(held.roles) - {"optimizer", "training"}
    for role, arrays in wanted.items():
        part = held.select(role=role)
        assert set(part) == set(arrays)
        for name, array in arrays.items():
            assert (part[name].dtype, part[name].shape) == (array.dtype, array.shape)
            assert part[name].tobytes() == array.tobytes()


def expected(file: str) -> dict[str, dict[str, np.ndarray]]:
    """What the tool held in memory, by role and name."""
    sets: dict[str, dict[str, np.ndarray]] = {}
    with np.load(GOLDEN / f"{file.rpartition('.')[0]}.npz") as stored:
        for key in stored.files:
            role, _, name = key.partition("/")
            sets.setdefault(role, {})[name] = stored[key]
    return sets


def test_raw_and_average_differ_in_the_golden_files() -> None:
    """Else a dialect that swaps them would not be noticed."""
    for file, *_ in TOOLS:
        wanted = expected(file)
        if set(wanted) == {"raw", "average"}:
            assert any(wanted["raw"][n].tobytes() != wanted["average"][n].tobytes() for n in wanted["raw"])


def test_a_file_with_both_sets_asks_which() -> None:
    with pytest.raises(AmbiguousRole, match="received 'raw' and 'average'"):
        polyak.open(GOLDEN / "timm.pt").select(include="conv.*")


def test_optimizer_state_is_no_weight() -> None:
    held = polyak.open(GOLDEN / "lightning.ckpt")
    assert all("optimizer_states/0/state" in name for name in held.select(role="optimizer"))
    assert len(held.select(role="optimizer")) == 18


def test_kinds_tell_statistics_and_counters() -> None:
    kinds = {w.path: w.kind for w in polyak.open(GOLDEN / "plain.pt").weights}
    assert kinds["norm.running_mean"] == kinds["norm.running_var"] == Kind.STATISTIC
    assert (kinds["norm.num_batches_tracked"], kinds["norm.weight"]) == (Kind.COUNTER, Kind.TRAINABLE)


def test_no_rule_is_made_up_where_the_file_has_none() -> None:
    for file, *_ in TOOLS:
        assert not any(polyak.open(GOLDEN / file).manifest.roles.values())


def test_the_manifest_survives_polyaks_own_file(tmp_path: Path) -> None:
    polyak.save(polyak.open(GOLDEN / "mmengine.pt"), tmp_path / "a.safetensors")
    again = polyak.open(tmp_path / "a.safetensors")
    assert set(again.roles) == {"raw", "average"}
    assert again.manifest.evidence == polyak.open(GOLDEN / "mmengine.pt").manifest.evidence


# --- look-alikes: a name alone proves nothing ------------------------------------------------------------------------


def opened(arrays: dict[str, np.ndarray], origin: str = "file 'a.pt'", **facts: object) -> Snapshot:
    tensors = {name: Tensor(a.shape, a.dtype.name, a.copy) for name, a in arrays.items()}
    return dialects.interpret(
        Contents(origin, "torch", tensors, facts={k.replace("__", "/"): v for k, v in facts.items()})
    )


W, V, N = np.ones((2, 3), np.float32), np.ones(4, np.float32), np.array(5)


@pytest.mark.parametrize(
    "arrays",
    [
        {"module.w": W, "n_averaged": N, "other": V},  # not all in module.
        {"module.w": W, "n_averaged": np.array(5.0)},  # no whole number
        {"state_dict/w": W, "state_dict_ema/w": V},  # shapes differ
        {"state_dict/w": W, "current_model_state/w": W},  # no count
        {"state_dict/w": W, "ema_state_dict/module.v": W, "ema_state_dict/steps": N},  # names differ
        {"ema_model.w": W, "online_model.v": V, "initted": N, "step": N},  # names differ
        {
            "model.a.b": W,
            "model.ab": W,
            "model_ema.ab": W,
            "model_ema.decay": N,
            "model_ema.num_updates": N,
        },  # ambiguous
        {"model.ab": W, "model_ema.cd": W, "model_ema.decay": N, "model_ema.num_updates": N},  # no weight of that name
    ],
)
def test_names_without_the_structure_claim_nothing(arrays: dict[str, np.ndarray]) -> None:
    held = opened(arrays)
    assert "average" not in held.roles
    assert held.manifest.confidence == "unknown"


def test_two_sets_alike_without_a_word_stay_under_their_own_keys() -> None:
    held = opened({"model/w": W, "backup/w": W})
    assert set(held) == {"model/w", "backup/w"}
    assert held.roles == ("raw",)


def test_several_averages_are_told_apart_by_their_keys() -> None:
    held = opened({"model/w": W, "ema_0.99/w": 2 * W, "ema_0.999/w": 3 * W})
    assert held.roles == ("raw", "average:ema_0.99", "average:ema_0.999")
    assert held["average:ema_0.999/w"].tolist() == (3 * W).tolist()


@pytest.mark.parametrize("keys", [("model", "ema/shadow"), ("state_dict", "ema"), ("net", "shadow")])
def test_an_average_of_the_parameters_alone_is_completed_from_its_model(keys: tuple[str, str], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    model(torch.rand(5, 3))
    shadow = {n: torch.nn.Parameter(p.detach() + 1) for n, p in model.named_parameters()}
    raw, average = keys
    owner, _, last = average.rpartition("/")
    beside = {owner: {"decay": 0.9, last: shadow}} if owner else {last: shadow}
    torch.save({raw: model.state_dict(), **beside}, tmp_path / "a.pt")
    held = polyak.open(tmp_path / "a.pt")
    assert (held.roles, held.manifest.confidence) == (("raw", "average"), "inferred")
    assert held.manifest.evidence[0] == (
        f"{average!r} has the names and shapes of {raw!r} but for 1.running_mean and 2 more, which it takes from "
        "there, and is called an average by its writer"
    )
    target = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    with pytest.raises(AmbiguousRole):
        polyak.transfer(tmp_path / "a.pt", target)
    polyak.transfer(tmp_path / "a.pt", target, weights="average")
    for name, value in target.state_dict().items():
        assert torch.equal(value, shadow.get(name, model.state_dict()[name]))


def test_an_average_that_lacks_parameters_is_not_completed_with_raw_ones(tmp_path: Path) -> None:
    """``named_parameters()`` has a weight with two names once, and ``state_dict()`` has it twice."""
    torch = pytest.importorskip("torch")
    source, target = (torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)) for _ in range(2))
    for model in (source, target):
        model[1].weight = model[0].weight
    shadow = {n: p.detach() + 1 for n, p in source.named_parameters()}
    torch.save({"model": source.state_dict(), "ema": shadow}, tmp_path / "a.pt")
    held = polyak.open(tmp_path / "a.pt")
    assert set(held.select(role="average")) == set(shadow)
    assert "but for 1.weight, which it lacks, and is called an average" in held.manifest.evidence[0]
    polyak.transfer(tmp_path / "a.pt", target, weights="average")
    assert all(torch.equal(p, shadow[n]) for n, p in target.named_parameters())


def test_an_average_of_some_weights_belongs_to_the_model_that_has_no_others_if_there_is_one() -> None:
    held = opened({"model/w": W, "model/v": V, "part/w": W, "ema/w": 2 * W})
    assert held.roles == ("raw", "average", "training")
    assert set(held.select(role="average")) == set(held.select(role="raw")) == {"w"}
    assert opened({"model/w": W, "model/v": V, "other/w": W, "other/x": V, "ema/w": 2 * W}).roles == ("raw", "training")
    assert opened({"model/w": W, "model/v": V, "ema/w": V}).roles == ("raw", "training")


def test_an_average_beside_two_models_alike_claims_nothing() -> None:
    assert opened({"model/w": W, "teacher/w": W, "backup/w": W}).roles == ("raw",)


def test_several_sets_keep_their_keys() -> None:
    held = opened({"generator/w": W, "discriminator/v": V})
    assert set(held) == {"generator/w", "discriminator/v"}


def test_a_list_without_a_decay_is_no_average() -> None:
    assert "average" not in opened({"shadow_params/0": W}).roles
    assert set(opened({"shadow_params/0": W, "shadow_params/1": V}, decay=0.9)) == {"#0", "#1"}
    assert "average" not in opened({"shadow_params/0": W, "shadow_params/2": V}, decay=0.9).roles  # a gap


def test_a_list_that_does_not_fit_the_model_is_numbered() -> None:
    held = opened({"model/a": W, "model/b": V, "ema/shadow_params/0": V, "ema/shadow_params/1": W}, ema__decay=0.9)
    assert set(held.select(role="average")) == {"#0", "#1"}
    assert set(held.select(role="raw")) == {"a", "b"}


def with_aside(model: np.ndarray, shadow: np.ndarray, aside: np.ndarray) -> Snapshot:
    """What torch-ema's ``state_dict()`` is beside a model, once it has put weights aside."""
    lists = {"ema/shadow_params": (shadow, V), "ema/collected_params": (aside, V)}
    arrays = {f"{name}/{i}": a for name, held in lists.items() for i, a in enumerate(held)}
    return opened({"model/a": model, "model/b": V} | arrays, ema__decay=0.9)


def test_shadows_that_have_names_are_a_set() -> None:
    held = opened({"model/a": W, "model/b": V, "ema/shadow_params/a": 2 * W, "ema/shadow_params/b": V}, ema__decay=0.9)
    assert held.roles == ("raw", "average")
    assert held["average/a"].tolist() == (2 * W).tolist()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_averages_within_a_network_are_found_in_what_runs_it(prefix: str) -> None:
    lit = {"model.a.b": W, "model_ema.ab": 2 * W, "model_ema.decay": np.array(0.9), "model_ema.num_updates": N}
    held = opened({f"state_dict/{prefix}{name}": array for name, array in lit.items()})
    assert (held.manifest.tool, held.roles) == ("LitEma", ("raw", "average"))
    assert held["average/model.a.b"].tolist() == (2 * W).tolist()
    swapped = {f"ema_state_dict/{prefix}module.a": W, f"ema_state_dict/{prefix}steps": N, "state_dict/a": 2 * W}
    held = opened(swapped)
    assert (held.manifest.tool, held["average/a"].tolist()) == ("mmengine", (2 * W).tolist())


def test_a_model_that_holds_its_average_while_it_is_saved_has_its_raw_weights_where_they_were_put_aside() -> None:
    held = with_aside(model=2 * W, shadow=2 * W, aside=W)
    assert held["raw/a"].tolist() == W.tolist()
    assert held["average/a"].tolist() == (2 * W).tolist()
    assert held["raw/b"].tolist() == held["average/b"].tolist() == V.tolist()
    assert held.roles == ("raw", "average")
    assert "that average_parameters() put aside" in held.manifest.evidence[-1]


def test_a_model_that_has_its_weights_back_keeps_them() -> None:
    held = with_aside(model=3 * W, shadow=2 * W, aside=W)
    assert held["raw/a"].tolist() == (3 * W).tolist()
    assert held["average/a"].tolist() == (2 * W).tolist()
    assert held["training/ema/collected_params/0"].tolist() == W.tolist()
    assert not any("exchanged" in line for line in held.manifest.evidence)


def test_a_model_that_holds_its_average_is_told_where_nothing_was_put_aside() -> None:
    """As between ``copy_to`` and ``restore`` of diffusers, whose ``state_dict()`` leaves out what is aside."""
    alike = pickled_diffusers({"unet/a": 2 * W, "unet/b": V}, shadow=2 * W)
    assert alike.roles == ("raw", "average")
    assert "'unet' holds the average's values in all 2 parameters" in alike.manifest.evidence[-1]
    assert any(f.what == "raw and average may be exchanged: ambiguous" for f in polyak.doctor(alike))
    other = pickled_diffusers({"unet/a": W, "unet/b": V}, shadow=2 * W)
    assert not any("holds" in line for line in other.manifest.evidence)


def test_weights_that_were_put_aside_and_tell_nothing_are_said() -> None:
    held = with_aside(model=W, shadow=W, aside=W)
    assert "exchanged for the average; the file cannot tell" in held.manifest.evidence[-1]
    assert any("exchanged" in f"{f.what} {f.evidence}" for f in polyak.doctor(held))


def pickled_diffusers(model: dict[str, np.ndarray], shadow: np.ndarray, aside: np.ndarray | None = None) -> Snapshot:
    """A pickled ``EMAModel`` between ``store()`` and ``restore()``; its ``state_dict()`` leaves out what is aside."""
    lists = {"ema/shadow_params": (shadow, V)} | ({} if aside is None else {"ema/temp_stored_params": (aside, V)})
    arrays = {f"{name}/{i}": a for name, held in lists.items() for i, a in enumerate(held)}
    return opened(model | arrays, ema__decay=0.9, ema__optimization_step=3)


def test_what_diffusers_has_put_aside_is_raw_where_the_model_holds_its_average() -> None:
    held = pickled_diffusers({"model/a": 2 * W, "model/b": V}, shadow=2 * W, aside=W)
    assert held["raw/a"].tolist() == W.tolist()
    assert held["average/a"].tolist() == (2 * W).tolist()
    assert held.roles == ("raw", "average")
    assert "temp_stored_params the raw weights that store() put aside" in held.manifest.evidence[-1]


def test_what_diffusers_has_put_aside_is_raw_without_a_model_beside_it() -> None:
    held = pickled_diffusers({}, shadow=2 * W, aside=W)
    assert held["raw/#0"].tolist() == W.tolist()
    assert held["average/#0"].tolist() == (2 * W).tolist()
    assert held.roles == ("raw", "average")


def test_a_model_that_may_hold_its_average_is_said_where_no_name_is_known() -> None:
    held = pickled_diffusers({"model/a": 2 * W, "model/b": V, "model/c": V}, shadow=2 * W, aside=W)
    assert set(held.select(role="average")) == {"#0", "#1"}
    assert "exchanged for the average; the file cannot tell" in held.manifest.evidence[-1]


def test_nemos_average_in_the_optimizer_gets_the_models_names() -> None:
    arrays = {
        "state_dict/a": W,
        "state_dict/b": V,
        "optimizer_states/0/ema/0": 2 * W,
        "optimizer_states/0/ema/1": 2 * V,
    }
    held = opened(arrays, optimizer_states__0__decay=0.99)
    assert held.manifest.tool == "NeMo"
    assert held["average/a"].tolist() == (2 * W).tolist()
    assert held["raw/a"].tolist() == W.tolist()


def test_nemos_twin_file_is_an_average_by_its_name() -> None:
    assert opened({"state_dict/a": W}, "file 'runs/step=5-EMA.ckpt'").roles == ("average",)
    assert opened({"state_dict/a": W}, "file 'runs/step=5.ckpt'").roles == ("raw",)


def test_an_optimizers_own_file_holds_no_weights() -> None:
    assert opened({"state/0/exp_avg": W, "state/0/step": N}).roles == ("optimizer",)


@pytest.mark.parametrize("key", ["model_non_ema", "non_averaged", "pre_ema", "no-ema", "before.ema"])
def test_a_key_that_denies_an_average_is_none(key: str) -> None:
    assert "average" not in opened({"model/a": W, f"{key}/a": 2 * W}).roles
    assert opened({"model/a": W, "model_ema/a": 2 * W}).roles == ("raw", "average")


@pytest.mark.parametrize(("key", "role"), [("ema", "average"), ("model_ema", "average"), ("non_ema", "raw")])
def test_the_only_set_is_what_its_writer_called_it(key: str, role: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    values = torch.nn.Linear(2, 2).state_dict()
    torch.save({"epoch": 1, "best_fitness": 0.3, "model": None, key: values, "updates": 100}, tmp_path / "last.pt")
    held = polyak.open(tmp_path / "last.pt")
    assert held.roles[0] == role
    assert held.manifest.confidence == ("inferred" if role == "average" else "unknown")
    target = torch.nn.Linear(2, 2)
    polyak.transfer(tmp_path / "last.pt", target, weights=role)
    assert torch.equal(target.weight, values["weight"])
