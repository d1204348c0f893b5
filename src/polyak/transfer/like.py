"""A file as the target of a plan: the names, shapes and dtypes that another source has, and the values of a source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from polyak.errors import TransferError
from polyak.snapshot import Array, Item, Snapshot
from polyak.transfer.commit import value_of
from polyak.transfer.plan import Move, Plan
from polyak.transfer.target import PutBack, Target
from polyak.weights import Weight


class Like(Target):
    """The structure of something that is to be written. It has no values, and its dtypes may be changed by a plan."""

    fixed = False

    def __init__(self, weights: Sequence[Weight], label: str, layout: str = "") -> None:
        self._weights = tuple(weights)
        self.label = label
        self.layout = layout

    @property
    def weights(self) -> tuple[Weight, ...]:
        return self._weights

    def read(self, path: str) -> Array:
        raise self._no_values()

    def write(self, path: str, value: Array) -> None:
        raise self._no_values()

    def hold(self, path: str) -> PutBack:
        raise self._no_values()

    def _no_values(self) -> TransferError:
        return TransferError(
            f"{self.label}: expected a model or an average to write into, received a structure without values",
            hint='write a file of this structure with polyak.transfer(source, "out.safetensors", like=...)',
        )


def filled(plan: Plan) -> Snapshot:
    """The target's structure with the source's values; an array is read, checked and cast when it is asked for.

    It holds the weights that the plan moves, and no others.

    Example:
        >>> import numpy as np
        >>> from polyak.transfer.plan import make_plan
        >>> source = Snapshot.from_arrays({"old": np.float32([1, 2])})
        >>> target = Like(Snapshot.from_arrays({"new": np.float16([0, 0])}).weights, "x")
        >>> made = filled(make_plan(source, target, {"rename": {"old": "new"}, "cast": "target"}))
        >>> made["new"].tolist(), made["new"].dtype.name
        ([1.0, 2.0], 'float16')
    """
    described = {w.path: w for w in plan.target.weights}
    items = [_item(plan, m, described[m.target]) for m in plan.moves]
    source = plan.source
    states = {plan.role: source.states[plan.role]}
    return Snapshot(items, states, source.origin, source.integrity, source.manifest, source.moment)


def _item(plan: Plan, move: Move, weight: Weight) -> Item:
    return Item(plan.role, replace(weight, dtype=move.dtype), partial(_value, plan, move))


def _value(plan: Plan, move: Move) -> Array:
    return value_of(move.target, plan.source[move.source], move.dtype, plan.source.origin, plan.finite)
