"""Averages that ``fit`` begins on a model that was trained before: what the average does not know is said."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from polyak.errors import BegunLate, notify
from polyak.frameworks import Average
from polyak.keras.fitting import own_optimizers, updates


def tell_late(model: Any, averages: Iterable[Average]) -> None:
    """Warn if averages without an update begin after the optimizer's first one.

    A model of ``load_model`` has its optimizer's count and no average: Keras hands that over to nobody.
    """
    made = max((int(keras.ops.convert_to_numpy(count)) for count in updates(own_optimizers(model))), default=0)
    late = [each.label for each in averages if not each.count + each.skipped]
    if made and late:
        notify(
            BegunLate(
                f"fit: expected {late[0]} to begin with the model's training, or to go on; the optimizer has made "
                f"{made:,} updates, of which it knows nothing: it begins with the weights of now. To go on with an "
                "average that exists, in memory or in a file: polyak.keras.Averaging(average)"
            )
        )
