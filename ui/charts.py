"""The charts of the dashboard as ECharts options: what is drawn, from which figures.

Colours are those of the style sheet, chosen to be legible on both light and dark.
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
FONT = {
    ":fontSize": "Math.round(0.72 * parseFloat(getComputedStyle(document.documentElement).fontSize))",
    ":fontFamily": "getComputedStyle(document.body).fontFamily",
}
"""The page's letters, as large as it makes them: a canvas inherits nothing."""
WORDS = {"color": TEXT, **FONT}
POINTS = 180
"""Most points of a curve that are sent; a longer past is thinned."""
Cell = float | int | None


@dataclass(frozen=True)
class Curve:
    """One line of a chart: its name, and the path to its value in a figures message."""

    name: str
    path: tuple[str, ...]

    def value(self, figures: Json) -> float | None:
        found: Any = figures
        for key in self.path:
            found = found.get(key) if isinstance(found, dict) else None
        return found if isinstance(found, int | float) else None


@dataclass(frozen=True)
class Chart:
    """A chart over time: of fixed curves, or of the entries of a `group` of the figures."""

    key: str
    title: str
    unit: str
    curves: tuple[Curve, ...] = ()
    group: str = ""
    logarithmic: bool = False
    stacked: bool = False
    """Whether the curves are parts of a hundred."""

    def drawn(self, past: Sequence[Json]) -> tuple[Curve, ...]:
        """The curves; of a group the largest, as many as there are colours."""
        if not self.group:
            return self.curves
        sums: Counter[str] = Counter()
        for figures in past:
            sums.update(figures.get(self.group) or {})
        return tuple(Curve(name, (self.group, name)) for name in sorted(_most(sums, len(COLOURS))))


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
        "Latency of the API, and log to pushed list",
        "ms",
        (
            Curve("request p50", ("latency_ms", "p50")),
            Curve("request p99", ("latency_ms", "p99")),
            Curve("push p50", ("push_ms", "p50")),
        ),
        logarithmic=True,
    ),
    Chart("lag", "Lag: in the log but not in the state", "events", (Curve("lag", ("lag",)),)),
    Chart("ctr", "CTR by source and model, last minute", "%", group="ctr"),
    Chart("shares", "Departments of events, last minute", "%", group="departments", stacked=True),
)


def time_options(chart: Chart, past: Iterable[Json]) -> Json:
    """A line chart of `chart.drawn` over `past`."""
    figures = thinned(list(past))
    curves = chart.drawn(figures)
    return {
        "animation": False,
        "textStyle": WORDS,
        "color": [*COLOURS],
        "grid": {"left": 8, "right": 16, "top": "18%", "bottom": 4, "containLabel": True},
        "legend": {
            "type": "scroll",
            "top": 0,
            "left": 0,
            "textStyle": WORDS,
            "icon": "roundRect",
            "itemHeight": 4,
        },
        "tooltip": _hover(chart.unit),
        "xAxis": {
            "type": "time",
            "axisLine": {"lineStyle": {"color": LINE}},
            "axisLabel": {**WORDS, "hideOverlap": True},
            "splitNumber": 4,
        },
        "yAxis": {
            "type": "log" if chart.logarithmic else "value",
            "splitLine": {"lineStyle": {"color": LINE}},
            "axisLabel": WORDS,
            "max": 100 if chart.stacked else None,
        },
        "dataset": {"source": rows(chart, curves, figures)},
        "series": [_series(chart, curve, n) for n, curve in enumerate(curves, start=1)],
    }


def rows(chart: Chart, curves: Sequence[Curve], past: Sequence[Json]) -> list[list[Cell]]:
    """[milliseconds, a value per curve] per figures message; None where there is none."""
    return [
        [round(figures["time"] * 1000), *(_drawn(chart, curve.value(figures)) for curve in curves)]
        for figures in past
    ]


def _drawn(chart: Chart, value: float | None) -> float | None:
    """A value as it is drawn: a log axis begins at 0.01, and what is no part of a stack is 0 of it."""
    if value is None:
        return 0.0 if chart.stacked else None
    return round(max(value, 0.01) if chart.logarithmic else value, 2)


def thinned(past: Sequence[Json]) -> Sequence[Json]:
    """At most POINTS of them, evenly, the newest among them."""
    every = -(-len(past) // POINTS)
    return past[::-1][::every][::-1] if every > 1 else past


def race_options(rows: Sequence[tuple[str, float]]) -> Json:
    """A bar race: the longest bar on top; bars slide when the order changes."""
    return {
        "animationDurationUpdate": 600,
        "textStyle": WORDS,
        "grid": {"left": 8, "right": 48, "top": 4, "bottom": 4, "containLabel": True},
        "tooltip": {**_hover(""), "trigger": "item"},
        "xAxis": {
            "type": "value",
            "splitLine": {"lineStyle": {"color": LINE}},
            "axisLabel": {**WORDS, "hideOverlap": True},
        },
        "yAxis": {
            "type": "category",
            "inverse": True,
            "data": [name for name, _ in rows],
            "axisLabel": {**WORDS, "width": 190, "overflow": "truncate"},
            "animationDurationUpdate": 300,
        },
        "series": [
            {
                "type": "bar",
                "realtimeSort": True,
                "barCategoryGap": "30%",
                "itemStyle": {"color": COLOURS[0], "borderRadius": [0, 4, 4, 0]},
                "label": {"show": True, "position": "right", "valueAnimation": True, **WORDS},
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


def _hover(unit: str) -> Json:
    """What is said where one points: every curve's value with its unit."""
    return {
        "trigger": "axis",
        "backgroundColor": "#161a21f2",
        "borderWidth": 0,
        "textStyle": {"color": "#e9ecf1", **FONT},
        ":valueFormatter": f"(value) => value == null ? '-' : (+value).toLocaleString('en') + ' {unit}'",
    }


def _most(sums: Counter[str], count: int) -> list[str]:
    return [name for name, _ in sums.most_common(count)]
