"""Replay paces, calculated without a clock."""

from __future__ import annotations

import numpy as np
import pytest

from afterclick.errors import BadInput
from ingest.replay_control import DAY_MS, Pace, Rate, Speed, parse_pace, spread_days

HOUR_MS = 3_600_000


def test_a_rate_limits_the_events_per_second() -> None:
    pace, times = Rate(2000), np.zeros(100_000, np.int64)
    assert pace.due(times, 0.0) == 0
    assert pace.due(times, 0.5) == 1000
    pace.count_sent(1000)
    assert pace.due(times, 0.5) == 0
    assert pace.due(times, 1.0) == 1000
    assert pace.seconds_for(10_000, 0) == 5.0


def test_a_speed_follows_event_time_from_the_first_event() -> None:
    pace, times = Speed(3600), np.arange(10) * HOUR_MS + 1_300_000_000_000
    assert pace.due(times, 10.0) == 1
    assert pace.due(times, 12.5) == 3
    assert pace.due(times[3:], 12.5) == 0
    assert pace.due(times[3:], 13.0) == 1
    assert pace.seconds_for(9, 9 * HOUR_MS) == 9.0


@pytest.mark.parametrize(
    ("text", "factor"),
    [
        ("1h/s", 3600),
        ("30m/s", 1800),
        ("2.5d/s", 216_000),
        ("60x", 60),
        ("1W/s", 604_800),
        ("1s/s", 1),
    ],
)
def test_speeds_are_parsed(text: str, factor: float) -> None:
    pace = parse_pace(text, None)
    assert isinstance(pace, Speed)
    assert pace.seconds_for(1, 1000) == 1 / factor


@pytest.mark.parametrize("text", ["", "fast", "1", "1h", "-1h/s", "0h/s", "nan x", "1y/s", "infx"])
def test_invalid_speeds_are_rejected(text: str) -> None:
    with pytest.raises(BadInput, match="speed"):
        parse_pace(text, None)


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_invalid_rates_are_rejected(rate: float) -> None:
    with pytest.raises(BadInput, match="rate"):
        parse_pace("max", rate)


def test_max_is_unlimited_and_speed_and_rate_are_exclusive() -> None:
    assert isinstance(parse_pace("max", None), Pace)
    assert Pace().due(np.zeros(7, np.int64), 0.0) == 7
    with pytest.raises(BadInput, match="exclude each other"):
        parse_pace("1h/s", 5)


def test_events_with_a_date_only_are_spread_over_the_day() -> None:
    days = np.array([3, 3, 3, 3, 4, 6], np.int64) * DAY_MS
    assert (spread_days(days) / DAY_MS).tolist() == [3, 3.25, 3.5, 3.75, 4, 6]
    exact = days + 1
    assert spread_days(exact).tolist() == exact.tolist()
