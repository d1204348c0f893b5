"""Weights between models, averages and files: they arrive bit for bit, or an error says why and nothing has changed."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyak
from polyak.errors import (
    AmbiguousMatch,
    DtypeMismatch,
    MissingWeight,
    NonFinite,
    PolyakError,
    RuleError,
    ShapeMismatch,
    UnbuiltModel,
    UnexpectedWeight,
    WeightError,
)

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

layers = keras.layers
X = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(64, 2)).astype(np.float32)


class Net(keras.Model):
    """Trainable weights, moving statistics, and the seed of a dropout."""

    def __init__(self, units: int = 4, dtype: str = "float32") -> None:
        super().__init__(dtype=dtype)
        self.body = layers.Dense(units, dtype=dtype)
        self.norm = layers.BatchNormalization(dtype=dtype)
        self.drop = layers.Dropout(0.5, dtype=dtype)
        self.head = layers.Dense(2, dtype=dtype)

    def call(self, x: Any, training: bool = False) -> Any:
        return self.head(self.drop(self.norm(self.body(x), training=training), training=training))


def net(units: int = 4, dtype: str = "float32") -> Any:
    model = Net(units, dtype)
    model(X[:2])
    return model


def chain(*names: str, dtype: str = "float32") -> Any:
    """Dense layers of one shape with the given names."""
    model = keras.Sequential([layers.Dense(3, name=name, dtype=dtype) for name in names])
    model.build((None, 3))
    return model


def bits(source: Any) -> dict[str, bytes]:
    """The bits of all weights, by path; of an average its rule and counts too."""
    if isinstance(source, polyak.Average):
        return arrays(source.snapshot()) | {"": repr((source.rule, source.count, source.skipped)).encode()}
    return arrays(polyak.snapshot(source))


def arrays(held: Mapping[str, Any]) -> dict[str, bytes]:
    return {path: value.tobytes() for path, value in held.items()}


def train(model: Any, ema: polyak.Average, optimizer: Any, steps: range) -> None:
    for step in steps:
        rows = slice(step % 4 * 16, step % 4 * 16 + 16)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(X[rows], training=True) - Y[rows]) ** 2)
        weights = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        ema.update()


def tracked(rule: str = "ema:0.9", steps: int = 5) -> tuple[Any, polyak.Average, Any]:
    model = net()
    ema = polyak.track(model, rule)
    optimizer = keras.optimizers.Adam(0.01)
    train(model, ema, optimizer, range(steps))
    return model, ema, optimizer


@pytest.fixture(scope="module")
def trained() -> tuple[Any, polyak.Average]:
    """A trained model and its average, to read from."""
    keras.utils.set_random_seed(1)
    model, ema, _ = tracked("ema:0.6", 40)
    return model, ema


# --- between any two of model, average, file -------------------------------------------------------------------------


@pytest.fixture(params=["memory", "file"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A source as it is, or by way of a file."""

    def source(live: Any) -> Any:
        if request.param == "memory":
            return live
        polyak.save(live, tmp_path / "x.safetensors")
        return tmp_path / "x.safetensors"

    return source


def test_model_to_model(trained: Any, way: Any) -> None:
    model, _ = trained
    other = net()
    receipt = polyak.transfer(way(model), other)
    assert bits(other) == bits(model)
    assert (receipt.role, receipt.count, len(receipt.moved)) == ("raw", None, len(model.variables))


def test_average_to_model(trained: Any, way: Any) -> None:
    model, ema = trained
    other, before = net(), bits(model)
    receipt = polyak.transfer(way(ema), other)
    assert bits(other) == arrays(ema.values())
    with ema.applied():
        assert np.array_equal(model(X), other(X))
    assert (receipt.role, receipt.count, receipt.nbytes) == ("average", 40, ema.nbytes)
    assert bits(model) == before != bits(other)


def test_average_to_average_carries_values_counts_and_rule(trained: Any, way: Any) -> None:
    _, ema = trained
    other = polyak.SWA(net())
    polyak.transfer(way(ema), other)
    assert bits(other) == bits(ema)
    assert (other.count, other.skipped, other.rule) == (40, 0, polyak.parse("ema:0.6"))


def test_skipped_updates_are_carried(way: Any) -> None:
    model, ema, _ = tracked(steps=2)
    good = model.head.bias.numpy()
    model.head.bias.assign([np.nan, 0.0])
    with pytest.warns(polyak.errors.NonFiniteWarning):
        ema.update()
    model.head.bias.assign(good)
    other = polyak.EMA(net(), decay=0.9)
    polyak.transfer(way(ema), other)
    assert (other.count, other.skipped) == (2, 1)


def test_model_to_average_starts_to_count_anew(trained: Any, way: Any) -> None:
    model, _ = trained
    _, other, _ = tracked(steps=3)
    receipt = polyak.transfer(way(model), other, weights="raw")
    assert (other.count, other.skipped, other.rule, receipt.count) == (0, 0, polyak.parse("ema:0.9"), None)
    assert arrays(other.values()) == bits(model)


def test_a_file_from_which_an_average_would_begin_anew_is_refused_unless_that_is_asked_for(
    trained: Any, tmp_path: Path
) -> None:
    model, _ = trained
    _, other, _ = tracked(steps=3)
    before = bits(other)
    polyak.save(model, tmp_path / "raw.safetensors")
    for source in (tmp_path / "raw.safetensors", polyak.open(tmp_path / "raw.safetensors")):
        with pytest.raises(polyak.errors.RuleError) as caught:
            polyak.transfer(source, other)
        assert str(caught.value) == (
            f"file '{tmp_path / 'raw.safetensors'}': expected the rule and count of an average, from which ema:0.9 of "
            "Net goes on, received raw weights\n"
            'hint: weights="raw" lets it begin anew; ema.set_values(snapshot) takes values, and the count stays'
        )
    assert bits(other) == before


def test_average_to_file_and_back(trained: Any, tmp_path: Path) -> None:
    _, ema = trained
    receipt = polyak.transfer(ema, tmp_path / "a.safetensors")
    other = polyak.EMA(net(), decay=0.9)
    assert polyak.transfer(tmp_path / "a.safetensors", other).digest == receipt.digest
    assert bits(other) == bits(ema)


def test_raw_weights_of_an_average_can_be_asked_for(trained: Any) -> None:
    model, ema = trained
    other = net()
    polyak.transfer(ema, other, weights="raw")
    assert bits(other) == bits(model)


@pytest.mark.parametrize("rule", ["ema:0.9", "ema:0.9,start=debiased", "mean,every=3"])
def test_another_average_goes_on_exactly_as_the_first_would_have(rule: str, way: Any) -> None:
    """The model, the optimizer and the seeds go over too; then both train on with the same data."""
    model, ema, optimizer = tracked(rule)
    model2, optimizer2 = net(), keras.optimizers.Adam(0.01)
    ema2 = polyak.track(model2, "copy")
    optimizer2.build(model2.trainable_variables)
    polyak.transfer(way(model), model2)
    polyak.transfer(way(ema), ema2)
    for mine, theirs in zip(optimizer2.variables, optimizer.variables, strict=True):
        mine.assign(theirs)
    at_hand_over = bits(ema)
    train(model, ema, optimizer, range(5, 12))
    train(model2, ema2, optimizer2, range(5, 12))
    assert bits(model2) == bits(model)
    assert bits(ema2) == bits(ema) != at_hand_over
    assert ema2.count == 12


def test_rules_by_part_are_carried() -> None:
    model = net()
    ema = polyak.track(model, {"body/*": "ema:0.9", "*": "mean"})
    ema.update()
    other = polyak.track(net(), "copy")
    polyak.transfer(ema, other)
    assert (str(other.rule), other.count) == (str(ema.rule), 1)


def test_a_rule_that_does_not_fit_is_refused_and_undone() -> None:
    ema = polyak.track(chain("a", "b"), {"a/*": "ema:0.9", "b/*": "mean"})
    other = polyak.track(chain("c", "d"), "copy")
    before = bits(other)
    with pytest.raises(RuleError, match="'c/kernel': expected a rule"):
        polyak.transfer(ema, other, rename={"a/*": "c/*", "b/*": "d/*"})
    assert bits(other) == before


def test_a_model_can_be_its_own_source() -> None:
    """Layers exchanged in place: each value is read before it is overwritten."""
    model = chain("a", "b", "c")
    before = bits(model)
    receipt = polyak.transfer(model, model, rename={"a/*": "b/*", "b/*": "c/*", "c/*": "a/*"})
    after = bits(model)
    for new, old in {"b": "a", "c": "b", "a": "c"}.items():
        assert after[f"{new}/kernel"] == before[f"{old}/kernel"]
    assert len(receipt.renamed) == 6


# --- targets that differ: refused, and what was asked for ------------------------------------------------------------


def refused(error: type[PolyakError], source: Any, target: Any, **asked: Any) -> str:
    """The text of the error; the target's bits are what they were (K18)."""
    before = bits(target)
    with pytest.raises(error) as caught:
        polyak.transfer(source, target, **asked)
    assert bits(target) == before
    assert type(caught.value) is error
    return str(caught.value)


def test_a_renamed_weight() -> None:
    source, target = chain("one", "old"), chain("one", "new")
    assert refused(MissingWeight, source, target) == (
        f"weight 'new/kernel': expected (3, 3) float32 for Sequential '{target.name}', received nothing from "
        f"Sequential '{source.name}' (and 1 more); nearest: 'old/kernel'\n"
        'hint: pair them with rename={"old/*": "new/*"}, or all by their order with by="position"'
    )


def of_names(*names: str) -> polyak.Snapshot:
    return polyak.Snapshot.from_arrays({name: np.ones(2, np.float32) for name in names})


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (("net/a/w", "net/b/w", "c/w"), 'pair them with rename={"net/*": "*"}'),
        (("net/a/w", "net/b/w", "net/x/w", "c/w"), 'pair them with rename={"net/*": "*"}'),
        (("net/a/w", "net/x/w", "c/w"), 'pair them with rename={"net/a/w": "a/w"}'),
        (("xa/w", "xb/w", "c/w"), 'pair them with rename={"xa/w": "a/w"}'),
        (("net/a/w", "b/w", "c/w"), 'pair them with rename={"net/a/w": "a/w"}'),
    ],
    ids=["a prefix", "more than is missing", "less than is missing", "no whole step", "one alone"],
)
def test_the_hint_of_a_missing_weight_pairs_all_that_differ_by_a_prefix(names: tuple[str, ...], hint: str) -> None:
    target = tf.Module()
    for name in "abc":
        setattr(target, name, tf.Module())
        getattr(target, name).w = tf.Variable(tf.zeros(2))
    with pytest.raises(MissingWeight) as caught:
        polyak.transfer(of_names(*names), target)
    assert str(caught.value.hint).startswith(hint)


@pytest.mark.parametrize(
    "asked",
    [
        {"rename": {"old/*": "new/*"}},
        {"rename": {"old/kernel": "new/kernel", "old/bias": "new/bias"}},
        {"rename": lambda path: path.replace("old", "new")},
        {"by": "position"},
    ],
    ids=["glob", "names", "function", "by position"],
)
def test_a_renamed_weight_as_asked(asked: Mapping[str, Any]) -> None:
    source, target = chain("one", "old"), chain("one", "new")
    receipt = polyak.transfer(source, target, **asked)
    assert [(m.source, m.target) for m in receipt.renamed] == [("old/kernel", "new/kernel"), ("old/bias", "new/bias")]
    assert list(bits(target).values()) == list(bits(source).values())


def test_stars_of_a_rename_fill_the_new_name_in_order() -> None:
    source, target = chain("enc_q_1", "enc_k_2"), chain("q1", "k2")
    receipt = polyak.transfer(source, target, rename={"enc_*_*/*": "**/*"})
    assert [m.target for m in receipt.moved] == ["q1/kernel", "q1/bias", "k2/kernel", "k2/bias"]
    assert len(receipt.renamed) == 4


def test_a_rename_goes_before_other_evidence() -> None:
    source, target = chain("a", "b"), chain("c", "d")
    receipt = polyak.transfer(source, target, rename={"a/*": "d/*", "b/*": "c/*"})
    assert {m.target: m.source for m in receipt.moved}["d/kernel"] == "a/kernel"


def test_a_rename_that_cannot_be_meant() -> None:
    source, target = chain("one", "old"), chain("one", "new")
    assert refused(MissingWeight, source, target, rename={"olt/*": "new/*"}) == (
        f"rename='olt/*': expected a weight of Sequential '{source.name}', received a name of none; "
        "nearest: 'old/bias'\n"
        'hint: rename maps source names to target names: rename={"old/*": "new/*"}'
    )
    assert refused(AmbiguousMatch, source, target, rename={"old/*": "one/*"}) == (
        "weight 'one/kernel': expected one of this name, received 'one/kernel' and 'old/kernel'\n"
        "hint: give each a name of its own with rename=; exclude= leaves one out by its new name"
    )
    assert refused(WeightError, source, target, rename={"old/*": "new/*/*"}) == (
        "rename={'old/*': 'new/*/*'}: expected 1 star in the new name, received 2\n"
        'hint: write for example rename={"enc/*": "encoder/*"}'
    )
    assert refused(WeightError, source, target, rename=lambda path: None) == (
        "weight 'one/kernel': expected a name from the rename function, received None"
    )


def test_what_is_excluded_by_a_name_of_the_target_is_not_left_out_of_the_source_under_its_old_name() -> None:
    """`a` of the source is `net/a` of the target, whose own `a` is another layer."""
    asked: Any = {"rename": {"a/w": "net/a/w"}, "exclude": ["a/w", "b/w"]}
    plan = polyak.plan(of_names("a/w", "b/w"), of_names("net/a/w", "a/w"), **asked)
    assert [(m.source, m.target) for m in plan.moves] == [("a/w", "net/a/w")]
    assert plan.skipped == ("a/w", "b/w")


def test_the_hint_leaves_out_what_was_renamed_by_its_new_name_where_the_target_has_the_old_one() -> None:
    source, target = of_names("a/w", "net/a/w"), of_names("a/w")
    with pytest.raises(UnexpectedWeight) as caught:
        polyak.plan(source, target, rename={"a/w": "unused/a/w", "net/a/w": "a/w"})
    assert caught.value.hint == 'leave it out with exclude="unused/a/w"'


def test_hints_lead_from_a_model_with_its_head_to_one_that_holds_it_and_has_another_head() -> None:
    """The head of the source is renamed with all else, and has the name of the target's own."""
    body = {"a/kernel": (4, 3), "b/kernel": (3, 3)}
    source, target = [
        polyak.Snapshot.from_arrays({path: np.ones(shape, np.float32) for path, shape in held.items()})
        for held in (
            body | {"head/kernel": (3, 5)},
            {f"backbone/{path}": shape for path, shape in body.items()} | {"head/kernel": (3, 2)},
        )
    ]
    asked: Any = {}
    for name, value, hint in (
        ("rename", {"*": "backbone/*"}, 'pair them with rename={"*": "backbone/*"}'),
        ("exclude", ["head/kernel"], 'leave it as it is with exclude="head/kernel"'),
        ("exclude", ["head/kernel", "backbone/head/kernel"], 'leave it out with exclude="backbone/head/kernel"'),
    ):
        with pytest.raises((MissingWeight, UnexpectedWeight)) as caught:
            polyak.plan(source, target, **asked)
        assert caught.value.hint == hint
        asked[name] = value
    assert [m.target for m in polyak.plan(source, target, **asked).moves] == ["backbone/a/kernel", "backbone/b/kernel"]


def test_no_rename_to_a_weight_of_another_shape_is_suggested() -> None:
    arrays = {"head/kernel": np.ones((4, 3), np.float32)}
    with pytest.raises(MissingWeight) as caught:
        polyak.plan(polyak.Snapshot.from_arrays(arrays), polyak.Snapshot.from_arrays({"heads/kernel": np.ones((4, 7))}))
    assert str(caught.value).endswith(
        "nearest: 'head/kernel' of (4, 3)\nhint: leave it as it is with exclude=\"heads/kernel\""
    )


def test_an_extra_weight() -> None:
    source, target = chain("one", "two"), chain("one")
    assert refused(UnexpectedWeight, source, target) == (
        f"weight 'two/kernel': expected no such weight for Sequential '{target.name}', received (3, 3) float32 from "
        f"Sequential '{source.name}' (and 1 more)\n"
        'hint: leave all of them out with exclude="two/*"'
    )
    receipt = polyak.transfer(source, target, exclude="two/*")
    assert (len(receipt.moved), receipt.skipped) == (2, ("two/kernel", "two/bias"))
    assert bits(target) == {p: b for p, b in bits(source).items() if p.startswith("one/")}


def test_a_rename_that_takes_a_name_away_is_named_as_the_cause() -> None:
    source, target = chain("one", "two"), chain("one", "two")
    assert refused(MissingWeight, source, target, rename={"two/*": "three/*"}) == (
        f"weight 'two/kernel': expected (3, 3) float32 for Sequential '{target.name}', received nothing from "
        f"Sequential '{source.name}' (and 1 more), where rename= or by= gave it another name\n"
        'hint: leave it out of rename=, or pair by="path"'
    )


def test_names_that_say_nothing_are_paired_by_their_order_in_the_hint() -> None:
    source, target = chain("enc", "mid"), chain("first", "second")
    for old, new in (("enc", "first"), ("mid", "second")):
        said = refused(MissingWeight, source, target, rename={"enc/*": "first/*"} if old == "mid" else None)
        assert f'pair them with rename={{"{old}/' in said
        assert f': "{new}/' in said
    said = refused(MissingWeight, chain("decoder", "encoder"), chain("enc", "dec"))
    assert 'rename={"encoder/kernel": "enc/kernel"}' in said  # these names do say something


@pytest.mark.parametrize(
    ("old", "new"), [("kqv", ["query", "key", "value"]), (["k_proj", "q_proj", "v_proj"], "qkv"), ("ab", ["x", "y"])]
)
def test_a_hint_that_is_followed_pairs_what_is_meant(old: Any, new: Any) -> None:
    """A name that begins the other one is it; of names that have nothing in common the order tells."""
    source, target = chain(*old), chain(*new)
    rename: dict[str, str] = {}
    while more := hinted(source, target, rename):
        rename |= more
    found = bits(target)
    for path, value in bits(source).items():
        layer, _, local = path.partition("/")
        begun = [n for n in new if n.startswith(layer) or layer.startswith(n)]
        assert found[f"{begun[0] if begun else list(new)[list(old).index(layer)]}/{local}"] == value


def hinted(source: Any, target: Any, rename: dict[str, str]) -> dict[str, str]:
    """What else to rename; nothing once it has worked."""
    try:
        polyak.transfer(source, target, rename=rename)
    except MissingWeight as error:
        return ast.literal_eval(re.search(r"rename=({.*?})", str(error))[1])  # type: ignore[index, no-any-return]
    return {}


def test_the_order_is_a_hint_only_where_it_would_be_taken() -> None:
    class Two(tf.Module):
        def __init__(self, *names: str) -> None:
            super().__init__()
            for name in names:
                setattr(self, name, tf.Variable([1.0, 2.0]))

    said = refused_module(Two("p", "q"), Two("a", "b"))
    assert "names do not tell which it is of 'p', 'q'" in said
    assert "by=" not in said
    assert "rename={" not in said


def refused_module(source: Any, target: Any) -> str:
    with pytest.raises(MissingWeight) as caught:
        polyak.transfer(source, target)
    return str(caught.value)


def test_a_missing_weight() -> None:
    source, target = chain("one"), chain("one", "two")
    assert refused(MissingWeight, source, target) == (
        f"weight 'two/kernel': expected (3, 3) float32 for Sequential '{target.name}', received nothing from "
        f"Sequential '{source.name}' (and 1 more)\n"
        'hint: leave it as it is with exclude="two/kernel"'
    )
    before = bits(target)
    receipt = polyak.transfer(source, target, exclude="two/*")
    assert receipt.skipped == ("two/kernel", "two/bias")
    assert bits(target) == before | bits(source)


@pytest.mark.parametrize("asked", [{"include": "body/*"}, {"exclude": ["norm/*", "head/*", "drop/*"]}])
def test_a_part_of_a_model(trained: Any, asked: Any) -> None:
    model, _ = trained
    target = net()
    before, source = bits(target), bits(model)
    receipt = polyak.transfer(model, target, **asked)
    assert [m.target for m in receipt.moved] == ["body/kernel", "body/bias"]
    assert len(receipt.skipped) == len(before) - 2
    assert bits(target) == before | {p: source[p] for p in ("body/kernel", "body/bias")}


def test_a_part_is_chosen_by_target_names_whatever_the_source_calls_it() -> None:
    source, target = chain("a", "b"), chain("c", "d")
    receipt = polyak.transfer(source, target, by="position", include="d/*")
    assert [(m.source, m.target) for m in receipt.moved] == [("b/kernel", "d/kernel"), ("b/bias", "d/bias")]
    assert receipt.skipped == ("c/kernel", "c/bias")


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_a_glob_that_matches_nothing(trained: Any, argument: str) -> None:
    model, _ = trained
    target = net()
    assert refused(MissingWeight, model, target, **{argument: "haed/*"}) == (
        f"{argument}='haed/*': expected a glob of weights, received one that matches none of Net '{target.name}' and "
        f"Net '{model.name}'; nearest: 'head/bias'\n"
        "hint: the paths look like 'body/kernel'; a star also crosses slashes"
    )


def test_nothing_to_transfer_is_refused(trained: Any) -> None:
    target = net()
    assert refused(MissingWeight, trained[0], target, exclude="*") == (
        f"Net '{target.name}': expected at least one weight to transfer, received none from Net '{trained[0].name}'\n"
        "hint: include= and exclude= are compared with the target's names, after rename="
    )


def test_a_misspelt_argument_is_refused(trained: Any) -> None:
    target = net()
    before = bits(target)
    with pytest.raises(TypeError, match="a transfer has no argument 'exlude'"):
        polyak.transfer(trained[0], target, exlude="head/*")
    for name, value in {"by": "name_", "cast": "float16", "nonfinite": "alow"}.items():
        message = refused(WeightError, trained[0], target, **{name: value})
        assert message.startswith(f"{name}={value!r}: expected one of ")
    assert bits(target) == before


def test_a_reshaped_weight(trained: Any) -> None:
    model, _ = trained
    target = net(units=5)
    assert refused(ShapeMismatch, model, target) == (
        f"weight 'body/kernel': expected (3, 5), received (3, 4) from Net '{model.name}'\n"
        'hint: skip it with exclude="body/kernel"'
    )
    receipt = polyak.transfer(model, target, include=["head/bias", "drop/*"])
    assert len(receipt.moved) == 2


def test_a_reshaped_weight_names_one_that_would_fit() -> None:
    source, target = keras.Sequential(name="s"), keras.Sequential(name="t")
    for model, widths in ((source, (4, 5)), (target, (5, 4))):
        model.add(layers.Input((3,)))
        for name, width in zip("ab", widths, strict=True):
            model.add(layers.Dense(width, name=name, use_bias=False))
    assert refused(ShapeMismatch, source, target).startswith(
        "weight 'a/kernel': expected (3, 5), received (3, 4) from Sequential 's'\n"
    )
    biased = keras.Sequential([layers.Input((3,)), layers.Dense(4, name="a"), layers.Dense(5, name="b")], name="u")
    other = keras.Sequential([layers.Input((3,)), layers.Dense(5, name="a"), layers.Dense(5, name="b")], name="v")
    message = refused(ShapeMismatch, biased, other, include="*/bias")
    assert message.startswith("weight 'a/bias': expected (5,), received (4,) from Sequential 'u'; nearest: 'b/bias'\n")


class Scale(keras.layers.Layer):
    """Two weights of one shape, made in the order of their names."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.held = [self.add_weight(name=name, shape=(3,), initializer="ones") for name in names]

    def call(self, x: Any) -> Any:
        return x * self.held[0] + self.held[1]


def scales(*names: str) -> Any:
    model = keras.Sequential([Scale(*names)])
    model.build((None, 3))
    return model


def test_a_position_that_pairs_a_kernel_with_a_bias_is_refused() -> None:
    source, target = scales("kernel", "bias"), scales("bias", "kernel")
    with pytest.raises(AmbiguousMatch, match="expected 'bias' at position 0, received 'kernel'"):
        polyak.transfer(source, target, by="position")
    assert len(polyak.transfer(source, scales("kernel", "bias"), by="position").moved) == 2


# --- dtypes ----------------------------------------------------------------------------------------------------------


def test_a_narrower_dtype_needs_to_be_asked_for() -> None:
    source, target = chain("a"), chain("a", dtype="float16")
    assert refused(DtypeMismatch, source, target) == (
        f"weight 'a/kernel': expected float16, received float32 from Sequential '{source.name}'\n"
        'hint: allow the narrower dtype with cast="target"'
    )
    receipt = polyak.transfer(source, target, cast="target")
    assert [(m.target, m.source_dtype, m.dtype) for m in receipt.cast] == [
        ("a/kernel", "float32", "float16"),
        ("a/bias", "float32", "float16"),
    ]
    assert np.array_equal(target.layers[0].kernel.numpy(), source.layers[0].kernel.numpy().astype(np.float16))


def test_an_overflow_in_a_cast_is_refused() -> None:
    source, target = chain("a", "b"), chain("a", "b", dtype="float16")
    source.layers[1].bias.assign([1.0, -70_000.0, 2.0])
    assert refused(DtypeMismatch, source, target, cast="target") == (
        f"weight 'b/bias': expected values in the range of float16, received up to 70000 from "
        f"Sequential '{source.name}'\n"
        "hint: keep a wider dtype: the cast would change them beyond rounding"
    )


def test_a_wider_dtype_needs_no_asking() -> None:
    source, target = chain("a", dtype="bfloat16"), chain("a")
    receipt = polyak.transfer(source, target)
    assert len(receipt.cast) == 2
    assert np.array_equal(target.layers[0].kernel.numpy(), source.layers[0].kernel.numpy().astype(np.float32))


def test_a_shadow_goes_back_into_the_dtype_that_it_follows(way: Any) -> None:
    model = chain("a", dtype="bfloat16")
    ema = polyak.EMA(model, decay=0.5)
    model.layers[0].kernel.assign(model.layers[0].kernel + 0.1)
    ema.update()
    ema.update()
    other = chain("a", dtype="bfloat16")
    receipt = polyak.transfer(way(ema), other)
    assert [(m.source_dtype, m.dtype) for m in receipt.moved] == [("float32", "bfloat16")] * 2
    wide = ema.values()["a/kernel"]
    assert wide.dtype == np.float32
    assert np.array_equal(other.layers[0].kernel.numpy(), wide.astype("bfloat16"))


def test_a_float32_shadow_does_not_go_into_bfloat16_unasked() -> None:
    ema = polyak.track(chain("a"), "copy")
    ema.update()
    refused(DtypeMismatch, ema, chain("a", dtype="bfloat16"))


def module(**values: Any) -> Any:
    held = tf.Module()
    for name, value in values.items():
        setattr(held, name, tf.Variable(value))
    return held


def test_counters_widen_and_narrow_only_as_asked_and_only_where_they_fit() -> None:
    narrow, wide = module(w=1.0, steps=np.int32(7)), module(w=2.0, steps=np.int64(9))
    polyak.transfer(narrow, wide)
    assert int(wide.steps) == 7
    assert 'cast="target"' in refused(DtypeMismatch, wide, narrow)
    wide.steps.assign(40)
    polyak.transfer(wide, narrow, cast="target")
    assert int(narrow.steps) == 40
    wide.steps.assign(2**31)
    assert "in the range of int32, received up to 2147483648" in refused(DtypeMismatch, wide, narrow, cast="target")


def test_a_counter_is_no_weight() -> None:
    assert refused(DtypeMismatch, module(w=np.int32(1)), module(w=1.0), cast="target") == (
        "weight 'w': expected float32, received int32 from Module 'module'\nhint: skip it with exclude=\"w\""
    )


# --- values that are not finite --------------------------------------------------------------------------------------


def test_a_source_that_is_not_finite(trained: Any) -> None:
    source, target = net(), net()
    source.head.bias.assign([np.inf, np.nan])
    assert refused(NonFinite, source, target) == (
        f"weight 'head/bias': expected finite values, received 2 non-finite of 2 from Net '{source.name}'\n"
        'hint: move it all the same with nonfinite="allow"'
    )


def test_values_that_are_not_finite_move_bit_for_bit_when_allowed() -> None:
    odd = np.array([0x7FC00001, 0xFFC12345, 0x7F800000, 0x80000000], np.uint32).view(np.float32)
    source, target = module(w=odd), module(w=np.zeros(4, np.float32))
    polyak.transfer(source, target, nonfinite="allow")
    assert target.w.numpy().tobytes() == odd.tobytes()


# --- targets that are not built --------------------------------------------------------------------------------------


def test_a_target_that_is_not_built(trained: Any) -> None:
    target = Net()
    with pytest.raises(UnbuiltModel) as caught:
        polyak.transfer(trained[0], target)
    assert str(caught.value) == (
        f"Net '{target.name}': expected a built model, received one without weights yet\n"
        "hint: call it once on a batch; a transfer into it takes sample=, an input shape or a sample input"
    )
    assert target.trainable_variables == []


@pytest.mark.parametrize("sample", [(None, 3), X[:2]], ids=["shape", "array"])
def test_a_target_is_built_from_a_sample(trained: Any, sample: Any) -> None:
    target = Net()
    polyak.transfer(trained[0], target, sample=sample)
    assert bits(target) == bits(trained[0])


# --- identity --------------------------------------------------------------------------------------------------------


def test_a_frozen_teacher_pairs(trained: Any) -> None:
    """K12: zipping trainable weights would pair nothing and say nothing."""
    teacher = net()
    teacher.trainable = False
    assert teacher.trainable_variables == []
    receipt = polyak.transfer(trained[1], teacher, exclude="drop/*")
    assert len(receipt.moved) == 8
    assert bits(teacher)["head/kernel"] == bits(trained[1])["head/kernel"]


class Towers(keras.Model):
    """Two sublayers of one shape, created and held in the given order."""

    def __init__(self, *order: str) -> None:
        super().__init__()
        for name in order:
            setattr(self, name, layers.Dense(3))

    def call(self, x: Any) -> Any:
        return self.left(x) - self.right(x)


def test_sublayers_of_one_shape_in_another_order_pair_by_path() -> None:
    """K13: Keras' own weights file exchanges them silently."""
    source, target = Towers("left", "right"), Towers("right", "left")
    expected = source(X)
    target(X)
    receipt = polyak.transfer(source, target)
    assert np.array_equal(target(X), expected)
    assert receipt.renamed == ()


class Stack(keras.Model):
    """Layers in a list."""

    def __init__(self, *kinds: str) -> None:
        super().__init__()
        self.blocks = [layers.Dense(3) if kind == "dense" else layers.Dropout(0.5) for kind in kinds]

    def call(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return x


def stack(*kinds: str) -> Any:
    model = Stack(*kinds)
    model(X[:2])
    return model


def test_two_kinds_of_evidence_that_disagree_are_refused_with_both_candidates() -> None:
    """K21: a dropout in the list shifts the index of the layers after it."""
    source, target = stack("dense", "drop", "dense", "dense"), stack("dense", "dense", "dense")
    assert refused(AmbiguousMatch, source, target) == (
        f"weight 'blocks/2/kernel': expected one source, received two of shape (3, 3) from Stack '{source.name}': "
        "'blocks/2/kernel' by path and 'blocks/3/kernel' by structure\n"
        'hint: say which evidence is right, by="structure", or name the pairs with rename='
    )
    receipt = polyak.transfer(source, target, by="structure")
    assert np.array_equal(target(X), source(X))
    assert receipt.left == ("blocks/1/seed_generator/state",)


class Wrapper(keras.Model):
    """A model under one attribute."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def call(self, x: Any) -> Any:
        return self.net(x)


@pytest.mark.parametrize("outer", ["source", "target"])
def test_a_common_scope_is_seen_through_when_it_is_complete(trained: Any, outer: str) -> None:
    inner, wrapper = net(), Wrapper(net())
    wrapper(X)
    source, target = (wrapper, inner) if outer == "source" else (inner, wrapper)
    assert polyak.plan(source, target).moves[0].source == ("net/body/kernel" if outer == "source" else "body/kernel")
    receipt = polyak.transfer(source, target)
    assert len(receipt.renamed) == len(receipt.moved) == 9
    assert np.array_equal(target(X), source(X))


def test_a_scope_that_is_not_complete_is_not_guessed() -> None:
    source = Wrapper(chain("a"))
    source(X)
    assert "nearest: 'net/a/kernel'" in refused(MissingWeight, source, chain("a", "b"))


def test_evidence_within_a_scope_may_object() -> None:
    """The layers of a list were exchanged; only their own names tell."""
    source, target = stack("dense", "dense"), stack("dense", "dense")
    source.blocks[0].name, source.blocks[1].name = "first", "second"
    target.blocks[0].name, target.blocks[1].name = "second", "first"
    assert "'blocks/1/kernel' by name" in refused(AmbiguousMatch, source, target)
    wrapper = Wrapper(source)
    wrapper(X)
    assert "'net/blocks/1/kernel' by name" in refused(AmbiguousMatch, wrapper, target)


def test_seeds_of_one_side_are_left_and_listed() -> None:
    source, target = stack("dense", "drop"), stack("dense")
    receipt = polyak.transfer(source, target)
    assert receipt.left == ("blocks/1/seed_generator/state",)
    assert "1 only on one side" in str(receipt)
    before = bits(source)
    assert polyak.transfer(target, source).left == receipt.left
    assert bits(source) == before
