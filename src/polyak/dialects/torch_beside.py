"""What lies beside a model in a file of PyTorch: another network, or what a training keeps of itself.

Nothing in the file says which of the two a set is. A network is what has names like one, and neither the key of an
average nor that of the state of a training. Beside a model that has no average it is kept: what is left out of a mean
is lost. Beside one that has an average it is left with the state of the training, and the note of the snapshot says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from polyak.dialects.called import OF_NO_NETWORK, says_average
from polyak.dialects.torch_sets import Named, bare, same
from polyak.weights import is_floating

_AVERAGED = re.compile(r"(?<![a-z])(ema|swa|avg|averaged?|polyak|teacher|shadow)(?![a-z])")
_FOLLOWED = re.compile(r"(?<![a-z])(online|student|raw)(?![a-z])")
_GRADIENTS = re.compile(rf"(?<![a-z])(grads?|gradients?){OF_NO_NETWORK}")
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

Shapes = dict[str, set[tuple[int, ...]]]


def called_average(key: str) -> bool:
    """Whether the writer called a set an average by its key.

    Example:
        >>> [called_average(key) for key in ("model_ema", "modelEMA", "emaModel", "schema", "modelNonEma")]
        [True, True, True, False, False]
        >>> called_average("grad_ema"), called_average("ema/online_model")  # of something else, and what it is of
        (False, False)
    """
    return is_within_one(key) and not _of_gradients(key) and not _is_followed(key)


def is_within_one(key: str) -> bool:
    """Whether a set is an average, or within what is called one, which may also hold what it is an average of."""
    return any(says_average(words_of(step), _AVERAGED) for step in key.split("/"))


def _is_followed(key: str) -> bool:
    """Whether a step of a key says that this is what an average follows, and none after it that it is the average."""
    steps = [words_of(step).lower() for step in reversed(key.split("/"))]
    return next((not said for s in steps if (said := says_average(s, _AVERAGED)) or _FOLLOWED.search(s)), False)


def _of_gradients(key: str) -> bool:
    """Whether a step of a key is called gradients, or an average of them; a network may have the word in its name."""
    steps = [words_of(step).lower() for step in key.split("/")]
    return any(_MANY.search(s) or (_GRADIENTS.search(s) and _AVERAGED.search(s)) for s in steps)


def averages_among(found: Mapping[str, Named]) -> list[Named]:
    """The sets that their writer called averages: what is called so as a whole may hold more than the average.

    Example:
        >>> from polyak.contents import Tensor
        >>> w = {"w": Tensor((), "float32", lambda: 0)}
        >>> keys = ("ema/model", "ema/shadow", "swa/model")
        >>> [average.key for average in averages_among({key: Named(key, w) for key in keys})]
        ['ema/shadow', 'swa/model']
    """
    called = {key: s for key, s in found.items() if called_average(key)}
    nearer = _called_within(called)
    return [s for key, s in called.items() if not _is_there(s, nearer.get(_called_whole(key)[-1], {}))]


def _called_within(called: Mapping[str, Named]) -> dict[str, Shapes]:
    """What is called an average within what is called so as a whole: the shapes of each name."""
    found: dict[str, Shapes] = {}
    for key, held in called.items():
        for whole in _called_whole(key)[:-1]:
            shapes = found.setdefault(whole, {})
            for name, tensor in bare(held.tensors).items():
                shapes.setdefault(name, set()).add(tensor.shape)
    return found


def _called_whole(key: str) -> list[str]:
    """The places on the way to a set that are called averages, the nearest one last."""
    steps = key.split("/")
    return ["/".join(steps[: i + 1]) for i, step in enumerate(steps) if called_average(step)]


def _is_there(held: Named, shapes: Shapes) -> bool:
    """Whether a set has names in common, and there the same shapes."""
    both = [(name, t.shape) for name, t in bare(held.tensors).items() if name in shapes]
    return bool(both) and all(shape in shapes[name] for name, shape in both)


def stem(key: str) -> str:
    """The letters of a key.

    Example:
        >>> stem("G_A"), stem_of_average("g_a_ema")
        ('ga', 'ga')
    """
    return re.sub(r"[\W_]", "", key.lower())


def stem_of_average(key: str) -> str:
    """The letters of a key without words for an average: those of what it is an average of."""
    return stem(_AVERAGED.sub("", words_of(key).lower()))


def words_of(key: str) -> str:
    """A key with marks between its words, which may have had capital letters instead."""
    return _HUMP.sub("_", key)


def networks_beside(model: Named, among: Mapping[str, Named]) -> list[Named]:
    """The other sets that are networks like the model by their names, or that are its twins."""
    others = [s for s in among.values() if s is not model and not _of_gradients(s.key)]
    own = bare(model.tensors)
    return [s for s in others if _is_network(s) or same(bare(s.tensors), own)]


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
