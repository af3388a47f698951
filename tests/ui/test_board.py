"""What the live board makes of the messages of /ws/live, without an API."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from ui.api import Api
from ui.charts import POINTS, TIME_CHARTS, thinned, time_options
from ui.live import BACKLOG, LiveBoard
from ui.moving import Moving

CHARTS = {chart.key: chart for chart in TIME_CHARTS}


def board() -> LiveBoard:
    return LiveBoard(Api("http://127.0.0.1:9"))


def figures(**given: Any) -> dict[str, Any]:
    return {"type": "figures", "lag": 0, "events_per_s": 5.0, **given}


def exposure(items: int, clicks: int) -> list[dict[str, Any]]:
    return [{"source": "personalised", "model_version": "m1", "items": items, "clicks": clicks}]


def test_growth_is_counted_over_the_window_alone() -> None:
    moving: Moving[str] = Moving(10.0)
    assert moving.grown(0.0, {"a": 100.0}) == {"a": 0.0}
    assert moving.grown(5.0, {"a": 103.0, "b": 1.0}) == {"a": 3.0, "b": 1.0}
    assert moving.grown(14.0, {"a": 104.0, "b": 1.0}) == {"a": 4.0, "b": 1.0}
    assert moving.grown(20.0, {"a": 104.0, "b": 1.0}) == {"a": 1.0, "b": 0.0}


def test_growth_begins_anew_where_the_counts_have() -> None:
    moving: Moving[str] = Moving(10.0)
    moving.grown(0.0, {"a": 100.0})
    assert moving.grown(1.0, {"a": 2.0}) == {"a": 0.0}
    assert moving.grown(2.0, {"a": 5.0}) == {"a": 3.0}


def test_clicks_per_item_are_those_since_the_board_began_to_look() -> None:
    live = board()
    live.exposure = exposure(items=1000, clicks=500)
    live.take(figures(time=100.0))
    live.exposure = exposure(items=1040, clicks=502)
    live.take(figures(time=102.0))
    assert live.figures["ctr"] == {"For you, m1": 5.0}


def test_departments_share_what_happened_lately() -> None:
    live = board()
    live.take(figures(time=100.0))
    for path in (["E", "Cameras"], ["E", "Cameras"], ["E", "Cables"], []):
        live.take({"type": "event", "effect": "applied", "categories": path})
    live.take(figures(time=101.0))
    assert live.figures["departments"] == {"Cameras": 50.0, "Cables": 25.0, "no department": 25.0}


def test_a_backlog_is_one_until_its_events_have_left_the_figures() -> None:
    live = board()
    for lag, expected in ((BACKLOG, False), (BACKLOG + 1, True), (0, True)):
        live.take(figures(time=100.0, lag=lag))
        assert live.figures["backlog"] is expected
    live.take(figures(time=113.0))
    assert live.figures["backlog"] is False


def test_a_chart_of_a_group_has_a_curve_per_entry_and_a_row_per_moment() -> None:
    past = [
        {"time": 1.0, "departments": {"a": 40.0, "b": 60.0}},
        {"time": 2.0, "departments": {"b": 100.0}},
    ]
    options = time_options(CHARTS["shares"], past)
    assert [series["name"] for series in options["series"]] == ["a", "b"]
    assert options["dataset"]["source"] == [[1000, 40.0, 60.0], [2000, 0.0, 100.0]]
    assert time_options(CHARTS["ctr"], past)["series"] == []


def test_a_long_past_is_thinned_and_keeps_its_newest() -> None:
    past = [{"time": float(n)} for n in range(1800)]
    kept = thinned(past)
    assert len(kept) <= POINTS
    assert kept[-1] is past[-1]
    assert len({b["time"] - a["time"] for a, b in pairwise(kept)}) == 1
