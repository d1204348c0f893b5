"""What lies beside a model in a file of PyTorch: another network, or what a training keeps of itself.

Nothing in the file says which of the two a set is. A network is what has names like one, and neither the key of an
average nor that of the state of a training. Beside a model that has no average it is kept: what is left out of a mean
is lost. Beside one that has an average it is left with the state of the training, and the note of the snapshot says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from polyak.dialects.called import says_average
from polyak.dialects.torch_sets import Named, agree, bare, same
from polyak.weights import is_floating

_AVERAGED = re.compile(r"(?<![a-z])(ema|swa|avg|averaged?|polyak|teacher|shadow)(?![a-z])")
_GRADIENTS = re.compile(r"(?<![a-z])(grads?|gradients?)(?![a-z])")
_MANY = re.compile(r"(?<![a-z])(grads|gradients)$")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# Steps of a key, in small letters, that end with a word of these: "loss_fn", but not "loss_net".
_TRAINING = re.compile(
    r"(?<![a-z])(args|hparams|hyper_?param[a-z]*|config|cfg|settings|meta(data)?|callbacks?|loops?|[a-z]*schedulers?|"
    r"scalers?|rng|random|loss(es)?|criterion|metrics?|history|logs?|stats|statistics|rms|normali[sz](ers?|ation)|"
    r"sampler|[a-z]*data_?(module|loader|set)s?)(_fn|_states?)?(_dicts?)?[^a-z]*$"
)
_WEIGHT = re.compile(r"(weight|bias|kernel)(_\w+)?")
_STATISTIC = re.compile(r"(\w+_)?(mean|std|var|variance|min|max|count|sum|median)")


def called_average(key: str) -> bool:
    """Whether the writer called a set an average by its key.

    Example:
        >>> [called_average(key) for key in ("model_ema", "modelEMA", "emaModel", "schema", "modelNonEma")]
        [True, True, True, False, False]
        >>> called_average("grad_ema")  # of something else
        False
    """
    return says_average(words_of(key), _AVERAGED) and not _of_gradients(key)


def _of_gradients(key: str) -> bool:
    """Whether a step of a key is called gradients, or an average of them; a network may have the word in its name."""
    steps = [words_of(step).lower() for step in key.split("/")]
    return any(_MANY.search(s) or (_GRADIENTS.search(s) and says_average(s, _AVERAGED)) for s in steps)


def averages_among(found: Mapping[str, Named]) -> list[Named]:
    """The sets that their writer called averages: what is called so as a whole may hold more than the average.

    Example:
        >>> from polyak.contents import Tensor
        >>> w = {"w": Tensor((), "float32", lambda: 0)}
        >>> keys = ("ema/model", "ema/shadow", "swa/model")
        >>> [average.key for average in averages_among({key: Named(key, w) for key in keys})]
        ['ema/shadow', 'swa/model']
    """
    called = [s for s in found.values() if called_average(s.key)]
    return [s for s in called if not any(_is_nearer(other, s) for other in called)]


def _is_nearer(other: Named, held: Named) -> bool:
    """Whether another set of these weights is called an average within the same thing, by a step further down."""
    steps, others = held.key.split("/"), other.key.split("/")
    last = _last_called(steps)
    within = others[: last + 1] == steps[: last + 1] and _last_called(others) > last
    return within and agree(bare(held.tensors), bare(other.tensors))


def _last_called(steps: list[str]) -> int:
    return max((i for i, step in enumerate(steps) if called_average(step)), default=-1)


def named_after(average: str, of: str) -> bool:
    """Whether a key is another's, and a word for an average: ``g_ema`` and ``g``."""
    return _letters(_AVERAGED.sub("", words_of(average).lower())) == _letters(of.lower())


def words_of(key: str) -> str:
    """A key with marks between its words, which may have had capital letters instead."""
    return _HUMP.sub("_", key)


def _letters(key: str) -> str:
    return re.sub(r"[\W_]", "", key)


def networks_beside(model: Named, among: Mapping[str, Named]) -> list[Named]:
    """The other sets that are networks like the model by their names, or that are its twins."""
    others = [s for s in among.values() if s is not model and not _of_gradients(s.key)]
    return [s for s in others if _is_network(s) or same(bare(s.tensors), bare(model.tensors))]


def is_of_training(held: Named) -> bool:
    """Whether a set is no network: by its key, by its names, or as an array beside sets that have keys."""
    arrays = _arrays(held)
    if not held.key:
        return not any("." in name for name in arrays)
    by_key = any(_TRAINING.search(step.lower()) for step in held.key.split("/"))
    return by_key or _of_gradients(held.key) or all(_STATISTIC.fullmatch(_last(name)) for name in arrays)


def _is_network(held: Named) -> bool:
    """Whether there is a name as modules have them; data of a training has others, such as ``val`` or ``0``."""
    named = any("." in name or _WEIGHT.fullmatch(name) for name in _arrays(held))
    return named and not is_of_training(held) and not called_average(held.key)


def _arrays(held: Named) -> list[str]:
    return [name for name, t in held.tensors.items() if t.shape and is_floating(t.dtype)]


def _last(name: str) -> str:
    return name.rpartition(".")[2]
