"""How an item looks: the words and numbers on its card."""

from __future__ import annotations

from urllib.parse import urlencode

from ui.api_types import JsonObject, RankedItem, ShopItem
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


def title_of(item: ShopItem) -> str:
    """The item's title, or its category and id where the catalogue has none."""
    if item.title:
        return item.title
    kind = item.categories[-1] if item.categories else "Item"
    return f"{kind} {item.item_id}"


def item_url(item_id: str, user_id: str) -> str:
    """The address of an item's page. Ids may hold any character, also a slash."""
    return "/item?" + urlencode({"id": item_id, "user": user_id})


def card(item: RankedItem, place: int, scale: float, moved: int, entered: bool) -> JsonObject:
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
            for name, value in item.parts.items()
            if value
        ],
        "badges": _badges(item),
        "moved": moved,
        "entered": entered,
    }


def bar_scale(items: tuple[RankedItem, ...]) -> float:
    """The largest sum of absolute parts in a list: its bar is full."""
    return max((sum(abs(value) for value in item.parts.values()) for item in items), default=0.0) or 1.0


def _badges(item: RankedItem) -> list[str]:
    trend = item.parts.get("trend", 0.0)
    total = sum(abs(value) for value in item.parts.values())
    return ["trending"] if total and trend > 0.5 * total else []
