"""What polyak asks of a framework, and the average of a live model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Unpack, get_args

import numpy as np
from numpy.typing import ArrayLike

from polyak.averaging.kernel import shadow_dtype
from polyak.averaging.parts import Parts
from polyak.averaging.rules import Rule
from polyak.errors import Applied, MissingWeight, ModelError, UnexpectedWeight
from polyak.frameworks.company import ALONE, Company
from polyak.manifest import AVERAGE, RAW, Manifest, State
from polyak.snapshot import Array, Item, Snapshot, Told, tool, versions
from polyak.transfer.plan import Asked, make_plan
from polyak.transfer.receipt import Receipt
from polyak.transfer.target import Target
from polyak.weights import Kind, Weight, numpy_dtype

Tree = dict[str, Any]
Placement = Literal["device", "host"]


@dataclass(frozen=True, slots=True)
class Tracking:
    """How a model is followed, beside the rule.

    Attributes:
        kinds: kinds of weights by glob, where the default is not meant.
        compensated: keep the shadows of what is averaged in float64.
        placement: where the shadows lie, beside the weights or in the host's memory.
    """

    kinds: Mapping[str, Kind] = field(default_factory=dict)
    compensated: bool = False
    placement: Placement = "device"

    def __post_init__(self) -> None:
        if self.placement not in get_args(Placement):
            raise ModelError(
                f"placement={self.placement!r}: expected one of {', '.join(map(repr, get_args(Placement)))}"
            )

    @property
    def on_host(self) -> bool:
        """Whether an accelerator's memory is spared."""
        return self.placement == "host"

    def shadowed(self, weight: Weight) -> Weight:
        """The description of a weight's shadow: what is averaged is held in float32 or wider, copies as they are."""
        if weight.kind is not Kind.TRAINABLE:
            return weight
        own = shadow_dtype(weight.dtype)
        return replace(weight, dtype="float64" if self.compensated and own == "float32" else own)


class Framework(ABC):
    """Knows the live models of one framework.

    Attributes:
        holder: what a mapping of names to averages also is, so that the framework's own files have them.
    """

    holder: type = object

    @abstractmethod
    def owns(self, obj: object) -> bool:
        """Whether the object is a model of this framework."""

    @abstractmethod
    def target(self, model: Any) -> Target:
        """The model's weights as something to read and to write. Raises UnbuiltModel."""

    @abstractmethod
    def role(self, model: Any) -> tuple[str, State | None]:
        """What the model holds now: raw weights, or the values of an average that is applied to it."""

    @abstractmethod
    def track(self, model: Any, rule: Rule | Parts, tracking: Tracking) -> Average:
        """A new average of the model."""

    @abstractmethod
    def moving(self, averages: Sequence[Any]) -> Callable[[], None]:
        """A function that updates these averages of one model, all in one pass over its weights."""

    @abstractmethod
    def build(self, model: Any, sample: Any) -> None:
        """Create the model's weights from an input shape (a tuple of ints and None) or a sample input."""

    aside_hint: str = "make it with self.add_weight(...)"

    def aside(self, model: Any) -> list[str]:
        """What a built model holds beside its weights, in words: it stays as it is."""
        del model
        return []

    def company(self, model: Any) -> Company:
        """This process among those that train the model together."""
        del model
        return ALONE


class Average(ABC):
    """Shadow values, a count and a rule, native to the framework of the model that they follow.

    Attributes:
        rule: how the average moves: one rule, or one for each part of the model.
    """

    rule: Rule | Parts

    @abstractmethod
    def update(self) -> None:
        """Move the average towards the model's weights: once after each optimizer step.

        A weight that is not finite leaves the whole average as it is; the update is counted in
        ``skipped``.

        Raises:
            Applied: the average is applied to its model.
        """

    @abstractmethod
    def applied(self) -> AbstractContextManager[None]:
        """The model with the averaged weights; on every exit the raw ones are back, bit for bit.

        What is trained within is dropped then, and ``WeightsChanged`` says so. A write into the ``.data`` of a tensor
        of PyTorch is not noticed.
        """

    @property
    @abstractmethod
    def is_applied(self) -> bool:
        """Whether it is applied to its model now."""

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model with the averaged weights, without touching it."""

    @abstractmethod
    def reset(self) -> None:
        """Start again from the model's present weights, with a count of zero.

        What came by ``refresh`` begins with all others then, by the rule of its path. A rule that was changed on the
        way, "A until 1000 then B", begins with A again; ``change_rule`` before the next update gives B alone. A step of
        your own that JAX has compiled contains the rule as it was: compile it anew.
        """

    def hard_sync(self) -> Receipt:
        """Copy the model's present weights, read them back and compare; the count starts again at zero.

        Unlike ``reset`` it copies also where the rule starts from zeros. Inside a compiled step a rule does the
        same: ``"copy,every=1000"``.

        Raises:
            Applied: the average is applied to its model.
            NonFinite: a weight is NaN or infinite.
        """
        with self.moment():
            self.reset()
            raw, kept = snapshot_of(self.source, RAW), {w.path for w in self.target.weights}
            held = Snapshot((i for path, i in raw.items_by_path.items() if path in kept), {RAW: None}, raw.origin)
            return make_plan(held, self.target, {"nonfinite": "allow"}).apply()

    @abstractmethod
    def report_skips(self) -> None:
        """Warn of updates that were skipped since the last report."""

    @abstractmethod
    def refresh(self) -> str:
        """Follow the weights that the model has now: new ones start here, those that are gone are forgotten.

        A new weight begins with the rule that its path has now, as from a first update. What the rule leaves out stays
        out, also where another weight has come in its place. A tf.function of yours that contains ``update`` goes on
        with the weights that it was traced with; a ``WeightsChanged`` warning says so.

        Returns:
            What has changed, in a sentence; "" if nothing has.

        Raises:
            Applied: the average is applied to its model.
            NonFinite: a new weight is NaN or infinite; the average is as it was.
            RuleError: a new weight has no rule, or the rule leaves out all that is there; the average is as it was.
        """

    def tree(self) -> Tree:
        """The whole state as a tree of arrays of its own, for steps that are pure functions (Keras on JAX, PyTorch).

        In a loop that compiles its step with ``jax.jit`` the tree is an argument and a result beside the model's own
        lists of values; its memory may be donated. ``take`` brings it back into the average.

        Raises:
            ModelError: the average lives in variables (TensorFlow), which a compiled step moves itself; or within a
                function that JAX compiles, where the tree would stay what it is now.
        """
        raise _stateful(self, "tree", "update() inside the tf.function")

    def stateless_update(self, tree: Tree, trainable_variables: Any, non_trainable_variables: Any = ()) -> Tree:
        """``update()`` as a pure function, with the same bits: the state after it, from the state before.

        Args:
            tree: the state.
            trainable_variables, non_trainable_variables: the model's new values, in the order of its lists of these
                names, as ``model.stateless_call`` and ``optimizer.stateless_apply`` use them.

        Raises:
            ModelError: a list is not of the model's length, or a value not of its shadow's shape; the tree is no state
                of this average; the average lives in variables.
        """
        raise _stateful(self, "stateless_update", "update() inside the tf.function")

    def stateless_call(self, tree: Tree, *args: Any, **kwargs: Any) -> Any:
        """Run the model with the averaged values of a tree; no gradient reaches the model's own weights."""
        raise _stateful(self, "stateless_call", "the average itself inside the tf.function")

    def take(self, tree: Tree) -> None:
        """Go on from the state in a tree; it is copied to where the shadows are.

        Raises:
            ModelError: it is no state of this average: parts, names, shapes and dtypes are those of ``tree()``.
            NonFinite: a value in it is NaN or infinite.
            RuleError: a count in it is none that a run has.
        """
        raise _stateful(self, "take", "update() inside the tf.function")

    @property
    @abstractmethod
    def count(self) -> int:
        """Updates so far: the average's own, independent of any optimizer."""

    @property
    @abstractmethod
    def skipped(self) -> int:
        """Updates refused because a weight was not finite."""

    @property
    @abstractmethod
    def beginnings(self) -> int:
        """How often it began again, was restored, was written or follows other weights: what no count can tell."""

    @property
    @abstractmethod
    def target(self) -> Target:
        """The shadow values as something to read and to write."""

    @property
    @abstractmethod
    def source(self) -> Target:
        """The raw weights that are followed."""

    @abstractmethod
    def followed(self) -> Any:
        """The model that is followed. A method, because loaders that walk attributes must not find the way back."""

    @property
    def immaturity(self) -> float:
        """Share of the average, in [0, 1], that still comes from the value it started with."""
        return self.rule.immaturity(self.count)

    @property
    def state(self) -> State:
        """Rule and counts as data."""
        return State(self.rule.to_json(), self.count, self.skipped)

    @property
    def nbytes(self) -> int:
        """Memory of the shadow values, in bytes."""
        return sum(w.nbytes for w in self.target.weights)

    @property
    def traffic(self) -> int:
        """Bytes that an update reads and writes."""
        return traffic([self])

    def moment(self) -> AbstractContextManager[Any]:
        """A context in which no other thread changes the average, nor the model by one of polyak's train functions.

        A loop of one's own that other threads read beside makes each step, the optimizer's and the update, within one.
        It waits for as long as another thread is within one; so a loop never breaks off because somebody reads.
        """
        return self.target.moment()

    def values(self) -> dict[str, Array]:
        """Copies of the averaged values under their structural paths, in the shadow's dtype."""
        target = self.target
        with target.moment():
            return {w.path: target.read(w.path) for w in target.weights}

    def set_values(self, values: Mapping[str, ArrayLike], **asked: Unpack[Asked]) -> Receipt:
        """Replace all averaged values; the count stays. All or nothing.

        Plain numbers and lists take the shadow's dtype; arrays must have it, or ``cast="target"`` is asked for.

        Raises:
            MissingWeight, UnexpectedWeight: the names are not those of ``values()``.
            ShapeMismatch, DtypeMismatch, NonFinite: a value does not fit.
        """
        from polyak.frameworks.hand_over import warn_if_biased  # it looks a model's framework up among all

        if isinstance(values, Snapshot):
            warn_if_biased(values)
        known = [w.path for w in self.target.weights]
        missing = [path for path in known if path not in values]
        if missing:
            raise MissingWeight(
                f"weight {missing[0]!r}: expected a value, received none ({len(missing)} missing)",
                hint="keep the others with set_values({**ema.values(), **mine})",
            )
        for path in sorted(values.keys() - set(known)):
            raise UnexpectedWeight(f"weight {path!r} is not tracked by {self.label}", hint="see ema.values().keys()")
        arrays = {w.path: _array(values[w.path], w.dtype) for w in self.target.weights}
        return make_plan(Snapshot.from_arrays(arrays, AVERAGE, self.state), self.target, asked).apply()

    def copy_to(self, model: Any, **asked: Unpack[Asked]) -> Receipt:
        """Write the averaged values into another instance of the model; takes what ``polyak.transfer`` takes."""
        from polyak.frameworks.hand_over import plan_into_model  # it looks the model's framework up among all

        return plan_into_model(self.snapshot(), model, asked).apply()

    def snapshot(self) -> Snapshot:
        """A lazy view of the averaged values with rule, count and evidence. ``copy()`` detaches it."""
        return snapshot_of(self.target, AVERAGE, lambda: self.state)

    @property
    def label(self) -> str:
        """What errors and receipts call this average."""
        return f"{self.rule} of {type(self.followed()).__name__}"

    def __repr__(self) -> str:
        weights = self.target.weights
        averaged = sum(w.kind is Kind.TRAINABLE for w in weights)
        facts = [
            f"{self.count:,} updates",
            f"immaturity {self.immaturity:.3g}",
            f"{averaged} weights averaged, {len(weights) - averaged} copied",
            f"{self.nbytes:,} bytes of memory",
            f"{self.traffic:,} bytes read and written an update",
        ]
        if self.skipped:
            facts.append(f"{self.skipped} skipped as not finite")
        return f"<{self.label}: {', '.join(facts)}>"


def traffic(averages: Iterable[Average]) -> int:
    """Bytes that an update of averages of one model reads and writes.

    Each weight is read for all of them at once, and once before to see that it is finite; a shadow is read and written,
    a copy is written.
    """
    shadows = [w for average in averages for w in average.target.weights]
    weights = {w.path: w for average in averages for w in average.source.weights}
    read = {w.path: weights[w.path].nbytes * (1 + w.floating) for w in shadows}
    return sum(read.values()) + sum(w.nbytes * (1 + (w.kind is Kind.TRAINABLE)) for w in shadows)


def refuse_written(average: Average) -> None:
    """Raise Applied where the model would go on with the values from before, which a file of it would call the new."""
    if average.is_applied:
        raise Applied(
            f"average {average.label} is applied to its model, which would keep the values from before",
            hint="leave the `with ema.applied()` block first",
        )


def _stateful(average: Average, method: str, instead: str) -> ModelError:
    return ModelError(
        f"{method}() of {average.label}: expected an average whose state is plain arrays (Keras on JAX or PyTorch), "
        "received one that lives in variables",
        hint=f"call {instead}: it moves the variables there",
    )


def _array(value: ArrayLike, dtype: str) -> Array:
    return np.asarray(value, numpy_dtype(dtype) if isinstance(value, (list, tuple, int, float)) else None)


def snapshot_of(target: Target, role: str, state: Told = None) -> Snapshot:
    """A lazy view of a target's present weights; a weight that has several names is there under each."""

    def item(path: str, weight: Weight) -> Item:
        known = replace(weight, path=path)
        read, view = partial(target.read, weight.path), partial(target.view, weight.path)
        return Item(role, known, read, view=view, home=partial(target.home, weight.path))

    held = {w.path: w for w in target.weights}
    items = [*((w.path, w) for w in target.weights), *((a, held[first]) for a, first in target.aliases.items())]
    written = Manifest(tool(), {}, (), source=target.label, versions=versions(), layout=target.layout)
    return Snapshot((item(p, w) for p, w in items), {role: state}, target.label, written=written, moment=target.moment)
