"""The live figures in words: what the strip, the tiles and the picture of the pipeline say."""

from __future__ import annotations

import math

from afterclick.arrays import Json

NONE = "-"
BACKLOG_NOTE = "backlog"
BACKLOG_TITLE = (
    "The stream works off a backlog, as after a replay of history: these events have waited in the log for "
    "those before them. That is their age, not the delay of a live event."
)


def strip_tiles(figures: Json) -> list[Json]:
    """The five figures of the strip, from the newest message on /ws/live."""
    if not figures:
        return []
    return [
        _tile("events/s", number(figures.get("events_per_s")), "", "Events counted in a second"),
        _tile("lag", number(figures.get("lag")), "events", "In the log, not yet in the state"),
        _fresh("fresh p50", "p50", figures, "half are faster"),
        _fresh("fresh p99", "p99", figures, "99 % are faster"),
        _tile("model", figures.get("model_version") or "none yet", "", "The model that ranks now"),
    ]


def board_tiles(figures: Json) -> list[Json]:
    """The dashboard's tiles."""
    latency, push = figures.get("latency_ms") or {}, figures.get("push_ms") or {}
    return [
        *strip_tiles(figures)[:4],
        _span("request p99", latency.get("p99"), "Latency of the API, last ten seconds"),
        _span("push p50", push.get("p50"), "From the log to the pushed list, last minute"),
        _tile("interactions", number(figures.get("interactions")), "", "Counted so far, each once"),
        _tile(
            "refused",
            number(figures.get("refused")),
            "",
            "Resent events, which were not counted again",
        ),
        _tile(
            "dead letters",
            number(figures.get("dead_letters")),
            "",
            "Unreadable events, kept with the reason",
        ),
    ]


def stations(figures: Json) -> list[Json]:
    """The stations of the pipeline, with what each holds."""
    rate, lag = figures.get("events_per_s"), figures.get("lag")
    return [
        _station("Kafka", "the log: positions reached", _by_topic(figures)),
        _station(
            "Spark",
            "each event once",
            [
                ["events/s", number(rate)],
                ["lag", number(lag)],
                ["duplicates refused", number(figures.get("refused"))],
                ["dead letters", number(figures.get("dead_letters"))],
            ],
        ),
        _station(
            "Redis",
            "history, counts, trends",
            [["interactions", number(figures.get("interactions"))]],
        ),
        _station(
            "Ranker",
            "model + history + trend",
            [
                ["model", figures.get("model_version") or "none yet"],
                ["items", number(figures.get("items"))],
            ],
        ),
        _station(
            "Viewers",
            "lists that change",
            [["watching", number(figures.get("watching"))], ["live", number(figures.get("live"))]],
        ),
    ]


def flows(figures: Json) -> list[Json]:
    """What runs between the stations: how much, and the latency of the stage."""
    stages: Json = (figures.get("freshness_ms") or {}).get("stages") or {}
    events = figures.get("events_per_s") or 0.0
    requests = figures.get("requests_per_s") or 0.0
    waited = BACKLOG_TITLE if figures.get("backlog") else ""
    return [
        _flow(
            "queue",
            stages.get("queue"),
            events,
            "events",
            waited or "In the log until Spark has read it",
        ),
        _flow("apply", stages.get("apply"), events, "events", "Read until it is in the state"),
        _flow(
            "notify", stages.get("notify"), events, "events", "In the state until the ranker knows"
        ),
        _flow(
            "push",
            figures.get("push_ms"),
            requests,
            "lists",
            waited or "From the log to the pushed list",
        ),
    ]


def number(value: float | int | None) -> str:
    """A figure short enough for a tile: 12, 3.4, 12.3k, 4.5M; a dash where there is none."""
    if value is None:
        return NONE
    for limit, unit in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e6 if unit == 'M' else 1e3):.1f}{unit}"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def span(milliseconds: float | None) -> tuple[str, str]:
    """A time short enough to read, and its unit: 8.4 ms, 12 s, 3.5 min."""
    if milliseconds is None:
        return NONE, ""
    units = ((1_000, 1, "ms"), (120_000, 1_000, "s"), (math.inf, 60_000, "min"))
    size, unit = next((size, unit) for limit, size, unit in units if milliseconds < limit)
    return number(round(milliseconds / size, 1)), unit


def _fresh(name: str, which: str, figures: Json, share: str) -> Json:
    tile = _span(
        name, (figures.get("freshness_ms") or {}).get(which), f"From the log to the state, {share}"
    )
    return tile | {"note": BACKLOG_NOTE, "title": BACKLOG_TITLE} if figures.get("backlog") else tile


def _span(name: str, milliseconds: float | None, title: str) -> Json:
    return _tile(name, *span(milliseconds), title)


def _tile(name: str, value: str, unit: str, title: str) -> Json:
    return {
        "name": name,
        "value": value,
        "unit": unit if value != NONE else "",
        "title": title,
        "note": "",
    }


def _station(name: str, what: str, rows: list[list[str]]) -> Json:
    return {"name": name, "what": what, "rows": rows}


def _flow(label: str, stage: Json | None, rate: float, what: str, title: str) -> Json:
    found = stage or {}
    halves = [" ".join(span(found.get(which))).strip() for which in ("p50", "p99")]
    value = " / ".join(halves) if stage else NONE
    return {
        "label": label,
        "value": value,
        "speed": f"{number(rate)} {what}/s",
        "rate": rate,
        "title": title,
    }


def _by_topic(figures: Json) -> list[list[str]]:
    """How far each topic has been applied, over its partitions; behind it each partition."""
    lag: Json = figures.get("lag_by_partition") or {}
    applied: dict[str, int] = {}
    partitions: dict[str, list[str]] = {}
    for name, offset in sorted((figures.get("positions") or {}).items()):
        topic = name.rsplit("/", 1)[0]
        applied[topic] = applied.get(topic, 0) + int(offset) + 1
        partitions.setdefault(topic, []).append(
            f"{name}: position {offset}, lag {lag.get(name, NONE)}"
        )
    return [
        [topic, number(count), "\n".join(partitions[topic])]
        for topic, count in sorted(applied.items())
    ]
