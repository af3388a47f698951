"""How an item looks: the words and numbers on its card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from urllib.parse import urlencode

from afterclick.api import ItemSummary, Recommendations, RecommendedItem
from afterclick.arrays import Json
from ui.artwork import artwork, category_hue

PART_NAMES = {
    "model": "model",
    "history": "your history",
    "trend": "trend",
    "content": "content",
    "popularity": "popularity",
    "base": "starting point",
    "rules": "the shop's rules",
    "diversity": "variety",
    "exploration": "exploration",
}
SOURCE_NAMES = {
    "personalised": "For you",
    "session": "From this visit",
    "interests": "From your interests",
    "trending": "Trending now",
    "popular": "Popular",
    "als": "People with a taste like yours",
    "tower": "People with a history like yours",
    "neighbours": "Chosen by the same people",
    "same_day": "Chosen on the same day",
    "content": "Described alike",
}
BADGE_NAMES = {"trending": "trending now", "new": "new"}
PERSONAL = ("personalised", "session")
"""Sources of lists that the ranker has ordered for one user."""
SURE = (0.6, 0.7)
"""From where on an item has two dots, and three."""


def title_of(item: ItemSummary) -> str:
    """The item's title, or its category and id where the catalogue has none."""
    if item.title:
        return item.title
    kind = item.categories[-1] if item.categories else "Item"
    return f"{kind} {item.item_id}"


def department_of(categories: Sequence[str]) -> str:
    """The broad category of an item: the second, since the first is often the same for all."""
    return categories[1] if len(categories) > 1 else "".join(categories) or "no department"


def item_url(item_id: str, user_id: str) -> str:
    """The address of an item's page. Ids may hold any character, also a slash."""
    return "/item?" + urlencode({"id": item_id, "user": user_id})


def sureness(item: RecommendedItem, answer: Recommendations) -> Json:
    """How sure a list is of an item: `dots` of 3, in `words`, and `what` that means.

    The ranker learns from pairs: the odds that one item is chosen before another are exp(difference of their
    scores). What is said is the probability against the last item of the list, so at least one half.
    """
    if answer.source == "interests":
        return {
            "dots": 1,
            "words": "a guess",
            "what": "From interests alone: nothing that you did is in it.",
        }
    if answer.source not in PERSONAL:
        return {
            "dots": 0,
            "words": "not personal",
            "what": "It is shown to everybody: not about you yet.",
        }
    share = 1 / (1 + math.exp(-max(item.score - answer.items[-1].score, 0.0)))
    return {
        "dots": 1 + sum(share >= least for least in SURE),
        "words": f"{share:.0%} sure",
        "what": f"By the ranker's scale, chosen before the last of this list {share:.0%} of the time; "
        "50 % would be no difference.",
    }


def card(item: RecommendedItem, place: int, scale: float, moved: int, entered: bool) -> Json:
    """One card. `scale` is the score whose bar fills the card's width."""
    return {
        "id": item.item_id,
        "place": place,
        "title": title_of(item),
        "untitled": not item.title,
        "category": " / ".join(item.categories[-2:]) or "Uncategorised",
        "hue": category_hue(item.categories),
        "art": artwork(item.item_id, item.categories),
        "reason": item.reason,
        "source": SOURCE_NAMES.get(item.source, item.source),
        "score": round(item.score, 3),
        "parts": [
            {
                "name": name,
                "label": PART_NAMES.get(name, name),
                "value": round(value, 3),
                "width": round(100 * abs(value) / scale, 2),
            }
            for name, value in item.contributions.items()
            if value
        ],
        "badges": [BADGE_NAMES.get(badge, badge) for badge in item.badges],
        "moved": moved,
        "entered": entered,
    }


def bar_scale(items: tuple[RecommendedItem, ...]) -> float:
    """The largest sum of absolute parts in a list: its bar is full."""
    return (
        max(
            (sum(abs(value) for value in item.contributions.values()) for item in items),
            default=0.0,
        )
        or 1.0
    )
