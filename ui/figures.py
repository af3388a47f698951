"""The live figures in words: what the strip, the tiles and the picture of the pipeline say."""

from __future__ import annotations

from ui.api_types import JsonObject
from ui.live import Effects

NONE = "-"


def strip_tiles(figures: JsonObject) -> list[JsonObject]:
    """The five figures of the strip, from the newest message on /ws/live."""
    if not figures:
        return []
    freshness = figures.get("freshness_ms") or {}
    return [
        _tile("events/s", number(figures.get("events_per_s")), "", "Events counted in a second"),
        _tile("lag", number(figures.get("lag")), "events", "In the log, not yet in the state"),
        _tile("fresh p50", number(freshness.get("p50")), "ms", "From the log to the state, half are faster"),
        _tile("fresh p99", number(freshness.get("p99")), "ms", "From the log to the state, 99 % are faster"),
        _tile("model", figures.get("model_version") or "none yet", "", "The model that ranks now"),
    ]


def board_tiles(figures: JsonObject, effects: Effects, letters: int | None = None) -> list[JsonObject]:
    """The dashboard's tiles. `letters`: dead letters held."""
    latency, push = figures.get("latency_ms") or {}, figures.get("push_ms") or {}
    refused = effects.duplicate + effects.replayed
    return [
        *strip_tiles(figures)[:4],
        _tile("request p99", number(latency.get("p99")), "ms", "Latency of the API, last ten seconds"),
        _tile("push p50", number(push.get("p50")), "ms", "From the log to the pushed list, last minute"),
        _tile("interactions", number(figures.get("interactions")), "", "Counted so far, each once"),
        _tile("refused", number(refused), "", "Resent or replayed events that were not counted again"),
        _tile("dead letters", number(letters), "", "Events that could not be read, kept with the reason"),
    ]


def stations(figures: JsonObject) -> list[JsonObject]:
    """The stations of the pipeline, with what each holds."""
    positions: JsonObject = figures.get("positions") or {}
    return [
        _station("Kafka", "the log of events", _by_topic(positions)),
        _station("Spark", "each event once", [["lag", number(figures.get("lag"))]]),
        _station("Redis", "history, counts, trends", [["interactions", number(figures.get("interactions"))]]),
        _station(
            "Ranker",
            "model + history + trend",
            [["model", figures.get("model_version") or "none yet"], ["items", number(figures.get("items"))]],
        ),
        _station(
            "Viewers",
            "lists that change",
            [["watching", number(figures.get("watching"))], ["live", number(figures.get("live"))]],
        ),
    ]


def flows(figures: JsonObject) -> list[JsonObject]:
    """What runs between the stations: the stage's latency, and how lively it is."""
    stages: JsonObject = (figures.get("freshness_ms") or {}).get("stages") or {}
    events = figures.get("events_per_s") or 0.0
    requests = figures.get("requests_per_s") or 0.0
    push = figures.get("push_ms") or {}
    return [
        _flow("queue", _pair(stages.get("queue")), events),
        _flow("apply", _pair(stages.get("apply")), events),
        _flow("notify", _pair(stages.get("notify")), events),
        _flow("push", _pair(push), max(requests, events)),
    ]


def number(value: float | int | None) -> str:
    """A figure short enough for a tile: 12, 3.4, 12.3k, 4.5M; a dash where there is none."""
    if value is None:
        return NONE
    for limit, unit in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e6 if unit == 'M' else 1e3):.1f}{unit}"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def _tile(name: str, value: str, unit: str, title: str) -> JsonObject:
    return {"name": name, "value": value, "unit": unit if value != NONE else "", "title": title}


def _station(name: str, what: str, rows: list[list[str]]) -> JsonObject:
    return {"name": name, "what": what, "rows": rows}


def _flow(label: str, value: str, rate: float) -> JsonObject:
    return {"label": label, "value": value, "rate": rate}


def _pair(stage: JsonObject | None) -> str:
    if not stage:
        return NONE
    return f"{number(stage.get('p50'))} / {number(stage.get('p99'))} ms"


def _by_topic(positions: JsonObject) -> list[list[str]]:
    """How far each topic has been applied, over its partitions."""
    applied: dict[str, int] = {}
    for name, offset in positions.items():
        topic = name.rsplit("/", 1)[0]
        applied[topic] = applied.get(topic, 0) + int(offset) + 1
    return [[topic, number(count)] for topic, count in sorted(applied.items())]
