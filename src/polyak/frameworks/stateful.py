"""What averages share on every framework: rule and counts as a state, the note in files, warnings of skips."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, Concatenate, NoReturn, ParamSpec, SupportsIndex, TypeVar, cast

from polyak.averaging.parts import Parts, as_rule, continued, rule_from_json
from polyak.averaging.rules import Rule
from polyak.errors import (
    Applied,
    ModelError,
    NonFinite,
    NonFiniteWarning,
    RuleChanged,
    RuleError,
    UnbuiltModel,
    WeightsChanged,
    listed,
    notify,
)
from polyak.frameworks.base import Average, Tracking
from polyak.frameworks.exchange import Left, Locks, Over, together, watch
from polyak.frameworks.growth import Growth, joined, kept_late, refuse_missing
from polyak.frameworks.locks import Lock
from polyak.manifest import State, decode_memo, encode_memo
from polyak.transfer.places import Place
from polyak.transfer.target import PutBack
from polyak.weights import Kind, Weight

# Far beyond the steps that a loss scale needs to come down, and far below those that cost a day.
PATIENCE = 1000
# What to do where a new rule leaves out a weight that is followed (False), or follows one that is left out (True).
_OTHER_PARTS = (
    "new = polyak.track(model, rule); polyak.transfer(ema, new, exclude=...) what is left out; new.change_rule(rule)",
    'begin an average of its own for what is followed from now on: polyak.track(model, {"head/*": rule, "*": None})',
)
# The largest count that may be taken over.
LAST = 2**62
APPLIED = "the average is applied to the model: an update now would average the averaged weights"


class Ref:
    """Holds an object where TensorFlow and Keras shall not look for variables."""

    def __init__(self, value: Any) -> None:
        self.value = value


P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A", bound="StatefulAverage")


def undisturbed(method: Callable[Concatenate[A, P], R]) -> Callable[Concatenate[A, P], R]:
    """A method that waits while another thread is within a moment of the average, as ``update`` does."""

    @wraps(method)
    def alone(average: A, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with together([average]):
            return method(average, *args, **kwargs)

    return alone


class StatefulAverage(Average):
    """An average over a live model; a framework says where shadows and counts are kept and how they move.

    Attributes:
        patience: updates in a row that may be skipped because a weight is not finite; one more raises NonFinite.
    """

    patience: int

    def __init__(self, model: Any, rule: Rule | Parts, tracking: Tracking) -> None:
        self.rule = rule
        self._followed = Ref(model)
        self._tracking = Ref(tracking)
        self.patience = PATIENCE
        self._reported = Ref(0)
        self._stored: Ref = Ref(None)
        self._stuck: Ref = Ref((-1, 0))
        self._locks: Ref = Ref((Lock(),))
        self._beginnings = Ref(0)
        self._grown: Ref = Ref((None, None))
        self._unbuilt: Ref = Ref([])
        self.finished = Ref(None)  # what polyak.frameworks.finished notes

    @property
    @abstractmethod
    def in_use(self) -> bool:
        """Whether any followed weight holds averaged values now, of this or of another average."""

    @abstractmethod
    def shadow_weights(self) -> tuple[Weight, ...]:
        """Descriptions of the shadows; none before the model is built."""

    @abstractmethod
    def unsafe(self) -> list[str]:
        """Paths of guarded weights that are not finite now."""

    @abstractmethod
    def look(self) -> None:
        """Notice whether any of the followed weights holds averaged values now."""

    @abstractmethod
    def set_state(self, rule: Rule | Parts, count: int, skipped: int) -> None:
        """Go on with this rule and these counts."""

    @abstractmethod
    def set_counts(self, count: int, skipped: int) -> None:
        """Go on with these counts; the updates that were skipped so far count as reported."""

    @property
    def locks(self) -> Locks:
        """Those that an update, the beginning and end of ``applied`` and polyak's own train functions hold."""
        return cast(Locks, self._locks.value)

    def watch(self, variables: Collection[Any]) -> None:
        """Follow these variables. What is applied to them from now on is told, and what is now is looked at."""
        self._locks.value = watch(variables, self)
        self.look()

    def moment(self) -> AbstractContextManager[None]:
        return together([self])

    @property
    def beginnings(self) -> int:
        return cast(int, self._beginnings.value)

    def begin(self) -> None:
        """Note that the values are others now than updates made them."""
        self._beginnings.value += 1

    @property
    def first_rule(self) -> Rule | Parts:
        """The rule to begin again with: nothing is late then that came by ``refresh`` since the average began."""
        grown, first = self._grown.value
        return cast("Rule | Parts", first if grown == self.rule else self.rule)

    def note_grown(self, before: Rule | Parts) -> None:
        """Note that the present rule is the one before, for a model that has changed."""
        grown, first = self._grown.value
        self._grown.value = (self.rule, first if grown == before else before)

    @property
    def tracking(self) -> Tracking:
        """How the model is followed, beside the rule."""
        return cast(Tracking, self._tracking.value)

    def followed(self) -> Any:
        return self._followed.value

    def places(self) -> Mapping[str, Place]:
        """Where TensorFlow's object graph has the weights: see ``Target.places``."""
        return {}

    def unfit(self) -> dict[str, bytes]:
        """Averaged values in the place of which the model would compute with others, by path."""
        return {}

    def adopt(self, state: State | None) -> None:
        """Take over a rule and counts. Without a state the values count as a start: zero updates.

        Raises:
            RuleError: the counts might not go on to the end of a run, or the rule leaves out what is followed here.
        """
        self.begin()
        if state is None:
            self.set_state(self.first_rule, 0, 0)
        else:
            self.refuse_counts(state.count, state.skipped)
            self.set_state(self._fitted(self._rule_of(state.rule)), state.count, state.skipped)

    def refuse_counts(self, count: int, skipped: int) -> None:
        """Raise RuleError for counts that no run has, or that might not go on to its end."""
        if not 0 <= min(count, skipped) <= max(count, skipped) <= LAST:
            raise RuleError(
                f"{self.label}: expected counts from 0 to 2**62, from where no run gets to the end of 64 bits, "
                f"received {count:,} updates and {skipped:,} skipped"
            )

    def _fitted(self, rule: Rule | Parts) -> Rule | Parts:
        """A rule of another average as one for this: what is left out here stays so, whenever the model changes."""
        parts = rule if isinstance(rule, Parts) else Parts((("*", rule),))
        followed = {w.path: parts.leaves_out(w.path) for w in self.target.weights}
        for path in (path for path, is_out in followed.items() if is_out):
            raise RuleError(
                f"weight {path!r}: {self.label} follows it, the rule {rule} of the values to take over leaves it out",
                hint="take them over into an average with the same parts: polyak.track(model, rule)",
            )
        paths = [w.path for w in self.source.weights if w.path not in followed]
        out = tuple((path, None) for path in paths if not parts.leaves_out(path))
        return Parts((*out, *parts.entries)) if out else rule

    def begin_late(self, paths: Sequence[str]) -> None:
        """What a new average was not given begins at the count that it took over, as if that were the first update."""
        late, label = joined(self.rule, Growth(tuple(paths), ()), self.count), self.label
        if late != self.rule:
            self.set_state(late, self.count, self.skipped)
            notify(
                WeightsChanged(
                    f"weight {listed([*map(repr, paths)])}: left out where {label} took over {self.count:,} updates; "
                    "averaged from the next one on as from a first update"
                )
            )

    def _rule_of(self, data: Any) -> Rule | Parts:
        """A stored rule. One of the user's own is known only as that which the average has already."""
        return self.rule if data == self.rule.to_json() else rule_from_json(data)

    @undisturbed
    def change_rule(self, rule: Rule | Parts | str | Mapping[str, Rule | str | None]) -> None:
        """Go on by another rule, such as a larger decay for the end of a run. Values and counts stay.

        The next update is number ``count + 1`` of the new rule, and ``rule`` says both: "A until 1000 then B". So the
        shares of the past and ``immaturity`` are those of what really happened. A rule that shall count from one again
        is given with ``after``: "mean,after=1000" begins a new mean. In ``fit`` the change holds from the next batch.

        Raises:
            RuleError: the rule is not valid, leaves out other weights than the present one, or a tf.function of yours
                contains the present one already.
            Applied: the average is applied to its model.
            NonFinite: before the first update, where the new rule starts from the weights: one is NaN or infinite.

        Example:
            >>> import tensorflow as tf, polyak
            >>> module = tf.Module(); module.w = tf.Variable(0.0)
            >>> ema = polyak.EMA(module, 0.5, start="copy"); ema.update()
            >>> ema.change_rule("ema:0.75,start=copy"); _ = module.w.assign(1.0); ema.update()
            >>> ema.values()["w"].tolist(), ema.count, str(ema.rule)
            (0.25, 2, 'ema:0.5,start=copy until 1 then ema:0.75,start=copy')
        """
        self.refuse_applied()
        new = as_rule(rule)
        refuse_other_parts(new, self.source.weights, {w.path for w in self.target.weights})
        paths = [w.path for w in self.source.weights]
        put_back = self.hold_state()
        self.set_state(continued(self.rule, self.count, new, paths), self.count, self.skipped)
        if self.count == 0:
            try:
                self.reset()
            except BaseException:
                put_back()
                raise

    def hold_state(self) -> PutBack:
        """Remember rule and counts; the result puts them back."""
        rule, state = self.rule, self.state
        return lambda: self.set_state(rule, state.count, state.skipped)

    def memo(self) -> str:
        """Rule and evidence as JSON text, for files that TensorFlow or Keras write."""
        return encode_memo(self.rule.to_json(), self.shadow_weights())

    def compare_memo(self, text: bytes | str) -> None:
        """Warn if restored values were made under another rule than the average has now; what was late stays so.

        Raises:
            MissingWeight: the average follows weights of which none was stored; their averages would go on from what
                they are now, with the count of the others.
        """
        memo = decode_memo(text)
        self._stored.value = frozenset(w.path for w in memo.weights)
        refuse_missing(self.shadow_weights(), self._stored.value, self.label)
        before, restored = self.rule, self._rule_of(memo.rule)
        rule = kept_late(before, restored, [w.path for w in self.shadow_weights() or memo.weights])
        if rule != before:
            self.set_state(rule, self.count, self.skipped)
            self.note_grown(before)
        self._reported.value = None
        if restored != self.rule:
            notify(RuleChanged(f"the restored average was made with {restored}; it goes on with {self.rule}"))

    def report_skips(self) -> None:
        """Warn of updates that were skipped since the last report; those of a restored state were reported then.

        Raises:
            NonFinite: more than ``patience`` in a row.
        """
        skipped = self.skipped
        if self._reported.value is None:
            self._reported.value = skipped
        if skipped <= self._reported.value:
            return
        bad, new = self.unsafe(), skipped - self._reported.value
        self._reported.value = skipped
        named = f"weight {bad[0]!r}" if bad else "a weight"
        if self._in_a_row(skipped) > self.patience:
            raise NonFinite(
                f"{named} is not finite: expected at most {self.patience:,} updates of {self.label} to be skipped in "
                f"a row, received more ({skipped:,} in all); the average keeps its last finite values",
                hint="go on from finite weights, such as these: ema.copy_to(model); or set ema.patience",
            )
        notify(
            NonFiniteWarning(
                f"{named} is not finite: {new} update(s) skipped, {skipped} in all; the average keeps its last "
                "finite values"
            )
        )

    def _in_a_row(self, skipped: int) -> int:
        """Of the updates that were skipped, those that no other one is known to lie between.

        Reports see counts alone, and compiled steps are reported together: where the count of real updates has moved
        since the last report, only the last skip is sure to come after them.
        """
        count, before = self._stuck.value
        if count != self.count or before >= skipped:
            before = skipped - 1
            self._stuck.value = (self.count, before)
        return int(skipped - before)

    def refuse_swapped_file(self) -> None:
        """Raise Applied when another tool is about to write averaged values as the model's raw weights."""
        if self.in_use:
            raise Applied(
                "the average is applied to the model: this file would hold averaged values as raw weights",
                hint="leave the `with ema.applied()` block first, or use polyak.save, which knows",
            )

    def refuse_applied(self) -> None:
        """Raise Applied when averaged values are in the model."""
        if self.in_use:
            raise Applied(APPLIED, hint="leave the `with ema.applied()` block first")

    def tell_dropped(self, left: Mapping[str, Left], same: Callable[[Over, Any], bool]) -> None:
        """Warn if somebody has trained what was applied: when the raw weights came back, that was lost."""
        trained = {w.path for w in self.source.weights if w.kind is Kind.TRAINABLE}
        known = {path: found for path, found in left.items() if path in trained and found[0].mark is not None}
        written = [path for path, (put, found) in known.items() if not same(put, found)]
        if written:
            notify(
                WeightsChanged(
                    f"weight {listed([*map(repr, written)])}: written while {self.label} was applied; the raw weights "
                    "are back, and what was written is dropped. Train outside of the `with ema.applied()` block; to go "
                    "on from the averaged weights: ema.copy_to(model)"
                )
            )

    def refuse_start_without_weights(self) -> None:
        """Raise UnbuiltModel for a rule that remembers weights which are not there yet."""
        if rule := self._starts_at_weights():
            raise UnbuiltModel(
                f"rule {rule} starts at the initial weights; {type(self.followed()).__name__} is not built yet",
                hint='build the model first, which a model that is never called says by "self.built = True", or '
                'use a rule whose first update copies, such as start="copy"',
            )

    def _starts_at_weights(self) -> Rule | None:
        rules = self.rule.rules if isinstance(self.rule, Parts) else (self.rule,)
        return next((r for r in rules if float(r.weight(1.0)) < 1 and r.origin == "weights"), None)

    def complete(self) -> None:
        """Follow the rest of a model of which only a part was built when the average was begun."""
        if self.is_incomplete:
            said = self.refresh()
            self.note_unbuilt(self._unbuilt.value)
            if said and (self.count or self._starts_at_weights()):
                notify(WeightsChanged(said))

    @property
    def is_incomplete(self) -> bool:
        """Whether a layer was built since the average was begun or last completed."""
        return any(layer.built for layer in self._unbuilt.value)

    def note_unbuilt(self, layers: Iterable[Any]) -> None:
        """Note which of these layers have no weights yet."""
        self._unbuilt.value = [layer for layer in layers if not layer.built]

    def __deepcopy__(self, memo: dict[int, Any]) -> StatefulAverage:
        raise self._uncopied("copied with its model")

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """What ``copy.copy`` and ``pickle`` ask: a copy would move the same state and be no watcher of the weights."""
        raise self._uncopied("copied or pickled")

    def _uncopied(self, what: str) -> ModelError:
        return ModelError(
            f"{self.label} cannot be {what}",
            hint="copy the model without it, track the copy, and use polyak.transfer(ema, other_ema); for another "
            "process, polyak.save(ema, path) and there polyak.transfer(path, other_ema)",
        )


def refuse_other_parts(rule: Rule | Parts, weights: Sequence[Weight], followed: Collection[str]) -> None:
    """Raise RuleError for a rule by parts that has no place here, or follows other weights than those."""
    if isinstance(rule, Parts):
        rule.check([w.path for w in weights])
    for w in weights:
        wanted = not isinstance(rule, Parts) or rule.rule_of(w.path) is not None
        if wanted != (w.path in followed):
            raise RuleError(
                f"weight {w.path!r}: the present rule {'leaves it out' if wanted else 'follows it'}, the new rule "
                f"{rule} {'follows it' if wanted else 'leaves it out'}",
                hint=_OTHER_PARTS[wanted],
            )
