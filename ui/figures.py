"""The live figures in words: what the strip and the dashboard's tiles say."""

from __future__ import annotations

from ui.api_types import JsonObject


def strip_tiles(figures: JsonObject) -> list[JsonObject]:
    """The five figures of the strip, from the newest message on /ws/live."""
    if not figures:
        return []
    freshness = figures.get("freshness_ms") or {}
    return [
        _tile(
            "events/s", number(figures.get("events_per_s")), "", "Events that reached the state, per second"
        ),
        _tile("lag", number(figures.get("lag")), "events", "In the log, not yet in the state"),
        _tile("fresh p50", number(freshness.get("p50")), "ms", "From the log to the state, half are faster"),
        _tile("fresh p99", number(freshness.get("p99")), "ms", "From the log to the state, 99 % are faster"),
        _tile("model", figures.get("model_version") or "none yet", "", "The model that ranks now"),
    ]


def number(value: float | int | None) -> str:
    """A figure short enough for a tile: 12, 3.4, 12.3k, 4.5M; a dash where there is none."""
    if value is None:
        return "-"
    for limit, unit in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e6 if unit == 'M' else 1e3):.1f}{unit}"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def _tile(name: str, value: str, unit: str, title: str) -> JsonObject:
    return {"name": name, "value": value, "unit": unit if value != "-" else "", "title": title}
