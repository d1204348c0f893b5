"""Paths of live weights: unique, complete, and the same wherever the same code builds the model."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import keras
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.python.distribute.sharded_variable import ShardedVariable
from tensorflow.python.ops.resource_variable_ops import UninitializedVariable
from tests.frameworks.zoo import LEGACY, NAMES, ZOO, Affine, Blocks, dense, in_another_process, inventory, vectors

import polyak
from polyak.errors import ModelError, NotAWeight, UnbuiltModel
from polyak.frameworks import framework_of


@pytest.fixture(scope="module")
def zoo() -> dict[str, Any]:
    return {name: make.built() for name, make in ZOO.items()}


@pytest.fixture(scope="module")
def elsewhere() -> dict[str, list[list[str]]]:
    return in_another_process()


def natives(model: Any) -> dict[str, tf.Variable]:
    return framework_of(model).target(model).variables


def variables(obj: Any) -> Iterator[tf.Variable]:
    """All variables by the frameworks' own lists; a tf.Module knows of no Keras layer and no generator in it."""
    if isinstance(obj, tf.Module) and not isinstance(obj, tf_keras.Model):
        yield from obj.variables
        for value in vars(obj).values():
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, keras.layers.Layer):
                    yield from variables(part)
                elif isinstance(part, tf.random.Generator):
                    yield part.state
    else:
        metrics = {id(v) for m in obj.metrics for v in m.variables} if isinstance(obj, tf_keras.Model) else set()
        yield from (v if isinstance(v, tf.Variable) else v.value for v in obj.variables if id(v) not in metrics)


@pytest.mark.parametrize("name", NAMES)
def test_paths_cover_exactly_the_variables(zoo: dict[str, Any], name: str) -> None:
    found = natives(zoo[name])
    assert sorted(map(id, found.values())) == sorted({id(v) for v in variables(zoo[name])})
    assert len(polyak.snapshot(zoo[name])) == len(found) > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_second_instance_and_another_process_have_the_same_paths_and_kinds(
    zoo: dict[str, Any], elsewhere: dict[str, list[list[str]]], name: str
) -> None:
    here = inventory(zoo[name])
    assert inventory(ZOO[name].built()) == here
    assert elsewhere[name] == here


@pytest.mark.parametrize("name", NAMES)
def test_the_evidence_behind_the_paths_is_the_same_for_a_second_instance(zoo: dict[str, Any], name: str) -> None:
    first, second = (
        [
            (w.evidence.structure, w.evidence.creation, w.evidence.layer, w.evidence.local, w.evidence.position)
            for w in ws
        ]
        for ws in (polyak.snapshot(zoo[name]).weights, polyak.snapshot(ZOO[name].built()).weights)
    )
    assert first == second


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("Module")])
def test_kinds_are_what_keras_trains_and_what_it_only_keeps(name: str) -> None:
    model = ZOO[name].built()
    kinds = dict(inventory(model))
    model.trainable = False  # so that the next line reaches every layer
    model.trainable = True
    trained = {id(v if name in LEGACY else v.value) for v in model.trainable_variables}
    for path, variable in natives(model).items():
        if id(variable) in trained:
            assert kinds[path] == "trainable"
        elif variable.dtype.is_floating:
            assert kinds[path] == "statistic"
        else:
            assert kinds[path] == ("seed" if "seed" in path else "counter")


def test_kinds_of_a_module() -> None:
    kinds = dict(inventory(ZOO["Module"].built()))
    assert {path: kind for path, kind in kinds.items() if kind != "trainable"} == {
        "mean": "statistic",
        "steps": "counter",
        "noise/state": "seed",
    }


def test_freezing_changes_neither_kinds_nor_paths() -> None:
    model = ZOO["Attributes"].built()
    before = inventory(model)
    model.first.trainable = False
    assert inventory(model) == before
    model.trainable = False
    assert inventory(model) == before


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("functional", ["dense/kernel", "dense/bias", "dense_1/kernel", "dense_1/bias", "head/kernel", "head/bias"]),
        (
            "Attention",
            [
                "attention/query/kernel",
                "attention/attention_output/bias",
                "attention/dropout_layer/seed_generator/state",
            ],
        ),
        ("FunctionalInside", ["net/sequential/dense_1/kernel", "net/dense/kernel", "tail/dense_1/bias"]),
        ("Blocks", ["blocks/0/kernel", "blocks/1/seed_generator/state", "blocks/3/kernel", "head/bias"]),
        (
            "Containers",
            ["d/a/kernel", "pair/1/kernel", "nested/0/1/kernel", "nested/1/0/bias", "deep/x/0/bias", "deep/y/z/kernel"],
        ),
        ("ModelInModel", ["encoder/blocks/3/kernel", "others/0/head/kernel", "tied/kernel"]),
        ("Recurrent", ["embed/embeddings", "both/backward_layer/cell/recurrent_kernel", "gru/cell/kernel"]),
        ("same_names", ["same_names/u", "same_names/v", "same_names_1/v", "same_names/steps"]),
        ("BareVariables", ["scale", "biases/0", "biases/2", "shift"]),
        ("derived_names", ["derived_names/derived_names_scale", "derived_names_1/derived_names_inner/kernel"]),
        ("normalization", ["normalization/mean", "normalization/count", "dense/kernel"]),
        ("Module", ["blocks/1/w", "heads/left/b", "table/a/0", "scales/1", "noise/state", "mean"]),
        ("ModuleOfLayers", ["first/kernel", "rest/0/bias", "rest/1/dense/kernel"]),
        ("legacy_nested", ["functional/head/kernel", "sequential/batch_normalization/moving_mean"]),
        ("LegacySubclassed", ["blocks/2/kernel", "d/a/kernel", "norm/gamma"]),
    ],
)
def test_literal_paths(zoo: dict[str, Any], name: str, paths: list[str]) -> None:
    held = set(polyak.snapshot(zoo[name]))
    assert set(paths) <= held


def test_compiling_training_and_tracking_add_no_weight() -> None:
    model = ZOO["OwnTrainStep"].built()
    before = inventory(model)
    model.ema = polyak.EMA(model, decay=0.9)
    model.compile(keras.optimizers.Adam(), loss="mse")
    model.fit(ZOO["OwnTrainStep"].sample(), ZOO["OwnTrainStep"].sample(), verbose=0)
    assert inventory(model) == before
    assert list(model.ema.values()) == [path for path, _ in before]


def test_looking_at_a_model_uses_up_no_automatic_name() -> None:
    number = int(dense().name.rsplit("_", 1)[-1])
    layer_before, model_before = keras.layers.Layer().name, tf_keras.Model().name
    polyak.snapshot(ZOO["sequential"].built())
    polyak.snapshot(ZOO["Module"].built())
    polyak.snapshot(ZOO["legacy_sequential"].built())
    assert _number(keras.layers.Layer().name) == _number(layer_before) + 1
    assert _number(tf_keras.Model().name) == _number(model_before) + 1
    assert _number(dense().name) == number + 1 + 2


def _number(name: str) -> int:
    last = name.rsplit("_", 1)[-1]
    return int(last) if last.isdigit() else 0


def test_a_layer_alone_is_a_model() -> None:
    layer = dense()
    layer.build((None, 4))
    assert list(polyak.snapshot(layer)) == ["kernel", "bias"]


def test_unbuilt_models_are_refused() -> None:
    deferred = tf_keras.Sequential([tf_keras.layers.Dense(2)])
    for model in (*(ZOO[name].new() for name in ("Blocks", "sequential_deferred", "LegacySubclassed")), deferred):
        with pytest.raises(UnbuiltModel, match="expected a built model, received one without weights yet"):
            polyak.snapshot(model)


def test_what_is_no_model_or_has_no_weights_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"expected a Keras model, a keras layer, .* or a torch module, received builtins.list"
    ):
        polyak.snapshot([1, 2])
    with pytest.raises(ModelError, match="at least one weight, received none"):
        polyak.snapshot(tf.Module())


class HoldsASet(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.parts = {Blocks()}

    def call(self, x: Any) -> Any:
        for part in self.parts:
            x = part(x)
        return x


def test_a_layer_that_only_keras_can_reach_is_called_by_its_class() -> None:
    model = HoldsASet()
    model(vectors())
    assert {"blocks/blocks/0/kernel", "blocks/head/bias"} <= set(polyak.snapshot(model))


class Hides(keras.Model):
    """It lists a layer's variables, and holds the layer where neither Keras nor polyak looks."""

    def __init__(self) -> None:
        super().__init__()
        self.head = keras.layers.Dense(2)
        hidden = keras.layers.Dense(3, name="hidden")
        self.held = lambda: hidden

    @property
    def variables(self) -> list[Any]:
        return [*super().variables, *self.held().variables]

    def call(self, x: Any) -> Any:
        return self.held()(self.head(x))


def test_a_weight_in_no_attribute_is_not_left_out() -> None:
    model = Hides()
    model(vectors())
    with pytest.raises(
        ModelError, match=r"weight 'hides/hidden/kernel' is in no attribute, list or dictionary"
    ) as refused:
        polyak.snapshot(model)
    assert refused.value.hint == "hold the layer that owns it in an attribute"


def test_two_weights_of_one_path_are_refused() -> None:
    module = tf.Module()
    module.d = {"a/w": tf.Variable(1.0), "a": {"w": tf.Variable(2.0)}}
    with pytest.raises(ModelError, match="weight 'd/a/w' exists twice"):
        polyak.snapshot(module)


class Attributes(keras.layers.Layer):
    """Layers in attributes, made in the order of the alphabet or against it."""

    def __init__(self, layers: dict[str, Any], backwards: bool) -> None:
        super().__init__()
        made = {key: make() for key, make in sorted(layers.items(), reverse=backwards)}
        for key, layer in made.items():
            setattr(self, key, layer)

    def build(self, shape: Any) -> None:
        for _, layer in self._flatten_attributes():
            layer.build(shape)
        self.built = True

    def _flatten_attributes(self) -> list[tuple[str, Any]]:
        held = sorted((k, v) for k, v in vars(self).items() if k.strip("_") in ("proj", "query", "key", "blocks"))
        return [(k, x) for k, v in held for x in (v if isinstance(v, list) else [v])]


def projection(name: str | None = None) -> Any:
    return keras.layers.Dense(3, name=name)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"proj": projection, "_proj": projection}, {"proj", "_proj"}),
        ({"_query": lambda: projection("proj"), "_key": lambda: projection("proj")}, {"_query", "_key"}),
        ({"_query": lambda: projection("proj"), "proj": projection}, {"_query", "proj"}),
        ({"blocks": lambda: [projection()], "_blocks": lambda: [projection()]}, {"blocks/0", "_blocks/0"}),
        ({"_query": lambda: projection("proj"), "_key": projection}, {"proj", "key"}),
    ],
    ids=["an underscore apart", "one name for two", "the name of another", "lists", "no name twice"],
)
def test_a_private_attribute_keeps_its_underscore_where_its_name_is_taken(
    attributes: dict[str, Any], expected: set[str]
) -> None:
    one, other = Attributes(attributes, False), Attributes(attributes, True)
    for layer in (one, other):
        layer.build((None, 3))
    assert set(polyak.snapshot(one)) == {f"{path}/{local}" for path in expected for local in ("kernel", "bias")}
    polyak.transfer(one, other)
    for (key, a), (_, b) in zip(one._flatten_attributes(), other._flatten_attributes(), strict=True):
        assert (a.kernel.numpy() == b.kernel.numpy()).all(), key


def test_of_attributes_of_modules_too() -> None:
    module, other = tf.Module(), tf.Module()
    for i, made in enumerate((module, other)):
        made.w, made._w = tf.Variable([i, 1.0]), tf.Variable([i, 2.0])
        made.part, made._part, made._count = tf.Module(), tf.Module(), 3
        made.part.v, made._part.v = tf.Variable([i, 3.0]), tf.Variable([i, 4.0])
    assert set(polyak.snapshot(module)) == {"w", "_w", "part/v", "_part/v"}
    polyak.transfer(module, other)
    assert [v.numpy().tolist() for v in (other.w, other._w, other.part.v, other._part.v)] == [
        [0, 1],
        [0, 2],
        [0, 3],
        [0, 4],
    ]


def test_paths_of_modules_do_not_depend_on_the_order_of_attributes() -> None:
    first, second = tf.Module(), tf.Module()
    first.a, first.b = Affine(), Affine()
    second.b, second.a = Affine(), Affine()
    assert inventory(first) == inventory(second)


def test_a_keras_layer_whose_list_holds_itself_is_tracked() -> None:
    class Holder(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.inner = [keras.layers.Dense(1)]
            self.inner.append(self.inner)

        def build(self, shape: Any) -> None:
            self.inner[0].build(shape)
            self.built = True

    layer = Holder()
    layer.build((None, 1))
    assert list(polyak.track(layer, "mean").values()) == ["inner/0/kernel", "inner/0/bias"]


@pytest.mark.parametrize("verb", [lambda m: polyak.track(m, "mean"), polyak.snapshot])
def test_a_variable_that_holds_no_numbers_is_refused_by_its_name(verb: Any) -> None:
    module = tf.Module(name="net")
    module.w = tf.Variable([1.0])
    quantised = tf.quantization.quantize([1.0], 0.0, 2.0, tf.qint8)[0]
    module.few = tf.Variable(quantised)
    with pytest.raises(ModelError, match=r"'net': weight 'few': expected numbers, received a variable of .* qint8"):
        verb(module)
    module.few = quantised  # as the hint says
    assert list(polyak.track(module, "mean").values()) == ["w"]


def test_a_variable_of_texts_is_left_where_it_is_and_that_is_said() -> None:
    one, other = tf.Module(), tf.Module()
    for module, number in ((one, 1.0), (other, 2.0)):
        module.w, module.words = tf.Variable([number]), tf.Variable([f"{number}"])
    with pytest.warns(NotAWeight, match="'words' is a variable of texts, which is no weight: it is neither"):
        average = polyak.track(one, "mean")
    with pytest.warns(NotAWeight, match="'words'"):
        polyak.transfer(one, other)
    assert list(average.values()) == ["w"]
    assert other.w.numpy().tolist() == [1.0]
    assert other.words.numpy().tolist() == [b"2.0"]


def test_variables_in_a_queue_and_of_keras_are_weights_of_a_module() -> None:
    module = tf.Module()
    module.blocks = deque([tf.Variable([1.0]), tf.Variable([2.0])])
    module.scale = keras.Variable([3.0])
    assert {path: v.tolist() for path, v in polyak.track(module, "mean").values().items()} == {
        "blocks/0": [1.0],
        "blocks/1": [2.0],
        "scale": [3.0],
    }


def test_variables_that_tensorflow_counts_and_nothing_names_are_refused() -> None:
    """What a ParameterServerStrategy with a partitioner makes of one variable."""
    module = tf.Module(name="net")
    module.bias = tf.Variable([1.0])
    module.table = ShardedVariable([tf.Variable([[number]], name=f"part_{number:.0f}") for number in (2.0, 3.0)])
    with pytest.raises(ModelError, match=r"received 'part_2:0' \(1, 1\) and 1 more in something else") as refused:
        polyak.transfer(module, module)
    assert "self.parts = list(sharded.variables)" in str(refused.value)
    module.parts = list(module.table.variables)
    assert list(polyak.track(module, "mean").values()) == ["bias", "parts/0", "parts/1"]


def test_a_variable_without_a_value_is_named() -> None:
    module = tf.Module(name="net")
    module.late = UninitializedVariable(shape=(2,), dtype=tf.float32, trainable=True)
    with pytest.raises(ModelError, match=r"weight 'late' of .*: expected a value, received a variable that is not"):
        polyak.snapshot(module)["late"]


class Probe(tf_keras.layers.Layer):  # type: ignore[misc]
    """A layer of Keras 2 with a metric, and whatever else it is given."""

    def __init__(self, inner: tf.Module | None = None) -> None:
        super().__init__()
        self.dense, self.seen, self.inner = tf_keras.layers.Dense(2), tf_keras.metrics.Mean(), inner

    def call(self, x: Any) -> Any:
        self.seen.update_state(x)
        return self.dense(x)


def holding(layer: Any) -> tf.Module:
    module = tf.Module()
    module.probe = layer
    layer(tf.ones((1, 2)))
    return module


def test_metrics_of_layers_within_a_module_are_no_weights() -> None:
    assert list(polyak.track(holding(Probe()), "mean").values()) == ["probe/dense/kernel", "probe/dense/bias"]


def test_a_module_within_a_layer_of_keras_2_is_not_left_out_in_silence() -> None:
    inner = tf.Module()
    inner.scale = tf.Variable([1.0])
    for model in (holding(Probe(inner)), tf_keras.Sequential([tf_keras.Input((2,)), Probe(inner)])):
        with pytest.raises(ModelError, match=r"received 'Variable:0' \(1,\) in something else"):
            polyak.track(model, "mean")
