"""Recipe b: TF1's Saver, in both directions, with real graphs and sessions."""

import keras
import nets
import numpy as np
import pytest
import tensorflow as tf

import polyak
import polyak.tensorflow

tf1 = tf.compat.v1


def _restored(prefix: str, names: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """What a TF1 Saver restores in a fresh graph and session."""
    with tf.Graph().as_default(), tf1.Session() as session:
        variables = {n: tf1.get_variable(n.replace("/", "_"), shape, use_resource=True) for n, shape in names.items()}
        tf1.train.Saver(var_list=variables).restore(session, prefix)
        return {n: session.run(v) for n, v in variables.items()}


@pytest.mark.parametrize("scope", [None, "net"])
def test_a_real_saver_restores_what_polyak_wrote(trained, tmp_path, scope):
    model, fast, _ = trained
    rename = {"*": f"{scope}/*"} if scope else None
    receipt = polyak.tensorflow.save_tf1(fast, tmp_path / "ema", rename=rename)
    prefix = f"{scope}/" if scope else ""
    trainable = {w.path: w.shape for w in fast.target.weights if w.kind == "trainable"}
    suffixed = {f"{prefix}{p}/ExponentialMovingAverage": s for p, s in trainable.items()}
    values = nets.averaged(fast)
    found = _restored(str(tmp_path / "ema"), suffixed)
    for path in trainable:
        assert found[f"{prefix}{path}/ExponentialMovingAverage"].tobytes() == values[path].tobytes()
    raw = _restored(str(tmp_path / "ema"), {f"{prefix}{p}": v.shape for p, v in nets.weights(model).items()})
    nets.assert_same(raw, {f"{prefix}{p}": v for p, v in nets.weights(model).items()})
    assert receipt.count == fast.count


def test_variables_to_restore_of_a_tf1_graph_finds_the_averages(trained, tmp_path):
    """The way TF1 code itself maps variables to averages, after a scope rename."""
    _, fast, _ = trained
    polyak.tensorflow.save_tf1(fast, tmp_path / "ema", rename={"stem/*": "tower/stem/*"})
    expected = fast.values()["stem/kernel"]
    with tf.Graph().as_default(), tf1.Session() as session:
        with tf1.variable_scope("tower"):
            kernel = tf1.get_variable("stem/kernel", (3, 4))
        mapping = tf1.train.ExponentialMovingAverage(0.5).variables_to_restore([kernel])
        tf1.train.Saver(mapping).restore(session, str(tmp_path / "ema"))
        assert session.run(kernel).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_average_of_narrow_weights_goes_back_into_such(tmp_path, dtype):
    """It stands in the file in float32, beside the weight in its own dtype."""
    model, other = (keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, dtype=dtype)]) for _ in range(2))
    ema = polyak.EMA(model, decay=0.5)
    ema.set_values({path: value + 1 / 3 for path, value in ema.values().items()}, cast="target")
    polyak.tensorflow.save_tf1(ema, tmp_path / "ema")
    polyak.transfer(tmp_path / "ema", other, weights="average")
    for path, value in polyak.snapshot(other).items():
        assert value.tobytes() == ema.values()[path].astype(value.dtype).tobytes()


def _made_last_to_first() -> keras.Model:
    """The layer that is used last was created first."""
    last, first = keras.layers.Dense(3), keras.layers.Dense(3)
    return keras.Sequential([keras.Input((3,)), first, last])


@pytest.mark.parametrize("again", [False, True])
def test_numbers_of_layers_in_the_order_of_their_use_are_no_order_of_creation(tmp_path, again):
    model, other = _made_last_to_first(), _made_last_to_first()
    source = polyak.EMA(model, decay=0.5)
    polyak.tensorflow.save_tf1(source, tmp_path / "ema")
    if again:
        polyak.tensorflow.save_tf1(polyak.open(tmp_path / "ema"), tmp_path / "ema")
    with pytest.raises(polyak.errors.AmbiguousMatch, match="weights of which the creation is known"):
        polyak.transfer(tmp_path / "ema", other, weights="average", by="creation")
    polyak.transfer(tmp_path / "ema", other, weights="average")
    nets.assert_same(nets.weights(other), nets.weights(model))
    assert not polyak.open(tmp_path / "ema").manifest.unread


def test_a_saver_restores_beside_the_word_on_the_order(tmp_path):
    model = _made_last_to_first()
    polyak.tensorflow.save_tf1(model, tmp_path / "model")
    values = nets.weights(model)
    nets.assert_same(_restored(str(tmp_path / "model"), {p: v.shape for p, v in values.items()}), values)


def test_the_order_of_creation_in_names_of_tensorflow_is_kept_in_a_copy(tmp_path):
    names = {"dense/kernel": [[1.0]], "dense_1/kernel": [[2.0]]}
    with tf.Graph().as_default(), tf1.Session() as session:
        variables = [tf1.Variable(value, name=name) for name, value in names.items()]
        session.run(tf1.global_variables_initializer())
        slots = [tf1.Variable([[0.0]], name=f"{name}/Momentum") for name in names]
        session.run(tf1.variables_initializer(slots))
        prefix = tf1.train.Saver([*variables, *slots]).save(session, str(tmp_path / "foreign"))
    polyak.tensorflow.save_tf1(polyak.open(prefix), tmp_path / "copy")
    last, first = keras.layers.Dense(1, use_bias=False), keras.layers.Dense(1, use_bias=False)
    model = keras.Sequential([keras.Input((1,)), first, last])
    for path in (prefix, tmp_path / "copy"):
        with pytest.raises(polyak.errors.AmbiguousMatch, match="'dense/kernel' by path and 'dense_1/kernel' by creat"):
            polyak.transfer(path, model)


def test_names_that_meet_are_refused(trained, tmp_path):
    _, fast, _ = trained
    with pytest.raises(polyak.errors.WeightError) as caught:
        polyak.tensorflow.save_tf1(fast, tmp_path / "ema", rename=lambda path: path.rpartition("/")[2])
    assert "two weights would have this name: 'kernel'" in caught.value.message
    assert caught.value.hint == "rename them apart"
    with pytest.raises(polyak.errors.MissingWeight, match="received a name of none"):
        polyak.tensorflow.save_tf1(fast, tmp_path / "ema", rename={"nowhere/*": "net/*"})
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_other_numbers_than_were_written_takes_no_place(trained, tmp_path, monkeypatch):
    _, fast, _ = trained
    polyak.tensorflow.save_tf1(fast, tmp_path / "ema")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    read = polyak.tensorflow.TensorBundle.read
    monkeypatch.setattr(polyak.tensorflow.TensorBundle, "read", lambda bundle, name: read(bundle, name) + 1)
    fast.set_values({path: value + 1 for path, value in fast.values().items()})
    with pytest.raises(polyak.errors.FileError, match="the bytes read back differ from those written"):
        polyak.tensorflow.save_tf1(fast, tmp_path / "ema")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_of_several_averages_one_must_be_chosen(trained, tmp_path):
    model, fast, slow = trained
    held = polyak.open(tf.train.Checkpoint(model=model, fast=fast, slow=slow).write(str(tmp_path / "all")))
    with pytest.raises(polyak.errors.AmbiguousRole) as caught:
        polyak.tensorflow.save_tf1(held, tmp_path / "ema")
    assert "received 'average:fast' and 'average:slow'" in caught.value.message
    polyak.tensorflow.save_tf1(held.select(role="average:slow"), tmp_path / "ema")
    found = polyak.open(tmp_path / "ema").select(role="average")
    assert found["stem/kernel"].tobytes() == slow.values()["stem/kernel"].tobytes()


def test_a_file_that_holds_the_average_alone_keeps_its_statistics(trained, tmp_path):
    _, fast, _ = trained
    polyak.save(fast, tmp_path / "fast.safetensors")
    polyak.tensorflow.save_tf1(polyak.open(tmp_path / "fast.safetensors"), tmp_path / "ema")
    written = tf.train.load_checkpoint(str(tmp_path / "ema"))
    statistics = {w.path for w in fast.target.weights if w.kind == "statistic"}
    assert statistics
    for path in statistics:
        assert written.get_tensor(path).tobytes() == nets.averaged(fast)[path].tobytes()


@pytest.mark.parametrize("prefix", ["", ".", "./", "folder/.."])
def test_a_prefix_needs_a_name(trained, tmp_path, monkeypatch, prefix):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    _, fast, _ = trained
    with pytest.raises(polyak.errors.FileError, match="expected a prefix that ends in a name"):
        polyak.tensorflow.save_tf1(fast, prefix)
    with pytest.raises(polyak.errors.FileError, match="expected a prefix that ends in a name"):
        polyak.tensorflow.write(tf.train.Checkpoint(fast=fast), prefix)


def test_a_call_within_a_graph_is_refused(trained, tmp_path):
    _, fast, _ = trained
    held = fast.snapshot()
    for source in (fast, held, polyak.Snapshot.from_arrays({"w": np.ones(2, np.float32)})):
        with tf.Graph().as_default(), pytest.raises(polyak.errors.ModelError) as caught:
            polyak.tensorflow.save_tf1(source, tmp_path / "ema")
        assert caught.value.hint == "call it outside of the graph"
    with tf.Graph().as_default(), pytest.raises(polyak.errors.ModelError, match="within a graph"):
        polyak.tensorflow.export(fast, tmp_path / "served", nets.INPUTS)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def tf1_run(tmp_path_factory):
    """A TF1 session that trains, averages with tf.train.ExponentialMovingAverage, and saves everything."""
    prefix = str(tmp_path_factory.mktemp("tf1") / "model")
    with tf.Graph().as_default(), tf1.Session() as session:
        with tf1.variable_scope("net"):
            kernel = tf1.get_variable("dense/kernel", (3, 2))
            bias = tf1.get_variable("dense/bias", (2,))
            mean = tf1.get_variable("norm/moving_mean", (2,), trainable=False)
        step = tf1.train.get_or_create_global_step()
        loss = tf.reduce_mean((tf.matmul(tf.constant(nets.INPUTS), kernel) + bias - nets.TARGETS) ** 2)
        train = tf1.train.MomentumOptimizer(0.1, 0.9).minimize(loss, global_step=step, var_list=[kernel, bias])
        ema = tf1.train.ExponentialMovingAverage(0.5)
        with tf.control_dependencies([train]):
            update = ema.apply([kernel, bias])
        session.run(tf1.global_variables_initializer())
        session.run(mean.assign([1.0, 2.0]))
        for _ in range(5):
            session.run(update)
        tf1.train.Saver().save(session, prefix, write_meta_graph=False, write_state=False)
        raw, average = session.run([kernel, bias]), session.run([ema.average(kernel), ema.average(bias)])
    return prefix, raw, average


class _Dense(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        return self.dense(x)


def test_a_tf1_average_goes_into_a_keras_3_model(tf1_run):
    prefix, raw, average = tf1_run
    model = _Dense()
    model(nets.INPUTS)
    with pytest.raises(polyak.errors.AmbiguousRole, match="'raw' and 'average'"):
        polyak.transfer(prefix, model, include="dense/*")
    polyak.transfer(prefix, model, weights="average", rename={"net/*": "*"}, exclude="norm/*")
    nets.assert_same(dict(enumerate(model.get_weights())), dict(enumerate(average)))
    polyak.transfer(prefix, model, weights="raw", rename={"net/*": "*"}, exclude="norm/*")
    nets.assert_same(dict(enumerate(model.get_weights())), dict(enumerate(raw)))


def test_the_scope_is_found_by_itself_where_everything_else_fits(tf1_run):
    prefix, _, average = tf1_run
    model = _Dense()
    model(nets.INPUTS)
    polyak.transfer(polyak.open(prefix).select("average", include="net/dense/*"), model)
    nets.assert_same(dict(enumerate(model.get_weights())), dict(enumerate(average)))


def test_momentum_and_the_global_step_are_no_weights(tf1_run):
    snap = polyak.open(tf1_run[0])
    assert snap.roles == ("raw", "average", "training")
    assert sorted(w.path for w in snap.select("raw").weights) == [
        "net/dense/bias",
        "net/dense/kernel",
        "net/norm/moving_mean",
    ]
    assert snap.select("average")["net/norm/moving_mean"].tolist() == [1.0, 2.0]


def test_the_circulating_saver_call_fails_on_todays_tensorflow(trained, tmp_path):
    """`Saver(var_list={"ema": {...}})` without a session: kept as a test so that a change of TensorFlow shows."""
    _, fast, _ = trained
    with pytest.raises((TypeError, ValueError, RuntimeError, AttributeError)):
        tf1.train.Saver(var_list={"ema": fast.values()}).save(None, str(tmp_path / "ema"))


def _saved(path, variables, **saver):
    with tf.Graph().as_default(), tf1.Session() as session:
        made = {n: tf1.get_variable(n, shape, initializer=tf1.ones_initializer()) for n, shape in variables.items()}
        session.run(tf1.global_variables_initializer())
        tf1.train.Saver(made, **saver).save(session, str(path), write_meta_graph=False, write_state=False)
    return polyak.open(path)


def test_slots_of_weights_of_which_only_the_average_is_kept_are_no_weights(tmp_path):
    """As a Saver of ``variables_to_restore()`` writes it: averages, statistics, and the optimizer's slots."""
    average = "net/w/ExponentialMovingAverage"
    held = _saved(tmp_path / "a", {average: (3,), "net/w/Adam": (3,), "net/w/Adam_1": (3,), "net/bn/moving_mean": (3,)})
    assert {r: [w.path for w in held.select(role=r).weights] for r in ("average", "training")} == {
        "average": ["net/bn/moving_mean", "net/w"],
        "training": ["net/w/Adam", "net/w/Adam_1"],
    }


def test_what_zero_debias_keeps_beside_moving_statistics_is_no_weight(tmp_path):
    mean = "bn/moving_mean"
    held = _saved(tmp_path / "a", {"w": (3,), mean: (3,), f"{mean}/biased": (3,), f"{mean}/local_step": ()})
    assert [w.path for w in held.select(role="raw").weights] == [mean, "w"]
    assert [w.path for w in held.select(role="training").weights] == [f"{mean}/biased", f"{mean}/local_step"]


@pytest.fixture(scope="module")
def scoped_run(tmp_path_factory):
    """``ema.apply`` within a variable_scope, which TensorFlow puts before the names of the averages."""
    prefix = str(tmp_path_factory.mktemp("tf1") / "scoped")
    with tf.Graph().as_default(), tf1.Session() as session:
        with tf1.variable_scope("net"):
            bias = tf1.get_variable("b", (2,), initializer=tf1.ones_initializer(), use_resource=False)
        ema = tf1.train.ExponentialMovingAverage(0.5)
        with tf1.variable_scope("train"):
            update = ema.apply([bias])
        session.run(bias.initializer)
        session.run(tf1.global_variables_initializer())
        session.run(bias.assign([5.0, 5.0]))
        session.run(update)
        tf1.train.Saver().save(session, prefix, write_meta_graph=False, write_state=False)
        return prefix, session.run(ema.average(bias))


def test_an_average_in_a_scope_of_its_own_is_of_the_weight_that_its_name_ends_with(scoped_run):
    prefix, average = scoped_run
    held = polyak.open(prefix)
    assert list(held) == ["raw/net/b", "average/net/b"]
    assert held["average/net/b"].tobytes() == average.tobytes()
    assert "1 of them in another scope than its weight: 'train/net/b'" in "; ".join(held.manifest.evidence)
    module = tf.Module()
    module.b = tf.Variable([0.0, 0.0])
    polyak.transfer(prefix, module, weights="average", rename={"net/b": "b"})
    assert module.b.numpy().tobytes() == average.tobytes()


@pytest.fixture(scope="module", params=[("net", "train/net", "train"), ("net", "net/net", "net")], ids=["train", "net"])
def twins_run(request, tmp_path_factory):
    """Two networks with the same names, whose averages are made within a scope that is the second one's, too."""
    prefix, (first, second, scope) = str(tmp_path_factory.mktemp("tf1") / "twins"), request.param
    with tf.Graph().as_default(), tf1.Session() as session:
        weights = []
        for number, name in enumerate((first, second)):
            with tf1.variable_scope(name):
                made = tf1.get_variable("b", (2,), initializer=tf1.ones_initializer(), use_resource=False)
            weights.append((made, [5.0 + number, 5.0]))
        variables = [v for v, _ in weights]
        ema = tf1.train.ExponentialMovingAverage(0.5)
        with tf1.variable_scope(scope):
            update = ema.apply(variables)
        session.run([v.initializer for v in variables])
        session.run(tf1.global_variables_initializer())
        for variable, value in weights:
            session.run(variable.assign(value))
        session.run(update)
        tf1.train.Saver().save(session, prefix, write_meta_graph=False, write_state=False)
        return prefix, {v.op.name: session.run(ema.average(v)) for v in variables}


def test_averages_of_two_networks_made_in_the_scope_of_one_are_not_exchanged(twins_run):
    prefix, wanted = twins_run
    found = polyak.open(prefix).select(role="average")
    assert {n: a.tolist() for n, a in found.items()} == {n: a.tolist() for n, a in wanted.items()}


@pytest.mark.parametrize(
    "others", [{"b": (2,), "net/b": (2,)}, {"net/b": (3,)}, {"net/b": (2,), "net/b/ExponentialMovingAverage": (2,)}]
)
def test_no_raw_weight_stands_in_for_an_average_that_may_be_its_own(tmp_path, others):
    held = _saved(tmp_path / "a", {"train/net/b/ExponentialMovingAverage": (2,), "c": (4,), **others})
    twins = {"net/b"} if "net/b/ExponentialMovingAverage" in others else set()
    assert {*held.select(role="average")} == {"train/net/b", "c", *twins}
    assert "'train/net/b' is of no one weight" in "; ".join(held.manifest.evidence)


def test_averages_of_one_scope_are_of_the_weights_that_all_their_names_end_with(tmp_path):
    names = ["conv/w", "block/conv/w"]
    averages = {f"ema/{n}/ExponentialMovingAverage": (size,) for size, n in enumerate(names, 2)}
    held = _saved(tmp_path / "a", averages | {n: (size,) for size, n in enumerate(names, 2)} | {"bn/mean": (4,)})
    assert {n: a.shape for n, a in held.select(role="average").items()} == {
        "block/conv/w": (3,),
        "bn/mean": (4,),
        "conv/w": (2,),
    }


@pytest.mark.parametrize(
    "averages", [["G/conv/w"], ["ema/conv/w", "slow/D/conv/w"]], ids=["another network", "two scopes"]
)
def test_averages_that_may_be_of_another_network_are_left_alone(tmp_path, averages):
    raw = {"conv/w": (2,), "D/conv/w": (2,)}
    held = _saved(tmp_path / "a", raw | {f"{n}/ExponentialMovingAverage": (2,) for n in averages})
    assert {*averages} <= {*held.select(role="average")}
    assert "conv/w" not in held.select(role="average")
    assert f"{averages[0]!r} is of no one weight" in "; ".join(held.manifest.evidence)


def test_what_is_not_followed_is_told_where_a_saver_is_to_read_the_average(tmp_path):
    module = tf.Module()
    module.a = tf.Variable([1.0])
    ema = polyak.EMA(module, 0.5)
    module.b = tf.Variable([2.0])
    with pytest.warns(polyak.errors.WeightsChanged, match="weight 'b': new in the model, not followed by"):
        polyak.tensorflow.save_tf1(ema, tmp_path / "a")
    ema.refresh()
    polyak.tensorflow.save_tf1(ema, tmp_path / "a")
    assert polyak.open(tmp_path / "a").select(role="average")["b"].tolist() == [2.0]


def _averaged(path, names, averaged, scope=None):
    """A Saver's file of a TF1 graph, and the average of each of the averaged variables."""
    with tf.Graph().as_default(), tf1.Session() as session:
        made = {n: tf1.get_variable(n, (2,), initializer=tf1.ones_initializer(), use_resource=False) for n in names}
        ema = tf1.train.ExponentialMovingAverage(0.5)
        with tf1.variable_scope(scope or tf1.get_variable_scope()):
            update = ema.apply([made[n] for n in averaged])
        session.run([v.initializer for v in made.values()])
        session.run(tf1.global_variables_initializer())
        session.run([v.assign([i, i]) for i, v in enumerate(made.values(), 2)])
        session.run(update)
        tf1.train.Saver().save(session, str(path), write_meta_graph=False, write_state=False)
        return {n: session.run(ema.average(made[n])).tolist() for n in averaged}


@pytest.mark.parametrize(("outer", "scope"), [("train/net", "train"), ("net/net", "net")])
def test_averages_in_a_scope_are_not_taken_for_those_of_a_network_that_is_called_like_it(tmp_path, outer, scope):
    """``train/net/b/ExponentialMovingAverage`` is that of ``net/b``, although there is a ``train/net/b``."""
    names = ["net/b", f"{outer}/b"]
    found = _averaged(tmp_path / "a", names, names, scope)
    held = polyak.open(tmp_path / "a").select(role="average")
    assert {n: held[n].tolist() for n in held} == found


@pytest.mark.parametrize("scope", [None, "old"])
def test_averages_that_may_be_of_either_of_two_networks_are_taken_by_rename_alone(tmp_path, scope):
    """Averages of ``pi`` within the scope ``old``, or of ``old/pi``: the files have the same names."""
    averaged = "pi/b" if scope else "old/pi/b"
    found = _averaged(tmp_path / "a", ["pi/b", "old/pi/b"], [averaged], scope)
    held = polyak.open(tmp_path / "a").select(role="average")
    assert [*held] == ["old/pi/b/ExponentialMovingAverage"]
    said = "; ".join(held.manifest.evidence)
    assert "they may be of 'old/pi/b', 'pi/b', which the set of averages lacks" in said
    module, old = tf.Module(), tf.Module()
    old.pi = tf.Module()
    old.pi.b = tf.Variable([0.0, 0.0])
    module.pi, module.old = (old.pi, None) if scope else (None, old)
    with pytest.raises(polyak.errors.MissingWeight, match=f"{averaged}'.*received nothing"):
        polyak.transfer(held, module, exclude="*Average")
    asked = "old/*/ExponentialMovingAverage" if scope else "*/ExponentialMovingAverage"
    assert f'rename={{"{asked.replace("old", "scope")}": "*"}}' in said
    polyak.transfer(held, module, rename={asked: "*"})
    assert old.pi.b.numpy().tolist() == found[averaged]


def test_one_average_that_may_be_of_two_weights_leaves_the_others_as_they_are(tmp_path):
    """``s/g/b`` was averaged as it is, or ``g/b`` in the scope of ``d/b``."""

    def averages(*names):
        stored = ["s/g/b", "g/b", "d/b", "e/b", *(f"{n}/ExponentialMovingAverage" for n in names)]
        return {*_saved(tmp_path / "a", dict.fromkeys(stored, (2,))).select(role="average")}

    assert averages("s/g/b", "s/d/b") == {"d/b", "e/b", "s/g/b/ExponentialMovingAverage"}
    assert averages("e/b", "s/d/b") == {"d/b", "e/b", "g/b", "s/g/b"}
    assert averages("e/b", "s/d/b", "s/g/b") == {"d/b", "e/b", "s/g/b/ExponentialMovingAverage"}


@pytest.mark.parametrize("averaged", [True, False])
def test_slots_of_an_optimizer_in_a_scope_are_no_weights(tmp_path, averaged):
    with tf.Graph().as_default(), tf1.Session() as session:
        with tf1.variable_scope("net"):
            kernel = tf1.get_variable("w", (3,), use_resource=False)
        with tf1.variable_scope("optimizer"):
            step = tf1.train.AdamOptimizer(0.1).minimize(tf.reduce_sum(kernel**2))
            again = tf1.train.AdamOptimizer(0.1).minimize(tf.reduce_sum(kernel**2))
        if averaged:
            with tf.control_dependencies([step, again]):
                tf1.train.ExponentialMovingAverage(0.5).apply([kernel])
        session.run(kernel.initializer)
        session.run(tf1.global_variables_initializer())
        tf1.train.Saver().save(session, str(tmp_path / "a"), write_meta_graph=False, write_state=False)
    held = polyak.open(tmp_path / "a")
    assert {r: [w.path for w in held.select(role=r).weights] for r in held.roles if r != "training"} == (
        {"raw": ["net/w"], "average": ["net/w"]} if averaged else {"raw": ["net/w"]}
    )


def test_slots_in_a_scope_that_no_name_tells_are_mentioned(tmp_path):
    held = _saved(tmp_path / "a", {"net/w": (3,), "opt/net/w/Nadam": (3,), "opt/net/w/Adam": (2,), "net/b/Adam": (3,)})
    assert [w.path for w in held.weights] == ["net/b/Adam", "net/w", "opt/net/w/Adam", "opt/net/w/Nadam"]
    said = "; ".join(held.manifest.evidence)
    assert "one more step: 'opt/net/w/Nadam'; it may be an optimizer's, and is taken for a weight" in said


def test_the_hint_for_averages_under_a_name_of_their_own_is_for_those_of_most_weights(tmp_path):
    slow = {f"net/{n}/fast": (3,) for n in "ab"} | {"loss/ExponentialMovingAverage": (), "loss/zero": ()}
    held = _saved(tmp_path / "a", {"net/a": (3,), "net/b": (3,), "net/mean": (3,), **slow})
    said = "; ".join(held.manifest.evidence)
    assert 'select("training", include="*/fast"), model, rename={"*/fast": "*"}) takes it, and exclude= leaves' in said
    assert "what has none: 'net/mean'" in said


def test_averages_with_names_of_their_own_are_told_from_nothing_but_are_mentioned(tmp_path):
    held = _saved(tmp_path / "a", {"w": (3,), "w/slow": (3,), "w/Adam": (3,), "w/ExponentialMovingAverage_1": (3,)})
    assert held.roles == ("raw", "training")
    said = "; ".join(held.manifest.evidence)
    assert "named after: 'w/ExponentialMovingAverage_1', 'w/slow'; it may be an optimizer's, or an average" in said
    assert "'w/Adam'" not in said
    module = tf.Module()
    module.w = tf.Variable([0.0, 0.0, 0.0])
    assert 'transfer(snapshot.select("training", include="*/slow"), model, rename={"*/slow": "*"})' in said
    polyak.transfer(held.select("training", include="*/slow"), module, rename={"*/slow": "*"})
    assert module.w.numpy().tolist() == [1.0, 1.0, 1.0]
