"""Lists shown before, the catalogue, and what is known of a user."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path, Query
from starlette.responses import Response

from afterclick import api
from afterclick.arrays import Json
from afterclick.errors import NotFound, Unavailable
from afterclick.events import Id, SessionId
from afterclick.state import Forgetting, LogPosition
from afterclick.trends import HALF_LIVES_MS
from serving.control.users import read_user
from serving.problems import unavailable
from serving.recommender import describe
from serving.routes.fast_route import ServiceDep, json_response, key_only, own_path, responses
from serving.routes.queries import (
    HistoryQuery,
    InterestsUpdate,
    Login,
    SearchQuery,
    split,
)

router = APIRouter(dependencies=[Depends(own_path)])
ItemId = Annotated[Id, Path(examples=["B0019EHU8G"])]
UserId = Annotated[Id, Path(examples=["bob"])]


@router.get("/explain/{impression_id:id}", tags=["lists"], **responses(api.Recommendations, 404))
async def explain(service: ServiceDep, impression_id: Annotated[Id, Path()]) -> Response:
    """A recent list as it was shown, with the contributions to its scores."""
    body = await service.impression.read(impression_id)
    if body is None:
        raise NotFound("no such impression in memory; see the impressions topic")
    return json_response(body)


@router.get("/items/{item_id:id}", tags=["catalogue"], **responses(api.ItemDetails, 404))
async def item(service: ServiceDep, item_id: ItemId) -> Response:
    """One item: catalogue entry and live counts."""
    snapshot, entry = service.snapshots.current, service.catalogue.get(item_id)
    index, model = snapshot.find(item_id), snapshot.loaded.model
    if entry is None and (index is None or not snapshot.shows(index)):
        raise NotFound(f"no item {item_id}")
    trends, counts, ratings = [0.0] * len(HALF_LIVES_MS), (0, 0), None
    if index is not None:
        counts, ratings = snapshot.interactions_of(index), snapshot.ratings_of(index)
        trends = snapshot.decayed_counts[index].round(6).tolist()
    return json_response(
        {
            **describe(service.catalogue, item_id),
            "brand": entry.brand if entry else None,
            "price": entry.price if entry else None,
            "interactions": counts[0],
            "positives": counts[1],
            "ratings": ratings,
            "trends": dict(zip(HALF_LIVES_MS, trends, strict=True)),
            "in_model": model is not None and item_id in model.index,
            "badges": snapshot.badges.of(index) if index is not None else (),
        }
    )


@router.get("/search", tags=["catalogue"], **responses(api.FoundItems))
async def search(service: ServiceDep, query: Annotated[SearchQuery, Query()]) -> Response:
    """Items whose title, categories, brand or id match the prefixes, most chosen first."""
    n = query.n or service.settings.serving.list_length
    items = await service.recommender.search(query.q, n)
    return json_response({"items": [describe(service.catalogue, item_id) for item_id in items]})


@router.get("/categories", tags=["catalogue"], **responses(api.Categories))
async def categories(service: ServiceDep) -> Response:
    """The largest 1,000 categories with their number of items, largest first."""
    sizes = await service.recommender.in_worker(service.catalogue.categories)
    rows = [{"category": name, "items": count} for name, count in sizes]
    return json_response({"categories": rows})


@router.get("/users/{user_id:id}", tags=["users"], **responses(api.User, 404))
async def user(service: ServiceDep, user_id: UserId) -> Response:
    """First and last feedback, stored interests, and the experiment of a user."""
    row = await asyncio.to_thread(read_user, service.database, user_id)
    if row is None:
        raise NotFound(f"no feedback or interests of user {user_id}")
    assigned = service.control.assignment.of(user_id)
    experiment = {"name": assigned.experiment, "arm": assigned.arm} if assigned else None
    del row["interests_at"]
    return json_response({**row, "interests": row["interests"] or [], "experiment": experiment})


@router.put("/users/{user_id:id}/interests", tags=["users"], **responses(api.Interests, 413))
async def set_interests(
    service: ServiceDep, user_id: UserId, body: Annotated[InterestsUpdate, Body()]
) -> Response:
    """Store a user's interests, for lists that name none, until there is a history."""
    interests = split(body.interests)
    await service.in_force(service.users.set_interests, service.database, user_id, interests)
    return json_response({"user_id": user_id, "interests": interests})


@router.delete("/users/{user_id:id}", tags=["users"], **responses(api.Erasure, status=202))
async def erase_user(service: ServiceDep, user_id: UserId) -> Response:
    """Erase what a user did up to now. Scope `admin`, or the user's own token.

    202: lists and history are without it within a second, in every process; the stream job retracts
    counts and erases the log. A later event begins a new history.
    """
    until_ms = await service.forget(user_id)
    return json_response(_erasure(user_id, until_ms, None), 202)


@router.get("/users/{user_id:id}/erasure", tags=["users"], **responses(api.Erasure, 404))
async def erasure(service: ServiceDep, user_id: UserId) -> Response:
    """How far the erasure of a user is, and what it removed."""
    stored_ms, report = await service.store.forgetting(user_id)
    until_ms = max(stored_ms or -1, service.eraser.until_ms.get(user_id, -1))
    if until_ms < 0:
        raise NotFound(f"no request to erase the user {user_id}")
    return json_response(_erasure(user_id, until_ms, report))


@router.post(
    "/sessions/{session_id:id}/user",
    tags=["users"],
    dependencies=[Depends(key_only)],
    **responses(api.SessionMerge, 413, status=202),
)
async def merge_session(
    service: ServiceDep, session_id: Annotated[SessionId, Path()], body: Annotated[Login, Body()]
) -> Response:
    """At login: copy the events of a session to the history of its user.

    202: the copies are in Kafka. They change no counts, since the session's events count. Call it
    again after a 503, if `fresh` is false, or with later events: each event is copied once. It
    takes an API key where user tokens are in use: the shop's server knows who logged in.
    """
    after = LogPosition.parse(body.after) if body.after else None
    try:
        merged = await service.merge_session(session_id, body.user_id, after)
    except Unavailable as error:
        raise unavailable(str(error)) from error
    position = str(merged.position) if merged.position else None
    return json_response(
        {
            "session_id": session_id,
            "user_id": body.user_id,
            "events": merged.events,
            "position": position,
            "fresh": merged.fresh,
        },
        202,
    )


@router.get("/users/{user_id:id}/history", tags=["users"], **responses(api.History))
async def history(
    service: ServiceDep, user_id: UserId, query: Annotated[HistoryQuery, Query()]
) -> Response:
    """A user's actions, newest first; empty for an unknown user."""
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
    return json_response({"user_id": user_id, "degraded": degraded, "events": rows})


def _erasure(user_id: str, until_ms: int, report: Forgetting | None) -> Json:
    done = report and report.finished_ms is not None and report.until_ms >= until_ms
    fields = ("events", "remaining", "rows")
    removed = {name: getattr(report, name) if done else None for name in fields}
    return {
        "user_id": user_id,
        "state": api.ErasureState.COMPLETE if done else api.ErasureState.REQUESTED,
        "until": datetime.fromtimestamp(until_ms / 1000, UTC),
        **removed,
    }
