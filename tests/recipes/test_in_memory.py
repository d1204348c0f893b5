"""Recipe a: in memory, between two instances of a custom model with its own training loop."""

import keras
import nets
import numpy as np
import pytest

import polyak


def test_averaged_weights_into_another_instance(trained, fresh):
    model, fast, _ = trained
    before = nets.weights(model)
    receipt = polyak.transfer(fast, fresh)
    nets.assert_same(nets.weights(fresh), nets.averaged(fast))
    nets.assert_same(nets.weights(model), before)
    assert {m.target for m in receipt.moved} == set(polyak.snapshot(fresh))
    assert np.array_equal(fresh(nets.INPUTS), fast(nets.INPUTS))


def test_the_circulating_wrapper_loses_averages_that_polyak_keeps(trained):
    """`ema[var.name]` keeps one entry for each distinct local name: Keras 3 names repeat."""
    model, fast, _ = trained
    by_name = {v.name: v.numpy() for v in model.trainable_variables}
    assert len(by_name) < len(model.trainable_variables)
    moved = [w for w in fast.target.weights if w.kind == "trainable"]
    assert len(moved) == len(model.trainable_variables)


def test_get_and_set_ema_weights_are_named_mappings(trained, fresh):
    _, fast, _ = trained
    other = polyak.EMA(fresh, decay=0.5)
    other.set_values(fast.values())
    nets.assert_same(other.values(), fast.values())
    assert other.count == 0


def test_the_whole_state_goes_on_bit_for_bit():
    """Two instances, one state: after the transfer both train on and stay equal."""
    keras.utils.set_random_seed(2)
    first = nets.built()
    ema = polyak.EMA(first, half_life=5)
    nets.train(first, ema, steps=7)
    second = nets.built()
    follower = polyak.EMA(second, decay=0.99)
    polyak.transfer(first, second)
    polyak.transfer(ema, follower)
    assert (follower.count, follower.rule) == (7, ema.rule)
    for model, average in ((first, ema), (second, follower)):
        nets.train(model, average, steps=9)
    nets.assert_same(nets.weights(second), nets.weights(first))
    nets.assert_same(follower.values(), ema.values())
    assert follower.count == ema.count == 16


@pytest.mark.parametrize("sample", [(None, 3), nets.INPUTS], ids=["shape", "array"])
def test_an_instance_that_is_not_built_is_built_first(trained, sample):
    _, fast, _ = trained
    target = nets.Net()
    with pytest.raises(polyak.errors.UnbuiltModel, match="sample="):
        polyak.transfer(fast, target)
    polyak.transfer(fast, target, sample=sample)
    nets.assert_same(nets.weights(target), nets.averaged(fast))


def test_a_second_wrapper_around_the_same_model_is_no_second_instance(trained):
    """Two averages of one model are two averages; moving one leaves the other and the model alone."""
    model, fast, slow = trained
    copy = polyak.EMA(model, decay=0.5)
    polyak.transfer(slow, copy)
    nets.assert_same(copy.values(), slow.values())
    assert any(not np.array_equal(a, b) for a, b in zip(fast.values().values(), slow.values().values(), strict=True))
