"""What the writer of a file called an average: ``ema_params`` beside ``params``, a teacher beside a student."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from polyak.manifest import AVERAGE

_WORDS = ("ema", "swa", "averaged", "average", "avg", "polyak", "teacher")
_CALLED = re.compile(rf"(?<![a-z])({'|'.join(_WORDS)})(?![a-z])")
_OF_WEIGHTS = re.compile(r"(?<![a-z])(ema|swa|polyak)(?![a-z])")
_RAW_WORDS = ("student", "online", "raw")
_USUAL = ("", "params", "model", "variables", "weights")
_KEPT = re.compile(r"(?<![^/])_polyak_")
_CONTRARY = re.compile(r"(?<![a-z])(no|non|not|without|pre|before)[^a-z]*$")
# What follows a word that is no part of a network's name, as it is in ``momentum_encoder``.
OF_NO_NETWORK = r"(?![a-z]|[^a-z/]?(net|network|model|encoder|decoder)(?![a-z]))"
# Of what optimizers average: such an average has the names and shapes of the weights, too.
_OF_OTHERS = re.compile(
    rf"(?<![a-z])(grads?|gradients?|sq|squares?|squared|var|variances?|mom|moments?|momentum|updates){OF_NO_NETWORK}|"
    r"(?<![a-z])exp_avg(?=/|$)"
)


def roles_of(paths: Collection[str]) -> Mapping[str, str]:
    """The roles of averages in one file by their paths: by the callback's name, where one of ``fit`` made it.

    Example:
        >>> roles_of(["_polyak_mean"]), roles_of(["_polyak_mean", "model/teacher"])
        ({'_polyak_mean': 'average'}, {'_polyak_mean': 'average:mean', 'model/teacher': 'average:model/teacher'})
    """
    if len(paths) == 1:
        return dict.fromkeys(paths, AVERAGE)
    names = {path: _KEPT.sub("", path) for path in paths}
    told = names if len(set(names.values())) == len(names) else {path: path for path in paths}
    return {path: f"{AVERAGE}:{name}" for path, name in told.items()}


def says_average(name: str, words: re.Pattern[str] = _CALLED) -> bool:
    """Whether a name has one of the words for an average, and none before it that says the contrary, or of what else.

    Example:
        >>> [says_average(name) for name in ("model_ema", "model_non_ema", "pre-ema", "ema_grads")]
        [True, False, False, False]
    """
    name = name.lower()
    return not is_of_others(name) and any(not _CONTRARY.search(name[: found.start()]) for found in words.finditer(name))


def is_of_others(place: str) -> bool:
    """Whether a step of a place says that it is of gradients or of their moments.

    Example:
        >>> [is_of_others(place) for place in ("grads/ema", "exp_avg", "variables", "momentum_encoder/ema")]
        [True, True, False, False]
    """
    return bool(_OF_OTHERS.search(place.lower()))


def is_named_after(average: str, raw: str) -> bool:
    """Whether something is called an average of another by the last steps of their places; a layer's twin is not.

    Example:
        >>> is_named_after("ema_params", "params"), is_named_after("teacher", "student"), is_named_after("ema", "head")
        (True, True, False)
    """
    of, known = _letters(average, _WORDS), _letters(raw, _RAW_WORDS)
    return of == known or (not of and known in _USUAL)


def is_network(average: str, raw: str, *, deep: bool) -> bool:
    """Whether names tell that two are networks among others, and no layers of one, which may be alike and called so.

    Args:
        deep: whether there are layers in them.

    Example:
        >>> is_network("G_ema", "G", deep=True), is_network("teacher_head", "student_head", deep=True)
        (True, False)
    """
    whole = _letters(raw, _RAW_WORDS) in _USUAL or raw.rpartition("/")[2] in _USUAL
    return whole or (deep and says_average(average.rpartition("/")[2], _OF_WEIGHTS))


def _letters(place: str, words: tuple[str, ...]) -> str:
    """Those of the last step that belong to none of these words."""
    return re.sub("[^a-z]", "", re.sub("|".join(words), "", place.rpartition("/")[2].lower()))
