"""K1, K2, K5, K7, K8: where Keras mixes up raw and averaged weights, and polyak in the very same situation."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras.callbacks import ModelCheckpoint, SwapEMAWeights
from tests.keras.peers import (
    BACKEND,
    Record,
    StopAfter,
    X,
    Y,
    adam,
    averaging_adam,
    by_position,
    close,
    network,
    one_ema,
    same,
    slots,
    still_fails,
    train,
)

import polyak
from polyak.errors import ImmatureWarning
from polyak.keras import Averaging

ARITHMETIC = "Keras swaps by sums and differences on TensorFlow alone; on this backend it exchanges"


def with_raw_weights() -> Any:
    """A trained model beside whose averages stand other raw weights: Keras itself overwrites them after ``fit``."""
    model = network()
    train(model, 2)
    model.set_weights([w + 1 for w in model.get_weights()])
    return model


def with_averaging(evaluate: Any = "average") -> tuple[Any, Averaging]:
    model, averaging = network(adam()), Averaging("ema:0.9,start=copy", evaluate=evaluate)
    train(model, 3, averaging)
    return model, averaging


def test_k1_keras_leaves_the_average_in_the_model_after_predict() -> None:
    model = with_raw_weights()
    raw, average = model.get_weights(), slots(model)
    model.predict(X, verbose=0, callbacks=[SwapEMAWeights()])
    still_fails("K1", not np.allclose(model.get_weights()[0], raw[0]) and np.allclose(slots(model)[0], raw[0]))
    np.testing.assert_allclose(model.get_weights()[0], average[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("verb", ["evaluate", "predict", "save", "exception"])
def test_k1_polyak_leaves_the_raw_bits_in_the_model(verb: str, tmp_path: Any) -> None:
    model, averaging = with_averaging()
    raw, average = model.get_weights(), by_position(averaging.average)
    if verb == "evaluate":
        model.evaluate(X, Y, verbose=0, callbacks=[averaging])
    elif verb == "predict":
        model.predict(X, verbose=0, callbacks=[averaging])
    elif verb == "save":
        with averaging.average.applied():
            polyak.save(model, tmp_path / "average.safetensors")
        assert polyak.open(tmp_path / "average.safetensors").roles == ("average",)
    else:
        with pytest.raises(KeyboardInterrupt), averaging.average.applied():
            raise KeyboardInterrupt
    assert same(model.get_weights(), raw)
    assert same(by_position(averaging.average), average)


def far_apart(average: float) -> Any:
    """Raw weights far below their averages."""
    model = network()
    train(model, 1)
    model.set_weights([np.full_like(w, 1e-6) for w in model.get_weights()])
    for slot in model.optimizer._model_variables_moving_average:
        slot.assign(np.full(slot.shape, average, np.float32))
    return model


@pytest.mark.skipif(BACKEND != "tensorflow", reason=ARITHMETIC)
@pytest.mark.parametrize("average", [100.0, np.inf])
def test_k2_keras_destroys_small_weights_under_a_large_average(average: float) -> None:
    model = far_apart(average)
    model.evaluate(X, Y, verbose=0, callbacks=[SwapEMAWeights()])
    left = model.get_weights()[0]
    still_fails("K2", not np.array_equal(left, np.full_like(left, 1e-6)))
    assert np.isnan(left).all() if np.isinf(average) else not left.any()


def test_k2_polyak_keeps_small_weights_under_a_large_average() -> None:
    model, averaging = with_averaging()
    ema = averaging.average
    model.set_weights([np.full_like(w, 1e-6) for w in model.get_weights()])
    ema.set_values({path: np.full_like(value, 100.0) for path, value in ema.values().items()})
    raw, averaged = model.get_weights(), by_position(ema)
    for _ in range(3):
        model.evaluate(X, Y, verbose=0, callbacks=[averaging])
        assert same(model.get_weights(), raw)
        assert same(by_position(ema), averaged)


def test_k5_keras_stopped_early_in_a_swapped_epoch_loses_the_average() -> None:
    model, record = network(), Record()
    train(model, 9, record, SwapEMAWeights(swap_on_epoch=True), StopAfter(3))
    raw = record.steps[-1]
    still_fails("K5", np.allclose(model.get_weights()[0], raw[0], atol=1e-6))
    # The slots hold the same weights: there is no average left.
    np.testing.assert_allclose(slots(model)[0], raw[0], atol=1e-6)


@pytest.mark.parametrize("finish", ["raw", "average"])
def test_k5_polyak_stopped_early_keeps_both_sets(finish: Any) -> None:
    model, record = network(adam()), Record()
    averaging = Averaging("ema:0.9,start=copy", finish=finish, evaluate="average")
    with pytest.warns(ImmatureWarning):
        train(model, 9, record, averaging, StopAfter(3), validation_data=(X, Y))
    average = by_position(averaging.average)
    assert averaging.average.count == 4
    assert close(average, one_ema(record.steps))
    assert same(model.get_weights(), record.steps[-1] if finish == "raw" else average)
    if finish == "average":
        assert averaging.raw is not None
        np.testing.assert_array_equal(averaging.raw["a/kernel"], record.steps[-1][0])


class Worse(keras.callbacks.Callback):
    """Makes every epoch after the second worse, so that the best one is known."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch >= 2:
            self.model.set_weights([w + 10 for w in self.model.get_weights()])


def test_k5_polyak_ends_with_both_sets_of_the_epoch_whose_averaged_metric_was_best() -> None:
    model, record = network(adam()), Record()
    averaging = Averaging("ema:0.9,start=copy", evaluate="both", best="val_average_loss")
    train(model, 4, Worse(), record, averaging, validation_data=(X, Y))
    assert averaging.best_epoch is not None
    best = averaging.best_epoch.epoch
    assert best <= 1
    assert same(model.get_weights(), record.steps[best])
    assert close(by_position(averaging.average), one_ema(record.steps[: best + 1]))


def first_kernel(path: Any) -> Any:
    """What plain Keras takes for the model's weights in a file."""
    twin = network(adam())
    twin.load_weights(path, skip_mismatch=True)
    return twin.get_weights()[0]


def test_k7_keras_writes_exchanged_roles_while_swapped(tmp_path: Any) -> None:
    model, record = network(), Record()
    path = str(tmp_path / "{epoch}.weights.h5")
    checkpoint = ModelCheckpoint(path, save_weights_only=True)
    train(model, 3, record, SwapEMAWeights(swap_on_epoch=True), checkpoint)
    stored = first_kernel(tmp_path / "2.weights.h5")
    raw, average = record.steps[1][0], one_ema(record.steps[:2])[0]
    still_fails("K7", not np.allclose(stored, raw, atol=1e-6))
    np.testing.assert_allclose(stored, average, atol=1e-5)


def test_k7_polyak_beside_a_checkpoint_writes_raw_weights_as_raw(tmp_path: Any) -> None:
    model, record = network(adam()), Record()
    checkpoint = ModelCheckpoint(str(tmp_path / "{epoch}.weights.h5"), save_weights_only=True)
    averaging = Averaging("ema:0.9,start=copy", evaluate="average")
    train(model, 3, checkpoint, averaging, record, validation_data=(X, Y))
    snap = polyak.open(tmp_path / "2.weights.h5")
    np.testing.assert_array_equal(first_kernel(tmp_path / "2.weights.h5"), record.steps[1][0])
    assert {"raw", "average"} <= set(snap.roles)
    np.testing.assert_array_equal(snap.select(role="raw")["a/kernel"], record.steps[1][0])
    np.testing.assert_allclose(snap.select(role="average")["a/kernel"], one_ema(record.steps[:2])[0], rtol=2e-6)


def test_k7_a_file_written_while_the_average_is_applied_is_refused_or_says_so(tmp_path: Any) -> None:
    model, averaging = with_averaging()
    with averaging.average.applied():
        with pytest.raises(polyak.errors.Applied):
            model.save_weights(tmp_path / "swapped.weights.h5")
        polyak.save(model, tmp_path / "m.safetensors")
    assert polyak.open(tmp_path / "m.safetensors").roles == ("average",)


def test_k8_keras_ends_a_short_run_far_from_what_it_trained() -> None:
    model = network(averaging_adam(ema_momentum=0.999))
    model.set_weights([w + 3 for w in model.get_weights()])
    record = Record()
    history = train(model, 25, record)
    handed_over = model.evaluate(X, Y, verbose=0)
    still_fails("K8", handed_over > 3 * history.history["loss"][-1])
    assert not np.allclose(model.get_weights()[0], record.steps[-1][0], atol=1e-2), "the raw weights are gone"


def test_k8_polyak_warns_of_an_immature_average_and_keeps_the_raw_weights() -> None:
    model, record = network(adam()), Record()
    model.set_weights([w + 3 for w in model.get_weights()])
    averaging = Averaging("ema:0.999,start=copy", finish="average")
    with pytest.warns(ImmatureWarning, match=r"after 25 updates 97\.6% of the average"):
        train(model, 25, record, averaging)
    assert averaging.raw is not None
    assert same([averaging.raw["a/kernel"], averaging.raw["head/bias"]], [record.steps[-1][0], record.steps[-1][5]])


def test_k8_polyaks_default_rule_follows_a_short_run() -> None:
    model, averaging = network(adam()), Averaging("ema:0.999")
    model.set_weights([w + 3 for w in model.get_weights()])
    before = model.evaluate(X, Y, verbose=0)
    history = train(model, 25, averaging).history
    with averaging.average.applied():
        after = model.evaluate(X, Y, verbose=0)
    assert after < 0.5 * before
    assert after < 3 * history["loss"][-1]
    assert averaging.average.immaturity < 0.01
