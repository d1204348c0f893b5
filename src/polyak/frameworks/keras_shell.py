"""A model whose variables are copies, which runs another model with them: what Keras compiles for an average's view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from polyak.errors import ModelError
from polyak.frameworks.described import describe
from polyak.frameworks.keras_outputs import values_of
from polyak.frameworks.stateful import Ref


class Shell(keras.Model):
    """Runs a model with values of its own in the place of the model's.

    Args:
        model: the model; it is never written to, and its variables are not the shell's.
        variables: all its variables by path.
    """

    def __init__(self, model: Any, variables: Mapping[str, Any]) -> None:
        super().__init__(name=f"average_of_{model.name}", dtype=model.dtype_policy, autocast=False)
        self._inner = Ref(model)
        self._pairs = Ref({path: (variable, self._copy_of(variable)) for path, variable in variables.items()})
        # Losses and metrics may be given by the names of outputs.
        if "output_names" in vars(model):
            self.output_names = model.output_names
        self.built = True

    def _copy_of(self, variable: Any) -> Any:
        # Never cast on the way: the model's own layers do that where they read it.
        return self.add_weight(
            shape=variable.shape, dtype=variable.dtype, initializer="zeros", trainable=False, autocast=False
        )

    def set_copies(self, values: Mapping[str, Any]) -> None:
        """Write arrays of the backend into the copies, by path."""
        for path, (_, copy) in self._pairs.value.items():
            copy.assign(values[path])

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Run the model. What it changes of its state, such as a random seed, goes on in the copies."""
        model, pairs = self._inner.value, self._pairs.value.values()
        asked = {"training": training} if model._call_has_training_arg else {}
        scope = keras.StatelessScope(state_mapping=list(pairs), collect_losses=True, initialize_variables=False)
        given = [scope.get_current_value(variable) for variable, _ in pairs]
        with scope:
            outputs = model(inputs, **asked)
            losses = [*scope.losses, *model._get_regularization_losses()]
        for loss in losses:
            self.add_loss(loss)
        for (variable, copy), value in zip(pairs, given, strict=True):
            if scope.get_current_value(variable) is not value:
                copy.assign(scope.get_current_value(variable))
        return values_of(outputs, scope)


def compiled_like(model: Any, shell: Shell) -> Shell:
    """Compile the shell as the model is compiled, with metrics of its own and without an optimizer."""
    if not model.compiled:
        return shell
    # Not what the last call of compile was given: what it was not given stays as it was.
    loss, metrics = model._compile_loss, model._compile_metrics
    shell.compile(
        optimizer=None,
        loss=None if loss is None else loss._user_loss,
        loss_weights=None if loss is None else loss._user_loss_weights,
        metrics=None if metrics is None else _anew(metrics._user_metrics, model),
        weighted_metrics=None if metrics is None else _anew(metrics._user_weighted_metrics, model),
        run_eagerly=model.run_eagerly,
        steps_per_execution=model.steps_per_execution,
        jit_compile=model.jit_compile,
    )
    return shell


def _anew(metrics: Any, model: Any) -> Any:
    """The same metrics with a state of their own, in whichever lists and dicts they are."""
    if isinstance(metrics, Mapping):
        return {name: _anew(metric, model) for name, metric in metrics.items()}
    if isinstance(metrics, (list, tuple)):
        return [_anew(metric, model) for metric in metrics]
    if not isinstance(metrics, keras.metrics.Metric):
        return metrics
    try:
        return type(metrics).from_config(metrics.get_config())
    except Exception as error:
        raise ModelError(
            f"{describe(model)}: metric {metrics.name!r}: expected one that Keras can make anew from its config, "
            f"received {type(error).__name__}: {error}",
            hint="use `with ema.applied(): model.evaluate(...)`, or register its function with "
            "keras.saving.register_keras_serializable",
        ) from error
