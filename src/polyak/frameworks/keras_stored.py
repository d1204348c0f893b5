"""Averages in the files that Keras writes: ``model.save`` and ``save_weights`` keep one that the model holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from keras.src.saving.keras_saveable import KerasSaveable

from polyak.errors import MissingWeight, ShapeMismatch
from polyak.frameworks.base import Average
from polyak.frameworks.keras_places import places_of
from polyak.frameworks.stateful import StatefulAverage
from polyak.manifest import AVERAGE, State
from polyak.snapshot import Snapshot
from polyak.transfer.places import Place
from polyak.transfer.plan import make_plan
from polyak.weights import numpy_dtype

# As the callbacks of ``fit`` call theirs; of a role's name in a file it is no part.
_ATTRIBUTE = "_polyak_"


class StoredByKeras(StatefulAverage, KerasSaveable):
    """An average that Keras saves and loads with the model that holds it as an attribute."""

    def places(self) -> Mapping[str, Place]:
        return places_of(self.followed())

    def _obj_type(self) -> str:
        return "Layer"

    def save_own_variables(self, store: Any) -> None:
        """Keras calls this from ``model.save`` and ``save_weights``."""
        self.refuse_swapped_file()
        store["memo"] = np.frombuffer(self.memo().encode(), np.uint8)
        store["counts"] = np.array([self.count, self.skipped], np.int64)
        for path, value in self.values().items():
            store[_key(path)] = value

    def load_own_variables(self, store: Any) -> None:
        """Keras calls this from ``load_model`` and ``load_weights``. All or nothing."""
        if "counts" not in store:
            raise MissingWeight(
                f"the file holds no average for {self.label}",
                hint="load the weights without it (`del model._polyak_average`, or the attribute of your own), then "
                "call ema.reset()",
            )
        target = self.target
        values = {w.path: _loaded(store, w.path, w.shape, w.dtype) for w in target.weights}
        put_back = self.hold_state()
        try:
            self.compare_memo(bytes(np.asarray(store["memo"], np.uint8)))
            count, skipped = np.asarray(store["counts"]).tolist()
            held = Snapshot.from_arrays(values, AVERAGE, State(self.rule.to_json(), count, skipped))
            make_plan(held, target, {}).apply()
        except BaseException:
            put_back()
            raise


class HeldByKeras(KerasSaveable, Mapping[str, Average]):
    """Averages by name, which Keras saves and loads by these names: it walks the attributes that ``dir`` tells."""

    def _obj_type(self) -> str:
        return "Layer"

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *map(_attribute, self)]

    def __getattr__(self, attribute: str) -> Any:
        for name in self if attribute.startswith(_ATTRIBUTE) else ():
            if _attribute(name) == attribute:
                return self[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {attribute!r}")


def _loaded(store: Any, path: str, shape: tuple[int, ...], dtype: str) -> Any:
    if _key(path) not in store:
        raise MissingWeight(f"weight {path!r}: the file holds no average of it", hint="it was saved from another model")
    value = np.asarray(store[_key(path)])
    if value.shape != shape:
        raise ShapeMismatch(f"weight {path!r}: expected an average of {shape}, received {value.shape}")
    return value.astype(numpy_dtype(dtype), copy=False)


def _key(path: str) -> str:
    """A path as one name: stores take slashes for groups."""
    return "shadows:" + _escaped(path)


def _attribute(name: str) -> str:
    """Under which Keras finds an average of this name; it leaves out some names, such as ``losses``."""
    return _ATTRIBUTE + _escaped(name)


def _escaped(path: str) -> str:
    return path.replace("%", "%25").replace("/", "%2F")
