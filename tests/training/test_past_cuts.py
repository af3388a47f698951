"""Young and fast-growing shops have past cuts to learn a ranker from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from afterclick.arrays import Int64Array
from training.config import RankerConfig
from training.ranker import past_cut

DAY_MS = 86_400_000
START_MS = 20_000 * DAY_MS
CONFIG = RankerConfig()
FIXED = replace(CONFIG, horizon_span=1.0, horizon_events=1.0)
"""The control: 45 days, however young the shop is."""


def constant(days: float, rows: int = 5000) -> Int64Array:
    """(rows,) times of a shop with the same traffic every day."""
    return np.asarray(START_MS + np.linspace(0, days * DAY_MS, rows), np.int64)


def doubling(days: float, every_days: float = 14.0, rows: int = 5000) -> Int64Array:
    """(rows,) times of a shop whose traffic doubles every two weeks."""
    growth = 2.0 ** (days / every_days)
    day = every_days * np.log2(1 + np.linspace(0, 1, rows) * (growth - 1))
    return np.asarray(START_MS + day * DAY_MS, np.int64)


def share_before(times: Int64Array, config: RankerConfig) -> float:
    """Share of the rows before the newest past cut."""
    return float(np.searchsorted(times, past_cut(times, config)) / len(times))


@pytest.mark.parametrize("times", [constant(20), constant(60), doubling(60), doubling(200)])
def test_most_rows_come_before_the_newest_cut(times: Int64Array) -> None:
    assert 0.5 <= share_before(times, CONFIG) <= 0.9
    assert share_before(times, FIXED) < 0.5


def test_a_long_log_has_a_horizon_of_45_days() -> None:
    times = constant(720)
    assert past_cut(times, CONFIG) == past_cut(times, FIXED) == START_MS + 675 * DAY_MS


def test_a_log_of_a_day_is_cut_within_the_day() -> None:
    times = constant(1.0)
    assert times[0] < past_cut(times, CONFIG) < times[-1]
    assert share_before(times, CONFIG) >= 0.5
