"""Verbs within a graph or a tf.function, where variables have no values; and variables that only a session has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import polyak
from polyak.errors import ModelError

NO_VALUES = r"expected a call where variables have values, received one within a graph or a tf\.function"


def module(values: list[float]) -> tf.Module:
    made = tf.Module()
    made.w = tf.Variable(values)
    return made


def in_a_graph(act: Callable[[], Any]) -> None:
    with tf.Graph().as_default():
        act()


def in_a_function(act: Callable[[], Any]) -> None:
    tf.function(act, autograph=False)()


def in_a_rewritten_function(act: Callable[[], Any]) -> None:
    """AutoGraph, which a ``tf.function`` has unless somebody asks for none, raises errors of its own for many."""

    @tf.function
    def step() -> None:
        act()

    step()


VERBS: dict[str, Callable[[Any, Any, Path], Any]] = {
    "values": lambda ema, other, path: ema.values(),
    "count": lambda ema, other, path: ema.count,
    "skipped": lambda ema, other, path: ema.skipped,
    "immaturity": lambda ema, other, path: ema.immaturity,
    "save": lambda ema, other, path: polyak.save(ema, path),
    "save of a model": lambda ema, other, path: polyak.save(other, path),
    "snapshot": lambda ema, other, path: polyak.snapshot(ema),
    "transfer": lambda ema, other, path: polyak.transfer(ema, other),
    "transfer of a snapshot": lambda ema, other, path: polyak.transfer(polyak.Snapshot.from_arrays(NEW), other),
    "plan": lambda ema, other, path: polyak.plan(ema, other),
    "diff": lambda ema, other, path: polyak.diff(ema, other),
    "copy_to": lambda ema, other, path: ema.copy_to(other),
    "set_values": lambda ema, other, path: ema.set_values(NEW),
    "reset": lambda ema, other, path: ema.reset(),
    "hard_sync": lambda ema, other, path: ema.hard_sync(),
    "change_rule": lambda ema, other, path: ema.change_rule("swa"),
    "Target": lambda ema, other, path: polyak.Target(other, tau=0.1),
}
NEW = {"w": np.ones(2, np.float32)}


@pytest.mark.parametrize("within", [in_a_graph, in_a_function, in_a_rewritten_function])
@pytest.mark.parametrize("verb", VERBS)
def test_what_looks_at_values_is_refused_within_a_graph_and_changes_nothing(
    verb: str, within: Callable[[Callable[[], Any]], None], tmp_path: Path
) -> None:
    ema, other = polyak.EMA(module([1.0, 2.0]), 0.9), module([3.0, 4.0])
    ema.update()
    with pytest.raises(ModelError, match=NO_VALUES + r"\nhint: call it outside of the graph"):
        within(lambda: VERBS[verb](ema, other, tmp_path / "x.safetensors"))
    assert (ema.count, str(ema.rule), ema.values()["w"].tolist()) == (1, "ema:0.9", [1.0, 2.0])
    assert other.w.numpy().tolist() == [3.0, 4.0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("within", [in_a_graph, in_a_function, in_a_rewritten_function])
def test_raw_weights_beside_an_average_that_is_applied_are_not_looked_at_either(
    within: Callable[[Callable[[], Any]], None],
) -> None:
    ema = polyak.EMA(module([1.0, 2.0]), 0.9)
    with ema.applied(), pytest.raises(ModelError, match=NO_VALUES):
        within(lambda: ema.source.view("w"))


def test_a_graph_of_a_session_neither_begins_nor_moves_an_average() -> None:
    held = module([1.0, 2.0])
    ema = polyak.EMA(held, 0.9)
    for act in (ema.update, lambda: polyak.EMA(held, 0.9)):
        with pytest.raises(ModelError, match=NO_VALUES):
            in_a_graph(act)
    assert ema.count == 0


def test_an_average_can_be_shown_anywhere() -> None:
    ema, shown = polyak.EMA(module([1.0, 2.0]), 0.9), list[str]()
    ema.update()
    in_a_function(lambda: shown.append(repr(ema)))
    in_a_graph(lambda: shown.append(repr(ema)))
    assert shown == [repr(ema), "<ema:0.9 of Module: seen from within a graph>"]


@pytest.mark.parametrize("resource", [True, False])
def test_variables_of_tensorflow_1_are_taken_from_their_file(resource: bool, tmp_path: Path) -> None:
    prefix = str(tmp_path / "model")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        live = tf.Module()
        live.w = tf.compat.v1.get_variable("w", initializer=tf.constant([1.0, 2.0]), use_resource=resource)
        for act in (lambda: polyak.EMA(live, 0.9), lambda: polyak.save(live, tmp_path / "x.safetensors")):
            with pytest.raises(ModelError, match=r"'w' of Module .*, which has its value in a session\n.*Saver\(\)"):
                act()
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver([live.w]).save(session, prefix)
    outside = module([0.0, 0.0])
    polyak.transfer(prefix, outside)
    assert outside.w.numpy().tolist() == [1.0, 2.0]


def test_what_holds_variables_and_is_no_model_is_told_how_to_be_one(tmp_path: Path) -> None:
    source = module([1.0, 2.0])
    tf.saved_model.save(source, str(tmp_path / "served"))
    loaded = tf.saved_model.load(str(tmp_path / "served"))
    for held in (loaded, tf.train.Checkpoint(w=source.w), [source.w], source.w):
        with pytest.raises(ModelError, match=r"put the variables into a module, each under its path"):
            polyak.EMA(held, 0.9)
    made = tf.Module()
    made.w = loaded.w
    source.w.assign([5.0, 6.0])
    polyak.transfer(polyak.EMA(source, 0.9), made)
    assert loaded.w.numpy().tolist() == [5.0, 6.0]
