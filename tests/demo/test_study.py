"""The study behind the demo's claim: its arithmetic, and one short run."""

from __future__ import annotations

import numpy as np
import pytest

from polyak.demo import study


def test_one_short_run_gives_an_accuracy_for_every_rule_and_length() -> None:
    found = study.accuracies(0, (2, 30))
    assert found.keys() == {"raw", *study.RULES, study.STATISTICS}
    assert all(len(row) == 2 and min(row) > 0 and max(row) <= 100 for row in found.values())
    # The same update in other words, so far: both copy first and remember a tenth of the run.
    assert found["fast"] == found["warm"] == found["slow"]
    # After 30 of 1,000 updates these still are the random weights that they started from.
    assert max(found["copy"][1], found["initial"][1]) < 40 < found["warm"][1]


def test_means_errors_and_gains() -> None:
    raw, mine = [[90.0], [92.0]], [[93.0], [93.0]]
    (cell,) = study._cells(mine, raw)
    assert (cell.mean, cell.error, cell.gain, cell.better) == (93.0, 0.0, 2.0, 2)
    assert cell.gain_error == pytest.approx(np.std([3, 1], ddof=1) / 2**0.5)


def test_one_seed_has_no_error() -> None:
    (cell,) = study._cells([[93.0]], [[93.0]])
    assert (cell.error, cell.gain, cell.gain_error, cell.better) == (0.0, 0.0, 0.0, 0)


def test_the_tables_show_both() -> None:
    cells = [study.Cell(93.0, 0.5, 2.0, 0.25, 9)]
    assert study.tables({"raw": [study.Cell(91.0, 1.0, 0, 0, 0)], "slow": cells}, [30]) == (
        "accuracy              30 steps\n"
        "raw              91.00 +- 1.00\n"
        "slow (ema:0.99)  93.00 +- 0.50\n"
        "\n"
        "gain over raw             30 steps\n"
        "slow (ema:0.99)  +2.00 +- 0.25 (9)"
    )
