"""Validation with both sets of weights: all of them see the data of one pass, or the data are refused."""

from __future__ import annotations

import random
from typing import Any

import keras
import numpy as np
import pytest

from polyak.errors import ModelError
from polyak.keras import Averaging

NUMBERS = np.random.default_rng(0)
X = NUMBERS.standard_normal((16, 5, 3)).astype("float32")
Y = X[:, -1, :1].copy()


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
        (whole.shuffle(16).take(8).cache().batch(4).repeat(), 1),
        (whole.shuffle(16).filter(lambda x, y: True).batch(4), 4),
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
        (whole.shuffle(16).take(8).cache().batch(4).repeat(), 2),
        (whole.shuffle(16).filter(lambda x, y: True).batch(4), None),
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


# Dice that lie further within the data


class Holder:
    """As an augmentation of one's own, with an attribute in a slot."""

    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held


def thrown_by(made: Any) -> Any:
    """A function that has its dice from where it was made."""
    return lambda: float(made.normal())


class Deep(Sliding):
    """Where dice lie, and how they are thrown."""

    def __init__(self, held: Any, throw: Any) -> None:
        super().__init__("on_epoch_end")
        self.samples = [{"name": str(at), "box": [at, at]} for at in range(200_000)]
        self.held, self.throw = held, throw

    def __getitem__(self, batch: int) -> Any:
        x, y = X[3 * batch : 3 * batch + 3], Y[3 * batch : 3 * batch + 3]
        return x + np.float32(self.throw(self.held)), y


def augmented(layer: Any) -> float:
    return float(keras.ops.convert_to_numpy(layer(np.ones((1, 4, 4, 1), "float32"), training=True)).sum())


DEEP = {
    "NumPy's older dice": lambda: Deep(np.random.RandomState(1), lambda dice: dice.normal()),
    "in a dict in a list": lambda: Deep([{"a": np.random.default_rng(1)}], lambda held: held[0]["a"].normal()),
    "in a slot": lambda: Deep(Holder(np.random.default_rng(1)), lambda holder: holder.held.normal()),
    "in a function": lambda: Deep(thrown_by(np.random.default_rng(1)), lambda throw: throw()),
    "bits": lambda: Deep(np.random.PCG64(1), lambda bits: np.random.Generator(bits).normal()),
    "a layer of Keras": lambda: Deep(keras.layers.GaussianNoise(1.0, seed=3), augmented),
    "layers in a model": lambda: Deep(keras.Sequential([keras.layers.RandomTranslation(0.4, 0.4, seed=3)]), augmented),
}


@pytest.mark.parametrize("kind", DEEP)
def test_dice_that_lie_within_what_the_data_hold_are_thrown_alike(kind: str) -> None:
    def fit(*callbacks: Any) -> Any:
        return flat().fit(X, Y, 4, 3, verbose=0, validation_data=DEEP[kind](), callbacks=list(callbacks)).history

    plain, both = fit(), fit(Averaging("copy", evaluate="both"))
    assert len(set(plain["val_loss"])) == 3
    assert {name: both[name] for name in plain} == plain
    assert both["val_loss"] == both["val_average_loss"]


def test_dice_that_lie_within_a_dataset_of_torch_are_thrown_alike() -> None:
    torch = pytest.importorskip("torch")

    class Augmented(torch.utils.data.Dataset):  # type: ignore[misc]
        def __init__(self) -> None:
            self.augmentations = [Holder(np.random.default_rng(5))]

        def __len__(self) -> int:
            return 16

        def __getitem__(self, at: int) -> Any:
            return torch.tensor(X[at] + np.float32(self.augmentations[0].held.normal())), torch.tensor(Y[at])

    loader = torch.utils.data.DataLoader(Augmented(), 4)
    averaging = Averaging("copy", evaluate="both")
    both = flat().fit(X, Y, 4, 3, verbose=0, validation_data=loader, callbacks=[averaging]).history
    assert len(set(both["val_loss"])) == 3
    assert both["val_loss"] == both["val_average_loss"]


def test_what_has_no_state_that_could_be_put_back_is_left_alone() -> None:
    averaging = Averaging("copy", evaluate="both")
    data = Deep(random.SystemRandom(), lambda dice: 0.0)
    both = flat().fit(X, Y, 4, 1, verbose=0, validation_data=data, callbacks=[averaging]).history
    assert both["val_loss"] == both["val_average_loss"]


# Datasets of TensorFlow that do not know how many they are, or lose some on the way


def records(folder: Any) -> Any:
    """As they come from files: nobody knows how many there are."""
    tf = pytest.importorskip("tensorflow")
    path = str(folder / "v.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for x, y in zip(X, Y, strict=True):
            writer.write(x.tobytes() + y.tobytes())

    def parse(record: Any) -> Any:
        numbers = tf.io.decode_raw(record, tf.float32)
        return tf.reshape(numbers[:15], (5, 3)), numbers[15:]

    return tf.data.TFRecordDataset(path).map(parse)


def both_of(data: Any, steps: int | None = None) -> Any:
    averaging = Averaging("copy", evaluate="both")
    return (
        flat().fit(X, Y, 4, 2, verbose=0, validation_data=data, validation_steps=steps, callbacks=[averaging]).history
    )


PARTS = {
    "steps of records": lambda found, tf: (found.shuffle(16).batch(4), 2),
    "steps of records for ever": lambda found, tf: (found.shuffle(16).repeat().batch(4), 2),
    "a last batch of records": lambda found, tf: (found.shuffle(16).batch(5, drop_remainder=True), None),
    "a last batch after a filter": lambda found, tf: (
        known(found, tf).shuffle(16).filter(lambda x, y: y[0] > 0).batch(5, drop_remainder=True),
        None,
    ),
    "batches of batches": lambda found, tf: (
        known(found, tf).shuffle(16).batch(4).rebatch(5, drop_remainder=True),
        None,
    ),
    "a cache filled in part, by steps": lambda found, tf: (known(found, tf).shuffle(16).cache().batch(4), 2),
    "a cache filled in part, by take": lambda found, tf: (
        known(found, tf).shuffle(16).cache().take(10).batch(4),
        None,
    ),
    "a shorter one beside it": lambda found, tf: (
        tf.data.Dataset.zip((known(found, tf).shuffle(16), known(found, tf).take(9))).map(lambda a, b: a).batch(4),
        None,
    ),
    "choices that end": lambda found, tf: (
        chosen(found, tf, tf.data.Dataset.range(2).repeat(4), stop_on_empty_dataset=False),
        None,
    ),
    "choices until one is empty": lambda found, tf: (
        chosen(found, tf, tf.data.Dataset.range(2).repeat(), stop_on_empty_dataset=True),
        None,
    ),
    "a shard": lambda found, tf: (known(found, tf).shuffle(16).shard(2, 1).batch(4), None),
    "all but the first": lambda found, tf: (known(found, tf).shuffle(16).skip(1).batch(4), None),
}
WHOLE = {
    "records": lambda found, tf: (found.shuffle(16).batch(4), None),
    "records that are counted": lambda found, tf: (known(found, tf).shuffle(16).batch(4), 4),
    "records that are not shuffled": lambda found, tf: (found.batch(4), 2),
    "a filter": lambda found, tf: (found.shuffle(16).filter(lambda x, y: y[0] > 0).batch(4), None),
    "a cache filled whole": lambda found, tf: (found.shuffle(16).cache().batch(5, drop_remainder=True), None),
    "a part in the cache": lambda found, tf: (found.shuffle(16).take(9).cache().batch(4), None),
    "batches of batches": lambda found, tf: (found.shuffle(16).batch(4).rebatch(5), None),
    "all by take": lambda found, tf: (known(found, tf).shuffle(16).take(-1).skip(0).shard(1, 0).batch(4), None),
    "more than all by take": lambda found, tf: (known(found, tf).shuffle(16).take(99).batch(4), None),
    "choices to the end": lambda found, tf: (
        chosen(found, tf, tf.data.Dataset.range(2).repeat(), stop_on_empty_dataset=False),
        None,
    ),
    "samples": lambda found, tf: (tf.data.Dataset.sample_from_datasets([found.shuffle(16), found]).batch(4), None),
    "with their numbers": lambda found, tf: (found.shuffle(16).enumerate().map(lambda at, xy: xy).batch(4), None),
}


def chosen(found: Any, tf: Any, choices: Any, **asked: Any) -> Any:
    parts = [known(found, tf).shuffle(16), known(found, tf).take(9)]
    return tf.data.Dataset.choose_from_datasets(parts, choices, **asked).batch(4)


def known(found: Any, tf: Any) -> Any:
    return found.apply(tf.data.experimental.assert_cardinality(16))


@pytest.mark.parametrize("kind", PARTS)
def test_a_dataset_that_is_shuffled_anew_is_refused_where_it_cannot_be_sure_to_be_read_whole(
    kind: str, tmp_path: Any
) -> None:
    tf = pytest.importorskip("tensorflow")
    with pytest.raises(ModelError, match="takes another part, or may") as told:
        both_of(*PARTS[kind](records(tmp_path), tf))
    assert "reshuffle_each_iteration=False" in str(told.value)
    assert ("assert_cardinality" in str(told.value)) == (kind.endswith("filter") or "records" in kind)


@pytest.mark.parametrize("kind", WHOLE)
def test_a_dataset_of_unknown_size_is_taken_where_it_is_read_whole_or_in_one_order(kind: str, tmp_path: Any) -> None:
    tf = pytest.importorskip("tensorflow")
    found = both_of(*WHOLE[kind](records(tmp_path), tf))
    assert np.allclose(found["val_loss"], found["val_average_loss"], rtol=1e-6)
