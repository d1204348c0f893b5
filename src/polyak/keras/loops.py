"""Which loop of Keras is calling: ``fit`` with this callback in its list, or somebody else.

Keras gives callbacks neither the list that they stand in nor a call when a loop ends by an exception. What polyak puts
in the place of a model's function therefore asks who calls, each time, and steps aside for everybody else: for a while
where another callback of such a loop evaluates or trains, and for good where no such loop is running.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import keras

_NEAR = 8


def neighbours() -> list[Any]:
    """The callbacks of the list that calls a callback's ``set_model``; none where nobody's list does."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_NEAR):
        if frame is None:
            break
        owner = _local(frame, "self")
        if isinstance(owner, keras.callbacks.CallbackList):
            return list(owner.callbacks)
        frame = frame.f_back
    return []


def serves(callback: Any, frame: FrameType | None) -> bool:
    """Whether a frame is a loop of Keras with this callback in its list."""
    callbacks = None if frame is None else _local(frame, "callbacks")
    return isinstance(callbacks, keras.callbacks.CallbackList) and any(c is callback for c in callbacks.callbacks)


def _local(frame: FrameType, name: str) -> Any:
    """A local variable, if there is one: a frame that is asked for them keeps a copy of all, for as long as it runs."""
    code = frame.f_code
    return frame.f_locals.get(name) if name in code.co_varnames or name in code.co_cellvars else None


def is_within(callback: Any, frame: FrameType | None) -> bool:
    """Whether a frame was called, over however many others, by a loop of Keras with this callback in its list."""
    return any(True for _ in _serving(callback, frame))


def is_nested(callback: Any) -> bool:
    """Whether a loop of Keras with this callback in its list runs within another such loop."""
    return len({id(frame.f_locals["callbacks"]) for frame in _serving(callback, sys._getframe(1))}) > 1


def fit_argument(callback: Any, name: str) -> Any:
    """What the innermost loop of Keras with this callback in its list was called with, or None."""
    return next((frame.f_locals.get(name) for frame in _serving(callback, sys._getframe(1))), None)


def _serving(callback: Any, frame: FrameType | None) -> Iterator[FrameType]:
    """The loops of Keras with this callback in their lists from which a frame was called, the innermost first."""
    while frame is not None:
        if serves(callback, frame):
            yield frame
        frame = frame.f_back


class Stand:
    """What stands in the place of a model's function while loops with a callback run.

    Attributes:
        plain: the function itself.
        used: whether such a loop has called.
        missed: whether a call was expected and something else came, or nothing.
    """

    def __init__(self, callback: Any, model: Any, name: str, instead: Callable[..., Any]) -> None:
        self.plain = getattr(model, name)
        self.used = False
        self._announced = False
        self._callback = callback
        self._model = model
        self._name = name
        self._instead = instead
        self._of_its_own = name in vars(model)
        self._expected: FrameType | None = None
        setattr(model, name, self)

    @property
    def present(self) -> Any:
        """What stands in the place now. The callback's own ``model`` would write Keras' state back first, on JAX."""
        return getattr(self._model, self._name)

    def expect(self) -> None:
        """Called by a hook of the callback that comes before each call: the loop that called it need not be looked at
        once more, which on JAX takes as long as a small step.
        """
        self._announced = True
        self._expected = sys._getframe(3)  # the hook, the list of callbacks, the loop

    @property
    def missed(self) -> bool:
        return self._announced and not self.used

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        caller, expected = sys._getframe(1), self._expected
        self._expected = None  # a frame keeps all that is in it
        if (self.used and caller is expected) or serves(self._callback, caller):
            self.used = True
            return self._instead(*args, **kwargs)
        if not is_within(self._callback, caller):
            self.leave()
        return self.plain(*args, **kwargs)

    def leave(self) -> None:
        """Give the place back, unless somebody has taken it meanwhile."""
        if vars(self._model).get(self._name) is not self:
            return
        if self._of_its_own:
            setattr(self._model, self._name, self.plain)
        else:
            delattr(self._model, self._name)


class Places:
    """The functions of a model in whose places something of a callback stands."""

    def __init__(self, callback: Any) -> None:
        self._callback = callback
        self._stands: dict[str, Stand] = {}

    def take(self, model: Any, name: str, instead: Callable[..., Any]) -> None:
        self.give_back(name)
        self._stands[name] = Stand(self._callback, model, name, instead)

    def __getitem__(self, name: str) -> Stand:
        return self._stands[name]

    def give_back(self, name: str) -> Stand | None:
        """What stood there, or None where the place was not taken."""
        stand = self._stands.pop(name, None)
        if stand is not None:
            stand.leave()
        return stand

    def leave(self) -> None:
        for name in list(self._stands):
            self.give_back(name)
