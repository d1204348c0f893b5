"""Validation with both sets of weights: each pass sees all the data and what layers remember, and leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest

from polyak.errors import ModelError
from polyak.keras import Averaging

DICE = np.random.default_rng(0)
X = DICE.standard_normal((16, 5, 3)).astype("float32")
Y = X[:, -1, :1].copy()
LAYERS = {
    "simple": lambda: keras.layers.SimpleRNN(4, stateful=True),
    "lstm": lambda: keras.layers.LSTM(4, stateful=True),
    "both directions": lambda: keras.layers.Bidirectional(keras.layers.GRU(2, stateful=True)),
}
if keras.backend.backend() == "torch":
    LAYERS = {"simple": LAYERS["simple"]}  # Keras itself cannot train the others there


def model(kind: str) -> Any:
    keras.utils.set_random_seed(3)
    made = keras.Sequential([keras.Input(batch_shape=(4, 5, 3)), LAYERS[kind](), keras.layers.Dense(1)])
    made.compile(keras.optimizers.SGD(0.3), "mse")
    return made


def fitted(made: Any, *callbacks: Any) -> Any:
    return made.fit(
        X, Y, 4, 3, verbose=0, shuffle=False, validation_data=(X[:8], Y[:8]), callbacks=list(callbacks)
    ).history


def states(made: Any) -> list[bytes]:
    layers = [x for x in made._flatten_layers() if isinstance(x, keras.layers.RNN)]
    return [keras.ops.convert_to_numpy(s).tobytes() for x in layers for s in keras.tree.flatten(x.states)]


@pytest.mark.parametrize("kind", LAYERS)
def test_a_second_pass_changes_nothing_of_what_recurrent_layers_remember_for_training(kind: str) -> None:
    alone, averaged = model(kind), model(kind)
    plain = fitted(alone)
    both = fitted(averaged, Averaging("ema:0.5", evaluate="both"))
    assert {name: both[name] for name in plain} == plain
    assert all((a == b).all() for a, b in zip(alone.get_weights(), averaged.get_weights(), strict=True))
    assert states(alone) == states(averaged)


@pytest.mark.parametrize("kind", LAYERS)
def test_both_passes_begin_with_what_the_layers_remember_of_the_training(kind: str) -> None:
    """An average that copies is the raw weights: its pass must say what theirs says, to the last bit."""
    told = fitted(model(kind), Averaging("copy", evaluate="both"))
    assert told["val_average_loss"] == told["val_loss"]


def test_metrics_of_the_model_are_those_of_keras_own_pass() -> None:
    keras.utils.set_random_seed(3)
    made = keras.Sequential([keras.Input((5, 3)), keras.layers.Flatten(), keras.layers.Dense(1)])
    made.compile(keras.optimizers.SGD(0.1), "mse", metrics=["mae"])
    seen = []
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(made.get_metrics_result()))
    history = fitted(made, look, Averaging("mean", evaluate="both"))
    for name in ("loss", "mae"):
        assert [float(found[name]) for found in seen] == history[f"val_{name}"] != history[f"val_average_{name}"]


class Noise(keras.layers.Layer):
    """Noise in every pass, as in an autoencoder that draws from its code."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds = keras.random.SeedGenerator(7)

    def call(self, x: Any) -> Any:
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seeds)


def test_noise_that_is_drawn_in_a_second_pass_is_drawn_again() -> None:
    """A rule that leaves out all but a layer leaves out the seeds."""

    def noisy() -> Any:
        keras.utils.set_random_seed(3)
        made = keras.Sequential([keras.Input((5, 3)), Noise(), keras.layers.Flatten(), keras.layers.Dense(1, name="d")])
        made.compile(keras.optimizers.SGD(0.01), "mse")
        return made

    alone, averaged = noisy(), noisy()
    plain = fitted(alone)
    both = fitted(averaged, Averaging({"d/*": "copy", "*": None}, evaluate="both"))
    assert {name: both[name] for name in plain} == plain
    assert both["val_average_loss"] == both["val_loss"]
    assert all((a == b).all() for a, b in zip(alone.get_weights(), averaged.get_weights(), strict=True))


def test_a_generator_is_refused_before_anything_moves_where_it_would_be_read_twice() -> None:
    def once() -> Iterator[Any]:
        yield X[:4], Y[:4]
        yield X[4:8], Y[4:8]

    made = model("simple")
    before = made.get_weights()
    for data in (once(), (once(),)):
        with pytest.raises(ModelError, match="read twice, received a generator") as told:
            made.fit(X, Y, 4, verbose=0, validation_data=data, callbacks=[Averaging("copy", evaluate="both")])
        assert "tf.data.Dataset" in str(told.value)
    assert all((a == b).all() for a, b in zip(before, made.get_weights(), strict=True))
    for evaluate in ("raw", "average"):
        averaging = Averaging("copy", evaluate=evaluate)
        assert "val_loss" in made.fit(X, Y, 4, verbose=0, validation_data=once(), callbacks=[averaging]).history


# Data that differ from pass to pass


def flat() -> Any:
    keras.utils.set_random_seed(3)
    made = keras.Sequential([keras.Input((5, 3)), keras.layers.Flatten(), keras.layers.Dense(1)])
    made.compile(keras.optimizers.SGD(0.1), "mse")
    return made


class Sliding(keras.utils.PyDataset):
    """Other data in each epoch, and dice of its own in each batch."""

    def __init__(self, told: str) -> None:
        super().__init__()
        self.at = 0
        setattr(self, told, self.slide)

    def slide(self) -> None:
        self.at += 1

    def __len__(self) -> int:
        return 2

    def __getitem__(self, batch: int) -> Any:
        at = self.at + 3 * batch
        return X[at : at + 3] + np.random.normal(size=(3, 5, 3)).astype("float32"), Y[at : at + 3]  # noqa: NPY002


def shuffled() -> Any:
    torch = pytest.importorskip("torch")
    torch.manual_seed(5)  # Keras seeds it on one backend alone
    held = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    return torch.utils.data.DataLoader(held, batch_size=4, shuffle=True)


def shuffled_by_its_own_dice() -> Any:
    torch = pytest.importorskip("torch")
    held = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    sampler = torch.utils.data.RandomSampler(held, generator=torch.Generator().manual_seed(5))
    return torch.utils.data.DataLoader(held, batch_size=4, sampler=sampler)


def batched_by_dice_of_its_own() -> Any:
    torch = pytest.importorskip("torch")
    held = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    sampler = torch.utils.data.RandomSampler(held, generator=torch.Generator().manual_seed(5))
    return torch.utils.data.DataLoader(held, batch_sampler=torch.utils.data.BatchSampler(sampler, 4, False))


class Dice(Sliding):
    """Dice in attributes, and Keras' own where nobody gives a seed."""

    def __init__(self) -> None:
        super().__init__("on_epoch_end")
        self.numpy, self.keras = np.random.default_rng(1), keras.random.SeedGenerator(2)
        keras.random.normal(())  # Keras makes its own at the first use

    def __getitem__(self, batch: int) -> Any:
        x, y = super().__getitem__(batch)
        thrown = [keras.ops.convert_to_numpy(keras.random.normal((), seed=s)) for s in (self.keras, None)]
        return x + self.numpy.normal() + sum(map(float, thrown)), y


DIFFERENT = {
    "a PyDataset told of ends": lambda: Sliding("on_epoch_end"),
    "a PyDataset told of beginnings": lambda: Sliding("on_epoch_begin"),
    "a DataLoader that shuffles": shuffled,
    "a DataLoader with dice of its own": shuffled_by_its_own_dice,
    "a DataLoader whose batches have": batched_by_dice_of_its_own,
    "a PyDataset with dice of its own": Dice,
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_all_sets_are_validated_on_the_data_of_one_pass_and_it_is_keras_own(kind: str) -> None:
    """A copy is the raw weights, so that all three losses of an epoch must be one number."""

    def fit(*callbacks: Any) -> Any:
        made = flat()
        return made.fit(
            X, Y, 4, 3, verbose=0, validation_data=DIFFERENT[kind](), validation_steps=2, callbacks=list(callbacks)
        ).history

    plain = fit()
    both = fit(Averaging("copy", evaluate="both"), Averaging("copy", evaluate="both", name="other"))
    assert len(set(plain["val_loss"])) == 3
    assert {name: both[name] for name in plain} == plain
    assert both["val_loss"] == both["val_average_loss"] == both["val_other_loss"]


def test_a_dataset_that_is_shuffled_anew_is_refused_where_only_a_part_of_it_is_read() -> None:
    tf = pytest.importorskip("tensorflow")
    whole = tf.data.Dataset.from_tensor_slices((X, Y))

    def fit(data: Any, steps: int | None) -> Any:
        averaging = Averaging("copy", evaluate="both")
        return (
            flat()
            .fit(X, Y, 4, 2, verbose=0, validation_data=data, validation_steps=steps, callbacks=[averaging])
            .history
        )

    for data, steps in (
        (whole.shuffle(16).batch(4), 2),
        (whole.shuffle(16).batch(4).prefetch(1).repeat(), 2),
        (whole.shuffle(16).take(8).batch(4), None),
        (whole.shuffle(16).batch(5, drop_remainder=True), None),
        (tf.compat.v1.data.Dataset.from_tensor_slices((X, Y)).batch(4).shuffle(4), 2),
    ):
        with pytest.raises(ModelError, match="shuffles them anew, of which each pass takes another part") as told:
            fit(data, steps)
        assert "reshuffle_each_iteration=False" in str(told.value)
    for data, steps in (
        (whole.shuffle(16, reshuffle_each_iteration=False).batch(4), 2),
        (whole.batch(4).repeat(), 2),
        (whole.shuffle(16).batch(16), 1),
        (whole.shuffle(16).batch(8, drop_remainder=True).repeat(), 2),
        (whole.shuffle(16).take(8).cache().batch(4).repeat(), 1),
        (whole.shuffle(16).filter(lambda x, y: True).batch(4), 4),
    ):
        found = fit(data, steps)
        assert np.allclose(found["val_loss"], found["val_average_loss"], rtol=1e-6)


@pytest.mark.parametrize("steps", [1, None])
def test_a_queue_that_goes_on_is_refused_where_a_pass_stops_in_the_middle(steps: int | None) -> None:
    class Queued(Sliding):
        def __init__(self) -> None:
            super().__init__("on_epoch_end")
            self.workers = 2

        def __getitem__(self, batch: int) -> Any:
            return X[batch * 8 :][:8], Y[batch * 8 :][:8]

    def fit() -> Any:
        averaging = Averaging("copy", evaluate="both")
        return (
            flat()
            .fit(X, Y, 4, 2, verbose=0, validation_data=Queued(), validation_steps=steps, callbacks=[averaging])
            .history
        )

    if steps is not None:
        with pytest.raises(ModelError, match="goes on where the pass before has stopped") as told:
            fit()
        assert "workers=1" in str(told.value)
    else:
        found = fit()
        assert found["val_loss"] == found["val_average_loss"]
