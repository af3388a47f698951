"""The charts of the dashboard as ECharts options.

The colours are those of the style sheet, legible on light and dark backgrounds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from afterclick.arrays import Json

TEXT = "#757e8d"
LINE = "#7d869633"
COLOURS = ("#4c66e0", "#0d9a6c", "#e58a00", "#a83fbd", "#d0455e", "#2a9fb8")
_ROOT_FONT_SIZE = "getComputedStyle(document.documentElement).fontSize"
FONT = {
    ":fontSize": f"Math.round(0.72 * parseFloat({_ROOT_FONT_SIZE}))",
    ":fontFamily": "getComputedStyle(document.body).fontFamily",
}
"""Font of the page: a canvas does not inherit it."""
TEXT_STYLE = {"color": TEXT, **FONT}
MAX_POINTS = 180
"""Points per curve that are sent; longer histories are downsampled."""
Cell = float | int | None


@dataclass(frozen=True)
class Curve:
    """A line of a chart: its name, and the path to its value in a figures message."""

    name: str
    path: tuple[str, ...]

    def value(self, figures: Json) -> float | None:
        value: Any = figures
        for key in self.path:
            value = value.get(key) if isinstance(value, dict) else None
        return value if isinstance(value, int | float) else None


@dataclass(frozen=True)
class Chart:
    """A chart over time with fixed curves, or one curve per entry of a `group` of the figures."""

    key: str
    title: str
    unit: str
    curves: tuple[Curve, ...] = ()
    group: str = ""
    logarithmic: bool = False
    stacked: bool = False
    """The curves are percentages that add up to 100."""

    def shown_curves(self, history: Sequence[Json]) -> tuple[Curve, ...]:
        """The curves; of a group the largest, one per colour."""
        if not self.group:
            return self.curves
        sums: Counter[str] = Counter()
        for figures in history:
            sums.update(figures.get(self.group) or {})
        largest = [name for name, _ in sums.most_common(len(COLOURS))]
        return tuple(Curve(name, (self.group, name)) for name in sorted(largest))


TIME_CHARTS = (
    Chart(
        "rates",
        "Events and requests",
        "per second",
        (Curve("events", ("events_per_s",)), Curve("requests", ("requests_per_s",))),
    ),
    Chart(
        "freshness",
        "Freshness by stage (p50), and in total (p99)",
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
        "API latency, and log to pushed list",
        "ms",
        (
            Curve("request p50", ("latency_ms", "p50")),
            Curve("request p99", ("latency_ms", "p99")),
            Curve("push p50", ("push_ms", "p50")),
        ),
        logarithmic=True,
    ),
    Chart("lag", "Lag: in the log, not yet applied", "events", (Curve("lag", ("lag",)),)),
    Chart("ctr", "CTR by source and model, last minute", "%", group="ctr"),
    Chart("shares", "Events by department, last minute", "%", group="departments", stacked=True),
)


def time_options(chart: Chart, history: Iterable[Json]) -> Json:
    """A line chart of the figures in `history`."""
    figures = downsample(list(history))
    curves = chart.shown_curves(figures)
    return {
        "animation": False,
        "textStyle": TEXT_STYLE,
        "color": [*COLOURS],
        "grid": {"left": 8, "right": 16, "top": "18%", "bottom": 4, "containLabel": True},
        "legend": {
            "type": "scroll",
            "top": 0,
            "left": 0,
            "textStyle": TEXT_STYLE,
            "icon": "roundRect",
            "itemHeight": 4,
        },
        "tooltip": _tooltip(chart.unit),
        "xAxis": {
            "type": "time",
            "axisLine": {"lineStyle": {"color": LINE}},
            "axisLabel": {**TEXT_STYLE, "hideOverlap": True},
            "splitNumber": 4,
        },
        "yAxis": {
            "type": "log" if chart.logarithmic else "value",
            "splitLine": {"lineStyle": {"color": LINE}},
            "axisLabel": TEXT_STYLE,
            "max": 100 if chart.stacked else None,
        },
        "dataset": {"source": rows(chart, curves, figures)},
        "series": [_series(chart, curve, n) for n, curve in enumerate(curves, start=1)],
    }


def rows(chart: Chart, curves: Sequence[Curve], history: Sequence[Json]) -> list[list[Cell]]:
    """Per figures message: [time in ms, a value per curve]; None for a missing value."""
    return [
        [round(f["time"] * 1000), *(_plotted(chart, curve.value(f)) for curve in curves)]
        for f in history
    ]


def _plotted(chart: Chart, value: float | None) -> float | None:
    """A value as plotted: log axes are clamped at 0.01; missing stack parts are 0."""
    if value is None:
        return 0.0 if chart.stacked else None
    return round(max(value, 0.01) if chart.logarithmic else value, 2)


def downsample(history: Sequence[Json]) -> Sequence[Json]:
    """At most MAX_POINTS evenly spaced entries, including the newest."""
    step = -(-len(history) // MAX_POINTS)
    return history[::-1][::step][::-1] if step > 1 else history


def leaderboard_options(rows: Sequence[tuple[str, float]]) -> Json:
    """Bars sorted by length, which move when the order changes."""
    return {
        "animationDurationUpdate": 600,
        "textStyle": TEXT_STYLE,
        "grid": {"left": 8, "right": 48, "top": 4, "bottom": 4, "containLabel": True},
        "tooltip": {**_tooltip(""), "trigger": "item"},
        "xAxis": {
            "type": "value",
            "splitLine": {"lineStyle": {"color": LINE}},
            "axisLabel": {**TEXT_STYLE, "hideOverlap": True},
        },
        "yAxis": {
            "type": "category",
            "inverse": True,
            "data": [name for name, _ in rows],
            "axisLabel": {**TEXT_STYLE, "width": 190, "overflow": "truncate"},
            "animationDurationUpdate": 300,
        },
        "series": [
            {
                "type": "bar",
                "realtimeSort": True,
                "barCategoryGap": "30%",
                "itemStyle": {"color": COLOURS[0], "borderRadius": [0, 4, 4, 0]},
                "label": {"show": True, "position": "right", "valueAnimation": True, **TEXT_STYLE},
                "data": [round(value, 1) for _, value in rows],
            }
        ],
    }


def _series(chart: Chart, curve: Curve, column: int) -> Json:
    filled = 0.5 if chart.stacked else 0.08
    return {
        "name": curve.name,
        "type": "line",
        "showSymbol": False,
        "lineStyle": {"width": 1 if chart.stacked else 2},
        "areaStyle": None if chart.logarithmic or chart.key == "ctr" else {"opacity": filled},
        "stack": "all" if chart.stacked else None,
        "encode": {"x": 0, "y": column},
    }


def _tooltip(unit: str) -> Json:
    """The tooltip: the value of every curve with its unit."""
    value = "value == null ? '-' : (+value).toLocaleString('en')"
    return {
        "trigger": "axis",
        "backgroundColor": "#161a21f2",
        "borderWidth": 0,
        "textStyle": {"color": "#e9ecf1", **FONT},
        ":valueFormatter": f"(value) => {value} + ' {unit}'",
    }
