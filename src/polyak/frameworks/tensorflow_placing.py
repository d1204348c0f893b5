"""Where the variables of an average live: as plain ones, or one beside each replica of the weights that it follows."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from polyak.errors import ModelError
from polyak.frameworks.base import Tracking
from polyak.frameworks.company import ALONE, Company

HOST = "CPU:0"


@dataclass(frozen=True, slots=True)
class Place:
    """The strategy that a model's variables are spread by, or None; or the device that variables of an average lie on.

    A variable of an average has a copy beside each replica of its weight. Replicas move their copies for themselves,
    without a word to each other: equal weights and counts give equal averages, bit for bit. Files get the first copy.
    """

    strategy: tf.distribute.Strategy | None
    device: str | None = None

    @classmethod
    def asked(cls, tracking: Tracking, model: Any, variables: Iterable[tf.Variable]) -> Place:
        """Beside the weights, or in the host's memory. Raises ModelError for weights that are spread over replicas."""
        beside = cls.of(model, variables)
        if not tracking.on_host:
            return beside
        if beside.strategy is not None:
            raise ModelError(
                'placement="host": expected weights on one device, received some that are spread over replicas',
                hint='leave placement="device": each replica then has its part of the average',
            )
        return cls(None, HOST)

    @classmethod
    def of(cls, model: Any, variables: Iterable[tf.Variable]) -> Place:
        """By the variables where there are some, else by the strategy that the model would make them under.

        A strategy of one device makes plain variables.
        """
        for variable in variables:
            spread = isinstance(variable, tf.distribute.DistributedValues)
            return cls(variable.distribute_strategy if spread else None)
        own = getattr(model, "_distribute_strategy", None)
        strategy = own or (tf.distribute.get_strategy() if tf.distribute.has_strategy() else None)
        return cls(None if isinstance(strategy, tf.distribute.OneDeviceStrategy) else strategy)

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
            with tf.device(self.device):
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


def refuse_shared(label: str, variables: Iterable[tf.Variable]) -> None:
    """Raise ModelError where each of several replicas is about to move variables that are not beside each of them."""
    if tf.distribute.in_cross_replica_context():
        return
    strategy = tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync
    if replicas > 1 and not all(_is_beside_each(variable, strategy) for variable in variables):
        raise ModelError(
            f"{label}: update() within strategy.run: expected counts and averaged values beside each of the {replicas} "
            "replicas, received some that all of them share, which each would move",
            hint="call update() after strategy.run, outside of it; or make the model within the scope of the strategy, "
            "such as a MirroredStrategy, and then the average",
        )


def _is_beside_each(variable: tf.Variable, strategy: tf.distribute.Strategy) -> bool:
    return isinstance(variable, tf.distribute.DistributedValues) and variable.distribute_strategy is strategy
