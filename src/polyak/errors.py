"""One family of errors. Each names the subject, what was expected, what was received, and the next step."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from types import FrameType

# Keras and the others call polyak for the user, whose own line is further out.
_NOT_THE_CALLER = ("polyak", "contextlib", "keras", "tf_keras", "tensorflow", "jax", "torch")


class PolyakError(Exception):
    """Base of every error that polyak raises.

    Args:
        message: what went wrong, naming the weight, file or argument.
        hint: the next step, shown on its own line.

    Example:
        >>> str(PolyakError("file 'a.bin': unknown format", hint="run polyak inspect"))
        "file 'a.bin': unknown format\\nhint: run polyak inspect"
    """

    # To AutoGraph, which would raise a StagingError in its place for what a traced function raises.
    ag_pass_through = True

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class RuleError(PolyakError, ValueError):
    """A rule's text or parameter is out of range, or probably means something else."""


class ModelError(PolyakError, ValueError):
    """An object is no model that polyak can follow."""


class UnbuiltModel(ModelError):
    """The model's weights do not exist yet."""


class WeightError(PolyakError, ValueError):
    """Something is wrong with one weight: missing, unexpected, of another shape or dtype."""


class MissingWeight(WeightError, KeyError):
    """A weight of the target has no source, or a name is unknown."""

    __str__ = PolyakError.__str__


class UnexpectedWeight(WeightError):
    """A source weight has no place in the target."""


class ShapeMismatch(WeightError):
    """Source and target agree on the name and differ in shape."""


class DtypeMismatch(WeightError):
    """The target cannot hold the source's dtype exactly and no cast was asked for."""


class AmbiguousMatch(WeightError):
    """Two kinds of evidence point at different weights of one shape."""


class AmbiguousRole(PolyakError, ValueError):
    """The source holds raw and averaged weights and the caller did not say which."""


class NonFinite(WeightError):
    """A weight is NaN or infinite where finite values are required."""


class Applied(PolyakError, RuntimeError):
    """The average is applied to its model, and the call would mix up the two sets."""


class FileError(PolyakError, OSError):
    """A path does not lead to a readable or writable file."""

    __str__ = PolyakError.__str__


class DamagedFile(FileError):
    """The bytes of a file contradict themselves, its checksums or its size."""


class UnknownFormat(FileError):
    """No reader recognises the content of a file."""


class TransferError(PolyakError, RuntimeError):
    """A transfer failed while writing; the target was put back as it was."""


class PolyakWarning(UserWarning):
    """Base of every warning that polyak issues."""


class NonFiniteWarning(PolyakWarning):
    """An update was skipped because a weight was not finite."""


class ImmatureWarning(PolyakWarning):
    """An average that still remembers its start is handed over."""


class RuleChanged(PolyakWarning):
    """Restored state was made under another rule than the average has now."""


class WeightsChanged(PolyakWarning):
    """A model has other weights, or other values in them, than when its average last saw it."""


class BegunLate(PolyakWarning):
    """An average begins on a model that was trained before, and knows nothing of it."""


class NotAveraged(PolyakWarning):
    """A weight that is trained has a dtype in which nothing is averaged, so that it is copied."""


class NotAWeight(PolyakWarning):
    """A model holds a variable that its framework does not count among the weights, so that it is left as it is."""


def listed(words: Sequence[str], most: int = 1) -> str:
    """The first of so many words, and how many more there are.

    Example:
        >>> listed(["a", "b", "c"]), listed(["a", "b"], 2)
        ('a and 2 more', 'a, b')
    """
    more = f" and {len(words) - most:,} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def argument(name: str, value: str | Sequence[str] | Mapping[str, str]) -> str:
    """An argument as a hint says it, so that it can be copied whatever is in a name.

    Example:
        >>> print(argument("exclude", "head/*"), argument("exclude", ['say "x"', "b"]), argument("rename", {"a": "b"}))
        exclude="head/*" exclude=['say "x"', "b"] rename={"a": "b"}
    """
    if isinstance(value, str):
        return f"{name}={quoted(value)}"
    if isinstance(value, Mapping):
        return f"{name}={{{', '.join(f'{quoted(old)}: {quoted(new)}' for old, new in value.items())}}}"
    return f"{name}=[{', '.join(map(quoted, value))}]"


def quoted(text: str) -> str:
    """A text as Python reads it, in double quotes where that is all it takes."""
    plain = text.isprintable() and '"' not in text and "\\" not in text
    return f'"{text}"' if plain else repr(text)


def notify(warning: PolyakWarning) -> None:
    """Issue a warning that points at the caller's line, however deep in polyak it is found."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and not _is_callers(frame):
        frame, level = frame.f_back, level + 1
    warnings.warn(warning, stacklevel=level)


def _is_callers(frame: FrameType) -> bool:
    rewritten = "__autograph_generated_file" in frame.f_code.co_filename  # by TensorFlow, to trace it
    return not rewritten and frame.f_globals.get("__name__", "").partition(".")[0] not in _NOT_THE_CALLER
