"""Quarantined items (scope admin): list them, and approve items for which every vote counts."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Body
from starlette.responses import Response

from afterclick import api
from afterclick.errors import Unavailable
from afterclick.trends import HALF_LIVES_MS
from serving.problems import ApiError
from serving.routes.replies import Parts, answers, reply
from serving.routes.routing import DirectRoute

router = APIRouter(prefix="/admin", route_class=DirectRoute, tags=["admin"])


@router.get("/quarantine", **answers(api.Quarantine))
async def quarantine(service: Parts) -> Response:
    """Items that new accounts push far beyond what established users support. They leave by themselves.

    And how far the votes of new accounts are trusted, all together.
    """
    snapshot = service.snapshots.current
    items = [
        {
            "item_id": snapshot.ids[at],
            "title": service.catalogue.title(snapshot.ids[at]),
            "trends": dict(zip(HALF_LIVES_MS, snapshot.decayed_counts[at].round(6).tolist(), strict=True)),
        }
        for at in snapshot.quarantined.tolist()
    ]
    approved = sorted(service.feed.lifted)
    trust = dict(zip(HALF_LIVES_MS, snapshot.new_account_weight.tolist(), strict=True))
    shop = {"established_share": snapshot.established_share, "new_account_weight": trust}
    return reply({**shop, "quarantined": items, "approved": approved})


@router.post("/quarantine", **answers(api.Ack, 413))
async def lift(service: Parts, body: Annotated[api.QuarantineApproval, Body()]) -> Response:
    """Let every vote on an item count, whoever casts it; or no more.

    At once in this process, in others within ten minutes.
    """
    try:
        await asyncio.to_thread(service.feed.lift, body.item_id, body.approved)
    except Unavailable as error:
        raise ApiError(503, str(error)) from None
    service.snapshots.wake()
    return reply({"done": f"{body.item_id} {'approved' if body.approved else 'limited again'}"})
