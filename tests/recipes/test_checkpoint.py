"""Recipe c: tf.train.Checkpoint, written and restored with TensorFlow's own calls."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import nets
import pytest
import tensorflow as tf

import polyak
import polyak.tensorflow
from polyak.manifest import digest

SECOND = """
import json, sys
import nets, polyak, tensorflow as tf
from polyak.manifest import digest

model = nets.built()
fast, slow = polyak.EMA(model, decay=0.5), polyak.EMA(model, decay=0.9, start="debiased")
checkpoint = tf.train.Checkpoint(model=model, fast=fast, slow=slow, nested={"both": [fast, slow]})
if sys.argv[2] == "manager":
    status = checkpoint.restore(tf.train.CheckpointManager(checkpoint, sys.argv[1], max_to_keep=3).latest_checkpoint)
else:
    status = checkpoint.read(sys.argv[1])
status.assert_consumed()
sets = {"model": nets.weights(model), "fast": fast.values(), "slow": slow.values()}
print(json.dumps({
    "counts": [fast.count, slow.count],
    "digests": {name: {k: digest(v) for k, v in values.items()} for name, values in sets.items()},
}))
"""


def _second_process(path: Path, how: str) -> dict:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    run = subprocess.run(
        [sys.executable, "-c", SECOND, str(path), how], env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("how", ["write", "manager"])
def test_a_second_process_restores_model_and_averages(trained, tmp_path, how):
    model, fast, slow = trained
    checkpoint = tf.train.Checkpoint(model=model, fast=fast, slow=slow, nested={"both": [fast, slow]})
    if how == "manager":
        tf.train.CheckpointManager(checkpoint, str(tmp_path), max_to_keep=3).save()
        path = tmp_path
    else:
        path = Path(checkpoint.write(str(tmp_path / "ckpt")))
    found = _second_process(path, how)
    assert found["counts"] == [fast.count, slow.count]
    sets = {"model": nets.weights(model), "fast": fast.values(), "slow": slow.values()}
    assert found["digests"] == {name: {k: digest(v) for k, v in values.items()} for name, values in sets.items()}


def test_k16_tensorflows_own_file_of_the_model_lacks_layers_and_polyak_says_so(trained, fresh, tmp_path):
    model, _, _ = trained
    lacking = polyak.tensorflow.lacking(model, model)
    assert {p.split("/")[0] for p in lacking} == {"blocks", "heads"}
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "incomplete"))
    tf.train.Checkpoint(model=fresh).read(path).assert_consumed()
    wrong = [p for p, v in nets.weights(fresh).items() if v.tobytes() != nets.weights(model)[p].tobytes()]
    assert wrong, "TensorFlow now writes these layers: news"
    before = nets.weights(fresh)
    with pytest.raises(polyak.errors.MissingWeight, match="lists and dictionaries"):
        polyak.transfer(path, fresh)
    nets.assert_same(nets.weights(fresh), before)


def test_k16_with_an_average_the_checkpoint_is_complete(trained, fresh, tmp_path):
    model, fast, _ = trained
    assert polyak.tensorflow.lacking(tf.train.Checkpoint(model=model, ema=fast), model) == ()
    path = tf.train.Checkpoint(model=model, ema=fast).write(str(tmp_path / "complete"))
    tf.train.Checkpoint(model=fresh, ema=polyak.EMA(fresh, decay=0.5)).read(path).assert_consumed()
    nets.assert_same(nets.weights(fresh), nets.weights(model))


def test_the_raw_weights_alone_can_be_checkpointed_completely(trained, fresh, tmp_path):
    model, _, _ = trained
    path = tf.train.Checkpoint(model=polyak.tensorflow.Weights(model)).write(str(tmp_path / "raw"))
    tf.train.Checkpoint(model=polyak.tensorflow.Weights(fresh)).read(path).assert_consumed()
    nets.assert_same(nets.weights(fresh), nets.weights(model))


def test_polyak_reads_every_set_out_of_the_checkpoint(trained, fresh, tmp_path):
    model, fast, slow = trained
    path = tf.train.Checkpoint(model=model, fast=fast, slow=slow).write(str(tmp_path / "ckpt"))
    snap = polyak.open(path)
    assert snap.roles == ("raw", "average:fast", "average:slow")
    assert snap.select("average:slow").state == slow.state
    with pytest.raises(polyak.errors.AmbiguousRole, match="average:fast"):
        polyak.transfer(path, fresh, weights="average")
    polyak.transfer(path, fresh, weights="average:slow")
    nets.assert_same(nets.weights(fresh), nets.averaged(slow))
    polyak.transfer(path, fresh, weights="raw")
    nets.assert_same(nets.weights(fresh), nets.weights(model))
    other = polyak.EMA(fresh, decay=0.75)
    polyak.transfer(path, other, weights="average:fast")
    assert (other.count, other.rule) == (fast.count, fast.rule)
    nets.assert_same(other.values(), fast.values())


def test_k17_a_restore_before_the_model_is_built_cannot_mislead(trained, tmp_path):
    """TensorFlow leaves the first kernel random and twice in the model; polyak refuses such a model."""
    model, fast, _ = trained
    path = tf.train.Checkpoint(model=model, ema=fast).write(str(tmp_path / "ckpt"))
    target = nets.Net()
    tf.train.Checkpoint(model=target).read(path).expect_partial()
    target(nets.INPUTS)
    with pytest.raises(polyak.errors.ModelError, match="exists twice"):
        polyak.EMA(target, decay=0.9)


def test_an_average_that_waits_for_its_model_is_restored_when_the_model_is_built(tmp_path):
    keras.utils.set_random_seed(3)
    model = nets.built()
    ema = polyak.EMA(model, decay=0.9)
    nets.train(model, ema, steps=3)
    path = tf.train.Checkpoint(ema=ema).write(str(tmp_path / "ckpt"))
    target = nets.Net()
    waiting = polyak.EMA(target, decay=0.9)
    assert "waits" in repr(waiting)
    target(nets.INPUTS)
    tf.train.Checkpoint(ema=waiting).read(path).assert_consumed()
    nets.assert_same(waiting.values(), ema.values())
    assert waiting.count == 3


def test_an_average_that_waits_under_a_strategy_of_one_device_keeps_what_was_restored(tmp_path):
    first = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    ema = polyak.EMA(first, decay=0.5)
    ema.update()
    path = tf.train.Checkpoint(model=first, ema=ema).write(str(tmp_path / "ckpt"))
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    with strategy.scope():
        model = keras.Sequential([keras.layers.Dense(2)])
        waiting = polyak.EMA(model, decay=0.5)
    status = tf.train.Checkpoint(model=model, ema=waiting).read(path)
    with strategy.scope():
        model.build((None, 3))
    waiting.update()
    status.assert_existing_objects_matched()
    assert waiting.count == 2


def test_restoring_under_another_rule_is_said(trained, fresh, tmp_path):
    _, fast, _ = trained
    path = tf.train.Checkpoint(ema=fast).write(str(tmp_path / "ckpt"))
    other = polyak.EMA(fresh, decay=0.99)
    with pytest.warns(polyak.errors.RuleChanged, match=r"made with ema:0\.5; it goes on with ema:0\.99"):
        tf.train.Checkpoint(ema=other).read(path).assert_consumed()


def test_k7_a_file_is_never_written_with_the_roles_swapped(trained, tmp_path):
    model, fast, _ = trained
    raw = nets.weights(model)
    with fast.applied():
        with pytest.raises(polyak.errors.Applied, match="averaged values as raw"):
            tf.train.Checkpoint(model=model, ema=fast).write(str(tmp_path / "swapped"))
        polyak.save(fast, tmp_path / "both.safetensors", "both")
        polyak.save(model, tmp_path / "model.safetensors")
    both = polyak.open(tmp_path / "both.safetensors")
    assert {k: v for k, v in both.select("raw").items() if "seed" not in k}.keys() == raw.keys()
    nets.assert_same({k: v for k, v in both.select("raw").items() if "seed" not in k}, raw)
    assert polyak.open(tmp_path / "model.safetensors").roles == ("average",)


IN_A_THREAD = tf.train.CheckpointOptions(experimental_enable_async_checkpoint=True)


def _vector(rule: str) -> tuple[tf.Module, polyak.Average]:
    module = tf.Module()
    module.w = tf.Variable([9.0, 9.0])
    return module, polyak.track(module, rule)


def test_a_save_in_a_thread_has_what_held_when_it_was_asked_for(tmp_path):
    module, ema = _vector("ema:0.5,start=initial")
    checkpoint = tf.train.Checkpoint(module=module, ema=ema)
    for decay in (0.5, 0.75, 0.875):
        ema.change_rule(f"ema:{decay},start=initial")
        module.w.assign_add([1.0, 1.0])
        ema.update()
        path = checkpoint.save(str(tmp_path / "ckpt"), IN_A_THREAD)
        with ema.applied():  # the thread writes meanwhile
            checkpoint.sync()
        found = polyak.open(path)
        assert found.select("raw")["w"].tolist() == module.w.numpy().tolist()
        assert found.select("average").state == ema.state
    other, restored = _vector(ema.rule)
    other.w.assign([0.0, 0.0])
    tf.train.Checkpoint(module=other, ema=restored).restore(path).assert_existing_objects_matched()
    nets.assert_same(restored.values(), ema.values())
    module.w.assign([0.0, 0.0])
    checkpoint.restore(path, IN_A_THREAD).assert_existing_objects_matched()
    assert other.w.numpy().tolist() == module.w.numpy().tolist() == [12.0, 12.0]


def test_a_save_in_a_thread_is_refused_while_an_average_is_applied(tmp_path):
    module, ema = _vector("ema:0.5,start=initial")
    checkpoint = tf.train.Checkpoint(module=module, ema=ema)
    prefix = str(tmp_path / "ckpt")
    with ema.applied(), pytest.raises(polyak.errors.Applied, match="averaged values as raw weights"):
        checkpoint.save(prefix, IN_A_THREAD)
    checkpoint.save(prefix, IN_A_THREAD)
    # From the second save on TensorFlow copies by a function of its own, out of which only its own errors come.
    with ema.applied(), pytest.raises(tf.errors.UnknownError, match="averaged values as raw weights"):
        checkpoint.save(prefix, IN_A_THREAD)
    checkpoint.save(prefix, IN_A_THREAD)
    checkpoint.sync()
    assert sorted(p.name for p in tmp_path.glob("*.index")) == ["ckpt-1.index", "ckpt-2.index"]


class Job(tf.Module):
    """A module that holds several averages of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable([1.0, 2.0])
        self.averages = polyak.Averages(self, {"fast": "ema:0.5,start=initial", "slow": "ema:0.9,start=initial"})

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return self.w * x


@pytest.mark.parametrize("root", [lambda job: {"job": job}, lambda job: {"averages": job.averages}])
def test_a_checkpoint_has_averages_that_are_held_together(root, tmp_path):
    job, fresh = Job(), Job()
    job.w.assign([9.0, 9.0])
    job.averages.update()
    path = tf.train.Checkpoint(**root(job)).write(str(tmp_path / "ckpt"))
    status = tf.train.Checkpoint(**root(fresh)).read(path)
    status.assert_consumed()
    status.assert_existing_objects_matched()
    for name, average in job.averages.items():
        nets.assert_same(fresh.averages[name].values(), average.values())
        assert fresh.averages[name].count == 1
    assert [role.rpartition("/")[2] for role in polyak.open(path).roles] == ["raw", "fast", "slow"]


def test_averages_that_are_held_together_are_no_part_of_a_saved_model(tmp_path):
    job = Job()
    job.averages.update()
    tf.saved_model.save(job, str(tmp_path / "served"))
    assert polyak.open(tmp_path / "served").roles == ("raw",)


def test_a_module_that_holds_its_averages_runs_with_each():
    job = Job()
    job.w.assign([9.0, 9.0])
    job.averages.update()
    assert job.averages["fast"](1.0).numpy().tolist() == [5.0, 5.5]
    job.averages.update()
    assert job.averages["fast"](1.0).numpy().tolist() == [7.0, 7.25]


def _net(*widths):
    return keras.Sequential([keras.layers.Dense(width, name=f"dense_{i}") for i, width in enumerate(widths)])


def _after_twenty():
    model = _net(2)
    model.build((None, 3))
    ema = polyak.EMA(model, decay=0.9)
    for _ in range(20):
        ema.update()
    return model, ema


def _stored(path):
    model, ema = _after_twenty()
    return tf.train.Checkpoint(model=model, ema=ema).write(str(path / "ckpt"))


def test_an_average_of_a_larger_model_is_not_restored_in_part(tmp_path):
    """The new head would go on from its first values, at the weight of the old body's update 21."""
    path, larger = _stored(tmp_path), _net(2, 1)
    larger.build((None, 3))
    ema = polyak.EMA(larger, decay=0.9)
    before = nets.weights(larger)
    with pytest.raises(polyak.errors.MissingWeight, match="'dense_1/kernel' and 1 more: expected an average of it"):
        tf.train.Checkpoint(model=larger, ema=ema).read(path)
    nets.assert_same(nets.weights(larger), before)
    assert ema.count == 0


def test_nor_is_one_of_a_larger_model_that_is_built_after_the_restore(tmp_path):
    path, larger = _stored(tmp_path), _net(2, 1)
    ema = polyak.EMA(larger, decay=0.9)
    tf.train.Checkpoint(model=larger, ema=ema).read(path).expect_partial()
    larger.build((None, 3))
    with pytest.raises(polyak.errors.MissingWeight, match="'dense_1/kernel' and 1 more: expected an average of it"):
        ema.update()


def test_a_model_that_grows_after_its_restore_begins_its_new_weights_late(tmp_path):
    path, model = _stored(tmp_path), _net(2)
    model.build((None, 3))
    ema = polyak.EMA(model, decay=0.9)
    tf.train.Checkpoint(model=model, ema=ema).read(path).assert_consumed()
    model.add(keras.layers.Dense(1, name="head"))
    assert "averaged from update 21 on" in ema.refresh()
    model.layers[-1].bias.assign([5.0])
    ema.update()
    assert (ema.count, ema.values()["head/bias"].tolist()) == (21, [5.0])


def _grown(path):
    """An average of which the second layer began at update 21, and its checkpoint."""
    model, ema = _after_twenty()
    model.add(keras.layers.Dense(1, name="dense_1"))
    ema.refresh()
    model.layers[-1].bias.assign([1.0])
    ema.update()
    return ema, tf.train.Checkpoint(model=model, ema=ema).write(str(path / "ckpt"))


def _goes_on(ema):
    ema.followed().layers[-1].bias.assign([5.0])
    ema.update()
    return ema.values()["dense_1/bias"].tolist()


@pytest.mark.parametrize("is_built", [True, False])
def test_what_began_late_goes_on_so_in_a_new_average(tmp_path, is_built):
    first, path = _grown(tmp_path)
    model = _net(2, 1)
    if is_built:
        model.build((None, 3))
    ema = polyak.EMA(model, decay=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error", polyak.errors.PolyakWarning)
        tf.train.Checkpoint(model=model, ema=ema).read(path)
        model.build((None, 3))
        assert _goes_on(ema) == _goes_on(first)
    assert (ema.rule, ema.count) == (first.rule, 22)
    ema.reset()
    assert str(ema.rule) == "ema:0.9"


def test_what_began_late_does_so_by_a_rule_that_was_changed_meanwhile(tmp_path):
    _, path = _grown(tmp_path)
    model = _net(2, 1)
    model.build((None, 3))
    ema = polyak.EMA(model, decay=0.5)
    with pytest.warns(polyak.errors.RuleChanged, match=r"it goes on with \{dense_1/kernel: ema:0\.5,after=20"):
        tf.train.Checkpoint(model=model, ema=ema).read(path)
    assert str(ema.rule.rule_of("dense_1/bias")) == "ema:0.5,after=20"
    assert str(ema.rule.rule_of("dense_0/bias")) == "ema:0.5"


def test_an_average_that_a_function_contains_already_is_not_restored_without_what_is_late(tmp_path):
    _, path = _grown(tmp_path)
    model = _net(2, 1)
    model.build((None, 3))
    ema = polyak.EMA(model, decay=0.9)
    tf.function(ema.update)()
    with pytest.raises(polyak.errors.RuleError, match=r"a traced tf\.function contains already") as caught:
        tf.train.Checkpoint(model=model, ema=ema).read(path)
    assert "restore the state before the first traced update" in caught.value.hint
    assert ema.count == 1


def test_what_is_no_checkpoint_is_not_written(trained, tmp_path):
    model, _, _ = trained
    with pytest.raises(polyak.errors.ModelError, match=r"expected a tf\.train\.Checkpoint, received Net"):
        polyak.tensorflow.write(model, tmp_path / "ckpt")
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_another_framework_is_in_no_checkpoint_of_tensorflow():
    torch = pytest.importorskip("torch")
    for ask in (polyak.tensorflow.Weights, lambda model: polyak.tensorflow.lacking(tf.Module(), model)):
        with pytest.raises(polyak.errors.ModelError, match="expected a model on TensorFlow, received Linear"):
            ask(torch.nn.Linear(1, 1))


def test_a_checkpoint_in_which_tensorflow_has_left_out_every_layer_says_how_to_write_it(tmp_path: Path) -> None:
    class Held(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.parts = {"head": keras.layers.Dense(2)}

        def call(self, x: object) -> object:
            return self.parts["head"](x)

    model, other = Held(), Held()
    for each in (model, other):
        each(tf.ones((1, 3)))
    plain = tf.train.Checkpoint(model=model).write(str(tmp_path / "plain"))
    with pytest.raises(polyak.errors.AmbiguousRole, match="received no weights at all") as refused:
        polyak.transfer(plain, other)
    assert "in a tf.train.Checkpoint with polyak.tensorflow.Weights(model)" in str(refused.value.hint)
    polyak.transfer(tf.train.Checkpoint(model=polyak.tensorflow.Weights(model)).write(str(tmp_path / "whole")), other)
    assert polyak.diff(model, other).same
