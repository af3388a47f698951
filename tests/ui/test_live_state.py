"""LiveState and the charts, from messages of /ws/live, without an API."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from ui.charts import MAX_POINTS, TIME_CHARTS, downsample, time_options
from ui.gateway import ShopClient
from ui.live_state import (
    BACKLOG_EVENTS,
    LiveState,
    SlidingWindow,
    stations,
    stats_bar_tiles,
)

CHARTS = {chart.key: chart for chart in TIME_CHARTS}


def live_state() -> LiveState:
    return LiveState(ShopClient("http://127.0.0.1:9"))


def figures(**given: Any) -> dict[str, Any]:
    return {"type": "figures", "lag": 0, "events_per_s": 5.0, **given}


def exposure(items: int, clicks: int) -> list[dict[str, Any]]:
    return [{"source": "personalised", "model_version": "m1", "items": items, "clicks": clicks}]


def test_the_delta_covers_the_window_only() -> None:
    window: SlidingWindow[str] = SlidingWindow(10.0)
    assert window.delta(0.0, {"a": 100.0}) == {"a": 0.0}
    assert window.delta(5.0, {"a": 103.0, "b": 1.0}) == {"a": 3.0, "b": 1.0}
    assert window.delta(14.0, {"a": 104.0, "b": 1.0}) == {"a": 4.0, "b": 1.0}
    assert window.delta(20.0, {"a": 104.0, "b": 1.0}) == {"a": 1.0, "b": 0.0}


def test_the_window_restarts_when_a_counter_decreases() -> None:
    window: SlidingWindow[str] = SlidingWindow(10.0)
    window.delta(0.0, {"a": 100.0})
    assert window.delta(1.0, {"a": 2.0}) == {"a": 0.0}
    assert window.delta(2.0, {"a": 5.0}) == {"a": 3.0}


def test_ctr_counts_impressions_since_the_start_of_the_state() -> None:
    state = live_state()
    state.exposure = exposure(items=1000, clicks=500)
    state.apply(figures(time=100.0))
    state.exposure = exposure(items=1040, clicks=502)
    state.apply(figures(time=102.0))
    assert state.figures["ctr"] == {"For you, m1": 5.0}


def test_departments_are_shares_of_the_events_in_the_window() -> None:
    state = live_state()
    state.apply(figures(time=100.0))
    for path in (["E", "Cameras"], ["E", "Cameras"], ["E", "Cables"], []):
        state.apply({"type": "event", "effect": "applied", "categories": path})
    state.apply(figures(time=101.0))
    assert state.figures["departments"] == {"Cameras": 50.0, "Cables": 25.0, "no department": 25.0}


def test_a_backlog_ends_when_its_events_have_left_the_figures() -> None:
    state = live_state()
    for lag, expected in ((BACKLOG_EVENTS, False), (BACKLOG_EVENTS + 1, True), (0, True)):
        state.apply(figures(time=100.0, lag=lag))
        assert state.figures["backlog"] is expected
    state.apply(figures(time=113.0))
    assert state.figures["backlog"] is False


def test_a_group_chart_has_a_curve_per_entry_and_a_row_per_message() -> None:
    history = [
        {"time": 1.0, "departments": {"a": 40.0, "b": 60.0}},
        {"time": 2.0, "departments": {"b": 100.0}},
    ]
    options = time_options(CHARTS["shares"], history)
    assert [series["name"] for series in options["series"]] == ["a", "b"]
    assert options["dataset"]["source"] == [[1000, 40.0, 60.0], [2000, 0.0, 100.0]]
    assert time_options(CHARTS["ctr"], history)["series"] == []


def test_a_long_history_is_downsampled_and_keeps_the_newest() -> None:
    history = [{"time": float(n)} for n in range(1800)]
    sample = downsample(history)
    assert len(sample) <= MAX_POINTS
    assert sample[-1] is history[-1]
    assert len({b["time"] - a["time"] for a, b in pairwise(sample)}) == 1


def test_a_stalled_partition_is_named_on_every_page_and_at_the_stream() -> None:
    stall = "feedback/1 at offset 7000 for 12 s"
    lag = stats_bar_tiles(figures(lag=3, stalls=[stall]))[1]
    assert lag["unit"] == "stalled"
    assert stall in lag["title"]
    assert stats_bar_tiles(figures(lag=3, stalls=[]))[1]["unit"] == "events"
    assert ["stalled", stall] in stations(figures(stalls=[stall]))[1]["rows"]


def test_frozen_loops_are_named() -> None:
    loop = "stream/forgetting for 70 s"
    assert ["frozen", loop] in stations(figures(frozen=[loop]))[1]["rows"]
