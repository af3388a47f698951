"""Recommendations and feedback: the hot routes, served by DirectRoute."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Body, Query
from starlette.responses import Response
from structlog.contextvars import bind_contextvars

from afterclick import api
from afterclick.errors import Unavailable
from afterclick.events import Interaction
from afterclick.state import LogPosition
from serving.events.feedback import event_of
from serving.problems import unavailable
from serving.request import (
    FIRST_PAGE,
    PLAIN,
    Options,
    Page,
    RecommendationRequest,
    decode_cursor,
)
from serving.routes.fast_route import DirectRoute, ServiceDep, json_response, responses
from serving.routes.queries import BatchQuery, Feedback, RecommendationQuery, split
from serving.service import Service

router = APIRouter(route_class=DirectRoute)


@router.get("/recommendations", tags=["lists"], **responses(api.Recommendations))
async def recommendations(
    service: ServiceDep, query: Annotated[RecommendationQuery, Query()]
) -> Response:
    """A list for a user: personalised from the first event on, else by interests, else trending.

    Always 200 with a list; `degraded` is true if a dependency is unavailable.
    """
    return json_response(await service.recommend(request_of(service, query)))


@router.post("/recommendations", tags=["lists"], **responses(api.Recommendations, 413))
async def recommendations_for(
    service: ServiceDep, body: Annotated[RecommendationQuery, Body()]
) -> Response:
    """The same with a body: for sessions, baskets, long lists of interests or exclusions."""
    return json_response(await service.recommend(request_of(service, body)))


@router.post("/recommendations/batch", tags=["lists"], **responses(api.Batch, 413))
async def batch(service: ServiceDep, body: Annotated[BatchQuery, Body()]) -> Response:
    """Lists for up to 500 users. Other requests are served in between."""
    n, lists = body.n or service.settings.serving.list_length, []
    for user_id in body.user_ids:
        lists.append(await service.recommend(RecommendationRequest(user_id, n, never_shed=True)))
        await asyncio.sleep(0)
    return json_response({"lists": lists})


@router.post("/feedback", tags=["feedback"], **responses(api.Accepted, 413, status=202))
async def feedback(service: ServiceDep, body: Annotated[Feedback, Body()]) -> Response:
    """Send what a user did. 202: the event is in Kafka, at `position`.

    After a 503 send it again with the same `event_id`: it takes effect once.
    """
    fields = body.model_dump(exclude={"event_id", "time"})
    interaction = Interaction(**fields | {"user_id": body.effective_user_id})
    event = event_of(interaction, body.event_id, body.time)
    bind_contextvars(event_id=event.id)
    try:
        position = await service.feedback.append(event)
    except Unavailable as error:
        service.metrics.feedback.labels("unavailable").inc()
        raise unavailable(f"{error}: {event.id}") from error
    service.metrics.feedback.labels("accepted").inc()
    service.on_feedback(body.impression_id, body.item_id, body.action)
    service.users.seen(interaction.user_id)
    return json_response({"event_id": event.id, "position": str(position)}, 202)


def request_of(service: Service, query: RecommendationQuery) -> RecommendationRequest:
    """The request to the recommender."""
    return RecommendationRequest(
        user_id=query.effective_user_id or "",
        n=query.n or service.settings.serving.list_length,
        interests=split(query.interests),
        after=LogPosition.parse(query.after) if query.after else None,
        items=tuple(query.items),
        exclude=tuple(query.exclude),
        category=query.category,
        explain=query.explain,
        filters=tuple(query.filters),
        options=_options(query),
        policy_pinned=query.policy is not None,
        page=_page(query),
        preview=query.preview,
    )


def _options(query: RecommendationQuery) -> Options:
    if query.policy is None and query.explore is None and query.diversity is None:
        return PLAIN
    return Options(
        query.policy or api.Policy.BLEND,
        explore=query.explore or 0.0,
        diversity=query.diversity or 0.0,
    )


def _page(query: RecommendationQuery) -> Page:
    if query.cursor is None:
        return Page(query.offset) if query.offset else FIRST_PAGE
    return Page(query.offset, decode_cursor(query.cursor), paginate=True)
