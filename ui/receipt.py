"""The receipt of an item: the contributions to its score, the state and the model behind it."""

from __future__ import annotations

from collections.abc import Iterable

from afterclick.api import Attribution, Recommendations, RecommendedItem
from afterclick.arrays import Json
from ui.cards import CONTRIBUTION_NAMES, SOURCE_NAMES, VERBS, confidence, title_of
from ui.shop_session import UserAction

EXPLANATIONS = {
    "model": "what users with similar taste chose",
    "history": "similarity to your recent actions",
    "trend": "how often users choose it now",
    "content": "similarity of its words and categories to what you like",
    "base": "the same for every item",
    "popularity": "how often users chose it overall",
    "rules": "boosts and limits set by the shop",
    "diversity": "penalty for similarity to items above it",
    "exploration": "bonus to find out whether it suits you",
}
TOLERANCE = 1e-6
MAX_ACTIONS = 6


def receipt(item: RecommendedItem, answer: Recommendations, actions: Iterable[UserAction]) -> Json:
    """The content of the receipt drawer."""
    widest = max((abs(value) for value in item.contributions.values()), default=0.0) or 1.0
    attributions = None
    if item.attributions is not None:
        attributions = [_attribution(event) for event in item.attributions]
    return {
        "title": title_of(item),
        "item_id": item.item_id,
        "score": item.score,
        "reason": item.reason,
        "confidence": confidence(item, answer),
        "attributions": attributions,
        "left_out": False,
        "source": SOURCE_NAMES.get(item.source, item.source),
        "list_source": SOURCE_NAMES.get(answer.source, answer.source),
        "adds_up": abs(sum(item.contributions.values()) - item.score) <= TOLERANCE,
        "contributions": [
            {
                "name": name,
                "label": CONTRIBUTION_NAMES.get(name, name),
                "what": EXPLANATIONS.get(name, ""),
                "value": value,
                "width": round(50 * abs(value) / widest, 2),
            }
            for name, value in item.contributions.items()
        ],
        "model_version": answer.model_version or "none yet: trends and interests only",
        "impression_id": answer.impression_id,
        "as_of": [
            {"partition": name, "offset": offset} for name, offset in sorted(answer.as_of.items())
        ],
        "actions": [
            {"verb": action.verb, "title": action.title, "position": action.position}
            for action in _newest(actions)
        ],
    }


def _attribution(event: Attribution) -> Json:
    """An action of the user and the change of the score without it."""
    verb = VERBS.get(event.action, event.action)
    return {"verb": verb, "title": event.title or event.item_id, "effect": event.effect}


def _newest(actions: Iterable[UserAction]) -> list[UserAction]:
    """The newest actions that count, one per item and kind."""
    newest: dict[tuple[str, str], UserAction] = {}
    for action in actions:
        if action.can_be_undone:
            newest.setdefault((action.action, action.item_id), action)
    return list(newest.values())[:MAX_ACTIONS]
