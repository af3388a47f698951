"""Monitoring: reactions, requests, models, dead letters, health and metrics."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from afterclick import api
from serving.routes.fast_route import ServiceDep, json_response, responses
from serving.routes.queries import ExposureQuery

router = APIRouter()
MAX_MODELS = 20
"""Published models that are listed."""
_OF_WORKER = ("number", "pid", "ready", "model", "catalogue", "items")


@router.get("/exposure", tags=["monitoring"], **responses(api.Reactions))
async def exposure(service: ServiceDep, query: Annotated[ExposureQuery, Query()]) -> Response:
    """Lists shown and reactions to them by source and model, and by place in the list.

    The stream counts them, seconds after they happened; every replica answers the same. `sent`
    alone counts since the API started.
    """
    return json_response(await service.exposure(query.days, query.experiment))


@router.get("/requests", tags=["monitoring"], **responses(api.RecentRequests))
async def requests(service: ServiceDep) -> Response:
    """The latest requests, without those of dashboards."""
    return json_response({"requests": await service.all_requests.read()})


@router.get("/models", tags=["monitoring"], **responses(api.Models))
async def models(service: ServiceDep) -> Response:
    """The latest published models, the serving one, and why others are not served."""
    serving, feed = service.snapshots.current.loaded.version, service.models
    rows = [
        {
            "version": model.version,
            "uri": model.uri,
            "metrics": model.metrics,
            "serving": model.version == serving,
            "refused": feed.rejected.get(model.version),
        }
        for model in islice(reversed(feed.published), MAX_MODELS)
    ]
    return json_response({"serving": serving or None, "models": rows})


@router.get("/dead-letters", tags=["monitoring"], **responses(api.DeadLetters))
async def dead_letters(service: ServiceDep) -> Response:
    """Events that could not be read: counts by topic, and the newest with their errors."""
    newest = await asyncio.to_thread(service.stats.dead_letters.newest)
    counts = await asyncio.to_thread(service.stats.dead_letters.counts)
    return json_response({"counts": counts, "newest": newest})


@router.get("/health/live", tags=["service"], **responses(api.Health))
async def live() -> Response:
    """The process runs."""
    return json_response({"status": "live"})


@router.get("/health/ready", tags=["service"], **responses(api.Health))
async def ready(service: ServiceDep) -> Response:
    """200 once trends are loaded; 503 before, and while the process stops.

    With stalled partitions, a stalled archive or frozen background loops (also of the stream job
    and the retrainer) the status is `stalled`, with 200: lists are served, but what is new does not
    reach them, or not the archive.

    Of several workers, the one that answers is `worker`; `workers` are those that answer it.
    """
    snapshot, workers = service.snapshots.current, await service.workers.read()
    parts = {
        "redis": await service.store.ping(),
        "trends": service.feed.loaded,
        "catalogue": len(service.catalogue),
        "items": len(snapshot.trend_score),
        "model": snapshot.loaded.version or None,
        "refused_models": service.models.rejected,
        "sql": service.control.available,
        "stalled": [stall.as_json() for stall in service.stats.stalls],
        "archive_stalled": [stall.as_json() for stall in service.stats.archive_stalls],
        "frozen": service.stats.frozen(workers),
    }
    if service.peers.count > 1:
        rows = [{name: worker[name] for name in _OF_WORKER} for worker in workers]
        parts["worker"] = service.peers.number
        parts["workers"] = sorted(rows, key=lambda row: row["number"])
    ok = service.feed.loaded and not service.draining
    stalled = parts["stalled"] or parts["archive_stalled"] or parts["frozen"]
    status = ("stalled" if stalled else "ready") if ok else "not ready"
    return json_response({"status": status, "parts": parts}, 200 if ok else 503)


@router.get("/metrics", tags=["service"], response_class=Response)
async def metrics(service: ServiceDep) -> Response:
    """Prometheus metrics; those of several workers have the label `worker`."""
    text = await service.all_metrics.read()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
