"""Where the arrays behind Keras cannot be had: within a StatelessScope, deleted, traced, on other devices."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from tests.keras.zoo import BACKEND, ZOO, assert_same_bits, scramble, values

import polyak
from polyak.errors import ImmatureWarning, ModelError

arrays = pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow's averages live in variables")
jax_only = pytest.mark.skipif(BACKEND != "jax", reason="of JAX's arrays")

WITHIN: dict[str, Callable[[Any, Any, Path], object]] = {
    "update": lambda model, ema, path: ema.update(),
    "reset": lambda model, ema, path: ema.reset(),
    "hard_sync": lambda model, ema, path: ema.hard_sync(),
    "applied": lambda model, ema, path: ema.applied().__enter__(),
    "track": lambda model, ema, path: polyak.EMA(model, 0.9),
    "save": lambda model, ema, path: polyak.save(model, path / "a.safetensors"),
    "raw": lambda model, ema, path: polyak.save(ema, path / "a.safetensors", weights="raw"),
    "transfer": lambda model, ema, path: ema.copy_to(model),
    "load": lambda model, ema, path: polyak.transfer(path / "before.npz", model, weights="average"),
}


def parts(model: Any) -> tuple[list[Any], list[Any]]:
    return [v.value for v in model.trainable_variables], [v.value for v in model.non_trainable_variables]


@arrays
@pytest.mark.parametrize("verb", WITHIN)
def test_within_a_stateless_scope_whoever_ignores_its_values_is_refused(verb: str, tmp_path: Path) -> None:
    model = ZOO["sequential"].built()
    ema = polyak.EMA(model, 0.9)
    polyak.save(ema, tmp_path / "before.npz")
    raw, before = values(model), ema.values()
    doubled = [(v, keras.ops.multiply(v.value, 2)) for v in model.trainable_variables]
    with keras.StatelessScope(state_mapping=doubled) as scope:
        with pytest.raises(ModelError, match="StatelessScope") as caught:
            WITHIN[verb](model, ema, tmp_path)
        assert all(scope.get_current_value(v) is value for v, value in doubled)
    assert "ema.stateless_update(tree, ...)" in str(caught.value.hint)
    assert ema.count == 0
    assert_same_bits(ema.values(), before)
    assert_same_bits(values(model), raw)


@jax_only
def test_a_layer_of_float64_is_written_as_jax_holds_it(tmp_path: Path) -> None:
    """As float32, unless x64 is enabled; so is its average."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, dtype="float64"), keras.layers.Dense(1)])
    ema, held = polyak.EMA(model, 0.9), str(model.layers[0].kernel.value.dtype)
    ema.update()
    for suffix in ("safetensors", "npz", "pt", "weights.h5"):
        polyak.save(model, tmp_path / f"raw.{suffix}")
        polyak.save(ema, tmp_path / f"average.{suffix}")
        polyak.transfer(tmp_path / f"average.{suffix}", ema)
        polyak.transfer(tmp_path / f"raw.{suffix}", model)
    for name in ("raw", "average"):
        assert {w.dtype for w in polyak.open(tmp_path / f"{name}.npz").weights} == {held, "float32"}
    receipt = polyak.transfer(ema, model)
    assert {m.dtype for m in receipt.moved} == {held, "float32"}
    with ema.applied():
        assert str(model.layers[0].kernel.value.dtype) == held


@jax_only
@pytest.mark.parametrize("verb", [*WITHIN, "count", "values", "snapshot", "set_values", "load_average"])
def test_within_a_function_that_jax_compiles_nothing_becomes_a_constant(verb: str, tmp_path: Path) -> None:
    import jax

    model = ZOO["sequential"].built()
    ema = polyak.EMA(model, 0.9)
    polyak.save(ema, tmp_path / "before.npz")
    held = ema.values()
    live = ema.snapshot()
    verbs = WITHIN | {
        "load_average": lambda model, ema, path: polyak.transfer(path / "before.npz", ema),
        "count": lambda model, ema, path: ema.count,
        "values": lambda model, ema, path: ema.values(),
        "snapshot": lambda model, ema, path: live[next(iter(held))],
        "set_values": lambda model, ema, path: ema.set_values(held),
    }

    shown = list[str]()

    def step(x: Any) -> Any:
        shown.append(repr(ema))
        verbs[verb](model, ema, tmp_path)
        return x

    with pytest.raises(ModelError, match="inside a function that JAX compiles"):
        jax.jit(step)(1.0)
    assert shown == ["<ema:0.9 of Sequential: within a function that is compiled>"]
    ema.update()
    assert ema.count == 1
    assert_same_bits(ema.values(), held)


@jax_only
@pytest.mark.parametrize(
    "verb", [lambda ema: ema.values(), lambda ema: ema.applied().__enter__(), lambda ema: ema.count]
)
def test_what_jax_evaluates_while_it_compiles_lets_nothing_in_that_comes_after_it(
    verb: Callable[[Any], object],
) -> None:
    import jax

    ema = polyak.EMA(ZOO["sequential"].built(), 0.9)
    counts = []

    def step(x: Any) -> Any:
        with jax.ensure_compile_time_eval():
            counts.append(ema.count)
        verb(ema)
        return x

    with pytest.raises(ModelError, match="inside a function that JAX compiles"):
        jax.jit(step)(1.0)
    assert counts == [0]


@jax_only
@pytest.mark.parametrize("verb", [v for v in WITHIN if v not in ("applied", "transfer", "load")])
def test_a_model_whose_arrays_were_given_away_is_told_so(verb: str, tmp_path: Path) -> None:
    import jax

    model = ZOO["sequential"].built()
    ema = polyak.EMA(model, 0.9)
    host, before = polyak.EMA(model, 0.9, placement="host"), ema.values()
    jax.jit(lambda held: [2 * array for array in held], donate_argnums=0)(parts(model)[0])
    with pytest.raises(ModelError, match="expected a value, received a deleted array") as caught:
        WITHIN[verb](model, ema, tmp_path)
    with pytest.raises(ModelError, match="expected a value, received a deleted array"):
        host.update()
    assert "give the step a copy" in str(caught.value.hint)
    ema.copy_to(model)
    assert_same_bits({path: values(model)[path] for path in before}, before)


@jax_only
def test_a_tree_that_was_given_away_is_told_so() -> None:
    import jax

    model = ZOO["sequential"].built()
    ema = polyak.EMA(model, 0.9)
    tree, (trained, others) = ema.tree(), parts(model)
    jax.jit(ema.stateless_update, donate_argnums=0)(tree, trained, others)
    verbs: list[Callable[[], object]] = [
        lambda: ema.take(tree),
        lambda: ema.stateless_update(tree, trained, others),
        lambda: ema.stateless_call(tree, np.ones((1, *model.input_shape[1:]), np.float32)),
    ]
    for verb in verbs:
        with pytest.raises(ModelError, match="of the tree: expected a value, received a deleted array"):
            verb()


@jax_only
def test_values_that_were_given_away_are_told_so() -> None:
    import jax

    model = ZOO["sequential"].built()
    ema, (trained, others) = polyak.EMA(model, 0.9), parts(model)
    jax.jit(lambda held: [2 * array for array in held], donate_argnums=0)(trained)
    with pytest.raises(ModelError, match=r"stateless_update\(\) of .*: weight '.*': .*, received a deleted array"):
        ema.stateless_update(ema.tree(), trained, others)


@jax_only
@pytest.mark.parametrize("evaluated", [False, True])
def test_no_tree_is_taken_inside_a_function_that_jax_compiles(evaluated: bool) -> None:
    import jax

    ema = polyak.EMA(ZOO["sequential"].built(), 0.9)
    before = ema.values()

    def step(tree: Any) -> Any:
        with jax.ensure_compile_time_eval() if evaluated else nullcontext():
            ema.take(tree)
        return tree

    with pytest.raises(ModelError, match="inside a function that JAX compiles"):
        jax.jit(step)(ema.tree())
    assert_same_bits(ema.values(), before)


@jax_only
def test_a_tree_of_numpy_keeps_its_float64() -> None:
    import jax

    model = ZOO["sequential"].built()
    ema, twin = (polyak.EMA(model, 0.9, compensated=True) for _ in range(2))
    scramble(model, 1)
    twin.update()
    ema.take(ema.stateless_update(jax.device_get(ema.tree()), *parts(model)))
    assert_same_bits(ema.values(), twin.values())


@jax_only
def test_weights_that_fit_keeps_in_its_compiled_step_are_read_by_nobody() -> None:
    model, told = ZOO["sequential"].built(), []

    def read(batch: int, logs: Any) -> None:  # no callback of a class: what asks for its model gets the values back
        with pytest.raises(ModelError, match=r"expected a value, received none: fit\(\) keeps it") as error:
            polyak.snapshot(model)["dense/kernel"]
        told.append(error.value.hint)

    model.compile("sgd", "mse")
    watched = keras.callbacks.LambdaCallback(on_train_batch_end=read)
    model.fit(np.ones((2, 4)), np.ones((2, 4)), verbose=0, callbacks=[watched])
    assert told == ["use polyak.keras.Averaging in fit, or read the weights at the end of an epoch"]


MOVED = """
import jax, keras, numpy as np, polyak
from tests.keras.zoo import ZOO, scramble
here, there = jax.devices()
model = ZOO["sequential"].built()
def move(device):
    for v in model.variables:
        v._value = jax.device_put(v.value, device)
move(here)
ema, twin = polyak.EMA(model, 0.9), polyak.EMA(model, 0.9, placement="host")
for seed, device in enumerate((here, there, here)):
    scramble(model, seed)
    move(device)
    if seed:
        try:
            ema.update()
        except polyak.errors.ModelError as error:
            assert "where its shadow is" in error.message and "ema.refresh()" in error.hint, error
        else:
            raise AssertionError("not refused")
        with ema.applied():
            move(device)
            try:
                ema.refresh()
            except polyak.errors.Applied:
                pass
            else:
                raise AssertionError("not refused")
        assert "moved to the devices of its weights" in ema.refresh()
    ema.update()
    twin.refresh()
    twin.update()
    assert ema.refresh() == ""
    assert all(s.sharding.device_set == {device} for s in ema.tree()["shadows"].values())
assert ema.count == twin.count == 3
assert all(a.tobytes() == twin.values()[p].tobytes() for p, a in ema.values().items())
"""


@jax_only
def test_an_average_follows_its_weights_to_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    done = subprocess.run([sys.executable, "-c", MOVED], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


DRIFTED = """
import sys, jax, numpy as np, polyak
from jax.sharding import NamedSharding, PartitionSpec
from tests.keras.zoo import ZOO
model = ZOO["sequential"].built()
whole = NamedSharding(jax.make_mesh((2,), ("all",)), PartitionSpec())
kernel = model.trainable_variables[0]
def copies(*added):
    value = np.asarray(kernel.value)
    each = [jax.device_put(value + n, device) for n, device in zip(added, jax.devices())]
    return jax.make_array_from_single_device_arrays(value.shape, whole, each)
alike, apart = copies(0, 0), copies(0, 1)
kernel._value = alike
assert np.array_equal(polyak.snapshot(model)["dense/kernel"], alike)
try:
    polyak.EMA(model, 0.9, placement="host")
except polyak.errors.ModelError as error:
    assert "expected weights on one device, received one that is spread over 2" in error.message, error
else:
    raise AssertionError("not refused")
kernel._value = apart
try:
    polyak.save(model, sys.argv[1])
except polyak.errors.ModelError as error:
    assert "weight 'dense/kernel'" in error.message and "expected one value on all devices" in error.message, error
else:
    raise AssertionError("not refused")
"""


@jax_only
def test_copies_that_have_drifted_apart_are_one_value_for_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    command = [sys.executable, "-c", DRIFTED, str(tmp_path / "drifted.npz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


APART = """
import jax, numpy as np, polyak
from tests.keras.zoo import ZOO, scramble
model = ZOO["sequential"].built()
for n, v in enumerate(model.variables):
    v._value = jax.device_put(v.value, jax.devices()[n % 2])
ema, before = polyak.EMA(model, 0.9), polyak.EMA(model, 0.9).values()
try:
    ema.update()
except polyak.errors.ModelError as error:
    assert "expected on cpu:0, where" in error.message and 'placement="host"' in error.hint, error
else:
    raise AssertionError("not refused")
assert ema.count == 0 and all(a.tobytes() == before[p].tobytes() for p, a in ema.values().items())
tree = ema.tree()
values = [[v.value for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables)]
here = jax.device_put(values, jax.devices()[0])
there = jax.device_put(here, jax.devices()[1])
assert int(ema.stateless_update(jax.device_put(tree, jax.devices()[1]), *there)["count"]) == 1
for given, received in ((tree, values), (jax.device_put(tree, jax.devices()[0]), there)):
    try:
        ema.stateless_update(given, *received)
    except polyak.errors.ModelError as error:
        assert "expected on cpu:" in error.message and "jax.device_put(tree, device)" in error.hint, error
    else:
        raise AssertionError("not refused")
host = polyak.EMA(model, 0.9, placement="host")
host.update()
assert host.count == 1 and all(np.array_equal(a, before[p]) for p, a in host.values().items())
"""


@jax_only
def test_weights_on_several_devices_are_averaged_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    done = subprocess.run([sys.executable, "-c", APART], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_values_that_their_writer_keeps_biased_are_taken_with_a_word() -> None:
    pytest.importorskip("tensorstore")
    ema = polyak.EMA(ZOO["sequential"].built(), 0.9)
    held = polyak.open(Path(__file__).parents[1] / "golden/jax/optax").select(role="average")
    with pytest.warns(ImmatureWarning, match="divide by 1 - decay"), pytest.raises(polyak.errors.PolyakError):
        ema.set_values(held)


@jax_only
def test_what_jax_programs_are_made_of_is_told_what_is_done_with_it() -> None:
    import jax.numpy as jnp

    received: list[Any] = [{"a": {"b": jnp.ones(2)}}, [jnp.ones(2)], jnp.ones(2)]
    try:
        from flax import linen, nnx

        received += [linen.Dense(3), nnx.Linear(2, 2, rngs=nnx.Rngs(0))]
    except ImportError:
        pass
    for one in received:
        with pytest.raises(ModelError) as caught:
            polyak.EMA(one, 0.9)
        assert "modules and trees of JAX are not tracked" in str(caught.value.hint)
        assert "polyak.Snapshot.from_arrays" in str(caught.value.hint)
    with pytest.raises(ModelError) as caught:
        polyak.EMA({"a": 1}, 0.9)
    assert caught.value.hint == "give the model itself"


@jax_only
def test_the_tree_of_a_compensated_average_goes_through_orbax_where_jax_keeps_float64(tmp_path: Path) -> None:
    import jax

    checkpoint = pytest.importorskip("orbax.checkpoint")
    model = ZOO["sequential"].built()
    ema, twin = (polyak.EMA(model, 0.9, compensated=True) for _ in range(2))
    scramble(model, 1)
    ema.update()
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "tree", ema.tree())
        checkpointer.wait_until_finished()
        with pytest.raises(ModelError, match=r"of float64, received shape .* of float32") as refused:
            twin.take(checkpointer.restore(tmp_path / "tree"))
        assert "with jax.enable_x64(True):" in str(refused.value.hint)
        with jax.enable_x64(True):
            tree = checkpointer.restore(tmp_path / "tree")
    twin.take(tree)
    scramble(model, 2)
    for average in (ema, twin):
        average.update()
    assert_same_bits(ema.values(), twin.values())


@jax_only
def test_a_tree_of_float32_for_float32_has_no_word_on_float64() -> None:
    model = ZOO["sequential"].built()
    ema = polyak.EMA(model, 0.9)
    tree = ema.tree()
    tree["shadows"] = {path: np.asarray(a, np.float16) for path, a in tree["shadows"].items()}
    with pytest.raises(ModelError, match="of float32, received") as refused:
        ema.take(tree)
    assert "in the dtypes that it had" in str(refused.value.hint)


@arrays
@pytest.mark.parametrize("place", ["", "state/ema"])
def test_the_tree_of_an_average_that_flax_has_saved_is_an_average(place: str, tmp_path: Path) -> None:
    serialization = pytest.importorskip("flax.serialization")
    model, other = ZOO["sequential"].built(), ZOO["sequential"].built()
    ema = polyak.EMA(model, 0.9)
    scramble(model, 1)
    ema.update()
    tree: Any = keras.tree.map_structure(keras.ops.convert_to_numpy, ema.tree())
    if place:
        tree = {
            "state": {"ema": tree, "step": np.int32(3)},
            "weights": [keras.ops.convert_to_numpy(v) for v in parts(model)[1]],
        }
    (tmp_path / "tree.msgpack").write_bytes(serialization.to_bytes(tree))
    found = polyak.open(tmp_path / "tree.msgpack")
    assert [role for role in found.roles if role != "training"] == ["average"]
    assert "has made 1 updates; its rule is not in the tree" in found.manifest.note
    polyak.transfer(tmp_path / "tree.msgpack", other)
    assert_same_bits(values(other), ema.values())


@jax_only
def test_trees_of_two_averages_that_orbax_has_saved_are_two_averages(tmp_path: Path) -> None:
    checkpoint = pytest.importorskip("orbax.checkpoint")
    model = ZOO["sequential"].built()
    slow, fast = polyak.EMA(model, 0.9), polyak.EMA(model, 0.5)
    scramble(model, 1)
    for average in (slow, fast):
        average.update()
    with checkpoint.StandardCheckpointer() as checkpointer:
        raw = {path: np.asarray(value) for path, value in values(model).items()}
        checkpointer.save(tmp_path / "state", {"raw": raw, "slow": slow.tree(), "fast": fast.tree()})
        checkpointer.wait_until_finished()
    found = polyak.open(tmp_path / "state")
    assert set(found.roles) == {"raw", "average:slow", "average:fast"}
    for role, held in (("raw", values(model)), ("average:slow", slow.values()), ("average:fast", fast.values())):
        assert_same_bits(dict(found.select(role=role)), held)
