"""The live figures as text: tiles of the stats bar and the dashboard, stages of the pipeline."""

from __future__ import annotations

import math

from afterclick.arrays import Json

MISSING = "-"
BACKLOG_NOTE = "backlog"
BACKLOG_TITLE = (
    "The stream is processing a backlog, such as a replay of history. These figures are the time "
    "that events waited in the log, not the delay of a live event."
)


def stats_bar_tiles(figures: Json) -> list[Json]:
    """The five tiles of the stats bar, from the newest figures of /ws/live."""
    if not figures:
        return []
    return [
        _tile("events/s", number(figures.get("events_per_s")), "", "Events applied per second"),
        _tile("lag", number(figures.get("lag")), "events", "Events in the log, not yet applied"),
        _freshness_tile("fresh p50", "p50", figures, "median"),
        _freshness_tile("fresh p99", "p99", figures, "99th percentile"),
        _tile("model", figures.get("model_version") or "none yet", "", "The model in use"),
    ]


def dashboard_tiles(figures: Json) -> list[Json]:
    """The tiles of the dashboard."""
    latency, push = figures.get("latency_ms") or {}, figures.get("push_ms") or {}
    counters = (
        ("interactions", "interactions", "Counted so far, each event once"),
        ("refused", "refused", "Duplicate events, not counted again"),
        ("dead letters", "dead_letters", "Invalid events, stored with the reason"),
    )
    return [
        *stats_bar_tiles(figures)[:4],
        _duration_tile("request p99", latency.get("p99"), "API latency, last 10 seconds"),
        _duration_tile("push p50", push.get("p50"), "From the log to the pushed list, last minute"),
        *(_tile(name, number(figures.get(key)), "", title) for name, key, title in counters),
    ]


def stations(figures: Json) -> list[Json]:
    """The stages of the pipeline and their figures."""

    def row(label: str, key: str) -> list[str]:
        return [label, number(figures.get(key))]

    stream_rows = [
        row("events/s", "events_per_s"),
        row("lag", "lag"),
        row("duplicates refused", "refused"),
        row("dead letters", "dead_letters"),
    ]
    model = ["model", figures.get("model_version") or "none yet"]
    return [
        _station("Kafka", "the log: applied positions", _topic_rows(figures)),
        _station("Spark", "applies each event once", stream_rows),
        _station("Redis", "history, counts, trends", [row("interactions", "interactions")]),
        _station("Ranker", "model + history + trend", [model, row("items", "items")]),
        _station(
            "Viewers", "lists that update", [row("watching", "watching"), row("live", "live")]
        ),
    ]


def flows(figures: Json) -> list[Json]:
    """The flows between the stages: rate, and latency of the step."""
    latencies: Json = (figures.get("freshness_ms") or {}).get("stages") or {}
    events = figures.get("events_per_s") or 0.0
    requests = figures.get("requests_per_s") or 0.0
    backlog = BACKLOG_TITLE if figures.get("backlog") else ""
    queued = backlog or "In the log until Spark reads the event"
    pushed = backlog or "From the log to the pushed list"
    return [
        _flow("queue", latencies.get("queue"), events, "events", queued),
        _flow("apply", latencies.get("apply"), events, "events", "From the read to the state"),
        _flow("notify", latencies.get("notify"), events, "events", "From the state to the ranker"),
        _flow("push", figures.get("push_ms"), requests, "lists", pushed),
    ]


def number(value: float | int | None) -> str:
    """A short number: 12, 3.4, 12.3k, 4.5M; a dash for None."""
    if value is None:
        return MISSING
    for limit, size, unit in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= limit:
            return f"{value / size:.1f}{unit}"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def duration(milliseconds: float | None) -> tuple[str, str]:
    """A short duration and its unit: 8.4 ms, 12 s, 3.5 min."""
    if milliseconds is None:
        return MISSING, ""
    units = ((1_000, 1, "ms"), (120_000, 1_000, "s"), (math.inf, 60_000, "min"))
    size, unit = next((size, unit) for limit, size, unit in units if milliseconds < limit)
    return number(round(milliseconds / size, 1)), unit


def _freshness_tile(name: str, quantile: str, figures: Json, which: str) -> Json:
    milliseconds = (figures.get("freshness_ms") or {}).get(quantile)
    tile = _duration_tile(name, milliseconds, f"From the log to the state, {which}")
    return tile | {"note": BACKLOG_NOTE, "title": BACKLOG_TITLE} if figures.get("backlog") else tile


def _duration_tile(name: str, milliseconds: float | None, title: str) -> Json:
    return _tile(name, *duration(milliseconds), title)


def _tile(name: str, value: str, unit: str, title: str) -> Json:
    shown_unit = unit if value != MISSING else ""
    return {"name": name, "value": value, "unit": shown_unit, "title": title, "note": ""}


def _station(name: str, what: str, rows: list[list[str]]) -> Json:
    return {"name": name, "what": what, "rows": rows}


def _flow(label: str, latency: Json | None, rate: float, unit: str, title: str) -> Json:
    quantiles = [" ".join(duration((latency or {}).get(q))).strip() for q in ("p50", "p99")]
    return {
        "label": label,
        "value": " / ".join(quantiles) if latency else MISSING,
        "speed": f"{number(rate)} {unit}/s",
        "rate": rate,
        "title": title,
    }


def _topic_rows(figures: Json) -> list[list[str]]:
    """Applied events per topic, and its partitions as a tooltip."""
    lag: Json = figures.get("lag_by_partition") or {}
    applied: dict[str, int] = {}
    partitions: dict[str, list[str]] = {}
    for name, offset in sorted((figures.get("positions") or {}).items()):
        topic = name.rsplit("/", 1)[0]
        applied[topic] = applied.get(topic, 0) + int(offset) + 1
        row = f"{name}: position {offset}, lag {lag.get(name, MISSING)}"
        partitions.setdefault(topic, []).append(row)
    return [
        [topic, number(count), "\n".join(partitions[topic])]
        for topic, count in sorted(applied.items())
    ]
