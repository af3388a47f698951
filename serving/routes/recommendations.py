"""Lists and feedback: the hot routes, served by DirectRoute."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Body, Query
from pydantic import ValidationError
from starlette.responses import Response
from structlog.contextvars import bind_contextvars

from afterclick import api, events
from afterclick.api import SimilarityKind
from afterclick.arrays import Json
from afterclick.errors import NotFound, Unavailable
from afterclick.events import Context, Interaction, InteractionEvent
from afterclick.state import LogPosition
from serving.events.feedback import event_of
from serving.problems import ApiError, unavailable
from serving.recommender import describe
from serving.request import (
    FIRST_PAGE,
    PLAIN,
    Options,
    Page,
    RecommendationRequest,
    decode_cursor,
)
from serving.routes.fast_route import (
    AdminDep,
    DirectRoute,
    ServiceDep,
    json_response,
    responses,
)
from serving.routes.queries import (
    BatchQuery,
    Feedback,
    FeedbackBody,
    FeedbackList,
    LatestQuery,
    PopularQuery,
    RecommendationQuery,
    SimilarQuery,
    split,
)
from serving.service import Service
from serving.state.snapshot import ServingSnapshot
from serving.tiers import similar_items

router = APIRouter(route_class=DirectRoute)
EVENTS_AT_A_TIME = 50
"""Of a list of feedback."""
REASONS = {
    SimilarityKind.ALL: "similar to {}",
    SimilarityKind.CO_PURCHASE: "chosen by users who chose {}",
    SimilarityKind.CONTENT: "described like {}",
}


@router.get("/recommendations", tags=["lists"], **responses(api.Recommendations))
async def recommendations(
    service: ServiceDep, query: Annotated[RecommendationQuery, Query()]
) -> Response:
    """A list for a user: personalised from the first event on, else by interests, else trending.

    200 with a list, also without dependencies: `degraded` is true if one is unavailable. 503 only
    if too many lists with categories, filters, interests, explanations, over 50 items in view or
    over 400 to rank wait.
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


@router.get("/similar-items", tags=["lists"], **responses(api.SimilarItems, 404))
async def similar(service: ServiceDep, query: Annotated[SimilarQuery, Query()]) -> Response:
    """Items chosen by the same users (`by=bought`: bought together) or described alike."""
    snapshot = service.snapshots.current
    item = snapshot.find(query.item_id)
    if item is None:
        raise NotFound(f"no item {query.item_id}")
    n = query.n or service.settings.serving.list_length
    items, scores = await service.recommender.restricted(
        snapshot,
        query.category,
        query.filters,
        lambda allowed: similar_items(snapshot, item, n, allowed, query.by),
    )
    reason = REASONS[query.by].format(service.catalogue.name(query.item_id))
    return json_response(
        {
            "item_id": query.item_id,
            "model_version": snapshot.loaded.version or None,
            "items": _rows(snapshot, items.tolist(), scores.tolist(), reason),
        }
    )


@router.get("/latest", tags=["lists"], **responses(api.LatestItems))
async def latest(service: ServiceDep, query: Annotated[LatestQuery, Query()]) -> Response:
    """The newest items: those unknown to the model, then by first interaction."""
    snapshot = service.snapshots.current
    n = query.n or service.settings.serving.list_length
    found = await service.recommender.restricted(
        snapshot, query.category, query.filters, lambda allowed: snapshot.latest(n, allowed)
    )
    items = found.tolist()
    scores = [float(len(items) - rank) for rank in range(len(items))]
    return json_response({"items": _rows(snapshot, items, scores, "new")})


@router.get("/popular", tags=["lists"], **responses(api.PopularItems))
async def popular(service: ServiceDep, query: Annotated[PopularQuery, Query()]) -> Response:
    """The most popular items: of all time, or trending over a half-life."""
    snapshot = service.snapshots.current
    n = query.n or service.settings.serving.list_length
    items, scores = await service.recommender.restricted(
        snapshot,
        query.category,
        query.filters,
        lambda allowed: snapshot.most_popular(query.window, n, allowed),
    )
    reason = f"trending this {query.window}" if query.window else "popular with everyone"
    rows = _rows(snapshot, items.tolist(), scores.tolist(), reason)
    return json_response({"window": query.window or "all", "items": rows})


@router.post(
    "/feedback",
    tags=["feedback"],
    **responses(api.Accepted | api.AcceptedList, 413, status=202),
)
async def feedback(
    service: ServiceDep, admin: AdminDep, body: Annotated[FeedbackBody, Body()]
) -> Response:
    """Send what a user did: one event, or a list of up to 1,000.

    202: the event is in Kafka, at `position`. After a 503 send it again with the same `event_id`:
    it takes effect once. A list is answered by a result per event, of which some may be invalid
    (422) or not taken (503); the answer is 503 if Kafka took none.
    """
    if isinstance(body, FeedbackList):
        return json_response(await _accept_all(service, body, admin=admin), 202)
    event = _event(service, body, admin=admin)
    bind_contextvars(event_id=event.id)
    position = await _accept(service, event)
    return json_response({"event_id": event.id, "position": str(position)}, 202)


async def _accept_all(service: Service, batch: FeedbackList, *, admin: bool) -> Json:
    """The results of the events, in parts, between which other requests are served.

    Raises ApiError (503) if Kafka took none of the valid events.
    """
    results: list[Json] = []
    for start in range(0, len(batch.root), EVENTS_AT_A_TIME):
        part = batch.root[start : start + EVENTS_AT_A_TIME]
        results += await asyncio.gather(*(_result(service, raw, admin=admin) for raw in part))
    statuses = [result["status"] for result in results]
    if 202 not in statuses and 503 in statuses:
        raise unavailable(next(r["detail"] for r in results if r["status"] == 503))
    return {"accepted": statuses.count(202), "results": results}


async def _result(service: Service, raw: Json, *, admin: bool) -> Json:
    """What became of one event of a list."""
    event_id, position, status, detail = raw.get("event_id"), None, 202, None
    try:
        event = _event(service, Feedback.model_validate(raw), admin=admin)
        event_id = event.id
        position = str(await _accept(service, event))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        status, detail = 422, f"{place}: {first['msg']}" if place else first["msg"]
    except ApiError as error:
        status, detail = error.status, error.detail
    return {
        "event_id": event_id if isinstance(event_id, str) else None,
        "position": position,
        "status": status,
        "detail": detail,
    }


def _event(service: Service, body: Feedback, *, admin: bool) -> InteractionEvent:
    """The event of a body. Raises ApiError (422) for one that is too old."""
    fields = body.model_dump(exclude={"event_id", "time"})
    interaction = Interaction(**fields | {"user_id": body.effective_user_id})
    if not admin:
        _check_age(body.time, service.settings.serving.max_event_age_s)
    return event_of(interaction, body.event_id, body.time, admin=admin)


async def _accept(service: Service, event: InteractionEvent) -> LogPosition:
    """The position of an event in Kafka. Raises ApiError (503)."""
    try:
        position = await service.feedback.append(event)
    except Unavailable as error:
        service.metrics.feedback.labels("unavailable").inc()
        raise unavailable(f"{error}: {event.id}") from error
    service.metrics.feedback.labels("accepted").inc()
    service.users.seen(event.data.user_id)
    return position


def _check_age(time: datetime | None, max_age_s: float) -> None:
    """Raises ApiError (422) for an event that only an administrator may send."""
    if time is not None and time < events.now() - timedelta(seconds=max_age_s):
        raise ApiError(
            422, f"time: older than {max_age_s:g} s; past events need a key with the scope admin"
        )


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
        context=_context(query),
    )


def _options(query: RecommendationQuery) -> Options:
    if query.policy is None and query.explore is None and query.diversity is None:
        return PLAIN
    return Options(
        query.policy or api.Policy.BLEND,
        explore=query.explore or 0.0,
        diversity=query.diversity or 0.0,
    )


def _context(query: RecommendationQuery) -> Context | None:
    if query.page is None and query.device is None:
        return None
    return Context(page=query.page, device=query.device)


def _page(query: RecommendationQuery) -> Page:
    if query.cursor is None:
        return Page(query.offset) if query.offset else FIRST_PAGE
    return Page(query.offset, decode_cursor(query.cursor), paginate=True)


def _rows(
    snapshot: ServingSnapshot, items: Iterable[int], scores: Iterable[float], reason: str
) -> list[Json]:
    """Rows of a list from item indices."""
    rows: list[Json] = []
    for item, score in zip(items, scores, strict=True):
        row = {**describe(snapshot.catalogue, snapshot.ids[item]), "score": score}
        rows.append(row | {"reason": reason} | snapshot.ratings_row(item))
    return rows
