"""Quarantined items (scope admin): list them, and approve items for which every vote counts."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Body
from pydantic import BaseModel, Field
from starlette.responses import Response

from afterclick.errors import Unavailable
from afterclick.events import Id
from afterclick.trends import HALF_LIVES_MS
from serving.problems import ApiError
from serving.routes.queries import Request
from serving.routes.replies import Parts, answers, reply
from serving.routes.routing import DirectRoute

router = APIRouter(prefix="/admin", route_class=DirectRoute, tags=["admin"])


class HeldItem(BaseModel):
    """An item in quarantine."""

    item_id: str
    title: str | None
    trends: dict[str, float] = Field(description="What is left of them, by half-life.")


class QuarantineState(BaseModel):
    """Items whose votes by new accounts do not count."""

    established_share: float = Field(
        description="Of an item's votes, what established users usually cast; 0 while it is not known."
    )
    trust: dict[str, float] = Field(
        description="What a new account's vote counts, by half-life: the lower, the more they exceed "
        "their usual share; 1 while that is not known."
    )
    held: list[HeldItem]
    lifted: list[str] = Field(description="Items an administrator vouches for.")


class Lift(Request):
    """POST /admin/quarantine"""

    item_id: Id
    lifted: bool = Field(True, description="false: judge the item like any other again.")


class Done(BaseModel):
    """What was done."""

    done: str


@router.get("/quarantine", **answers(QuarantineState))
async def quarantine(service: Parts) -> Response:
    """Items that new accounts push far beyond what established users support. They leave by themselves.

    And how far the votes of new accounts are trusted, all together.
    """
    snapshot = service.snapshots.current
    items = [
        {
            "item_id": snapshot.ids[at],
            "title": service.catalogue.title(snapshot.ids[at]),
            "trends": dict(zip(HALF_LIVES_MS, snapshot.values[at].round(6).tolist(), strict=True)),
        }
        for at in snapshot.held.tolist()
    ]
    lifted = sorted(service.feed.lifted)
    trust = dict(zip(HALF_LIVES_MS, snapshot.trust.tolist(), strict=True))
    shop = {"established_share": snapshot.established_share, "trust": trust}
    return reply({**shop, "held": items, "lifted": lifted})


@router.post("/quarantine", **answers(Done, 413))
async def lift(service: Parts, body: Annotated[Lift, Body()]) -> Response:
    """Let every vote on an item count, whoever casts it; or no more.

    At once in this process, in others within ten minutes.
    """
    try:
        await asyncio.to_thread(service.feed.lift, body.item_id, body.lifted)
    except Unavailable as error:
        raise ApiError(503, str(error)) from None
    service.snapshots.wake()
    return reply({"done": f"{body.item_id} {'lifted' if body.lifted else 'judged again'}"})
