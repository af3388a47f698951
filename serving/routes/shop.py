"""The routes of a shop: lists, catalogue, users and feedback. Validate, ask the service, write JSON."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query
from numpy.typing import NDArray
from starlette.responses import Response

from afterclick import api
from afterclick.api import Policy
from afterclick.arrays import Json
from afterclick.errors import Unavailable
from afterclick.events import Id, Interaction
from afterclick.state import LogPosition
from afterclick.trends import HALF_LIVES_MS
from serving.control.users import read_user
from serving.events.feedback import event_of
from serving.problems import ApiError, unavailable
from serving.recommender import describe
from serving.request import FIRST_PAGE, PLAIN, Options, Page, RecommendationRequest, decode_cursor
from serving.routes import queries
from serving.routes.replies import Parts, answers, reply
from serving.routes.routing import DirectRoute
from serving.service import Service
from serving.state.snapshot import ServingSnapshot
from serving.tiers import similar_items

router = APIRouter(route_class=DirectRoute)
ItemId = Annotated[Id, Path(examples=["B0019EHU8G"])]
ImpressionId = Annotated[Id, Path()]
UserId = Annotated[Id, Path(examples=["bob"])]
_ALIKE = {
    api.SimilarityKind.ALL: "like {}",
    api.SimilarityKind.CO_PURCHASE: "chosen by who chose {}",
    api.SimilarityKind.CONTENT: "described like {}",
}


@router.get("/recommendations", tags=["lists"], **answers(api.Recommendations))
async def recommendations(
    service: Parts, query: Annotated[queries.RecommendationQuery, Query()]
) -> Response:
    """A list for a user: personalised from the first event on, else by interests, else what is trending.

    It always answers 200 with a list; `degraded` says when something it needs was away.
    """
    return reply(await service.recommend(ask_of(service, query)))


@router.post("/recommendations", tags=["lists"], **answers(api.Recommendations, 413))
async def recommendations_for(
    service: Parts, body: Annotated[queries.RecommendationQuery, Body()]
) -> Response:
    """The same with a body: for a session, a basket, long lists of interests or exclusions."""
    return reply(await service.recommend(ask_of(service, body)))


@router.post("/recommendations/batch", tags=["lists"], **answers(api.Batch, 413))
async def batch(service: Parts, body: Annotated[queries.BatchQuery, Body()]) -> Response:
    """Lists for up to 500 users. Other requests are answered in between."""
    n, lists = body.n or service.settings.serving.list_length, []
    for user_id in body.user_ids:
        lists.append(await service.recommend(RecommendationRequest(user_id, n, never_shed=True)))
        await asyncio.sleep(0)
    return reply({"lists": lists})


@router.get("/explain/{impression_id}", tags=["lists"], **answers(api.Recommendations, 404))
async def explain(service: Parts, impression_id: ImpressionId) -> Response:
    """A list that went out lately, as it was: what was shown then, and why."""
    body = service.shown.get(impression_id)
    if body is None:
        raise ApiError(
            404, "no such impression in memory; what others showed is on the impressions topic"
        )
    return reply(body)


@router.get("/similar-items", tags=["lists"], **answers(api.SimilarItems, 404))
async def similar(
    service: Parts, query: Annotated[queries.SimilarQuery, Query()]
) -> Response:
    """Items that the same users chose (`by=bought`: bought also), or that are described alike."""
    snapshot = service.snapshots.current
    item = snapshot.find(query.item_id)
    if item is None:
        raise ApiError(404, f"no item {query.item_id}")
    n = query.n or service.settings.serving.list_length
    reason = _ALIKE[query.by].format(service.catalogue.name(query.item_id))
    inside = service.recommender.filters.allowed(snapshot, query.category, query.filters)
    items, scores = similar_items(snapshot, item, n, inside, query.by)
    rows = [
        _row(service, snapshot.ids[at], score, reason)
        for at, score in zip(items.tolist(), scores.tolist(), strict=True)
    ]
    return reply(
        {"item_id": query.item_id, "model_version": snapshot.loaded.version or None, "items": rows}
    )


@router.get("/latest", tags=["lists"], **answers(api.LatestItems))
async def latest_items(service: Parts, query: Annotated[queries.LatestQuery, Query()]) -> Response:
    """What came last: items that the model does not know yet, then by when they were first chosen."""
    snapshot = service.snapshots.current
    n = query.n or service.settings.serving.list_length
    inside = service.recommender.filters.allowed(snapshot, query.category, query.filters)
    order = snapshot.visible(snapshot.newest_first, inside)[:n].tolist()
    rows = [
        _row(service, snapshot.ids[at], float(len(order) - place), "new")
        for place, at in enumerate(order)
    ]
    return reply({"items": rows})


@router.get("/popular", tags=["lists"], **answers(api.PopularItems))
async def popular(service: Parts, query: Annotated[queries.PopularQuery, Query()]) -> Response:
    """What everybody reaches for: of all time, or trending over a half-life."""
    snapshot = service.snapshots.current
    n = query.n or service.settings.serving.list_length
    scores: NDArray[Any]
    if query.window is None:
        scores, order, reason = snapshot.popularity, snapshot.popular, "popular with everyone"
    else:
        column = list(HALF_LIVES_MS).index(query.window)
        scores, order = snapshot.decayed_counts[:, column], snapshot.top_by_half_life[query.window]
        reason = f"trending this {query.window}"
    inside = service.recommender.filters.allowed(snapshot, query.category, query.filters)
    if inside is not None:
        inside = (
            inside if query.window is None else inside[scores[inside] > 0]
        )  # what trends, trends
        order = inside[(-scores[inside]).argsort(kind="stable")]
    order = snapshot.visible(order)
    rows = [_row(service, snapshot.ids[i], float(scores[i]), reason) for i in order[:n].tolist()]
    return reply({"window": query.window or "all", "items": rows})


@router.get("/items/{item_id}", tags=["catalogue"], **answers(api.ItemDetails, 404))
async def item(service: Parts, item_id: ItemId) -> Response:
    """One item: what the catalogue says, and its live counts."""
    snapshot = service.snapshots.current
    at, known = snapshot.find(item_id), service.catalogue.items.get(item_id)
    if at is None and known is None:
        raise ApiError(404, f"no item {item_id}")
    values = snapshot.decayed_counts[at].round(6).tolist() if at is not None else [0.0] * len(HALF_LIVES_MS)
    return reply(
        {
            **describe(service.catalogue, item_id),
            "brand": known.brand if known else None,
            "price": known.price if known else None,
            "interactions": int(snapshot.counts[at]) if at is not None else 0,
            "trends": dict(zip(HALF_LIVES_MS, values, strict=True)),
            "in_model": snapshot.loaded.model is not None
            and item_id in snapshot.loaded.model.index,
            "badges": snapshot.badges.get(at, ()) if at is not None else (),
        }
    )


@router.get("/search", tags=["catalogue"], **answers(api.FoundItems))
async def search(service: Parts, query: Annotated[queries.SearchQuery, Query()]) -> Response:
    """Items whose title, categories or id match, as one types; the most chosen first."""
    snapshot, catalogue = service.snapshots.current, service.catalogue
    counts = {item_id: _chosen(snapshot, item_id) for item_id in service.search.find(catalogue, query.q)}
    best = sorted(counts, key=lambda item_id: -counts[item_id])
    found = best[: query.n or service.settings.serving.list_length]
    return reply({"items": [describe(catalogue, item_id) for item_id in found]})


@router.get("/categories", tags=["catalogue"], **answers(api.Categories))
async def categories(service: Parts) -> Response:
    """Every category with its number of items, biggest first."""
    rows = [{"category": name, "items": count} for name, count in service.catalogue.categories()]
    return reply({"categories": rows})


@router.get("/users/{user_id}", tags=["users"], **answers(api.User, 404))
async def user(service: Parts, user_id: UserId) -> Response:
    """What is known of a user beside the history: since when, named interests, the experiment."""
    try:
        row = await asyncio.to_thread(read_user, service.control.database, user_id)
    except Unavailable as error:
        raise unavailable(str(error)) from error
    if row is None:
        raise ApiError(404, f"nothing was heard of {user_id} yet")
    assigned = service.control.assignment.of(user_id)
    experiment = {"name": assigned.experiment, "arm": assigned.arm} if assigned else None
    del row["interests_at"]
    return reply({**row, "interests": row["interests"] or [], "experiment": experiment})


@router.put("/users/{user_id}/interests", tags=["users"], **answers(api.Interests, 413))
async def name_interests(
    service: Parts, user_id: UserId, body: Annotated[queries.InterestsNamed, Body()]
) -> Response:
    """Keep what a user says they like: for lists that name no interests, until there is a history."""
    interests = split(body.interests)
    try:
        await asyncio.to_thread(
            service.users.set_interests, service.control.database, user_id, interests
        )
    except Unavailable as error:
        raise unavailable(str(error)) from error
    return reply({"user_id": user_id, "interests": interests})


@router.get("/users/{user_id}/history", tags=["users"], **answers(api.History))
async def history(
    service: Parts, user_id: UserId, query: Annotated[queries.HistoryQuery, Query()]
) -> Response:
    """What a user did, newest first; empty for an unknown user."""
    try:
        entries, degraded = await service.store.history(user_id, query.n), False
    except Unavailable:
        entries, degraded = [], True
    rows = [
        {
            "event_id": entry.event_id,
            "item_id": entry.item_id,
            "title": service.catalogue.title(entry.item_id),
            "action": entry.action,
            "rating": entry.rating,
            "time": datetime.fromtimestamp(entry.time_ms / 1000, UTC),
        }
        for entry in entries
    ]
    return reply({"user_id": user_id, "degraded": degraded, "events": rows})


@router.post("/feedback", tags=["feedback"], **answers(api.Accepted, 413, status=202))
async def feedback(service: Parts, body: Annotated[queries.Feedback, Body()]) -> Response:
    """Tell what a user did. 202 means that Kafka has it; `position` says where.

    After a 503 send it again with the same `event_id`: it takes effect once.
    """
    interaction = Interaction(
        **body.model_dump(exclude={"event_id", "time"}) | {"user_id": body.who}
    )
    event = event_of(interaction, body.event_id, body.time)
    try:
        position = await service.feedback.append(event)
    except Unavailable as error:
        service.metrics.feedback.labels("unavailable").inc()
        raise unavailable(f"{error}: {event.id}") from error
    service.metrics.feedback.labels("accepted").inc()
    service.on_feedback(body.impression_id, body.item_id, body.action)
    service.users.seen(interaction.user_id)
    return reply({"event_id": event.id, "position": str(position)}, 202)


def ask_of(service: Service, query: queries.RecommendationQuery) -> RecommendationRequest:
    """What a query asks of the recommender."""
    after = LogPosition.parse(query.after) if query.after else None
    n = query.n or service.settings.serving.list_length
    return RecommendationRequest(
        query.who or "",
        n,
        split(query.interests),
        after,
        tuple(query.items),
        tuple(query.exclude),
        query.category,
        query.explain,
        tuple(query.filters),
        _options(query),
        query.policy is not None,
        _page(query),
        query.preview,
    )


def _options(query: queries.RecommendationQuery) -> Options:
    if query.policy is None and query.explore is None and query.diversity is None:
        return PLAIN
    policy = query.policy or Policy.BLEND
    return Options(policy, explore=query.explore or 0.0, diversity=query.diversity or 0.0)


def _page(query: queries.RecommendationQuery) -> Page:
    if query.cursor is None:
        return Page(query.offset) if query.offset else FIRST_PAGE
    return Page(query.offset, decode_cursor(query.cursor), paginate=True)


def split(interests: list[str]) -> tuple[str, ...]:
    """Interests as they were meant: repeated, separated by commas, or both."""
    parts = (part.strip() for interest in interests for part in interest.split(","))
    return tuple(dict.fromkeys(p for p in (*interests, *parts) if p))


def _chosen(snapshot: ServingSnapshot, item_id: str) -> int:
    at = snapshot.find(item_id)
    return int(snapshot.counts[at]) if at is not None else 0


def _row(service: Service, item_id: str, score: float, reason: str) -> Json:
    return {**describe(service.catalogue, item_id), "score": score, "reason": reason}
