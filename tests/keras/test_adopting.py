"""Taking over the average of a Keras optimizer: values, momentum and count, and one EMA from the first step on."""

from __future__ import annotations

import re
import warnings
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import polyak
from polyak.errors import ModelError, RuleChanged
from polyak.frameworks.adopting import Adopted
from polyak.keras import Averaging

MOMENTUM = 0.8
X = np.random.RandomState(1).normal(size=(8, 3)).astype(np.float32)
Y = X[:, :1] - X[:, 1:2]


class Record(keras.callbacks.Callback):
    """The weights after each epoch, of one batch here."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[list[np.ndarray]] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.weights.append([np.asarray(w, np.float64) for w in self.model.get_weights()])


def network(optimizer: Any = None, *, compiled: bool = False) -> Any:
    """Two layers of one shape, statistics between them, and a head. Eager steps are quick where there are few."""
    inner = [layers.Dense(3, activation="tanh"), layers.BatchNormalization(), layers.Dense(3), layers.Dense(1)]
    model = keras.Sequential([keras.Input((3,)), *inner])
    model.compile(optimizer or adam(), "mse", run_eagerly=not compiled, jit_compile="auto" if compiled else False)
    return model


def adam(**settings: Any) -> Any:
    return keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=MOMENTUM, **settings)


def train(model: Any, epochs: int, *callbacks: Any) -> list[list[np.ndarray]]:
    """The weights after each step: an epoch is one batch."""
    record = Record()
    model.fit(X, Y, batch_size=len(X), epochs=epochs, shuffle=False, verbose=0, callbacks=[*callbacks, record])
    return record.weights


def one_ema(steps: list[list[np.ndarray]]) -> list[np.ndarray]:
    """What Keras' rule makes of all steps, in float64."""
    average = steps[0]
    for weights in steps[1:]:
        average = [MOMENTUM * a + (1 - MOMENTUM) * w for a, w in zip(average, weights, strict=True)]
    return average


def by_position(average: Any) -> list[np.ndarray]:
    """The averaged values in the order of the model's weights."""
    values = average.values()
    ranked = sorted(average.target.weights, key=lambda w: w.evidence.position)
    return [values[w.path] for w in ranked if w.kind.value != "seed"]


def assert_one_ema(average: Any, steps: list[list[np.ndarray]]) -> None:
    trainable = [w.kind.value == "trainable" for w in average.target.weights if w.kind.value != "seed"]
    for value, expected, last, averaged in zip(by_position(average), one_ema(steps), steps[-1], trainable, strict=True):
        np.testing.assert_allclose(value, expected if averaged else last, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "in LossScaleOptimizer"])
@pytest.mark.parametrize("through", ["average", "callback"])
def test_an_adopted_average_goes_on_as_one_ema(through: str, scaled: bool) -> None:
    model = network(keras.optimizers.LossScaleOptimizer(adam()) if scaled else None, compiled=not scaled)
    before = train(model, 6)
    given = polyak.adopt(model.optimizer, model) if through == "average" else polyak.adopt(model.optimizer)
    averaging = Averaging(given)
    after = train(model, 7, averaging)
    assert str(averaging.average.rule) == "ema:0.8,start=copy"
    assert averaging.average.count == 13
    assert_one_ema(averaging.average, before + after)
    # The model holds what it trained last, not what its optimizer had averaged.
    for value, last in zip(model.get_weights(), after[-1], strict=True):
        np.testing.assert_array_equal(value, last)


def test_a_live_average_of_the_model_holds_the_optimizers_values() -> None:
    model = network()
    steps = train(model, 5)
    ema = polyak.adopt(model.optimizer, model)
    assert isinstance(ema, polyak.Average)
    assert (str(ema.rule), ema.count, ema.skipped) == ("ema:0.8,start=copy", 5, 0)
    assert_one_ema(ema, steps)
    assert ema.immaturity == pytest.approx(MOMENTUM**4)
    ema.update()
    assert ema.count == 6


def test_the_optimizer_averages_no_more_and_fit_ends_with_what_it_trained() -> None:
    model = network()
    train(model, 3)
    polyak.adopt(model.optimizer, model)
    assert model.optimizer.use_ema is False
    steps = train(model, 3)
    for value, last in zip(model.get_weights(), steps[-1], strict=True):
        np.testing.assert_array_equal(value, last)


def test_no_overwriting_in_the_middle_is_left_in_a_compiled_step() -> None:
    model = network(adam(ema_overwrite_frequency=2), compiled=True)
    train(model, 3)
    polyak.adopt(model.optimizer, model)
    twin = network(keras.optimizers.Adam(0.05))
    twin.optimizer.build(twin.trainable_variables)
    twin.set_weights(model.get_weights())
    for mine, own in zip(twin.optimizer.variables, model.optimizer.variables, strict=True):
        mine.assign(own.numpy())
    for one, other in zip(train(model, 5)[-1], train(twin, 5)[-1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_files_written_afterwards_fit_the_optimizer_that_they_name(tmp_path: Any) -> None:
    model = network()
    train(model, 3)
    polyak.adopt(model.optimizer, model)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert len(again.optimizer.variables) == len(model.optimizer.variables)
    for mine, own in zip(again.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(mine.numpy(), own.numpy())


def test_an_average_from_a_file_is_adopted(tmp_path: Any) -> None:
    model = network()
    steps = train(model, 4)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert_one_ema(polyak.adopt(again.optimizer, again), steps)


def test_an_optimizer_without_a_step_gives_an_average_whose_first_update_copies() -> None:
    model = network()
    model.optimizer.build(model.trainable_variables)
    averaging = Averaging(polyak.adopt(model.optimizer))
    steps = train(model, 4, averaging)
    assert averaging.average.count == 4
    assert_one_ema(averaging.average, steps)


def test_weights_that_the_optimizer_does_not_train_start_at_their_present_value() -> None:
    model = network()
    model.layers[2].trainable = False
    model.compile(adam(), "mse", run_eagerly=True)
    train(model, 3)
    ema = polyak.adopt(model.optimizer, model)
    values = ema.values()
    np.testing.assert_array_equal(values["dense_1/kernel"], model.layers[2].get_weights()[0])
    np.testing.assert_array_equal(values["batch_normalization/moving_mean"], model.layers[1].get_weights()[2])


def test_accumulated_micro_steps_are_the_moves_and_the_pace_is_said() -> None:
    model = network(adam(gradient_accumulation_steps=4))
    train(model, 8)
    with pytest.warns(RuleChanged, match=re.escape("each of 4 accumulated micro-steps, which is a decay of 0.4096")):
        ema = polyak.adopt(model.optimizer, model)
    assert ema.count == 8


@pytest.mark.parametrize("with_model", [True, False])
def test_where_the_warning_is_an_error_the_optimizer_keeps_its_average(with_model: bool) -> None:
    model = network(adam(gradient_accumulation_steps=4))
    train(model, 8)
    given = (model,) if with_model else ()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuleChanged)
        with pytest.raises(RuleChanged):
            polyak.adopt(model.optimizer, *given)
    assert model.optimizer.use_ema is True
    with pytest.warns(RuleChanged):
        assert polyak.adopt(model.optimizer, *given).count == 8


def test_pairs_are_made_by_identity_and_not_by_position() -> None:
    model = network()
    one, other = model.layers[0], model.layers[2]
    turned = [*other.trainable_variables, *model.layers[1].trainable_variables]
    turned += [*one.trainable_variables, *model.layers[3].trainable_variables]
    optimizer = model.optimizer
    optimizer.build(turned)
    optimizer._iterations.assign(1)
    for variable, average in zip(turned, optimizer._model_variables_moving_average, strict=True):
        average.assign(variable.numpy() + 1)
    values = polyak.adopt(optimizer, model).values()
    np.testing.assert_array_equal(values["dense/kernel"], one.get_weights()[0] + 1)
    np.testing.assert_array_equal(values["dense_1/kernel"], other.get_weights()[0] + 1)


def test_what_waits_for_its_model_says_what_it_is() -> None:
    model = network()
    train(model, 2)
    adopted = polyak.adopt(model.optimizer)
    assert isinstance(adopted, Adopted)
    assert re.fullmatch(
        r"<ema:0.8,start=copy of Adam 'adam\w*', 2 moves; the optimizer averages no more>", repr(adopted)
    )


def trained(**settings: Any) -> Any:
    model = network(adam(**settings))
    train(model, 2)
    return model


def without_average() -> Any:
    model = network(keras.optimizers.Adam(0.05))
    train(model, 2)
    return model.optimizer, None


def switched_on_later() -> Any:
    optimizer, _ = without_average()
    optimizer.use_ema = True
    return optimizer, None


def never_moved() -> Any:
    model = network()
    model.optimizer.build(model.trainable_variables)
    model.optimizer._iterations.assign(1000)
    return model.optimizer, model


def frozen_since() -> Any:
    model = trained()
    model.layers[0].trainable = False
    return model.optimizer, model


def of_another_model() -> Any:
    return trained().optimizer, trained()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (lambda: (network().optimizer, None), r"expected a built optimizer, received one that has made no step yet"),
        (without_average, r"expected use_ema=True, received an optimizer that keeps no average"),
        (switched_on_later, r"use_ema was switched on after the optimizer was built"),
        (never_moved, r"expected an average that moved 1,000 times, received zeros throughout"),
        (frozen_since, r"averaged and frozen now 'dense/bias' and 1 more; trainable now and not averaged none"),
        (of_another_model, r"received one that trained .* which is no weight of it \(8 in all\)"),
        (lambda: ("adam", None), r"expected a Keras 3 optimizer, received builtins.str"),
    ],
    ids=["unbuilt", "no average", "switched on later", "never moved", "frozen since", "another model", "a name"],
)
def test_what_cannot_be_adopted_is_refused_and_left_as_it_is(case: Any, message: str) -> None:
    optimizer, model = case()
    use_ema = getattr(optimizer, "use_ema", None)
    with pytest.raises(ModelError, match=message) as caught:
        polyak.adopt(optimizer, model)
    assert caught.value.hint
    assert getattr(optimizer, "use_ema", None) == use_ema


def test_the_callback_refuses_a_frozen_set_that_changed_before_it_got_the_model() -> None:
    model = trained()
    averaging = Averaging(polyak.adopt(model.optimizer))
    model.layers[0].trainable = False
    model.compile(keras.optimizers.Adam(), "mse", run_eagerly=True)
    with pytest.raises(ModelError, match="another frozen set"):
        train(model, 1, averaging)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX alone keeps the values in its step")
def test_what_fit_keeps_in_its_compiled_step_is_not_adopted() -> None:
    model, told = network(compiled=True), []

    def adopt(batch: int, logs: Any) -> None:  # no callback of a class: what asks for its model gets the values back
        with pytest.raises(ModelError, match=r"expected a value, received none: fit\(\) keeps it") as error:
            polyak.adopt(optimizer)
        told.append(error.value.hint)

    optimizer = model.optimizer
    train(model, 1, keras.callbacks.LambdaCallback(on_train_batch_end=adopt))
    assert told == ["call polyak.adopt before fit or after it"]
    assert polyak.adopt(optimizer, model).count == 1
