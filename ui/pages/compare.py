"""One user's list by each policy, side by side: what the blend is worth."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from urllib.parse import urlencode

from nicegui import ui

from afterclick.api import Recommendations
from afterclick.arrays import Json
from afterclick.errors import AfterclickError
from ui.api import Api
from ui.artwork import category_hue
from ui.cards import PERSONAL, SOURCE_NAMES, item_url, title_of
from ui.components.comparison import Comparison
from ui.components.controls import Heading
from ui.demo_users import demo_user, demo_users
from ui.live import LiveBoard
from ui.pages.frame import frame

SHOWN = 10
SLOWEST_S = 12.0


@dataclass(frozen=True)
class Policy:
    """One way to rank, as the API calls it and as people read it."""

    key: str
    name: str
    what: str
    learned: bool = False
    """Whether it is one learned model, which may have nothing for a user."""


POLICIES = (
    Policy("blend", "Blend", "all of it together, by the learned ranker"),
    Policy("als", "ALS", "matrix factors alone, this user folded in just now", learned=True),
    Policy("two_tower", "Two towers", "neural vectors alone, of the newest history", learned=True),
    Policy("trending", "Trending", "what trends now, for everybody"),
    Policy("popular", "Popular", "of all time, for everybody"),
)


def register(api: Api, board: LiveBoard) -> None:
    """Add the page at `/compare?user=…`."""

    @ui.page("/compare", title="Afterclick · compare", response_timeout=SLOWEST_S)
    async def compare(user: str = "") -> None:
        user_id = user[:128] or demo_users()[0].user_id
        with frame("/compare", board):
            Heading(f"The same user, ranked in different ways: {user_id}", "h1")
            ui.link("Back to the list", "/?" + urlencode({"user": user_id}))
            try:
                lists = await rank(api, user_id)
            except AfterclickError as error:
                ui.label(str(error)).classes("ac-notice")
                return
            Comparison(
                [
                    column(policy, found, lists[0], user_id)
                    for policy, found in zip(POLICIES, lists, strict=True)
                ]
            )


async def rank(api: Api, user_id: str) -> list[Recommendations]:
    """The user's list by each policy, in their order."""
    person = demo_user(user_id)
    tastes = person.tastes if person else ()
    return await asyncio.gather(
        *(api.preview(user_id, SHOWN, tastes, policy.key) for policy in POLICIES)
    )


def column(policy: Policy, found: Recommendations, blend: Recommendations, user_id: str) -> Json:
    """A column: each item with its place in the blend, where it has one."""
    places = {item.item_id: n for n, item in enumerate(blend.items, start=1)}
    return {
        "key": policy.key,
        "name": policy.name,
        "what": policy.what,
        "instead": instead(policy, found),
        "shared": sum(item.item_id in places for item in found.items),
        "items": [
            {
                "id": item.item_id,
                "title": title_of(item),
                "category": item.categories[-1] if item.categories else "",
                "hue": category_hue(item.categories),
                "blend": places.get(item.item_id),
                "href": item_url(item.item_id, user_id),
            }
            for item in found.items
        ],
    }


def instead(policy: Policy, found: Recommendations) -> str:
    """Where a learned model has nothing for this user: what the list is made by instead."""
    if not policy.learned or found.source in PERSONAL:
        return ""
    source = SOURCE_NAMES.get(found.source, found.source)
    return f"It has nothing for this user yet. Instead: {source.lower()}."
