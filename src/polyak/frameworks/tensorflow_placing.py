"""Where the variables of an average live: as plain ones, or one beside each replica of the weights that it follows."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from polyak.frameworks.company import ALONE, Company


@dataclass(frozen=True, slots=True)
class Place:
    """The strategy that a model's variables are spread by, or None.

    A variable of an average has a copy beside each replica of its weight. Replicas move their copies for themselves,
    without a word to each other: equal weights and counts give equal averages, bit for bit. Files get the first copy.
    """

    strategy: tf.distribute.Strategy | None

    @classmethod
    def of(cls, model: Any, variables: Iterable[tf.Variable]) -> Place:
        """By the variables where there are some, else by the strategy that the model would make them under."""
        for variable in variables:
            spread = isinstance(variable, tf.distribute.DistributedValues)
            return cls(variable.distribute_strategy if spread else None)
        own = getattr(model, "_distribute_strategy", None)
        return cls(own or (tf.distribute.get_strategy() if tf.distribute.has_strategy() else None))

    @property
    def company(self) -> Company:
        """The workers of the strategy. A chief comes before them."""
        resolver = getattr(self.strategy, "cluster_resolver", None)
        cluster = {} if resolver is None else resolver.cluster_spec().as_dict()
        if resolver is None or not cluster or resolver.task_type not in ("chief", "worker"):
            return ALONE
        chiefs, workers = len(cluster.get("chief", ())), len(cluster.get("worker", ()))
        before = chiefs if resolver.task_type == "worker" else 0
        return Company(before + resolver.task_id, chiefs + workers)

    def variable(self, value: Any, name: str | None = None, dtype: tf.DType | None = None) -> tf.Variable:
        """A variable that nothing trains."""
        if self.strategy is None:
            return tf.Variable(value, trainable=False, name=name, dtype=dtype)
        with self._scope():
            return tf.Variable(
                value,
                trainable=False,
                name=name,
                dtype=dtype,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )

    def _scope(self) -> AbstractContextManager[Any]:
        assert self.strategy is not None
        inside = tf.distribute.has_strategy() and tf.distribute.get_strategy() is self.strategy
        scope: AbstractContextManager[Any] = nullcontext() if inside else self.strategy.scope()
        return scope
