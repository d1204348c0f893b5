"""Several averages of one model that move together, in one pass over its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from types import MappingProxyType
from typing import Any, NoReturn, SupportsIndex, Unpack, final

from polyak.errors import ModelError, RuleError, UnbuiltModel
from polyak.frameworks import Average, framework_of
from polyak.frameworks.base import traffic
from polyak.verbs import Following, RuleLike, track


@final
class Averages(Mapping[str, Average]):
    """Averages of one model by name; ``update()`` moves them all and reads each of the model's weights once.

    Each of them is an average of its own, with its own rule, count, files and uses: ``averages["slow"].applied()``,
    ``polyak.save(averages["slow"], path)``, ``tf.train.Checkpoint(**averages)``. What they hold has the same bits as if
    each were updated for itself. In ``fit`` several ``polyak.keras.Averaging`` move together without this.

    In an attribute of a model they are in the files of Keras and TensorFlow that an average in an attribute is in, each
    by its name.

    Args:
        model: what ``polyak.track`` takes.
        rules: by name, a rule as ``polyak.track`` takes it, or an average of this model that exists already.
        following: ``every``, ``after``, ``kinds``, ``compensated`` and ``placement`` of new ones, as ``polyak.track``
            takes them.

    Raises:
        RuleError: a rule is not valid, or there is none.
        ModelError: an average follows another model, or is named twice.

    Example:
        >>> import tensorflow as tf
        >>> module = tf.Module(); module.w = tf.Variable([1.0])
        >>> averages = Averages(module, {"fast": "ema:0.5,start=copy", "mean": "swa"})
        >>> averages
        <2 averages of Module, which move together: 8 bytes of memory, 24 bytes read and written an update
          fast: ema:0.5,start=copy, 0 updates
          mean: mean, 0 updates>
        >>> for value in (0.8, 0.6, 0.4):
        ...     _ = module.w.assign([value]); averages.update()
        >>> {name: average.values()["w"].round(3).tolist() for name, average in averages.items()}
        {'fast': [0.550000011920929], 'mean': [0.6000000238418579]}
    """

    def __new__(cls, model: Any, rules: Mapping[str, RuleLike | Average], **following: Unpack[Following]) -> Averages:
        """Of a kind that the files of the model's framework have."""
        del rules, following
        return super().__new__(_held_as(framework_of(model).holder))

    def __init__(self, model: Any, rules: Mapping[str, RuleLike | Average], **following: Unpack[Following]) -> None:
        _refuse_unnamed(rules)
        for name, given in rules.items():
            if isinstance(given, Average) and given.followed() is not model:
                raise ModelError(
                    f"average {name!r}: expected one of this {type(model).__name__}, received {given.label}, which "
                    "follows another model",
                    hint="averages move together where they follow one model; make a polyak.Averages for each",
                )
        made = {
            name: given if isinstance(given, Average) else track(model, given, **following)
            for name, given in rules.items()
        }
        self._averages = MappingProxyType(made)  # Keras would save what is in a dictionary, too, and by its order
        if len({id(average) for average in self._averages.values()}) < len(self._averages):
            raise ModelError("polyak.Averages: expected different averages, received one under two names")
        self._followed = type(model).__name__
        self._update = framework_of(model).moving(list(self._averages.values()))

    def update(self) -> None:
        """Move all of them towards the model's weights: once after each optimizer step, eagerly or in a tf.function.

        Raises:
            Applied: one of them, or another average, is applied to the model.
        """
        self._update()

    def __getitem__(self, name: str) -> Average:
        return self._averages[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._averages)

    def __len__(self) -> int:
        return len(self._averages)

    @property
    def nbytes(self) -> int:
        """Memory of all shadow values, in bytes."""
        return sum(average.nbytes for average in self.values())

    @property
    def traffic(self) -> int:
        """Bytes that an update reads and writes: the weights once for all averages, and their shadows."""
        return traffic(list(self.values()))

    def __repr__(self) -> str:
        lines = [f"  {name}: {average.rule}, {average.count:,} updates" for name, average in self.items()]
        try:
            costs = f"{self.nbytes:,} bytes of memory, {self.traffic:,} bytes read and written an update"
        except UnbuiltModel:
            costs = "they wait for the model to be built"
        head = f"<{len(self)} averages of {self._followed}, which move together: {costs}"
        return "\n".join([head, *lines]) + ">"

    def __deepcopy__(self, memo: dict[int, Any]) -> Averages:
        """No copy: as each of them says, or refuses."""
        for average in self.values():
            deepcopy(average, memo)
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """What ``copy.copy`` and ``pickle`` ask: averages refuse both."""
        raise ModelError(
            f"{len(self)} averages of {self._followed} cannot be copied or pickled",
            hint="for another process, polyak.save(averages[name], path) of each, and there polyak.transfer",
        )


@cache
def _held_as(holder: type) -> type[Averages]:
    return type(Averages.__name__, (Averages, holder), {"__module__": __name__, "__doc__": Averages.__doc__})


def _refuse_unnamed(rules: object) -> None:
    if isinstance(rules, Mapping) and (other := [name for name in rules if not isinstance(name, str)]):
        raise RuleError(
            f"polyak.Averages: expected names that are text, received {other[0]!r:.80}", hint='{"slow": "ema:0.999"}'
        )
    if isinstance(rules, Mapping) and "" in rules:
        raise RuleError("polyak.Averages: expected names, received an empty one", hint='{"slow": "ema:0.999"}')
    if not isinstance(rules, Mapping) or not rules:
        received = f"{rules!r:.80}" if rules else "none"
        raise RuleError(
            f"polyak.Averages: expected at least one rule by a name, received {received}", hint='{"slow": "ema:0.999"}'
        )
