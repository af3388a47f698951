"""The charts of the dashboard as ECharts options: what is drawn, from which figures.

Colours are those of the style sheet, chosen to be legible on both light and dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ui.api_types import JsonObject

TEXT = "#7d8696"
LINE = "#7d869633"
COLOURS = ("#4c66e0", "#0d9a6c", "#e58a00", "#a83fbd", "#d0455e", "#2a9fb8")


@dataclass(frozen=True)
class Curve:
    """One line of a chart: its name, and the path to its value in a figures message."""

    name: str
    path: tuple[str, ...]

    def value(self, figures: JsonObject) -> float | None:
        found: Any = figures
        for key in self.path:
            found = found.get(key) if isinstance(found, dict) else None
        return found if isinstance(found, int | float) else None


@dataclass(frozen=True)
class Chart:
    """A chart over time."""

    key: str
    title: str
    unit: str
    curves: tuple[Curve, ...]
    logarithmic: bool = False


TIME_CHARTS = (
    Chart(
        "rates",
        "Events and requests",
        "per second",
        (Curve("events", ("events_per_s",)), Curve("requests", ("requests_per_s",))),
    ),
    Chart(
        "freshness",
        "Freshness by stage (p50), and in all (p99)",
        "ms",
        (
            Curve("log", ("freshness_ms", "stages", "log", "p50")),
            Curve("queue", ("freshness_ms", "stages", "queue", "p50")),
            Curve("apply", ("freshness_ms", "stages", "apply", "p50")),
            Curve("notify", ("freshness_ms", "stages", "notify", "p50")),
            Curve("total p99", ("freshness_ms", "p99")),
        ),
        logarithmic=True,
    ),
    Chart(
        "latency",
        "Latency of the API, and event to pushed list",
        "ms",
        (
            Curve("request p50", ("latency_ms", "p50")),
            Curve("request p99", ("latency_ms", "p99")),
            Curve("push p50", ("push_ms", "p50")),
        ),
        logarithmic=True,
    ),
    Chart("lag", "Lag: in the log but not in the state", "events", (Curve("lag", ("lag",)),)),
)


def time_options(chart: Chart, past: Iterable[JsonObject]) -> JsonObject:
    """A line chart of `chart.curves` over `past`."""
    figures = list(past)
    return {
        "animation": False,
        "textStyle": {"color": TEXT, "fontFamily": "inherit"},
        "color": list(COLOURS),
        "grid": {"left": 8, "right": 16, "top": 36, "bottom": 4, "containLabel": True},
        "legend": {"top": 0, "left": 0, "textStyle": {"color": TEXT}, "icon": "roundRect", "itemHeight": 4},
        "tooltip": {"trigger": "axis"},
        "xAxis": {"type": "time", "axisLine": {"lineStyle": {"color": LINE}}, "splitNumber": 4},
        "yAxis": {
            "type": "log" if chart.logarithmic else "value",
            "splitLine": {"lineStyle": {"color": LINE}},
        },
        "series": [
            {
                "name": curve.name,
                "type": "line",
                "showSymbol": False,
                "lineStyle": {"width": 2},
                "areaStyle": {"opacity": 0.08} if not chart.logarithmic else None,
                "data": time_points(curve, figures, chart.logarithmic),
            }
            for curve in chart.curves
        ],
    }


def time_points(curve: Curve, past: Sequence[JsonObject], logarithmic: bool) -> list[list[float | None]]:
    """[milliseconds, value] per figures message; a gap where there is none. A log axis begins at 0.01."""
    points: list[list[float | None]] = []
    for figures in past:
        value = curve.value(figures)
        if value is not None and logarithmic:
            value = max(value, 0.01)
        points.append([figures["time"] * 1000, None if value is None else round(value, 3)])
    return points


def race_options(rows: Sequence[tuple[str, float]], unit: str) -> JsonObject:
    """A bar race: the longest bar on top; bars slide when the order changes."""
    return {
        "animationDurationUpdate": 600,
        "textStyle": {"color": TEXT, "fontFamily": "inherit"},
        "grid": {"left": 8, "right": 48, "top": 4, "bottom": 4, "containLabel": True},
        "tooltip": {"trigger": "item"},
        "xAxis": {"type": "value", "splitLine": {"lineStyle": {"color": LINE}}, "name": unit},
        "yAxis": {
            "type": "category",
            "inverse": True,
            "data": [name for name, _ in rows],
            "axisLabel": {"width": 150, "overflow": "truncate", "color": TEXT},
            "animationDurationUpdate": 300,
        },
        "series": [
            {
                "type": "bar",
                "realtimeSort": True,
                "barCategoryGap": "30%",
                "itemStyle": {"color": COLOURS[0], "borderRadius": [0, 4, 4, 0]},
                "label": {"show": True, "position": "right", "color": TEXT, "valueAnimation": True},
                "data": [round(value, 1) for _, value in rows],
            }
        ],
    }


def share_options(rows: Sequence[tuple[str, float]]) -> JsonObject:
    """A ring of shares."""
    return {
        "animationDurationUpdate": 400,
        "textStyle": {"color": TEXT, "fontFamily": "inherit"},
        "color": list(COLOURS),
        "tooltip": {"trigger": "item"},
        "series": [
            {
                "type": "pie",
                "radius": ["42%", "64%"],
                "label": {"color": TEXT, "width": 90, "overflow": "break"},
                "data": [{"name": name, "value": round(value, 2)} for name, value in rows],
            }
        ],
    }
