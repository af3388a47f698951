"""The routes of who runs the service: what was shown, what serves, what failed, how it is."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.responses import Response

from afterclick import api
from afterclick.errors import Unavailable
from serving.problems import unavailable
from serving.routes.replies import Parts, answers, reply
from serving.routes.routing import DirectRoute

router = APIRouter(route_class=DirectRoute)


@router.get("/exposure", tags=["insight"], **answers(api.Reactions))
async def exposure(service: Parts) -> Response:
    """Lists shown and reacted to, per source and model, and clicks per place, since this process began."""
    return reply({"rows": service.reactions.rows(), "places": service.reactions.by_rank()})


@router.get("/requests", tags=["insight"], **answers(api.RecentRequests))
async def requests(service: Parts) -> Response:
    """The newest requests that this process answered, what dashboards ask left out."""
    return reply({"requests": service.requests.recent()})


@router.get("/models", tags=["insight"], **answers(api.Models))
async def models(service: Parts) -> Response:
    """The models published lately, which one serves, and why others do not."""
    serving, feed = service.snapshots.current.loaded.version, service.models
    rows = [
        {
            "version": model.version,
            "uri": model.uri,
            "metrics": model.metrics,
            "serving": model.version == serving,
            "refused": feed.rejected.get(model.version),
        }
        for model in reversed(feed.published)
    ]
    return reply({"serving": serving or None, "models": rows})


@router.get("/dead-letters", tags=["insight"], **answers(api.DeadLetters))
async def dead_letters(service: Parts) -> Response:
    """Events that could not be read: how many per topic, and the newest with the reason."""
    try:
        rows = await asyncio.to_thread(service.dead_letters.newest)
        counts = await asyncio.to_thread(service.dead_letters.counts)
    except Unavailable as error:
        raise unavailable(str(error)) from error
    return reply({"counts": counts, "newest": rows})


@router.get("/health/live", tags=["service"], **answers(api.Health))
async def live() -> Response:
    """The process runs."""
    return reply({"status": "live"})


@router.get("/health/ready", tags=["service"], **answers(api.Health))
async def ready(service: Parts) -> Response:
    """Whether it can answer well: 200 once trends are loaded, 503 before and while draining."""
    snapshot = service.snapshots.current
    parts = {
        "redis": await service.store.ping(),
        "trends": service.feed.loaded,
        "catalogue": len(service.catalogue),
        "items": len(snapshot.trend_score),
        "model": snapshot.loaded.version or None,
        "refused_models": service.models.rejected,
        "sql": service.control.available,
    }
    good = service.feed.loaded and not service.draining
    return reply({"status": "ready" if good else "not ready", "parts": parts}, 200 if good else 503)


@router.get("/metrics", tags=["service"], response_class=Response, include_in_schema=True)
async def metrics(service: Parts) -> Response:
    """Prometheus metrics."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
