"""What lies beside a model in a file of PyTorch: another network, or what a training keeps of itself.

Nothing in the file says which of the two a set is. What has the key of neither an average nor the state of a training
is taken for a network: one that is left out of a mean is lost, and one too many is refused where it has no place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from polyak.dialects.called import says_average
from polyak.dialects.torch_sets import Named, bare, same
from polyak.weights import is_floating

_AVERAGED = re.compile(r"(?<![a-z])(ema|swa|avg|averaged?|teacher|shadow)(?![a-z])")
# Steps of a key, in small letters, by a word in them.
_TRAINING = re.compile(
    r"(?<![a-z])(args|hparams|hyper_?param\w*|config|cfg|settings|meta(data)?|callbacks?|loops?|\w*schedulers?|scalers?|"
    r"rng|random|loss(es)?|criterion|metrics?|history|logs?|stats|statistics|rms|normali[sz]\w*|sampler|"
    r"\w*data_?(module|loader|set)s?)(?![a-z])"
)
_STATISTIC = re.compile(r"(\w+_)?(mean|std|var|variance|min|max|count|sum|median)")


def called_average(key: str) -> bool:
    """Whether the writer called a set an average by its key."""
    return says_average(key, _AVERAGED)


def networks_beside(model: Named, among: Mapping[str, Named]) -> list[Named]:
    """The other sets that may be networks like the model, or that are its twins."""
    others = [s for s in among.values() if s is not model]
    return [s for s in others if _may_be_network(s) or same(bare(s.tensors), bare(model.tensors))]


def _may_be_network(held: Named) -> bool:
    """Arrays that lie in the file itself, beside sets that have keys, are a network only if their names have dots."""
    arrays = [n for n, t in held.tensors.items() if t.shape and is_floating(t.dtype)]
    if not held.key:
        return any("." in name for name in arrays)
    of_training = any(_TRAINING.search(step.lower()) for step in held.key.split("/"))
    return not (of_training or called_average(held.key) or all(_STATISTIC.fullmatch(name) for name in arrays))
