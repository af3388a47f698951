"""The lists of one user by different policies, side by side."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from urllib.parse import urlencode

from nicegui import ui

from afterclick.api import Recommendations
from afterclick.arrays import Json
from afterclick.errors import AfterclickError
from ui.cards import PERSONAL, SOURCE_NAMES, category_hue, demo_user, demo_users, item_url, title_of
from ui.gateway import ShopClient
from ui.live_state import LiveState
from ui.widgets import Heading, ListComparison, page_frame

LIST_LENGTH = 10
RESPONSE_TIMEOUT_S = 12.0


@dataclass(frozen=True)
class RankingPolicy:
    """A policy: its key in the API, its name and description on the page."""

    key: str
    name: str
    what: str
    single_model: bool = False
    """One trained model, which may not know the user."""


POLICIES = (
    RankingPolicy("blend", "Blend", "all sources, ordered by the trained ranker"),
    RankingPolicy("als", "ALS", "matrix factorisation only, with this user folded in", True),
    RankingPolicy("two_tower", "Sequence model", "a transformer over the newest events", True),
    RankingPolicy("ncf", "NCF", "neural collaborative filtering of the latest history only", True),
    RankingPolicy("trending", "Trending", "trending now, the same for all users"),
    RankingPolicy("popular", "Popular", "popular overall, the same for all users"),
)


def register(client: ShopClient, state: LiveState) -> None:
    """Add the page at `/compare?user=…`."""

    @ui.page("/compare", title="Afterclick · compare", response_timeout=RESPONSE_TIMEOUT_S)
    async def compare(user: str = "") -> None:
        user_id = user[:128] or demo_users()[0].user_id
        with page_frame("/compare", state):
            Heading(f"Lists for {user_id} by different policies", "h1")
            ui.link("Back to the list", "/?" + urlencode({"user": user_id}))
            try:
                lists = await fetch_lists(client, user_id)
            except AfterclickError as error:
                ui.label(str(error)).classes("ac-notice")
                return
            pairs = zip(POLICIES, lists, strict=True)
            ListComparison([column(*pair, lists[0], user_id) for pair in pairs])


async def fetch_lists(client: ShopClient, user_id: str) -> list[Recommendations]:
    """The user's list by each of POLICIES, in their order."""
    user = demo_user(user_id)
    interests = user.tastes if user else ()
    return await asyncio.gather(
        *(client.preview(user_id, LIST_LENGTH, interests, policy.key) for policy in POLICIES)
    )


def column(
    policy: RankingPolicy, answer: Recommendations, blend: Recommendations, user_id: str
) -> Json:
    """One list; each item with its rank in the blend, None if it is not there."""
    blend_ranks = {item.item_id: rank for rank, item in enumerate(blend.items, start=1)}
    return {
        "key": policy.key,
        "name": policy.name,
        "what": policy.what,
        "fallback": fallback_notice(policy, answer),
        "shared": sum(item.item_id in blend_ranks for item in answer.items),
        "items": [
            {
                "id": item.item_id,
                "title": title_of(item),
                "category": item.categories[-1] if item.categories else "",
                "hue": category_hue(item.categories),
                "blend": blend_ranks.get(item.item_id),
                "href": item_url(item.item_id, user_id),
            }
            for item in answer.items
        ],
    }


def fallback_notice(policy: RankingPolicy, answer: Recommendations) -> str:
    """A notice for a model that does not know the user, with the source of the list instead."""
    if not policy.single_model or answer.source in PERSONAL:
        return ""
    source = SOURCE_NAMES.get(answer.source, answer.source)
    return f"This model does not know the user yet. Instead: {source.lower()}."
