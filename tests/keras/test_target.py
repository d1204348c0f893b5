"""Teachers and target networks: a copy at the start, soft updates after, nothing to train; also in pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import keras
import numpy as np
import pytest

import polyak
from polyak.averaging.kernel import lerp
from polyak.averaging.rules import Rule
from polyak.errors import Applied, ModelError, NonFinite, PolyakError, RuleError, UnbuiltModel

BACKEND = keras.backend.backend()
of_variables = pytest.mark.skipif(BACKEND != "tensorflow", reason="on TensorFlow an average lives in variables")
of_arrays = pytest.mark.skipif(BACKEND == "tensorflow", reason="on TensorFlow an average lives in variables")

Arrays = dict[str, np.ndarray]


def network(dtype: str = "float32") -> Any:
    """Two layers of one shape, statistics, and a random seed."""
    layers = [
        keras.layers.Dense(4, activation="tanh", dtype=dtype),
        keras.layers.BatchNormalization(momentum=0.5),
        keras.layers.Dense(4, dtype=dtype),
        keras.layers.Dropout(0.5),
    ]
    return keras.Sequential([keras.Input((4,)), *layers])


def scramble(model: Any, seed: int) -> None:
    draw = np.random.default_rng(seed)
    for v in model.weights:
        if v.dtype.startswith(("float", "bfloat")):
            v.assign(draw.uniform(0.1, 1.0, v.shape).astype("float32"))


def held(source: Any) -> Arrays:
    return {path: np.array(value) for path, value in polyak.snapshot(source).items()}


def bits(arrays: Arrays) -> dict[str, tuple[str, bytes]]:
    return {path: (array.dtype.name, array.tobytes()) for path, array in arrays.items()}


def rows(seed: int, n: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 4)).astype("float32")


def numpy(tensor: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)


# --- the start -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"tau": 0.005}, {"decay": 0.99}, {"rule": "copy,every=10"}, {"rule": "ema:0.9"}])
def test_a_target_begins_as_an_equal_copy(how: dict[str, Any]) -> None:
    online = network()
    scramble(online, 1)
    target = polyak.Target(online, **how)
    assert bits(target.values()) == bits(held(online))
    assert target.count == 0
    assert np.array_equal(numpy(target(rows(1))), numpy(online(rows(1))))


def test_a_wider_copy_of_narrow_weights_has_their_values() -> None:
    online = network("bfloat16")
    scramble(online, 1)
    target = polyak.Target(online, tau=0.005)
    copies, raw = target.values(), held(online)
    assert {c.dtype.name for path, c in copies.items() if path.endswith("kernel")} == {"float32"}
    assert all(np.array_equal(copies[path], value.astype(copies[path].dtype)) for path, value in raw.items())


def test_a_model_without_weights_is_refused() -> None:
    model = keras.Sequential([keras.layers.Dense(2)])
    with pytest.raises(UnbuiltModel, match="hint: call it once on a batch"):
        polyak.Target(model, tau=0.005)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, "exactly one of rule, tau and decay; received none of them"),
        ({"tau": 0.1, "decay": 0.9}, "received tau and decay"),
        ({"tau": 0.995}, "if you mean decay=0.995 write"),
        ({"decay": 0.005}, "decay=0.995"),
        ({"tau": 1.0}, "write the rule 'copy'"),
        ({"rule": "ema:0.9,start=zero"}, "starts from zeros"),
        ({"rule": {"*": "mean"}}, "one rule for the whole target"),
    ],
)
def test_what_cannot_be_a_target_is_refused(how: dict[str, Any], said: str) -> None:
    with pytest.raises(RuleError, match=said.replace("*", ".")):
        polyak.Target(network(), **how)


def test_a_target_of_weights_that_are_not_finite_is_refused() -> None:
    online = network()
    online.weights[0].assign(np.full((4, 4), np.nan, "float32"))
    with pytest.raises(NonFinite, match="expected finite values to start an average from, received NaN, infinity"):
        polyak.Target(online, tau=0.005)


# --- moving ----------------------------------------------------------------------------------------------------------


def test_soft_updates_are_the_numpy_kernel_and_copy_what_is_not_trained() -> None:
    online = network()
    target = polyak.Target(online, tau=0.125)
    expected = held(online)
    trained = {w.path for w in polyak.snapshot(online).weights if w.kind == "trainable"}
    for seed in range(5):
        scramble(online, seed)
        target.update()
        newest = held(online)
        expected = {p: lerp(a, newest[p], 0.125) if p in trained else newest[p] for p, a in expected.items()}
    assert bits(target.values()) == bits(expected)
    assert target.count == 5


def test_a_target_that_moves_by_copies_is_what_the_model_was_at_the_last_one() -> None:
    online = network()
    target = polyak.Target(online, "copy,every=3")
    seen = [bits(held(online))]
    for seed in range(1, 8):
        scramble(online, seed)
        seen.append(bits(held(online)))
        target.update()
        trained = {p: b for p, b in bits(target.values()).items() if p.endswith(("kernel", "bias", "gamma", "beta"))}
        assert trained == {p: seen[seed // 3 * 3][p] for p in trained}


def test_hard_sync_copies_proves_it_and_counts_from_zero() -> None:
    online = network()
    target = polyak.Target(online, tau=0.005)
    scramble(online, 1)
    target.update()
    assert bits(target.values()) != bits(held(online))
    receipt = target.hard_sync()
    assert bits(target.values()) == bits(held(online))
    assert target.count == 0
    assert {m.target for m in receipt.moved} == set(target.values())


def test_hard_sync_copies_also_where_a_rule_starts_from_zeros() -> None:
    online = network()
    scramble(online, 1)
    ema = polyak.EMA(online, decay=0.9, start="zero")
    assert not ema.values()["dense/kernel"].any()
    ema.hard_sync()
    assert bits(ema.values()) == bits(held(online))


def test_hard_sync_and_take_are_refused_while_the_target_is_applied() -> None:
    target = polyak.Target(network(), tau=0.005)
    with target.applied(), pytest.raises(Applied):
        target.hard_sync()
    if BACKEND != "tensorflow":  # where an average in variables has no tree
        tree = target.tree()
        with target.applied(), pytest.raises(Applied):
            target.take(tree)


@dataclass(frozen=True, slots=True)
class Cosine(Rule):
    """BYOL's schedule (arXiv 2006.07733, section 3.3), as a user writes it: tau falls from ``base`` to 0."""

    name: ClassVar[str] = "cosine"
    base: float
    steps: int

    def _at(self, n: Any, ops: Any) -> Any:
        left = 1.0 - ops.minimum(n / self.steps, 1.0)
        return self.base * left * left * (3.0 - 2.0 * left)


def test_tau_may_follow_a_rule_of_ones_own() -> None:
    online = network()
    target = polyak.Target(online, Cosine(0.25, 4))
    expected = target.values()["dense/kernel"]
    for n in range(1, 7):
        scramble(online, n)
        target.update()
        expected = lerp(expected, held(online)["dense/kernel"], float(Cosine(0.25, 4).weight(n)))
    assert target.values()["dense/kernel"].tobytes() == expected.tobytes()


# --- frozen ----------------------------------------------------------------------------------------------------------


class Student(keras.Model):
    """A student that holds its teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()
        self.teacher = polyak.Target(self.body, tau=0.25)

    def call(self, x: Any, training: bool = False) -> Any:
        return self.body(x, training=training)


def test_a_teacher_in_an_attribute_adds_nothing_to_train_and_nothing_to_the_weights() -> None:
    student = Student()
    student(rows(1))
    assert len(student.trainable_variables) == len(student.body.trainable_variables)
    assert len(student.weights) == len(student.body.weights)


def test_a_teacher_in_an_attribute_is_in_the_files_of_keras(tmp_path: Any) -> None:
    student, other = Student(), Student()
    for model in (student, other):
        model(rows(1))
    scramble(student.body, 1)
    student.teacher.update()
    student.save_weights(tmp_path / "student.weights.h5")
    other.load_weights(tmp_path / "student.weights.h5")
    assert bits(other.teacher.values()) == bits(student.teacher.values())
    assert other.teacher.count == 1


def gradients(loss_of: Any, variables: list[Any]) -> list[Any]:
    """The gradients of a loss with respect to variables, or None where it does not depend on one."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = loss_of()
        return tape.gradient(loss, [v.value for v in variables])
    if BACKEND == "torch":
        import torch

        loss = loss_of()
        if not loss.requires_grad:
            return [None] * len(variables)
        return list(torch.autograd.grad(loss, [v.value for v in variables], allow_unused=True))
    import jax

    def loss(values: list[Any]) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return loss_of()

    found = jax.grad(loss)([v.value for v in variables])
    return [g if np.asarray(g).any() else None for g in found]


def test_no_gradient_reaches_the_model_through_its_target() -> None:
    online = network()
    scramble(online, 1)
    target = polyak.Target(online, tau=0.25)
    scramble(online, 2)
    variables = online.trainable_variables
    through_target = gradients(lambda: keras.ops.sum(target(rows(1))), variables)
    through_online = gradients(lambda: keras.ops.sum(online(rows(1))), variables)
    assert through_target == [None] * len(variables)
    assert all(g is not None for g in through_online)


def test_a_forward_pass_leaves_model_and_target_as_they_are() -> None:
    online = network()
    target = polyak.Target(online, tau=0.25)
    scramble(online, 2)
    before = bits(held(online)), bits(target.values())
    target(rows(1), training=True)
    assert (bits(held(online)), bits(target.values())) == before


def test_a_frozen_second_instance_gets_every_weight_where_zip_pairs_none() -> None:
    online, twin = network(), network()
    twin.trainable = False
    assert list(zip(online.trainable_variables, twin.trainable_variables, strict=False)) == []
    target = polyak.Target(online, tau=0.25)
    scramble(online, 1)
    target.update()
    with pytest.warns(polyak.errors.ImmatureWarning, match="after 1 updates"):
        receipt = target.copy_to(twin)
    assert len(receipt.moved) + len(receipt.left) == len(target.values())
    assert np.array_equal(numpy(twin(rows(1))), numpy(target(rows(1))))


def test_a_smaller_second_instance_is_refused() -> None:
    target = polyak.Target(network(), tau=0.25)
    smaller = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    before = bits(held(smaller))
    for seed in range(20):
        scramble(target.followed(), seed)
        target.update()
    with pytest.raises(polyak.PolyakError):
        target.copy_to(smaller)
    assert bits(held(smaller)) == before


# --- journeys --------------------------------------------------------------------------------------------------------


def test_a_target_is_saved_and_transferred_as_an_average(tmp_path: Any) -> None:
    online, other = network(), network()
    target, goes_on = polyak.Target(online, tau=0.25), polyak.Target(other, tau=0.125)
    scramble(online, 1)
    target.update()
    polyak.save(target, tmp_path / "target.safetensors")
    polyak.transfer(tmp_path / "target.safetensors", goes_on)
    assert (goes_on.rule, goes_on.count) == (target.rule, 1)
    kept = [p for p in target.values() if "seed" not in p]
    assert bits({p: goes_on.values()[p] for p in kept}) == bits({p: target.values()[p] for p in kept})


def test_its_text_says_what_it_is() -> None:
    target = polyak.Target(network(), tau=0.25)
    target.update()
    assert repr(target).startswith("<ema:0.75,start=initial of Sequential: 1 updates, immaturity 0.75, ")


# --- pure functions --------------------------------------------------------------------------------------------------


def lists(model: Any) -> tuple[list[Any], list[Any]]:
    return [v.value for v in model.trainable_variables], [v.value for v in model.non_trainable_variables]


@of_arrays
@pytest.mark.parametrize("rule", ["ema:0.9", "ema:0.9,start=initial", "mean", "copy,every=2", "power:gamma=6.9"])
def test_the_pure_update_has_the_bits_of_update(rule: str) -> None:
    online = network()
    ema, pure = polyak.track(online, rule), polyak.track(online, rule)
    tree = pure.tree()
    for seed in range(5):
        scramble(online, seed)
        ema.update()
        tree = pure.stateless_update(tree, *lists(online))
    assert pure.count == 0
    pure.take(tree)
    assert bits(pure.values()) == bits(ema.values())
    assert pure.count == 5


@of_arrays
def test_a_pure_update_leaves_the_tree_that_it_was_given() -> None:
    online = network()
    target = polyak.Target(online, tau=0.25)
    tree = target.tree()
    before = {path: numpy(a).tobytes() for path, a in tree["shadows"].items()}
    scramble(online, 1)
    target.stateless_update(tree, *lists(online))
    assert {path: numpy(a).tobytes() for path, a in tree["shadows"].items()} == before
    assert int(tree["count"]) == 0


@of_arrays
def test_a_pure_call_is_a_call() -> None:
    online = network()
    target = polyak.Target(online, tau=0.25)
    scramble(online, 1)
    tree = target.stateless_update(target.tree(), *lists(online))
    target.take(tree)
    scramble(online, 2)
    assert np.array_equal(numpy(target.stateless_call(tree, rows(1))), numpy(target(rows(1))))


@of_arrays
def test_a_weight_that_is_not_finite_is_counted_and_reported_when_the_tree_comes_back() -> None:
    online = network()
    target = polyak.Target(online, tau=0.25)
    before = bits(target.values())
    online.weights[0].assign(np.full((4, 4), np.inf, "float32"))
    tree = target.stateless_update(target.tree(), *lists(online))
    with pytest.warns(polyak.errors.NonFiniteWarning, match="1 update"):
        target.take(tree)
    assert (target.count, target.skipped, bits(target.values())) == (0, 1, before)


@of_arrays
def test_lists_of_another_length_and_trees_of_another_model_are_refused() -> None:
    online = network()
    target = polyak.Target(online, tau=0.25)
    trainable, others = lists(online)
    with pytest.raises(ModelError, match="expected 6 trainable_variables, as the model has, received 5"):
        target.stateless_update(target.tree(), trainable[:-1], others)
    with pytest.raises(ModelError, match="non_trainable_variables"):
        target.stateless_update(target.tree(), trainable)
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(ModelError, match=r"weight .*: expected shape .*, received"):
        target.take(polyak.Target(other, tau=0.25).tree())


@pytest.mark.skipif(BACKEND != "jax", reason="a compiler of JAX")
@pytest.mark.parametrize("rule", ["ema:0.9", "copy,every=3"])
def test_a_pure_update_outside_of_a_compiled_function_is_compiled_once(
    rule: str, caplog: pytest.LogCaptureFixture
) -> None:
    import jax

    online = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1025)])
    ema = polyak.track(online, rule)
    tree = ema.stateless_update(ema.tree(), *lists(online))
    with jax.log_compiles():
        for _ in range(2):
            tree = ema.stateless_update(tree, *lists(online))
    assert [r.message for r in caplog.records if "ompil" in r.message] == []
    ema.take(tree)
    assert ema.count == 3


@of_arrays
def test_a_tree_that_is_no_state_of_the_average_is_refused_and_changes_nothing() -> None:
    target = polyak.Target(network(), tau=0.25)
    tree, before = target.tree(), bits(target.values())
    narrow = {path: keras.ops.cast(a, "float16") for path, a in tree["shadows"].items()}
    few = {path: a for path, a in tree["shadows"].items() if path != "dense/bias"}
    broad = {**tree["shadows"], "dense/bias": keras.ops.ones((1, 4))}
    for wrong, message in (
        (None, "expected a tree with 'shadows', 'count' and 'skipped', received NoneType"),
        ({"shadows": tree["shadows"]}, "received one with 'shadows'"),
        ({**tree, "shadows": few}, r"weight 'dense/bias': expected shape \(4,\) of float32, received none"),
        (
            {**tree, "shadows": {**tree["shadows"], "more": few["dense/kernel"]}},
            "'more': expected none, received shape",
        ),
        ({**tree, "shadows": narrow}, "of float32, received shape .* of float16"),
        ({**tree, "shadows": broad}, r"'dense/bias': expected shape \(4,\) of float32, received shape \(1, 4\)"),
        ({**tree, "count": -3}, "expected counts from 0 to 2.*received -3 updates"),
        ({**tree, "count": 2.5}, "expected whole numbers of updates, received 2.5"),
    ):
        with pytest.raises(PolyakError, match=message):
            target.take(wrong)
    for wrong in ({"shadows": {}}, {**tree, "shadows": narrow}, {**tree, "shadows": few}):
        with pytest.raises(ModelError, match=r"stateless_update\(\) of ema:0.75"):
            target.stateless_update(wrong, *lists(target.followed()))
    assert (target.count, bits(target.values())) == (0, before)


@of_arrays
def test_a_tree_with_nan_is_refused_and_changes_nothing() -> None:
    target = polyak.Target(network(), tau=0.25)
    tree, before = target.tree(), bits(target.values())
    tree["shadows"]["dense/kernel"] = tree["shadows"]["dense/kernel"] * float("nan")
    with pytest.raises(NonFinite, match="weight 'dense/kernel': expected finite values, received NaN or infinity"):
        target.take(tree)
    assert bits(target.values()) == before


@of_arrays
def test_values_of_other_shapes_are_refused_though_they_would_broadcast() -> None:
    online = keras.Sequential([keras.Input((1,)), keras.layers.Dense(3)])
    target = polyak.Target(online, tau=0.25)
    kernel, bias = lists(online)[0]
    for wrong in ([bias, kernel], [kernel, 1.0], online.trainable_variables, {"kernel": kernel, "bias": bias}):
        with pytest.raises(ModelError, match=r"weight 'dense/\w+': expected a value of shape .*, received") as error:
            target.stateless_update(target.tree(), wrong)
        assert "[v.value for v in ...]" in str(error.value.hint)


@of_arrays
def test_a_pure_update_of_a_model_that_has_changed_is_refused() -> None:
    online = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(4)])
    target = polyak.Target(online, tau=0.25)
    tree = target.tree()
    online.pop()
    online.add(keras.layers.Dense(4))
    with pytest.raises(ModelError, match=r"weight 'dense_1/\w+': expected a value of .*, received NoneType") as error:
        target.stateless_update(tree, *lists(online))
    assert "ema.refresh()" in str(error.value.hint)


@of_arrays
def test_a_pure_call_with_weights_left_out_is_refused() -> None:
    ema = polyak.track(network(), {"dense/*": "mean", "*": None})
    with pytest.raises(ModelError, match="expected an average of every weight"):
        ema.stateless_call(ema.tree(), rows(1))


@of_variables
def test_variables_have_no_pure_form_and_it_is_said() -> None:
    target = polyak.Target(network(), tau=0.25)
    for call in (target.tree, lambda: target.take({}), lambda: target.stateless_update({}, [])):
        with pytest.raises(ModelError, match=r"hint: call update\(\) inside the tf.function"):
            call()
    with pytest.raises(ModelError, match="hint: call the average itself inside"):
        target.stateless_call({}, rows(1))


# --- a training loop from scratch, in the manner of Keras' guide -----------------------------------------------------


@pytest.mark.skipif(BACKEND != "jax", reason="a loop of JAX")
@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "RMSprop"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_compiled_step_of_jax_with_donation_has_the_bits_of_update(optimizer: str, dtype: str) -> None:
    import jax

    model = network(dtype)
    settings = {"momentum": 0.9} if optimizer == "SGD" else {}
    optimizer = getattr(keras.optimizers, optimizer)(0.05, **settings)
    optimizer.build(model.trainable_variables)
    target = polyak.Target(model, tau=0.1)

    def loss_of(trainable: Any, others: Any, tree: Any, x: Any) -> Any:
        y, others = model.stateless_call(trainable, others, x, training=True)
        return keras.ops.mean(keras.ops.square(y - target.stateless_call(tree, x) - 1.0)), others

    def train_step(state: Any, x: Any) -> Any:
        trainable, others, kept, tree = state
        (loss, others), grads = jax.value_and_grad(loss_of, has_aux=True)(trainable, others, tree, x)
        trainable, kept = optimizer.stateless_apply(kept, grads, trainable)
        return loss, (trainable, others, kept, target.stateless_update(tree, trainable, others))

    train_step = jax.jit(train_step, donate_argnums=0)
    oracle = polyak.Target(model, tau=0.1)
    # As copies, because their memory is given away.
    state = (*jax.tree.map(jax.numpy.copy, (*lists(model), [v.value for v in optimizer.variables])), target.tree())
    for seed in range(20):
        _, state = train_step(state, rows(seed))
        for v, value in zip(model.trainable_variables, state[0], strict=True):
            v.assign(jax.numpy.copy(value))
        for v, value in zip(model.non_trainable_variables, state[1], strict=True):
            v.assign(jax.numpy.copy(value))
        oracle.update()
        assert {p: np.asarray(a).tobytes() for p, a in state[3]["shadows"].items()} == {
            p: a.tobytes() for p, a in oracle.values().items()
        }
    target.take(state[3])
    assert (target.count, bits(target.values())) == (20, bits(oracle.values()))


@pytest.mark.skipif(BACKEND != "jax", reason="a compiler of JAX")
def test_an_average_that_a_compiled_function_would_freeze_is_refused() -> None:
    import jax

    def applied_call(target: Any, x: Any) -> Any:
        with target.applied():
            return target.followed()(x)

    target = polyak.Target(network(), tau=0.25)
    before = bits(polyak.snapshot(target.followed()))
    with pytest.raises(ModelError, match="hint: pass its state through"):
        jax.jit(lambda x: target(x))(rows(1))
    with pytest.raises(ModelError, match="hint: pass its state through"):
        jax.jit(lambda x: (target.update(), x)[1])(rows(1))
    with pytest.raises(ModelError, match="hint: pass its state through"):
        jax.jit(lambda x: target.stateless_call(target.tree(), x))(rows(1))
    with pytest.raises(ModelError, match="hint: pass its state through"):
        jax.jit(lambda x: applied_call(target, x))(rows(1))
    with pytest.raises(ModelError, match="hint: pass its state through"):
        jax.jit(lambda x: x + target.values()["hidden/bias"].sum())(rows(1))
    assert bits(polyak.snapshot(target.followed())) == before
    assert np.array_equal(applied_call(target, rows(1)), target(rows(1)))
    assert jax.grad(lambda x: target(x).sum())(rows(1)).shape == (8, 4)  # no compiler: nothing to refuse


@pytest.mark.skipif(BACKEND != "jax", reason="donation is of JAX")
def test_the_average_outlives_the_donation_of_its_tree() -> None:
    import jax

    target = polyak.Target(network(), tau=0.25)
    before, tree = bits(target.values()), target.tree()
    more = jax.jit(lambda t: {**t, "shadows": jax.tree.map(lambda a: a + 1, t["shadows"])}, donate_argnums=0)
    tree = more(tree)
    assert bits(target.values()) == before
    target.take(tree)
    more(tree)
    assert target.values()["dense/kernel"].shape == (4, 4)


@pytest.mark.skipif(BACKEND != "torch", reason="a loop of PyTorch")
def test_a_loop_of_torch_with_a_teacher() -> None:
    import torch

    model = network()
    target = polyak.Target(model, tau=0.1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    start = target.values()["dense/kernel"]
    for seed in range(3):
        loss = ((model(rows(seed)) - target(rows(seed)).detach() - 1.0) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        target.update()
    assert target.count == 3
    assert (target.values()["dense/kernel"] != start).any()
