"""On JAX a train step is a pure function, compiled together with the average's.

While ``fit`` runs, Keras' variables are empty: the weights are in the arguments and results of the compiled step, and
so are the shadows here. The train function is called with Keras' own state and gives it back; the shadows pass from
call to call beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import keras
from keras import ops

from polyak.errors import ModelError
from polyak.frameworks.engine import held_from, tree_of
from polyak.frameworks.exchange import together
from polyak.frameworks.jax_kernel import stepped_alone
from polyak.keras.fitting import INSTEAD, Function, counting, makes_its_own, refuse_set, updates
from polyak.transfer.unbroken import unbroken

TRAINABLE, OTHERS, OPTIMIZER = 0, 1, 2
_STATE = ("trainable_variables", "non_trainable_variables", "optimizer_variables", "metrics_variables")


class _Fitting:
    def moving(self, model: Any, averages: Sequence[Any]) -> Function:
        _refuse_own(model)
        refuse_set(model)
        within, apart = _sorted(averages)
        step = _step(model, within)
        if model.jit_compile and not model.run_eagerly:
            step = jax.jit(step, donate_argnums=(0, 1), out_shardings=_shardings(model, within))

        def train_function(state: Any, iterator: Any) -> Any:
            try:
                for i in range(model.steps_per_execution):
                    data = next(iterator, None)
                    if data is None and i:
                        break
                    if data is None:
                        raise StopIteration
                    with together(averages), unbroken():
                        logs, state, trees, real = step(state, [tree_of(a.held) for a in within], data)
                        _note(model, state)
                        for average, tree in zip(within, trees, strict=True):
                            average.held = held_from(tree)
                        _move_apart(model, apart, state, real)
            except BaseException:
                if not any(array.is_deleted() for array in jax.tree.leaves(state)):
                    _note(model, state)
                raise
            return logs, state

        return train_function

    def averaged(self, model: Any, average: Any, plain: Function) -> Function:
        """The shadows in the place of the weights in Keras' state; what they become is used for the next batch."""
        averaged: list[Any] = []

        def function(state: Any, iterator: Any) -> Any:
            if not averaged:
                averaged.extend(_averaged_state(model, average, state))
            outputs, new = plain((*averaged, *state[2:]), iterator)
            averaged[:] = new[:2]
            return outputs, (*state[:2], *new[2:])

        return function


def _refuse_own(model: Any) -> None:
    """Keras' state has no room for shadows: a function that is not Keras' could not hand them on."""
    if makes_its_own(model):
        raise ModelError(
            f"fit of {type(model).__name__}: expected Keras' own make_train_function, received one of the model's; on "
            "JAX the average moves in a step that is compiled beside it and would not call it",
            hint=INSTEAD,
        )


def _sorted(averages: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Those that the compiled step holds, and those whose shadows lie elsewhere."""
    return [a for a in averages if not a.engine.apart], [a for a in averages if a.engine.apart]


def _move_apart(model: Any, averages: Sequence[Any], state: Any, real: Any) -> None:
    """After the step, whose results need not be there yet: nothing waits for them here."""
    if not averages:
        return
    place = _by_variable(model, state)
    values = {path: place[id(a.raw.variables[path])] for a in averages for path in a.held.shadows}
    new = averages[0].engine.step([a.program for a in averages], [a.held for a in averages], values, real)
    for average, held in zip(averages, new, strict=True):
        average.held = held


def _note(model: Any, state: Any) -> None:
    """Leave the weights where Keras looks for them when ``fit`` ends by an exception: it has emptied its variables
    before the first step of an epoch, and notes what a step gives only some lines after it.

    Past Keras' tracking of attributes, which would look at each array once more.
    """
    vars(model)["_jax_state"] = dict(zip(_STATE, state, strict=True))


def _step(model: Any, averages: Sequence[Any]) -> Function:
    followed, programs = [a.raw.variables for a in averages], [a.program for a in averages]

    def step(state: Any, trees: Any, data: Any) -> Any:
        before = _updates(model, state)
        logs, new = model.train_step(state, data)
        after = _updates(model, new)
        real = ops.any(ops.stack([a != b for a, b in zip(after, before, strict=True)]))
        place = _by_variable(model, new)
        pairs = zip(followed, trees, strict=True)
        values = {path: place[id(raw[path])] for raw, tree in pairs for path in tree["shadows"]}
        return logs, new, stepped_alone(programs, trees, values, real), real

    return step


def _updates(model: Any, state: Any) -> list[Any]:
    """The optimizer's count in a state, which holds the compiled optimizer alone."""
    with keras.StatelessScope(state_mapping=list(zip(model.optimizer.variables, state[OPTIMIZER], strict=True))):
        return [ops.convert_to_tensor(n) for n in updates(counting(model.optimizer))]


def _by_variable(model: Any, state: Any) -> dict[int, Any]:
    variables = (*model.trainable_variables, *model.non_trainable_variables)
    return {id(v): array for v, array in zip(variables, (*state[TRAINABLE], *state[OTHERS]), strict=True)}


def _averaged_state(model: Any, average: Any, state: Any) -> list[list[Any]]:
    """Both lists of weights in Keras' state with copies in the place of all of them: the function uses them up."""
    shadows = {id(average.raw.variables[path]): shadow for path, shadow in average.held.shadows.items()}
    sides = (model.trainable_variables, model.non_trainable_variables)

    def copies(variables: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
        pairs = zip(variables, arrays, strict=True)
        engine = average.engine
        return [
            engine.as_weight(shadows[id(v)], v) if id(v) in shadows else engine.cast(array, array.dtype)
            for v, array in pairs
        ]

    return [copies(variables, arrays) for variables, arrays in zip(sides, state[:2], strict=True)]


def _shardings(model: Any, averages: Sequence[Any]) -> Any:
    """Where results are to be, if the model is spread over devices: a shadow is where its weight is."""
    if keras.distribution.distribution() is None:
        return None
    trees = [jax.tree.map(lambda array: array.sharding, tree_of(a.held)) for a in averages]
    return (None, model._get_state_sharding_spec(), trees, None)


FITTING = _Fitting()
