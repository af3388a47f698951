"""One user's list ranked in several ways, side by side: what the blend is worth."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from urllib.parse import urlencode

from nicegui import ui

from afterclick.errors import AfterclickError
from ui.api import Api
from ui.api_types import JsonObject, RankedItem
from ui.artwork import category_hue
from ui.cards import PART_NAMES, item_url, title_of
from ui.components.comparison import Comparison
from ui.components.controls import Heading
from ui.demo_users import demo_user, demo_users
from ui.live import LiveBoard
from ui.pages.frame import frame

SHOWN = 10
POOL = 200
SLOWEST_S = 12.0


@dataclass(frozen=True)
class Ranking:
    """One way to rank, and the best items by it."""

    name: str
    what: str
    items: tuple[RankedItem, ...]


def register(api: Api, board: LiveBoard) -> None:
    """Add the page at `/compare?user=…`."""

    @ui.page("/compare", title="Afterclick · compare", response_timeout=SLOWEST_S)
    async def compare(user: str = "") -> None:
        user_id = user[:128] or demo_users()[0].user_id
        with frame("/compare", board):
            Heading(f"The same user, ranked in different ways: {user_id}", "h1")
            ui.link("Back to the list", "/?" + urlencode({"user": user_id}))
            try:
                rankings = await rank(api, user_id)
            except AfterclickError as error:
                ui.label(str(error)).classes("ac-notice")
                return
            Comparison([column(ranking, rankings[0], user_id) for ranking in rankings])


async def rank(api: Api, user_id: str) -> list[Ranking]:
    """The served list first, then its parts alone, then what everybody gets."""
    person = demo_user(user_id)
    tastes = person.tastes if person else ()
    pool, hour, popular = await asyncio.gather(
        api.recommendations(user_id, POOL, tastes), api.popular(SHOWN, window="hour"), api.popular(SHOWN)
    )
    served = Ranking("Served", "the blend, as the shop shows it", pool.items[:SHOWN])
    return [
        served,
        *by_parts(pool.items),
        Ranking("Trending", "this hour, for everybody", hour),
        Ranking("Popular", "of all time, for everybody", popular),
    ]


def by_parts(pool: tuple[RankedItem, ...]) -> list[Ranking]:
    """The served pool in the order of each single part of the score that tells items apart."""
    names = dict.fromkeys(name for item in pool for name in item.parts)
    rankings = []
    for name in names:
        values = [item.parts.get(name, 0.0) for item in pool]
        if max(values) > min(values):
            order = [pool[at] for at in sorted(range(len(pool)), key=values.__getitem__, reverse=True)]
            title = PART_NAMES.get(name, name).capitalize()
            rankings.append(
                Ranking(title, f"this part of the score alone, of {len(pool)}", tuple(order[:SHOWN]))
            )
    return rankings


def column(ranking: Ranking, served: Ranking, user_id: str) -> JsonObject:
    """A column: each item with its place in the served list, where it has one."""
    places = {item.item_id: n for n, item in enumerate(served.items, start=1)}
    return {
        "name": ranking.name,
        "what": ranking.what,
        "shared": sum(item.item_id in places for item in ranking.items),
        "items": [
            {
                "id": item.item_id,
                "title": title_of(item),
                "category": item.categories[-1] if item.categories else "",
                "hue": category_hue(item.categories),
                "served": places.get(item.item_id),
                "href": item_url(item.item_id, user_id),
            }
            for item in ranking.items
        ],
    }
