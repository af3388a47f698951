"""The receipt of one item in a list: what its score is made of, from what state, by which model."""

from __future__ import annotations

from collections.abc import Iterable

from afterclick.api import Attribution, Recommendations, RecommendedItem
from afterclick.arrays import Json
from ui.cards import PART_NAMES, SOURCE_NAMES, sureness, title_of
from ui.changes import VERBS
from ui.shop_session import Deed

EXPLANATIONS = {
    "model": "what people with a taste like yours chose",
    "history": "how near it is to what you did lately",
    "trend": "how many reach for it now",
    "content": "how alike its words and categories are to what you like",
    "base": "what the ranker gives every item",
    "popularity": "how many chose it since the beginning",
    "rules": "what the shop decided about it",
    "diversity": "what it loses for being like an item above it",
    "exploration": "what brings it up to find out whether it suits you",
}
SAME = 1e-6
SHOWN_DEEDS = 6


def receipt(item: RecommendedItem, answer: Recommendations, deeds: Iterable[Deed]) -> Json:
    """What the drawer shows."""
    widest = max((abs(value) for value in item.contributions.values()), default=0.0) or 1.0
    total = sum(item.contributions.values())
    return {
        "title": title_of(item),
        "item_id": item.item_id,
        "score": item.score,
        "reason": item.reason,
        "sure": sureness(item, answer),
        "moved_by": None
        if item.attributions is None
        else [_moved(cause) for cause in item.attributions],
        "left_out": False,
        "source": SOURCE_NAMES.get(item.source, item.source),
        "list_source": SOURCE_NAMES.get(answer.source, answer.source),
        "adds_up": abs(total - item.score) <= SAME,
        "parts": [
            {
                "name": name,
                "label": PART_NAMES.get(name, name),
                "what": EXPLANATIONS.get(name, ""),
                "value": value,
                "width": round(50 * abs(value) / widest, 2),
            }
            for name, value in item.contributions.items()
        ],
        "model_version": answer.model_version or "none yet: trends and interests alone",
        "impression_id": answer.impression_id,
        "as_of": [
            {"partition": name, "offset": offset} for name, offset in sorted(answer.as_of.items())
        ],
        "deeds": [
            {
                "verb": VERBS.get(deed.action, deed.action),
                "title": deed.title,
                "position": deed.position,
            }
            for deed in _newest(deeds)
        ],
    }


def _moved(cause: Attribution) -> Json:
    """An event that moved the item, and by how much."""
    verb = VERBS.get(cause.action, cause.action)
    return {"verb": verb, "title": cause.title or cause.item_id, "effect": cause.effect}


def _newest(deeds: Iterable[Deed]) -> list[Deed]:
    """The newest deeds that stand, each kind of deed with an item once."""
    found: dict[tuple[str, str], Deed] = {}
    for deed in deeds:
        if deed.can_be_undone:
            found.setdefault((deed.action, deed.item_id), deed)
    return list(found.values())[:SHOWN_DEEDS]
