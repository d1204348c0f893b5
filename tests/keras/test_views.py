"""``ema.evaluate`` and ``ema.predict``: what the applied model gives, beside a model that is never touched."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops
from tests.keras.zoo import BACKEND, WIDTH, ZOO, OwnTrainStep, assert_same_bits, scramble, values, vectors

import polyak
import polyak.keras
from polyak.errors import ModelError

UNITS = {"rtol": 1e-5, "atol": 1e-6}


def regression() -> Any:
    """Every source of a loss: the compiled one, a regulariser, and a layer's own; statistics and dropout beside."""
    x = keras.Input((WIDTH,))
    h = layers.Dense(8, activation="relu", kernel_regularizer="l2")(x)
    h = layers.ActivityRegularization(0.01)(layers.Dropout(0.5, seed=7)(layers.BatchNormalization()(h)))
    model = keras.Model(x, layers.Dense(1, name="out")(h))
    model.compile(keras.optimizers.SGD(0.05), "mse", metrics=["mae", keras.metrics.RootMeanSquaredError()])
    return model


def batch(n: int = 48) -> tuple[Any, Any]:
    x = np.random.default_rng(1).normal(size=(n, WIDTH)).astype(np.float32)
    return x, x[:, :1] * 2


def followed(make: Callable[[], Any] = regression) -> tuple[Any, Any]:
    model = make()
    scramble(model, 1)
    ema = polyak.EMA(model, decay=0.5, start="initial")
    scramble(model, 2)
    ema.update()
    scramble(model, 3)
    return model, ema


def assert_equal(found: Any, expected: Any) -> None:
    """PyTorch's products depend on where in memory an array begins, by one unit in the last place."""
    if BACKEND == "torch":
        np.testing.assert_allclose(found, expected, **UNITS)
    else:
        np.testing.assert_array_equal(found, expected)


# The results


def test_evaluate_is_that_of_the_applied_model_and_touches_nothing() -> None:
    model, ema = followed()
    x, y = batch()
    with ema.applied():
        expected = model.evaluate(x, y, verbose=0, return_dict=True)
    plain = model.evaluate(x, y, verbose=0, return_dict=True)
    raw, average = values(model), ema.values()
    found = ema.evaluate(x, y, verbose=0, return_dict=True)
    assert found.keys() == expected.keys() == {"loss", "mae", "root_mean_squared_error"}
    for name in found:
        assert_equal(found[name], expected[name])
        assert found[name] != pytest.approx(plain[name], rel=1e-3)
    assert_equal(ema.evaluate(x, y, verbose=0), list(found.values()))
    assert_same_bits(values(model), raw)
    assert_same_bits(ema.values(), average)


# Keras compiles each for its own loop, which is what takes the time; ema(x) is tested on all makes.
VIEWED = (
    "sequential",
    "functional_branches",
    "nested",
    "Containers",
    "OwnWeights",
    "Attention",
    "mixed_bfloat16",
    "pure_float16",
)


@pytest.mark.parametrize("name", VIEWED)
def test_predict_is_that_of_the_applied_model(name: str) -> None:
    model, ema = followed(ZOO[name].built)
    sample = ZOO[name].sample()
    with ema.applied():
        expected = model.predict(sample, verbose=0)
    raw, average = values(model), ema.values()
    found = ema.predict(sample, verbose=0)
    assert found.dtype == expected.dtype
    assert_equal(found.astype(np.float32), expected.astype(np.float32))
    assert_same_bits(values(model), raw)
    assert_same_bits(ema.values(), average)


def test_what_is_left_out_is_read_as_it_is_now() -> None:
    model = regression()
    ema = polyak.track(model, {"out/*": None, "*": "copy"})
    x, _ = batch()
    for seed in (4, 5):
        scramble(model, seed)
        with ema.applied():
            expected = model.predict(x, verbose=0)
        assert_equal(ema.predict(x, verbose=0), expected)


def test_each_call_uses_the_average_as_it_is_now() -> None:
    model, ema = followed()
    x, y = batch()
    seen = []
    for seed in range(3):
        scramble(model, seed)
        ema.update()
        with ema.applied():
            expected = model.evaluate(x, y, verbose=0)
        seen.append(ema.evaluate(x, y, verbose=0))
        assert_equal(seen[-1], expected)
    assert len({loss for loss, *_ in seen}) == 3


class Shows(layers.Layer):
    """Gives a weight away as it is, and a view of it."""

    def build(self, shape: Any) -> None:
        self.shown = self.add_weight(shape=(2, 3), initializer="ones", name="shown")

    def call(self, x: Any) -> Any:
        flat = ops.reshape(self.shown, (6,))
        # TensorFlow's value is the variable itself, which is never a snapshot.
        return {"whole": flat if BACKEND == "tensorflow" else self.shown.value, "rows": [flat, x]}


def test_what_a_call_has_given_stays_what_it_is() -> None:
    """A call may read the shadows themselves, which the next update writes over, or whose memory it takes."""
    model, ema = followed(lambda: keras.Sequential([keras.Input((WIDTH,)), Shows()]))
    found = ema(np.ones((1, WIDTH), np.float32))
    given = [found["whole"], found["rows"][0]]
    held = [np.array(ops.convert_to_numpy(array)) for array in given]
    scramble(model, 4)
    ema.update()
    assert not np.array_equal(ema.values()[ema.target.weights[0].path], held[0])
    for array, before in zip(given, held, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(array), before)


class Scaled(keras.Model):
    """Gives its weights away as variables, as CLIP does with its scale."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = self.add_weight(shape=(1,), initializer="zeros", name="scale")
        self.left = self.add_weight(shape=(1,), initializer="ones", name="left")
        self.built = True

    def call(self, x: Any) -> Any:
        return {"scaled": x * self.scale, "own": [self.scale, ops.convert_to_tensor(self.scale)], "left": self.left}


@pytest.mark.parametrize("verb", ["call", "predict"])
def test_a_weight_that_a_model_gives_away_is_the_averaged_one(verb: str) -> None:
    model = Scaled()
    ema = polyak.track(model, {"left": None, "*": "ema:0.5,start=initial"})
    model.scale.assign([8.0])
    model.left.assign([3.0])
    ema.update()
    x = np.ones((1, 1), np.float32)
    found = ema(x) if verb == "call" else ema.predict(x, verbose=0)
    model.scale.assign([100.0])
    model.left.assign([100.0])
    ema.update()
    given = [found["scaled"], *found["own"], found["left"]]
    assert not any(isinstance(one, keras.Variable) for one in given)
    assert [float(ops.convert_to_numpy(one).item()) for one in given] == [4.0, 4.0, 4.0, 3.0]
    assert float(ops.convert_to_numpy(model.scale)[0]) == 100.0


@pytest.mark.skipif(BACKEND != "torch", reason="only PyTorch reads again, for gradients, what a call has read")
def test_gradients_through_a_call_may_be_asked_for_after_an_update() -> None:
    import torch

    model, ema = followed()
    x = torch.ones((2, WIDTH), requires_grad=True)
    (expected,) = torch.autograd.grad(ema(x).sum(), x)
    late = ema(x).sum()
    scramble(model, 4)
    ema.update()
    (found,) = torch.autograd.grad(late, x)
    np.testing.assert_array_equal(found.numpy(), expected.numpy())


@pytest.mark.parametrize("asked", ["steps_per_execution", "run_eagerly", "jit_compile", "sample_weight", "dataset"])
def test_what_keras_offers_is_offered(asked: str) -> None:
    if BACKEND == "torch" and asked in ("steps_per_execution", "jit_compile"):
        pytest.skip("Keras has no steps_per_execution on PyTorch, and compiles there with a compiler of C++")
    model, ema = followed()
    if asked in ("steps_per_execution", "run_eagerly", "jit_compile"):
        model.compile("sgd", "mse", **{asked: {"steps_per_execution": 3}.get(asked, True)})
    x, y = batch()
    given: Any = {"x": x, "y": y, "batch_size": 8}
    if asked == "sample_weight":
        given["sample_weight"] = np.linspace(0, 1, len(x))
    if asked == "dataset":
        given = {"x": _Batches(x, y)}
    with ema.applied():
        expected = model.evaluate(**given, verbose=0)
    np.testing.assert_allclose(ema.evaluate(**given, verbose=0), expected, **UNITS)


class _Batches(keras.utils.PyDataset):
    def __init__(self, x: Any, y: Any) -> None:
        super().__init__()
        self._data = x, y

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> Any:
        x, y = self._data
        return x[i * 8 : i * 8 + 8], y[i * 8 : i * 8 + 8]


def test_several_inputs_and_outputs_with_losses_by_name() -> None:
    def make() -> Any:
        a, b = keras.Input((WIDTH,), name="a"), keras.Input((WIDTH,), name="b")
        both = layers.Concatenate()([a, b])
        made = keras.Model({"a": a, "b": b}, {"one": layers.Dense(1, name="one")(both), "two": layers.Dense(2)(both)})
        made.compile("sgd", {"one": "mse", "two": "mae"}, metrics={"one": ["mae"]}, loss_weights={"one": 2.0, "two": 1})
        return made

    model, ema = followed(make)
    x, y = batch()
    inputs, wanted = {"a": x, "b": x[::-1]}, {"one": y, "two": np.tile(y, 2)}
    with ema.applied():
        expected = model.evaluate(inputs, wanted, verbose=0, return_dict=True)
        outputs = model.predict(inputs, verbose=0)
    found = ema.evaluate(inputs, wanted, verbose=0, return_dict=True)
    assert found.keys() == expected.keys()
    for name in found:
        assert_equal(found[name], expected[name])
    for name, output in ema.predict(inputs, verbose=0).items():
        assert_equal(output, outputs[name])


def test_masks_reach_the_loss() -> None:
    def make() -> Any:
        made = keras.Sequential([keras.Input((6, WIDTH)), layers.Masking(), layers.LSTM(2, return_sequences=True)])
        made.compile("sgd", "mse")
        return made

    model, ema = followed(make)
    x = np.ones((4, 6, WIDTH), np.float32)
    x[:, 3:] = 0
    y = np.concatenate([np.zeros((4, 3, 2)), np.full((4, 3, 2), 1e3)], axis=1)
    with ema.applied():
        expected = model.evaluate(x, y, verbose=0)
    assert expected < 10
    assert_equal(ema.evaluate(x, y, verbose=0), expected)


def test_random_numbers_go_on_from_batch_to_batch_and_the_model_keeps_its_seed() -> None:
    class Noisy(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = layers.Dense(2)
            self.noise = layers.Dropout(0.5, seed=3)

        def call(self, x: Any) -> Any:
            return self.noise(self.dense(x), training=True)

    model = Noisy()
    model(vectors())
    ema = polyak.EMA(model, decay=0.5)
    raw = values(model)
    found = ema.predict(np.ones((6, WIDTH)), batch_size=2, verbose=0)
    assert_same_bits(values(model), raw)
    assert len({part.tobytes() for part in np.split(found == 0, 3)}) > 1
    with ema.applied():
        expected = model.predict(np.ones((6, WIDTH)), batch_size=2, verbose=0)
    assert_equal(found, expected)


def test_a_model_that_is_compiled_anew_is_evaluated_anew() -> None:
    model, ema = followed()
    x, y = batch()
    before = ema.evaluate(x, y, verbose=0)
    model.compile("sgd", "mae")
    with ema.applied():
        expected = model.evaluate(x, y, verbose=0)
    assert_equal(ema.evaluate(x, y, verbose=0), expected)
    assert expected != before[0]


def test_metrics_of_the_model_keep_their_state() -> None:
    model, ema = followed()
    x, y = batch()
    model.evaluate(x, y, verbose=0)
    before = [np.array(ops.convert_to_numpy(v)) for m in model.metrics for v in m.variables]
    ema.evaluate(x[:8], y[:8], verbose=0)
    after = [np.array(ops.convert_to_numpy(v)) for m in model.metrics for v in m.variables]
    assert len(before) == len(after) > 0
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


# Refusals


def _own(name: str) -> Any:
    class Own(keras.Sequential):
        pass

    setattr(Own, name, lambda self, *args, **kwargs: getattr(keras.Sequential, name)(self, *args, **kwargs))
    model = Own([keras.Input((WIDTH,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize(
    ("verb", "method"),
    [
        ("evaluate", "test_step"),
        ("evaluate", "compute_loss"),
        ("evaluate", "compute_metrics"),
        ("predict", "predict_step"),
    ],
)
def test_a_model_with_a_step_of_its_own_is_refused(verb: str, method: str) -> None:
    model = _own(method)
    ema = polyak.EMA(model, decay=0.9)
    x, y = batch()
    with pytest.raises(
        ModelError, match=rf"expected a model that leaves {verb} to Keras; Own .* {method}\(\)"
    ) as error:
        getattr(ema, verb)(*((x, y) if verb == "evaluate" else (x,)), verbose=0)
    assert f"with ema.applied(): model.{verb}(...)" in str(error.value.hint)


def test_a_metric_in_an_attribute_is_refused() -> None:
    model = regression()
    model.own = keras.metrics.Mean(name="own")
    with pytest.raises(ModelError, match="the metric 'own', which is in an attribute"):
        polyak.EMA(model, decay=0.9).evaluate(*batch(), verbose=0)


def test_a_metric_that_cannot_be_made_anew_is_refused() -> None:
    def mine(y: Any, p: Any) -> Any:
        return ops.mean(y - p)

    model = regression()
    model.compile("sgd", "mse", metrics=[keras.metrics.MeanMetricWrapper(mine, name="mine")])
    ema = polyak.EMA(model, decay=0.9)
    with pytest.raises(ModelError, match="metric 'mine': expected one that Keras can make anew"):
        ema.evaluate(*batch(), verbose=0)
    model.compile("sgd", "mse", metrics=[mine])
    with ema.applied():
        expected = model.evaluate(*batch(), verbose=0)
    assert_equal(ema.evaluate(*batch(), verbose=0), expected)


def test_a_model_that_is_not_compiled_predicts_and_is_not_evaluated() -> None:
    model, ema = followed(ZOO["sequential"].built)
    with ema.applied():
        expected = ops.convert_to_numpy(model(vectors()))
    np.testing.assert_allclose(ema.predict(vectors(), verbose=0), expected, **UNITS)
    with pytest.raises(ModelError, match="expected a compiled model"):
        ema.evaluate(vectors(), vectors())


def test_a_layer_has_neither() -> None:
    layer = layers.Dense(2)
    layer.build((None, WIDTH))
    with pytest.raises(ModelError, match=r"expected an average of a keras\.Model, received one of Dense"):
        polyak.EMA(layer, decay=0.9).predict(vectors())


def test_a_model_with_a_train_step_of_its_own_is_viewed() -> None:
    model = OwnTrainStep()
    model(vectors())
    model.compile("sgd", "mse")
    ema = polyak.EMA(model, decay=0.5)
    with ema.applied():
        expected = model.evaluate(vectors(), vectors(), verbose=0)
    assert_equal(ema.evaluate(vectors(), vectors(), verbose=0), expected)


# Beside a training thread


def _in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[BaseException]]:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # is raised in the test
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, failed


def test_evaluation_beside_fit_changes_nothing_of_the_training() -> None:
    """Twins: one trains alone, the other while this thread evaluates and predicts with its average all the time."""
    x, y = batch()

    def train(model: Any) -> Any:
        averaging = polyak.keras.Averaging("ema:0.9")
        keras.utils.set_random_seed(5)
        model.fit(x, y, 8, 1, verbose=0, callbacks=[averaging])
        return averaging

    keras.utils.set_random_seed(4)
    alone, watched = regression(), regression()
    watched.set_weights(alone.get_weights())
    first = [train(alone), train(watched)]
    epochs = 6
    alone.fit(x, y, 8, epochs, verbose=0, shuffle=False, callbacks=[first[0]])
    ema, seen = first[1].average, []
    thread, failed = _in_thread(lambda: watched.fit(x, y, 8, epochs, verbose=0, shuffle=False, callbacks=[first[1]]))
    while thread.is_alive():
        seen.append((ema.evaluate(x, y, verbose=0)[0], ema.predict(x, verbose=0).mean()))
    thread.join()
    assert not failed
    assert seen
    assert np.isfinite(seen).all()
    assert ema.count == first[0].average.count == (epochs + 1) * 6
    assert_same_bits(values(watched), values(alone))
    assert_same_bits(ema.values(), first[0].average.values())
    assert_equal(ema.evaluate(x, y, verbose=0), first[0].average.evaluate(x, y, verbose=0))


def test_what_is_evaluated_beside_updates_is_of_one_moment() -> None:
    """Every weight of the model is n after update n: the outputs tell if two weights were read at different moments."""
    wide = keras.Sequential([keras.Input((1,)), *(layers.Dense(1, use_bias=False) for _ in range(4))])
    variables = list(wide.trainable_variables)
    ema = polyak.track(wide, "copy")
    stop = threading.Event()

    def train() -> None:
        n = 0
        while not stop.is_set():
            n = n % 9 + 1
            for variable in variables:
                variable.assign([[float(n)]])
            ema.update()

    for variable in variables:
        variable.assign([[1.0]])
    ema.update()
    ema.predict(np.ones((1, 1)), verbose=0)
    thread, failed = _in_thread(train)
    seen = [round(float(ema.predict(np.ones((1, 1)), verbose=0)[0, 0])) for _ in range(25)]
    stop.set()
    thread.join()
    assert not failed
    assert set(seen) <= {n**4 for n in range(1, 10)}


def test_who_predicts_while_another_thread_does_waits_for_it() -> None:
    """Both run the same copies of the average, which are those of one moment until the first has its answer."""
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False)])
    ema, kernel = polyak.track(model, "copy"), model.trainable_variables[0]
    later: list[Any] = []

    def move(value: float) -> None:
        kernel.assign([[value]])
        ema.update()

    def predict_later() -> None:
        move(2.0)
        later.append(ema.predict(np.ones((1, 1)), verbose=0))

    class Waits(keras.utils.PyDataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Any:
            if index == 1:
                started.append(_in_thread(predict_later))
                started[0][0].join(timeout=1)
            return np.ones((1, 1), np.float32)

    started: list[tuple[threading.Thread, list[BaseException]]] = []
    move(1.0)
    assert ema.predict(Waits(), verbose=0).tolist() == [[1.0]] * 4
    thread, failed = started[0]
    thread.join()
    assert not failed
    assert later[0].tolist() == [[2.0]]


def test_a_train_step_that_waits_for_its_data_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a step holds the average. Its data may come from the average itself, asked by a thread that makes them."""
    model, ema = followed()
    x, _ = batch()
    with ema.applied():
        expected = model.predict(x, verbose=0)
    monkeypatch.setattr("polyak.frameworks.keras_views._PATIENCE", 0.05)
    answer: list[Any] = []
    with ema.moment():
        thread, failed = _in_thread(lambda: answer.append(ema.predict(x, verbose=0)))
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert not failed
    assert_equal(answer[0], expected)


@pytest.mark.skipif(BACKEND != "jax", reason="only on JAX does fit take the weights out of the variables")
def test_what_the_average_leaves_out_cannot_be_read_during_fit_on_jax() -> None:
    model = regression()
    x, y = batch()
    averaging = polyak.keras.Averaging({"out/*": None, "*": "mean"})
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, step: int, logs: Any = None) -> None:
            with pytest.raises(ModelError, match=r"out/(kernel|bias)'.*received none: fit\(\) keeps it") as error:
                averaging.average.predict(x, verbose=0)
            seen.append(error)

    model.fit(x, y, 8, 1, verbose=0, callbacks=[averaging, Look()])
    assert len(seen) == 6
    averaging.average.predict(x, verbose=0)


def test_a_callback_may_evaluate_within_fit() -> None:
    """In the thread that trains, between two steps; on JAX the variables of the model are empty then."""
    model = regression()
    x, y = batch()
    averaging = polyak.keras.Averaging("ema:0.9")
    seen: list[float] = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, step: int, logs: Any = None) -> None:
            seen.append(averaging.average.evaluate(x, y, verbose=0)[0])

    model.fit(x, y, 8, 2, verbose=0, callbacks=[averaging, Look()])
    assert len(set(seen)) == 12
    with averaging.average.applied():
        assert_equal(seen[-1], model.evaluate(x, y, verbose=0)[0])


def test_what_a_model_gives_away_may_have_keys_of_two_sorts_and_keeps_their_order() -> None:
    class Giving(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x: Any) -> Any:
            return {"z": self.dense(x), 1: None, "a": [self.dense.kernel]}

    model = Giving()
    x = np.ones((1, 3), "float32")
    model(x)
    ema = polyak.EMA(model, 0.5)
    found = ema(x)
    assert list(found) == ["z", 1, "a"]
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(found["a"][0]), ema.values()["dense/kernel"])


def traced(call: Any) -> list[Any]:
    """The same within a function that TensorFlow traces, where Keras runs on it."""
    if keras.backend.backend() != "tensorflow":
        return []
    import tensorflow as tf

    return [tf.function(lambda x: call(x))]


@pytest.mark.parametrize("change", ["enable_lora", "add"])
def test_a_call_refuses_weights_that_came_after_the_average(change: str) -> None:
    """It would mix averaged weights with new ones that have no average."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    ema = polyak.EMA(model, decay=0.9)
    x = np.ones((2, 3), np.float32)
    ema.update()
    ema(x)
    model.fit(x, x, verbose=0)  # makes metrics, which are no weights
    ema(x)
    if change == "enable_lora":
        model.layers[0].enable_lora(2)
    else:
        model.add(keras.layers.Dense(3))
    for call in [ema, *traced(ema)]:
        with pytest.raises(ModelError, match="was created after the average"):
            call(x)
    ema.refresh()
    found, expected = ema(x), model(x)  # what is new begins at its present values, and the rest has not moved
    assert found.shape == expected.shape
